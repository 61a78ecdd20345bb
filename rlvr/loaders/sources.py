"""Where problems come from: a .jsonl, .json, .csv, .tsv or .parquet file, or a data set of the Hugging Face Hub -> rows.

Every mistake in a file is named, with its line where it has one.
"""

import bz2
import csv
import glob
import gzip
import io
import json
import lzma
import os
import zlib
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from rlvr.common.text import one_line
from rlvr.config import SettingError, as_sentence, refuse


TABLES = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet")
A_TABLE = "a .jsonl, .json, .csv or .parquet file (or .ndjson, .tsv, .jsonl.gz)"
PACKED = {b"\x1f\x8b": gzip, b"BZh": bz2, b"\xfd7zXZ": lzma}  # by the first bytes of a file
MOST_BYTES = 4 * 2**30  # of a text; a packed one may be a thousand times as long as its file


class HubSet(NamedTuple):
    """A published set: its address, its splits to train and to evaluate on (None: it has none), and its columns (empty: the usual names)."""

    hub_id: str
    train: str | None = "train"
    test: str | None = "test"
    problem: str = ""
    answer: str = ""
    configuration: str | None = None


HUB = {
    "gsm8k": HubSet("openai/gsm8k", "train", "test", "question", "answer", "main"),
    "svamp": HubSet("ChilleD/SVAMP", "train", "test", "Body+Question", "Answer"),
    "math": HubSet("DigitalLearningGmbH/MATH-lighteval", "train", "test", "problem", "solution", "default"),
    "dapo-math-17k": HubSet("open-r1/DAPO-Math-17k-Processed", "train", None, "prompt", "solution", "en"),
    "still-3-rl-90k": HubSet("RUC-AIBOX/STILL-3-RL-90K", "train", None, "prompt", "reward_model.ground_truth"),
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
    refuse(chosen is None and split == "train",
           f"{name} is an evaluation set and is not trained on. Choose other --data, and name this one with --eval-data.")  # fmt: skip
    refuse(chosen is None, f"{name} is a training set without held-out problems. Choose another set, such as math500 or gsm8k.")
    remedy = "Check the name and the network, or name a file."
    # The Hub client raises many kinds: no network, no such set, no such split, gated.
    with as_sentence(f"The data set {known.hub_id!r} ({chosen} split) cannot be loaded", remedy):
        return datasets.load_dataset(known.hub_id, known.configuration, split=chosen).to_list()


def is_table(data: str) -> bool:
    """Whether a name is that of a file with rows; if not, it may be a Hub id. Raises SettingError for any other path."""
    paths = _paths(data)
    for path in paths:
        is_file = os.path.isfile(path)
        if os.path.exists(path) and not is_file:  # reading a pipe or a device might never end
            raise SettingError(f"{path} is a folder, a pipe or a device. Name {A_TABLE}, several by a pattern (x/*.parquet), or a Hub id.")
        refuse(is_file and not _kind(path), f"{path} is not {A_TABLE}. Name such a file, or a Hub id.")
    refuse(not paths or _kind(data) and not os.path.isfile(paths[0]), f"There is no file {data}. Check the path.")
    return os.path.isfile(paths[0])


def read_tables(data: str) -> list[dict]:
    """Rows of a file, or of all files that a pattern such as train-*.parquet means, as {column: cell}. Raises SettingError."""
    return [row for path in _paths(data) for row in _read_table(Path(path))]


def _paths(data: str) -> list[str]:
    """The files that a name means: that of this name, or those of a pattern."""
    return sorted(glob.glob(data)) if glob.has_magic(data) and not os.path.lexists(data) else [data]


def _kind(name: str) -> str:
    """The kind of a table by its name: .jsonl for problems.JSONL.gz. Empty for what cannot be read."""
    path = Path(name.lower())
    kind = Path(path.stem).suffix if path.suffix in (".gz", ".bz2", ".xz") else path.suffix
    return kind if kind in TABLES else ""


def _read_table(path: Path) -> list[dict]:
    """Rows of one file. Raises SettingError with the line at fault."""
    kind, text = _kind(path.name), "\0"
    kinds = OSError, EOFError, zlib.error, lzma.LZMAError  # all but a plain OSError: it was packed, and is damaged
    with as_sentence(f"The file {path} cannot be read", "Check the path and the permissions, or unpack it by hand.", *kinds):
        if kind == ".parquet":
            return _parquet_rows(path)
        with suppress(UnicodeDecodeError):
            text = io.TextIOWrapper(io.BytesIO(_unpacked(path)), encoding="utf-8-sig").read()
    refuse("\0" in text, f"The file {path} is not UTF-8 text. Save it as UTF-8.")  # usually UTF-16: every other byte of it is a NUL
    return _csv_rows(text, path) if kind in (".csv", ".tsv") else _json_rows(text, path)


def _unpacked(path: Path) -> bytes:
    """What a file holds, unpacked if it is packed."""
    with open(path, "rb") as file:
        start = file.read(5)
    opened = next((module.open for magic, module in PACKED.items() if start.startswith(magic)), open)
    with opened(path, "rb") as file:
        content = file.read(MOST_BYTES + 1)
    too_long = len(content) > MOST_BYTES
    refuse(too_long, f"The file {path} holds more than {MOST_BYTES >> 30} GiB of text. Split it, or write it as parquet.")
    return content


def _parquet_rows(path: Path) -> list[dict]:
    import pyarrow.parquet

    kinds = OSError, ValueError, pyarrow.ArrowException
    with open(path, "rb") as file, as_sentence(f"The file {path} cannot be read as parquet", "Use JSON lines.", *kinds):
        return pyarrow.parquet.ParquetFile(file).read().to_pylist()


def _csv_rows(text: str, path: Path) -> list[dict]:
    """Between its cells are commas, tabs or semicolons, as in the first line. Refuses what csv.DictReader would misread without a word:
    surplus cells, two columns of one name, a quote that is never closed."""
    body = text.lstrip()
    delimiter = next((c for c in ("\t,;" if _kind(path.name) == ".tsv" else ",;\t") if c in body.split("\n")[0]), ",")
    reader = csv.DictReader(io.StringIO(body, newline=""), delimiter=delimiter, strict=True)  # not body.splitlines(), which also splits at U+2028
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


def _json_rows(text: str, path: Path) -> list[dict]:
    """Rows of one list of objects, or of one object per line; which of them does not depend on the name."""
    is_list = text.lstrip().startswith("[")
    remedy = "Write a list of objects with problem and answer" if is_list else "Write one object with problem and answer per line"
    lines = [text] if is_list else text.split("\n")  # not splitlines(), which also splits at U+2028 inside a string
    rows, number = [], 0
    try:
        for number, line in enumerate(lines, start=1):
            if line.strip() or is_list:
                rows.append(json.loads(line, object_pairs_hook=_object))
    except (ValueError, RecursionError) as error:  # ValueError: also a number of more than 4300 digits
        place = "" if is_list and _kind(path.name) == ".json" else f", line {number}"
        raise SettingError(f"The file {path}{place} is not valid JSON ({one_line(error)}). {remedy}.") from None
    rows = rows[0] if is_list else rows
    if len(rows) == 1 and isinstance(rows[0], dict) and len(rows[0]) == 1 and isinstance(inside := [*rows[0].values()][0], list):
        rows = inside  # {"data": [...]}
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SettingError(f"The file {path} holds something other than objects. {remedy}.")
    return rows


def _object(pairs: list[tuple]) -> dict:
    """dict(pairs). A key that appears twice is an error: Python would keep the last one without a word."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key appears twice in one object")
    return row
