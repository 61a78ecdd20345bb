"""curves.png: a run at a glance. Accuracy, entropy of right and wrong answers, defects; the plateau step is marked."""

import csv
import io
import json
import math
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path

from rlvr.common.files import write_atomically
from rlvr.config import as_sentence
from rlvr.run.cli import resume_command
from rlvr.run.defects import DEFECTS
from rlvr.run.metrics import COLUMNS
from rlvr.run.settings import first_step, read_config

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#777777"  # can be told apart by colour-blind readers (Okabe and Ito)
INK = "#010101"  # lines and text; the report puts the text colour of the page in its place
COLOURS = [BLUE, ORANGE, GREEN, "#cc79a7", "#e69f00", "#56b4e9", "#000000"]


def read_metrics(folder: Path) -> list[dict[str, float | str | None]]:
    """metrics.csv as a list of rows; empty cells become None. Raises SettingError, with the line, for what no run has written."""
    path = Path(folder) / "metrics.csv"
    first = first_step(read_config(path.parent)) if path.with_name("config.json").is_file() else 0
    remedy = f"Put back the file that the run wrote, or let it write it again: {resume_command(folder)}"
    with as_sentence(f"{path} was edited or is damaged", remedy, OSError, ValueError, csv.Error):
        with open(path, newline="", encoding="utf-8-sig") as file:
            return parse_metrics(file, first)


def parse_metrics(lines: Iterable[str], first: int) -> list[dict[str, float | str | None]]:
    """Lines of metrics.csv as rows. Raises ValueError, with the line, unless there is a number in every cell and a row for every step.

    first: how many steps were made before the run began (of a branch); the row with that number is an evaluation, if there is one.
    """
    reader, rows = csv.DictReader(lines, restval="nothing"), []
    if reader.fieldnames != COLUMNS:
        raise ValueError("line 1 does not name the columns that this version writes")
    for row in reader:
        for name, cell in row.items():
            try:
                row[name] = cell if name == "stage" else float(cell) if cell else None
            except (ValueError, TypeError):  # TypeError: the list of all cells beyond the last column
                row[name] = math.nan
            if row[name] != row[name]:
                raise ValueError(f"line {reader.line_num} has {cell!r} for {name or 'no column'}")
        if row["step"] not in ([rows[-1]["step"] + 1] if rows else (first, first + 1)):
            raise ValueError(f"line {reader.line_num} is not the step that follows")
        rows.append(row)
    return rows


def series(rows: list[dict], name: str) -> tuple[list[float], list[float]]:
    points = [(row["step"], row[name]) for row in rows if row[name] is not None]
    return [p[0] for p in points], [p[1] for p in points]


def smoothed(values: list[float], weight: float = 0.5) -> list[float]:
    """Exponential moving average, started at the first value."""
    return list(accumulate(values, lambda before, value: weight * before + (1 - weight) * value))


def _faint_and_smooth(axis, x, y, colour, label) -> None:
    axis.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
    axis.plot(x, smoothed(y), color=colour, linewidth=1.8, label=label)


def new_figure(width: float, height: float):
    """A matplotlib figure, in inches."""
    from matplotlib.figure import Figure  # not pyplot: it would switch a notebook's own backend

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure, path: Path, **style) -> None:
    """As PNG, whole or not at all; a link of that name is replaced, not followed."""
    png = io.BytesIO()
    figure.savefig(png, format="png", **{"dpi": 120} | style)
    write_atomically(path, png.getvalue())


def title(c) -> str:
    """What a run is, in one line that fits above its curves: long paths lose their middle.

    >>> from types import SimpleNamespace
    >>> title(SimpleNamespace(method="pos", model="experiments/of-last-autumn/new/smollm2/model", data="my.jsonl", seed=0))
    'method pos, model experiments/o…/smollm2/model, data my.jsonl, seed 0'
    """
    most = 28 - len(c.method) // 2  # characters for each of the two paths
    model, data = (x if len(x) <= most else f"{x[: most // 2]}…{x[-most // 2 :]}" for x in (c.model, c.data))
    return f"method {c.method}, model {model}, data {data}, seed {c.seed}"


def draw_curves(folder: Path) -> Path:
    """Draw curves.png from metrics.csv, config.json and summary.json of a run folder. Returns its path."""
    rows, c, figure = read_metrics(folder), read_config(folder), new_figure(8, 10)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    figure.suptitle(title(c), parse_math=False, fontsize=10)  # a name may hold dollar signs

    trained = [row for row in rows if row["accuracy"] is not None]
    _faint_and_smooth(top, *series(trained, "accuracy"), GREY, "training problems")
    held_out = [row for row in rows if row["eval_pass_at_1"] is not None]
    if held_out:
        x, y = series(held_out, "eval_pass_at_1")
        low = [row["eval_pass_at_1"] - row["eval_pass_at_1_low"] for row in held_out]
        high = [row["eval_pass_at_1_high"] - row["eval_pass_at_1"] for row in held_out]
        top.errorbar(x, y, yerr=[low, high], color=BLUE, marker="o", markersize=4, capsize=3, label="held-out pass@1, 95 % interval")
        label = f"held-out pass@{c.eval_completions}"
        top.plot(*series(held_out, "eval_pass_at_max"), color=GREEN, marker="s", markersize=3, linewidth=1, label=label)
    top.set(ylabel="share of right answers", ylim=(0, 1.02))

    for name, colour, label in (("entropy_right", GREEN, "right answers"), ("entropy_wrong", ORANGE, "wrong answers")):
        _faint_and_smooth(middle, *series(trained, name), colour, label)
    middle.set(ylabel="token entropy (nats)", ylim=(0, None))

    for name, colour in zip(DEFECTS, COLOURS):
        x, y = series(trained, f"defect_{name}")
        if any(y):
            bottom.plot(x, smoothed(y), color=colour, linewidth=1.5, label=name.replace("_", " "))
    bottom.set(ylabel="share of completions with the defect", ylim=(0, None), xlabel="step")

    for axis in (top, middle, bottom):
        axis.grid(alpha=0.2)
        if summary["plateau_step"]:
            axis.axvline(summary["plateau_step"], color="black", linestyle="--", linewidth=1, label="plateau begins")
        axis.legend(fontsize=8, loc="best", ncols=1 if axis is not bottom else 2)
    bottom.xaxis.get_major_locator().set_params(integer=True)
    path = folder / "curves.png"
    save_figure(figure, path)
    return path
