"""Which error of a wrong answer comes first, over a run on the built-in stories, and where in an answer the policy is undecided.

python -m rlvr.analysis.errors runs/grpo-seed0
"""

import sys
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

if not __package__:  # run by its path, which works from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rlvr.analysis.exchange import position_profile, with_positions
from rlvr.analysis.report.run import Run, mean
from rlvr.common.files import write_atomically
from rlvr.common.text import csv_text, say, table
from rlvr.config import SettingError, refuse
from rlvr.run.cli import parse_command, run_program
from rlvr.run.defects import ERRORS, error_kind
from rlvr.run.figures import BLUE, COLOURS, GREEN, GREY, ORANGE, new_figure, save_figure, series, smoothed
from rlvr.tiny.task import ASKED, read_story

BINS = 10


@dataclass
class ErrorsConfig:
    """Table and picture of the first error of wrong answers, over a run on the built-in stories: errors.csv and errors.png in its folder.

    python -m rlvr.analysis.errors runs/grpo-seed0  -- of a run with --log-completions 128 or so: what is not logged is not counted
    """

    run: str
    """A run folder."""
    stretch: int = 20
    """Steps that are counted together."""


def stretches(completions: list[dict], steps: int) -> list[list[dict]]:
    """Logged completions, those of every so many steps together."""
    def number(row: dict) -> int:
        return (row["step"] - 1) // steps

    return [list(rows) for _, rows in groupby(sorted(completions, key=number), number)]


def shares(completions: list[dict]) -> dict[str, float]:
    """Of some completions: the last step, how many they are, the share of right ones, and of each first error."""
    kinds = ["right" if row["correct"] else error_kind(row["prompt"], row["completion"]) for row in completions]
    known = {"step": completions[-1]["step"], "completions": len(completions)}
    return known | {kind: kinds.count(kind) / len(kinds) for kind in ("right", *ERRORS)}


def right_by_question(completions: list[dict]) -> dict[str, float]:
    """The share of right completions for each question that was asked, by its name in ASKED; NaN where it was not asked."""
    asked = [(read_story(row["prompt"]).asks, row["correct"]) for row in completions]
    return {asks: mean([right for question, right in asked if question == asks]) for asks in ASKED}


def entropy_by_tenth(completions: list[dict]) -> dict[str, list[float]]:
    """Mean entropy in each tenth of the "right" and of the "wrong" completions; NaN where there are none."""
    profiles = {}
    for name in ("right", "wrong"):
        chosen = [row["entropy"] for row in completions if row["correct"] == (name == "right")] or [[]]
        profiles[name] = position_profile(*with_positions(chosen), BINS).tolist()
    return profiles


def draw_errors(run: Run, rows: list[dict], profiles: dict[str, dict], path: Path) -> None:
    """Three panels side by side: accuracy, first errors, entropy by position in the first and the last stretch."""
    figure = new_figure(12, 3.6)
    left, middle, right = figure.subplots(1, 3)
    steps, accuracy = series(run.steps, "accuracy")
    left.plot(steps, smoothed(accuracy, 0.8), color=GREY, label="training problems")
    left.plot(*series(run.metrics, "eval_pass_at_1"), "o-", color=BLUE, markersize=3, label="held-out problems")
    if run.plateau:
        left.axvline(run.plateau, color="black", linestyle="--", linewidth=1, label="plateau begins")
    left.set(xlabel="step", ylabel="share of right answers", ylim=(0, None))
    for kind, colour in zip(ERRORS, COLOURS):
        middle.plot([row["step"] for row in rows], [row[kind] for row in rows], "o-", color=colour, markersize=3, label=kind)
    room = 1.4 * max(row[kind] for row in rows for kind in ERRORS)  # for the legend
    middle.set(xlabel="step", ylabel="share of answers, by first error", ylim=(0, room or 1))
    for (when, profile), style in zip(profiles.items(), ("--", "-")):
        for name, colour in (("right", GREEN), ("wrong", ORANGE)):
            right.plot(range(1, BINS + 1), profile[name], style, color=colour, label=f"{name}, {when}")
    right.set(xlabel="tenth of the answer", ylabel="entropy (nats)", yscale="log")
    for axis in (left, middle, right):
        axis.grid(alpha=0.2)
        axis.legend(fontsize=8, ncols=2 if axis is middle else 1)
    save_figure(figure, path, dpi=90)


def errors(config: ErrorsConfig) -> None:
    """Write errors.csv and errors.png, and print the table. Raises SettingError."""
    refuse(config.stretch < 1, f"--stretch is {config.stretch}. Choose 1 or more.")
    run = Run(Path(config.run))
    if run.config.data != "tiny" or not run.completions:
        raise SettingError(f"The run {config.run} has logged no answers to the built-in stories. Name one with --log-completions above 0.")
    parts = stretches(run.completions, config.stretch)
    rows = [shares(part) for part in parts]
    ends = {f"first {config.stretch} steps": parts[0], f"last {config.stretch} steps": parts[-1]}
    profiles = {when: entropy_by_tenth(part) for when, part in ends.items()}
    write_atomically(run.folder / "errors.csv", csv_text(rows))
    draw_errors(run, rows, profiles, run.folder / "errors.png")
    names = ("right", *ERRORS)
    say(table(["to step", *names, "completions"], [[f"{r['step']}", *(f"{r[n]:.2f}" for n in names), f"{r['completions']}"] for r in rows]))
    asked = [[when, *(f"{share:.2f}" for share in right_by_question(part).values())] for when, part in ends.items()]
    say("\n" + table(["right, by question", *ASKED], asked))
    tenths = [[f"{name}, {when}", *(f"{h:.3f}" for h in h_of[name])] for when, h_of in profiles.items() for name in h_of]
    say("\n" + table(["entropy by tenth of the answer", *map(str, range(1, BINS + 1))], tenths))
    say(f"\nwritten: {run.folder / 'errors.csv'}, {run.folder / 'errors.png'}")


if __name__ == "__main__":
    run_program(lambda: errors(parse_command(ErrorsConfig, "python -m rlvr.analysis.errors")))
