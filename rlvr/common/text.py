"""Text for a terminal and for tables. What cannot be printed stops nothing."""

import csv
import io
import os
import shlex
import sys
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm
from tqdm.utils import ObjectWrapper


def unique_names(folders: list[Path]) -> list[str]:
    """Short names of folders: the last part of the path, or more of it where two are alike."""
    names = [folder.name for folder in folders]
    return [name if names.count(name) == 1 else f"{folder.parent.name}/{name}" for name, folder in zip(names, folders)]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Plain-text table: first column to the left, the others to the right."""
    cells = [list(header), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same for a document."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))


def interval(mean: float, low: float, high: float, form: str | Callable[[float], str] = "+.3f", unit: str = "") -> str:
    """A mean with its interval as text. `form` is a format, or a function that formats a number.

    >>> interval(0.1, -0.05, 0.25, "+.2f", " nats")
    '+0.10 nats [-0.05, +0.25]'
    """
    x, a, b = (form(v) if callable(form) else format(v, form) for v in (mean, low, high))
    return f"{x}{unit} [{a}, {b}]"


def csv_text(rows: Sequence[dict], columns: Sequence[str] = ()) -> str:
    """Rows as CSV with a header: the columns named, or all that any row has. What a row lacks stays empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns or list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def say(text: str) -> None:
    """Print above the progress bar. A terminal that is gone (a closed connection, a broken pipe) must not end a run."""
    try:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        tqdm.write(text.encode(encoding, errors="backslashreplace").decode(encoding))
        sys.stdout.flush()
    except (OSError, ValueError):  # ValueError: the stream is closed
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # what comes later, the progress bar's too, would fail again


def progress_bar(*args, **settings) -> tqdm:
    """A bar of tqdm, but none where neither a terminal nor a notebook shows it: it would fill a file with control characters."""
    return tqdm(*args, disable=False if "ipykernel" in sys.modules else None, **settings)


class Patient(ObjectWrapper):
    """A stream that swallows its own errors, and stays open. train.py puts it around stdout and stderr: the progress bar writes there too."""

    def write(self, text: str) -> int:
        try:
            return self._wrapped.write(text)
        except (OSError, ValueError):  # ValueError: the stream is closed
            return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._wrapped.flush()

    def close(self) -> None:
        """It stays open: others write to it too."""

    def __eq__(self, other) -> bool:
        """tqdm asks whether its stream is sys.stderr, to clear the bar before a message and to keep within the terminal's width."""
        return self._wrapped == getattr(other, "_wrapped", other)

    __hash__ = object.__hash__


def quoted(word: object) -> str:
    """As one word of a command line, to be copied from what a program says."""
    return shlex.quote(str(word))


def printable(text: str) -> str:
    r"""What a model wrote, made safe for a terminal: control characters (which could move the cursor, or worse) as \x1b."""
    return "".join(c if c in "\n\t" or unicodedata.category(c)[0] != "C" else repr(c)[1:-1] for c in text)


def one_line(error: object) -> str:
    """What an exception says, in one line of at most 150 characters, for the middle of a sentence."""
    try:
        return printable(" ".join(str(error).split())[:150]).rstrip(".")
    except Exception:  # its class is the user's own
        return "it cannot say what it is"
