"""Is it right on CUDA? What the tests show on a CPU, shown again where other kernels compute."""

import gc
import importlib.util
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from rlvr.config import PRESETS, TINY_MODEL, TrainConfig
from rlvr.data import encode_prompts, load_problems
from rlvr.engine import decoder
from rlvr.engine.optimizer import Optimizer
from rlvr.policy import Policy, load_policy, logp_and_entropy
from rlvr.rollout import Rollouts, sample

from .processes import ROOT, Needs, Options, at_least, at_most, row, tried
from .shapes import SMALL, TINY, device_of, needs_cuda, policy_of, random_model

STORIES = str(ROOT / "tests" / "data" / "stories.jsonl")  # 64 of the built-in problems: all of them take seconds to read


def prompts_of(policy: Policy, n: int) -> list[list[int]]:
    return encode_prompts(policy.tokenizer, load_problems("tiny", "test", n), "", 128)[1]


def sampled(policy: Policy, prompts, tokens: int, complete=None, **how) -> Rollouts:
    """4 completions of each prompt. The draws are the same in every call."""
    size = dict(completions_per_prompt=4, max_new_tokens=tokens, stop_ids=policy.stop_ids)
    g = torch.Generator().manual_seed(0)
    return sample(policy.model, policy.tokenizer, prompts, generator=g, complete=complete or policy.complete, **size, **how)


def same(a: Rollouts, b: Rollouts) -> float:
    """The share of completions that are equal, token for token."""
    one, other = ([ids[:n] for ids, n in zip(x.completion_ids.tolist(), x.lengths.tolist())] for x in (a, b))
    return statistics.mean(x == y for x, y in zip(one, other))


@torch.no_grad()
def drift(policy: Policy, rollouts: Rollouts, score=logp_and_entropy) -> torch.Tensor:
    """How far the sampler's log-probs are from those of a scorer, for every token, in nats."""
    logp, _ = score(policy.model, rollouts.prompt_ids, rollouts.completion_ids, rollouts.mask)
    return (logp.cpu() - rollouts.old_logp)[rollouts.mask].abs()


def sampler(options: Options) -> Iterator[dict]:
    """The fast sampler beside the plain engine."""
    device, n, tokens = device_of(options), *((2, 12) if options.smoke else (16, 120))

    def built_in():
        fast, plain = (load_policy("tiny", device, "float32", engine=engine) for engine in ("fast", "plain"))
        prompts = prompts_of(fast, n)
        for name, how in (("greedy", {"temperature": 0}), ("drawn", {})):
            a, b = (sampled(policy, prompts, tokens, **how) for policy in (fast, plain))
            yield at_least(f"built-in model, float32, {name}: completions as the plain engine's", same(a, b), 0.95)
        yield at_most("its log-probs beside the plain scorer's, the worst token", drift(plain, a).max().item(), 1e-3, "nats")
        yield at_least(
            "completions as on the CPU, with the same draws", same(a, sampled(load_policy("tiny"), prompts, tokens)), 0.9,
            note="rounding decides a token now and then",
        )  # fmt: skip

    def bfloat16():
        fast = load_policy("tiny", device, "bfloat16")
        plain = load_policy("tiny", device, "bfloat16", engine="plain")
        far = drift(plain, sampled(fast, prompts_of(fast, n), tokens))
        yield at_most("built-in model, bfloat16: log-probs beside the plain scorer's, mean", far.mean().item(), 0.02, "nats")

    def shared_heads():
        for dtype, most in (("float32", 1e-3), ("bfloat16", 0.03)):
            fast = policy_of(random_model(TINY if options.smoke else SMALL, device, dtype, 2.0))
            prompts = [[2 + i] * (5 + 9 * i) for i in range(4)]
            rollouts = sampled(fast, prompts, tokens)
            fast.model.set_attn_implementation("sdpa")
            far = drift(fast, rollouts).mean().item()
            yield at_most(f"random weights, 12 heads on 2 key heads, {dtype}: log-probs beside the plain scorer's, mean", far, most, "nats")

    for name, work in (("built-in model, float32", built_in), ("built-in model, bfloat16", bfloat16), ("random weights", shared_heads)):
        yield from tried(name, work)


def gradient(model, rows: tuple, score) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of the valid tokens, and the gradient of a sum of them with weights of either sign, as one float32 vector."""
    model.zero_grad()
    logp, _ = score(model, *rows)
    mask = rows[2].to(logp.device)
    weights = torch.linspace(-1, 1, logp.numel(), device=logp.device).view_as(logp)
    (logp * weights)[mask].sum().backward()
    return logp[mask].detach().float(), torch.cat([p.grad.float().flatten() for p in model.parameters() if p.grad is not None])


def relative(x: torch.Tensor, y: torch.Tensor) -> float:
    return ((x - y).norm() / y.norm()).item()


def packed(options: Options) -> Iterator[dict]:
    """Scoring without padding beside scoring with it, and the gradients of both."""
    device, shape = device_of(options), TINY if options.smoke else SMALL
    g = torch.Generator().manual_seed(1)
    longest = 12 if options.smoke else 200
    ids = torch.randint(2, 900, (16, longest), generator=g)
    mask = torch.arange(longest) < torch.randint(1, longest + 1, (16, 1), generator=g)
    prompts = [torch.randint(2, 900, (10 + 30 * (i // 4),), generator=torch.Generator().manual_seed(i // 4)).tolist() for i in range(16)]
    rows = prompts, ids.masked_fill(~mask, 0), mask
    found = {}
    for dtype in ("float32", "bfloat16"):
        policy = policy_of(random_model(shape, device, dtype, 2.0))
        found["packed", dtype] = gradient(policy.model, rows, policy.logp_and_entropy)
        policy.model.set_attn_implementation("sdpa")
        found["padded", dtype] = gradient(policy.model, rows, logp_and_entropy)
        del policy
    (logp, grad), (other_logp, other_grad) = found["packed", "float32"], found["padded", "float32"]
    yield at_most("float32: log-probs, the worst token", (logp - other_logp).abs().max().item(), 1e-3, "nats")
    yield at_most("float32: gradient, relative difference", relative(grad, other_grad), 1e-3)
    for i, what in enumerate(("log-probs", "gradient")):
        ours, padded = (relative(found[way, "bfloat16"][i], found["padded", "float32"][i]) for way in ("packed", "padded"))
        most = max(1.5 * padded, 1e-6)
        yield at_most(f"bfloat16: {what}, packed, relative difference to float32", ours, most, note="1.5 times that of padded rows")


def graphs(options: Options) -> Iterator[dict]:
    """Recorded steps beside eager ones; also when the weights have changed since, as they do in training."""
    device = device_of(options)

    def rows():
        needs_cuda(device)
        for name, policy, tokens in (
            ("built-in model", load_policy("tiny", device, "float32"), 120),
            ("random weights, bfloat16", policy_of(random_model(TINY if options.smoke else SMALL, device, "bfloat16", 2.0)), 300),
        ):
            prompts = prompts_of(policy, 16) if name == "built-in model" else [[2 + i] * (5 + 9 * i) for i in range(8)]
            recorded = partial(decoder.complete, cuda_graphs=True)
            for when in ("", ", after the weights have changed"):
                a, b = sampled(policy, prompts, tokens), sampled(policy, prompts, tokens, recorded)
                yield at_least(f"{name}: completions as without{when}", same(a, b), 0.95 if "built" in name else 0.8)
                far = drift(policy, b, policy.logp_and_entropy).mean().item()
                yield at_most(f"{name}: log-probs beside the scorer's, mean{when}", far, 1e-3 if "built" in name else 0.03, "nats")
                with torch.no_grad():
                    for weight in policy.model.parameters():
                        weight.mul_(1.02)
            held = [sampled(policy, prompts, tokens, recorded) and torch.cuda.memory_reserved() / 2**20 for _ in range(4)]
            yield at_most(f"{name}: memory that three more calls leave behind", held[-1] - held[0], 64, "MiB")

    yield from tried("recorded steps", rows)


def masters(options: Options) -> Iterator[dict]:
    """bfloat16 with float32 masters beside float32: one batch, and where ten small updates lead."""
    device, n = device_of(options), 2 if options.smoke else 16
    exact, rounded = (load_policy("tiny", device, dtype) for dtype in ("float32", "bfloat16"))
    batch = sampled(exact, prompts_of(exact, n), 12 if options.smoke else 120)
    advantages = torch.tensor([1.0 if i % 2 else -1.0 for i in range(len(batch))])[:, None] * batch.mask
    settings = TrainConfig(lr=1e-6, lr_schedule="constant", warmup_steps=0)

    def updates(policy: Policy, dtype: torch.dtype, steps: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Optimizer]:
        """The first gradient, the weights before and after, and the optimiser."""
        optimizer = Optimizer(settings, policy.model)

        def weights():
            return torch.cat([p.detach().flatten().clone() for p in optimizer.weights.parameters])

        before, first = weights(), None
        for step in range(steps):
            logp, _ = policy.logp_and_entropy(policy.model, batch.prompt_ids, batch.completion_ids, batch.mask)
            (-(logp * advantages.to(device)).sum() / batch.mask.sum()).backward()
            optimizer.weights.collect_grads()
            if step == 0:
                first = torch.cat([p.grad.flatten().clone() for p in optimizer.weights.parameters])
            optimizer.step(0.0, 1)
        return first, before, weights(), optimizer

    steps = 2 if options.smoke else 10
    (grad, start, end, _), (grad16, start16, end16, optimizer) = (
        updates(p, d, steps) for p, d in ((exact, torch.float32), (rounded, torch.bfloat16))
    )
    cosine = torch.nn.functional.cosine_similarity
    yield at_least("gradient: cosine with float32's", cosine(grad, grad16, dim=0).item(), 0.98)
    yield at_least(f"{steps} updates at 1e-6: cosine of where the weights went", cosine(end - start, end16 - start16, dim=0).item(), 0.8)
    yield at_least("masters that moved", ((end16 - start16) != 0).float().mean().item(), 0.9)
    moved = (end16.bfloat16() != start16.bfloat16()).float().mean().item()
    yield row("of which bfloat16 alone would show", moved, note="why there are masters")
    off = max((p - master.to(p.dtype)).abs().max().item() for p, master in optimizer.weights.pairs)
    yield at_most("the model is its masters, rounded", off, 0)


def resume(options: Options) -> Iterator[dict]:
    """A run of the built-in model that is stopped and resumed, beside the run that was never stopped."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # before the first product: it makes them repeatable
    device = device_of(options)
    from safetensors.torch import load_file

    from rlvr.run import figures
    from rlvr.train import Trainer, train

    figures.draw_curves = lambda folder: folder / "curves.png"  # not what is measured here
    settings = dict(
        steps=4, prompts_per_step=8, mini_batch_prompts=4, eval_every=0, final_eval_problems=0, device=device, show_every=0, data=STORIES,
        filter_groups=False, sampling_rounds=1,
    )  # fmt: skip
    if options.smoke:
        settings |= dict(prompts_per_step=4, mini_batch_prompts=2, completions_per_prompt=4, max_new_tokens=60)
    begin, real = Trainer.begin, Trainer.gradient

    def stopped(trainer):
        if trainer.step_number == 1:
            signal.raise_signal(signal.SIGTERM)  # it makes this step, saves and ends
        return begin(trainer)

    def repeatable(*args):
        torch.use_deterministic_algorithms(True)  # else attention adds up gradients in any order
        try:
            return real(*args)
        finally:
            torch.use_deterministic_algorithms(False)

    start = load_file(TINY_MODEL / "model.safetensors")

    def runs(kind: str):
        with tempfile.TemporaryDirectory() as folder:

            def run(name: str, again=""):
                train(TrainConfig(**settings, out=folder, name=name, resume=again))
                return load_file(Path(folder, name, "model", "model.safetensors")), Path(folder, name, "rollouts.jsonl").read_text()

            whole, twice = run("whole"), run("twice")
            Trainer.begin = stopped
            try:
                run("stopped")
            finally:
                Trainer.begin = begin
            resumed = run("stopped", str(Path(folder, "stopped")))
        learned = max((x - start[name]).abs().max().item() for name, x in whole[0].items())
        yield row(f"{kind}: how far these runs moved the weights", learned, "largest difference", "above 0", learned > 0)
        apart = [max((x - whole[0][name]).abs().max().item() for name, x in other[0].items()) for other in (twice, resumed)]
        texts = "the same completions" if resumed[1] == whole[1] else "other completions"
        yield row(f"{kind}: weights of two runs that were not stopped", apart[0], "largest difference", kind=kind)
        note = texts + ("; two runs that were not stopped differ too" if apart[0] else "")
        ok = apart[1] == 0 or (None if apart[0] else False)  # no run can be more equal than two that were not stopped
        yield row(f"{kind}: weights of the run that was resumed", apart[1], "largest difference", "0", ok, note)

    yield from tried("as it comes", lambda: runs("as it comes"))
    Trainer.gradient = repeatable
    yield from tried("deterministic gradients", lambda: runs("deterministic gradients"))


MEMORY = [  # preset, and what is smaller here, so that a step takes seconds
    ("qwen2.5-0.5b-gsm8k", dict(prompts_per_step=8, mini_batch_prompts=8, sampling_rounds=1)),
    ("qwen2.5-math-1.5b-lora", dict(prompts_per_step=8, mini_batch_prompts=8, max_new_tokens=256, overlong_buffer=0, sampling_rounds=1)),
    ("qwen2.5-math-1.5b", dict(prompts_per_step=8, mini_batch_prompts=8, max_new_tokens=256, overlong_buffer=0, sampling_rounds=1)),
]


def memory(options: Options) -> Iterator[dict]:
    """Peak memory of two steps beside the estimate that is printed before a model is loaded."""
    from transformers import Qwen2Config

    import presets
    from rlvr.engine.estimate import GIB, estimate, free_memory
    from rlvr.loaders.models import choose_dtype

    device = device_of(options)
    for preset, changes in MEMORY:
        shape = Qwen2Config(**TINY) if options.smoke else presets.shape_of(preset)
        if options.smoke:
            changes = changes | dict.fromkeys(("prompts_per_step", "mini_batch_prompts", "completions_per_prompt"), 2)
            changes |= dict(max_new_tokens=4, max_prompt_tokens=8)

        def rows(preset=preset, changes=changes, shape=shape):
            c = TrainConfig(**{"preset": preset} | PRESETS[preset] | changes)
            wanted = estimate(c, shape, device, choose_dtype(c.dtype, device)).total
            if wanted > 0.95 * free_memory(device):
                raise Needs(f"{wanted / GIB:.0f} GiB")
            found = presets.measure(preset, changes | {"device": device}, 1 if options.smoke else 2, shape)
            share = found["measured"] / found["estimate"]
            want, ok = f"half to all of the estimate, {found['estimate']:.1f}", None if options.smoke else 0.5 <= share <= 1.0
            yield row(preset, found.pop("measured"), "GiB", want, ok, f"{share:.0%}", **found)

        yield from tried(preset, rows)
        gc.collect()  # a trainer and what watches it refer to each other
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def tests(options: Options) -> Iterator[dict]:
    """The tests of the project that ask for CUDA."""
    device = device_of(options)
    importlib.import_module("pytest")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rA", "-k", "cuda_graphs_give or on_a_gpu"]
    command += ["-n", "0"] if importlib.util.find_spec("xdist") else ["-o", "addopts="]
    done = subprocess.run([*command, "tests/test_rollout.py", "tests/test_train.py"], cwd=ROOT, capture_output=True, text=True)
    print(done.stdout[-2000:], done.stderr[-1000:])
    found = re.findall(r"^(PASSED|FAILED|ERROR) (tests/\S+)", done.stdout, re.M)
    for verdict, name in found:
        yield row(name.split("::")[-1], ok=verdict == "PASSED", note=verdict.lower())
    skipped = re.search(r"(\d+) skipped", done.stdout)
    if skipped:
        yield row(f"{skipped[1]} tests", note="needs CUDA, or Apple's GPU" if device == "cpu" else "needs Apple's GPU")
    if not found and not skipped:
        raise RuntimeError(f"pytest said: {done.stdout[-300:]} {done.stderr[-300:]}")
