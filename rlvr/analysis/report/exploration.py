"""Exploration: what the models can still solve, and how they branch (Deng et al. 2025b, arXiv 2508.07534)."""

from math import comb

import numpy as np

from rlvr.analysis.exchange import overlaps, unsolved
from rlvr.analysis.report.run import Run
from rlvr.analysis.report.section import CANNOT, NO, OPEN, YES, Estimate, Panel, Verdict, bars, percent, points, section, verdict
from rlvr.evaluate import bootstrap_interval, pass_at_k, powers_up_to
from rlvr.run.figures import COLOURS, GREY

FLAT = 0.02  # pass@k is called flat if its interval ends below this rise; ours


def _clear(found: dict, problems: set[int]) -> int:
    """How many of these problems, solved by this model and never by the other, are that beyond chance: that all c right answers of 2 k fall
    on one model has probability C(k, c) / C(2 k, c), which must be below 0.02 (ours)."""
    k = found["samples"]
    return sum(comb(k, found["correct"][i]) / comb(2 * k, found["correct"][i]) < 0.02 for i in problems)


def _models(runs: list[Run]) -> dict[str, dict]:
    """What was explored, by model: the first model of the runs, and the last model of each."""
    found: dict[str, dict] = {}
    for run in (run for run in runs if run.exploration):
        first = f"start ({run.config.model})"
        if found.setdefault(first, run.exploration["first"]) != run.exploration["first"]:
            found[f"start of {run.name}"] = run.exploration["first"]
        found[run.name] = run.exploration["last"]
    return found


def _paired(first: dict, last: dict, k: int) -> tuple[float, float, float]:
    """Difference of pass@k of two models over the same problems, with its 95 % interval."""
    gaps = [pass_at_k(last["samples"], b, k) - pass_at_k(first["samples"], a, k) for a, b in zip(first["correct"], last["correct"])]
    return (float(np.mean(gaps)), *bootstrap_interval(gaps))


def _widened(runs: list[Run]) -> tuple[list[dict], list[Panel]]:
    """Rows and picture of E1."""
    values = {}
    for name, found in _models(runs).items():
        values[name] = {k: [pass_at_k(found["samples"], c, k) for c in found["correct"]] for k in powers_up_to(found["samples"])}

    def draw(axis):
        for (name, by_k), colour in zip(values.items(), [GREY, *COLOURS]):
            axis.plot(list(by_k), [np.mean(v) for v in by_k.values()], "o-", color=colour, markersize=3, label=name)
            low, high = zip(*map(bootstrap_interval, by_k.values()))
            axis.fill_between(list(by_k), low, high, color=colour, alpha=0.12, linewidth=0)
        axis.set_xscale("log", base=2)
        axis.set(xlabel="k", ylabel="pass@k", ylim=(0, 1.02))

    rows = [{"model": name, "k": k, "pass_at_k": float(np.mean(v))} for name, by_k in values.items() for k, v in by_k.items()]
    return rows, [Panel(draw, "pass-at-k", "pass@k before and after training", dict(loc="lower right"))]


@section("E1", "pass@k: does training widen what can be solved?", needs="exploration", together=_widened, flat=FLAT)
def pass_at_k_curves(run: Run) -> Verdict:
    """Share of held-out problems with at least one right answer among k, unbiased, for the model before training and after; the bands are
    95 % intervals over problems.

    The paper found: Reinforcement learning raises pass@1 and leaves pass@k at large k flat or lower.

    A no would be: pass@1 falls, or pass@k at the largest k rises by more than {flat}. Where the first model solves everything it cannot.
    """
    first, last = run.exploration["first"], run.exploration["last"]
    k = first["samples"]
    rise, low, high = _paired(first, last, k)
    beyond = Estimate(f"{percent(FLAT)} less the rise of pass@{k} (points)", *(FLAT - x for x in (rise, high, low)), points)
    estimates = [Estimate("rise of pass@1 (points)", *_paired(first, last, 1), points), beyond]
    text = f"pass@{k} {rise:+.3f} against the start, on {len(first['correct'])} problems."
    return verdict(estimates, text, cannot="" if 0 in first["correct"] else "The first model solves every problem: nothing is left to widen.")


def _unsolvable(runs: list[Run]) -> tuple[list[dict], list[Panel]]:
    """Rows and picture of E2."""
    models = _models(runs)
    # Problems of different sets are different, whatever their numbers.
    sets = {name: {(found["problems"], i) for i in unsolved(found["correct"])} for name, found in models.items()}
    counts = overlaps(sets) if any(sets.values()) else {}

    def draw(axis):
        bars(axis, ["\n+ ".join(key) for key in counts], list(counts.values()), "problems unsolvable for exactly these", color=COLOURS[0])
        axis.xaxis.get_major_locator().set_params(integer=True)

    rows = [{"model": name, "problems": len(found["correct"]), "k": found["samples"], "unsolvable": len(sets[name])}
            for name, found in models.items()]  # fmt: skip
    rows += [{"model": " + ".join(key), "unsolvable": n} for key, n in counts.items() if len(key) > 1]
    return rows, [Panel(draw, "unsolvable", "problems by the models that cannot solve them")] if counts else []


@section("E2", "Unsolvable problems, as sets", needs="exploration", together=_unsolvable)
def unsolvable_sets(run: Run) -> Verdict:
    """U_k: the held-out problems without a right answer among k completions of a model. Each bar counts the problems that are unsolvable
    for exactly the models named. The k of the paper is not known.

    The paper found: The sets are not nested: training makes some problems solvable and others unsolvable.

    A no would be: problems change over beyond chance in one direction, and none in the other. Not asked where the first model solves all.
    """
    before, after = run.exploration["first"], run.exploration["last"]
    first, last = unsolved(before["correct"]), unsolved(after["correct"])
    gained, lost = _clear(after, first - last), _clear(before, last - first)
    text = f"With k = {before['samples']}: {len(first)} of {len(before['correct'])} problems unsolvable before, {len(last)} after, "
    text += f"{len(first & last)} for both; {len(first - last)} became solvable, {len(last - first)} unsolvable. "
    text += f"Beyond chance: {gained} and {lost}."
    if not first:
        return Verdict(CANNOT, f"{text} The first model solves every problem: none could become solvable.")
    return Verdict(YES if gained and lost else NO if gained and not last - first or lost and not first - last else OPEN, text)


def _branching(runs: list[Run]) -> tuple[list[dict], list[Panel]]:
    """Rows and picture of E3."""
    models = _models(runs)

    def draw(axis):
        values, colours = [found["branching"] for found in models.values()], [GREY, *COLOURS][: len(models)]
        bars(axis, list(models), values, "branching factor (tokens)", color=colours)

    names = ("branching", "entropy", "different_answers", "length", "samples")
    rows = [{"model": model, **{name: found[name] for name in names}} for model, found in models.items()]
    return rows, [Panel(draw, "branching", "branching factor")]


@section("E3", "Branching factor and entropy of the policy", needs="exploration", together=_branching)
def branching(run: Run) -> Verdict:
    """How many tokens share 95 % of the probability at a position, mean over positions and then completions of held-out problems; and how
    many different endings the completions of a problem have.

    The paper found: The branching factor does not rise with reinforcement learning, and answers become less diverse.

    A no would be: a higher branching factor, or as many different answers, after training.
    """
    first, last = run.exploration["first"], run.exploration["last"]
    many, few = first["different_answers"], last["different_answers"]
    text = f"Branching factor {first['branching']:.2f} → {last['branching']:.2f}, entropy {first['entropy']:.3f} → {last['entropy']:.3f} "
    text += f"nats, different answers of {first['samples']} to a problem {many:.1f} → {few:.1f} ({percent(1 - few / many)} fewer)."
    return Verdict(YES if last["branching"] <= first["branching"] and few < many else NO, text)


SECTIONS = (pass_at_k_curves, unsolvable_sets, branching)
