"""Arms of an experiment beside each other, for I3 and T3: what python -m rlvr.analysis.experiment wrote."""

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rlvr.analysis.experiment import BASELINE, METRICS, SAYS, differences, mean_interval, read_results
from rlvr.run.figures import COLOURS, INK
from rlvr.analysis.report.run import Panel, Section, Verdict

SHIPPED = Path(__file__).parents[3] / "tutorials" / "experiment"


@dataclass
class Experiment:
    """results.csv and curves.csv of an experiment."""

    folder: Path
    results: list[dict]
    curves: list[dict]


def load_experiment(folder: Path) -> Experiment | None:
    """None if there is none in the folder."""
    if not all((folder / name).is_file() for name in ("results.csv", "curves.csv")):
        return None
    return Experiment(folder, read_results(folder / "results.csv"), read_results(folder / "curves.csv"))


def compare_arms(
    section: Section, experiment: Experiment | None, arms: list[str], claims: dict[tuple[str, str, str], int]
) -> Section:  # fmt: skip
    """Fill a section with arms against the baseline. claims: (arm, the other arm, metric) -> sign that the paper found
    for the difference of the two."""
    if experiment is None:
        text = "No experiment: this compares whole runs over seeds. First: python -m rlvr.analysis.experiment"
        section.verdicts.append(Verdict("experiment", None, text))
        return section
    there = [arm for arm in arms if arm == BASELINE or differences(experiment.results, arm, "pass_at_1")]
    if len(there) == 1:
        section.verdicts.append(
            Verdict("experiment", None, f"{experiment.folder} has none of these arms beside {BASELINE} on equal seeds.")
        )
        return section
    wanted = {metric for _, _, metric in claims} | {"pass_at_1", "entropy_late"}
    metrics = [m for m in METRICS if m in wanted]

    for column, label in (("pass_at_1", "held-out pass@1"), ("entropy", "token entropy (nats)")):

        def draw(axis, column=column, label=label):
            for colour, arm in zip(COLOURS, there):
                steps = sorted({r["step"] for r in experiment.curves if r["arm"] == arm})
                values = [[r[column] for r in experiment.curves if r["arm"] == arm and r["step"] == s] for s in steps]
                axis.plot(steps, [fmean(v) for v in values], color=colour, linewidth=1.6, label=arm)
                axis.fill_between(steps, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.12, linewidth=0)
            if column == "entropy":
                axis.set_yscale("log")
            axis.set(xlabel="step", ylabel=label)
            axis.legend()

        section.panels.append(Panel(f"arms-{column}", draw, "mean and range over seeds"))

    def draw_gaps(axis):
        others = [arm for arm in there if arm != BASELINE]
        axis.axvline(0, color=INK, linewidth=1)
        for y, arm in enumerate(others):
            gaps = differences(experiment.results, arm, "pass_at_1")
            mean, low, high = mean_interval(gaps)
            colour = COLOURS[there.index(arm)]
            if len(gaps) > 1:
                axis.plot([low, high], [y, y], color=colour, linewidth=2)
            axis.plot(gaps, [y] * len(gaps), "o", color=colour, alpha=0.4, markersize=4)
            axis.plot([mean], [y], "D", color=colour)
        axis.set_yticks(range(len(others)), others)
        axis.set_ylim(-0.7, len(others) - 0.3)
        axis.invert_yaxis()
        axis.set(xlabel=f"final pass@1 minus {BASELINE}, equal seeds")

    section.panels.append(Panel("arms-difference", draw_gaps, "mean, seeds and 95 % interval"))
    pairs = [(arm, BASELINE) for arm in there if arm != BASELINE]
    pairs += [pair for pair in dict.fromkeys((a, b) for a, b, _ in claims) if pair not in pairs and set(pair) <= set(there)]
    for arm, other in pairs:
        words, agree = [], []
        for metric in metrics:
            gaps = differences(experiment.results, arm, metric, other)
            if not gaps:
                continue
            mean, low, high = mean_interval(gaps)
            heading, digits, _ = METRICS[metric]
            sign = claims.get((arm, other, metric))
            numbers = {"n": len(gaps), "difference": mean, "low": low, "high": high, "paper_sign": sign or ""}
            section.rows.append({"arm": arm, "other": other, "metric": metric} | numbers)
            words.append(f"{heading} {mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]")
            if sign:
                agree.append(True if low * sign > 0 and high * sign > 0 else False if low * sign < 0 and high * sign < 0 else None)
        if not words:
            continue
        verdict = False if False in agree else True if agree and all(agree) else None
        tail = "" if verdict is not None else " Where an interval holds 0, the two cannot be told apart at this n."
        section.verdicts.append(Verdict(f"{arm} minus {other}", verdict, f"{SAYS[arm]}; n = {len(gaps)}: {'; '.join(words)}.{tail}"))
    return section
