"""Seconds of a step against the number of prompts, the length of completions and the size of the model: one figure with three panels.

    python tests/benchmarks/scale.py --threads 2 --figure tutorials/scaling.png --json tests/data/scaling.json

Random weights, prompts of 40 tokens, 8 completions each, all of the same length (nothing ever ends), every one of them in the update.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

PROMPTS, LENGTHS = [8, 16, 32, 64, 128, 256, 512], [64, 128, 256, 512, 1024, 2048]
SIZES = {  # hidden, layers, heads, key heads, MLP, vocabulary
    "0.4 M": (96, 3, 4, 2, 256, 768),
    "2 M": (192, 4, 6, 2, 704, 768),
    "9 M": (320, 6, 5, 1, 1024, 4096),
    "35 M": (512, 8, 8, 2, 1536, 16384),
    "135 M": (576, 30, 9, 3, 1536, 49152),
}


class NoText:
    """Stands in for a tokenizer: what the completions say does not matter here."""

    def batch_decode(self, rows, skip_special_tokens=True):
        return [""] * len(rows)


def step_seconds(size: str, prompts: int, length: int, repeats: int = 1) -> dict:
    """Sampling and update of one step; the fastest of `repeats`."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from rlvr.config import TrainConfig
    from rlvr.data import Problem
    from rlvr.engine import decoder, scorer
    from rlvr.engine.attention import ATTENTION
    from rlvr.policy import Policy
    from rlvr.run.metrics import Watch
    from rlvr.train import Trainer

    torch.manual_seed(0)
    hidden, layers, heads, key_heads, mlp, vocabulary = SIZES[size]
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocabulary, hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=key_heads, max_position_embeddings=4096, tie_word_embeddings=True,
        )
    )  # fmt: skip
    model.set_attn_implementation(ATTENTION)
    config = TrainConfig(
        method="grpo", prompts_per_step=prompts, mini_batch_prompts=prompts, filter_groups=False, sampling_rounds=1, max_new_tokens=length,
        overlong_buffer=0, lr=1e-5,
    )  # fmt: skip
    policy = Policy(model, NoText(), {vocabulary}, decoder.complete, scorer.logp_and_entropy, packed=True)
    ids = torch.randint(vocabulary, (prompts, 40)).tolist()
    turns = lambda completions, answers: [float(i % 2) * 2 - 1 for i in range(len(completions))]  # noqa: E731
    trainer = Trainer(config, policy, [Problem(str(i), "0") for i in range(prompts)], ids, turns)
    watch, rows = Watch(trainer), []
    for _ in range(repeats):
        started = time.perf_counter()
        step = trainer.step()
        seconds = time.perf_counter() - started
        rows.append({"seconds": seconds} | {part: watch.seconds[part] for part in ("sampling", "update")})
    best = min(rows, key=lambda row: row["seconds"])
    parameters = sum(p.numel() for p in model.parameters())
    return {"size": size, "parameters": parameters, "prompts": prompts, "length": length, "tokens": int(step.rollouts.lengths.sum())} | best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--figure", default="")
    parser.add_argument("--json", default="")
    parser.add_argument("--quick", action="store_true", help="only the two smallest of each: does it run?")
    a = parser.parse_args()
    import torch

    torch.set_num_threads(a.threads)
    some = slice(2 if a.quick else None)
    step_seconds("0.4 M", 2, 16)  # warm up
    panels = {
        "prompts": [step_seconds("0.4 M", n, 64) for n in PROMPTS[some]],
        "length": [step_seconds("2 M", 4, n) for n in LENGTHS[some]],
        "parameters": [step_seconds(size, 4, 64) for size in list(SIZES)[some]],
    }
    for key, rows in panels.items():
        print(f"\n{key:>10} {'tokens':>9} {'seconds':>9} {'sampling':>9} {'update':>9}   microseconds per token")
        for row in rows:
            value, seconds, tokens = row[key], row["seconds"], row["tokens"]
            print(f"{value:10} {tokens:9} {seconds:9.2f} {row['sampling']:9.2f} {row['update']:9.2f}   {1e6 * seconds / tokens:.0f}")
    if a.json:
        Path(a.json).write_text(json.dumps({"threads": a.threads, "panels": panels}, indent=1) + "\n")
    if a.figure:
        draw(panels, a.figure)


def draw(panels: dict[str, list[dict]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = {
        "prompts": "prompts per step\n(0.4 M parameters, 64 new tokens)",
        "length": "new tokens per completion\n(2 M parameters, 4 prompts)",
        "parameters": "parameters of the model\n(4 prompts, 64 new tokens)",
    }
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 4), layout="constrained")
    for axis, (key, rows) in zip(axes, panels.items()):
        x = [row[key] for row in rows]
        for part, style in (("seconds", "o-"), ("sampling", "s--"), ("update", "^--")):
            axis.plot(x, [row[part] for row in rows], style, label="step" if part == "seconds" else part)
        axis.plot(x, [rows[0]["seconds"] * v / x[0] for v in x], color="0.6", linewidth=1, label="linear growth from the first")
        axis.set(xscale="log", yscale="log", xlabel=titles[key], ylabel="seconds")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
