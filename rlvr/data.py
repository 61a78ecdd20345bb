"""Problems: the built-in stories, published sets in their own columns, your file, or a Hub id; and how a problem becomes a prompt."""

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rlvr.config import SettingError
from rlvr.reward import last_boxed

# Short names: Hub id, configuration, split to train on (None: an evaluation set, never trained on), split to evaluate on.
HUB = {
    "gsm8k": ("openai/gsm8k", "main", "train", "test"),
    "math500": ("HuggingFaceH4/MATH-500", None, None, "test"),
    "aime24": ("HuggingFaceH4/aime_2024", None, None, "train"),
    "aime25": ("math-ai/aime25", None, None, "test"),
    "amc23": ("math-ai/amc23", None, None, "test"),
}
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
class Problem:
    """A question and its gold answer. `steps`: how many steps a full solution has, where that is known (the built-in stories)."""

    problem: str
    answer: str
    steps: int | None = None


def _answer_text(value) -> str:
    """A gold answer as published -> plain text: '#### 72' -> 72, a worked solution -> its box, 43.0 -> 43."""
    if value is None or value != value:  # NaN is how pandas writes a missing number
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    if "####" in text:
        text = text.rsplit("####", 1)[1].strip()
    elif (boxed := last_boxed(text)) is not None:
        text = boxed
    return text.strip()


def _to_problems(rows: list[dict], where: str) -> list[Problem]:
    if not rows:
        raise SettingError(f"The data {where} holds no problem. Name a file or a set with at least one row.")
    for questions, answer in COLUMNS:
        if all(c in rows[0] for c in (*questions, answer)):
            break
    else:
        raise SettingError(f"The data {where} has the columns {', '.join(map(str, rows[0]))}. Name the columns 'problem' and 'answer'.")
    problems = []
    for number, row in enumerate(rows, start=1):
        question = [str(row[c]).strip() if row.get(c) is not None else "" for c in questions]
        text = _answer_text(row.get(answer))
        if answer == "solution" and last_boxed(str(row.get(answer))) is None:
            text = ""
        if not all(question) or not text:
            raise SettingError(f"Row {number} of {where} lacks its {' or '.join((*questions, answer))}. Fill it in, or leave the row out.")
        problems.append(Problem(" ".join(question), text))
    return problems


def _read_file(path: Path) -> list[dict]:
    """Rows of a .jsonl, .json, .csv or .parquet file. Raises SettingError with the line at fault."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        try:
            return pyarrow.parquet.read_table(path).to_pylist()
        except (OSError, ValueError) as error:
            raise SettingError(f"The file {path} cannot be read as parquet ({error}). Write it again, or use JSON lines.") from None
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise SettingError(f"The file {path} is not UTF-8 text. Save it as UTF-8.") from None
    except OSError as error:
        raise SettingError(f"The file {path} cannot be read ({error.strerror}). Check the path and the permissions.") from None
    if path.suffix == ".csv":
        try:
            return list(csv.DictReader(io.StringIO(text, newline="")))  # not splitlines(): it also splits at U+2028
        except csv.Error as error:
            raise SettingError(f"The file {path} is not valid CSV ({error}). Write it again, or use JSON lines.") from None
    try:
        if path.suffix == ".json":
            rows = json.loads(text)
        else:
            rows, number = [], 0
            for number, line in enumerate(text.split("\n"), start=1):  # not splitlines(): it also splits at U+2028 inside a string
                if line.strip():
                    rows.append(json.loads(line))
    except (ValueError, RecursionError) as error:  # ValueError: also a number of more than 4300 digits
        place = "" if path.suffix == ".json" else f", line {number}"
        raise SettingError(
            f"The file {path}{place} is not valid JSON ({error}). Write one object with problem and answer per line."
        ) from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SettingError(f"The file {path} holds something other than objects. Write one object with problem and answer per line.")
    return rows


def _read_hub(name: str, split: str) -> list[dict]:
    """Rows of a Hub data set through `datasets`. split: "train" or "test"."""
    import datasets

    hub_id, configuration, train, test = HUB.get(name, (name, None, "train", "test"))
    chosen = train if split == "train" else test
    if chosen is None:
        raise SettingError(f"{name} is an evaluation set and is not trained on. Choose other --data, and name this one with --eval-data.")
    try:
        return datasets.load_dataset(hub_id, configuration, split=chosen).to_list()
    except Exception as error:  # the Hub client raises many kinds: no network, no such set, no such split, gated
        reason = " ".join(str(error).split())[:200]
        raise SettingError(
            f"The data set {hub_id!r} ({chosen} split) cannot be loaded ({reason}). Check the name and the network, or name a file."
        ) from None


def load_problems(data: str, split: str = "train", limit: int = 0, seed: int = 0) -> list[Problem]:
    """Problems of a set: 'tiny', a short name of HUB, a file, or a Hub id. split: "train" or "test" (a file is the same for both).

    `limit` keeps the first so many (0: all; 8192 for the endless built-in ones). `seed` draws other built-in problems.
    Raises SettingError with cause and remedy for anything that cannot be read.
    """
    if data == "tiny":
        from rlvr.tiny.task import sample_stories

        return [Problem(s.problem, str(s.answer), len(s.ops)) for s in sample_stories(split, limit or 8192, seed)]
    path = Path(data)
    known_suffix = path.suffix in (".jsonl", ".json", ".csv", ".parquet")
    if path.is_dir() or (path.exists() and not known_suffix):
        raise SettingError(f"{data} is not a .jsonl, .json, .csv or .parquet file. Name such a file, or a Hub id.")
    if known_suffix and not path.exists():
        raise SettingError(f"There is no file {data}. Check the path.")
    problems = _to_problems(_read_file(path) if known_suffix else _read_hub(data, split), data)
    return problems[:limit] if limit else problems


def has_test_split(data: str) -> bool:
    """Whether --data brings held-out problems of its own."""
    return data == "tiny" or (data in HUB and HUB[data][2] is not None)


def prompt_ids(tokenizer, problem: str, instruction: str) -> list[int]:
    """The prompt as token ids: problem, newline, instruction, in the model's chat template if it has one (exactly one BOS, if any)."""
    content = f"{problem}\n{instruction}" if instruction else problem
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
        return tokenizer(text, add_special_tokens=False).input_ids  # the template has written the special tokens already
    return tokenizer(content + "\n").input_ids


def encode_prompts(
    tokenizer, problems: Iterable[Problem], instruction: str, max_prompt_tokens: int
) -> tuple[list[Problem], list[list[int]], int]:
    """The problems whose prompt fits, their prompts, and how many were left out for length. Nothing is cut.

    Raises SettingError if none fits.
    """
    problems = list(problems)
    prompts = [prompt_ids(tokenizer, p.problem, instruction) for p in problems]
    fits = [i for i, ids in enumerate(prompts) if 0 < len(ids) <= max_prompt_tokens]
    if not fits:
        raise SettingError(
            f"All {len(problems)} prompts are longer than {max_prompt_tokens} tokens (the shortest has {min(map(len, prompts))}). "
            "Raise --max-prompt-tokens."
        )
    return [problems[i] for i in fits], [prompts[i] for i in fits], len(problems) - len(fits)
