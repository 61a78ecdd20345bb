"""The experiment: the same arms on the same seeds, one command that goes on where it was stopped, one CSV, one table with intervals.

    python -m rlvr.analysis.experiment                                     all arms, 5 seeds: under two hours on 2 cores
    python -m rlvr.analysis.experiment --arms grpo pos-strong --seeds 3    some of them
    python -m rlvr.analysis.experiment --train="--model my_model --data gsm8k"

An arm is a name and the flags of train.py that make it. Runs of one seed have the same problems, in the same order, and begin with the same
random draws, so arms are compared seed by seed: the mean of the differences to the baseline, with Student's interval.
"""

import csv
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev

from tqdm import tqdm

from rlvr.config import SettingError
from rlvr.run.cli import parse_command, parse_train, run_program
from rlvr.run.settings import MAY_CHANGE, check_can_write, read_config
from rlvr.run.figures import COLOURS, GREY, read_metrics
from rlvr.common.files import write_atomically
from rlvr.common.text import csv_text, say, table

BASELINE = "grpo"
# Strong enough to matter: at 0.2 the factor reaches its clamp at one standard deviation, 0.4 is nearly half of a usual advantage.
STRONG_PPL, STRONG_POS = 0.2, 0.4
ARMS = {
    BASELINE: "--method grpo",
    "ppl": "--method ppl",
    "ppl-strong": f"--method ppl --ppl-alpha {STRONG_PPL}",
    "ppl-high": f"--method ppl --ppl-alpha {STRONG_PPL} --ppl-direction high",
    "pos": "--method pos",
    "pos-strong": f"--method pos --pos-alpha {STRONG_POS}",
    "pos-early": f"--method pos --pos-alpha {STRONG_POS} --pos-direction early",
    "pos-plateau": f"--method pos --pos-alpha {STRONG_POS} --shape-start plateau",
    "positive-only": "--method grpo --learn-from positive",
    "negative-only": "--method grpo --learn-from negative",
    "ppl-dropped": f"--method ppl --ppl-alpha {STRONG_PPL} --no-ppl-apply",
}
SAYS = {  # for the table: what an arm is
    BASELINE: "the baseline",
    "ppl": "low perplexity weighs more, α = 0.01 as released",
    "ppl-strong": f"low perplexity weighs more, α = {STRONG_PPL}",
    "ppl-high": f"high perplexity weighs more, α = {STRONG_PPL}",
    "pos": "bonus for late tokens, α = 0.1 as released",
    "pos-strong": f"bonus for late tokens, α = {STRONG_POS}",
    "pos-early": f"bonus for early tokens, α = {STRONG_POS}",
    "pos-plateau": f"bonus for late tokens, α = {STRONG_POS}, from the plateau on",
    "positive-only": "learns from right answers alone",
    "negative-only": "learns from wrong answers alone",
    "ppl-dropped": "perplexity factor computed and dropped, as in the released code",
}
# Arms that are also compared with each other. All arms share the baseline's runs: if those were lucky, every arm looks worse than it is.
CONTRASTS = (("ppl-strong", "ppl-high"), ("pos-strong", "pos-early"), ("pos-plateau", "pos-strong"), ("positive-only", "negative-only"))
# One round of sampling costs a third less time than two, and every arm then sees the same problems in every step.
COMMON = "--sampling-rounds 1 --threads 1 --save-every 10 --show-every 0"
METRICS = {  # column of results.csv -> heading, digits, what it is
    "pass_at_1": ("pass@1", 3, "held-out pass@1 after the last step"),
    "area": ("area", 3, "mean height of the held-out pass@1 curve over the steps (area under it, divided by its length)"),
    "pass_at_max": ("pass@8", 3, "held-out pass@k after the last step, for the largest k (--eval-completions, 8)"),
    "entropy_late": ("late entropy", 4, "token entropy of training completions, mean of the last fifth of the steps, nats"),
    "length_late": ("late length", 1, "tokens of a training completion, mean of the last fifth of the steps"),
}


@dataclass
class ExperimentConfig:
    """Run arms over seeds, side by side, and compare each with the baseline on equal seeds. Stopped (Ctrl-C) and started again, it goes on.

    python -m rlvr.analysis.experiment  -- all arms, 5 seeds

    python -m rlvr.analysis.experiment --arms grpo pos --seeds 3 --steps 60  -- a smaller one
    """

    arms: tuple[str, ...] = tuple(ARMS)
    """Arms to run; the first is the baseline, with which the others are compared. See ARMS in rlvr/analysis/experiment.py."""
    seeds: int = 5
    """Runs of each arm, with seeds 0, 1, 2, ..."""
    level: int = 2
    """Difficulty of the built-in problems (--level of train.py). Level 2 has the longer plateau."""
    steps: int = 80
    """Steps of each run."""
    train: str = ""
    """More flags of train.py, for every arm, as in --train="--prompts-per-step 16"."""
    out: str = "runs/experiment"
    """Folder of the runs, of results.csv, curves.csv, table.md and the figures."""
    jobs: int = 0
    """Runs at the same time, each with one thread; 0: as many as there are processor cores."""


@dataclass
class Run:
    """One arm with one seed."""

    arm: str
    seed: int
    flags: list[str]
    folder: Path
    process: subprocess.Popen | None = None

    @property
    def done(self) -> bool:
        try:
            summary = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
            return summary["stopped_by"] is None and summary["steps"] == parse_train(self.flags).steps
        except (OSError, ValueError, KeyError, TypeError):
            return False

    @property
    def begun(self) -> bool:
        return (self.folder / "config.json").is_file()

    def steps(self) -> int:
        """Rows of metrics.csv so far."""
        try:
            return max(0, (self.folder / "metrics.csv").read_bytes().count(b"\n") - 2)  # without the header and the first evaluation
        except OSError:
            return 0


def plan(config: ExperimentConfig) -> list[Run]:
    """All runs, seed by seed, so that a stopped experiment has every arm equally often. Raises SettingError for flags that cannot work,
    and for a run that is there already with other settings."""
    if unknown := [arm for arm in config.arms if arm not in ARMS]:
        raise SettingError(f"There is no arm {unknown[0]!r}. Choose from: {', '.join(ARMS)}.")
    if not config.arms or len(set(config.arms)) < len(config.arms) or config.seeds < 1 or config.jobs < 0:
        raise SettingError("Name at least one arm and none twice, --seeds 1 or more, and --jobs 0 or more.")
    try:
        common = shlex.split(config.train)
    except ValueError as error:
        raise SettingError(f"--train cannot be split into flags ({error}). Close its quotes.") from None
    runs = []
    for seed in range(config.seeds):
        for arm in config.arms:
            name = f"{arm}-seed{seed}"
            flags = [*shlex.split(COMMON), "--level", str(config.level), "--steps", str(config.steps), *common, *shlex.split(ARMS[arm])]
            flags += ["--seed", str(seed), "--out", config.out, "--name", name]
            run = Run(arm, seed, flags, Path(config.out, name))
            if run.begun:
                there, wanted = read_config(run.folder), parse_train(flags)
                names = [f.name for f in dataclasses.fields(there) if f.name == "steps" or f.name not in MAY_CHANGE]
                for field in names:
                    if field not in ("name", "out", "resume") and getattr(there, field) != getattr(wanted, field):
                        raise SettingError(
                            f"{run.folder} is there with other settings (--{field.replace('_', '-')} {getattr(there, field)}). "
                            "Choose another --out, or give the same flags."
                        )
            else:
                parse_train(flags)
            runs.append(run)
    return runs


def run_all(runs: Sequence[Run], jobs: int, after_each: Callable[[], object]) -> list[Run]:
    """Run what is not done, `jobs` at a time, each in a process of its own. Returns those that failed. A signal stops the runs so that
    they can go on later, then raises KeyboardInterrupt."""
    waiting = [run for run in runs if not run.done]
    steps = {id(run): parse_train(run.flags).steps for run in runs}
    running: list[Run] = []
    failed: list[Run] = []
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tqdm(total=sum(steps.values()), unit="step", smoothing=0.05) as bar:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(_start(waiting.pop(0)))
                time.sleep(1)
                for run in [r for r in running if r.process.poll() is not None]:
                    running.remove(run)
                    if run.done:
                        after_each()
                    else:
                        failed.append(run)
                        say(f"{run.folder.name} failed; its last words are in {_log(run)}")
                bar.set_description(", ".join(run.folder.name for run in running))
                bar.n = sum(min(run.steps(), steps[id(run)]) for run in runs)
                bar.refresh()
    except KeyboardInterrupt:
        say("stopping: every run ends its step and saves; the same command goes on from there")
        for run in running:
            run.process.send_signal(signal.SIGINT)
        for run in running:
            run.process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
    return failed


def _log(run: Run) -> Path:
    return run.folder.with_suffix(".log")


def _start(run: Run) -> Run:
    program = str(Path(__file__).parents[2] / "train.py")
    flags = ["--resume", str(run.folder), "--threads", "1"] if run.begun else run.flags
    with open(_log(run), "a", encoding="utf-8") as log:  # a session of its own: Ctrl-C reaches it through us alone
        run.process = subprocess.Popen([sys.executable, program, *flags], stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    return run


# ---------------------------------------------------------------------------------------------------------------------------------------
# Numbers


def measure(folder: Path) -> dict[str, float]:
    """The numbers of METRICS, from the metrics.csv of a finished run."""
    rows = read_metrics(folder)
    held_out = [(r["step"], r["eval_pass_at_1"]) for r in rows if r["eval_pass_at_1"] is not None]
    trained = [r for r in rows if r["accuracy"] is not None]
    late = trained[-max(1, len(trained) // 5) :]
    return {
        "pass_at_1": held_out[-1][1],
        "area": area(held_out),
        "pass_at_max": [r["eval_pass_at_max"] for r in rows if r["eval_pass_at_max"] is not None][-1],
        "entropy_late": fmean(r["entropy"] for r in late),
        "length_late": fmean(r["length"] for r in late),
    }


def area(curve: Sequence[tuple[float, float]]) -> float:
    """Area under a curve of (x, y), divided by its length in x (trapezoids).

    >>> area([(0, 0.0), (10, 1.0), (20, 1.0)])
    0.75
    """
    pieces = [(x2 - x1) * (y1 + y2) / 2 for (x1, y1), (x2, y2) in zip(curve, curve[1:])]
    return sum(pieces) / (curve[-1][0] - curve[0][0])


def t_quantile(df: int, level: float = 0.95) -> float:
    """Student's t: a share `level` of the distribution with df degrees of freedom lies between -t and t.

    >>> round(t_quantile(4), 3)
    2.776
    """
    import mpmath  # torch depends on it

    # Outside lies I_x(df / 2, 1 / 2), the regularised incomplete beta function, at x = df / (df + t^2).
    x = mpmath.findroot(lambda x: mpmath.betainc(df / 2, 0.5, 0, x, regularized=True) - (1 - level), (0, 1), solver="bisect")
    return float(mpmath.sqrt(df * (1 - x) / x))


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and Student's 95 % interval (mean, low, high). Of a single value the interval is all numbers.

    >>> [round(x, 3) for x in mean_interval([1.0, 2.0, 3.0])]
    [2.0, -0.484, 4.484]
    """
    mean, n = fmean(values), len(values)
    half = t_quantile(n - 1) * stdev(values) / n**0.5 if n > 1 else float("inf")
    return mean, mean - half, mean + half


def differences(results: Sequence[dict], arm: str, metric: str, baseline: str = BASELINE) -> list[float]:
    """arm minus baseline on every seed that both have, in order of the seeds. `results`: rows of results.csv."""
    by_seed = [{r["seed"]: r[metric] for r in results if r["arm"] == name} for name in (arm, baseline)]
    return [by_seed[0][seed] - by_seed[1][seed] for seed in sorted(by_seed[0].keys() & by_seed[1].keys())]


def comparison(results: Sequence[dict], metric: str, baseline: str = BASELINE) -> list[list[str]]:
    """A row for each arm: its name, n, mean and standard deviation over seeds, mean difference to the baseline, and its interval."""
    digits, rows = METRICS[metric][1], []
    for arm in dict.fromkeys(r["arm"] for r in results):
        values = [r[metric] for r in results if r["arm"] == arm]
        spread = f"{stdev(values):.{digits}f}" if len(values) > 1 else "–"
        row = [arm, str(len(values)), f"{fmean(values):.{digits}f}", spread, "", ""]
        gaps = differences(results, arm, metric, baseline)
        if arm != baseline and gaps:
            mean, low, high = mean_interval(gaps)
            row[4:] = [f"{mean:+.{digits}f}", f"[{low:+.{digits}f}, {high:+.{digits}f}]" if len(gaps) > 1 else "one pair"]
        rows.append(row)
    return rows


def text_tables(results: Sequence[dict], baseline: str = BASELINE) -> str:
    """The comparison for a terminal: a table for each metric."""
    parts = []
    for metric, (heading, _, meaning) in METRICS.items():
        header = [heading, "n", "mean", "sd", f"minus {baseline}", "95 % interval"]
        parts.append(f"{meaning}\n" + table(header, comparison(results, metric, baseline)))
    if pairs := contrasts(results):
        parts.append("arms against each other\n" + table(["", "n", *(heading for heading, _, _ in METRICS.values())], pairs))
    return "\n\n".join(parts)


def markdown(results: Sequence[dict], baseline: str = BASELINE) -> str:
    """The comparison for a document: one table, a row for each arm."""
    lines = [
        "| arm | what it is | n | " + " | ".join(heading for heading, _, _ in METRICS.values()) + " |",
        "|---|---|---|" + "---|" * len(METRICS),
    ]
    for rows in zip(*(comparison(results, metric, baseline) for metric in METRICS)):
        arm, n = rows[0][:2]
        cells = [f"{mean} ± {sd}" + (f"<br>{gap} {interval}" if gap else "") for _, _, mean, sd, gap, interval in rows]
        lines.append(f"| `{arm}` | {SAYS.get(arm, '')} | {n} | " + " | ".join(cells) + " |")
    if pairs := contrasts(results):
        lines += [
            "",
            "| arms against each other | n | " + " | ".join(heading for heading, _, _ in METRICS.values()) + " |",
            "|---|---|" + "---|" * len(METRICS),
        ]
        lines += ["| " + " | ".join(row) + " |" for row in pairs]
    return "\n".join(lines) + "\n"


def contrasts(results: Sequence[dict]) -> list[list[str]]:
    """A row for each pair of CONTRASTS that is there: names, n, and the mean difference on equal seeds with its interval, by metric."""
    rows = []
    for arm, other in CONTRASTS:
        if gaps := differences(results, arm, "pass_at_1", other):
            cells = [
                "{:+.{d}f} [{:+.{d}f}, {:+.{d}f}]".format(*mean_interval(differences(results, arm, m, other)), d=METRICS[m][1])
                for m in METRICS
            ]
            rows.append([f"{arm} minus {other}", str(len(gaps)), *cells])
    return rows


def read_results(path: Path) -> list[dict]:
    """results.csv or curves.csv back as rows of numbers."""
    kinds = {"arm": str, "seed": int, "step": int}
    with open(path, newline="", encoding="utf-8") as file:
        return [{k: kinds.get(k, float)(v) for k, v in row.items()} for row in csv.DictReader(file)]


def curves(arm: str, seed: int, folder: Path) -> list[dict]:
    """Held-out pass@1 of a run at each of its evaluations, with the token entropy of the steps since the one before (step 0: held out)."""
    out, entropies = [], []
    for row in read_metrics(folder):
        if row["entropy"] is not None:
            entropies.append(row["entropy"])
        if row["eval_pass_at_1"] is not None and entropies:
            numbers = {"pass_at_1": row["eval_pass_at_1"], "entropy": fmean(entropies)}
            out.append({"arm": arm, "seed": seed, "step": int(row["step"])} | numbers)
            entropies = []
    return out


# ---------------------------------------------------------------------------------------------------------------------------------------
# Figures


def draw_differences(results: Sequence[dict], path: Path, baseline: str = BASELINE) -> None:
    """A panel for each metric: the paired difference of each arm to the baseline, each seed as a dot, with its interval."""
    from matplotlib.figure import Figure

    arms = [arm for arm in dict.fromkeys(r["arm"] for r in results) if arm != baseline]
    figure = Figure(figsize=(12, 1.6 + 0.34 * len(arms)), layout="constrained")
    axes = figure.subplots(1, len(METRICS), sharey=True)
    for axis, (metric, (heading, digits, _)) in zip(axes, METRICS.items()):
        axis.axvline(0, color="black", linewidth=1)
        pairs = {y: differences(results, arm, metric, baseline) for y, arm in enumerate(arms)}
        reach = {y: max(map(abs, gaps)) for y, gaps in pairs.items() if gaps}
        usual = median(reach.values()) if reach else 0.0
        edge = 1.8 * max((r for r in reach.values() if r <= 5 * usual), default=0.0) or 1.0
        axis.set_xlim(-edge, edge)
        for y, gaps in pairs.items():
            if not gaps:
                continue
            mean, low, high = mean_interval(gaps)
            colour = COLOURS[1] if low > 0 or high < 0 else COLOURS[0]
            if abs(mean) > edge:  # an arm that is worlds apart must not flatten the others: its numbers instead of its place
                side = 1 if mean > 0 else -1
                text = f"{mean:+.{digits}f}\n[{low:+.{digits}f}, {high:+.{digits}f}]"
                axis.text(0.95 * side * edge, y, text, fontsize=7, color=colour, va="center", ha="right" if side > 0 else "left")
                continue
            axis.plot(gaps, [y] * len(gaps), "o", color=GREY, markersize=3, alpha=0.6)
            if len(gaps) > 1:
                axis.plot([low, high], [y, y], color=colour, linewidth=2)
            axis.plot([mean], [y], "D", color=colour, markersize=5)
        axis.set_title(heading, fontsize=10)
        axis.grid(axis="x", alpha=0.2)
        axis.tick_params(labelsize=8)
    axes[0].set_yticks(range(len(arms)), arms)
    axes[0].invert_yaxis()
    n = max(len(differences(results, arm, "pass_at_1", baseline)) for arm in arms) if arms else 0
    figure.suptitle(f"difference to {baseline} on equal seeds, n = {n}; 95 % interval, orange where it leaves out 0", fontsize=10)
    figure.savefig(path, dpi=120)


def draw_arms(rows: Sequence[dict], path: Path) -> None:
    """Held-out accuracy and entropy of every arm over the steps: the mean over seeds, with the range for the baseline."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.0), layout="constrained")
    for axis, column, label in zip(figure.subplots(1, 2), ("pass_at_1", "entropy"), ("held-out pass@1", "token entropy (nats)")):
        for i, arm in enumerate(dict.fromkeys(r["arm"] for r in rows)):
            steps = sorted({r["step"] for r in rows if r["arm"] == arm})
            values = [[r[column] for r in rows if r["arm"] == arm and r["step"] == step] for step in steps]
            style = dict(color=COLOURS[i % len(COLOURS)], linestyle="-" if i < len(COLOURS) else "--")
            axis.plot(steps, [fmean(v) for v in values], label=arm, linewidth=2.2 if i == 0 else 1.3, **style)
            if i == 0:
                axis.fill_between(steps, [min(v) for v in values], [max(v) for v in values], color=style["color"], alpha=0.15, linewidth=0)
        axis.set(xlabel="step", ylabel=label)
        axis.grid(alpha=0.2)
    figure.axes[1].set_yscale("log")
    for labels in (figure.axes[1].yaxis.set_major_formatter, figure.axes[1].yaxis.set_minor_formatter):
        labels(lambda value, _: f"{value:g}")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(path, dpi=120)


def collect(runs: Sequence[Run], out: Path, baseline: str) -> list[dict]:
    """Write results.csv, curves.csv, table.md and the figures of the runs that are done. Returns the rows of results.csv."""
    runs = sorted((r for r in runs if r.done), key=lambda r: (list(ARMS).index(r.arm), r.seed))
    if not runs:
        return []
    results = [{"arm": r.arm, "seed": r.seed, **measure(r.folder)} for r in runs]
    points = [point for r in runs for point in curves(r.arm, r.seed, r.folder)]
    write_atomically(out / "results.csv", csv_text(results))
    write_atomically(out / "curves.csv", csv_text(points))
    write_atomically(out / "table.md", markdown(results, baseline))
    draw_differences(results, out / "differences.png", baseline)
    draw_arms(points, out / "curves.png")
    return results


def experiment(config: ExperimentConfig) -> list[dict]:
    """Run everything that is not done yet, then write and print the comparison. Returns the rows of results.csv. Raises SettingError."""
    runs, out = plan(config), Path(config.out)
    check_can_write(out, "--out")
    out.mkdir(parents=True, exist_ok=True)
    jobs = config.jobs or os.cpu_count() or 1
    left = sum(not run.done for run in runs)
    at_once = min(jobs, left or 1)
    say(f"{len(config.arms)} arms, {config.seeds} seeds: {len(runs)} runs, {len(runs) - left} done; {at_once} at a time; in {out}")
    try:
        failed = run_all(runs, jobs, lambda: collect(runs, out, config.arms[0]))
    finally:
        results = collect(runs, out, config.arms[0])
    if not results:
        raise SettingError(f"No run was finished; what the first said is in {_log(runs[0])}. Mend the cause, then start again.")
    say("\n" + text_tables(results, config.arms[0]))
    say(f"\nmean and standard deviation over seeds; mean difference to {config.arms[0]} on equal seeds, with Student's interval")
    say(f"written to {out}: results.csv, curves.csv, table.md, differences.png, curves.png")
    if failed:
        raise SettingError(f"{len(failed)} runs failed; what the first said is in {_log(failed[0])}. Mend the cause, then start again.")
    return results


if __name__ == "__main__":
    run_program(lambda: experiment(parse_command(ExperimentConfig, "python -m rlvr.analysis.experiment")))
