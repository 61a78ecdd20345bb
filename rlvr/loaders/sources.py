"""Where problems come from: a .jsonl, .json, .csv or .parquet file, or a data set of the Hugging Face Hub -> rows.

Every mistake in a file is named, with its line where it has one.
"""

import csv
import io
import json
import os
from pathlib import Path
from typing import NamedTuple

from rlvr.common.text import one_line
from rlvr.config import SettingError


class HubSet(NamedTuple):
    """A published set: its address, its splits to train and to evaluate on (None: it has none), and its columns (empty: the usual names).

    `around`: a pattern whose first group is the problem, for a column that holds more than the problem.
    """

    hub_id: str
    train: str | None = "train"
    test: str | None = "test"
    problem: str = ""
    answer: str = ""
    configuration: str | None = None
    around: str = ""


HUB = {
    "gsm8k": HubSet("openai/gsm8k", "train", "test", "question", "answer", "main"),
    "svamp": HubSet("ChilleD/SVAMP", "train", "test", "Body+Question", "Answer"),
    "math": HubSet("DigitalLearningGmbH/MATH-lighteval", "train", "test", "problem", "solution", "default"),
    "dapo-math-17k": HubSet("open-r1/DAPO-Math-17k-Processed", "train", None, "prompt", "solution", "en"),
    "still-3-rl-90k": HubSet(  # it puts the problem into a conversation with instructions of its own
        "RUC-AIBOX/STILL-3-RL-90K", "train", None, "prompt.0.content", "reward_model.ground_truth",
        around=r".*?\nUser:\s*(.*?)\s*\nAssistant:.*"),
    "math500": HubSet("HuggingFaceH4/MATH-500", None, "test", "problem", "answer"),
    "aime24": HubSet("HuggingFaceH4/aime_2024", None, "train", "problem", "answer"),
    "aime25": HubSet("math-ai/aime25", None, "test", "problem", "answer"),
    "amc": HubSet("AI-MO/aimo-validation-amc", None, "train", "problem", "answer"),
    "amc23": HubSet("math-ai/amc23", None, "test", "question", "answer"),
    "minerva": HubSet("math-ai/minervamath", None, "test", "question", "answer"),
    "olympiadbench": HubSet("math-ai/olympiadbench", None, "test", "question", "final_answer"),
}  # fmt: skip


def read_hub(known: HubSet, name: str, split: str) -> list[dict]:
    """Rows of a Hub data set, through `datasets`. split: "train" or "test". Raises SettingError."""
    import datasets
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # without a network: our one sentence, not a page of retries before it
    chosen = known.train if split == "train" else known.test
    if chosen is None and split == "train":
        raise SettingError(f"{name} is an evaluation set and is not trained on. Choose other --data, and name this one with --eval-data.")
    if chosen is None:
        raise SettingError(f"{name} is a training set without held-out problems. Choose another set, such as math500 or gsm8k.")
    try:
        return datasets.load_dataset(known.hub_id, known.configuration, split=chosen).to_list()
    except Exception as error:  # the Hub client raises many kinds: no network, no such set, no such split, gated
        cause = f"The data set {known.hub_id!r} ({chosen} split) cannot be loaded ({one_line(error)})"
        raise SettingError(f"{cause}. Check the name and the network, or name a file.") from None


def is_table(data: str) -> bool:
    """Whether a name is that of a file with rows; if not, it may be a Hub id. Raises SettingError for any other path."""
    is_file, known_suffix = os.path.isfile(data), Path(data).suffix.lower() in (".jsonl", ".json", ".csv", ".parquet")
    if os.path.exists(data) and not is_file:  # reading a pipe or a device might never end
        raise SettingError(f"{data} is a folder, a pipe or a device. Name a .jsonl, .json, .csv or .parquet file, or a Hub id.")
    if is_file and not known_suffix:
        raise SettingError(f"{data} is not a .jsonl, .json, .csv or .parquet file. Name such a file, or a Hub id.")
    if known_suffix and not is_file:
        raise SettingError(f"There is no file {data}. Check the path.")
    return is_file


def read_table(path: Path) -> list[dict]:
    """Rows of a file, as {column: cell}. Raises SettingError with the line at fault."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            return _parquet_rows(path)
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    except OSError as error:
        raise SettingError(f"The file {path} cannot be read ({error.strerror}). Check the path and the permissions.") from None
    if "\0" in text:  # usually UTF-16: every other byte of it is a NUL
        raise SettingError(f"The file {path} is not UTF-8 text. Save it as UTF-8.")
    return _csv_rows(text, path) if suffix == ".csv" else _json_rows(text, path, is_list=suffix == ".json")


def _parquet_rows(path: Path) -> list[dict]:
    import pyarrow.parquet

    with open(path, "rb") as file:
        try:
            return pyarrow.parquet.ParquetFile(file).read().to_pylist()
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise SettingError(f"The file {path} cannot be read as parquet ({one_line(error)}). Use JSON lines.") from None


def _csv_rows(text: str, path: Path) -> list[dict]:
    """Refuses what csv.DictReader would misread without a word: surplus cells, two columns of one name, a quote that is never closed."""
    body = text.lstrip()
    reader = csv.DictReader(io.StringIO(body, newline=""), strict=True)  # not body.splitlines(), which also splits at U+2028
    rows = []
    try:
        for row in reader:
            if any(row.get(None, ())):
                raise csv.Error("more cells than columns: a text with a comma needs quotes around it")
            rows.append(row)
        names = [name for name in reader.fieldnames or () if name]
        if len(set(names)) < len(names):
            raise csv.Error("two columns have one name")
    except csv.Error as error:
        number = reader.reader.line_num + text[: len(text) - len(body)].count("\n")
        raise SettingError(f"The file {path}, line {number} is not valid CSV ({error}). Write it again, or use JSON lines.") from None
    return rows


def _json_rows(text: str, path: Path, is_list: bool) -> list[dict]:
    """Rows of one list of objects, or of one object per line."""
    remedy = "Write a list of objects with problem and answer" if is_list else "Write one object with problem and answer per line"
    lines = [text] if is_list else text.split("\n")  # not splitlines(), which also splits at U+2028 inside a string
    rows, number = [], 0
    try:
        for number, line in enumerate(lines, start=1):
            if line.strip() or is_list:
                rows.append(json.loads(line, object_pairs_hook=_object))
    except (ValueError, RecursionError) as error:  # ValueError: also a number of more than 4300 digits
        place = "" if is_list else f", line {number}"
        raise SettingError(f"The file {path}{place} is not valid JSON ({one_line(error)}). {remedy}.") from None
    rows = rows[0] if is_list else rows
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SettingError(f"The file {path} holds something other than objects. {remedy}.")
    return rows


def _object(pairs: list[tuple]) -> dict:
    """dict(pairs). A key that appears twice is an error: Python would keep the last one without a word."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key appears twice in one object")
    return row
