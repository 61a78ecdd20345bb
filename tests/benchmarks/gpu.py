"""One GPU, the shape of Qwen2.5-Math-1.5B with random weights, bfloat16: sampling, update, a whole step, and TRL on the same work.

    python tests/benchmarks/gpu.py                       on one H100: minutes
    python tests/benchmarks/gpu.py --skip-trl            ours alone
    python tests/benchmarks/gpu.py --smoke               everything once with a tiny shape, on any machine: does it run?

Prints a table in Markdown with the bound of the hardware beside each figure. The bounds are those of an H100 (3.35 TB/s, 800 TFLOP/s in
bfloat16); give --bandwidth and --flops for another card.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from sides import Side, Work, ours, trl

QWEN_1_5B = dict(
    hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2, vocab_size=151936
)
TINY = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=1000)


def make_folder(folder: Path, shape: dict) -> None:
    """A model folder with random weights, a tokenizer in which every token is a word, and a file of problems of 128 tokens.

    The architecture is Llama's with biases, which does the same work as Qwen2's; for Qwen2 transformers would insist on a tokenizer of its own.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {"<unk>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, shape["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>", unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(0)
    common = dict(max_position_embeddings=4096, tie_word_embeddings=True, eos_token_id=1, pad_token_id=1, bos_token_id=None)
    LlamaForCausalLM(LlamaConfig(**shape, **common, attention_bias=True)).to(torch.bfloat16).save_pretrained(folder)
    g = torch.Generator().manual_seed(0)
    with open(folder / "problems.jsonl", "w", encoding="utf-8") as file:
        for i in range(1024):
            ids = torch.randint(2, shape["vocab_size"], (128,), generator=g).tolist()
            file.write(json.dumps({"problem": " ".join(f"w{t}" for t in ids), "answer": str(i)}) + "\n")


class Card:
    """What the hardware allows for this shape (N parameters, keys and values of one token, flops of one token)."""

    def __init__(self, shape: dict, model, bandwidth: float, flops: float):
        self.parameters = sum(p.numel() for p in model.parameters())
        self.cache = (
            2 * 2 * shape["num_hidden_layers"] * shape["num_key_value_heads"] * shape["hidden_size"] // shape["num_attention_heads"]
        )
        self.attention = 4 * shape["num_hidden_layers"] * shape["hidden_size"]  # flops for each token seen
        self.bandwidth, self.flops = bandwidth, flops

    def sampling(self, rows: int, length: int) -> float:
        """Tokens per second if every step reads the weights, and keys and values of `length` tokens per row, once: 2 N + rows * L * cache."""
        return rows * self.bandwidth / (2 * self.parameters + rows * length * self.cache)

    def update(self, length: int) -> float:
        """Flops of one token forward and backward: 6 N, and the attention's over half the length on average."""
        return 6 * self.parameters + 3 * self.attention * length / 2


def timed(work, device: str, repeats: int = 2) -> float:
    """The fastest of some, after one that warms up. Seconds."""
    import torch

    best = float("inf")
    for i in range(repeats + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        if i:
            best = min(best, time.perf_counter() - started)
    return best


def sampling_rows(folder: str, card_of, rows: int, length: int, device: str, prompts: int):
    """Our sampler with and without CUDA graphs, its plain twin, transformers' generate and its continuous batching, all to `length` tokens."""
    import torch
    from transformers import ContinuousBatchingConfig, GenerationConfig

    from rlvr.engine import decoder
    from rlvr.policy import load_policy
    from rlvr.rollout import sample

    never = {10**9}
    ids = [torch.randint(2, 900, (128,), generator=torch.Generator().manual_seed(i)).tolist() for i in range(prompts)]
    common = dict(completions_per_prompt=rows // prompts, max_new_tokens=length, stop_ids=never, sampling_rows=rows)
    policy = load_policy(folder, device, "bfloat16")
    card = card_of(policy.model)
    bound = card.sampling(rows, length)
    mean = length / sum(1 / card.sampling(rows, t) for t in range(1, length + 1))

    def ours(cuda_graphs: bool):
        return sampled_by(policy, partial(decoder.complete, cuda_graphs=cuda_graphs))

    def sampled_by(policy, complete):
        g = torch.Generator
        return lambda: sample(policy.model, policy.tokenizer, ids, generator=g().manual_seed(0), complete=complete, **common)

    def line(name, work):
        try:
            rate = rows * length / timed(work, device)
        except Exception as error:  # a figure that cannot be had must not cost the others
            return name, f"failed: {type(error).__name__}: {str(error)[:80]}", ""
        return (
            name,
            f"{rate:,.0f} tokens/s",
            f"{rate / bound:.0%} of {bound:,.0f} (all rows at full length); {rate / mean:.0%} of {mean:,.0f} (mean)",
        )

    yield line(f"sampling, ours, {rows} rows to {length}", ours(False))
    if device == "cuda":
        yield line(f"sampling, ours with CUDA graphs, {rows} rows to {length}", ours(True))
        try:
            eager, graphs = ours(False)(), ours(True)()
            same = (eager.completion_ids == graphs.completion_ids).float().mean().item()
            yield "the same tokens with CUDA graphs as without", f"{same:.1%}", "100% but for rounding"
        except Exception as error:
            yield "the same tokens with CUDA graphs as without", f"failed: {type(error).__name__}", ""
    stock = load_policy(folder, device, "bfloat16", engine="plain")
    yield line(f"sampling, the plain engine, {rows} rows to {length}", sampled_by(stock, stock.complete))
    padded = torch.tensor([p for p in ids for _ in range(rows // prompts)], device=device)  # all of one length

    def generate():
        exactly = dict(max_new_tokens=length, min_new_tokens=length, do_sample=True, top_k=0, top_p=1.0, temperature=1.0)
        return stock.model.generate(padded, attention_mask=torch.ones_like(padded), pad_token_id=0, **exactly)

    yield line("sampling, transformers' generate", generate)

    cache = {} if device == "cuda" else {"num_blocks": 64}  # else it takes and clears most of the machine's memory, for a minute

    def continuous():
        """With what each step of training would pay for: a new manager (the old one's prefix cache is of old weights) and its warm-up."""
        settings = GenerationConfig(max_new_tokens=length, min_new_tokens=length, do_sample=True, top_k=0, eos_token_id=-1)
        out = stock.model.generate_batch(
            inputs=[p for p in ids for _ in range(rows // prompts)], generation_config=settings,
            continuous_batching_config=ContinuousBatchingConfig(**cache), progress_bar=False,
        )  # fmt: skip
        assert len(out) == rows and not any(o.error for o in out.values())

    yield line("sampling, transformers' continuous batching", continuous)


def update_rows(folder: str, card_of, length: int, device: str, tokens: int):
    """Forward and backward of one micro-batch of `tokens` tokens, completions of `length`."""
    import torch

    from rlvr.engine.scorer import logp_and_entropy
    from rlvr.policy import load_policy

    def line(name: str, checkpointing: bool, compiled: bool):
        policy = load_policy(folder, device, "bfloat16")
        model, card = policy.model, card_of(policy.model)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        if compiled:
            for layer in model.model.layers:
                layer.mlp.compile()
                layer.input_layernorm.compile()
                layer.post_attention_layernorm.compile()
        n = max(1, tokens // length)
        ids = torch.randint(2, 900, (n, length))
        mask = torch.ones_like(ids, dtype=torch.bool)

        def work():
            logp, _ = logp_and_entropy(model, [[5] * 128] * n, ids, mask)
            logp.sum().backward()
            model.zero_grad()

        try:
            rate = n * length / timed(work, device)
        except Exception as error:
            return name, f"failed: {type(error).__name__}: {str(error)[:80]}", ""
        return name, f"{rate:,.0f} tokens/s", f"{rate * card.update(length) / card.flops:.0%} of the peak matrix rate"

    yield line(f"update, length {length}", False, False)
    yield line(f"update, length {length}, gradient checkpointing", True, False)
    yield line(f"update, length {length}, torch.compile of norms and MLP", False, True)


def step_rows(folder: Path, smoke: bool, with_trl: bool, device: str):
    """Whole steps of full fine-tuning: ours, and TRL's with generate and with continuous batching, one after the other."""
    size = dict(prompts=4, completions=2, mini_batch=4, max_new_tokens=8) if smoke else dict(prompts=32, mini_batch=32, max_new_tokens=1024)
    common = dict(
        model=str(folder), data=str(folder / "problems.jsonl"), dtype="bfloat16", reward="turns", device=device, checkpointing=True,
        lr=1e-6, micro_batch_tokens=4096 if smoke else 16384, trl_rows=4 if smoke else 16, threads=2, max_prompt_tokens=300, **size,
    )  # fmt: skip
    runs = [("ours", ours, {}), ("ours, CUDA graphs", ours, {"cuda_graphs": True})] if device == "cuda" else [("ours", ours, {})]
    if with_trl:  # with generate float32 weights under autocast, as it comes; with continuous batching bfloat16 weights without masters
        runs += [("TRL, generate", trl, {}), ("TRL, continuous batching", trl, {"trl_continuous": True})]
    for name, run, more in runs:
        try:
            side = Side(run, Work(**common, **more))
            rows = [side.step() for _ in range(2 if smoke else 3)]
            side.kill()
            row = min(rows[1:], key=lambda r: r["seconds"])
            parts = ", ".join(f"{part} {row[f'{part}_seconds']:.1f}" for part in ("sampling", "scoring", "update"))
            yield (
                f"step, {name}",
                f"{row['seconds']:.1f} s ({parts}), {row['tokens_per_second']:,.0f} tokens/s",
                f"{row['peak_mib'] / 1024:.1f} GiB",
            )
        except (EOFError, OSError):
            yield f"step, {name}", "failed (see above)", ""


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--skip-trl", action="store_true")
    parser.add_argument("--only", choices=["sampling", "update", "steps"], help="one part: all of it takes longer than ten minutes")
    parser.add_argument("--bandwidth", type=float, default=3.35e12, help="bytes per second")
    parser.add_argument("--flops", type=float, default=8e14, help="per second, bfloat16")
    a = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not a.smoke:
        sys.exit("There is no CUDA GPU here. Try --smoke.")
    shape = TINY if a.smoke else QWEN_1_5B
    rows, length, prompts, tokens = (4, 8, 2, 32) if a.smoke else (256, 1024, 32, 16384)
    with_trl = bool(importlib.util.find_spec("trl")) and not a.skip_trl

    def card_of(model) -> Card:
        return Card(shape, model, a.bandwidth, a.flops)

    print(
        f"{torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}, torch {torch.__version__}\n\n| what | measured | bound or memory |\n|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder), shape)
        parts = {
            "sampling": lambda: sampling_rows(folder, card_of, rows, length, device, prompts),
            "update": lambda: update_rows(folder, card_of, length, device, tokens),
            "steps": lambda: step_rows(Path(folder), a.smoke, with_trl, device),
        }
        for name, part in parts.items():
            if a.only in (None, name):
                for line in part():
                    print(f"| {' | '.join(line)} |", flush=True)
            if device == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
