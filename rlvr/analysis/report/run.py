"""What a report is made from: a run folder, read back; and intervals by resampling."""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from rlvr.analysis.exchange import largest, over_represented
from rlvr.config import TrainConfig, as_sentence, refuse
from rlvr.run.cli import resume_command
from rlvr.run.figures import read_metrics, series
from rlvr.run.settings import read_config


def read_lines(path: Path) -> list[dict]:
    """A .jsonl file of a run, without a line that a crash cut off."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


class Run:
    """A run folder. What is not needed is not read."""

    def __init__(self, folder: Path, name: str = ""):
        self.folder = folder
        self.name = name or folder.name
        self.config: TrainConfig = read_config(folder)
        for file in ("metrics.csv", "rollouts.jsonl", "summary.json", "model/config.json"):
            refuse(not (folder / file).is_file(), f"The run {folder} has no {file}. If it is not finished: {resume_command(folder)}")
        self.metrics = read_metrics(folder)
        with as_sentence(f"The run {folder} cannot be read", "Put back the files that the run wrote.", OSError, ValueError):
            self.completions = read_lines(folder / "rollouts.jsonl")
            self.summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        self.steps = [row for row in self.metrics if row["accuracy"] is not None]  # without the evaluation before the first step
        refuse(not self.steps, f"The run {folder} has not made a step. Continue it first: {resume_command(folder)}")
        self.plateau: int | None = self.summary["plateau_step"]
        self.last = int(self.steps[-1]["step"])
        self.rising_end = self.plateau or self.last  # the last step of the rising stage; of the run, if it never left it

    @property
    def slowed(self) -> str:
        """A sentence, if the learning rate fell during the run by more than a tenth: then all that changes slowly late may be due to it."""
        rates = [row["lr"] for row in self.steps]
        fell = f"The learning rate fell from {max(rates):.2g} to {rates[-1]:.2g}, which alone slows every change"
        return f"{fell}: ask a run with --lr-schedule constant." if rates[-1] < 0.9 * max(rates) else ""

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """(steps, values) of a column of metrics.csv, where it has any."""
        return series(self.metrics, name)

    @cached_property
    def tokenizer(self):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder / "model", trust_remote_code=False)

    def token(self, number: int) -> str:
        """A token as text."""
        return self.tokenizer.decode([number])

    # What python -m rlvr.analysis.probe found

    @cached_property
    def changes(self) -> dict[str, np.ndarray]:
        """Every token of the replayed steps before and after them, as flat arrays (named in `replay.change_of_step`); {} without a probe.

        Added: `change`, the change of its probability; `plateau`, whether its step is one; `problem`, which group it is in, and
        `row_problem`, the same of each completion.
        """
        from safetensors.numpy import load_file

        path = self.folder / "probe" / "changes.safetensors"
        found = load_file(path) if path.is_file() else {}
        if found:
            found["change"] = np.exp(found["logp_after"]) - np.exp(found["logp"])
            found["plateau"] = found["step"] >= (self.plateau or 10**9)
            found["row_problem"] = found["row_step"].astype(np.int64) * 10**6 + found["row_group"]
            found["problem"] = found["row_problem"][found["row"]]
        return found

    def _probe_lines(self, name: str) -> list[dict]:
        path = self.folder / "probe" / f"{name}.jsonl"
        return read_lines(path) if path.is_file() else []

    replayed = cached_property(lambda run: run._probe_lines("completions"))
    fixed = cached_property(lambda run: run._probe_lines("fixed"))
    replacements = cached_property(lambda run: run._probe_lines("replacements"))

    @cached_property
    def exploration(self) -> dict[str, dict]:
        path = self.folder / "probe" / "exploration.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def mean(values: Sequence[float]) -> float:
    """NaN of nothing."""
    return float(np.mean(values)) if len(values) else float("nan")


def bootstrap(statistic: Callable[..., float], *samples: Sequence, draws: int = 300) -> tuple[float, float]:
    """95 % percentile interval of a statistic of one or more samples of independent items, by resampling the items of each.

    NaN, NaN if a sample is empty, or the statistic NaN in every draw.
    """
    rng, values = np.random.default_rng(42), []
    for _ in range(draws if all(len(items) for items in samples) else 0):
        picks = [rng.integers(len(items), size=len(items)) for items in samples]
        values.append(statistic(*([items[i] for i in pick] for items, pick in zip(samples, picks))))
    values = [v for v in values if v == v]
    return tuple(float(x) for x in np.quantile(values, [0.025, 0.975])) if values else (float("nan"), float("nan"))


def of_problems(values: np.ndarray, problem: np.ndarray) -> list[np.ndarray]:
    """The values of each problem's tokens: what intervals resample, since completions of one problem share their forks."""
    order = np.argsort(problem, kind="stable")
    return np.split(values[order], np.flatnonzero(np.diff(problem[order])) + 1)


def share_of_largest(size: np.ndarray, member: np.ndarray, problem: np.ndarray, top: float) -> tuple[float, float, float, float]:
    """Share of members among the share `top` of tokens that changed most, its 95 % interval, and their share of all tokens.

    The interval comes from resampling problems (`problem` says which one a token belongs to): completions of one problem share their forks.
    """
    share, base = over_represented(largest(size, top), member)
    tokens_of = of_problems(np.arange(len(problem)), problem)

    def again(sample: list[np.ndarray]) -> float:
        index = np.concatenate(sample)
        return over_represented(largest(size[index], top), member[index])[0]

    return share, *bootstrap(again, tokens_of, draws=200), base
