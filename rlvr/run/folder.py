"""The run folder: which one a run gets, and whether it is free."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rlvr.common.files import first_free
from rlvr.common.text import quoted
from rlvr.config import SettingError, TrainConfig, refuse

LOCK = ".lock"  # the file in a run folder that its process holds


def run_folder(c: TrainConfig) -> Path:
    """The folder of this run. A name the user chose must be free; without one, the first free of method-seed, method-seed-2, ..."""
    out = Path(c.out)
    refuse(any(path.is_file() for path in (out, *out.parents)), f"--out {out} is a file or is inside one. Choose a folder.")
    if not c.name:
        return first_free(out / f"{c.method}-seed{c.seed}", in_use)
    folder = out / c.name
    refuse(in_use(folder), f"The run folder {folder} is not empty. Choose another --name, or go on with it: --resume {quoted(folder)}")
    return folder


def in_use(path: Path) -> bool:
    """Whether a path is anything but free, an empty folder, or one whose run was killed before it wrote its settings."""
    return os.path.lexists(path) and not (path.is_dir() and all(p.name == LOCK or p.suffix == ".part" for p in path.iterdir()))


def refuse_links(*paths: Path) -> None:
    """A folder may come from somebody else, and what is written into it must not go elsewhere. Raises SettingError.

    A file with a second name is a link too (a hard one).
    """
    for path in filter(os.path.lexists, paths):
        own = not path.is_symlink() and (path.is_dir() or path.is_file() and path.stat().st_nlink == 1)
        refuse(not own, f"{path} is a link, a pipe or a device: what is written would go elsewhere. Put a copy there, or delete it.")


@contextmanager
def claimed_run_folder(config: TrainConfig) -> Iterator[Path]:
    """The folder of this run, locked against any other process until this one ends, however it ends. Raises SettingError."""
    while True:
        folder = Path(config.resume) if config.resume else run_folder(config)
        refuse_links(*folder.glob("*"), *folder.glob("checkpoints/*"))  # before the lock is taken: that is a file too
        lock = FileLock(folder / LOCK)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            if config.resume or config.name:
                remedy = "Wait until it has ended." if config.resume else "Wait until it has ended, or choose another --name."
                raise SettingError(f"Another process is writing the run folder {folder}. {remedy}") from None
            time.sleep(0.05)  # it took the name in this very moment: look for the next one
            continue
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
            remedy = "Check its permissions." if config.resume else "Choose another --out."
            raise SettingError(f"The run folder {str(folder)!r} cannot be written ({error}). {remedy}") from None
        try:
            if config.resume or not in_use(folder):
                yield folder
                return
        finally:
            lock.release()
