"""Problems: the built-in stories, a published set, or a file; and how a problem becomes a prompt."""

import random
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rlvr.common.text import one_line
from rlvr.config import SettingError
from rlvr.loaders.rows import has_columns, problem_answer_pairs
from rlvr.loaders.sources import HUB, HubSet, is_table, read_hub, read_table
from rlvr.tiny.task import sample_stories

# A chat template that writes today's date would give a run that is resumed, or repeated, on another day other prompts. It gets one day.
DAY = {f"%{letter}": datetime(2025, 8, 4).strftime(f"%{letter}") for letter in "aAbBdfHIjmMpSUwWyYcxX"}
ON_DAY = "".join(f".replace({a!r}, {b!r})" for a, b in DAY.items())
ON_ONE_DAY = "{% macro strftime_now(form) %}{{ form" + ON_DAY + " }}{% endmacro %}{{ '' }}"  # the last, so that a first line end is kept


@dataclass(frozen=True)
class Problem:
    """A question and its gold answer. `solution_steps`: how many steps a full solution has; only the built-in stories know it."""

    problem: str
    answer: str
    solution_steps: int | None = None


def load_problems(
    data: str, split: str = "train", limit: int = 0, seed: int = 0, level: int = 1, problem_column: str = "", answer_column: str = "",
    usual_columns_too: bool = False,
) -> list[Problem]:  # fmt: skip
    """Problems of a set, each once: 'tiny', a short name of HUB, a file, or a Hub id.

    split: "train" or "test"; a file is the same for both. limit: keep the first so many (0: all; 8192 of the endless built-in ones).
    seed, level: draw other built-in problems, or harder ones. Columns: see --problem-column and --answer-column; with
    `usual_columns_too`, a set that lacks one of them is read by the usual names.
    Raises SettingError, with cause and remedy, for anything that cannot be read.
    """
    if data == "tiny":
        return [Problem(s.problem, str(s.answer), len(s.ops)) for s in sample_stories(split, limit or 8192, seed, level)]
    from_file, known = is_table(data), HUB.get(data, HubSet(data))
    rows = read_table(Path(data)) if from_file else read_hub(known, data, split)
    if usual_columns_too and rows and not has_columns(rows[0], *problem_column.split("+"), answer_column):
        problem_column = answer_column = ""
    columns = (problem_column or known.problem, answer_column or known.answer)
    pairs = problem_answer_pairs(rows, data, *columns, known.around, strict=from_file)
    return [Problem(*pair) for pair in pairs[: limit or None]]


def load_held_out(data: str, limit: int, seed: int = 0, level: int = 1, problem_column: str = "", answer_column: str = "") -> list[Problem]:
    """Problems to measure on. The columns named for --data hold for this set too, if it has them. Raises SettingError."""
    if data in HUB:  # its columns are known
        problem_column = answer_column = ""
    return load_problems(data, "test", limit, seed, level, problem_column, answer_column, usual_columns_too=True)


def has_test_split(data: str) -> bool:
    """Whether --data has held-out problems of its own."""
    return data == "tiny" or (data in HUB and HUB[data].train is not None and HUB[data].test is not None)


def prompt_ids(tokenizer, problem: str, instruction: str, system: str = "", template: str = "auto") -> list[int]:
    """The prompt as token ids: problem, newline, instruction, in the model's chat template if it has one. At most one BOS token.

    template: see --template. Raises SettingError if the template fails, or if --template chat asks for one that the model lacks.
    """
    if template not in ("auto", "chat", "plain"):  # the user's own text, filled in in one pass: a problem may hold "{system}"
        parts = {"{problem}": problem, "{system}": system, "{instruction}": instruction}
        return tokenizer(re.sub("|".join(map(re.escape, parts)), lambda match: parts[match[0]], template)).input_ids
    content = f"{problem}\n{instruction}" if instruction else problem
    if template == "chat" and not tokenizer.chat_template:
        raise SettingError("--template chat asks for a chat template, but the model has none. Choose --template plain.")
    if tokenizer.chat_template and template != "plain":
        messages = ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": content}]
        try:
            dated = "strftime_now" in str(tokenizer.chat_template)
            program = {"chat_template": ON_ONE_DAY + tokenizer.get_chat_template()} if dated else {}
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **program)
        except Exception as error:  # a template is a program, written by somebody else
            remedy = "Leave out --system, or choose --template plain" if system else "Choose --template plain, or repair chat_template"
            raise SettingError(f"The model's chat template fails ({one_line(error)}). {remedy}.") from None
        return tokenizer(text, add_special_tokens=False).input_ids  # the template has written the special tokens already
    return tokenizer((f"{system}\n\n" if system else "") + content + "\n").input_ids


def encode_prompts(
    tokenizer, problems: list[Problem], instruction: str, max_prompt_tokens: int, system: str = "", template: str = "auto"
) -> tuple[list[Problem], list[list[int]], int]:
    """The problems whose prompt fits, their prompts as token ids, and how many problems were left out because theirs is too long.

    No prompt is ever cut. Raises SettingError if none fits.
    """
    prompts = [prompt_ids(tokenizer, p.problem, instruction, system, template) for p in problems]
    if not any(prompts):
        raise SettingError("The model's tokenizer or chat template makes nothing of the problems. Repair its tokenizer files.")
    fits = [i for i, ids in enumerate(prompts) if 0 < len(ids) <= max_prompt_tokens]
    if not fits:
        cause = f"All {len(problems)} prompts are longer than {max_prompt_tokens} tokens (the shortest has {min(map(len, prompts))})"
        raise SettingError(f"{cause}. Raise --max-prompt-tokens.")
    return [problems[i] for i in fits], [prompts[i] for i in fits], len(problems) - len(fits)


def next_problems(queue: list[int], n: int, count: int, shuffle: random.Random) -> tuple[list[int], list[int]]:
    """The next n of `count` problems (indices) and the queue after them: a shuffled pass over the data, then another."""
    while len(queue) < n:
        order = list(range(count))
        shuffle.shuffle(order)
        queue = queue + order  # not in place: a step that fails goes back to the old one
    return queue[:n], queue[n:]
