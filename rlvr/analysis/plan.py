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
from rlvr.config import SettingError

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


@contextmanager
def loaded(path: Path, of: str, like: str):
    """What a plan holds, and its seeds as a list. Raises SettingError for whatever goes wrong inside because of what it holds.

    of: what it is the plan of. like: one that is good, in tutorials/experiment.
    """
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        seeds = given["seeds"]
        yield given | {"seeds": list(range(seeds)) if isinstance(seeds, int) else [int(seed) for seed in seeds]}
    except (OSError, yaml.YAMLError, LookupError, TypeError, ValueError, AttributeError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else one_line(error)
        raise SettingError(f"{path} is no plan of {of}: {why}. Compare it with tutorials/experiment/{like}.") from None


def read_plan(path: Path) -> Plan:
    """A plan, checked as far as it can be without its runs. Raises SettingError."""
    with loaded(path, "an experiment", PUBLISHED.name) as given:
        known = {"trunks": {}, "branch_at": 0, "evaluate": {}, "average": 1, "errors": False} | given
        known.pop("study", None)
        if unknown := known.keys() - set(Plan._fields):
            raise ValueError(f"it has {min(unknown)!r}, which no plan knows")
        arms = {str(name): Arm(shlex.split(arm["flags"]), str(arm["says"])) for name, arm in known.pop("arms").items()}
        flags = {part: {str(name): shlex.split(text) for name, text in known.pop(part).items()} for part in ("trunks", "evaluate")}
        plan = Plan(path=path, arms=arms, train=shlex.split(known.pop("train")), **flags, **known)
        if not (arms and plan.seeds and plan.steps > 0 and plan.average > 0 and (plan.branch_at > 0) == bool(plan.trunks)):
            raise ValueError("it needs arms, seeds, steps above 0, and branch_at exactly if it has trunks")
        return plan
