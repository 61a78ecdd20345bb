"""The table of notebook 4, section 7: entropy spent too fast, and what helps. python -m tutorials.experiment.collapse

Seven ways to train, three seeds, 25 steps each, on one thread: a quarter of an hour. Each is measured on 100 held-out problems, eight
completions each at temperature 1. Writes collapse.csv beside this file, a row for each run.
"""

import contextlib
import io
import sys
import tempfile
from pathlib import Path

if not __package__:  # run by its path, which works from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rlvr.run.cli import parse_train
from rlvr.run.folder import run_folder
from rlvr.data import encode_prompts, load_problems
from rlvr.evaluate import evaluate
from rlvr.common.files import write_atomically
from rlvr.common.text import csv_text, progress_bar
from rlvr.policy import load_policy
from rlvr.train import train

COMMON = "--method grpo --steps 25 --prompts-per-step 16 --mini-batch-prompts 8 --sampling-rounds 1 --threads 1"
QUIET = "--eval-every 0 --final-eval-problems 0 --save-every 0 --keep-every 0 --show-every 0"
GREEDY = "--lr 0.003 --learn-from positive"
ARMS = {
    "usual": "",
    "usual, right answers only": "--learn-from positive",
    "greedy": GREEDY,
    "greedy, both signs": "--lr 0.003",
    "greedy, entropy coef 0.005": f"{GREEDY} --entropy-coef 0.005",
    "greedy, entropy coef 0.02": f"{GREEDY} --entropy-coef 0.02",
    "greedy, clip high 0.05": f"{GREEDY} --clip-high 0.05",
}
SEEDS = 3


def measure(flags: str, seed: int, out: str) -> dict[str, float]:
    """Train one run, then evaluate it: entropy in nats per token, pass@1, maj@8 and pass@8."""
    config = parse_train(f"{COMMON} {QUIET} {flags} --seed {seed} --out {out}".split())
    folder = run_folder(config)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train(config)
    policy = load_policy(str(folder))
    problems, prompts, _ = encode_prompts(policy.tokenizer, load_problems("tiny", "test", 100), instruction="", max_prompt_tokens=128)
    e = evaluate(policy, problems, prompts, completions=8, temperature=1.0, top_p=1.0, max_new_tokens=120)
    entropy = e.rollouts.entropy[e.rollouts.mask].mean().item()
    return {"entropy": round(entropy, 3)} | {k.replace("@", "_at_"): round(e.metrics[k][0], 3) for k in ("pass@1", "maj@8", "pass@8")}


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as out:
        for seed, arm in progress_bar([(seed, arm) for seed in range(SEEDS) for arm in ARMS], desc="runs"):
            rows.append({"arm": arm, "flags": ARMS[arm], "seed": seed} | measure(ARMS[arm], seed, out))
    rows.sort(key=lambda row: list(ARMS).index(row["arm"]))
    write_atomically(Path(__file__).with_suffix(".csv"), csv_text(rows))


if __name__ == "__main__":
    main()
