"""Problems: the built-in stories, a published set, or a file; and how a problem becomes a prompt."""

import inspect
import random
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from rlvr.config import refuse
from rlvr.loaders.chat import chat_texts
from rlvr.loaders.gym import is_gym, read_gym, reasoning_gym
from rlvr.loaders.rows import check_answers, has_columns, usable_rows
from rlvr.loaders.sources import HUB, HubSet, is_table, read_hub, read_tables
from rlvr.tiny.task import sample_stories


@dataclass(frozen=True)
class Problem:
    """A question and its gold answer. `solution_steps`: how many steps a full solution has; only the built-in stories know it.

    row: all that the file or the set says of it, for a reward function that asks. reward: the set's own reward function (None: is the
    answer right?), which also decides in evaluations.
    """

    problem: str
    answer: str
    solution_steps: int | None = None
    row: dict = field(default_factory=dict, compare=False, repr=False)
    reward: Callable | None = field(default=None, compare=False, repr=False)


def load_problems(
    data: str, split: str = "train", limit: int = 0, seed: int = 0, level: int = 1, problem_column: str = "", answer_column: str = "",
    strict: bool = False, settings: tuple[str, ...] = (), held_out: bool = False,
) -> list[Problem]:  # fmt: skip
    """Problems of a set, each once: 'tiny', a short name of HUB, a file, a Hub id, or a family of reasoning-gym.

    split: "train" or "test"; a file is the same for both. limit: keep the first so many (0: all; 8192 of the endless built-in ones).
    seed, level: draw other made problems, or harder built-in ones. Columns, strict, settings: see --problem-column, --answer-column,
    --strict, --data-config; with `held_out`, those that the set does not have are passed over.
    Raises SettingError, with cause and remedy, for anything that cannot be read.
    """
    if is_gym(data):
        rows = read_gym(data, split, settings, seed, others_too=held_out)
        return [Problem(row["question"].strip(), row["answer"] or "", None, row, reasoning_gym) for row in rows[: limit or None]]
    if data == "tiny":
        stories = sample_stories(split, limit or 8192, seed, level)
        return [Problem(s.problem, str(s.answer), s.equations, {"problem": s.problem, "answer": str(s.answer)}) for s in stories]
    known = HUB.get(data, HubSet(data))
    rows = read_tables(data) if is_table(data) else read_hub(known, data, split)
    if held_out and rows and not has_columns(rows[0], *problem_column.split("+"), answer_column):
        problem_column = answer_column = ""
    columns = (problem_column or known.problem, answer_column or known.answer)
    return [Problem(question, text, None, row) for question, text, row in usable_rows(rows, data, *columns, strict)[: limit or None]]


def load_held_out(data: str, limit: int, **options) -> list[Problem]:
    """Problems to measure on. What is named for --data (see load_problems) holds for this set too, if it has it. Says how many
    answers no box can match. Raises SettingError."""
    if data in HUB:  # its columns are known
        options |= dict(problem_column="", answer_column="")
    found = load_problems(data, "test", limit, held_out=True, **options)
    if found[0].reward is None:
        check_answers([p.answer for p in found], data)
    return found


def how_to_read(c) -> dict:
    """What the settings of a program say to load_problems about --data."""
    return dict(level=c.level, problem_column=c.problem_column, answer_column=c.answer_column, strict=c.strict, settings=c.data_config)


def has_test_split(data: str) -> bool:
    """Whether --data has held-out problems of its own."""
    return data == "tiny" or is_gym(data) or (data in HUB and HUB[data].train is not None and HUB[data].test is not None)


def columns_for(reward: Callable | None, problems: list[Problem]) -> list[list]:
    """What a reward function gets beside the completions: the gold answers, and the rows if its third parameter is called rows."""
    columns = [[p.answer for p in problems]]
    with suppress(TypeError, ValueError):  # None; Python does not tell the parameters of all that is built in
        if list(inspect.signature(reward).parameters)[2:3] == ["rows"]:
            columns.append([p.row for p in problems])
    return columns


def prompt_ids(tokenizer, problem: str, instruction: str, system: str = "", template: str = "auto", template_args: str = "") -> list[int]:
    """The prompt of one problem, as `all_prompt_ids` makes it."""
    return all_prompt_ids(tokenizer, [problem], instruction, system, template, template_args)[0]


def all_prompt_ids(
    tokenizer, problems: list[str], instruction: str, system: str = "", template: str = "auto", template_args: str = ""
) -> list[list[int]]:
    """Prompts as token ids: problem, newline, instruction, in the model's chat template if it has one. At most one BOS token.

    template, template_args: see the flags. Raises SettingError if a template fails, or does not hold its problem, or is asked for and not
    there.
    """
    contents = [f"{problem}\n{instruction}" if instruction else problem for problem in problems]
    asked = "--template chat" if template == "chat" else "--template-args" if template_args else ""
    refuse(asked and not tokenizer.chat_template, f"{asked} asks for a chat template, but the model has none. Leave it out.")
    chat = tokenizer.chat_template and template in ("auto", "chat")
    if chat:
        texts = chat_texts(tokenizer, problems, contents, system, template_args)
    elif template in ("auto", "plain"):
        texts = [(f"{system}\n\n" if system else "") + content + "\n" for content in contents]
    else:  # the user's own text, filled in in one pass: a problem may hold "{system}"
        known = {"{system}": system, "{instruction}": instruction}
        texts = [re.sub("{(problem|system|instruction)}", lambda match: known.get(match[0], problem), template) for problem in problems]
    for problem, text in zip(problems, texts):
        cut = any(texts) and "".join(problem.split()) not in "".join(text.split())  # white space may be trimmed
        cause = f"The model's chat template cuts its problem: of {problem[:60]!r} it makes {text[-60:]!r}"
        refuse(cut, f"{cause}. Choose --template plain, or repair chat_template.")
    return [_begun_once(tokenizer, text, bool(chat)) for text in texts]


def _begun_once(tokenizer, text: str, chat: bool) -> list[int]:
    """Token ids, with the tokenizer's BOS unless a chat template, or a text that begins with BOS, has written it; never with its EOS."""
    written = chat or bool(tokenizer.bos_token and text.lstrip().startswith(tokenizer.bos_token))
    ids = tokenizer(text, add_special_tokens=not written).input_ids
    added_end = not written and ids[-1:] == [tokenizer.eos_token_id] and not text.rstrip().endswith(tokenizer.eos_token)
    return ids[:-1] if added_end else ids


def encode_prompts(
    tokenizer, problems: list[Problem], instruction: str, max_prompt_tokens: int, system: str = "", template: str = "auto",
    template_args: str = "",
) -> tuple[list[Problem], list[list[int]], int]:  # fmt: skip
    """The problems whose prompt fits, their prompts as token ids, and how many problems were left out because theirs is too long.

    No prompt is ever cut. Raises SettingError if none fits.
    """
    prompts = all_prompt_ids(tokenizer, [p.problem for p in problems], instruction, system, template, template_args)
    refuse(not any(prompts), "The model's tokenizer or chat template makes nothing of the problems. Repair its tokenizer files.")
    fits = [i for i, ids in enumerate(prompts) if 0 < len(ids) <= max_prompt_tokens]
    cause = f"All {len(problems)} prompts are longer than {max_prompt_tokens} tokens (the shortest has {min(map(len, prompts))})"
    refuse(not fits, f"{cause}. Raise --max-prompt-tokens.")
    return [problems[i] for i in fits], [prompts[i] for i in fits], len(problems) - len(fits)


def next_problems(queue: list[int], n: int, count: int, shuffle: random.Random) -> tuple[list[int], list[int]]:
    """The next n of `count` problems (indices) and the queue after them: a shuffled pass over the data, then another."""
    while len(queue) < n:
        order = list(range(count))
        shuffle.shuffle(order)
        queue = queue + order  # not in place: a step that fails goes back to the old one
    return queue[:n], queue[n:]
