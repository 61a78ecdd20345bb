"""Memory and seconds of a step of the presets, on random weights of the published shapes, beside the estimate that is printed before loading.

    python tests/benchmarks/presets.py                           on a GPU: every preset that it holds, with its own settings
    python tests/benchmarks/presets.py --preset smollm2-135m     one of them
    python tests/benchmarks/presets.py --small                   what 2 CPU cores and 24 GB can do: shorter, smaller batches, float32

Random weights never end an answer: every completion has --max-new-tokens tokens, so this is the most a run can need. Each measurement is a
process of its own. Prints a table in Markdown.
"""

import argparse
import math
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
GIB = 2**30

# As in the config.json that is published with each model.
LLAMA, QWEN = "LlamaConfig", "Qwen2Config"
SHAPES = {
    "smollm2-135m": (LLAMA, dict(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192,
        tie_word_embeddings=True)),
    "qwen2.5-0.5b-gsm8k": (QWEN, dict(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2, max_position_embeddings=32768,
        tie_word_embeddings=True)),
    "qwen2.5-math-1.5b": (QWEN, dict(
        vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2, max_position_embeddings=4096,
        tie_word_embeddings=True)),
    "paper-7b": (QWEN, dict(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4, max_position_embeddings=131072,
        tie_word_embeddings=False)),
}  # fmt: skip
SHAPES["qwen2.5-math-1.5b-lora"] = SHAPES["qwen2.5-math-1.5b"]
# On a CPU: float32, whatever the preset says (bfloat16 is slow there), and batches of minutes.
SMALL = dict(
    device="cpu", dtype="float32", prompts_per_step=2, completions_per_prompt=4, mini_batch_prompts=2, max_prompt_tokens=64, overlong_buffer=0,
    sampling_rounds=1,
)  # fmt: skip
SMALL_RUNS = [
    ("smollm2-135m", dict(max_new_tokens=64, micro_batch_tokens=1024)),
    ("smollm2-135m", dict(max_new_tokens=64, micro_batch_tokens=1024, gradient_checkpointing=True)),
    ("smollm2-135m", dict(max_new_tokens=512, micro_batch_tokens=4096, prompts_per_step=1)),
    ("smollm2-135m", dict(max_new_tokens=64, micro_batch_tokens=1024, optimizer="adamw8bit")),
    ("smollm2-135m", dict(max_new_tokens=8, completions_per_prompt=2, prompts_per_step=1, dtype="bfloat16")),
    ("qwen2.5-0.5b-gsm8k", dict(max_new_tokens=32, micro_batch_tokens=512)),
    ("qwen2.5-math-1.5b-lora", dict(max_new_tokens=16, micro_batch_tokens=256)),
]


def shape_of(preset: str):
    import transformers

    kind, shape = SHAPES[preset]
    return getattr(transformers, kind)(**shape)


def measure(preset: str, changes: dict, steps: int, shape=None) -> dict:
    """Steps of a run with random weights and random rewards -> what a row of the table says. shape: instead of the preset's."""
    import torch
    from transformers import AutoModelForCausalLM

    from rlvr.config import PRESETS, TrainConfig
    from rlvr.data import Problem
    from rlvr.engine import decoder, scorer
    from rlvr.engine.choice import use_fast
    from rlvr.engine.estimate import estimate
    from rlvr.loaders.adapters import add_lora
    from rlvr.loaders.models import choose_device, choose_dtype
    from rlvr.policy import Policy, logp_and_entropy
    from rlvr.run.metrics import Watch
    from rlvr.train import Trainer

    c = TrainConfig(**{"preset": preset} | PRESETS[preset] | changes)
    device = choose_device(c.device)
    dtype = choose_dtype(c.dtype, device)
    torch.manual_seed(0)
    shape = shape or shape_of(preset)
    expected = estimate(c, shape, device, dtype)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(shape, dtype=getattr(torch, dtype))
    use_fast(model, preset, logp_and_entropy)
    if c.lora_rank:
        add_lora(model, c.lora_rank, c.lora_alpha, 0, preset)

    class Tokenizer:
        def batch_decode(self, rows, skip_special_tokens=True):
            return [str(row[0]) for row in rows]

    prompts = torch.randint(5, min(40_000, shape.vocab_size - 1), (c.prompts_per_step, c.max_prompt_tokens)).tolist()
    problems = [Problem("p", "1")] * len(prompts)
    policy = Policy(model, Tokenizer(), {shape.vocab_size - 1}, decoder.complete, scorer.logp_and_entropy, packed=True)
    trainer = Trainer(c, policy, problems, prompts, reward=lambda texts, golds: [(-1.0) ** i for i in range(len(texts))])
    watch, seconds, drift = Watch(trainer), [], []
    for _ in range(steps):
        started = time.perf_counter()
        step = trainer.step()
        seconds.append(time.perf_counter() - started)
        metrics = watch.row(step)
        drift.append(metrics["logp_drift"])
        if not math.isfinite(metrics["grad_norm"]) or metrics["skipped_updates"]:
            raise SystemExit(f"{preset}: the gradient is not finite in step {len(seconds)}")
    peak = torch.cuda.max_memory_reserved() + 0.5 * GIB if device == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return {
        "changes": changes, "parameters": expected.parameters, "trained": expected.trained, "dtype": dtype,
        "estimate": expected.total / GIB, "measured": peak / GIB, "seconds": min(seconds), "drift": max(drift), "where": where,
    }  # fmt: skip


def as_row(preset: str, found: dict) -> str:
    changes = {name: value for name, value in found["changes"].items() if name not in SMALL or SMALL[name] != value}
    shown = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in changes.items())
    return (
        f"| `{preset}` {shown} | {found['parameters'] / 1e6:,.0f} M | {found['trained'] / 1e6:,.1f} M | {found['dtype']} | "
        f"{found['estimate']:.1f} | {found['measured']:.1f} | {found['seconds']:.0f} | {found['drift']:.0e} | {found['where']} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", action="append", choices=SHAPES)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--one", type=int, default=-1, help=argparse.SUPPRESS)  # in a process of its own: which of the runs
    args = parser.parse_args()
    if args.small:
        runs = [(preset, SMALL | changes) for preset, changes in SMALL_RUNS if not args.preset or preset in args.preset]
    else:
        runs = [(preset, {}) for preset in args.preset or [name for name in SHAPES if name != "paper-7b"]]
    if args.one >= 0:
        print(as_row(runs[args.one][0], measure(*runs[args.one], args.steps)))
        return
    print("| preset and changes | parameters | trained | precision | estimate, GiB | measured, GiB | s/step | drift, nats | where |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for i in range(len(runs)):
        done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--one", str(i)], capture_output=True, text=True)
        print(
            done.stdout.strip() if not done.returncode else f"| `{runs[i][0]}` failed: {done.stderr.strip().splitlines()[-1][:150]} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
