"""The run folder: which one a run gets, and whether it is free."""

from pathlib import Path

from rlvr.common.files import first_free
from rlvr.config import SettingError, TrainConfig

LOCK = ".lock"  # the file in a run folder that its process holds


def run_folder(c: TrainConfig) -> Path:
    """The folder of this run. A name the user chose must be free; without one, the first free of method-seed, method-seed-2, ..."""
    out = Path(c.out)
    if any(path.is_file() for path in (out, *out.parents)):
        raise SettingError(f"--out {out} is a file or lies in one. Choose a folder.")

    if c.name:
        if in_use(out / c.name):
            folder = out / c.name
            raise SettingError(f"The run folder {folder} is not empty. Choose another --name, or go on with it: --resume {folder}")
        return out / c.name
    return first_free(out / f"{c.method}-seed{c.seed}", in_use)


def in_use(path: Path) -> bool:
    """Whether a path is anything but free, an empty folder, or one whose run was killed before it wrote its settings."""
    return path.exists() and not (path.is_dir() and all(p.name == LOCK or p.suffix == ".part" for p in path.iterdir()))
