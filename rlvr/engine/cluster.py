"""What a step costs on many GPUs: memory, seconds and tokens per second, from formulas. `python -m rlvr.engine.estimate --help`

N parameters, L layers of width h, G GPUs of peak F flop/s, memory bandwidth B and memory M; a step has R completions of t tokens in the mean
and t_max at most, c = prompt + t/2 tokens before each in the mean. A matrix product reaches a share MFU of F, reading memory a share MBU of B.

    flop of a token, forward    f = 2 N + 4 L h c                                 weights, and attention to what is before
    sampling, one token of b rows   = (2 N + b c k) / (tp B MBU), or b f / (tp F MFU) if that is longer    k: bytes of keys and values
    sampling                    = waves x t x that, + (t_max - t) tokens of the few rows that are left, with b = 1
    old log-probs               = f x tokens / (G F MFU)
    update                      = 4 f x tokens / (G F MFU)                        3 f without recomputing activations
    memory of a GPU             = 16 N / G + 2 N / tp + activations + keys and values
"""

import sys
from dataclasses import dataclass
from typing import Literal

MFU, MBU = 0.3, 0.5  # what engines reach without tuning; published runs lie between 0.25 and 0.45 (see tutorials/beyond_one_gpu.md)
BETWEEN = 1.2  # the parts do not follow each other without a gap: weights go to the sampler, rewards are computed, processes wait for the slowest
ENOUGH_ROWS, MOST_ROWS = 64, 256  # that a sampler takes at once


@dataclass(frozen=True)
class Card:
    flops: float  # a second, bfloat16 without sparsity, from the maker's data sheet
    bandwidth: float  # bytes a second
    memory: float  # bytes
    mfu: float = MFU


@dataclass(frozen=True)
class Shape:
    parameters: float
    layers: int
    hidden: int
    key_values: int  # width of keys, and of values


CARDS = {"a100": Card(312e12, 2.04e12, 80e9), "h100": Card(989e12, 3.35e12, 80e9), "h200": Card(989e12, 4.8e12, 141e9)}
SHAPES = {"1.5b": Shape(1.54e9, 28, 1536, 256), "7b": Shape(7.62e9, 28, 3584, 512), "32b": Shape(32.8e9, 64, 5120, 1024)}  # Qwen2.5


@dataclass
class StepConfig:
    """What a step of GRPO would cost on GPUs that this project does not reach: seconds, tokens per second and memory, by formulas.

    python -m rlvr.engine.estimate --gpus 8 --model-size 7b  -- the paper's batch

    python -m rlvr.engine.estimate  -- all sizes on 1 to 64 GPUs
    """

    gpus: int = 0
    """How many; 0: a table from 1 to 64."""
    model_size: Literal["1.5b", "7b", "32b", "all"] = "all"
    """Of Qwen2.5."""
    card: Literal["a100", "h100", "h200"] = "h100"
    """The GPU."""
    prompts: int = 512
    """Prompts of a step (paper: 512)."""
    completions: int = 8
    """Completions of each (paper: 8)."""
    rounds: float = 1.0
    """So many times as many completions are sampled as are learned from, because groups that are all right or all wrong are left out."""
    prompt_tokens: int = 150
    """Tokens of a prompt."""
    mean_tokens: int = 1000
    """Tokens of a completion, in the mean."""
    max_tokens: int = 8192
    """Tokens of the longest completion (paper: at most 8192)."""
    checkpointing: bool = True
    """Activations are computed again in the backward pass."""


@dataclass
class Cost:
    """Of a step, in seconds; of a GPU, in bytes."""

    sampling: float
    scoring: float
    update: float
    memory: float
    parallel: int  # GPUs that share the weights of a sampler

    @property
    def step(self) -> float:
        return BETWEEN * (self.sampling + self.scoring + self.update)


def cost(c: StepConfig, shape: Shape, card: Card, gpus: int, bytes_each: int = 2) -> Cost | None:
    """The formulas above; None if it does not fit. bytes_each: of a weight that samples.

    A sampler lies on as few GPUs as hold it and the keys and values of ENOUGH_ROWS completions, else on as few as hold one.
    """
    ways = (_cost(c, shape, card, gpus, p, bytes_each, enough) for enough in (ENOUGH_ROWS, 1) for p in (1, 2, 4, 8) if p <= gpus)
    return next((way for way in ways if way), None)


def _cost(c: StepConfig, shape: Shape, card: Card, gpus: int, parallel: int, bytes_each: int, enough: int) -> Cost | None:
    weights, tokens = bytes_each * shape.parameters, c.prompts * c.completions * (c.prompt_tokens + c.mean_tokens)
    longest, context = c.prompt_tokens + c.max_tokens, c.prompt_tokens + c.mean_tokens / 2
    activations = shape.hidden * bytes_each * (shape.layers if c.checkpointing else 20 * shape.layers) * longest + 2e9  # 2e9: logits, buffers
    always = 16 * shape.parameters / gpus + weights / parallel + activations
    cache = 2 * shape.key_values * shape.layers * bytes_each / parallel  # of a token, on each of its GPUs
    room = 0.9 * card.memory - always
    rows = c.rounds * c.prompts * c.completions * parallel / gpus  # of one sampler
    if room < cache * longest or room < cache * min(rows, enough) * (c.prompt_tokens + c.mean_tokens):
        return None
    at_once = max(1.0, min(rows, room / (cache * (c.prompt_tokens + c.mean_tokens)), MOST_ROWS))
    forward = 2 * shape.parameters + 4 * shape.layers * shape.hidden * context

    def token(b: float) -> float:
        read = (weights / parallel + b * context * cache) / (card.bandwidth * MBU)
        return max(read, b * forward / (parallel * card.flops * card.mfu))

    sampling = rows / at_once * c.mean_tokens * token(at_once) + (c.max_tokens - c.mean_tokens) * token(1)
    scoring = forward * tokens / (gpus * card.flops * card.mfu)
    memory = always + at_once * cache * (c.prompt_tokens + c.mean_tokens)
    return Cost(sampling, scoring, (4 if c.checkpointing else 3) * scoring, memory, parallel)


def table(c: StepConfig) -> str:
    """A row for each size and number of GPUs."""
    lines = ["| model | GPUs | a sampler on | sampling | old log-probs | update | step | tokens/s of a GPU | GiB of a GPU |", "|---" * 9 + "|"]
    for size in SHAPES if c.model_size == "all" else [c.model_size]:
        for gpus in [c.gpus] if c.gpus else [1, 2, 4, 8, 16, 32, 64]:
            if found := cost(c, SHAPES[size], CARDS[c.card], gpus):
                rate = c.prompts * c.completions * (c.prompt_tokens + c.mean_tokens) / found.step / gpus
                seconds = " | ".join(f"{value:,.0f} s" for value in (found.sampling, found.scoring, found.update, found.step))
                lines.append(f"| {size} | {gpus} | {found.parallel} | {seconds} | {rate:,.0f} | {found.memory / 2**30:.0f} |")
            else:
                lines.append(f"| {size} | {gpus} | does not fit |" + " |" * 6)
    return "\n".join(lines)


def main() -> None:
    import tyro

    c = tyro.cli(StepConfig, prog="python -m rlvr.engine.estimate")
    if not (min(c.gpus, c.prompt_tokens) >= 0 and min(c.prompts, c.completions) > 0 < c.mean_tokens <= c.max_tokens and 1 <= c.rounds < 1e9):
        sys.exit("error: A step needs GPUs, prompts, completions, a round, and none is longer than the longest. Choose positive numbers.")
    print(f"Assumed: {MFU:.0%} of the peak of a {c.card.upper()} in matrix products, {MBU:.0%} of its memory bandwidth, {BETWEEN - 1:.0%} of a step "
          f"between its parts, at most {MOST_ROWS} rows at once in a sampler; {c.prompts} x {c.completions} completions of {c.mean_tokens} tokens in "
          f"the mean and {c.max_tokens} at most. Nobody has measured these rows: they tell a minute from an hour.\n")  # fmt: skip
    print(table(c))
