"""An experiment: arms on the same seeds, from the start or from common trunks. One command that goes on where it was stopped, one CSV.

    python -m rlvr.analysis.experiment                                     the published table: under two hours on 2 cores
    python -m rlvr.analysis.experiment --arms grpo pos-strong --seeds 3    some of it
    python -m rlvr.analysis.experiment --plan tutorials/experiment/plan-study.yaml --out runs/study

An arm is a name and the flags of train.py that make it; plan.py says what else a plan has. Runs of one seed have the same problems, in the
same order, and begin with the same random draws, so arms are compared seed by seed: the mean of the differences to the baseline, with
Student's interval. With trunks, all arms branch from the same models, and the runs of one trunk and one seed are made one after the other.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

if not __package__:  # run by its path, which works from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rlvr.analysis.compare_arms import METRICS, curves, draw_arms, draw_differences, markdown, measure, read_results, text_tables
from rlvr.analysis.errors import shares
from rlvr.analysis.plan import PUBLISHED, Plan, flags_of, read_plan
from rlvr.analysis.report.run import read_lines
from rlvr.common.files import write_atomically
from rlvr.common.text import csv_text, progress_bar, say
from rlvr.config import BUILT_IN, SettingError, TrainConfig, as_sentence, flag, refuse
from rlvr.run.cli import parse_command, parse_eval, parse_train, run_program
from rlvr.run.defects import ERRORS
from rlvr.run.figures import read_metrics
from rlvr.run.folder import refuse_links
from rlvr.run.settings import MAY_CHANGE, check_can_write, first_step, read_config

ARMS = read_plan(PUBLISHED).arms
COMMON = ["--threads", "1", "--save-every", "10", "--show-every", "0"]


@dataclass
class ExperimentConfig:
    """Run the arms of a plan over its seeds, side by side, and compare each with the baseline. Stopped and started again, it goes on.

    python -m rlvr.analysis.experiment  -- the published table: all arms, 5 seeds

    python -m rlvr.analysis.experiment --arms grpo pos --seeds 3 --steps 60  -- a smaller one

    python -m rlvr.analysis.experiment --plan my_plan.yaml --out runs/mine  -- another plan, perhaps with trunks to branch from
    """

    plan: str = str(PUBLISHED)
    """The plan, a YAML file. rlvr/analysis/plan.py says what it holds."""
    arms: tuple[str, ...] = ()
    """Arms to run, the first is the baseline; empty: all of the plan."""
    seeds: int = 0
    """Only the first so many seeds of the plan, or seeds 0, 1, 2, ... if it has fewer; 0: those of the plan."""
    steps: int = 0
    """Steps of each run; 0: those of the plan."""
    train: str = ""
    """More flags of train.py, for every run, as in --train="--prompts-per-step 16"."""
    out: str = "runs/experiment"
    """Folder of the runs, of results.csv, curves.csv, table.md and the figures. A run that is only in its results.csv counts as done."""
    jobs: int = 0
    """Runs at the same time, each with one thread; 0: as many as there are processor cores."""


@dataclass(eq=False)
class Run:
    """One arm with one seed, from one trunk; or a trunk, which has no arm."""

    trunk: str
    arm: str
    seed: int
    flags: list[str]
    folder: Path
    wanted: TrainConfig  # what the flags come to
    evaluate: dict[str, list[str]]
    needs: "Run | None" = None  # its trunk
    known: dict | None = None  # its row of results.csv, if it was made elsewhere
    row: dict | None = None  # the same of one that is done here, once it was measured
    process: subprocess.Popen | None = None
    asked: str = ""  # the program that runs, or ran last

    @property
    def trained(self) -> bool:
        try:
            summary = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
            return summary["stopped_by"] is None and summary["steps"] == self.wanted.steps
        except (OSError, ValueError, KeyError, TypeError):
            return False

    @property
    def begun(self) -> bool:
        return (self.folder / "config.json").is_file()

    @property
    def done(self) -> bool:
        return self.known is not None or self.command() is None

    def evaluation(self, column: str) -> Path:
        return self.folder / f"evaluation-{column}.json"

    def command(self) -> list[str] | None:
        """What is to be run next for it, a program and its flags; None if nothing is left."""
        if not self.trained:
            return ["train.py", *(["--resume", str(self.folder), "--threads", "1"] if self.begun else self.flags)]
        for column, flags in self.evaluate.items():
            if not (path := self.evaluation(column)).is_file():
                return ["eval.py", str(self.folder), *flags, "--threads", "1", "--out", str(path)]

    def steps(self) -> int:
        """Rows of metrics.csv so far."""
        path = self.folder / "metrics.csv"
        return max(0, path.read_bytes().count(b"\n") - 2) if path.is_file() else 0  # without the header and the first evaluation

    def to_do(self) -> int:
        return 0 if self.known is not None else self.wanted.steps - first_step(self.wanted)


def chosen_plan(config: ExperimentConfig) -> Plan:
    """The plan, with what the command line changes. Raises SettingError."""
    plan = read_plan(Path(config.plan))
    for arm in config.arms:
        refuse(arm not in plan.arms, f"There is no arm {arm!r}. Choose from: {', '.join(plan.arms)}.")
    wrong = len(set(config.arms)) < len(config.arms) or min(config.seeds, config.steps, config.jobs) < 0
    refuse(wrong, "Name no arm twice, and choose --seeds, --steps and --jobs of 0 or more.")
    with as_sentence("--train is no good", "Close its quotes, and leave out what the experiment sets.", ValueError):
        more = flags_of(config.train)
    arms = {arm: plan.arms[arm] for arm in config.arms or plan.arms}
    seeds = plan.seeds[: config.seeds] if 0 < config.seeds <= len(plan.seeds) else list(range(config.seeds)) or plan.seeds
    return plan._replace(arms=arms, seeds=seeds, steps=config.steps or plan.steps, train=plan.train + more)


def planned(plan: Plan, out: Path) -> list[Run]:
    """All runs that are asked for: seed by seed, and in it trunk by trunk, so that a stopped experiment has every arm equally often. A
    trunk comes before its first branch that is left to do. Raises SettingError for flags that cannot work, and for a run that was begun
    with other settings."""
    known, baseline, trunks, runs = _known(plan, out), next(iter(plan.arms.values())), {}, []
    for seed, trunk, arm in itertools.product(plan.seeds, plan.trunks or [""], plan.arms):
        flags = [*COMMON, *plan.train, *plan.trunks.get(trunk, [])]
        if trunk and trunk not in trunks:
            trunks[trunk] = _run(out, f"trunk-{trunk}", [*flags, "--steps", str(plan.branch_at), *baseline.flags], trunk)
        flags += ["--steps", str(plan.branch_at + plan.steps), *plan.arms[arm].flags, "--seed", str(seed)]
        run = _run(out, _name(trunk, arm, seed), flags, trunk, arm, seed, plan.evaluate, needs=trunks.get(trunk))
        run.known = None if run.folder.exists() else known.get((trunk, arm, seed))
        if run.needs and run.needs not in runs and not run.done:
            runs.append(run.needs)
        runs.append(run)
    _check(plan, out, runs, known)
    return runs


def _name(trunk: str, arm: str, seed: int) -> str:
    return "-".join(filter(None, (trunk, arm, f"seed{seed}")))


def _known(plan: Plan, out: Path) -> dict[tuple, dict]:
    """The rows of results.csv by trunk, arm and seed. Raises SettingError for rows that this plan cannot have made."""
    path, kept = out / "results.csv", out / "plan.yaml"
    rows = read_results(path) if path.is_file() else []
    columns = {"arm", "seed", *METRICS, *plan.evaluate, *(ERRORS if plan.errors else ())}
    for missing in (columns - row.keys() for row in rows):
        refuse(missing, f"{path} has no {min(missing, default='')!r}, which {plan.path} asks for. Choose another --out.")
    known = {(row.get("trunk", ""), row["arm"], row["seed"]): row for row in rows}
    refuse(len(known) < len(rows), f"{path} has a run twice. Leave one of its two rows.")
    if elsewhere := [key for key in known if not (out / _name(*key)).exists()]:
        old, new = (read_plan(file) for file in (kept if kept.is_file() else plan.path, plan.path))
        parts = [[*p[2:4], *p[7:], *((p.arms.get(arm, [None])[0], p.trunks.get(trunk)) for trunk, arm, _ in elsewhere)] for p in (old, new)]
        refuse(parts[0] != parts[1], f"{path} has rows that {kept} made, and {plan.path} differs from it. Choose another --out.")
    return known


def _check(plan: Plan, out: Path, runs: Sequence[Run], known: dict[tuple, dict]) -> None:
    """Raise SettingError for what would else be found when the runs are made, and for rows of results.csv that would be lost."""
    names = sorted(run.folder.name for run in runs)
    twice = [name for name, other in zip(names, names[1:]) if name == other]
    refuse(twice, f"{plan.path} has two runs that would be {twice}. Give an arm or a trunk another name.")
    lost = sorted(name for name in map(_name, *zip(*known)) if name not in names and not (out / name).exists()) if known else []
    refuse(lost, f"{out / 'results.csv'} alone has {', '.join(lost)}, not asked for here. Ask for all, or choose another --out.")
    for column, flags in plan.evaluate.items():
        taken = {"trunk", "arm", "seed", *METRICS, *ERRORS}
        refuse(not column.isidentifier() or column in taken, f"{plan.path} evaluates {column!r}. Choose another name, a single word.")
        refuse("," in parse_eval(["tiny", *flags]).data, f"{plan.path} evaluates {column!r} on several sets. Choose one for each name.")
    for c in [run.wanted for run in runs if run.arm]:
        found = sum(step == c.steps or step % max(c.eval_every, 1) == 0 < c.eval_every for step in range(first_step(c) + 1, c.steps + 1))
        few = f"{c.name} has fewer evaluations than the {plan.average} whose mean is wanted. Lower --eval-every or average."
        refuse(found < plan.average or not c.final_eval_problems, few)
        unlogged = plan.errors and (c.data != "tiny" or not c.log_completions)
        refuse(unlogged, f"{c.name} logs no built-in stories, whose errors are wanted. Leave out errors, or see --log-completions.")


def _run(out: Path, name: str, flags: list[str], trunk: str, arm: str = "", seed: int = -1, evaluate=None, needs: Run | None = None) -> Run:
    flags = [*flags, "--out", str(out), "--name", name]
    wanted = parse_train([*(needs.flags if needs else ()), *flags])  # a branch has the flags of its trunk, which need not be there yet
    flags += ["--dtype", "float32"] * (wanted.dtype == "auto" and wanted.device != "cuda" and wanted.model not in BUILT_IN)  # none measures
    if needs:
        branch = f"{needs.folder}@{needs.wanted.steps}"
        flags, wanted = ["--branch", branch, *flags], replace(wanted, branch=branch)
    run = Run(trunk, arm, seed, flags, out / name, wanted, evaluate or {}, needs)
    if run.trained:
        read_metrics(run.folder)  # what was edited is found now, and not when all others have run
    else:
        refuse_links(run.folder, _log(run))
    if run.begun:
        _check_settings(run)
    return run


def _check_settings(run: Run) -> None:
    """Raise SettingError unless the run in the folder was made with its settings, as far as they decide its numbers."""
    free = MAY_CHANGE - {"steps"} | {"name", "out", "resume"}
    for name, value in vars(read_config(run.folder)).items():
        other = name not in free and value != getattr(run.wanted, name) and (name, getattr(run.wanted, name)) != ("dtype", "auto")
        refuse(other, f"{run.folder} is there with other settings ({flag(name)} {value}). Choose another --out, or give the same flags.")


def run_all(runs: Sequence[Run], jobs: int, after_each: Callable[[], object]) -> list[Run]:
    """Run what is not done, `jobs` at a time, each in a process of its own, a branch after its trunk. Returns those that failed. A signal
    stops the runs so that they can go on later, then raises KeyboardInterrupt."""
    waiting, running, failed = [run for run in runs if not run.done], [], []
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with progress_bar(total=sum(run.to_do() for run in runs), unit="step", smoothing=0.05) as bar:
            while waiting or running:
                ready = (run for run in waiting if run.needs is None or run.needs.done)
                for run in list(itertools.islice(ready, jobs - len(running))):
                    waiting.remove(run)
                    running.append(_start(run))
                if not running:  # the trunks of those that wait have failed
                    break
                time.sleep(1)
                for run in [r for r in running if r.process.poll() is not None]:
                    after = run.command()
                    if after and after[0] != run.asked and not run.process.returncode:
                        _start(run)  # it is trained, and now evaluated
                        continue
                    running.remove(run)
                    if after is None:
                        after_each()
                    else:
                        failed.append(run)
                        say(f"{run.folder.name} failed; its last words are in {_log(run)}")
                bar.set_description(", ".join(run.folder.name for run in running))
                bar.n = sum(min(run.steps(), run.to_do()) for run in runs)
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
    return failed + waiting


def _log(run: Run) -> Path:
    return run.folder.with_suffix(".log")


def _start(run: Run) -> Run:
    run.asked, *flags = run.command()
    program = str(Path(__file__).parents[2] / run.asked)
    with open(_log(run), "a", encoding="utf-8") as log:  # a session of its own: Ctrl-C reaches it through us alone
        run.process = subprocess.Popen([sys.executable, program, *flags], stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    return run


def row_of(run: Run, plan: Plan) -> dict:
    """A run that is done here as a row of results.csv."""
    numbers = measure(run.folder, plan.average)
    for column in plan.evaluate:
        found = json.loads(run.evaluation(column).read_text(encoding="utf-8"))["results"]
        ((result,),) = (by_model.values() for by_model in found.values())  # one set, one model
        numbers[column] = result["metrics"]["pass@1"]["mean"]
    if plan.errors:
        late = run.wanted.steps - 0.4 * run.to_do()
        rows = [row for row in read_lines(run.folder / "rollouts.jsonl") if row["step"] > late]
        numbers |= {kind: share for kind, share in shares(rows).items() if kind in ERRORS}
    run.row = ({"trunk": run.trunk} if run.trunk else {}) | {"arm": run.arm, "seed": run.seed} | numbers
    return run.row


def collect(runs: Sequence[Run], out: Path, plan: Plan) -> list[dict]:
    """Write results.csv, curves.csv, table.md and the figures of the runs that are done. Returns the rows of results.csv."""
    runs = sorted((r for r in runs if r.arm and r.done), key=lambda r: (list(plan.arms).index(r.arm), r.trunk, r.seed))
    if not runs:
        return []
    results, baseline = [r.known or r.row or row_of(r, plan) for r in runs], next(iter(plan.arms))
    points = [{"trunk": r.trunk} | point for r in runs if r.known is None for point in curves(r.arm, r.seed, r.folder)]
    before, elsewhere = out / "curves.csv", {(r.trunk, r.arm, r.seed) for r in runs if r.known}
    points += [p for p in read_results(before) if (p.get("trunk", ""), p["arm"], p["seed"]) in elsewhere] if before.is_file() else []
    write_atomically(out / "results.csv", csv_text(results))
    write_atomically(out / "table.md", markdown(results, baseline, {name: arm.says for name, arm in plan.arms.items()}))
    draw_differences(results, out / "differences.png", baseline)
    if points:
        write_atomically(out / "curves.csv", csv_text(points))
        draw_arms(points, out / "curves.png")
    return results


def experiment(config: ExperimentConfig) -> list[dict]:
    """Run everything that is not done yet, then write and print the comparison. Returns the rows of results.csv. Raises SettingError."""
    plan, out = chosen_plan(config), Path(config.out)
    runs = planned(plan, out)
    check_can_write(out, "--out")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "plan.yaml", plan.path.read_text(encoding="utf-8"))
    jobs, left = config.jobs or os.cpu_count() or 1, sum(not run.done for run in runs)
    what = f"{len(plan.arms)} arms, {len(plan.seeds)} seeds" + (f" from {len(plan.trunks)} trunks" if plan.trunks else "")
    say(f"{what}: {len(runs)} runs, {len(runs) - left} done; {min(jobs, left or 1)} at a time; in {out}")
    try:
        failed = run_all(runs, jobs, lambda: collect(runs, out, plan))
    finally:
        results = collect(runs, out, plan)
    refuse(not results, f"No run was finished; what the first said is in {_log(runs[0])}. Mend the cause, then start again.")
    baseline = next(iter(plan.arms))
    say("\n" + text_tables(results, baseline))
    say(f"\nmean and standard deviation over seeds; mean difference to {baseline} on equal seeds (of trunks: over their means), with Student's interval")
    say(f"written to {out}: results.csv, curves.csv, table.md, differences.png, curves.png")
    if failed:
        raise SettingError(f"{len(failed)} runs failed; what the first said is in {_log(failed[0])}. Mend the cause, then start again.")
    return results


if __name__ == "__main__":
    run_program(lambda: experiment(parse_command(ExperimentConfig, "python -m rlvr.analysis.experiment")))
