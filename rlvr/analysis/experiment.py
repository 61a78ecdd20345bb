"""The experiment: the same arms on the same seeds, one command that goes on where it was stopped, one CSV, one table with intervals.

    python -m rlvr.analysis.experiment                                     all arms, 5 seeds: under two hours on 2 cores
    python -m rlvr.analysis.experiment --arms grpo pos-strong --seeds 3    some of them
    python -m rlvr.analysis.experiment --train="--model my_model --data gsm8k"

An arm is a name and the flags of train.py that make it. Runs of one seed have the same problems, in the same order, and begin with the same
random draws, so arms are compared seed by seed: the mean of the differences to the baseline, with Student's interval.
"""

import itertools
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
from typing import NamedTuple

if not __package__:  # run by its path, which works from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rlvr.analysis.compare_arms import BASELINE, curves, draw_arms, draw_differences, markdown, measure, text_tables
from rlvr.common.files import write_atomically
from rlvr.common.text import csv_text, progress_bar, say
from rlvr.config import SettingError, TrainConfig
from rlvr.run.cli import parse_command, parse_train, run_program
from rlvr.run.figures import read_metrics
from rlvr.run.folder import refuse_links
from rlvr.run.settings import MAY_CHANGE, check_can_write, read_config

# Strong enough to matter: at 0.2 the factor reaches its clamp at one standard deviation, 0.4 is nearly half of a usual advantage.
STRONG_PPL, STRONG_POS = 0.2, 0.4
PPL, POS = f"--method ppl --ppl-alpha {STRONG_PPL}", f"--method pos --pos-alpha {STRONG_POS}"


class Arm(NamedTuple):
    flags: str  # of train.py
    says: str  # what it is, for the table


ARMS = {
    BASELINE: Arm("--method grpo", "the baseline"),
    "ppl": Arm("--method ppl", "low perplexity weighs more, α = 0.01 as released"),
    "ppl-strong": Arm(PPL, f"low perplexity weighs more, α = {STRONG_PPL}"),
    "ppl-high": Arm(f"{PPL} --ppl-direction high", f"high perplexity weighs more, α = {STRONG_PPL}"),
    "pos": Arm("--method pos", "bonus for late tokens, α = 0.1 as released"),
    "pos-strong": Arm(POS, f"bonus for late tokens, α = {STRONG_POS}"),
    "pos-early": Arm(f"{POS} --pos-direction early", f"bonus for early tokens, α = {STRONG_POS}"),
    "pos-plateau": Arm(f"{POS} --shape-start plateau", f"bonus for late tokens, α = {STRONG_POS}, from the plateau on"),
    "positive-only": Arm("--method grpo --learn-from positive", "learns from right answers alone"),
    "negative-only": Arm("--method grpo --learn-from negative", "learns from wrong answers alone"),
    "ppl-dropped": Arm(f"{PPL} --no-ppl-apply", "perplexity factor computed and dropped, as in the released code"),
}
# One round of sampling costs a third less time than two, and every arm then sees the same problems in every step.
COMMON = "--sampling-rounds 1 --threads 1 --save-every 10 --show-every 0"


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
    wanted: TrainConfig  # what the flags come to
    process: subprocess.Popen | None = None

    @property
    def done(self) -> bool:
        try:
            summary = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
            return summary["stopped_by"] is None and summary["steps"] == self.wanted.steps
        except (OSError, ValueError, KeyError, TypeError):
            return False

    @property
    def begun(self) -> bool:
        return (self.folder / "config.json").is_file()

    def steps(self) -> int:
        """Rows of metrics.csv so far."""
        path = self.folder / "metrics.csv"
        return max(0, path.read_bytes().count(b"\n") - 2) if path.is_file() else 0  # without the header and the first evaluation


def plan(config: ExperimentConfig) -> list[Run]:
    """All runs, seed by seed, so that a stopped experiment has every arm equally often. Raises SettingError for flags that cannot work,
    and for a run that was begun with other settings."""
    if unknown := [arm for arm in config.arms if arm not in ARMS]:
        raise SettingError(f"There is no arm {unknown[0]!r}. Choose from: {', '.join(ARMS)}.")
    if not config.arms or len(set(config.arms)) < len(config.arms) or config.seeds < 1 or config.jobs < 0:
        raise SettingError("Name at least one arm and none twice, --seeds 1 or more, and --jobs 0 or more.")
    try:
        common = shlex.split(config.train)
    except ValueError as error:
        raise SettingError(f"--train cannot be split into flags ({error}). Close its quotes.") from None
    runs = []
    for seed, arm in itertools.product(range(config.seeds), config.arms):
        name = f"{arm}-seed{seed}"
        flags = [*shlex.split(COMMON), "--level", str(config.level), "--steps", str(config.steps), *common, *shlex.split(ARMS[arm].flags)]
        flags += ["--seed", str(seed), "--out", config.out, "--name", name]
        runs.append(Run(arm, seed, flags, Path(config.out, name), parse_train(flags)))
        if runs[-1].done:
            read_metrics(runs[-1].folder)  # what was edited is found now, and not when all others have run
        else:
            refuse_links(runs[-1].folder, _log(runs[-1]))
        if runs[-1].begun:
            _check_settings(runs[-1])
    return runs


def _check_settings(run: Run) -> None:
    """Raise SettingError unless the run in the folder was made with its settings, as far as they decide its numbers."""
    free = MAY_CHANGE - {"steps"} | {"name", "out", "resume"}
    for name, value in vars(read_config(run.folder)).items():
        if name not in free and value != getattr(run.wanted, name):
            other = f"--{name.replace('_', '-')} {value}"
            raise SettingError(f"{run.folder} is there with other settings ({other}). Choose another --out, or give the same flags.")


def run_all(runs: Sequence[Run], jobs: int, after_each: Callable[[], object]) -> list[Run]:
    """Run what is not done, `jobs` at a time, each in a process of its own. Returns those that failed. A signal stops the runs so that
    they can go on later, then raises KeyboardInterrupt."""
    waiting, running, failed = [run for run in runs if not run.done], [], []
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with progress_bar(total=sum(run.wanted.steps for run in runs), unit="step", smoothing=0.05) as bar:
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
                bar.n = sum(min(run.steps(), run.wanted.steps) for run in runs)
                bar.refresh()
    except BaseException:  # Ctrl-C, for one
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


def collect(runs: Sequence[Run], out: Path, baseline: str) -> list[dict]:
    """Write results.csv, curves.csv, table.md and the figures of the runs that are done. Returns the rows of results.csv."""
    runs = sorted((r for r in runs if r.done), key=lambda r: (list(ARMS).index(r.arm), r.seed))
    if not runs:
        return []
    results = [{"arm": r.arm, "seed": r.seed, **measure(r.folder)} for r in runs]
    points = [point for r in runs for point in curves(r.arm, r.seed, r.folder)]
    write_atomically(out / "results.csv", csv_text(results))
    write_atomically(out / "curves.csv", csv_text(points))
    write_atomically(out / "table.md", markdown(results, baseline, {name: arm.says for name, arm in ARMS.items()}))
    draw_differences(results, out / "differences.png", baseline)
    draw_arms(points, out / "curves.png")
    return results


def experiment(config: ExperimentConfig) -> list[dict]:
    """Run everything that is not done yet, then write and print the comparison. Returns the rows of results.csv. Raises SettingError."""
    runs, out = plan(config), Path(config.out)
    check_can_write(out, "--out")
    out.mkdir(parents=True, exist_ok=True)
    jobs, left = config.jobs or os.cpu_count() or 1, sum(not run.done for run in runs)
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
