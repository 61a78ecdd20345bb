"""Peak memory of an update against vocabulary V and completion length T: chunked logits, as the library does it, beside all logits at once.

    python tests/benchmarks/memory.py

One completion of T tokens, a model of one narrow layer (so that the logits are what counts), float32, on the CPU. Each figure is the
highest resident memory of a process of its own over forward and backward pass, above what it held before; the gradient of the output layer,
which the optimiser needs anyway and which does not grow with T, is in it.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def measure(vocabulary: int, length: int, chunked: bool) -> float:
    """MiB, in this process."""
    sys.path.insert(0, str(ROOT))
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from rlvr.engine import scorer
    from rlvr.engine.attention import ATTENTION

    torch.set_num_threads(1)
    shape = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=vocabulary, max_position_embeddings=4096, tie_word_embeddings=True, **shape))
    model.set_attn_implementation(ATTENTION)
    if not chunked:
        scorer.LOGITS_AT_ONCE = 2**62
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins here
    before = _status("VmRSS")
    ids = torch.randint(vocabulary, (1, length))
    logp, _ = scorer.logp_and_entropy(model, [[1, 2, 3]], ids, torch.ones_like(ids, dtype=torch.bool))
    logp.sum().backward()
    return _status("VmHWM") - before


def _status(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def main() -> None:
    if len(sys.argv) > 1:
        print(measure(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "chunked"))
        return
    print(f"{'V':>8}{'T':>7}{'chunked, MiB':>15}{'all at once, MiB':>19}{'the logits alone':>19}")
    for vocabulary, length in ((38_000, 2048), (76_000, 2048), (152_000, 512), (152_000, 1024), (152_000, 2048), (152_000, 4096)):
        row = []
        for kind in ("chunked", "whole"):
            done = subprocess.run([sys.executable, __file__, str(vocabulary), str(length), kind], capture_output=True, text=True)
            row.append(float(done.stdout.split()[-1]) if done.returncode == 0 else float("nan"))
        print(f"{vocabulary:8}{length:7}{row[0]:15.0f}{row[1]:19.0f}{vocabulary * length * 4 / 2**20:19.0f}", flush=True)


if __name__ == "__main__":
    main()
