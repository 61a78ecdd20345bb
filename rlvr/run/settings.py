"""Are these settings good? All that can be said before anything is loaded. And the settings that a run folder was made with."""

import json
import os
import re
import tempfile
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Literal, get_args, get_origin

from rlvr.advantage import method_parts
from rlvr.common.text import quoted
from rlvr.config import BUILT_IN, GYM, EvalConfig, SettingError, TrainConfig, as_sentence, flag, in_its_own_words, refuse, train_config
from rlvr.loaders.chat import template_arguments
from rlvr.methods import STRENGTHS

# Settings that say nothing about the model: on what it runs, and what is shown and saved meanwhile.
OF_THE_MACHINE = set("engine device threads workers micro_batch_tokens sampling_rows cuda_graphs".split())
OF_THE_MACHINE |= set("save_every keep keep_every show_every log_completions report_to push_to_hub".split())
# Settings that may differ when a run is resumed: the length of the run, and what cannot change its numbers (but rounding).
MAY_CHANGE = OF_THE_MACHINE | {"steps", "gradient_checkpointing", "lora_merge"}
# Settings that may name another place: a checkpoint knows what is there by its fingerprint. Of a reward function the name must stay.
MAY_MOVE = {"model", "data", "eval_data", "reward"}


def read_config(folder: Path) -> TrainConfig:
    """The settings that a run folder was made with. Raises SettingError for anything but what a run has written."""
    path = folder / "config.json"
    remedy = "Name a run folder, such as runs/pos-seed0."
    refuse(not os.path.isfile(path), f"{folder} is not a run folder (no config.json). {remedy}")  # reading a pipe might never end
    with as_sentence(f"{path} is damaged or cannot be read", "Put back the file that the run wrote.", OSError, ValueError, RecursionError):
        saved = json.loads(path.read_text(encoding="utf-8-sig"))
    known = {f.name: f for f in fields(train_config())}
    foreign = not isinstance(saved, dict) or not {"preset", "method"} <= saved.keys()
    refuse(foreign, f"{path} does not belong to a run. {remedy}")
    wrong = ", ".join(sorted(set(saved) ^ set(known)))
    refuse(wrong, f"{path} was written by another version (it differs in {wrong[:100]}). Resume with that version.")
    saved = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
    for name, value in saved.items():
        refuse(not _has_type(known[name], value), f"{path} has {value!r} for {name}. Put back the file that the run wrote.")
    return _found_again(train_config()(**saved), folder)


def _found_again(c: TrainConfig, folder: Path) -> TrainConfig:
    """Relative paths in settings count from where the run was started, which is where --out is: elsewhere, they are looked up there."""
    out, above = Path(c.out), folder.resolve().parents
    if out.is_absolute() or ".." in out.parts or len(out.parts) >= len(above):
        return c
    paths = {name: getattr(c, name) for name in ("model", "data", "eval_data")}
    there = {name: above[len(out.parts)] / path for name, path in paths.items() if path not in ("", *BUILT_IN) and not os.path.exists(path)}
    return replace(c, **{name: str(path) for name, path in there.items() if path.exists()})


def branch_parts(branch: str) -> tuple[Path, int]:
    """"runs/grpo-seed0@80" -> (Path("runs/grpo-seed0"), 80). Raises SettingError."""
    found = re.fullmatch(r"(.+)@(\d{1,9})", branch)
    refuse(not found, f"--branch {branch!r} names no step of a run. Write it as in --branch runs/grpo-seed0@80.")
    return Path(found[1]), int(found[2])


def branch_settings(branch: str) -> TrainConfig:
    """The settings of the run that a branch comes from, which its own flags override. Raises SettingError."""
    folder, _ = branch_parts(branch)
    return replace(read_config(folder), branch=branch, name="", out=str(folder.parent))


def first_step(c: TrainConfig) -> int:
    """How many steps were made before this run began: 0, if it is not a branch."""
    return branch_parts(c.branch)[1] if c.branch else 0


def check_train(c: TrainConfig) -> None:
    """Refuse settings that cannot work, before anything is loaded. Raises SettingError."""
    for field in fields(c):  # the command line cannot get these wrong, Python can
        value = getattr(c, field.name)
        refuse(not _has_type(field, value), f"{flag(field.name)} is {value!r}. Choose a value of the kind that --help shows.")
    if c.resume:
        _check_resumed(c)
    _check_values(c)
    _check_method(c)
    _check_together(c)
    check_size(c.prompts_per_step * c.completions_per_prompt, c.max_new_tokens, "--prompts-per-step and --completions-per-prompt")
    check_size(c.final_eval_problems * c.eval_completions, c.max_new_tokens, "--final-eval-problems and --eval-completions")
    if not c.resume:
        check_can_write(Path(c.out, c.name), "the run folder")


def check_eval(c: EvalConfig) -> None:
    """The same for an evaluation. Raises SettingError."""
    refuse(not c.models, "No model was named. Name one or more, as in: python eval.py tiny runs/pos-seed0")
    _check_values(c)
    refuse(not 0 < c.top_p <= 1, f"--top-p is {c.top_p}. Choose a number above 0 and at most 1.")
    check_size(max(c.problems, 1) * c.completions, max(c.max_new_tokens, 1), "--problems and --completions")


def check_size(completions: int, max_new_tokens: int, flags: str) -> None:
    """Refuse batches that no memory holds: sampling keeps about 20 bytes for every token that may come. Raises SettingError."""
    size = f"{completions} completions of up to {max_new_tokens} tokens"
    refuse(completions * max_new_tokens > 2**31, f"{flags} make {size}, too many for any memory. Choose fewer.")


def check_can_write(folder: Path, what: str) -> None:
    """Refuse a folder in which no file can be made, before any work is done for it. Raises SettingError."""
    # What does not exist can be made if the nearest parent lets us; a dead link does exist.
    nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    with as_sentence(f"Nothing can be written to {what}, {folder}", "Choose another one.", OSError):
        tempfile.TemporaryFile(dir=nearest).close()  # on Linux it never has a name


def _has_type(field: Field, value) -> bool:
    """Whether a value of a TrainConfig is of the kind that the command line would give."""
    if get_origin(field.type) is Literal:
        return value in get_args(field.type)
    if field.name == "shape_start" and value == "plateau":
        return True
    kinds = {float: (float, int), bool: bool, int: int, str: str, tuple: tuple}[type(field.default)]
    if kinds is tuple:
        return isinstance(value, tuple) and all(isinstance(x, str) for x in value)
    return isinstance(value, kinds) and (kinds is bool or not isinstance(value, bool))


def _check_resumed(c: TrainConfig) -> None:
    """A run that is resumed keeps its settings, but for those of MAY_CHANGE."""
    saved = replace(read_config(Path(c.resume)), resume=c.resume)
    if saved.reward and not c.reward:  # a run folder may come from somebody else: no code is run because a file says so
        raise SettingError(f"{c.resume} was trained with a reward function of yours. Name it again: add --reward {quoted(saved.reward)}")
    own = f"Give the run's own, --reward {quoted(saved.reward)}" if saved.reward else "Leave it out"
    refuse(Path(c.reward).name != Path(saved.reward).name,
           f"--reward cannot change in a run that is resumed. {own}, or start a new run with --model {quoted(c.resume)}.")  # fmt: skip
    fixed = [flag(f.name) for f in fields(c) if getattr(c, f.name) != getattr(saved, f.name) and f.name not in MAY_CHANGE | MAY_MOVE]
    remedy = f"Leave it out, or start a new run from these weights with --model {quoted(c.resume)}."
    refuse(fixed, f"{' and '.join(fixed)} cannot change in a run that is resumed. {remedy}")


def _check_values(c) -> None:
    """Numbers that can be computed with and lie in the ranges of config.py; texts that can be encoded, names that a file system takes."""
    for field in fields(c):
        value, its, limits = getattr(c, field.name), flag(field.name), field.metadata
        if isinstance(value, (int, float)):
            refuse(10**15 <= abs(value) < float("inf"), f"{its} is out of all bounds. Choose a number of at most 15 digits.")
        for text in value if isinstance(value, (list, tuple)) else [value] if isinstance(value, str) else []:
            is_name = field.name not in ("instruction", "system", "template", "template_args")
            control = re.search("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]" if is_name else "[\0\ud800-\udfff]", text)
            refuse(control, f"{its} {text[:40]!r} has characters that cannot be shown. Choose plain text.")
            too_long = is_name and (len(text) > 1000 or max(len(part.encode()) for part in text.split("/")) > 200)
            refuse(too_long, f"{its} {text[:40] + '...'!r} is too long for a file name. Choose a shorter one.")
            missing = not text and field.name in ("model", "models", "data")
            refuse(missing, f"{its} is empty. Choose a name, or leave it out for the built-in one.")
        if "at_least" in limits:
            low, because = limits["at_least"], f", but {limits['because']}" if limits["because"] else ""
            refuse(not low <= value < float("inf"), f"{its} is {value}{because}. Choose {low} or more.")
        refuse("positive" in limits and not 0 < value < float("inf"), f"{its} is {value}. Choose a positive number.")
    refuse(c.template not in ("auto", "chat", "plain") and "{problem}" not in c.template,
           f"--template is {c.template[:40]!r}. Choose auto, chat or plain, or write a text with {{problem}} in it.")  # fmt: skip
    refuse(c.template_args and c.template not in ("auto", "chat"),
           "--template-args are for the model's chat template, which --template leaves out. Choose one of the two.")  # fmt: skip
    template_arguments(c.template_args)
    refuse(0 < c.temperature < 0.01, f"--temperature is {c.temperature}. Choose 0.01 or more.")  # divided by less, logits overflow
    refuse(c.data_config and not any(GYM in data for data in (c.data, getattr(c, "eval_data", ""))),
           f"--data-config has settings of a family of reasoning-gym, but no --data is one. Leave it out, or name one: {GYM}leg_counting.")
    refuse(c.threads > 1024, f"--threads is {c.threads}. Choose at most as many as there are processor cores.")
    refuse(c.engine == "plain" and c.cuda_graphs, "--cuda-graphs has no effect with --engine plain. Leave one of them out.")


def _check_method(c: TrainConfig) -> None:
    with in_its_own_words(ValueError):
        method_parts(c.method)
    if later := [name for name in STRENGTHS if not hasattr(c, name)]:
        raise SettingError(f"These settings were made before {later[0]} was declared. Make them again, with TrainConfig = train_config().")


# fmt: off
def _check_together(c: TrainConfig) -> None:
    """Settings that make no sense together, or have a form of their own."""
    refuse(c.lora_merge and not c.lora_rank,
        "--lora-merge has nothing to merge without --lora-rank. Leave it out, or choose a rank, such as 32.")
    refuse((c.data == "tiny" or c.data.startswith(GYM)) and (c.problem_column or c.answer_column),
        "Problems that are made have no columns. Leave out --problem-column and --answer-column, or name other --data.")
    refuse(c.eval_every and c.final_eval_problems and c.eval_problems < 1,
        f"--eval-problems is {c.eval_problems}. Choose 1 or more, or --eval-every 0 to evaluate only at the start and the end.")
    refuse(c.eval_data and not c.final_eval_problems,
        "--eval-data names problems, but --final-eval-problems 0 evaluates none. Choose one of the two.")
    refuse(not (0 <= c.clip_low < 1 and c.clip_high >= 0),
        f"Clip values {c.clip_low} and {c.clip_high} leave no valid range. Choose --clip-low from 0 to below 1, and --clip-high 0 or more.")
    refuse(c.overlong_buffer > c.max_new_tokens,
        f"--overlong-buffer {c.overlong_buffer} is longer than --max-new-tokens {c.max_new_tokens}. Choose a shorter one, or 0 for none.")
    if c.shape_start != "plateau":
        refuse(c.shape_start < 1, f"--shape-start is {c.shape_start}, but steps count from 1. Choose 1 or more, or 'plateau'.")
        refuse(c.shape_start > c.steps, f"--shape-start {c.shape_start} comes after the last step, {c.steps}. Choose an earlier one.")
        refuse(c.shape_stop and c.shape_stop < c.shape_start,
            f"The window from --shape-start {c.shape_start} to --shape-stop {c.shape_stop} is empty. Choose a later stop.")
    refuse(c.branch and c.method != "grpo" and 0 < c.shape_stop <= first_step(c),
        f"--shape-stop {c.shape_stop} comes before the first step of the branch, so --method {c.method} does nothing. Choose a later stop.")
    refuse(c.name and (c.name != Path(c.name).name or c.name in (".", "..")),
        f"--name {c.name!r} is not a plain folder name. Choose a name without slashes, and --out for the folder around it.")
    refuse(c.push_to_hub and not re.fullmatch(r"[\w.-]+/[\w.-]+", c.push_to_hub),
        f"--push-to-hub {c.push_to_hub!r} is no Hub id. Write it as your-name/my-model.")
# fmt: on
