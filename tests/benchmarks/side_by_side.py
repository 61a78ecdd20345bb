"""Seconds, CPU seconds and memory of a step: ours beside TRL's GRPOTrainer, in turns, on the same work.

    pip install -r tests/benchmarks/requirements.txt
    python tests/benchmarks/side_by_side.py                                the built-in model, 64 prompts x 8
    python tests/benchmarks/side_by_side.py --reward turns                no group is all right or all wrong, so that no row can be skipped
    python tests/benchmarks/side_by_side.py --model FOLDER --data FILE --prompts 8 --mini-batch 8 --max-new-tokens 128 --reward turns

Each side runs in a process of its own and waits while the other one works. Without TRL only our side is measured.
"""

import argparse
import dataclasses
import importlib.util
import json
import statistics
from pathlib import Path

from sides import Side, Work, ours, trl

PARTS = ["cpu", "sampling_cpu", "scoring_cpu", "update_cpu", "seconds", "sampling_seconds", "scoring_seconds", "update_seconds"]
OTHERS = ["tokens_per_second", "tokens", "peak_mib"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(Work):
        kind = {"action": "store_true"} if field.type is bool else {"type": field.type, "default": field.default}
        parser.add_argument("--" + field.name.replace("_", "-"), **kind)
    parser.add_argument("--pairs", type=int, default=5, help="measured steps of each side")
    parser.add_argument("--warm-up", type=int, default=1, help="steps before that")
    parser.add_argument("--our-dtype", default="", help="precision of our side, if another one than TRL's")
    parser.add_argument("--json", default="", help="write all figures here")
    a = vars(parser.parse_args())
    work = Work(**{f.name: a[f.name] for f in dataclasses.fields(Work) if f.name in a})
    sides = {"ours": Side(ours, dataclasses.replace(work, dtype=a["our_dtype"] or work.dtype))}
    if importlib.util.find_spec("trl"):
        sides["TRL"] = Side(trl, work)
    rows: dict[str, list[dict]] = {name: [] for name in sides}
    for i in range(a["warm_up"] + a["pairs"]):
        for name, side in sides.items():
            row = side.step()
            if i >= a["warm_up"]:
                rows[name].append(row)
            print(f"{name:5} step {i + 1}: {row['seconds']:.2f} s, CPU {row['cpu']:.2f} s, {row['tokens']:.0f} tokens", flush=True)
    for side in sides.values():
        side.kill()
    print("\n" + report(rows))
    if a["json"]:
        Path(a["json"]).write_text(
            json.dumps({"work": dataclasses.asdict(work), "our_dtype": a["our_dtype"], "rows": rows}, indent=1) + "\n"
        )


def report(rows: dict[str, list[dict]]) -> str:
    """Medians of each side, and the median over pairs of the ratio, TRL to ours."""
    lines = [f"{'median of a step':20}" + "".join(f"{name:>12}" for name in rows) + (f"{'TRL / ours':>12}" if len(rows) > 1 else "")]
    for key in PARTS + OTHERS:
        medians = [statistics.median(row[key] for row in side) for side in rows.values()]
        line = f"{key.replace('_', ' '):20}" + "".join(f"{m:12.2f}" if m < 1000 else f"{m:12.0f}" for m in medians)
        if len(rows) > 1 and key in PARTS and all(medians):
            line += f"{statistics.median(b[key] / a[key] for a, b in zip(*rows.values())):12.2f}"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
