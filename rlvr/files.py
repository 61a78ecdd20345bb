"""Small helpers for what a run prints and writes."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Write beside and rename into place: a reader, or a crash, never sees half a file."""
    beside = path.with_name(path.name + ".part")
    with open(beside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def first_free(path: Path, taken: Callable[[Path], bool] = Path.exists) -> Path:
    """The path, or the first of path-2, path-3, ... that is not taken: nothing new overwrites what is there."""
    free, number = path, 2
    while taken(free):
        free, number = path.with_stem(f"{path.stem}-{number}"), number + 1
    return free


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Plain-text table: first column to the left, the others to the right."""
    cells = [list(header), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])
