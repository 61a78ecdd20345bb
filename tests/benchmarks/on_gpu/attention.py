"""Attention over packed rows, three ways: the blocks of rlvr/engine/attention.py, torch's varlen_attn, and FlexAttention.

    with packed_by("varlen"): ...        the scorer uses that one inside

The blocks run on any device, but pad, and hide the padding with a mask, which keeps the fastest kernels away. varlen_attn and FlexAttention
need neither. Which is fastest only a GPU can say: the part `attention` of gpu.py measures it. If another one wins, it takes the place of
`Packed.attend` and of the blocks.
"""

import inspect
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import embedding

from rlvr.engine import scorer
from rlvr.engine.attention import Packed

from .cards import seconds_of, wait
from .processes import Options, at_most, row, tried
from .shapes import QWEN_1_5B, TINY, device_of, needs_cuda


def sequences(prompts: list[list[int]], completions: list[list[int]]) -> list[tuple[range, range]]:
    """The rows of a packed batch: (tokens seen before, tokens that are queries). End to end, the queries are all tokens of the batch."""
    spans, end = {}, 0
    for prompt in map(tuple, prompts):
        if prompt not in spans:
            spans[prompt] = range(end, end := end + len(prompt))
    rows = [(range(0), span) for span in spans.values()]
    for prompt, completion in zip(map(tuple, prompts), completions):
        if len(completion) > 1:
            rows.append((spans[prompt], range(end, end := end + len(completion) - 1)))
    return rows


class Varlen(Packed):
    """Keys of each row are gathered one after the other; one kernel runs over rows of any length, without padding or mask."""

    def __init__(self, prompts, completions, device):
        super().__init__(prompts, completions, device)
        rows = sequences(prompts, completions)
        lengths = [[len(queries) for _, queries in rows], [len(seen) + len(queries) for seen, queries in rows]]
        self.starts = [torch.tensor([0, *accumulate(some)], dtype=torch.int32, device=device) for some in lengths]
        self.longest = [max(some) for some in lengths]
        self.keys = torch.tensor([i for row in rows for span in row for i in span], device=device)

    def attend(self, module, query: Tensor, key: Tensor, value: Tensor, window: int | None, **kw) -> Tensor:
        q = query[0].transpose(0, 1)  # [K, heads, dim]
        k, v = (embedding(self.keys, x[0].transpose(0, 1).flatten(1)).unflatten(1, (x.shape[1], -1)) for x in (key, value))
        out = varlen(q.contiguous(), k, v, *self.starts, *self.longest, window, kw.get("scaling"))
        return out[None]


def varlen(
    q: Tensor, k: Tensor, v: Tensor, starts_q, starts_k, most_q: int, most_k: int, window: int | None, scale: float | None
) -> Tensor:
    """torch's varlen_attn, causal from the last token backwards. Its arguments changed from 2.10 to 2.12."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    how = {"window_size": (window - 1 if window else -1, 0)} if "window_size" in known else {"is_causal": True}
    how |= {"scale": scale} if "scale" in known else {}
    how |= {"enable_gqa": q.shape[1] != k.shape[1]} if "enable_gqa" in known else {}
    return varlen_attn(q, k, v, starts_q, starts_k, most_q, most_k, **how)


class RepeatedKeys(Varlen):
    """The same for a varlen_attn that wants as many key heads as query heads."""

    def attend(self, module, query: Tensor, key: Tensor, value: Tensor, window: int | None, **kw) -> Tensor:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        return super().attend(module, query, key, value, window, **kw)


class Flex(Packed):
    """Nothing is gathered: a compiled kernel skips the blocks of 128 x 128 tokens that hold no pair of query and key."""

    compiled = None

    def __init__(self, prompts, completions, device):
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        super().__init__(prompts, completions, device)
        rows = sequences(prompts, completions)
        number = torch.tensor([i for i, (_, queries) in enumerate(rows) for _ in queries], device=device)  # [K]: of each token's row
        first, end = (
            torch.tensor([(seen[where] + where % 2 if seen else 0) for seen, queries in rows for _ in queries], device=device)
            for where in (0, -1)
        )  # [K]: the prompt that each token sees is first:end

        def sees(b, h, q, k):
            return (k <= q) & (number[q] == number[k]) | (first[q] <= k) & (k < end[q])

        length = self.ids.shape[1]
        self.mask = create_block_mask(sees, None, None, length, length, device=device)
        if torch.device(device).type == "cuda" and not Flex.compiled:
            Flex.compiled = torch.compile(flex_attention)
        self.run = Flex.compiled or flex_attention

    def attend(self, module, query: Tensor, key: Tensor, value: Tensor, window: int | None, **kw) -> Tensor:
        if window:
            raise NotImplementedError("a window, which would need a mask of its own")
        out = self.run(query, key, value, block_mask=self.mask, scale=kw.get("scaling"), enable_gqa=query.shape[1] != key.shape[1])
        return out.transpose(1, 2)


WAYS = {"blocks": Packed, "varlen": Varlen, "varlen, keys repeated": RepeatedKeys, "flex": Flex}


@contextmanager
def packed_by(way: str):
    """Inside, the scorer's batches attend in this way."""
    before, scorer.Packed = scorer.Packed, WAYS[way]
    try:
        yield
    finally:
        scorer.Packed = before


def batch(tokens: int, prompt: int, longest: int, vocabulary: int) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and completions of a micro-batch, about `tokens` in all: 8 completions of each prompt, of many lengths."""
    g = torch.Generator().manual_seed(0)
    prompts, completions, known = [], [], 0
    while known < tokens:
        one = torch.randint(2, vocabulary, (prompt,), generator=g).tolist()
        known += prompt
        for n in torch.randint(longest // 4, longest + 1, (8,), generator=g).tolist():
            prompts.append(one)
            completions.append(torch.randint(2, vocabulary, (n,), generator=g).tolist())
            known += n
    return prompts, completions


def attention(options: Options) -> Iterator[dict]:
    """Forward and backward of one layer's attention on a micro-batch of the 1.5B shape, and the error beside float32."""
    device = device_of(options)
    shape, size = (TINY, (300, 12, 24)) if options.smoke else (QWEN_1_5B, (16384, 128, 1024))
    prompts, completions = batch(*size, shape["vocab_size"])
    heads, key_heads, dtype = shape["num_attention_heads"], shape["num_key_value_heads"], torch.bfloat16
    dim = shape["hidden_size"] // heads
    k = Packed(prompts, completions, "cpu").ids.shape[1]
    torch.manual_seed(0)
    states = [torch.randn(1, h, k, dim, device=device, dtype=dtype).requires_grad_() for h in (heads, key_heads, key_heads)]
    back = torch.randn(1, k, heads, dim, device=device, dtype=dtype)
    layer = torch.nn.Module()
    layer.num_key_value_groups, layer.is_causal = heads // key_heads, True

    def run(made: Packed, some, grad) -> list[Tensor]:
        out = made.attend(layer, *some, None, scaling=dim**-0.5)
        return [out.detach(), *torch.autograd.grad(out, some, grad)]

    exact = run(Packed(prompts, completions, device), [x.detach().float().requires_grad_() for x in states], back.float())
    speed = {}

    def rows(way: str) -> Iterator[dict]:
        if way != "blocks":
            needs_cuda(device)
        wait(device)
        started = time.perf_counter()
        made = WAYS[way](prompts, completions, device)
        wait(device)
        yield row(f"{way}: laying out a micro-batch", time.perf_counter() - started, "s")
        started = time.perf_counter()
        found = run(made, states, back)
        wait(device)
        yield row(f"{way}: the first call", time.perf_counter() - started, "s", note="with compiling" if way == "flex" else "")
        errors = [((x - y).norm() / y.norm()).item() for x, y in zip(found, exact)]
        yield at_most(f"{way}: error beside float32, the worst of output and gradients", max(errors), 0.02)
        speed[way] = 1000 * seconds_of(lambda: run(made, states, back), device)
        times = f"{speed['blocks'] / speed[way]:.2f} times as fast as blocks" if way != "blocks" and "blocks" in speed else ""
        yield row(f"{way}: forward and backward of a layer, {k:,} tokens", speed[way], "ms", note=times, way=way)

    for way in WAYS:
        yield from tried(way, lambda way=way: rows(way))
