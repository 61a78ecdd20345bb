"""How much memory a run needs, worked out before a model is loaded, from its config.json alone.

What is kept all the time: weights; with bfloat16 a float32 master of each trained weight; AdamW's two moments. On top comes whichever is
larger: sampling (keys and values of the completions side by side, their logits, the prompts' pass) or an update (gradients, activations of
a micro-batch, a chunk of logits). Lengths are taken at their limits, so a run whose answers are shorter needs less.

As a program it says what a step costs on many GPUs (cluster.py):  python -m rlvr.engine.estimate --gpus 8 --model-size 7b
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

if not __package__:  # run by its path, which works from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rlvr.config import TrainConfig, flag
from rlvr.engine.scorer import LOGITS_AT_ONCE

GIB = 2**30


@dataclass
class Estimate:
    """Bytes, by what they are for."""

    parameters: int
    trained: int
    weights: float  # and what else is loaded: the reference model of a KL penalty, the libraries themselves
    optimizer: float  # masters and moments
    sampling: float
    gradients: float
    update: float  # activations and logits of a micro-batch

    @property
    def total(self) -> float:
        return self.weights + self.optimizer + max(self.sampling, self.gradients + self.update)

    def __str__(self) -> str:
        parts = ("weights", "optimizer", "gradients", "update", "sampling")
        shown = ", ".join(f"{'optimiser' if name == 'optimizer' else name} {getattr(self, name) / GIB:.1f}" for name in parts)
        return f"{self.total / GIB:.1f} GiB ({shown})"


def estimate(c: TrainConfig, model_config, device: str = "cuda", dtype: str = "bfloat16") -> Estimate:
    """What a run with these settings will need at its peak. model_config: a transformers configuration; no weight is made.

    device: cuda, mps or cpu; dtype: what --dtype comes to there.
    """
    from transformers.pytorch_utils import Conv1D

    model = shapes(model_config)
    parameters = sum(p.numel() for p in model.parameters())
    head = model.get_output_embeddings()
    trained = parameters
    if c.lora_rank:
        linear = [m.weight.shape for m in model.modules() if isinstance(m, (torch.nn.Linear, Conv1D)) and m is not head]
        trained = sum(c.lora_rank * (shape[0] + shape[1]) for shape in linear)
    size = 2 if dtype == "bfloat16" else 4  # bytes of a number in the forward pass
    config = model.config.get_text_config()
    layers, hidden, vocabulary = config.num_hidden_layers, config.hidden_size, head.weight.shape[0]
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    query, key = heads * head_dim, (getattr(config, "num_key_value_heads", None) or heads) * head_dim

    base = (0.6 if device == "cuda" else 0.8) * GIB  # CUDA's own memory, or Python with its libraries and what it writes
    weights = size * (parameters + (trained if c.lora_rank else 0)) + base
    if c.kl_coef and not c.lora_rank:
        weights += size * parameters
    optimizer = trained * ((2.1 if c.optimizer == "adamw8bit" else 8) + (4 if size == 2 else 0))
    gradients = trained * (4 + (2 if size == 2 else 0))

    # Sampling: at most --sampling-rows completions at once; each prompt once for its completions, but for the plain engine.
    rows = min(c.sampling_rows, c.prompts_per_step * c.completions_per_prompt)
    prompts = rows if c.engine == "plain" else max(1, rows // c.completions_per_prompt)
    cache = 2 * key * layers * size * (rows * c.max_new_tokens + prompts * c.max_prompt_tokens)
    prefill = prompts * c.max_prompt_tokens * size * (3 * inner + 4 * hidden)
    logits = rows * vocabulary * (size + 3 * 4)
    sampling = cache + max(prefill, logits)

    # An update: what the backward pass needs of each layer, or, with checkpointing, its input and all of one layer.
    row = c.max_prompt_tokens + c.max_new_tokens
    groups = min(c.mini_batch_prompts, c.prompts_per_step)
    # A single row goes in whole, however long it is.
    tokens = max(row, min(c.micro_batch_tokens, groups * (c.max_prompt_tokens + c.completions_per_prompt * c.max_new_tokens)))
    layer = tokens * (size * (5 * hidden + 4 * query + 4 * key + 4 * inner) + 4 * 2 * hidden)
    if device == "cpu":  # where attention keeps its scores; kernels of a GPU make them again
        layer += tokens * heads * row * size
    activations = layers * tokens * hidden * size + 2 * layer if c.gradient_checkpointing else layers * layer
    logits = min(LOGITS_AT_ONCE, tokens * vocabulary) * (2 * size + 3 * 4)
    if c.engine == "plain":  # all of them at once, and some steps of the formulas keep theirs
        logits = tokens * vocabulary * (2 * size + 6 * 4)
    return Estimate(parameters, trained, weights, optimizer, sampling, gradients, activations + logits)


_SHAPES: dict[str, torch.nn.Module] = {}


def shapes(model_config) -> torch.nn.Module:
    """The model without numbers. It is kept, because advice() asks about one model many times."""
    from transformers import AutoModelForCausalLM

    if (key := model_config.to_json_string()) not in _SHAPES:
        with torch.device("meta"):
            _SHAPES[key] = AutoModelForCausalLM.from_config(model_config, trust_remote_code=False)
    return _SHAPES[key]


def free_memory(device: str) -> float | None:
    """Bytes that are free on a device; None if nobody says."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    if device == "mps":
        return torch.mps.recommended_max_memory()
    with suppress(OSError, StopIteration), open("/proc/meminfo", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    with suppress(AttributeError, OSError, ValueError):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def advice(c: TrainConfig, free: float, again: Callable[[TrainConfig], Estimate]) -> str:
    """Which settings to change, together, so that it fits; empty if it fits. again: the estimate for other settings.

    AdamW in 8 bits or LoRA if what is always there takes all; else how much goes through at once, and recomputing, which change no result;
    shorter answers if nothing else helps.
    """
    changed: dict[str, object] = {}
    while (e := again(now := replace(c, **changed))).total > free:
        rows = min(now.sampling_rows, c.prompts_per_step * c.completions_per_prompt)
        always, row = e.weights + e.optimizer, c.max_prompt_tokens + now.max_new_tokens
        if e.weights > free or now.max_new_tokens < 2:
            return f"That does not fit into the {free / GIB:.1f} GiB that are free here. Choose a smaller model."
        if always + e.gradients > 0.9 * free and not now.lora_rank:
            changed |= {"optimizer": "adamw8bit"} if now.optimizer == "adamw" else {"lora_rank": 32, "optimizer": c.optimizer}
        elif always + e.sampling > free and rows > 1:
            changed["sampling_rows"] = rows // 2
        elif always + e.gradients + e.update > free and not now.gradient_checkpointing:
            changed["gradient_checkpointing"] = True
        elif always + e.gradients + e.update > free and now.micro_batch_tokens > row:
            changed["micro_batch_tokens"] = max(row, now.micro_batch_tokens // 2)
        else:  # a single completion is too much
            changed["max_new_tokens"] = now.max_new_tokens // 2
    for name in list(changed):  # what a later change has made needless
        value = changed.pop(name)
        if again(replace(c, **changed)).total > free:
            changed[name] = value
    if not changed:
        return ""
    flags = " ".join(flag(name) + ("" if value is True else f" {value}") for name, value in changed.items())
    more = " (an adapter wants a ten times higher --lr)" if "lora_rank" in changed else ""
    return f"That may not fit into the {free / GIB:.1f} GiB that are free here. Try {flags}{more}."


if __name__ == "__main__":
    from rlvr.engine.cluster import main

    main()
