"""Checkpoints: all that a run needs to go on as if it had never stopped, written so that a crash at any moment leaves a complete one.

    runs/pos-seed0/checkpoints/step-000020/    20 steps are done
        weights.safetensors       the trained weights, in float32
        optimizer.safetensors     AdamW's two moments of each
        batch.safetensors         only if the run was stopped between two updates of step 21 (the folder is then step-000020+1, after
                                  one update): the batch that is half used up
        state.json                all else: random generators, problems still to come, entropies, counters, and settings of the machine
        manifest.json             size and SHA-256 of the files above

A checkpoint is written under another name and renamed when all of it is on the disk, so one with its proper name is complete. If the disk
damages it later, the hashes tell, and the one before it is used. Nothing here is unpickled: the files are safetensors and JSON.
"""

import hashlib
import json
import re
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlvr.common.files import remove_folder, replaced_folder
from rlvr.common.text import say
from rlvr.config import as_sentence, refuse

NAME = re.compile(r"step-(\d+)(\+\d+)?")
Tensors = dict[str, dict[str, Tensor]]  # by file, and in it by name


def save(folder: Path, tensors: Tensors, state: dict, *, steps_done: int, updates: int | None, keep: int, keep_every: int = 0) -> Path:
    """Write a checkpoint into `folder`, then delete all but the newest `keep` and those of every `keep_every` steps (0: none).

    updates: how many were made of a step that is half done. Raises OSError (a full disk, for one); then nothing has changed: the
    checkpoints that were there are there.
    """
    path = folder / (f"step-{steps_done:06}" + (f"+{updates}" if updates is not None else ""))
    if path.exists():  # what bears the name is complete: the checkpoint that this run was resumed from
        return path
    with replaced_folder(path) as beside:
        for name, group in tensors.items():
            try:
                save_file({k: x.detach().contiguous() for k, x in group.items()}, beside / f"{name}.safetensors")
            except SafetensorError as error:  # also for a full disk
                raise OSError(str(error)) from None
        (beside / "state.json").write_text(json.dumps(state), encoding="utf-8")
        manifest = {file.name: {"size": file.stat().st_size, "sha256": _sha256(file)} for file in sorted(beside.iterdir())}
        (beside / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    for old in checkpoints(folder)[keep:]:
        if keep_every and "+" not in old.name and step_of(old) % keep_every == 0:
            continue
        remove_folder(old.rename(old.with_name(old.name + ".part")))  # so that what bears its proper name is complete
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder by their names, newest first. Half-written ones have other names and are not among them.

    Raises SettingError for a folder that cannot be read: it is not one without checkpoints, over which a run would begin again.
    """
    with as_sentence(f"{folder} cannot be read", "Make it readable, then resume.", OSError):
        found = [path for path in (folder.iterdir() if folder.is_dir() else ()) if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)], reverse=True)


def step_of(path: Path) -> int:
    """How many steps are done in a checkpoint, by its name."""
    return int(NAME.fullmatch(path.name)[1])


def load_newest(folder: Path) -> tuple[Path, Tensors, dict] | None:
    """The newest checkpoint that is whole: (its path, tensors by file, state); None if there is none at all.

    A damaged one is passed over, with a sentence that says so, and renamed to *.damaged. Raises SettingError if all are damaged.
    """
    damaged = []
    for path in checkpoints(folder):
        if reason := damage(path):
            say(f"checkpoint {path.name} is damaged ({reason}); trying the one before it")
            damaged.append(path)
            continue
        tensors, state = load(path)
        for bad in damaged:  # out of the way: it must not count as one of the newest
            remove_folder(bad.with_name(bad.name + ".damaged"))
            bad.rename(bad.with_name(bad.name + ".damaged"))
        return path, tensors, state
    remedy = f"Put them back from a copy, or start a new run (the log in {folder.parent} stays)."
    refuse(damaged, f"All checkpoints in {folder} are damaged. {remedy}")


def load(path: Path) -> tuple[Tensors, dict]:
    """(tensors by file, state) of a checkpoint that is whole. Raises SettingError."""
    remedy = "Check the disk and the permissions."
    with as_sentence(f"The checkpoint {path} cannot be read", remedy, OSError, ValueError, RecursionError, SafetensorError):
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        return {file.stem: load_file(file) for file in path.glob("*.safetensors") if file.is_file()}, state


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None: every file of the manifest must have its size and its hash."""
    try:
        if (path / "manifest.json").exists() and not (path / "manifest.json").is_file():
            return "manifest.json is no file"
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        if not {"weights.safetensors", "optimizer.safetensors", "state.json"} <= manifest.keys():
            return "manifest.json names too few files"
        for name, facts in manifest.items():
            file = path / name
            size = file.stat().st_size
            if file.parent != path or not file.is_file():  # a pipe or a device would never end
                return f"{name} is no file of it"
            if size != facts["size"]:
                return f"{name} has {size} bytes, not {facts['size']}"
            if _sha256(file) != facts["sha256"]:
                return f"{name} has other content than was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return "manifest.json or a file it names cannot be read"
    return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def fingerprint(*parts) -> str:
    """A hash of anything JSON can hold: tells whether the problems are still those that the run began with."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
