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
import platform
import random
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlvr.config import SettingError
from rlvr.common.files import remove_folder, replace_folder
from rlvr.common.text import say
from rlvr.rollout import Rollouts

NAME = re.compile(r"step-(\d+)(?:\+(\d+))?")


# ---------------------------------------------------------------------------------------------------------------------------------------
# What is saved: the state of a Trainer as tensors (by file) and as JSON


def trainer_state(trainer) -> tuple[dict[str, dict[str, Tensor]], dict]:
    """Everything that the rest of the run depends on -> (tensors by file name, JSON). The tensors are the trainer's own, not copies.

    The learning rate needs no scheduler here: it is a function of the step number.
    """
    moments = trainer.optimizer.state_dict()["state"]
    tensors = {
        "weights": dict(zip(_names(trainer), trainer.weights.parameters, strict=True)),
        "optimizer": {key: x for i, values in moments.items() for key, x in _flat(values, str(i))},
    }
    version, numbers, gauss = trainer.shuffle.getstate()
    state = {
        "step_number": trainer.step_number,
        "queue": trainer.queue,
        "entropies": trainer.entropies,
        "plateau": trainer.plateau,
        "failed_updates_in_a_row": trainer.failed_updates_in_a_row,
        "micro_batch_tokens": trainer.micro_batch_tokens.state(),
        "sampling_rows": trainer.sampling_rows.state(),
        "shuffle": [version, list(numbers), gauss],
        "generator": _hex(trainer.generator.get_state()),
        "random": random_states(),
        "made_with": _made_with(trainer),
        "reward": trainer.reward_name,
        "unfinished": None,
    }
    if trainer.unfinished is not None:
        tensors["batch"], state["unfinished"] = _pack(trainer.unfinished)
        state["seconds"] = trainer.seconds
    return tensors, state


def restore_trainer(trainer, tensors: dict[str, dict[str, Tensor]], state: dict) -> None:
    """Put a Trainer that was made with the same settings into a saved state."""
    with torch.no_grad():
        for name, weight in zip(_names(trainer), trainer.weights.parameters, strict=True):
            weight.copy_(tensors["weights"][name])
    trainer.weights.write_back()
    moments: dict[int, dict] = {}
    for key, value in tensors["optimizer"].items():
        i, *inside, name = key.split(".")
        place = moments.setdefault(int(i), {})
        for part in inside:
            place = place.setdefault(part, {})
        place[name] = int(value) if value.dtype == torch.int64 else value
    trainer.optimizer.load_state_dict({"state": moments, "param_groups": trainer.optimizer.state_dict()["param_groups"]})
    for name in ("step_number", "queue", "entropies", "plateau", "failed_updates_in_a_row"):
        setattr(trainer, name, state[name])
    trainer.micro_batch_tokens.restore(state["micro_batch_tokens"])
    trainer.sampling_rows.restore(state["sampling_rows"])
    version, numbers, gauss = state["shuffle"]
    trainer.shuffle.setstate((version, tuple(numbers), gauss))
    trainer.generator.set_state(_unhex(state["generator"]))
    restore_random_states(state["random"])
    if state["unfinished"] is not None:
        trainer.unfinished = _unpack(tensors["batch"], state["unfinished"])
        trainer.seconds.update(state["seconds"])
    now = _made_with(trainer)
    if changed := [f"{k} {v} (now {now[k]})" for k, v in state["made_with"].items() if now.get(k) != v]:
        say(f"note: the checkpoint was made with {', '.join(changed)}; the numbers from here on may differ in their last digits.")


def _flat(values: dict, name: str) -> Iterator[tuple[str, Tensor]]:
    """An optimiser's numbers of one weight as tensors with paths for names. AdamW has tensors; in 8 bits, also a count and a dictionary."""
    for key, x in values.items():
        if isinstance(x, dict):
            yield from _flat(x, f"{name}.{key}")
        elif isinstance(x, int):
            yield f"{name}.{key}", torch.tensor(x)
        else:  # a table that all weights share must be there for each: safetensors takes no tensor twice
            yield f"{name}.{key}", x.clone() if key.startswith("qmap") else x


def _names(trainer) -> list[str]:
    return [name for name, p in trainer.policy.model.named_parameters() if p.requires_grad]


def _made_with(trainer) -> dict[str, str]:
    """What rounding depends on."""
    device = trainer.policy.model.device
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": f"{device.type} {kind}",
        "threads": str(torch.get_num_threads()),
    }


@lru_cache(maxsize=1)  # asked at every checkpoint
def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux
        return platform.processor() or platform.machine()


def model_fingerprint(model) -> str:
    """A hash of what a run begins with: names, shapes, precision and some numbers of each weight. A pass over all would take seconds."""
    some = {name: p.detach().flatten()[:: max(1, p.numel() // 7)].tolist() for name, p in model.named_parameters()}
    return fingerprint(some, [(str(p.dtype), list(p.shape)) for p in model.parameters()])


def _pack(step) -> tuple[dict[str, Tensor], dict]:
    """A step in progress -> its tensors, and the rest as JSON."""
    parts = {"": vars(step), "sampled.": vars(step.sampled)}
    tensors = {prefix + k: v for prefix, values in parts.items() for k, v in values.items() if isinstance(v, Tensor)}
    rest = {prefix + k: v for prefix, values in parts.items() for k, v in values.items() if prefix + k not in tensors and k != "sampled"}
    return tensors, rest


def _unpack(tensors: dict[str, Tensor], rest: dict):
    from rlvr.train import Step

    values = tensors | rest
    sampled = Rollouts(**{k.removeprefix("sampled."): v for k, v in values.items() if k.startswith("sampled.")})
    return Step(sampled=sampled, **{k: v for k, v in values.items() if not k.startswith("sampled.")})


def _hex(state: Tensor) -> str:
    return state.cpu().numpy().tobytes().hex()


def _unhex(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


def random_states() -> dict:
    """The global generators. This library draws from its own ones; a reward function or a model may draw from these."""
    version, numbers, gauss = random.getstate()
    name, keys, *rest = numpy.random.get_state()
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [name, keys.tolist(), *rest],
        "torch": _hex(torch.get_rng_state()),
        "cuda": [_hex(x) for x in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def restore_random_states(state: dict) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), *rest))
    torch.set_rng_state(_unhex(state["torch"]))
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([_unhex(x) for x in state["cuda"]])


# ---------------------------------------------------------------------------------------------------------------------------------------
# How it is written and read


def save(
    folder: Path, tensors: dict[str, dict[str, Tensor]], state: dict, *, steps_done: int, updates: int | None, keep: int,
    keep_every: int = 0,
) -> Path:  # fmt: skip
    """Write a checkpoint into `folder`, then delete all but the newest `keep` and those of every `keep_every` steps (0: none).

    updates: how many were made of a step that is half done. Raises OSError (a full disk, for one); then nothing has changed: the
    checkpoints that were there are there.
    """
    path = folder / (f"step-{steps_done:06}" + (f"+{updates}" if updates is not None else ""))
    if path.exists():  # what bears the name is complete: the checkpoint that this run was resumed from
        return path

    def write(beside: Path) -> None:
        for name, group in tensors.items():
            try:
                save_file({k: x.detach().contiguous() for k, x in group.items()}, beside / f"{name}.safetensors")
            except SafetensorError as error:  # also for a full disk
                raise OSError(str(error)) from None
        (beside / "state.json").write_text(json.dumps(state), encoding="utf-8")
        manifest = {file.name: {"size": file.stat().st_size, "sha256": _sha256(file)} for file in sorted(beside.iterdir())}
        (beside / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")

    replace_folder(path, write)
    for old in checkpoints(folder)[keep:]:
        if keep_every and "+" not in old.name and step_of(old) % keep_every == 0:
            continue
        remove_folder(old.rename(old.with_name(old.name + ".part")))  # so that what bears its proper name is complete
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder by their names, newest first. Half-written ones have other names and are not among them."""
    found = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        if match := NAME.fullmatch(path.name):
            found[path] = (int(match[1]), -1 if match[2] is None else int(match[2]))
    return sorted(found, key=found.get, reverse=True)


def step_of(path: Path) -> int:
    """How many steps are done in a checkpoint, by its name."""
    return int(NAME.fullmatch(path.name)[1])


def load_newest(folder: Path) -> tuple[Path, dict[str, dict[str, Tensor]], dict] | None:
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
    if damaged:
        raise SettingError(
            f"All checkpoints in {folder} are damaged. Put them back from a copy, or start a new run (the log in {folder.parent} stays)."
        )
    return None


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict]:
    """(tensors by file, state) of a checkpoint that is whole. Raises SettingError."""
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        return {file.stem: load_file(file) for file in path.glob("*.safetensors")}, state
    except (OSError, ValueError, SafetensorError) as error:
        raise SettingError(f"The checkpoint {path} cannot be read ({error}). Check the disk and the permissions.") from None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None: every file of the manifest must have its size and its hash."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        if not {"weights.safetensors", "optimizer.safetensors", "state.json"} <= manifest.keys():
            return "manifest.json names too few files"
        for name, facts in manifest.items():
            file = path / name
            size = file.stat().st_size
            if size != facts["size"]:
                return f"{name} has {size} bytes, not {facts['size']}"
            if _sha256(file) != facts["sha256"]:
                return f"{name} has other content than was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
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
