"""The token microscope: completions through training, every token with its numbers, as data for page.js."""

from collections import defaultdict
from math import exp

from rlvr.analysis.exchange import right_and_wrong, spread
from rlvr.analysis.report.run import Run
from rlvr.run.defects import defects

FRAMES = 50  # steps that the slider goes through, besides the replayed ones
CARDS = 8  # completions of each, fewer where they are long
TOKENS = 60_000  # about so many in all, so that the page stays quick
FIXED = 8  # completions of the first model that all later models read


def _rounded(values: list[float]) -> list[float]:
    return [round(v, 3) for v in values]


def microscope_data(run: Run) -> dict:
    """One run for the page: name, plateau, steps and fixed (lists of frames), prompts, vocab.

    A frame has a step and items; an item has p (index of its prompt), ok, bad (defects), ids, and for each token H (entropy), L (log-prob),
    A (shaped advantage); from a replayed step also D (change of probability), G (gradient length), top (likeliest tokens), P and Q (their
    probabilities before and after).
    """
    prompts: dict[str, int] = {}
    used: set[int] = set()
    solution_steps = 0 if run.config.data == "tiny" else None  # 0: chatter can be told, skipped steps cannot

    def item(row: dict) -> dict:
        used.update(row["token_ids"])
        bad = [name.replace("_", " ") for name, has in defects(row["completion"], row["finished"], solution_steps).items() if has]
        out = {"p": prompts.setdefault(row["prompt"], len(prompts)), "ok": row["correct"], "bad": bad,
               "ids": row["token_ids"], "H": _rounded(row["entropy"]), "L": _rounded(row["logp"])}  # fmt: skip
        if "advantage" in row:
            out["A"] = _rounded(row["advantage"])
        if "logp_after" in row:
            out["D"] = [round(exp(after) - exp(before), 4) for before, after in zip(row["logp"], row["logp_after"])]
            out["Q"] = row["top_p_after"]
        if "top" in row:
            used.update(t for tops in row["top"] for t in tops)
            out |= {"G": _rounded(row["grad_norm"]), "top": row["top"], "P": row["top_p"]}
        return out

    logged, replayed, fixed = (_by_step(rows) for rows in (run.completions, run.replayed, run.fixed))
    chosen = set(spread(sorted(logged), FRAMES))
    length = sum(len(row["token_ids"]) for row in run.completions) / max(len(run.completions), 1)
    cards = max(2, min(CARDS, int(TOKENS / max(len(chosen) * length, 1))))
    shown = {step: rows[:: max(1, len(rows) // cards)][:cards] for step, rows in logged.items() if step in chosen} | replayed
    frames = [{"step": step, "replayed": step in replayed, "items": list(map(item, rows))} for step, rows in sorted(shown.items())]
    first = next(iter(fixed.values()), [])
    few = [first[i]["number"] for i in right_and_wrong([row["correct"] for row in first], FIXED)]
    read = {step: [row for row in rows if row["number"] in few] for step, rows in sorted(fixed.items())}
    still = [{"step": step, "replayed": False, "items": list(map(item, rows))} for step, rows in read.items()]
    vocab = {str(t): run.token(t) if t not in run.tokenizer.all_special_ids else "" for t in sorted(used)}
    return {"name": run.name, "plateau": run.plateau, "steps": frames, "fixed": still, "prompts": list(prompts), "vocab": vocab}


def _by_step(rows: list[dict]) -> dict[int, list[dict]]:
    """Completions by their step; empty ones are left out."""
    out = defaultdict(list)
    for row in rows:
        if row["token_ids"]:
            out[row["step"]].append(row)
    return out
