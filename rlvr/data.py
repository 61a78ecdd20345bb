"""Problems: the built-in stories, published sets in their own columns, your file, or a Hub id; and how a problem becomes a prompt."""

import csv
import io
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rlvr.config import SettingError
from rlvr.common.text import printable, say
from rlvr.reward import MAX_CHARS, last_boxed, verify

MAX_PROBLEM_CHARS = 100_000  # a longer one is no prompt, and tokenizers take minutes over megabytes, or crash
NO_TEXT = re.compile("[\0\ud800-\udfff]")  # NUL, and half a surrogate pair (JSON can spell it), which no encoding can write
# Columns of published sets, tried in order: (columns of the problem, joined by a space; column of the answer).
COLUMNS = [
    (("problem",), "answer"),  # MATH500, AIME, AMC
    (("question",), "answer"),  # GSM8K, AMC
    (("prompt",), "answer"),
    (("input",), "target"),  # MAWPS
    (("Body", "Question"), "Answer"),  # SVAMP
    (("problem",), "solution"),  # MATH, Minerva: the answer is in the last box of the solution
]


@dataclass(frozen=True)
class HubSet:
    """A published set: where it is, which splits to train and to evaluate on (None: it has none for that), and where its rows have what.

    `around`: a pattern whose first group is the problem, if the column has more than that.
    """

    hub_id: str
    train: str | None
    test: str | None
    problem: str
    answer: str
    configuration: str | None = None
    around: str = ""


HUB = {
    "gsm8k": HubSet("openai/gsm8k", "train", "test", "question", "answer", "main"),
    "svamp": HubSet("ChilleD/SVAMP", "train", "test", "Body+Question", "Answer"),
    "math": HubSet("DigitalLearningGmbH/MATH-lighteval", "train", "test", "problem", "solution", "default"),
    "dapo-math-17k": HubSet("open-r1/DAPO-Math-17k-Processed", "train", None, "prompt", "solution", "en"),
    "still-3-rl-90k": HubSet(
        "RUC-AIBOX/STILL-3-RL-90K", "train", None, "prompt.0.content", "reward_model.ground_truth",
        around=r".*?\nUser:\s*(.*?)\s*\nAssistant:.*",  # a conversation is set up before, with instructions that are not ours
    ),
    "math500": HubSet("HuggingFaceH4/MATH-500", None, "test", "problem", "answer"),
    "aime24": HubSet("HuggingFaceH4/aime_2024", None, "train", "problem", "answer"),
    "aime25": HubSet("math-ai/aime25", None, "test", "problem", "answer"),
    "amc": HubSet("AI-MO/aimo-validation-amc", None, "train", "problem", "answer"),
    "amc23": HubSet("math-ai/amc23", None, "test", "question", "answer"),
    "minerva": HubSet("math-ai/minervamath", None, "test", "question", "answer"),
    "olympiadbench": HubSet("math-ai/olympiadbench", None, "test", "question", "final_answer"),
}  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """A question and its gold answer. `steps`: how many steps a full solution has, where that is known (the built-in stories)."""

    problem: str
    answer: str
    steps: int | None = None


def _at(row: dict, path: str):
    """What a row has in a column; the path prompt.0.content goes into lists and objects. None if there is no such place."""
    if path in row:
        return row[path]
    value = row
    for part in path.split("."):
        if isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, dict) and part in value:
            value = value[part]
        else:
            return None
    return value


def _has(row: dict, *paths: str) -> bool:
    return all(path in row or _at(row, path) is not None for path in paths)


def _cell_text(value, cell: str) -> str:
    """A cell of a table as text: 43.0 -> 43, ["1", "2"] -> 1, 2, and nothing for what is missing.

    Raises SettingError for what is neither text nor a number.
    """
    if value is None or value != value:  # NaN is how pandas writes a missing number
        return ""
    if isinstance(value, list) and not any(isinstance(x, (list, dict)) for x in value):  # several answers, as in OlympiadBench
        return ", ".join(_cell_text(x, cell) for x in value)
    if isinstance(value, (list, dict)):
        inside = f"{cell.split()[1]}.{'0.content' if isinstance(value, list) else next(iter(value), 'name')}"
        raise SettingError(f"{cell} is a {type(value).__name__}. Name the place inside it, as in {inside}.")
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or value in (float("inf"), float("-inf")):
        kind = value if isinstance(value, (bool, float)) else f"a {type(value).__name__}"
        raise SettingError(f"{cell} is {kind}. Write it as text or as a number.")
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
    if NO_TEXT.search(text):
        raise SettingError(f"{cell} has a character that is no text (NUL, or half a surrogate pair). Write it again as UTF-8.")
    return text


def _answer_text(text: str) -> str:
    """The answer in what was published as one: '#### 72' -> 72, a worked solution -> its box."""
    if "####" in text:
        text = text.rsplit("####", 1)[1]
    elif (boxed := last_boxed(text)) is not None:
        text = boxed
    return text.strip()


def _columns(row: dict, where: str, problem: str, answer: str) -> tuple[tuple[str, ...], str]:
    """Columns of the problem and of the answer: those that were named, for what is not named the usual ones. Raises SettingError."""
    parts = tuple(problem.split("+"))
    for questions, usual in COLUMNS:
        questions, usual = parts if problem else questions, answer or usual
        if _has(row, *questions, usual):
            return questions, usual
    found = str(list(row))[1:-1][:100]
    named = " and ".join(f"'{c}'" for c in (problem, answer) if c)
    if named:
        raise SettingError(f"The data {where} has the columns {found}, not {named}. Name others with --problem-column and --answer-column.")
    raise SettingError(f"The data {where} has the columns {found}. Say which to use with --problem-column and --answer-column.")


def _to_problems(rows: list[dict], where: str, problem: str = "", answer: str = "", around: str = "", strict: bool = True) -> list[Problem]:
    """Rows as they were published -> problems, each once.

    A row that cannot be used is an error that names it. Unless not `strict`: nobody can mend a published set, so such rows are left out and
    counted, as long as one is left. Raises SettingError.
    """
    if not rows:
        raise SettingError(f"The data {where} holds no problem. Name a file or a set with at least one row.")
    questions, answer_at = _columns(rows[0], where, problem, answer)
    problems: list[Problem] = []
    seen: dict[str, tuple[int, str]] = {}  # problem -> the first row that holds it, and its answer there
    first_fault, faults = None, 0
    for number, row in enumerate(rows, start=1):
        try:
            question, text = _read_row(row, number, where, questions, answer_at, around)
            first, known = seen.setdefault(question, (number, text))
            if known != text and not verify(rf"\boxed{{{text}}}", known):  # 1/2 and 0.5 are one answer
                raise SettingError(
                    f"Rows {first} and {number} of {where} give one problem two answers, {known[:30]!r} and {text[:30]!r}. "
                    "Keep the one that is right."
                )
        except SettingError as error:
            if strict:
                raise
            first_fault, faults = first_fault or error, faults + 1
            continue
        if first == number:
            problems.append(Problem(question, text))
    if not problems:
        raise first_fault
    if faults:
        say(f"{where}: {faults} of {len(rows)} rows cannot be used and are left out; the first: {str(first_fault).split('. ')[0]}")
    if repeated := len(rows) - faults - len(problems):
        say(f"{where}: {repeated} of {len(rows)} rows repeat a problem and its answer; each problem is used once")
    return problems


def _read_row(row: dict, number: int, where: str, questions: tuple[str, ...], answer_at: str, around: str) -> tuple[str, str]:
    """Problem and answer of a row. Raises SettingError with its number."""
    *parts, published = (_cell_text(_at(row, c), f"The {c} in row {number} of {where}") for c in (*questions, answer_at))
    question, text = " ".join(parts), _answer_text(published)
    if around and (match := re.fullmatch(around, question, re.DOTALL)):
        question = match[1]
    unboxed = (*questions, answer_at) == ("problem", "solution") and last_boxed(published) is None  # a proof, without an answer
    if not all(parts) or not question or not text or unboxed:
        raise SettingError(f"Row {number} of {where} lacks its {' or '.join((*questions, answer_at))}. Fill it in, or leave the row out.")
    if len(question) > MAX_PROBLEM_CHARS or len(text) > MAX_CHARS:
        raise SettingError(
            f"Row {number} of {where} has {len(question)} characters in the problem and {len(text)} in the answer. "
            f"Leave it out: {MAX_PROBLEM_CHARS} and {MAX_CHARS} are the most."
        )
    return question, text


def _one_of_each(pairs: list[tuple]) -> dict:
    """dict(pairs), but a key that stands twice is an error: Python would take the last one without a word."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return row


def _read_csv(reader: csv.DictReader) -> list[dict]:
    """Rows of a table. Raises csv.Error where DictReader would take a cell for what it is not, or drop one."""
    rows = []
    for row in reader:
        if any(row.get(None, ())):
            raise csv.Error("more cells than columns: a text with a comma needs quotes around it")
        rows.append(row)
    names = [name for name in reader.fieldnames or () if name]
    if len(set(names)) < len(names):
        raise csv.Error("two columns have one name")
    return rows


def _reason(error: Exception) -> str:
    return printable(" ".join(str(error).split())[:150])


def _read_parquet(file, path: Path) -> list[dict]:
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(file).read().to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise SettingError(f"The file {path} cannot be read as parquet ({_reason(error)}). Use JSON lines.") from None


def _read_file(path: Path) -> list[dict]:
    """Rows of a .jsonl, .json, .csv or .parquet file. Raises SettingError with the line at fault."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            with open(path, "rb") as file:
                return _read_parquet(file, path)
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    except OSError as error:
        raise SettingError(f"The file {path} cannot be read ({error.strerror}). Check the path and the permissions.") from None
    if "\0" in text:  # UTF-16 in most cases: every other byte of it is a NUL
        raise SettingError(f"The file {path} is not UTF-8 text. Save it as UTF-8.")
    if suffix == ".csv":
        # not splitlines(): it also splits at U+2028. strict: a quote that is never closed would swallow the rest of the file
        reader = csv.DictReader(io.StringIO(text.lstrip(), newline=""), strict=True)
        try:
            return _read_csv(reader)
        except csv.Error as error:
            number = reader.reader.line_num + text.count("\n", 0, len(text) - len(text.lstrip()))
            raise SettingError(
                f"The file {path}, line {number} is not valid CSV ({error}). Write it again, or use JSON lines."
            ) from None
    remedy = "Write a list of objects with problem and answer" if suffix == ".json" else "Write one object with problem and answer per line"
    place = ""
    try:
        if suffix == ".json":
            rows = json.loads(text, object_pairs_hook=_one_of_each)
        else:
            rows = []
            for number, line in enumerate(text.split("\n"), start=1):  # not splitlines(): it also splits at U+2028 inside a string
                place = f", line {number}"
                if line.strip():
                    rows.append(json.loads(line, object_pairs_hook=_one_of_each))
    except (ValueError, RecursionError) as error:  # ValueError: also a number of more than 4300 digits
        raise SettingError(f"The file {path}{place} is not valid JSON ({_reason(error)}). {remedy}.") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SettingError(f"The file {path} holds something other than objects. {remedy}.")
    return rows


def _read_hub(known: HubSet, name: str, split: str) -> list[dict]:
    """Rows of a Hub data set through `datasets`. split: "train" or "test"."""
    import datasets
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # without a network: no page of retries before our one sentence
    chosen = known.train if split == "train" else known.test
    if chosen is None and split == "train":
        raise SettingError(f"{name} is an evaluation set and is not trained on. Choose other --data, and name this one with --eval-data.")
    if chosen is None:
        raise SettingError(f"{name} is a training set without held-out problems. Choose another set, such as math500 or gsm8k.")
    try:
        return datasets.load_dataset(known.hub_id, known.configuration, split=chosen).to_list()
    except Exception as error:  # the Hub client raises many kinds: no network, no such set, no such split, gated
        raise SettingError(
            f"The data set {known.hub_id!r} ({chosen} split) cannot be loaded ({_reason(error)}). Check the name and the network, or name "
            "a file."
        ) from None


def load_problems(
    data: str, split: str = "train", limit: int = 0, seed: int = 0, level: int = 1, problem_column: str = "", answer_column: str = "",
    where_they_are: bool = False,
) -> list[Problem]:  # fmt: skip
    """Problems of a set: 'tiny', a short name of HUB, a file, or a Hub id. split: "train" or "test" (a file is the same for both).

    A problem that comes again with the same answer is used once. `limit` keeps the first so many (0: all; 8192 for the endless built-in
    ones). `seed` draws other built-in problems, `level` harder ones. The columns: see --problem-column and --answer-column;
    `where_they_are`: a set that lacks one of them is read by the usual names.
    Raises SettingError with cause and remedy for anything that cannot be read.
    """
    if data == "tiny":
        from rlvr.tiny.task import sample_stories

        return [Problem(s.problem, str(s.answer), len(s.ops)) for s in sample_stories(split, limit or 8192, seed, level)]
    is_file, known_suffix = os.path.isfile(data), Path(data).suffix.lower() in (".jsonl", ".json", ".csv", ".parquet")
    if os.path.exists(data) and not is_file:  # reading a pipe or a device might never end
        raise SettingError(f"{data} is a folder, a pipe or a device. Name a .jsonl, .json, .csv or .parquet file, or a Hub id.")
    if is_file and not known_suffix:
        raise SettingError(f"{data} is not a .jsonl, .json, .csv or .parquet file. Name such a file, or a Hub id.")
    if known_suffix and not is_file:
        raise SettingError(f"There is no file {data}. Check the path.")
    known = HUB.get(data) or HubSet(data, "train", "test", "", "")
    rows = _read_file(Path(data)) if is_file else _read_hub(known, data, split)
    if where_they_are and rows and not _has(rows[0], *problem_column.split("+") if problem_column else (), *filter(None, [answer_column])):
        problem_column = answer_column = ""
    columns = (problem_column or known.problem, answer_column or known.answer)
    problems = _to_problems(rows, data, *columns, known.around, strict=is_file)
    return problems[:limit] if limit else problems


def load_held_out(
    data: str, limit: int, seed: int = 0, level: int = 1, problem_column: str = "", answer_column: str = ""
) -> list[Problem]:
    """Problems to measure on. Columns that were named hold where they are there; other sets have the usual ones. Raises SettingError."""
    if data in HUB:  # its columns are known
        problem_column = answer_column = ""
    return load_problems(data, "test", limit, seed, level, problem_column, answer_column, where_they_are=True)


def has_test_split(data: str) -> bool:
    """Whether --data brings held-out problems of its own."""
    return data == "tiny" or (data in HUB and HUB[data].train is not None and HUB[data].test is not None)


def prompt_ids(tokenizer, problem: str, instruction: str, system: str = "", template: str = "auto") -> list[int]:
    """The prompt as token ids: problem, newline, instruction, in the model's chat template if it has one (exactly one BOS, if any).

    template: see --template. Raises SettingError if the template fails, or is asked for and not there.
    """
    if template not in ("auto", "chat", "plain"):
        parts = {"{problem}": problem, "{system}": system, "{instruction}": instruction}
        return tokenizer(re.sub("|".join(map(re.escape, parts)), lambda match: parts[match[0]], template)).input_ids
    content = f"{problem}\n{instruction}" if instruction else problem
    if template == "chat" and not tokenizer.chat_template:
        raise SettingError("--template chat asks for a chat template, but the model has none. Choose --template plain.")
    if tokenizer.chat_template and template != "plain":
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": content})
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template is a program, written by somebody else
            remedy = "Leave out --system, or choose --template plain" if system else "Choose --template plain, or repair chat_template"
            raise SettingError(f"The model's chat template fails ({_reason(error)}). {remedy}.") from None
        return tokenizer(text, add_special_tokens=False).input_ids  # the template has written the special tokens already
    return tokenizer((f"{system}\n\n" if system else "") + content + "\n").input_ids


def encode_prompts(
    tokenizer, problems: Iterable[Problem], instruction: str, max_prompt_tokens: int, system: str = "", template: str = "auto"
) -> tuple[list[Problem], list[list[int]], int]:
    """The problems whose prompt fits, their prompts, and how many were left out for length. Nothing is cut.

    Raises SettingError if none fits.
    """
    problems = list(problems)
    prompts = [prompt_ids(tokenizer, p.problem, instruction, system, template) for p in problems]
    if not any(prompts):
        raise SettingError("The model's tokenizer or chat template makes nothing of the problems. Repair its tokenizer files.")
    fits = [i for i, ids in enumerate(prompts) if 0 < len(ids) <= max_prompt_tokens]
    if not fits:
        raise SettingError(
            f"All {len(problems)} prompts are longer than {max_prompt_tokens} tokens (the shortest has {min(map(len, prompts))}). "
            "Raise --max-prompt-tokens."
        )
    return [problems[i] for i in fits], [prompts[i] for i in fits], len(problems) - len(fits)
