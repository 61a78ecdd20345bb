"""Instance level, I1 to I3: in which completions the plateau learns (Deng et al. 2025)."""

from dataclasses import replace

import numpy as np

from rlvr.analysis.exchange import low_half
from rlvr.analysis.report.arms import Experiment, arms_section
from rlvr.analysis.report.changes import TOP, stages, too_few
from rlvr.analysis.report.run import Run, bootstrap, mean, share_of_largest
from rlvr.analysis.report.section import CANNOT, OPEN, Estimate, Panel, Section, Verdict, judge
from rlvr.analysis.report.section import percent, points, resampled, section, verdict
from rlvr.common.text import interval
from rlvr.run.figures import BLUE, GREEN, GREY, INK, ORANGE

FORKS = 10  # places that matter which a group must have to be compared; ours
FEW = 0.1  # if no more places than this share matter, half of those that do may be there by chance (probe.FORK)
DETECT = 0.1  # the difference in lost accuracy that should be found in four of five attempts; ours
HALVES = ("low perplexity", "high perplexity")


def low_of_their_group(log_ppl: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Which completions are in the low-perplexity half of those of their problem: bool [N]. Over all problems it would be the easy ones."""
    low = np.zeros(len(group), bool)
    for number in np.unique(group):
        low[group == number] = low_half(log_ppl[group == number])
    return low


@section("I1", "Where learning concentrates", needs="changes", top=percent(TOP))
def learning_in_low_perplexity(run: Run) -> Verdict:
    """Plateau steps made again. The completions of a group are cut at its median log-perplexity (the paper's cut is not known); shown is
    the share of the {top} of tokens that changed most that lies in each half, beside the half's share of all tokens. Tokens of low
    perplexity have little probability left to move, so this asks more of the low half than of the other.

    The paper found: The great majority of the largest updates lie in completions of low perplexity.

    A no would be: the low half has a smaller share of the largest changes than of all tokens, or than a half.
    """
    stage, mask = stages(run)[-1]
    low = low_of_their_group(run.changes["row_log_ppl"], run.changes["row_problem"])[run.changes["row"][mask]]
    size = np.abs(run.changes["change"][mask])
    share, a, b, base = share_of_largest(size, low, run.changes["problem"][mask], TOP)

    def draw(axis):
        axis.bar([0, 1], [100 * share, 100 * (1 - share)], 0.5, color=[GREEN, ORANGE])
        axis.errorbar([0], [100 * share], [[100 * (share - a)], [100 * (b - share)]], color=INK, capsize=4)
        axis.hlines([100 * base, 100 * (1 - base)], [-0.32, 0.68], [0.32, 1.32], color=INK, linestyle="--", label="share of all tokens")
        axis.set(xticks=[0, 1], xticklabels=["low perplexity", "high perplexity"], ylabel="share of the largest changes (%)", ylim=(0, 100))

    rows = [{"half": "low", "share_of_top": share, "low": a, "high": b, "base_rate": base}]
    rows.append({"half": "high", "share_of_top": 1 - share, "low": 1 - b, "high": 1 - a, "base_rate": 1 - base})
    border = max(base, 0.5)
    text = f"{stage.capitalize()}: {percent(share)} of the largest changes lie in the low-perplexity half, which holds {percent(base)} of "
    text += "the tokens."
    estimates = [Estimate(f"share in the low half less {percent(border)} (points)", *(x - border for x in (share, a, b)), points)]
    return verdict(estimates, text, rows, [Panel(draw)], cannot=too_few(run))


def drop(rows: list[dict]) -> float:
    """Mean loss of accuracy by a replacement: right ends after the token as it was, less right ends after the other one."""
    return mean([r["kept"] - r["replaced"] for r in rows])


def _mean(rows: list[dict], name: str) -> float:
    return mean([row[name] for row in rows])


def replacement_panel(groups: dict[str, list[dict]], xlabel: str) -> Panel:
    """Accuracy after the token as it was, and after its replacement, where it matters; bars are 95 % intervals over places."""

    kinds = (("kept", -0.18, BLUE, "token as it was"), ("replaced", 0.18, ORANGE, "another token"))

    def draw(axis):
        for i, rows in enumerate(groups.values()):
            for key, shift, colour, label in kinds:
                height, (low, high) = _mean(rows, key), bootstrap(lambda sample: _mean(sample, key), rows)
                axis.bar([i + shift], [height], 0.32, color=colour, label=None if i else label)
                axis.errorbar([i + shift], [height], [[max(0, height - low)], [max(0, high - height)]], color=GREY, capsize=3)
        axis.set_xticks(range(len(groups)), [f"{name}\n(n = {len(rows)})" for name, rows in groups.items()])
        axis.set(ylabel="right ends", ylim=(0, 1.02), xlabel=xlabel)

    return Panel(draw, legend=dict(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2))


def matters(entry: dict) -> bool:
    """Whether the answer depends on the token: only such places were finished again to measure the drop."""
    return entry["kept"] is not None


def compare_drops(groups: dict[str, list[dict]], smaller: str, larger: str, xlabel: str) -> Verdict:
    """The drops of two groups of places, where the token matters, and their difference. The paper found that `smaller` has the smaller one.

    Cannot be asked if hardly more places matter than pass by chance, or if a difference of DETECT would be missed more often than once in
    five attempts, as the spread of the drops tells.
    """
    forks = {name: [entry for entry in entries if matters(entry)] for name, entries in groups.items()}
    places, found = sum(map(len, groups.values())), sum(map(len, forks.values()))
    words = [f"{name} {len(forks[name])} of {len(entries)}" for name, entries in groups.items()]
    text = f"Places where the answer depends on the token: {'; '.join(words)}."
    rows = []
    for name, entries in forks.items():
        low, high = bootstrap(drop, entries)
        means = {key: _mean(entries, key) for key in ("kept", "replaced", "entropy")}
        row = {"group": name, "places": len(groups[name]), "n": len(entries), **means}
        rows.append(row | {"drop": drop(entries), "low": low, "high": high})
    if min(map(len, forks.values())) < FORKS or found <= FEW * places:
        return Verdict(CANNOT, f"{text} Too few to compare (one in twenty passes by chance): what is undecided is wording.", rows)
    by_problem: dict[int, list] = {}
    for name in (smaller, larger):
        for entry in forks[name]:
            by_problem.setdefault(entry["problem"], []).append((name, entry))

    def gap(problems: list[list]) -> float:
        drops = {name: drop([entry for problem in problems for key, entry in problem if key == name]) for name in (smaller, larger)}
        return drops[larger] - drops[smaller]

    problems = list(by_problem.values())
    estimate = resampled(f"drop of {larger} less that of {smaller} (points)", gap, problems, form=points)
    power = 2.8 * (estimate.high - estimate.low) / 3.92
    lost = (f"{row['group']} " + interval(row["drop"], row["low"], row["high"], points) for row in rows)
    text += f" There, replacing it cost, in points of accuracy: {'; '.join(lost)}. So many places show a difference of {100 * power:.0f} "
    text += "points in four of five attempts."
    short = judge([estimate]) == OPEN and power > DETECT
    need = f"To see {100 * DETECT:.0f} points takes about {(power / DETECT) ** 2:.1f} times as many (--completions)."
    found = verdict([estimate], text, rows, [replacement_panel(forks, xlabel)])
    return replace(found, agrees=CANNOT, text=f"{found.text} {need}") if short else found


@section("I2", "Completions of low perplexity are more robust", needs="replacements")
def low_perplexity_is_robust(run: Run) -> Verdict:
    """In right completions of held-out problems the most undecided token, early, in the middle and late, is replaced by another one, drawn
    from the policy without it, of those with a probability of at least 0.05; both ways are finished afresh several times. It is the
    same for all completions: the likeliest other token would repair those of high perplexity, where a rare token often stands.
    Compared are places where the answers depend on the token; accuracy is measured with other continuations than those that tell so.
    Completions are cut at the median log-perplexity of the right ones of their problem. The paper's rules are not known; these are ours.

    The paper found: Replacing tokens of high entropy costs less accuracy in completions of low perplexity.

    A no would be: it costs more there.
    """
    completions = {entry["completion"]: entry for entry in run.replacements}
    log_ppl, problem = (np.array([entry[name] for entry in completions.values()]) for name in ("log_ppl", "problem"))
    low = dict(zip(completions, low_of_their_group(log_ppl, problem)))
    several = {number for number in problem if (problem == number).sum() > 1}
    rows = [entry for entry in run.replacements if entry["problem"] in several]
    groups = {name: [entry for entry in rows if low[entry["completion"]] == (name == "low perplexity")] for name in HALVES}
    return compare_drops(groups, *HALVES, "completion")


def weights_by_perplexity(runs: list[Run], experiment: Experiment | None) -> Section:
    """Runs in which completions of low perplexity weigh more (ppl-strong, the paper's method at a strength that shows), none (grpo), or
    those of high perplexity (ppl-high): mean and range over seeds, and differences on equal seeds, of the entropy as ratios. A claim is
    answered where p is below 0.05 after Holm's adjustment for all the claims of I3 and T3.

    The paper found: Low perplexity first: better accuracy and lower entropy. High perplexity first: worse accuracy and a sharp rise of
    entropy.

    A no would be: a difference of the other sign that holds after the adjustment.
    """
    return arms_section("I3", "Weighting completions by perplexity", weights_by_perplexity, experiment)


SECTIONS = (learning_in_low_perplexity, low_perplexity_is_robust, weights_by_perplexity)
