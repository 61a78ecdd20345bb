"""Arms of an experiment beside each other, for I3 and T3: what python -m rlvr.analysis.experiment wrote."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rlvr.analysis.compare_arms import (
    BASELINE, CURVES, METRICS, arms_over_steps, difference_text, differences, paired_differences, read_results,
)  # fmt: skip
from rlvr.analysis.experiment import ARMS
from rlvr.analysis.intervals import mean_interval
from rlvr.analysis.report.section import Panel, Section, Verdict, empty_section, is_above
from rlvr.run.figures import COLOURS

SHIPPED = Path(__file__).parents[3] / "tutorials" / "experiment"
NO_EXPERIMENT = "No experiment: this compares whole runs over seeds. First: python -m rlvr.analysis.experiment"
Claims = dict[tuple[str, str], dict[str, int]]  # (arm, the other arm) -> metric -> the sign of their difference that the paper found


@dataclass
class Experiment:
    """results.csv and curves.csv of an experiment."""

    folder: Path
    results: list[dict]
    curves: list[dict]


def load_experiment(folder: Path) -> Experiment | None:
    """None if the folder has none."""
    files = [folder / "results.csv", folder / "curves.csv"]
    return Experiment(folder, *map(read_results, files)) if all(file.is_file() for file in files) else None


def arms_section(label: str, title: str, finding: Callable, experiment: Experiment | None, claims: Claims) -> Section:
    """Arms of an experiment, each beside the baseline and in the pairs of the paper's claims, under the two sentences of a docstring."""
    out, results = empty_section(label, title, finding), experiment.results if experiment else []
    arms = dict.fromkeys(sum(claims, (BASELINE,)))
    present = [arm for arm in arms if differences(results, arm, "pass_at_1")]  # the baseline too, as it has its own seeds
    if len(present) < 2:
        text = f"{experiment.folder} has none of these arms beside {BASELINE} on equal seeds." if experiment else NO_EXPERIMENT
        out.verdicts.append(Verdict(None, text, run="experiment"))
        return out
    out.panels = _panels(experiment, present)
    wanted = {"pass_at_1", "entropy_late"}.union(*claims.values())
    pairs = dict.fromkeys([(arm, BASELINE) for arm in present if arm != BASELINE] + list(claims))
    for arm, other in pairs:
        if {arm, other} <= set(present) and differences(results, arm, "pass_at_1", other):
            verdict = compare_pair(experiment, arm, other, [m for m in METRICS if m in wanted], claims.get((arm, other), {}))
            out.verdicts.append(verdict)
            out.rows += verdict.rows
    return out


def compare_pair(experiment: Experiment, arm: str, other: str, metrics: Sequence[str], signs: dict[str, int]) -> Verdict:
    """What the paired differences of two arms say. signs: metric -> the sign that the paper found."""
    rows, words, agree = [], [], []
    for metric in metrics:
        gaps, sign = differences(experiment.results, arm, metric, other), signs.get(metric)
        mean, low, high = mean_interval(gaps)
        rows.append({"arm": arm, "other": other, "metric": metric, "n": len(gaps), "difference": mean, "low": low, "high": high,
                     "paper_sign": sign or ""})  # fmt: skip
        words.append(f"{METRICS[metric][0]} {difference_text(gaps, metric)}")
        if sign:
            agree.append(is_above(*sorted((low * sign, high * sign))))
    agrees = False if False in agree else True if agree and all(agree) else None
    tail = "" if agrees is not None else " Where an interval holds 0, the two cannot be told apart at this n."
    return Verdict(agrees, f"{ARMS[arm].says}; n = {len(gaps)}: {'; '.join(words)}.{tail}", rows, run=f"{arm} minus {other}")


def _panels(experiment: Experiment, arms: list[str]) -> list[Panel]:
    """Accuracy and entropy of the arms over the steps, and their differences from the baseline."""

    def draw_gaps(axis):
        others = {arm: colour for arm, colour in zip(arms, COLOURS) if arm != BASELINE}
        paired_differences(axis, {y: (differences(experiment.results, arm, "pass_at_1"), others[arm]) for y, arm in enumerate(others)})
        axis.set_yticks(range(len(others)), others)
        axis.set(ylim=(len(others) - 0.3, -0.7), xlabel=f"final pass@1 minus {BASELINE}, equal seeds")

    curves = {column: partial(arms_over_steps, rows=experiment.curves, column=column, arms=arms) for column in CURVES}
    panels = [Panel(draw, f"arms-{column}", "mean and range over seeds") for column, draw in curves.items()]
    return [*panels, Panel(draw_gaps, "arms-difference", "mean, seeds and 95 % interval")]
