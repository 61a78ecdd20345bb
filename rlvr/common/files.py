"""Files that are written whole or not at all, and what a crash left behind."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk and would survive a power cut."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot, and need not
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside and rename into place: a reader, or a crash, never sees half a file. A link of either name is replaced, not followed."""
    beside, content = path.with_name(path.name + ".part"), content.encode() if isinstance(content, str) else content
    beside.unlink(missing_ok=True)
    try:
        with open(beside, "xb") as file:
            file.write(content)
        sync(beside)
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)  # it takes up room on what may be a full disk
        raise


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """The same for a folder: one beside, to be filled, is renamed into place afterwards. What stood there before stays until then."""
    beside, old = path.with_name(path.name + ".part"), path.with_name(path.name + ".old")
    remove_folder(beside)
    try:
        beside.mkdir(parents=True)
        yield beside
        for file in beside.iterdir():
            sync(file)
        sync(beside)
        if path.exists():  # no system can swap two folders at once: for a moment the old one has another name
            remove_folder(old)
            path.rename(old)
        beside.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        remove_folder(beside)
        raise
    sync(path.parent)
    remove_folder(old)


def remove_folder(path: Path) -> None:
    """A link to one goes itself; what it points to stays."""
    path.unlink() if path.is_symlink() else shutil.rmtree(path, ignore_errors=True)


def clear_leftovers(folder: Path, pattern: str) -> None:
    """Put right what a crash left half written or half deleted, among the files of `folder` that the pattern names."""
    for path in folder.glob(pattern + ".part"):
        path.unlink() if path.is_file() else remove_folder(path)
    for path in folder.glob(pattern + ".old"):
        if path.with_suffix("").exists():
            remove_folder(path)
        elif path.is_dir():  # replaced_folder had come half way
            path.rename(path.with_suffix(""))


class Appender:
    """A text file that only grows. What could not be written (the disk is full) waits, and is tried again with what comes next."""

    def __init__(self, path: Path):
        self.file = open(path, "ab", buffering=0)
        self.waiting = b""

    def write(self, text: str) -> None:
        """Raises OSError if some of it has to wait."""
        self.waiting += text.encode("utf-8")
        while self.waiting:  # a disk that is nearly full takes a part, and says so in the count
            self.waiting = self.waiting[self.file.write(self.waiting) :]

    def sync(self) -> None:
        """Write what waits, and return when all is safely on the disk. Raises OSError."""
        self.write("")
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()


def cut_back(path: Path, keep: Callable[[bytes], bool]) -> int:
    """Cut a text file after the last whole line for which `keep` says yes. Returns how many such lines there are."""
    size = kept_size = kept = 0
    with open(path, "r+b") as file:
        for line in file:
            size += len(line)
            if line.endswith(b"\n") and keep(line):
                kept_size, kept = size, kept + 1
        file.truncate(kept_size)
    return kept


def first_free(path: Path, taken: Callable[[Path], bool] = Path.exists) -> Path:
    """The path, or the first of path-2, path-3, ... that is not taken: nothing new overwrites what is there."""
    free, number = path, 2
    while taken(free):
        free, number = path.with_stem(f"{path.stem}-{number}"), number + 1
    return free
