"""The state of a trainer as tensors (by file of a checkpoint) and as JSON, and back.

Nothing is copied, and nothing is unpickled. The learning rate needs no scheduler: it is a function of the step number.
"""

import copy
import platform
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy
import torch
import transformers
from torch import Tensor

from rlvr.common.text import printable, say
from rlvr.engine.parallel import processes
from rlvr.rollout import Rollouts
from rlvr.run.checkpoint import Tensors, fingerprint
from rlvr.run.sound import check_step, check_trainer_state


def trainer_state(trainer, step) -> tuple[Tensors, dict]:
    """Everything that the rest of the run depends on -> (tensors by file name, JSON). The tensors are the trainer's own, not copies.

    step: the one in progress, if the run stopped between two of its updates; else None.
    """
    optimizer, budget, rows = trainer.optimizer, trainer.micro_batch_tokens, trainer.policy.complete.rows
    moments = {key: x for i, values in optimizer.adamw.state_dict()["state"].items() for key, x in _flat(values, str(i))}
    tensors = {"weights": dict(zip(_names(trainer), optimizer.weights.parameters, strict=True)), "optimizer": moments}
    state = counters(trainer) | {"skipped_in_a_row": optimizer.skipped_in_a_row, "random": random_states(), "unfinished": None}
    state |= {"micro_batch_tokens": [budget.wanted, budget.size], "sampling_rows": [trainer.config.sampling_rows, rows]}
    state |= {"made_with": _made_with(trainer), "reward": reward_name(trainer)}
    if step is not None:
        tensors["batch"], state["unfinished"] = _pack(step)
    return tensors, state


def restore_trainer(trainer, tensors: Tensors, state: dict, kind: type):
    """Put a Trainer that was made with the same settings into a saved state. Returns its step in progress (of type `kind`), or None.

    Use it inside `edits_as_sentence`: the state may come from somebody else. If it is impossible, nothing has changed.
    """
    optimizer = trainer.optimizer
    check_trainer_state(trainer, _names(trainer), tensors, state)
    step = _unpack(tensors["batch"], state["unfinished"], kind) if state["unfinished"] is not None else None
    if step is not None:
        check_step(trainer, step)
    with torch.no_grad():
        for name, weight in zip(_names(trainer), optimizer.weights.parameters, strict=True):
            weight.copy_(tensors["weights"][name])
    optimizer.weights.write_back()
    moments: dict[int, dict] = {}
    for key, value in tensors["optimizer"].items():
        i, *inside, name = key.split(".")
        place = moments.setdefault(int(i), {})
        for part in inside:
            place = place.setdefault(part, {})
        place[name] = int(value) if value.dtype == torch.int64 else value
    optimizer.adamw.load_state_dict({"state": moments, "param_groups": optimizer.adamw.state_dict()["param_groups"]})
    optimizer.skipped_in_a_row = state["skipped_in_a_row"]
    set_counters(trainer, state)
    # What was halved when memory ran out stays halved, unless the flag was changed since.
    if state["micro_batch_tokens"][0] == trainer.micro_batch_tokens.wanted:
        trainer.micro_batch_tokens.size = state["micro_batch_tokens"][1]
    if state["sampling_rows"][0] == trainer.config.sampling_rows:
        trainer.policy.complete.rows = state["sampling_rows"][1]
    restore_random_states(state["random"])
    now = _made_with(trainer)
    if changed := [f"{k} {v} (now {now[k]})" for k, v in state["made_with"].items() if now.get(k) != v]:
        made = printable(", ".join(changed))
        say(f"note: the checkpoint was made with {made}; the numbers from here on may differ in their last digits.")
    return step


COUNTERS = ("step_number", "queue", "entropies", "plateau")  # what a Trainer has under these names


def counters(trainer) -> dict:
    """What a trainer counts and draws from, as JSON."""
    plain = {name: copy.copy(getattr(trainer, name)) for name in COUNTERS}
    return plain | {"shuffle": trainer.shuffle.getstate(), "generator": _hex(trainer.generator.get_state())}


def set_counters(trainer, state: dict) -> None:
    for name in COUNTERS:
        setattr(trainer, name, state[name])
    version, numbers, gauss = state["shuffle"]
    trainer.shuffle.setstate((version, tuple(numbers), gauss))
    trainer.generator.set_state(_unhex(state["generator"]))


@contextmanager
def undone_if_it_fails(trainer):
    """Whatever goes wrong inside (a reward function that raises, say) leaves the trainer as it was after the step before."""
    state, others = counters(trainer), random_states()
    try:
        yield
    except BaseException:
        set_counters(trainer, state)
        restore_random_states(others)
        raise


def reward_name(trainer) -> str:
    """The reward function, as the log and the checkpoints name it."""
    reward = trainer.reward
    own = "verify_all" if reward is None else getattr(reward, "__qualname__", type(reward).__qualname__)
    return Path(trainer.config.reward).name or own


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
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return versions | {"device": f"{device.type} {kind}", "threads": str(torch.get_num_threads()),
                       "workers": str(processes())}  # fmt: skip


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
    values = vars(step) | {f"rollouts.{name}": value for name, value in vars(step.rollouts).items()}
    del values["rollouts"]
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in values.items() if name not in tensors}


def _unpack(tensors: dict[str, Tensor], rest: dict, kind: type):
    values = tensors | rest
    rollouts = Rollouts(**{k.removeprefix("rollouts."): v for k, v in values.items() if k.startswith("rollouts.")})
    return kind(rollouts=rollouts, **{k: v for k, v in values.items() if not k.startswith("rollouts.")})


def _hex(state: Tensor) -> str:
    return state.cpu().numpy().tobytes().hex()


def _unhex(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


def random_states() -> dict:
    """The global generators. This library draws from its own ones; a reward function or a model may draw from these."""
    name, keys, *rest = numpy.random.get_state()
    cuda = [_hex(x) for x in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else []
    return {"python": random.getstate(), "numpy": [name, keys.tolist(), *rest], "torch": _hex(torch.get_rng_state()), "cuda": cuda}


def restore_random_states(state: dict) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    numpy.random.set_state(state["numpy"])
    torch.set_rng_state(_unhex(state["torch"]))
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([_unhex(x) for x in state["cuda"]])
