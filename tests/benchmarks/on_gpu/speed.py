"""Sampling, update and whole steps of the 1.5B shape, beside the bounds of the hardware and beside others on the same work."""

import gc
import importlib.util
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from rlvr.engine import decoder
from rlvr.rollout import sample

from . import cards
from .attention import WAYS, batch, packed_by
from .cards import wait
from .processes import Needs, Options, row, tried
from .shapes import QWEN_1_5B, TINY, device_of, make_folder, needs_cuda, policy_of, random_model


class Bounds:
    """What the hardware allows for a shape (N parameters, keys and values of one token, flops of one token)."""

    def __init__(self, shape: dict, model, options: Options, device: str):
        self.parameters = sum(p.numel() for p in model.parameters())
        head_dim = shape["hidden_size"] // shape["num_attention_heads"]
        self.cache = 2 * 2 * shape["num_hidden_layers"] * shape["num_key_value_heads"] * head_dim  # bytes
        self.attention = 4 * shape["num_hidden_layers"] * shape["hidden_size"]  # flops for each token seen
        self.bandwidth, self.flops = cards.limits(options, device)

    def sampling(self, rows: int, length: int) -> float:
        """Tokens per second if every step reads the weights, and all keys and values so far, once; over all steps to `length`."""
        products = 2 * rows * self.parameters / self.flops
        steps = (max((2 * self.parameters + rows * t * self.cache) / self.bandwidth, products) for t in range(length))
        return rows * length / sum(steps)

    def update(self, length: float) -> float:
        """Flops of one token forward and backward: 6 N, and the attention's over half the length on average."""
        return 6 * self.parameters + 3 * self.attention * length / 2


def card(options: Options) -> Iterator[dict]:
    """The card, what its data sheet says, and what a large copy and a large product reach on it."""
    device = device_of(options)
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        yield row(torch.cuda.get_device_name(), total / 2**30, "GiB of memory", note=f"{free / 2**30:.1f} GiB free")
        if known := cards.known_card(torch.cuda.get_device_name()):
            yield row("data sheet: memory", known[0] / 1e9, "GB/s")
            yield row("data sheet: bfloat16 products", known[1] / 1e12, "TFLOP/s")
    bandwidth, flops = cards.measured(device)
    yield row("a large copy", bandwidth / 1e9, "GB/s")
    yield row("a large product" + ", bfloat16" * (device == "cuda"), flops / 1e12, "TFLOP/s")


def once(work, device: str) -> float:
    """Seconds of one call."""
    wait(device)
    started = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - started


class Sampling:
    """The work of sampling: 256 completions side by side, all to one length."""

    def __init__(self, options: Options, engine: str):
        self.device = device_of(options)
        self.shape = TINY if options.smoke else QWEN_1_5B
        self.rows, self.length, self.n = (4, 8, 2) if options.smoke else (256, 512, 32)
        self.policy = policy_of(random_model(self.shape, self.device, "bfloat16"), engine)
        g = torch.Generator().manual_seed(0)
        self.prompts = torch.randint(2, 900, (self.n, 128), generator=g).tolist()
        self.bound = Bounds(self.shape, self.policy.model, options, self.device).sampling(self.rows, self.length)

    def by(self, complete, length: int):
        policy, g = self.policy, torch.Generator().manual_seed(0)
        size = dict(completions_per_prompt=self.rows // self.n, max_new_tokens=length, stop_ids=policy.stop_ids, sampling_rows=self.rows)
        return sample(policy.model, policy.tokenizer, self.prompts, generator=g, complete=complete, **size)

    def rate(self, name: str, work) -> Iterator[dict]:
        """work(length) samples; a short call warms up."""

        def rows():
            work(min(24, self.length))
            rate = self.rows * self.length / once(lambda: work(self.length), self.device)
            note = f"{rate / self.bound:.0%} of the bound, {self.bound:,.0f}"
            yield row(f"{name}, {self.rows} rows to {self.length}", rate, "tokens/s", note=note, way=name)

        return tried(name, rows)


def sampling(options: Options) -> Iterator[dict]:
    """Our sampler, eager and with recorded steps."""
    s = Sampling(options, "fast")
    yield from s.rate("ours", partial(s.by, decoder.complete))

    def recorded(length: int):
        needs_cuda(s.device)
        return s.by(partial(decoder.complete, cuda_graphs=True), length)

    yield from s.rate("ours, CUDA graphs", recorded)


def others(options: Options) -> Iterator[dict]:
    """The same with transformers' generate, with its continuous batching, and with our plain engine."""
    s = Sampling(options, "plain")
    model, many = s.policy.model, [p for p in s.prompts for _ in range(s.rows // s.n)]
    padded = torch.tensor(many, device=s.device)  # all of one length

    def generate(length: int):
        exactly = dict(max_new_tokens=length, min_new_tokens=length, do_sample=True, top_k=0, top_p=1.0, temperature=1.0)
        model.generate(padded, attention_mask=torch.ones_like(padded), pad_token_id=0, **exactly)

    def continuous(length: int):
        """With what each step of training would pay for: a new manager (the old one's prefix cache is of old weights) and its warm-up."""
        from transformers import ContinuousBatchingConfig, GenerationConfig

        memory = {} if s.device == "cuda" else {"num_blocks": 64}  # else it takes and clears most of the machine's memory, for a minute
        settings = GenerationConfig(max_new_tokens=length, min_new_tokens=length, do_sample=True, top_k=0, eos_token_id=-1)
        out = model.generate_batch(
            inputs=many, generation_config=settings, continuous_batching_config=ContinuousBatchingConfig(**memory), progress_bar=False,
        )  # fmt: skip
        assert len(out) == s.rows and not any(o.error for o in out.values())

    yield from s.rate("transformers' generate", generate)
    yield from s.rate("the plain engine", partial(s.by, s.policy.complete))
    yield from s.rate("transformers' continuous batching", continuous)


def update(options: Options) -> Iterator[dict]:
    """Forward and backward of one micro-batch, completions of many lengths, with each way of attention."""
    device, shape = device_of(options), TINY if options.smoke else QWEN_1_5B
    size = (100, 12, 24) if options.smoke else (8192, 128, 1024)
    if device == "cuda" and torch.cuda.mem_get_info()[1] < 60 * 2**30:  # activations of 11500 tokens, which these are, take 37 GiB
        size = (4096, 128, 1024)
    prompts, completions = batch(*size, shape["vocab_size"])
    width = max(map(len, completions))
    ids = torch.tensor([c + [0] * (width - len(c)) for c in completions])
    mask = torch.arange(width) < torch.tensor([len(c) for c in completions])[:, None]
    tokens, mean = int(mask.sum()), 128 + float(mask.sum()) / len(mask)
    policy = policy_of(random_model(shape, device, "bfloat16"))
    bounds = Bounds(shape, policy.model, options, device)

    def work():
        logp, _ = policy.logp_and_entropy(policy.model, prompts, ids, mask)
        logp[mask].sum().backward()
        policy.model.zero_grad()

    def rate(name: str, way: str) -> Iterator[dict]:
        def rows():
            if way != "blocks":
                needs_cuda(device)
            if device == "cuda":
                torch.cuda.empty_cache()  # after a way that ran out of memory
            with packed_by(way):
                warm_up = once(work, device)
                seconds = min(once(work, device) for _ in range(2))
            share = tokens / seconds * bounds.update(mean) / bounds.flops
            note = f"{share:.0%} of the peak rate; the first call {warm_up:.0f} s"
            yield row(f"{name}, {tokens:,} tokens of completions", tokens / seconds, "tokens/s", note=note, way=name)

        return tried(name, rows)

    yield from rate("blocks", "blocks")
    for way in list(WAYS)[1:]:
        yield from rate(way, way)
    policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    for module in policy.model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True  # its own switch alone
    yield from rate("blocks, gradient checkpointing", "blocks")


def compiled(options: Options) -> Iterator[dict]:
    """The update with torch.compile of norms and MLP, which takes a while to begin."""
    device, shape = device_of(options), TINY if options.smoke else QWEN_1_5B
    policy = policy_of(random_model(shape, device, "bfloat16"))
    n, length = (2, 16) if options.smoke else (8, 1024)
    ids = torch.randint(2, 900, (n, length), generator=torch.Generator().manual_seed(0))

    def work():
        logp, _ = policy.logp_and_entropy(policy.model, [[5] * 128] * n, ids, torch.ones_like(ids, dtype=torch.bool))
        logp.sum().backward()
        policy.model.zero_grad()

    for name in ("as it is", "torch.compile of norms and MLP"):
        if name != "as it is":
            for layer in policy.model.model.layers:
                for part in (layer.mlp, layer.input_layernorm, layer.post_attention_layernorm):
                    part.compile(backend="eager" if options.smoke else "inductor")

        def rows(name=name):
            warm_up = once(work, device)
            seconds = min(once(work, device) for _ in range(2))
            note = f"the first call {warm_up:.0f} s"
            yield row(f"{name}, {n} completions of {length}", n * length / seconds, "tokens/s", note=note, way=name)

        yield from tried(name, rows)


def steps(options: Options) -> Iterator[dict]:
    """Whole steps of full fine-tuning, ours."""
    from sides import ours

    runs = [("ours", ours, {})]
    if device_of(options) == "cuda":
        runs.append(("ours, CUDA graphs", ours, {"cuda_graphs": True}))
    yield from _steps(options, runs)


def steps_of_trl(options: Options) -> Iterator[dict]:
    """TRL on the same work: with generate float32 weights under autocast, as it comes; with continuous batching bfloat16, no masters."""
    if options.skip_trl:
        raise Needs("TRL, which --skip-trl leaves out")
    for package in ("trl", "datasets", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise Needs(f"the package {package}")
    from sides import trl

    yield from _steps(options, [("TRL, generate", trl, {}), ("TRL, continuous batching", trl, {"trl_continuous": True})])


def _steps(options: Options, runs: list) -> Iterator[dict]:
    """Each in a process of its own: the second of two steps."""
    from sides import Side, Work

    device, folder = device_of(options), Path(options.folder, "model")
    if not (folder / "problems.jsonl").exists():
        make_folder(folder, TINY if options.smoke else QWEN_1_5B, device)
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    size = dict(prompts=32, mini_batch=32, max_new_tokens=256)
    if options.smoke:
        size = dict(prompts=4, completions=2, mini_batch=4, max_new_tokens=8)
    common = dict(
        model=str(folder), data=str(folder / "problems.jsonl"), dtype="bfloat16", reward="turns", device=device, checkpointing=True,
        lr=1e-6, micro_batch_tokens=4096 if options.smoke else 16384, trl_rows=4 if options.smoke else 16, threads=2,
        max_prompt_tokens=300, attention=options.attention, **size,
    )  # fmt: skip
    for name, run, more in runs:

        def rows(name=name, run=run, more=more):
            try:
                side = Side(run, Work(**common, **more))
                try:
                    side.step()
                    found = side.step()
                finally:
                    side.kill()
            except EOFError:
                raise RuntimeError("its process ended, and said why") from None
            parts = ", ".join(f"{part} {found[f'{part}_seconds']:.1f}" for part in ("sampling", "scoring", "update"))
            note = f"{parts}; {found['tokens_per_second']:,.0f} tokens/s; {found['peak_mib'] / 1024:.1f} GiB"
            yield row(name, found["seconds"], "s", note=note, way=name)

        yield from tried(name, rows)
