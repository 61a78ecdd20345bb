"""What gpu.py has found, as Markdown: tables for tutorials/speed.md and tutorials/real_models.md, and what they decide."""

import json
from collections.abc import Sequence
from pathlib import Path

CHECKS = ("sampler", "packed", "graphs", "masters", "resume", "tests")
SPEED = ("sampling", "update", "steps", "others", "trl", "compiled")


def load(path: Path) -> dict:
    """gpu.json, or the folder that holds it. Raises ValueError."""
    file = path / "gpu.json" if path.is_dir() else path
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        assert isinstance(found["parts"], dict)
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise ValueError(f"{file} holds no results of gpu.py ({type(error).__name__}). Name the folder that --out had.") from None
    return found


def report(found: dict) -> str:
    """All of it."""
    parts = found["parts"]
    machines = sorted({f"{m['device']}, torch {m['torch']}" for part in parts.values() if (m := part.get("machine"))})
    head = f"On {' and '.join(machines) or 'no machine'}" + (", tiny shapes, which say only that it runs" if found.get("smoke") else "")
    blocks = [
        ("## For tutorials/speed.md", f"{head} (`python tests/benchmarks/gpu.py --all`)."),
        ("**The card**", table(("", "measured", ""), speed_rows(parts, ("card",)))),
        ("**Is it right on CUDA?**", table(("check", "measured", "wanted", ""), check_rows(parts))),
        ("**One layer's attention, packed rows of the 1.5B shape**", table(("what", "measured", ""), speed_rows(parts, ("attention",)))),
        ("**The shape of Qwen2.5-Math-1.5B, bfloat16, random weights**", table(("what", "measured", ""), speed_rows(parts, SPEED))),
        ("**The built-in model, the quick start's settings**", table(("", "each step eager", "steps recorded", ""), learning_rows(parts))),
        ("**What this decides**", bullets(decisions(parts)) if not found.get("smoke") else ""),
        ("**What is missing**", bullets(missing(parts))),
        ("## For tutorials/real_models.md", table(MEMORY_HEAD, memory_rows(parts))),
    ]
    return "\n\n".join(f"{title}\n\n{text}" for title, text in blocks if text) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Empty without rows."""
    lines = [head, ["---"] * len(head), *rows] if rows else []
    return "\n".join("| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in line) + " |" for line in lines)


def bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def rows_of(parts: dict, names: Sequence[str]) -> list[tuple[str, dict]]:
    return [(name, row) for name in names for row in parts.get(name, {}).get("rows", ())]


def shown(row: dict) -> str:
    value = row["value"]
    if value is None:
        return row["note"] if row["note"].startswith(("needs", "failed")) else ""
    digits = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{digits} {row['unit']}".strip()


def check_rows(parts: dict) -> list[list[str]]:
    verdict = {True: "yes", False: "**no**", None: ""}
    return [
        [f"{name}: {row['what']}", shown(row), row["want"], "; ".join(filter(None, [verdict[row["ok"]], extra(row)]))]
        for name, row in rows_of(parts, CHECKS)
    ]


def speed_rows(parts: dict, names: Sequence[str]) -> list[list[str]]:
    kinds = {"others": "sampling", "compiled": "update", "trl": "step", "steps": "step"}
    rows = []
    for name, row in rows_of(parts, names):
        kind = f"{kinds.get(name, name)}, " if name in SPEED else ""
        wrong = "**wrong** " if row["ok"] is False and row["value"] is not None else ""
        rows.append([kind + row["what"], shown(row), wrong + extra(row)])
    return rows


def extra(row: dict) -> str:
    """The note, unless it stands in the place of the value."""
    return "" if row["value"] is None and shown(row) else row["note"]


def learning_rows(parts: dict) -> list[list[str]]:
    eager, recorded = ({row["what"]: row for _, row in rows_of(parts, (name,))} for name in ("learning", "learning-graphs"))
    both = eager | recorded
    return [[what, *(shown(some[what]) if what in some else "" for some in (eager, recorded)), both[what]["note"]] for what in both]


MEMORY_HEAD = ("shape and changes", "trained", "precision", "GiB, estimated", "GiB, measured", "s/step")


def memory_rows(parts: dict) -> list[list[str]]:
    rows = []
    for _, row in rows_of(parts, ("memory",)):
        if row["value"] is None:
            rows.append([f"`{row['what']}`", "", "", "", shown(row), ""])
            continue
        changes = {name.replace("_", " "): value for name, value in row["changes"].items() if name not in ("device", "overlong_buffer")}
        what = ", ".join([f"`{row['what']}`", *(f"{name} {value}" for name, value in changes.items())])
        numbers = f"{row['estimate']:.1f}", f"{row['value']:.1f}", f"{row['seconds']:.1f}"
        rows.append([what, f"{row['trained'] / 1e6:,.0f} M", row["dtype"], *numbers])
    return rows


def by_way(parts: dict, name: str) -> dict[str, float]:
    """What was measured for each way of doing the same, of those that are right."""
    rows = [row for _, row in rows_of(parts, (name,)) if row.get("way") and row["value"]]
    return {row["way"]: row["value"] for row in rows}


def decisions(parts: dict) -> list[str]:
    """What only a GPU can judge, and the switch that follows from it."""
    said = []
    update = by_way(parts, "update")
    right = {row["what"].split(":")[0] for _, row in rows_of(parts, ("attention",)) if row["ok"]}
    ways = {way: rate for way, rate in update.items() if way == "blocks" or way in right}
    if "blocks" in ways and len(ways) > 1:
        best = max(ways, key=ways.get)
        gain = ways[best] / ways["blocks"]
        keep = "stay: nothing else is 10 % faster" if gain < 1.1 else f"go: `{best}` makes the update {gain:.2f} times as fast"
        said.append(f"Attention of packed rows (`Packed.attend` in rlvr/engine/attention.py): the blocks {keep}.")
    rates, times = by_way(parts, "sampling"), by_way(parts, "steps")
    checks = [row["ok"] for _, row in rows_of(parts, ("graphs",))]
    if "ours, CUDA graphs" in rates and "ours" in rates:
        gain = rates["ours, CUDA graphs"] / rates["ours"]
        right = bool(checks) and False not in checks and parts["graphs"]["state"] == "done"
        step = f", a whole step {times['ours'] / times['ours, CUDA graphs']:.2f} times" if len(times) > 1 else ""
        verdict = "become the default" if right and gain > 1.05 else "stay off"
        cause = "right" if right else "NOT right, or not checked"
        said.append(f"Recorded steps (`cuda_graphs` in rlvr/config.py): {cause}; sampling {gain:.2f} times as fast{step}. They {verdict}.")
    return said


def missing(parts: dict) -> list[str]:
    """Parts that did not end as they should, and rows that failed."""
    ends = {name: part for name, part in parts.items() if part["state"] != "done"}
    said = [f"{name}: {part['state']} after {part['seconds']:.0f} s ({part['why']})" for name, part in ends.items()]
    return said + [f"{name}: {row['what']}: {row['note']}" for name, row in rows_of(parts, parts) if row["note"].startswith("failed")]
