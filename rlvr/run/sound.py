"""Is a checkpoint one that this run can have written? It may come from somebody else, and whoever edits it can make its hashes fit again.

Each check raises ValueError for what is impossible, and whatever a missing key or a text for a number leads to; `edits_as_sentence` makes
one sentence of all that.
"""

import csv
import math
import random
from collections.abc import Iterable
from pathlib import Path

import numpy
import torch

from rlvr.config import as_sentence
from rlvr.engine.memory import out_of_memory
from rlvr.run.figures import parse_metrics


def edits_as_sentence(path: Path):
    """Inside, a checkpoint is read and restored. Raises SettingError for whatever goes wrong because of what it holds."""
    kinds = LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, csv.Error
    remedy = "Copy the run folder again from where it was made, or start anew."
    return as_sentence(f"The checkpoint {path} was edited or is damaged: no run writes that", remedy, *kinds, unless=out_of_memory)


def check_sound(**impossible) -> None:
    """Raises ValueError with the first name whose value is true."""
    for name, wrong in impossible.items():
        if wrong:
            raise ValueError(f"its {name.replace('_', ' ')}")


def check_trainer_state(trainer, names: list[str], tensors: dict, state: dict) -> None:
    """Weights, moments, counters and generators of a trainer. names: of its trained weights."""
    weights, moments, parameters = tensors["weights"], tensors["optimizer"], trainer.optimizer.weights.parameters
    (wanted, size), (asked, fitting) = state["micro_batch_tokens"], state["sampling_rows"]
    step, plateau = state["step_number"], state["plateau"]
    check_sound(
        weights=weights.keys() != set(names) or any(not _fits(weights[n], p.shape) for n, p in zip(names, parameters)),
        moments=any(_impossible_moment(key, x, parameters) for key, x in moments.items()) or not _complete(trainer, moments),
        step_number=not _whole([step], 0),
        queue=not _whole(state["queue"], 0, len(trainer.problems)),
        entropies=len(state["entropies"]) != step or not all(isinstance(x, float) for x in state["entropies"]),
        plateau=plateau is not None and not _whole([plateau], 1, step + 1),
        skipped_updates=not _whole([state["skipped_in_a_row"]], 0),
        batch_sizes=not _whole([wanted, size, asked, *([] if fitting is None else [fitting])], 1),
        machine=not all(isinstance(text, str) for pair in state["made_with"].items() for text in pair),
    )
    check_generators(state)


def check_generators(state: dict) -> None:
    """Whether generators can be put into these states: tried on others, which nothing draws from."""
    for saved in (state["shuffle"], state["random"]["python"]):
        trial = random.Random()
        trial.setstate((saved[0], tuple(saved[1]), saved[2]))
        trial.gauss()
    numpy.random.RandomState().set_state(state["random"]["numpy"])
    check_sound(generator=not _whole([state["random"]["numpy"][2]], 0, 625))  # numpy would read beyond its numbers
    for saved in (state["generator"], state["random"]["torch"]):
        torch.Generator().set_state(torch.frombuffer(bytearray.fromhex(saved), dtype=torch.uint8))


def check_step(trainer, step) -> None:
    """A step in progress."""
    batch, vocabulary = step.rollouts, trainer.policy.model.get_input_embeddings().weight.shape[0]
    n, longest = batch.mask.shape
    of_rows = batch.lengths, batch.finished, batch.group, step.rewards
    of_tokens = batch.completion_ids, batch.old_logp, batch.entropy, step.shaped
    kinds = [torch.int64, torch.bool, torch.int64, torch.float32, torch.int64, torch.float32, torch.float32, torch.float32]
    check_sound(
        batch=[x.dtype for x in (*of_rows, *of_tokens)] != kinds or any(x.shape != (n,) for x in of_rows)
        or any(x.shape != (n, longest) for x in of_tokens) or not torch.equal(batch.mask, torch.arange(longest) < batch.lengths[:, None]),
        texts={len(batch.prompt_ids), len(batch.text), len(step.problem_ids)} != {n} or not all(isinstance(x, str) for x in batch.text),
        tokens=not all(_whole(ids, 0, vocabulary) and ids for ids in (*batch.prompt_ids, *batch.completion_ids.tolist())),
        problems=not _whole(step.problem_ids, 0, len(trainer.problems)),
        groups=not {g for groups in step.mini_batches for g in groups} <= set(batch.group.tolist()) or batch.lengths.min() < 1,
        updates=len(step.updates) > len(step.mini_batches) or not all(
            {"loss", "grad_norm", "skipped", "tokens"} <= update.keys() and all(isinstance(x, (int, float)) for x in update.values())
            for update in step.updates),
    )  # fmt: skip


def check_log(log: dict, watch: list, first: int, steps_done: int, metrics: Iterable[str]) -> None:
    """What a run has counted, logged and measured since its step `first`. metrics: the names that an evaluation must have."""
    measured, (seconds, seen) = [x for x in (log["first"], log["last"]) if x is not None], watch
    numbers = [x for result in measured for name in metrics for x in result["metrics"][name]]
    check_sound(
        counts=not _whole([log["steps"], *log["updates"].values(), *(result["problems"] for result in measured)], 0),
        evaluations=not _finite(numbers) or any(len(values) != 3 for result in measured for values in result["metrics"].values()),
        seconds=not _finite([log["seconds"], *seconds.values()]),
        watch=not _finite([seen["rounds"], seen["kills"], *([seen["drift"]] if seen["drift"] is not None else [])]),
        rows=[row["step"] for row in parse_metrics(log["rows"], first)][-1:] not in ([steps_done], [] if steps_done == first else [steps_done]),
    )


def _whole(numbers: Iterable, low: int, end: float = math.inf) -> bool:
    return all(type(x) is int and low <= x < end for x in numbers)


def _finite(numbers: Iterable) -> bool:
    return all(isinstance(x, (int, float)) and math.isfinite(x) for x in numbers)


def _fits(x: torch.Tensor, shape: torch.Size) -> bool:
    return x.dtype == torch.float32 and x.shape == shape and bool(x.isfinite().all())


def _impossible_moment(key: str, x: torch.Tensor, parameters: list) -> bool:
    """Of AdamW, in 32 or 8 bits: a number, or as many as the weight has; the second moment is a square."""
    i, name = key.split(".", 1)
    shape = {str(number): p.shape for number, p in enumerate(parameters)}[i]
    like_the_weight = name in ("exp_avg", "exp_avg_sq", "state1", "state2")
    wrong = like_the_weight and x.shape != shape or name == "step" and (x.numel() != 1 or x.item() < 1)
    return bool(wrong or name == "exp_avg_sq" and (x < 0).any() or x.is_floating_point() and not x.isfinite().all())


def _complete(trainer, moments: dict) -> bool:
    """Whether every weight that has a moment has all of them (those of AdamW in 8 bits are bitsandbytes' own)."""
    names = [{key.split(".", 1)[1] for key in moments if key.split(".")[0] == i} for i in {key.split(".")[0] for key in moments}]
    return trainer.config.optimizer != "adamw" or all(found == {"step", "exp_avg", "exp_avg_sq"} for found in names)
