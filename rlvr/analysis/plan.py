"""The plan of an experiment, a YAML file: the flags of every run, the arms, the seeds; and trunks, if arms are to branch from them.

    question: Does a bonus for late tokens help on the plateau?
    train: --level 3 --lr-schedule constant        # flags of train.py, for every run
    steps: 100                                     # of each run, or of each branch
    seeds: 2                                       # runs of each arm, or a list of their seeds
    arms:                                          # the first is the baseline
      grpo: {flags: --method grpo, says: the baseline}
      pos: {flags: --method pos, says: bonus for late tokens}
    trunks: {first: --seed 0, second: --seed 1}    # runs of the baseline; each arm goes on from each of them
    branch_at: 80                                  # steps of a trunk
    evaluate: {cool: --temperature 0.6 --top-p 0.95}   # flags of eval.py, once each run is done; pass@1 becomes a column of that name
    average: 3                                     # pass_at_1 is the mean of so many evaluations, the last ones
    errors: true                                   # the shares of first errors late in training become columns (built-in stories)

All from `trunks` on may be left out. A key `study` belongs to rules.py.
"""

import shlex
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import yaml  # transformers depends on it

from rlvr.common.text import one_line
from rlvr.config import SettingError, refuse

PUBLISHED = Path(__file__).parents[2] / "tutorials" / "experiment" / "plan.yaml"


class Arm(NamedTuple):
    flags: list[str]  # of train.py
    says: str  # what it is, for the table


class Plan(NamedTuple):
    path: Path
    question: str
    train: list[str]
    steps: int
    seeds: list[int]
    arms: dict[str, Arm]
    trunks: dict[str, list[str]]  # name -> flags
    branch_at: int
    evaluate: dict[str, list[str]]  # column of results.csv -> flags of eval.py
    average: int
    errors: bool


KINDS = dict(question=str, train=str, steps=int, seeds=list, arms=dict, trunks=dict, branch_at=int, evaluate=dict, average=int, errors=bool)
NAMES = {str: "a text", int: "a whole number", dict: "a table of names", list: "a list", bool: "true or false"}
TAKEN = {"--out", "--name", "--branch", "--resume", "--help", "-h"}


def flags_of(text: str) -> list[str]:
    """A text split into flags. Raises ValueError."""
    if type(text) is not str:
        raise ValueError(f"{text!r} is no text with flags")
    if taken := [word for word in shlex.split(text) if word.partition("=")[0] in TAKEN]:
        raise ValueError(f"{taken[0]} is not for a plan to say")
    return shlex.split(text)


@contextmanager
def loaded(path: Path, of: str, like: str):
    """What a plan holds, and its seeds as a list. Raises SettingError for whatever goes wrong inside because of what it holds.

    of: what it is the plan of. like: one that is good, in tutorials/experiment.
    """
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        refuse(type(given) is not dict, "it is no table of keys and values")
        seeds = list(range(given["seeds"])) if type(given["seeds"]) is int else given["seeds"]
        wrong = type(seeds) is not list or {type(seed) for seed in seeds} - {int} or len(set(seeds)) < len(seeds)
        refuse(wrong, f"its seeds are {seeds!r}, neither a whole number nor a list of different ones")
        yield given | {"seeds": seeds}
    except (OSError, yaml.YAMLError, LookupError, TypeError, ValueError, AttributeError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else one_line(error)
        raise SettingError(f"{path} is no plan of {of}: {why}. Compare it with tutorials/experiment/{like}.") from None


def read_plan(path: Path) -> Plan:
    """A plan, checked as far as it can be without its runs. Raises SettingError."""
    with loaded(path, "an experiment", PUBLISHED.name) as given:
        known = {"trunks": {}, "branch_at": 0, "evaluate": {}, "average": 1, "errors": False} | given
        unknown = known.keys() - KINDS.keys() - {"study"}
        refuse(unknown, f"it has {min(unknown, key=str, default='')!r}, which no plan knows")
        for key, kind in KINDS.items():
            refuse(type(known[key]) is not kind, f"{key} is {known[key]!r}, and not {NAMES[kind]}")
        arms = {str(name): Arm(flags_of(arm["flags"]), str(arm["says"])) for name, arm in known["arms"].items()}
        parts = {part: {str(name): flags_of(text) for name, text in known[part].items()} for part in ("trunks", "evaluate")}
        known |= parts | {"arms": arms, "train": flags_of(known["train"])}
        plan = Plan(path, **{key: known[key] for key in KINDS})
        good = arms and plan.seeds and plan.steps > 0 and plan.average > 0 and (plan.branch_at > 0) == bool(plan.trunks)
        refuse(not good, "it needs arms, seeds, steps above 0, and branch_at exactly if it has trunks")
        return plan
