"""The command line: words -> checked settings, and `--help`. Nothing here imports torch, so that `--help` answers at once."""

import argparse
import ast
import contextlib
import difflib
import inspect
import io
import json
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import MISSING, field, fields, make_dataclass, replace
from pathlib import Path
from typing import Annotated

from rlvr.advantage import METHODS
from rlvr.config import BUILT_IN, PRESET_HELP, PRESETS, EvalConfig, SettingError, ShapingSettings, TrainConfig, refuse, train_config
from rlvr.run.settings import branch_settings, check_eval, check_train, read_config

# What `--help` says of the presets, and the flags that it shows first.
ABOUT = "Presets (--preset NAME; --preset NAME --help shows its settings):" + "".join(f"\n- {k:24}{v}" for k, v in PRESET_HELP.items())
TRAIN_FIRST = "method model data preset steps lr prompts_per_step completions_per_prompt max_new_tokens seed eval_data resume name out"
EVAL_FIRST = "models data problems completions max_new_tokens temperature top_p seed out"


def parse_train(argv: list[str] | None = None) -> TrainConfig:
    """Command line -> checked settings. A preset, or the run that is resumed or branched from, gives the defaults; flags override.

    Raises SettingError.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)  # these give the defaults: before the real parse
    for flag in ("--resume", "--branch", "--preset", "--model", "--level"):
        early.add_argument(flag, nargs="?")
    named, _ = early.parse_known_args(argv)
    if named.resume is not None:
        default = replace(read_config(Path(named.resume)), resume=named.resume, reward="")
    elif named.branch is not None:
        refuse(named.preset is not None, "A branch has the settings of its run, not those of a preset. Leave out --preset, or --branch.")
        default = replace(branch_settings(named.branch), reward="")
    else:
        preset = named.preset or ("tiny3" if named.level == "3" else _preset_for(named.model or "tiny"))
        refuse(preset not in PRESETS, f"There is no preset {preset!r}. Choose one of: {', '.join(PRESETS)}.")
        default = train_config()(**{"preset": preset} | PRESETS[preset])
    config = _parse_in_groups(train_config(), argv, "python train.py", TRAIN_FIRST.split(), ABOUT, default)
    check_train(config)
    return config


def parse_eval(argv: list[str] | None = None) -> EvalConfig:
    """Command line -> checked settings. Raises SettingError."""
    config = _parse_in_groups(EvalConfig, argv, "python eval.py", EVAL_FIRST.split())
    check_eval(config)
    return config


def parse_command(kind: type, program: str, argv: list[str] | None = None, **options):
    """Command line -> a dataclass of another program, such as `python -m rlvr.analysis.report`. Raises SettingError.

    It is tyro's parse, with its box of an error message made into our one line. `--help` prints and exits as usual.
    """
    import tyro

    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(kind, args=argv, prog=program, config=(tyro.conf.PositionalRequiredArgs, tyro.conf.OmitArgPrefixes), **options)
    except SystemExit as end:
        if not end.code:
            raise
    lines = [line.strip("│ ") for line in box.getvalue().splitlines() if line.startswith("│")]
    sections = " ".join("─" if line.startswith("─") else line for line in lines).split("─")
    cause = " ".join(sections[0].split(" Got errors:")[0].split())[:200].rstrip(".")
    near = [flag for line in lines[1:] if line.startswith("--") for flag in re.findall("--[a-z-]+", line)]
    meant = difflib.get_close_matches(cause.removeprefix("Unrecognized options: "), near, n=1, cutoff=0)
    raise SettingError(f"{cause}. " + (f"Did you mean {meant[0]}? " if meant else "") + f"See {program} --help.")


def run_program(work: Callable[[], object]) -> None:
    """Run a program of the command line: a mistake of the user is one line and exit code 2, Ctrl-C is exit code 130."""
    try:
        work()
    except KeyboardInterrupt:
        sys.exit(130)
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def resume_command(folder: str | Path, reward: str = "") -> str:
    """What to type to go on with a run."""
    return shlex.join(["python", "train.py", "--resume", str(folder), *(["--reward", reward] if reward else [])])


def help_texts(kind: type) -> dict[str, str]:
    """The help of each setting: the string below its field, or what its method declares."""
    bodies = {c.name: c.body for c in ast.parse(inspect.getsource(sys.modules[kind.__module__])).body if isinstance(c, ast.ClassDef)}
    texts = {f.name: f.metadata["strength"].help for f in fields(kind) if "strength" in f.metadata}
    for base in reversed(kind.__mro__):
        for member, below in zip(bodies.get(base.__name__, []), bodies.get(base.__name__, [])[1:]):
            if isinstance(member, ast.AnnAssign) and isinstance(below, ast.Expr):
                texts[member.target.id] = " ".join(below.value.value.split())
    return texts


def _parse_in_groups(kind: type, argv, program: str, first: list[str], about: str = "", default=None, only=None):
    """parse_command for settings that are declared in groups: each group is a dataclass for tyro, with a heading in `--help`.

    tyro takes a tenth of a second for all of them, and a hundredth for those that are named. So it gets those alone, unless `--help` shows
    all settings, or something is wrong, and the error suggests what was meant.
    """
    import tyro

    named = {re.sub("^--(no-)?", "", word.partition("=")[0]).replace("-", "_") for word in (sys.argv if argv is None else argv)}
    if only is None and not named & {"_h", "help"}:
        with contextlib.suppress(SettingError):
            return _parse_in_groups(kind, argv, program, first, about, default, named)
    members, groups, texts = {f.name: f for f in fields(kind)}, {}, help_texts(kind) if only is None else {}
    for name in [name for name in [*first, *members] if only is None or name in only or members[name].default is MISSING]:
        group = groups.setdefault("" if name in first else _heading(kind, members[name]), {})
        start = members[name].default if default is None else getattr(default, name)
        typed = Annotated[members[name].type, tyro.conf.arg(help=texts.get(name, ""))]
        group[name] = (name, typed) if start is MISSING else (name, typed, field(default=start))
    # tyro searches the source of a class for the help of each member that has none, which takes longer than all the rest.
    parts = [Annotated[make_dataclass("Group", group.values()), tyro.conf.arg(name=heading, help="")] for heading, group in groups.items()]
    whole = make_dataclass("Settings", [(f"group{i}", part) for i, part in enumerate(parts)])
    parsed = parse_command(whole, program, argv, description="\n\n".join([inspect.cleandoc(kind.__doc__), about]))
    return kind(**(vars(default) if default else {}) | {k: v for part in vars(parsed).values() for k, v in vars(part).items()})


def _heading(kind: type, setting) -> str:
    """The name of the group in which a setting was declared; tyro adds "options"."""
    declared = (base for base in reversed(kind.__mro__) if setting.name in getattr(base, "__dataclass_fields__", {}))
    owners = [m.__module__ for m in METHODS.values() if setting.name in getattr(m, "strengths", ())]
    return "further methods" if owners and owners != ["rlvr.advantage"] else (ShapingSettings if owners else next(declared)).__doc__.lower()


def _preset_for(model: str) -> str:
    """The preset when none is named: that of a run for its run folder, that of its name for a built-in model, hf for any other."""
    for folder in (Path(model), Path(model).parent):  # a run folder, or the model in it
        # Anything else than a run folder has no such file, or one that names no preset, as a model's.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            preset = json.loads(path.read_text(encoding="utf-8-sig"))["preset"] if (path := folder / "config.json").is_file() else None
            if isinstance(preset, str):
                return preset
    return model if model in BUILT_IN else "hf"
