"""How soon does held-out pass@1 reach a level? The quick start's settings (method grpo), ours beside TRL with the same hyper-parameters.

    pip install -r tests/benchmarks/requirements.txt
    python tests/benchmarks/time_to_accuracy.py --level 0.8 --seeds 3

The clock of a side runs only while it trains: evaluations, by the same code on both sides, and the turns of the other side do not count.
Ours refills groups that are all right or all wrong, as the quick start does; TRL has no such thing, and learns from whatever it sampled.
"""

import argparse
import json
import statistics
from pathlib import Path

from sides import Side, Work, ours, trl


def measure(policy) -> float:
    """pass@1 on 128 held-out problems, 8 completions each, at temperature 1."""
    from rlvr.data import encode_prompts, load_problems
    from rlvr.evaluate import evaluate

    problems, prompts, _ = encode_prompts(policy.tokenizer, load_problems("tiny", "test", 128), "", 128)
    return evaluate(policy, problems, prompts, temperature=1.0, top_p=1.0, max_new_tokens=120).metrics["pass@1"][0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--level", type=float, default=0.8, help="held-out pass@1 to reach")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--every", type=int, default=2, help="steps between two evaluations")
    parser.add_argument("--trl-rows", type=int, default=64, help="micro-batch of TRL, in rows")
    parser.add_argument("--json", default="", help="write all curves here")
    a = parser.parse_args()
    curves = []
    for seed in range(a.seeds):
        for name, run in (("ours", ours), ("TRL", trl)):
            work = Work(prompts=32, mini_batch=16, lr=1e-3, linear_lr=True, steps=100, overlong_buffer=15, seed=seed, max_prompt_tokens=128,
                        filter_groups=name == "ours", trl_rows=a.trl_rows)  # fmt: skip
            side, seconds, cpu, curve = Side(run, work, measure), 0.0, 0.0, []
            for step in range(1, work.steps + 1):
                row = side.step()
                seconds, cpu = seconds + row["seconds"], cpu + row["cpu"]
                if step % a.every == 0:
                    curve.append((step, seconds, cpu, side.measure()))
                    print(f"seed {seed} {name:5} step {step}: pass@1 {curve[-1][3]:.3f} after {seconds:.0f} s, CPU {cpu:.0f} s", flush=True)
                    if curve[-1][3] >= a.level:
                        break
            side.kill()
            curves.append({"seed": seed, "side": name, "curve": curve})
    ends = {name: [c["curve"][-1] for c in curves if c["side"] == name] for name in ("ours", "TRL")}
    print(f"\n{'seed':6}{'ours: step':>12}{'s':>8}{'CPU s':>8}{'TRL: step':>12}{'s':>8}{'CPU s':>8}{'ratio, CPU':>12}")
    ratios = []
    for seed, (x, y) in enumerate(zip(*ends.values())):
        reached = [end[3] >= a.level for end in (x, y)]
        ratios += [y[2] / x[2]] if all(reached) else []
        shown = f"{ratios[-1]:12.2f}" if all(reached) else f"   not reached: {', '.join(n for n, r in zip(ends, reached) if not r)}"
        print(f"{seed:<6}{x[0]:12}{x[1]:8.0f}{x[2]:8.0f}{y[0]:12}{y[1]:8.0f}{y[2]:8.0f}{shown}")
    if ratios:
        print(f"median ratio, TRL to ours, CPU seconds, of {len(ratios)} seeds: {statistics.median(ratios):.2f}")
    if a.json:
        Path(a.json).write_text(json.dumps(curves, indent=1) + "\n")


if __name__ == "__main__":
    main()
