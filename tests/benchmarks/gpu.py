"""All that only a GPU can show, in one call of at most nine minutes: is it right there, how fast is it, how much memory does it take?

    python tests/benchmarks/gpu.py --all                     on a GPU: everything, in order of value
    python tests/benchmarks/gpu.py --only update sampling    some parts; what an earlier call has found of the others stays
    python tests/benchmarks/gpu.py --all --smoke             everything once with a tiny shape, on any machine: does it run?
    python tests/benchmarks/gpu.py --report runs/gpu         what was found, as tables in Markdown

Each part runs in a process of its own with a time limit of its own. After each, `gpu.json` in --out holds what is known so far. A part that
needs a package or a card that is not here says so. The bounds of the hardware come from a table of cards (on_gpu/cards.py).
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from on_gpu.processes import Options, Part, run_all, write_whole
from on_gpu.report import load, report

PARTS = [  # in order of value; the limits, in seconds, are two to four times what an H100 should need; the first pays for cold imports
    Part("card", "on_gpu.speed:card", 90, "name, memory, bandwidth and products of the card"),
    Part("sampler", "on_gpu.checks:sampler", 60, "sampler beside the plain engine"),
    Part("packed", "on_gpu.checks:packed", 40, "packed beside padded scoring, with gradients"),
    Part("graphs", "on_gpu.checks:graphs", 60, "recorded steps beside eager ones"),
    Part("masters", "on_gpu.checks:masters", 40, "bfloat16 with float32 masters beside float32"),
    Part("resume", "on_gpu.checks:resume", 60, "a run that was stopped beside one that was not"),
    Part("memory", "on_gpu.checks:memory", 100, "peak memory beside the estimate, three shapes"),
    Part("tests", "on_gpu.checks:tests", 60, "the tests of the project that ask for CUDA"),
    Part("sampling", "on_gpu.speed:sampling", 70, "sampling of the 1.5B shape"),
    Part("update", "on_gpu.speed:update", 100, "update of the 1.5B shape, with each way of attention"),
    Part("attention", "on_gpu.attention:attention", 90, "attention of packed rows alone: blocks, varlen_attn, FlexAttention"),
    Part("steps", "on_gpu.speed:steps", 130, "whole steps of the 1.5B shape"),
    Part("learning", "on_gpu.learning:eager", 100, "the built-in model learns"),
    Part("learning-graphs", "on_gpu.learning:recorded", 70, "the same with recorded steps"),
    Part("others", "on_gpu.speed:others", 90, "sampling by transformers and by the plain engine"),
    Part("trl", "on_gpu.speed:steps_of_trl", 150, "whole steps by TRL"),
    Part("compiled", "on_gpu.speed:compiled", 90, "update with torch.compile"),
]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [part.name for part in PARTS]
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--all", action="store_true", help="every part, in order of value")
    what.add_argument("--only", nargs="+", choices=names, metavar="PART", help="; ".join(f"{part.name}: {part.about}" for part in PARTS))
    what.add_argument("--report", type=Path, metavar="FOLDER_OR_JSON", help="print what was found as Markdown")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, on any machine")
    parser.add_argument("--skip-trl", action="store_true")
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="for all parts together; with --smoke four times that, and each part too"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder for gpu.json and report.md")
    parser.add_argument("--bandwidth", type=float, default=0.0, help="bytes per second; 0: from a table of cards, or measured")
    parser.add_argument("--flops", type=float, default=0.0, help="of bfloat16 per second; 0: likewise")
    parser.add_argument("--attention", choices=["blocks", "varlen", "flex"], default="blocks", help="of whole steps, ours")
    a = parser.parse_args(argv)
    try:
        if a.report:
            print(report(load(a.report)))
            return
        file = a.out / "gpu.json"
        known = load(file) if a.only and file.exists() else {}
        if known and known.get("smoke") != a.smoke:
            raise ValueError(f"{file} is of a call {'without' if a.smoke else 'with'} --smoke. Choose another --out.")
    except ValueError as error:
        sys.exit(str(error))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no process of a part is left behind
    options = Options(smoke=a.smoke, skip_trl=a.skip_trl, bandwidth=a.bandwidth, flops=a.flops, attention=a.attention)
    patience = 4 if a.smoke else 1  # a machine without a GPU may be a slow one
    parts = [replace(part, limit=patience * part.limit) for part in PARTS if a.all or part.name in a.only]
    found = run_all(parts, options, file, patience * 60 * a.minutes, known, lambda line: print(line, flush=True))
    text = report(found)
    write_whole(a.out / "report.md", text)
    print(f"\n{text}\n{file}, {a.out / 'report.md'}")
    bad = [name for name, part in found["parts"].items() if part["state"] not in ("done", "not here", "skipped")]
    for name in bad:
        print(f"\n{name} said last:\n{found['parts'][name].get('said', '')[-800:]}", file=sys.stderr)
    if all(part["why"] == "needs CUDA" for part in found["parts"].values()):
        sys.exit("There is no CUDA GPU here. Try --smoke.")


if __name__ == "__main__":
    main()
