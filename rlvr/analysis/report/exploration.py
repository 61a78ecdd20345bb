"""Exploration: what the models can still solve, and how they branch (Deng et al. 2025b, arXiv 2508.07534)."""

from math import comb

import numpy as np

from rlvr.evaluate import bootstrap_interval, pass_at_k
from rlvr.analysis.exchange import overlaps, unsolved
from rlvr.run.figures import COLOURS, GREY
from rlvr.analysis.report.run import Panel, Run, Section, Verdict, missing, percent


FLAT = 0.02  # pass@k is called flat if its interval ends below this rise; ours


def _clear(found: dict, problems: set[int]) -> int:
    """How many of these problems, solved by this model and never by the other, are that beyond chance: that all c right answers of 2 k fall
    on one model has probability C(k, c) / C(2 k, c), which must be below 0.02 (ours)."""
    k = found["samples"]
    return sum(comb(k, found["correct"][i]) / comb(2 * k, found["correct"][i]) < 0.02 for i in problems)


def _models(runs: list[Run]) -> dict[str, dict]:
    """What was explored, by model: the first model of the runs, and the last model of each."""
    found: dict[str, dict] = {}
    for run in runs:
        if run.exploration:
            first = f"start ({run.config.model})"
            if first in found and found[first] != run.exploration["first"]:
                first = f"start of {run.name}"
            found.setdefault(first, run.exploration["first"])
            found[run.name] = run.exploration["last"]
    return found


def _ks(n: int) -> list[int]:
    return [k for k in (2**i for i in range(20)) if k < n] + [n]


def _paired(first: dict, last: dict, k: int) -> tuple[float, float, float]:
    """Difference of pass@k of two models over the same problems, with its 95 % interval."""
    gaps = [pass_at_k(last["samples"], b, k) - pass_at_k(first["samples"], a, k) for a, b in zip(first["correct"], last["correct"])]
    return (float(np.mean(gaps)), *bootstrap_interval(gaps))


def pass_at_k_curves(runs: list[Run]) -> Section:
    section = Section(
        "E1",
        "pass@k: does training widen what can be solved?",
        "Share of held-out problems with at least one right answer among k, unbiased, for the model before training and after; the "
        "bands are 95 % intervals over problems.",
        "Reinforcement learning raises pass@1 and leaves pass@k at large k flat or lower.",
    )
    models = _models(runs)

    def draw(axis):
        for (name, found), colour in zip(models.items(), [GREY, *COLOURS]):
            n, ks = found["samples"], _ks(found["samples"])
            values = [[pass_at_k(n, c, k) for c in found["correct"]] for k in ks]
            axis.plot(ks, [np.mean(v) for v in values], "o-", color=colour, markersize=3, label=name)
            bands = [bootstrap_interval(v) for v in values]
            axis.fill_between(ks, [b[0] for b in bands], [b[1] for b in bands], color=colour, alpha=0.12, linewidth=0)
        axis.set_xscale("log", base=2)
        axis.set(xlabel="k", ylabel="pass@k", ylim=(0, 1.02))
        axis.legend(loc="lower right")

    if models:
        section.panels.append(Panel("pass-at-k", draw, "pass@k before and after training"))
    for name, found in models.items():
        n = found["samples"]
        section.rows += [
            {"model": name, "k": k, "pass_at_k": float(np.mean([pass_at_k(n, c, k) for c in found["correct"]]))} for k in _ks(n)
        ]
    for run in runs:
        if not run.exploration:
            section.verdicts.append(missing(run))
            continue
        first, last = run.exploration["first"], run.exploration["last"]
        k = first["samples"]
        (d1, a1, b1), (dk, ak, bk) = _paired(first, last, 1), _paired(first, last, k)
        text = f"pass@1 {d1:+.3f} [{a1:+.3f}, {b1:+.3f}], pass@{k} {dk:+.3f} [{ak:+.3f}, {bk:+.3f}] against the start, "
        text += f"on {len(first['correct'])} problems."
        if all(found["correct"].count(0) == 0 for found in (first, last)):  # nothing left to widen, nothing lost
            section.verdicts.append(Verdict(run.name, None, f"{text} All problems are solvable for both: too easy to tell at large k."))
            continue
        section.verdicts.append(Verdict(run.name, True if a1 > 0 and bk < FLAT else False if ak > 0 else None, text))
    return section


def unsolvable_sets(runs: list[Run]) -> Section:
    section = Section(
        "E2",
        "Unsolvable problems, as sets",
        "U_k: the held-out problems without a right answer among k completions of a model. Each bar counts the problems that are "
        "unsolvable for exactly the models named. The k of the paper is not known.",
        "The sets are not nested: training makes some problems solvable and others unsolvable.",
    )
    models = _models(runs)
    # Problems of different sets are different, whatever their numbers.
    sets = {name: {(found["problems"], i) for i in unsolved(found["correct"])} for name, found in models.items()}
    counts = overlaps(sets) if sets and any(sets.values()) else {}

    def draw(axis):
        names = ["\n+ ".join(key) for key in counts]
        axis.barh(names, list(counts.values()), color=COLOURS[0])
        axis.invert_yaxis()
        axis.set(xlabel="problems unsolvable for exactly these")
        axis.xaxis.get_major_locator().set_params(integer=True)

    if counts:
        section.panels.append(Panel("unsolvable", draw, "problems by the models that cannot solve them"))
    section.rows += [
        {"model": name, "problems": len(models[name]["correct"]), "k": models[name]["samples"], "unsolvable": len(s)}
        for name, s in sets.items()
    ]
    section.rows += [{"model": " + ".join(key), "problems": "", "k": "", "unsolvable": n} for key, n in counts.items() if len(key) > 1]
    for run in runs:
        if not run.exploration:
            section.verdicts.append(missing(run))
            continue
        first, last = unsolved(run.exploration["first"]["correct"]), unsolved(run.exploration["last"]["correct"])
        k, n = run.exploration["first"]["samples"], len(run.exploration["first"]["correct"])
        text = (
            f"With k = {k}: {len(first)} of {n} problems unsolvable before, {len(last)} after, {len(first & last)} for both; "
            f"{len(first - last)} became solvable, {len(last - first)} unsolvable."
        )
        gained, lost = (_clear(run.exploration[name], gone) for name, gone in (("last", first - last), ("first", last - first)))
        text += f" Beyond chance: {gained} and {lost}."
        agrees = True if gained and lost else False if gained and not last - first or lost and not first - last else None
        section.verdicts.append(Verdict(run.name, agrees, text))
    return section


def branching(runs: list[Run]) -> Section:
    section = Section(
        "E3",
        "Branching factor and entropy of the policy",
        "How many tokens share 95 % of the probability at a position, mean over positions and then completions of held-out problems; "
        "and how many different endings the completions of a problem have.",
        "The branching factor does not rise with reinforcement learning, and answers become less diverse.",
    )
    models = _models(runs)

    def draw(axis):
        axis.barh(list(models), [m["branching"] for m in models.values()], color=[GREY, *COLOURS][: len(models)])
        axis.invert_yaxis()
        axis.set(xlabel="branching factor (tokens)")

    if models:
        section.panels.append(Panel("branching", draw, "branching factor"))
    names = ("branching", "entropy", "different_answers", "length", "samples")
    section.rows += [{"model": name, **{k: found[k] for k in names}} for name, found in models.items()]
    for run in runs:
        if not run.exploration:
            section.verdicts.append(missing(run))
            continue
        first, last = run.exploration["first"], run.exploration["last"]
        text = (
            f"Branching factor {first['branching']:.2f} → {last['branching']:.2f}, entropy {first['entropy']:.3f} → "
            f"{last['entropy']:.3f} nats, different answers "
            f"of {first['samples']} to a problem {first['different_answers']:.1f} → {last['different_answers']:.1f} "
            f"({percent(1 - last['different_answers'] / first['different_answers'])} fewer)."
        )
        agrees = last["branching"] <= first["branching"] and last["different_answers"] < first["different_answers"]
        section.verdicts.append(Verdict(run.name, agrees, text))
    return section


SECTIONS = (pass_at_k_curves, unsolvable_sets, branching)
