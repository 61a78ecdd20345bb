"""Arms of an experiment beside each other, for I3 and T3: what python -m rlvr.analysis.experiment wrote."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rlvr.analysis.compare_arms import BASELINE, CURVES, METRICS, arms_over_steps, differences, judge
from rlvr.analysis.compare_arms import paired_differences, power, read_results
from rlvr.analysis.experiment import ARMS
from rlvr.analysis.report.section import CANNOT, Panel, Section, Verdict, empty_section
from rlvr.run.figures import COLOURS

SHIPPED = Path(__file__).parents[3] / "tutorials" / "experiment"
NO_EXPERIMENT = "No experiment: this compares whole runs over seeds. First: python -m rlvr.analysis.experiment"


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


def arms_section(label: str, title: str, finding: Callable, experiment: Experiment | None) -> Section:
    """Arms of an experiment in the pairs of the paper's claims to a finding, under the sentences of a docstring."""
    out, results = empty_section(label, title, finding), experiment.results if experiment else []
    asked = [row for row in judge(results) if row["finding"] == label]
    if not asked:
        text = f"{experiment.folder} has none of its arms on equal seeds." if experiment else NO_EXPERIMENT
        out.verdicts.append(Verdict(CANNOT, text, run="experiment"))
        return out
    arms = dict.fromkeys([BASELINE, *(row[side] for row in asked for side in ("arm", "other"))])
    out.panels = _panels(experiment, [arm for arm in arms if differences(results, arm, "pass_at_1")])
    for row in asked:
        metric, found = METRICS[row["metric"]].heading, f"the paper: {'higher' if row['sign'] > 0 else 'lower'}"
        text = f"{ARMS[row['arm']].says}: {metric} {row.pop('text')} ({found}); {row['n']} pairs of seeds, 95 % interval over runs; "
        text += f"p = {row['p']:.2g}, after Holm's adjustment for all claims {row['p_holm']:.2g}."
        out.verdicts.append(Verdict(row["agrees"], text, run=f"{row['arm']} against {row['other']}"))
        out.rows.append(row)
    if words := power(results):
        out.shows = f"{out.shows} {words}"
    return out


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
