"""Arms of an experiment compared: the numbers of a run, paired differences on equal seeds with Student's interval, tables and figures.

Everything here is made from results.csv (a row for each run) and curves.csv (a row for each evaluation), as lists of rows.
"""

import csv
from collections.abc import Iterator, Sequence
from itertools import groupby
from math import ceil, exp, log
from pathlib import Path
from statistics import fmean, median, stdev
from typing import NamedTuple

from rlvr.analysis.intervals import holm, mean_interval, p_value
from rlvr.common.text import interval, markdown_table, table
from rlvr.config import as_sentence
from rlvr.run.figures import COLOURS, INK, new_figure, read_metrics, save_figure, series

BASELINE = "grpo"
# Arms that are also compared with each other. All arms share the baseline's runs: if those were lucky, every arm looks worse than it is.
CONTRASTS = (("ppl-strong", "ppl-high"), ("pos-strong", "pos-early"), ("pos-plateau", "pos-strong"), ("positive-only", "negative-only"))


class Metric(NamedTuple):
    heading: str
    digits: int
    says: str
    ratio: bool = False  # two arms differ by a factor: the larger such a number is, the more it varies, and it is never below 0


METRICS = {  # column of results.csv -> what it is
    "pass_at_1": Metric("pass@1", 3, "held-out pass@1 after the last step (or the mean of as many of the last evaluations as the plan says)"),
    "area": Metric("area", 3, "mean height of the held-out pass@1 curve over the steps (area under it, divided by its length)"),
    "pass_at_max": Metric("pass@8", 3, "held-out pass@k after the last step, for the largest k (--eval-completions, 8)"),
    "entropy_late": Metric("late entropy", 4, "token entropy of training completions, mean of the last fifth of the steps, nats", True),
    "length_late": Metric("late length", 1, "tokens of a training completion, mean of the last fifth of the steps", True),
}
HEADINGS = [metric.heading for metric in METRICS.values()]


class Claim(NamedTuple):
    finding: str  # of the paper
    arm: str
    other: str
    metric: str
    sign: int  # of the difference that the paper found


CLAIMS = (  # all that an experiment is asked, written down before it: whatever else its tables show is for the next one to ask
    Claim("I3", "ppl-strong", BASELINE, "pass_at_1", 1),
    Claim("I3", "ppl-strong", BASELINE, "entropy_late", -1),
    Claim("I3", "ppl-high", BASELINE, "pass_at_1", -1),
    Claim("I3", "ppl-high", BASELINE, "entropy_late", 1),
    Claim("I3", "ppl-strong", "ppl-high", "pass_at_1", 1),
    Claim("I3", "ppl-strong", "ppl-high", "entropy_late", -1),
    Claim("T3", "pos-strong", BASELINE, "pass_at_1", 1),
    Claim("T3", "pos-strong", BASELINE, "entropy_late", 1),
    Claim("T3", "pos-strong", BASELINE, "length_late", 1),
    Claim("T3", "pos-early", BASELINE, "entropy_late", 1),
    Claim("T3", "pos-plateau", BASELINE, "pass_at_1", 1),
    Claim("T3", "pos-strong", "pos-early", "pass_at_1", 1),
)
CURVES = {"pass_at_1": "held-out pass@1", "entropy": "token entropy (nats)"}  # column of curves.csv -> what it is


# ---------------------------------------------------------------------------------------------------------------------------------------
# Numbers


def measure(folder: Path, average: int = 1) -> dict[str, float]:
    """The numbers of METRICS, from the metrics.csv of a finished run; pass_at_1 is the mean of the last `average` evaluations."""
    rows = read_metrics(folder)
    held_out = list(zip(*series(rows, "eval_pass_at_1")))
    trained = [r for r in rows if r["accuracy"] is not None]
    late = trained[-max(1, len(trained) // 5) :]
    numbers = {"pass_at_1": fmean(y for _, y in held_out[-average:]), "area": area(held_out)}
    numbers["pass_at_max"] = series(rows, "eval_pass_at_max")[1][-1]
    return numbers | {f"{name}_late": fmean(r[name] for r in late) for name in ("entropy", "length")}


def area(curve: Sequence[tuple[float, float]]) -> float:
    """Area under a curve of (x, y), divided by its length in x (trapezoids).

    >>> area([(0, 0.0), (10, 1.0), (20, 1.0)])
    0.75
    """
    pieces = [(x2 - x1) * (y1 + y2) / 2 for (x1, y1), (x2, y2) in zip(curve, curve[1:])]
    return sum(pieces) / (curve[-1][0] - curve[0][0])


def curves(arm: str, seed: int, folder: Path) -> Iterator[dict]:
    """Held-out pass@1 of a run at each of its evaluations, with the token entropy of the steps since the one before (step 0: held out)."""
    entropies = []
    for row in read_metrics(folder):
        if row["entropy"] is not None:
            entropies.append(row["entropy"])
        if row["eval_pass_at_1"] is not None and entropies:
            yield {"arm": arm, "seed": seed, "step": int(row["step"]), "pass_at_1": row["eval_pass_at_1"], "entropy": fmean(entropies)}
            entropies = []


def read_results(path: Path) -> list[dict]:
    """results.csv or curves.csv back as rows of numbers. Raises SettingError."""
    kinds = {"trunk": str, "arm": str, "seed": int, "step": int}
    with as_sentence(f"{path} is not what an experiment wrote", "Put it back."), open(path, newline="", encoding="utf-8") as file:
        return [{k: kinds.get(k, float)(v) for k, v in row.items()} for row in csv.DictReader(file)]


def differences(results: Sequence[dict], arm: str, metric: str, baseline: str = BASELINE) -> list[float]:
    """arm minus baseline on every seed that both have, in their order; of a metric with ratios, the difference of the logarithms. With
    trunks, the mean over seeds from every trunk: runs from one trunk are not independent. `results`: rows of results.csv."""
    scale = log if METRICS[metric].ratio else float
    by_seed = [{(r.get("trunk", ""), r["seed"]): scale(r[metric]) for r in results if r["arm"] == name} for name in (arm, baseline)]
    alike = groupby(sorted(by_seed[0].keys() & by_seed[1].keys()), lambda key: key[0] or key)
    return [fmean(by_seed[0][seed] - by_seed[1][seed] for seed in seeds) for _, seeds in alike]


def difference_text(gaps: Sequence[float], metric: str) -> str:
    """The mean difference with its interval, as text with the digits of the metric; a ratio is that of the geometric means.

    >>> difference_text([0.1, 0.2], "area"), difference_text([log(0.5), log(0.5)], "entropy_late")
    ('+0.150 [-0.485, +0.785]', 'x0.50 [0.50, 0.50]')
    """
    mean, low, high = mean_interval(gaps)
    if METRICS[metric].ratio:
        return "x" + interval(exp(mean), exp(low), exp(high), ".2f")
    return interval(mean, low, high, f"+.{METRICS[metric].digits}f")


def judge(results: Sequence[dict]) -> list[dict]:
    """What the runs say to each of CLAIMS whose arms share a seed: a row with the difference (a ratio, where the metric has them), its
    95 % interval, p, p after Holm's adjustment for all the claims asked, and whether it agrees: yes or no if that is below 0.05."""
    rows = []
    for claim in CLAIMS:
        if gaps := differences(results, claim.arm, claim.metric, claim.other):
            effect = mean_interval(gaps)
            scale = exp if METRICS[claim.metric].ratio else float
            numbers = dict(zip(("difference", "low", "high"), map(scale, effect)))
            rows.append(claim._asdict() | {"n": len(gaps)} | numbers | {"p": p_value(gaps), "text": difference_text(gaps, claim.metric)})
            rows[-1]["agrees"] = "yes" if effect[0] * claim.sign > 0 else "no"
    for row, adjusted in zip(rows, holm([row["p"] for row in rows])):
        row |= {"p_holm": adjusted, "agrees": row["agrees"] if adjusted < 0.05 else "open"}
    return rows


def residual_spread(results: Sequence[dict], metric: str) -> tuple[float, int]:
    """How much runs vary that is due neither to their arm nor to their seed: (standard deviation, degrees of freedom).

    All arms together say what five seeds of one cannot. Of the seeds that all arms have; left out are arms equal to the baseline on every
    seed, and those that vary over four times as much as the arm in the middle. NaN of fewer than two arms or seeds.
    """
    scale = log if METRICS[metric].ratio else float
    table: dict[str, dict[tuple, float]] = {}
    for r in results:
        table.setdefault(r["arm"], {})[r.get("trunk", ""), r["seed"]] = scale(r[metric])
    seeds = sorted(set.intersection(*map(set, table.values())))
    rows = [[values[seed] for seed in seeds] for arm, values in table.items() if arm == BASELINE or values != table.get(BASELINE)]
    if len(rows) < 2 or len(seeds) < 2:
        return float("nan"), 0
    usual = median(map(stdev, rows))
    rows = [row for row in rows if stdev(row) <= 4 * usual]
    by_seed, whole = [fmean(column) for column in zip(*rows)], fmean(map(fmean, rows))
    squares = sum((x - fmean(row) - m + whole) ** 2 for row in rows for x, m in zip(row, by_seed))
    df = (len(rows) - 1) * (len(seeds) - 1)
    return (squares / df) ** 0.5, df


def seeds_for(sd: float, gap: float) -> int:
    """Seeds for each of two arms, so that a true difference `gap` between them is found in four of five attempts, at the 5 % level. sd: of
    one run, as in `residual_spread`; a difference varies by the square root of two times it.

    >>> seeds_for(0.018, 0.015)
    25
    """
    return ceil((2.8 * 2**0.5 * sd / gap) ** 2 + 2)


# ---------------------------------------------------------------------------------------------------------------------------------------
# Tables


def comparison(results: Sequence[dict], metric: str, baseline: str = BASELINE) -> list[list[str]]:
    """A row for each arm: its name, n, mean and standard deviation over seeds, mean difference (or ratio) to the baseline, its interval."""
    digits, rows = METRICS[metric].digits, []
    for arm in dict.fromkeys(r["arm"] for r in results):
        values = [r[metric] for r in results if r["arm"] == arm]
        deviation = f"{stdev(values):.{digits}f}" if len(values) > 1 else "–"
        gaps = differences(results, arm, metric, baseline) if arm != baseline else []
        mean, _, inside = difference_text(gaps, metric).partition(" ") if gaps else ("", "", "")
        rows.append([arm, str(len(values)), f"{fmean(values):.{digits}f}", deviation, mean, "one pair" if len(gaps) == 1 else inside])
    return rows


def contrasts(results: Sequence[dict]) -> list[list[str]]:
    """A row for each pair of CONTRASTS whose arms were run: names, n, and for each metric the mean difference (or ratio) on equal seeds."""
    rows = []
    for arm, other in CONTRASTS:
        if gaps := differences(results, arm, "pass_at_1", other):
            cells = [difference_text(differences(results, arm, metric, other), metric) for metric in METRICS]
            rows.append([f"{arm} against {other}", str(len(gaps)), *cells])
    return rows


def claims_table(results: Sequence[dict]) -> list[list[str]]:
    """A row for each of CLAIMS that was asked, under CLAIMS_HEADER."""
    return [[r["finding"], f"{r['arm']} against {r['other']}", METRICS[r["metric"]].heading, "higher" if r["sign"] > 0 else "lower",
             r["text"], f"{r['p']:.4f}", f"{r['p_holm']:.3f}", r["agrees"]] for r in judge(results)]  # fmt: skip


CLAIMS_HEADER = ["finding", "arms", "metric", "the paper", "here", "p", "p after Holm", "agrees"]
GAP = 0.015  # of pass@1: what the paper's smaller gain is


def power(results: Sequence[dict]) -> str:
    """What an experiment of this size can see, as a sentence; empty if it is too small to say."""
    sd, df = residual_spread(results, "pass_at_1")
    text = f"A run's final pass@1 varies by {sd:.3f} beside its arm and its seed ({df} degrees of freedom): to see a difference of {GAP}"
    return f"{text} between two arms in four of five attempts takes {seeds_for(sd, GAP)} seeds of each." if df else ""


def text_tables(results: Sequence[dict], baseline: str = BASELINE) -> str:
    """The comparison for a terminal: a table for each metric."""
    parts = []
    for name, metric in METRICS.items():
        header = [metric.heading, "n", "mean", "sd", f"{'over' if metric.ratio else 'minus'} {baseline}", "95 % interval"]
        parts.append(f"{metric.says}\n" + table(header, comparison(results, name, baseline)))
    if pairs := contrasts(results):
        parts.append("arms against each other\n" + table(["", "n", *HEADINGS], pairs))
    if asked := claims_table(results):
        parts += ["what the paper claims\n" + table(CLAIMS_HEADER, asked), power(results)]
    return "\n\n".join(parts)


def markdown(results: Sequence[dict], baseline: str = BASELINE, says: dict[str, str] | None = None) -> str:
    """The comparison for a document: one table, a row for each arm. says: what each arm is."""
    arms = []
    for rows in zip(*(comparison(results, metric, baseline) for metric in METRICS)):
        arm, n = rows[0][:2]
        cells = [f"{mean} ± {sd}" + (f"<br>{gap} {inside}" if gap else "") for _, _, mean, sd, gap, inside in rows]
        arms.append([f"`{arm}`", (says or {}).get(arm, ""), n, *cells])
    text = markdown_table(["arm", "what it is", "n", *HEADINGS], arms)
    if pairs := contrasts(results):
        text += "\n\n" + markdown_table(["arms against each other", "n", *HEADINGS], pairs)
    if asked := claims_table(results):
        text += "\n\n" + markdown_table(CLAIMS_HEADER, asked) + "\n\n" + power(results)
    return text + "\n"


# ---------------------------------------------------------------------------------------------------------------------------------------
# Figures


def arms_over_steps(axis, rows: Sequence[dict], column: str, arms: Sequence[str]) -> None:
    """A column of curves.csv over the steps, on matplotlib axes: of each arm the mean over seeds.

    Up to four arms also show their range over seeds. Of more, only the first does, which is drawn thicker: the ranges would hide the lines.
    """
    for i, arm in enumerate(arms):
        steps = sorted({r["step"] for r in rows if r["arm"] == arm})
        values = [[r[column] for r in rows if r["arm"] == arm and r["step"] == step] for step in steps]
        width = 1.6 if len(arms) <= 4 else 2.2 if i == 0 else 1.3
        style = dict(color=COLOURS[i % len(COLOURS)], linestyle="-" if i < len(COLOURS) else "--", linewidth=width)
        axis.plot(steps, [fmean(v) for v in values], label=arm, **style)
        if len(arms) <= 4 or i == 0:
            axis.fill_between(steps, [min(v) for v in values], [max(v) for v in values], color=style["color"], alpha=0.12, linewidth=0)
    if column == "entropy":
        axis.set_yscale("log")
    axis.set(xlabel="step", ylabel=CURVES[column])


def paired_differences(axis, rows: dict[int, tuple[Sequence[float], str]]) -> None:
    """Differences on equal seeds, on matplotlib axes: each a dot, their mean a diamond, its interval a line. rows: y -> (them, colour)."""
    axis.axvline(0, color=INK, linewidth=1)
    for y, (gaps, colour) in rows.items():
        mean, low, high = mean_interval(gaps)
        if len(gaps) > 1:
            axis.plot([low, high], [y, y], color=colour, linewidth=2)
        axis.plot(gaps, [y] * len(gaps), "o", color=colour, alpha=0.4, markersize=4)
        axis.plot([mean], [y], "D", color=colour)


def draw_differences(results: Sequence[dict], path: Path, baseline: str = BASELINE) -> None:
    """A panel for each metric: the paired differences of each arm to the baseline."""
    arms = [arm for arm in dict.fromkeys(r["arm"] for r in results) if arm != baseline]
    figure = new_figure(12, 1.6 + 0.34 * len(arms))
    axes = figure.subplots(1, len(METRICS), sharey=True)
    for axis, metric in zip(axes, METRICS):
        pairs = {y: differences(results, arm, metric, baseline) for y, arm in enumerate(arms)}
        _draw_metric(axis, metric, {y: gaps for y, gaps in pairs.items() if gaps})
    axes[0].set_yticks(range(len(arms)), arms)
    axes[0].invert_yaxis()
    n = max((len(differences(results, arm, "pass_at_1", baseline)) for arm in arms), default=0)
    figure.suptitle(f"difference to {baseline} on equal seeds (or from equal trunks), n = {n}; 95 % interval, orange where it leaves out 0", fontsize=10)
    save_figure(figure, path)


def _draw_metric(axis, metric: str, pairs: dict[int, list[float]]) -> None:
    """One panel of `draw_differences`. An arm that is worlds apart must not flatten the others: its numbers take the place of its dots."""
    reach = [max(map(abs, gaps)) for gaps in pairs.values()]
    edge = 1.8 * max((r for r in reach if r <= 5 * median(reach)), default=0.0) or 1.0
    axis.set_xlim(-edge, edge)
    near = {}
    for y, gaps in pairs.items():
        mean, low, high = mean_interval(gaps)
        colour = COLOURS[1] if low > 0 or high < 0 else COLOURS[0]
        if abs(mean) <= edge:
            near[y] = gaps, colour
            continue
        x, ha = (0.95 * edge, "right") if mean > 0 else (-0.95 * edge, "left")
        axis.text(x, y, difference_text(gaps, metric).replace(" ", "\n", 1), fontsize=7, color=colour, va="center", ha=ha)
    paired_differences(axis, near)
    axis.set_title(f"{'log ' * METRICS[metric].ratio}{METRICS[metric].heading}", fontsize=10)
    axis.grid(axis="x", alpha=0.2)
    axis.tick_params(labelsize=8)


def draw_arms(rows: Sequence[dict], path: Path) -> None:
    """Held-out accuracy and entropy of every arm over the steps."""
    figure = new_figure(10, 5)
    for axis, column in zip(figure.subplots(1, 2), CURVES):
        arms_over_steps(axis, rows, column, list(dict.fromkeys(r["arm"] for r in rows)))
        axis.grid(alpha=0.2)
    for write_labels in (figure.axes[1].yaxis.set_major_formatter, figure.axes[1].yaxis.set_minor_formatter):
        write_labels(lambda value, _: f"{value:g}")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)
    save_figure(figure, path)
