"""A registered study: results.csv judged by the rules of its plan, and, before it is run, how often simulated studies get each verdict.

    python -m rlvr.analysis.study runs/study                                             reads results.csv and plan.yaml there
    python -m rlvr.analysis.study --simulate 1000 tutorials/experiment/plan-study.yaml   takes seconds

The rules are in rules.py; tutorials/experiment/registration.md says them in words.
"""

import csv
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

if not __package__:  # run by its path, which works from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rlvr.analysis.compare_arms import paired_differences
from rlvr.analysis.intervals import holm
from rlvr.analysis.rules import VERDICTS, Study, by_trunk, estimate, judge, read_study
from rlvr.common.files import write_atomically
from rlvr.common.text import interval, markdown_table, say, table
from rlvr.config import SettingError, as_sentence, refuse
from rlvr.run.cli import parse_command, run_program
from rlvr.run.figures import COLOURS, new_figure, save_figure

TRUTHS = {  # what is simulated: the effect of the first primary contrast, and whether its sham has it too
    "+2 points": (0.02, False),
    "+1 point": (0.01, False),
    "none": (0.0, False),
    "+2 points, the sham too": (0.02, True),
    "-2 points": (-0.02, False),
}


@dataclass
class StudyConfig:
    """Judge a study by the rules of its plan, or simulate such studies and count how often each verdict comes out.

    python -m rlvr.analysis.study runs/study  -- writes study.md and study.png there

    python -m rlvr.analysis.study --simulate 1000 tutorials/experiment/plan-study.yaml  -- takes seconds
    """

    path: str
    """The folder with results.csv and plan.yaml; with --simulate, the plan."""
    simulate: int = 0
    """Simulate this many studies of each kind instead."""
    branch_sd: float = 0.018
    """Simulated: standard deviation over the branches of one arm from one trunk (a pilot: 0.016 to 0.020)."""
    trunk_sd: float = 0.03
    """Simulated: standard deviation of the level over trunks. It cancels inside a block."""
    effect_sd: float = 0.005
    """Simulated: standard deviation of an effect over trunks."""
    agreement: float = 0.95
    """Simulated: correlation of a branch's two metrics (a pilot: 0.95 to 0.98)."""
    seed: int = 0
    """Seed of the simulation."""


# ---------------------------------------------------------------------------------------------------------------------------------------
# results.csv


def read_values(path: Path, study: Study) -> dict[str, np.ndarray]:
    """metric -> values [trunks, seeds, arms], NaN for what is missing. Raises SettingError."""
    with as_sentence(f"{path} cannot be read", "Run the plan first.", OSError, ValueError, csv.Error):
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    for name in ("trunk", "arm", "seed", study.metric, study.co_metric):
        refuse(name not in (rows or [()])[0], f"{path} has no column {name!r}, or no row. Let the experiment write it again.")
    metrics = {study.metric, study.co_metric, *(m for family in study.secondary.values() for m in family["metrics"])} - {"dip"}
    values = {metric: np.full((len(study.trunks), len(study.seeds), len(study.arms)), np.nan) for metric in metrics}
    places = set()
    for line, row in enumerate(rows, start=2):
        with as_sentence(f"Line {line} of {path} does not fit the plan", "Let the experiment write it.", TypeError, ValueError):
            place = study.trunks.index(row["trunk"]), study.seeds.index(int(row["seed"])), study.arms.index(row["arm"])
            numbers = {metric: float(row.get(metric) or "nan") for metric in metrics}
            if place in places or np.isinf(list(numbers.values())).any():
                raise ValueError("a branch that was there before, or an infinite number")
        places.add(place)
        for metric, number in numbers.items():
            values[metric][place] = number
    return _whole_blocks(path, study, values)


def _whole_blocks(path: Path, study: Study, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """NaN outside whole blocks, ratios as logarithms, and the metric `dip`, 1 or 0. Raises SettingError if nothing can be compared."""
    missing = np.isnan(values[study.metric] + values[study.co_metric])
    if none := [arm for i, arm in enumerate(study.arms) if missing[..., i].all()]:
        raise SettingError(f"{path} has no finished branch of the arm {none[0]!r}, and a block needs all arms. Run the plan further.")
    if missing.any(-1).all():
        raise SettingError(f"{path} has no whole block: all {len(study.arms)} arms from one trunk with one seed. Run the plan further.")
    with warnings.catch_warnings():  # a trunk without a whole block has no median; a ratio of 0 has no logarithm
        warnings.simplefilter("ignore", RuntimeWarning)
        values = {m: np.where(missing.any(-1, keepdims=True), np.nan, x) for m, x in values.items()}
        values = {m: np.where(x > 0, np.log(x), np.nan) if m in study.ratios else x for m, x in values.items()}
        main = values[study.metric]
        dip = np.where(np.isnan(main), np.nan, main < np.nanmedian(main, axis=(1, 2), keepdims=True) - study.dip)
    return values | {"dip": dip}


# ---------------------------------------------------------------------------------------------------------------------------------------
# What is written


def report(study: Study, values: dict[str, np.ndarray], draw_table: Callable) -> str:
    """How many blocks are whole, the primary contrasts with their verdicts, the dips, and the secondary families. As text or Markdown."""
    whole = ~np.isnan(values[study.metric]).any(-1)
    left = ", ".join(f"{study.trunks[t]} seed {study.seeds[s]}" for t, s in np.argwhere(~whole))
    blocks = f"{whole.sum()} of {whole.size} blocks are whole, in {whole.any(-1).sum()} of {len(study.trunks)} trunks."
    blocks += f" This is a partial result; not counted: {left}." if left else ""
    counts = [(arm, np.nansum(values["dip"][..., i]), whole.sum()) for i, arm in enumerate(study.arms)]
    dips = ", ".join(f"{arm} {k:.0f} of {n}" for arm, k, n in counts if k) or "none"
    dips = f"Dips, branches more than {study.dip:g} below the median {study.metric} of their trunk: {dips}."
    primary = ["primary", "trunks", f"{study.metric} [95 %]", "[90 %]", "median", "Holm p", study.co_metric, "less its sham", "verdict"]
    secondary = ["secondary", "metric", "contrast", "trunks", "difference [95 %]", "p", "Holm p"]
    tables = draw_table(primary, list(_primary(study, values))), draw_table(secondary, list(_secondary(study, values)))
    return "\n\n".join([blocks, tables[0], dips, tables[1]]) + "\n"


def _primary(study: Study, values: dict[str, np.ndarray]) -> Iterator[list[str]]:
    for name, (gap, co_gap, sham, p, said) in judge(study, values).items():
        median = np.nanmedian(by_trunk(values[study.metric], study.weights[name]))  # what a dip can hardly move
        possible = ": {1:+.3f} to {2:+.3f} is still possible".format(*gap.ends) if said == "undecided" else ""
        inside = interval(*gap.ends90).partition(" ")[2]
        numbers = [interval(*gap.ends), inside, f"{median:+.3f}", f"{p:.3f}", interval(*co_gap.ends), interval(*sham.ends)]
        yield [name, str(gap.n), *numbers, f"{said}{possible}"]


def _secondary(study: Study, values: dict[str, np.ndarray]) -> Iterator[list[str]]:
    for family, asked in study.secondary.items():
        pairs = [(metric, contrast) for metric in asked["metrics"] for contrast in asked["contrasts"]]
        found = [estimate(by_trunk(values[metric], study.weights[contrast])) for metric, contrast in pairs]
        for (metric, contrast), e, p in zip(pairs, found, holm([e.p for e in found])):  # what was not measured is not counted
            text = "x" + interval(*np.exp(e.ends), ".2f") if metric in study.ratios else interval(*e.ends)
            yield [family, metric, contrast, str(e.n), *([text, f"{e.p:.3f}", f"{p:.3f}"] if e.n else ["not measured", "", ""])]


def draw(study: Study, values: dict[str, np.ndarray], path: Path) -> None:
    """Each primary contrast in both metrics, and against its sham: a dot for each trunk, the interval, and the margin as a band."""
    rows = [row for name, sham in study.primary.items() for row in ((study.metric, name), (study.co_metric, name), (study.metric, sham))]
    gaps = [by_trunk(values[metric], study.weights[contrast]) for metric, contrast in rows]
    figure = new_figure(9, 1.2 + 0.45 * len(rows))
    axis = figure.subplots()
    axis.axvspan(-study.margin, study.margin, color="gray", alpha=0.15, linewidth=0)
    paired_differences(axis, {y: (x[~np.isnan(x)].tolist(), COLOURS[y % 3]) for y, x in enumerate(gaps)})
    axis.set_yticks(range(len(rows)), [f"{contrast}\n{metric}" for metric, contrast in rows], fontsize=8)
    axis.set(ylim=(len(rows) - 0.5, -0.5), xlabel="difference (0.01: one point)")
    axis.set_title(f"dots: trunks; lines: 95 % intervals; band: effects not worth having (±{study.margin:g})", fontsize=9)
    save_figure(figure, path)


# ---------------------------------------------------------------------------------------------------------------------------------------
# Simulated studies


def simulated(study: Study, c: StudyConfig, trunks: int, seeds: int, effect: float, sham_too: bool) -> dict[str, np.ndarray]:
    """Both metrics of c.simulate studies, [studies, trunks, seeds, arms]. The first primary contrast has the effect, and with sham_too its
    sham as well; the others have none. Treatments and shams vary over trunks."""
    rng, shape = np.random.default_rng(c.seed), (c.simulate, trunks, seeds, len(study.arms))

    def over_trunks(sd: float) -> np.ndarray:
        return sd * rng.standard_normal((c.simulate, trunks, 1, 1))

    truth = over_trunks(c.trunk_sd) + np.zeros(shape)
    for i, (name, sham) in enumerate(study.primary.items()):
        size = 0 if i else effect
        truth += (size + over_trunks(c.effect_sd)) * (study.weights[name] > 0)
        truth += (size * sham_too + over_trunks(c.effect_sd)) * (study.weights[sham] < 0)
    shared, own = c.branch_sd * c.agreement**0.5 * rng.standard_normal(shape), c.branch_sd * (1 - c.agreement) ** 0.5
    return {metric: truth + shared + own * rng.standard_normal(shape) for metric in (study.metric, study.co_metric)}


def rates(study: Study, c: StudyConfig) -> Iterator[list[str]]:
    """A row for each size and truth: the share of simulated studies with each verdict on the first primary contrast."""
    trunks, seeds = len(study.trunks), len(study.seeds)
    for size in dict.fromkeys([(trunks, seeds), (trunks, max(1, seeds // 2)), (max(2, trunks // 2), seeds)]):
        for truth, (effect, sham_too) in TRUTHS.items():
            said = next(iter(judge(study, simulated(study, c, *size, effect, sham_too)).values()))[-1]
            yield ["{} x {}".format(*size), truth, *(f"{(said == verdict).mean():.3f}" for verdict in VERDICTS)]


def analyse(c: StudyConfig) -> None:
    """The command. Raises SettingError."""
    path, least = Path(c.path), min(c.simulate, c.branch_sd, c.trunk_sd, c.effect_sd, c.seed)
    refuse(least < 0 or not 0 <= c.agreement <= 1, "Numbers are 0 or more, and --agreement is at most 1. See --help.")
    if c.simulate:
        say(markdown_table(["trunks x seeds", "true effect", *VERDICTS], list(rates(read_study(path), c))))
        return
    study = read_study(path / "plan.yaml")
    values = read_values(path / "results.csv", study)
    write_atomically(path / "study.md", report(study, values, markdown_table))
    draw(study, values, path / "study.png")
    say(report(study, values, table) + f"\nwritten to {path}: study.md, study.png")


if __name__ == "__main__":
    run_program(lambda: analyse(parse_command(StudyConfig, "python -m rlvr.analysis.study")))
