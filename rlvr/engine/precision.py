"""float32 or bfloat16 on a CPU? With instructions for bfloat16 (AVX512-BF16, AMX) its products are faster; without, ten times slower and
more. So both are tried, on a matrix of the shape that most of the model's weights have.
"""

from statistics import median
from timeit import timeit

import torch

from rlvr.engine.estimate import shapes

SMALL = 50e6  # numbers in all matrices: in a smaller model their products are not most of the work
MARGIN = 1.2  # how many times as fast bfloat16 must be: a machine that does other work as well measures badly
ROWS, WIDEST, SECONDS = 128, 1024, 0.4  # tokens that go through the matrix, of which only so much is tried, for so long


def times_as_long(model_config) -> float | None:
    """How long a linear layer of a model takes in bfloat16 on this CPU, in multiples of float32: the median of trials in turns.

    model_config: a transformers configuration. None for a small model, with which nothing is tried.
    """
    weights = [p for p in shapes(model_config).parameters() if p.dim() == 2]
    if sum(weight.numel() for weight in weights) < SMALL:
        return None
    shape, took = max((weight.shape for weight in weights), key=lambda s: s.numel() * sum(weight.shape == s for weight in weights)), []
    while len(took) < 2 or sum(map(sum, took)) < SECONDS:
        took.append([_seconds(shape, dtype) for dtype in (torch.bfloat16, torch.float32)])
    return median(a / b for a, b in took[1:])  # the first of each has things to prepare


def _seconds(shape: torch.Size, dtype: torch.dtype) -> float:
    """A forward and a backward pass: the three products of an update, of which the first is that of sampling. Nothing is drawn."""
    rows, wide, deep = ROWS, *(min(n, WIDEST) for n in shape)
    x, weight, grad = (torch.ones(size, dtype=dtype, requires_grad=True) for size in ((rows, deep), (wide, deep), (rows, wide)))
    return timeit(lambda: torch.autograd.grad(torch.nn.functional.linear(x, weight), (x, weight), grad), number=1)
