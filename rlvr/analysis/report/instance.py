"""Instance level, I1 to I3: in which completions the plateau learns (Deng et al. 2025)."""

import numpy as np

from rlvr.analysis.exchange import low_half
from rlvr.analysis.report.arms import Experiment, arms_section
from rlvr.analysis.report.changes import TOP, stages
from rlvr.analysis.report.run import Run, bootstrap, mean, share_of_largest
from rlvr.analysis.report.section import Panel, Section, Verdict, is_above, percent, section
from rlvr.common.text import interval
from rlvr.run.figures import BLUE, GREEN, GREY, INK, ORANGE


def low_of_their_step(changes: dict[str, np.ndarray]) -> np.ndarray:
    """Which completions of the replayed steps are in the low-perplexity half of their step: bool [rows]."""
    low = np.zeros(len(changes["row_step"]), bool)
    for step in np.unique(changes["row_step"]):
        rows = changes["row_step"] == step
        low[rows] = low_half(changes["row_log_ppl"][rows])
    return low


@section("I1", "Where learning concentrates", needs="changes", top=percent(TOP))
def learning_in_low_perplexity(run: Run) -> Verdict:
    """Plateau steps made again. The completions of a step are cut at their median log-perplexity (the paper's cut is not known); shown is
    the share of the {top} of tokens that changed most that lies in each half, beside the half's share of all tokens.

    The paper found: The great majority of the largest updates lie in completions of low perplexity.
    """
    stage, mask = stages(run)[-1]
    size, low = np.abs(run.changes["change"][mask]), low_of_their_step(run.changes)[run.changes["row"][mask]]
    share, a, b, base = share_of_largest(size, low, run.changes["problem"][mask], TOP)

    def draw(axis):
        axis.bar([0, 1], [100 * share, 100 * (1 - share)], 0.5, color=[GREEN, ORANGE])
        axis.errorbar([0], [100 * share], [[100 * (share - a)], [100 * (b - share)]], color=INK, capsize=4)
        axis.hlines([100 * base, 100 * (1 - base)], [-0.32, 0.68], [0.32, 1.32], color=INK, linestyle="--", label="share of all tokens")
        axis.set(xticks=[0, 1], xticklabels=["low perplexity", "high perplexity"], ylabel="share of the largest changes (%)", ylim=(0, 100))

    rows = [{"half": "low", "share_of_top": share, "low": a, "high": b, "base_rate": base}]
    rows.append({"half": "high", "share_of_top": 1 - share, "low": 1 - b, "high": 1 - a, "base_rate": 1 - base})
    held = f"{percent(base)} of the tokens"
    text = f"{interval(share, a, b, percent, ' of the largest changes')} lie in the low-perplexity half, which holds {held}."
    agrees = True if a > max(base, 0.5) else False if b < base else None
    if stage != "plateau":
        agrees, text = None, f"{text} No step of the plateau could be replayed, so this is the rising stage."
    return Verdict(agrees, text, rows, [Panel(draw)])


def drop(rows: list[dict]) -> float:
    """Mean loss of accuracy by a replacement: right ends after the token as it was, less right ends after the other one."""
    return mean([r["kept"] - r["replaced"] for r in rows])


def _mean(rows: list[dict], name: str) -> float:
    return mean([row[name] for row in rows])


def replacement_panel(groups: dict[str, list[dict]], xlabel: str) -> Panel:
    """Accuracy after the token as it was, and after its replacement, for each group; bars are 95 % intervals over completions."""

    kinds = (("kept", -0.18, BLUE, "token as it was"), ("replaced", 0.18, ORANGE, "likeliest other token"))

    def draw(axis):
        for i, rows in enumerate(groups.values()):
            for key, shift, colour, label in kinds:
                height, (low, high) = _mean(rows, key), bootstrap(lambda sample: _mean(sample, key), rows)
                axis.bar([i + shift], [height], 0.32, color=colour, label=None if i else label)
                axis.errorbar([i + shift], [height], [[max(0, height - low)], [max(0, high - height)]], color=GREY, capsize=3)
        axis.set_xticks(range(len(groups)), [f"{name}\n(n = {len(rows)})" for name, rows in groups.items()])
        axis.set(ylabel="right ends", ylim=(0, 1.02), xlabel=xlabel)

    return Panel(draw, legend=dict(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2))


def compare_drops(groups: dict[str, list], smaller: str, larger: str, xlabel: str, fewest: int, paired: bool = False) -> Verdict:
    """The drops of two groups and their difference, with intervals. The paper found that `smaller` has the smaller one.

    fewest: completions that a group must have to be compared; ours. paired: both groups hold entries of the same completions, which are
    drawn together.
    """
    panel = replacement_panel(groups, xlabel)
    if min(map(len, groups.values())) < fewest:
        return Verdict(None, f"One of the two groups has fewer than {fewest} completions.", panels=[panel])
    rows, words = [], []
    for name, entries in groups.items():
        low, high = bootstrap(drop, entries)
        row = {"group": name, "n": len(entries), "kept": _mean(entries, "kept"), "replaced": _mean(entries, "replaced")}
        rows.append(row | {"drop": drop(entries), "low": low, "high": high, "entropy": _mean(entries, "entropy")})
        words.append(f"{name} {_points(drop(entries), low, high, ' points')}")
    both = [groups[smaller], groups[larger]]
    if paired:
        by_id = [{entry["completion"]: entry for entry in entries} for entries in both]
        both = [[found[i] for i in sorted(by_id[0].keys() & by_id[1].keys())] for found in by_id]

    def gap(less: list[dict], more: list[dict]) -> float:
        return drop(more) - drop(less)

    low, high = bootstrap(gap, *both, draws=500, paired=paired)
    text = f"Model of step {next(iter(groups.values()))[0]['step']}. Accuracy lost by the replacement: {'; '.join(words)}. "
    text += f"Difference {_points(gap(*both), low, high)}."
    return Verdict(is_above(low, high), text, rows, [panel])


def _points(mean: float, low: float, high: float, unit: str = "") -> str:
    return interval(100 * mean, 100 * low, 100 * high, "+.1f", unit)


@section("I2", "Completions of low perplexity are more robust", needs="replacements")
def low_perplexity_is_robust(run: Run) -> Verdict:
    """In completions of held-out problems the token of highest entropy is replaced by the likeliest other one (the first choice, where
    another was drawn), and both ways are finished afresh several times. Completions are cut at their median log-perplexity. Which and
    how many tokens the paper replaced is not known; one token, and this rule, are ours.

    The paper found: Replacing tokens of high entropy costs less accuracy in completions of low perplexity.
    """
    rows = [row for row in run.replacements if row["where"] == "anywhere"]
    low = low_half(np.array([row["log_ppl"] for row in rows]))
    halves = {"low perplexity": low, "high perplexity": ~low}
    groups = {name: [row for row, inside in zip(rows, half) if inside] for name, half in halves.items()}
    return compare_drops(groups, "low perplexity", "high perplexity", "completion", fewest=2)


def weights_by_perplexity(runs: list[Run], experiment: Experiment | None) -> Section:
    """Runs in which completions of low perplexity weigh more (ppl-strong, the paper's method at a strength that shows), none (grpo), or
    those of high perplexity (ppl-high): mean and range over seeds, and the difference of final accuracy on equal seeds.

    The paper found: Low perplexity first: better accuracy and lower entropy. High perplexity first: worse accuracy and a sharp rise of
    entropy.
    """
    claims = {
        ("ppl-strong", "grpo"): {"pass_at_1": 1, "entropy_late": -1},
        ("ppl-high", "grpo"): {"pass_at_1": -1, "entropy_late": 1},
        ("ppl-strong", "ppl-high"): {"pass_at_1": 1, "entropy_late": -1},
    }
    return arms_section("I3", "Weighting completions by perplexity", weights_by_perplexity, experiment, claims)


SECTIONS = (learning_in_low_perplexity, low_perplexity_is_robust, weights_by_perplexity)
