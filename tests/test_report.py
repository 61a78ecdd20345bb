"""The report: sections on runs made up so that the answer is known, the page as a whole, and the microscope in a real browser."""

import csv
import dataclasses
import doctest
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, get_origin
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers import RUN, window_size
from markupsafe import escape

from rlvr.analysis import probe, replay
from rlvr.common import text
from rlvr.config import SettingError, TrainConfig
from rlvr.analysis.compare_arms import METRICS
from rlvr.analysis.probe import ProbeConfig
from rlvr.analysis.report import arms, exploration, instance, position, section, stage
from rlvr.analysis.report import changes as plateau
from rlvr.analysis.report.__main__ import ReportConfig, report, unique_names
from rlvr.analysis.report.arms import Experiment
from rlvr.analysis.report.microscope import microscope_data
from rlvr.run import figures
from rlvr.analysis.intervals import mean_interval
from rlvr.analysis.report.run import Run, bootstrap, share_of_largest
from rlvr.analysis.report.section import CANNOT, NO, OPEN, YES, Estimate, Panel, Section, Verdict, draw, percent
from rlvr.run.defects import DEFECTS
from rlvr.train import train

LABELS = "S1 S2 S3 S4 S5 S6 S7 I1 I2 I3 T1 T2 T3 E1 E2 E3".split()


def made_up(**parts) -> SimpleNamespace:
    """A run of which only the given parts exist; its learning rate is constant."""
    columns = {"stage": None, "eval_pass_at_1": None, "lr": 0.001}
    run = SimpleNamespace(name="made-up", folder="runs/made-up", plateau=None, completions=[], fixed=[], replacements=[], exploration={}, changes={},
                          config=TrainConfig(), slowed="", **{k: v for k, v in parts.items() if k == "token"})  # fmt: skip
    vars(run).update(parts)
    if "steps" in parts:
        run.steps = [columns | row for row in parts["steps"]]
        run.metrics, run.last = run.steps, int(run.steps[-1]["step"])
        run.series = lambda name: (
            [r["step"] for r in run.steps if r[name] is not None],
            [r[name] for r in run.steps if r[name] is not None],
        )
        run.slowed = Run.slowed.fget(run)
    run.rising_end = run.plateau or getattr(run, "last", 0)
    return run


def drawn(section: Section, tmp_path) -> list[str]:
    """All pictures of a section can be drawn."""
    return [draw(panel, tmp_path / f"{i}.png") for i, panel in enumerate(section.panels)]


# ---------------------------------------------------------------------------------------------------------------------------------------
# Stage


def staged(rise: float, late: float, plateau: int | None = 10, last_rate: float = 0.001) -> SimpleNamespace:
    steps = []
    for s in range(1, 31):
        early, after = min(s, 10), max(0, s - 10)
        numbers = {"accuracy": 0.1 + rise * early + late * after, "entropy": 2 - rise * early - late * after}
        steps.append({"step": float(s), "lr": last_rate if s == 30 else 0.001} | numbers)
    return made_up(steps=steps, plateau=plateau)


@pytest.mark.parametrize(
    "rise, late, plateau, agrees",
    [(0.05, 0.001, 10, YES), (0.02, 0.015, 10, NO), (0.05, -0.03, 10, NO), (0.05, 0.001, None, CANNOT), (0.05, 0, 28, CANNOT)],
)
def test_s1(tmp_path, rise, late, plateau, agrees):
    section = stage.two_stages([staged(rise, late, plateau)])
    assert section.verdicts[0].agrees == agrees
    assert len(section.rows) == 30 and len(drawn(section, tmp_path)) == 1
    if agrees == YES:
        assert "5.00 points" in section.verdicts[0].text and "0.10 points" in section.verdicts[0].text


def test_a_branch_that_begins_on_the_plateau_has_no_rising_stage():
    """Its steps count on from its trunk's: they are not the first ones, whatever their number."""
    run = entropies((0.5, 0.1), (2.0, 0.5))
    run.steps = [dict(row, step=row["step"] + 20, entropy=1 - i / 40, **{f"defect_{d}": 0.5 for d in DEFECTS}) for i, row in enumerate(run.steps)]
    run.metrics, run.last = run.steps, 45
    for finding in (stage.two_stages, stage.who_loses_entropy, stage.token_shifts, stage.defects_vanish):
        assert finding([run]).verdicts[0].agrees == CANNOT, finding.__name__
    late = staged(0.05, 0.001)
    late.steps = [row for row in late.steps if row["step"] > 4]
    late.metrics = late.steps
    assert "Up to step 10 accuracy rose by 5.00 points a step" in stage.two_stages([late]).verdicts[0].text


def test_s1_of_a_learning_rate_that_falls():
    """It alone would bend the curves, so a yes would prove nothing; a no stands."""
    found = stage.two_stages([staged(0.05, 0.001, last_rate=0.0005)]).verdicts[0]
    assert found.agrees == CANNOT and "The learning rate fell from 0.001 to 0.0005" in found.text and "constant" in found.text
    assert stage.two_stages([staged(0.02, 0.015, last_rate=0.0005)]).verdicts[0].agrees == NO


def test_s1_that_the_scatter_of_steps_leaves_open():
    run = staged(0.03, 0.008)
    for row in run.steps:
        row["accuracy"] += 0.05 * (-1) ** row["step"]
    assert stage.two_stages([run]).verdicts[0].agrees == OPEN


def entropies(right: tuple, wrong: tuple, fixed_right=(0.4, 0.4), fixed_wrong=(1.6, 0.8), accuracy=0.25, steps: int = 20) -> SimpleNamespace:
    """A rising stage in which entropies go evenly from the first to the second number, and 40 completions of the first model, half of
    them right, as the first and the last model read them. The plateau's steps would turn every answer."""
    rows = []
    for s in range(steps + 5):
        r, w = (a + (b - a) * s / (steps - 1) for a, b in (right, wrong))
        rows.append(dict(step=s + 1.0, accuracy=accuracy, entropy_right=r if s < steps else 9.0, entropy_wrong=w if s < steps else 1.0,
                         length_right=10.0, length_wrong=10.0))  # fmt: skip
    fixed = [dict(step=s, correct=i % 2 == 0, token_ids=[7, 7], entropy=[(fixed_wrong if i % 2 else fixed_right)[s > 0] + 0.01 * (i % 5)] * 2)
             for s in (0, steps, steps + 400) for i in range(40)]  # fmt: skip
    return made_up(steps=rows, plateau=steps, fixed=fixed)


@pytest.mark.parametrize(
    "case, agrees",
    [
        (dict(right=(0.5, 0.4), wrong=(2.0, 0.8)), YES),
        (dict(right=(0.5, 0.1), wrong=(2.0, 0.8)), NO),  # more nats, and less than half of the factor
        (dict(right=(0.8, 0.7), wrong=(0.5, 0.3)), NO),  # wrong answers start lower
        (dict(right=(0.5, 0.9), wrong=(2.0, 0.2)), NO),  # and here they do not stay higher
        (dict(right=(0.5, 0.4), wrong=(2.0, 0.8), accuracy=0.98), NO),  # too few to make up most of the fall
        (dict(right=(0.5, 0.4), wrong=(2.0, 0.8), fixed_right=(0.4, 0.1)), NO),  # on the fixed text right answers fall by the larger factor
        (dict(right=(0.5, 0.4), wrong=(2.0, 0.8), fixed_wrong=(0.2, 0.1)), NO),  # wrong ones start lower there
        (dict(right=(0.5, 0.4), wrong=(2.0, 0.8), steps=4), CANNOT),
    ],
)
def test_s2(tmp_path, case, agrees):
    section = stage.who_loses_entropy([entropies(**case)])
    assert section.verdicts[0].agrees == agrees, section.verdicts[0].text
    if agrees == YES:
        assert len(drawn(section, tmp_path)) == 2 and "steps of this run" in section.verdicts[0].text
        (row,) = section.rows
        assert (row["from_step"], row["to_step"]) == (1, 20) and "Steps 1 to 4 against 17 to 20" in section.verdicts[0].text
        # three quarters of the tokens are in wrong answers, whose mean goes from 1.905 to 0.895
        assert row["wrong"] == pytest.approx(0.75 * (1.2 * 16 / 19)) and row["mix"] == pytest.approx(0)


def test_s2_without_a_fixed_text_is_half_a_yes():
    run = entropies(right=(0.5, 0.4), wrong=(2.0, 0.8))
    run.fixed = []
    found = stage.who_loses_entropy([run]).verdicts[0]
    assert found.agrees == OPEN and "The fixed text is missing" in found.text


WORDS = {1: " lunch", 2: "=", 3: " the", 4: "5"}


def read_again(falls: dict[int, float], grown: bool = True) -> SimpleNamespace:
    """Completions of the first model with tokens 1 to 4, whose entropy falls by so much; right answers of the end hold all but token 1."""
    logged = [dict(step=s, correct=s > 5, token_ids=[1, 3, 3, 2] if (s > 5) != grown else [2, 3, 4, 2], entropy=[1.0] * 4) for s in range(1, 11)]
    for row in logged:
        if row["step"] > 5:
            row["token_ids"] = [t for t in row["token_ids"] if t != 1] + [3]
    fixed = [dict(step=s, number=i, correct=False, token_ids=[1, 2, 3, 4], entropy=[2.0 - (falls.get(t, 0) if s else 0) + 0.001 * i for t in (1, 2, 3, 4)])
             for s in (0, 10, 90) for i in range(30)]  # fmt: skip
    return made_up(completions=logged, fixed=fixed, plateau=10, token=WORDS.__getitem__)


def test_s3(tmp_path):
    section = stage.token_shifts([read_again({1: 1.5})])
    by = {r["token"]: r for r in section.rows}
    assert by[" lunch"]["entropy_before"] == pytest.approx(2.0145) and by[" lunch"]["entropy_after"] == pytest.approx(0.5145)
    assert by[" lunch"]["unrelated"] and not by[" the"]["unrelated"], "a right answer uses it"
    assert by["5"]["category"] == "formal reasoning" and by[" lunch"]["share_after"] == 0
    found = section.verdicts[0]
    assert found.agrees == YES and "lost at “lunch”" in found.text and "(25 % of all places) lost 1.50 nats, the others 0.00" in found.text
    assert len(drawn(section, tmp_path)) == 3


def test_s3_can_disagree():
    """The largest falls at a word that right answers use; formal reasoning that becomes rarer."""
    assert stage.token_shifts([read_again({3: 1.5})]).verdicts[0].agrees == NO
    assert stage.token_shifts([read_again({1: 1.5}, grown=False)]).verdicts[0].agrees == NO


def test_s3_cannot_be_asked():
    run = read_again({1: 1.5})
    for row in run.completions:
        row["token_ids"] = row["token_ids"] + [1]  # right answers use that word too: nothing is unrelated
    assert stage.token_shifts([run]).verdicts[0].agrees == CANNOT
    assert stage.token_shifts([made_up(plateau=10, fixed=run.fixed)]).verdicts[0].agrees == CANNOT  # nothing was logged
    assert "rlvr.analysis.probe" in stage.token_shifts([made_up(plateau=10, completions=run.completions)]).verdicts[0].text


def test_s4(tmp_path):

    def steps(first, last):
        return [
            {"step": float(s), **dict.fromkeys((f"defect_{d}" for d in DEFECTS), 0.0), "defect_no_box": first if s < 6 else last}
            for s in range(1, 11)
        ]

    rows = [dict(step=s, prompt="how", completion="五" if s < 6 else "5") for s in range(1, 11)]
    section = stage.defects_vanish([made_up(steps=steps(0.4, 0.1), plateau=10, completions=rows)])
    assert section.verdicts[0].agrees == YES
    assert "format violation 40.0 % → 10.0 %" in section.verdicts[0].text and "language mixing 100.0 % → 0.0 %" in section.verdicts[0].text
    assert section.rows[0]["format violation"] == 0.4 and len(drawn(section, tmp_path)) == 1
    assert stage.defects_vanish([made_up(steps=steps(0.4, 0.3), plateau=10)]).verdicts[0].agrees == NO
    assert stage.defects_vanish([made_up(steps=steps(0.0, 0.0), plateau=10)]).verdicts[0].agrees == CANNOT
    assert stage.defects_vanish([made_up(steps=steps(0.4, 0.1), plateau=5)]).verdicts[0].agrees == CANNOT


def changes(n: int = 2000, big: int = 10, against: bool = False, rising: int = 0) -> dict[str, np.ndarray]:
    """n tokens in 10 completions of a plateau step, each of a problem of its own; the first `big` change by 0.2, along or against their
    advantage, and are tokens of mathematics. Besides, as many of a step of the rising stage, of which `rising` change so."""
    i = np.tile(np.arange(n), 2)
    late = np.repeat([True, False], n)
    advantage = np.where(i // 10 % 2 == 0, 1.0, -1.0)
    moved = i < np.where(late, big, rising)
    change = np.where(moved, 0.2, 0.0001 * (1 + i / n)) * advantage * (-1 if against else 1)
    return dict(change=change, advantage=advantage, token=np.where(moved, 2, 3), step=np.where(late, 21, 5), row=i % 10 + 10 * ~late,
                problem=i % 10 + 10 * ~late, plateau=late, row_step=np.repeat([21, 5], 10), row_log_ppl=np.arange(20.0),
                row_problem=np.repeat(np.arange(10), 2))  # fmt: skip


def changed(*, rates=(0.001, 0.001), **settings) -> SimpleNamespace:
    steps = [{"step": s, "lr": rate} for s, rate in zip((5.0, 21.0), rates)]
    return made_up(changes=changes(**settings), steps=steps, plateau=10, token=WORDS.__getitem__)


def test_s5(tmp_path):
    section = plateau.few_tokens_change([changed(rising=200)])
    row = section.rows[1]
    assert row["stage"] == "plateau" and row["share_changed"] == 0.005 and row["with_their_advantage"] == 1
    assert row["share_changed_positive"] == 0.01 and row["share_changed_negative"] == 0  # 10 of 1000
    assert row["mean_change_positive"] > 0 > row["mean_change_negative"]
    assert section.verdicts[0].agrees == YES and len(drawn(section, tmp_path)) == 1


@pytest.mark.parametrize(
    "case, agrees",
    [
        (dict(big=100, rising=400), NO),  # one in twenty changes
        (dict(big=10, rising=0), NO),  # fewer change in the rising stage: no mark of the plateau
        (dict(big=10, rising=200, against=True), NO),
        (dict(big=10, rising=200, rates=(0.001, 0.0005)), CANNOT),  # the learning rate has halved
        (dict(big=100, rising=400, rates=(0.001, 0.0005)), NO),  # even so
    ],
)
def test_s5_can_disagree(case, agrees):
    assert plateau.few_tokens_change([changed(**case)]).verdicts[0].agrees == agrees


def test_s5_of_nothing():
    still = plateau.few_tokens_change([changed(big=0)]).verdicts[0]
    assert "nan" not in still.text  # nothing moved: no direction to speak of
    assert plateau.few_tokens_change([made_up()]).verdicts[0].agrees == CANNOT
    assert "python -m rlvr.analysis.probe runs/made-up" in plateau.few_tokens_change([made_up()]).verdicts[0].text


def test_a_rising_stage_alone_proves_nothing_about_the_plateau(tmp_path):
    run = changed(rising=50)
    run.changes |= surenesses(run.changes, lambda p, moved: np.where(moved, 1.0, 0.1))
    run.changes["plateau"] = np.zeros(4000, bool)
    for function in (
        plateau.few_tokens_change,
        plateau.changed_tokens_are_uncertain,
        plateau.changed_tokens_are_formal,
        instance.learning_in_low_perplexity,
    ):
        section = function([run])
        assert section.verdicts[0].agrees == CANNOT and section.rows and drawn(section, tmp_path)


def surenesses(found: dict, entropy) -> dict:
    """What S6 needs besides: log-probs from 0.5 to 0.9, log-odds that change most for the tokens that `changes` moved, an entropy."""
    p, moved = 0.5 + 0.4 * (np.arange(len(found["row"])) % 100) / 100, np.abs(found["change"]) > 0.05
    odds = np.log(p / (1 - p)) + np.where(moved, 1.0, 0.01)
    h = entropy(p, moved)
    return dict(logp=np.log(p), logp_after=-np.log1p(np.exp(-odds)), entropy=h, grad_norm=h)


def test_s6(tmp_path):
    run = changed(big=50)
    run.changes |= surenesses(run.changes, lambda p, moved: np.where(moved, 1.0, 0.1))
    section = plateau.changed_tokens_are_uncertain([run])
    found = section.verdicts[0]
    assert found.agrees == YES and "Entropy of the largest changes less that of the rest (nats) +0.8" in found.text
    assert len(section.rows) == 10 and section.rows[-1]["change"] == pytest.approx((50 * 1.0 + 150 * 0.01) / 200, rel=0.01)
    assert drawn(section, tmp_path)


def test_s6_is_not_true_by_construction():
    """All log-odds change alike, up to chance, and those of sure tokens a little more: so the probability of the undecided ones changes
    most, as it must, and the finding is false."""
    run = changed(big=0)
    p = 0.5 + 0.49 * (np.arange(4000) % 100) / 100
    odds = np.log(p / (1 - p)) + 0.1 + 0.02 * p
    run.changes |= dict(logp=np.log(p), logp_after=-np.log1p(np.exp(-odds)), entropy=1 - p, grad_norm=1 - p)
    change = np.abs(np.exp(run.changes["logp_after"]) - p)
    assert change[p < 0.6].min() > change[p > 0.9].max()
    assert plateau.changed_tokens_are_uncertain([run]).verdicts[0].agrees == NO


def test_s6_holds_the_advantage_fixed():
    """Tokens with a large advantage change most, and are undecided; among those of one advantage the sure ones change most."""
    run = changed(big=0)
    strong = np.arange(4000) % 5 == 0
    p = 0.5 + 0.49 * (np.arange(4000) // 10 % 100) / 100
    odds = np.log(p / (1 - p)) + np.where(strong, 1.0, 0.1) + 0.02 * p
    run.changes |= dict(advantage=np.where(strong, 2.0, 0.5), logp=np.log(p), logp_after=-np.log1p(np.exp(-odds)), entropy=3 * strong - p, grad_norm=3 * strong - p)
    assert plateau.changed_tokens_are_uncertain([run]).verdicts[0].agrees == NO


def test_s6_of_sure_tokens_cannot_be_asked():
    run = changed(big=50)
    run.changes |= surenesses(run.changes, lambda p, moved: p) | dict(logp=np.full(4000, -1e-4))
    assert plateau.changed_tokens_are_uncertain([run]).verdicts[0].agrees == CANNOT


def test_s7(tmp_path):
    section = plateau.changed_tokens_are_formal([changed(big=20)])
    formal = section.rows[0]
    assert formal["category"] == "formal reasoning" and formal["share_of_top"] == 1 and formal["base_rate"] == 0.01
    assert formal["ratio"] == pytest.approx(100) and formal["mean_change"] == pytest.approx(0.2)
    assert section.verdicts[0].agrees == YES and drawn(section, tmp_path)
    other = changed(big=20)
    other.token = {2: " the", 3: "5"}.__getitem__
    assert plateau.changed_tokens_are_formal([other]).verdicts[0].agrees == NO  # now 99 % of all tokens, and none of the largest
    other.token = {2: "5", 3: "5"}.__getitem__
    assert plateau.changed_tokens_are_formal([other]).verdicts[0].agrees == CANNOT  # all of them
    assert plateau.changed_tokens_are_formal([changed(n=900, big=20)]).verdicts[0].agrees == CANNOT  # nine tokens


def test_a_share_of_almost_nothing_is_a_count(tmp_path):
    """Of 4,000 tokens three are a connective: "0 % of all tokens" would say that none is."""
    run = changed(big=20)
    run.changes["token"] = np.where(np.isin(np.arange(4000), [200, 300, 400]), 5, run.changes["token"])
    run.token = (WORDS | {5: " so"}).__getitem__
    text = plateau.changed_tokens_are_formal([run]).verdicts[0].text
    assert "logical structuring 0 of 20 largest changes, 3 of 2,000 tokens" in text and " 0 %" not in text, text
    assert "10 of 2,000 tokens changed by more than 0.05" in plateau.few_tokens_change([changed(big=10)]).verdicts[0].text


def test_the_title_above_the_curves_of_a_run_fits():
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    assert doctest.testmod(figures).failed == 0
    for name in ("pos", "ppl-sham+pos-sham"):
        figure = figures.new_figure(8, 10)
        c = TrainConfig(method=name, model="my/EXPERIMENTS/" * 9, data="/scratch/WORD-PROBLEMS/" * 9, seed=1000)
        words = figure.suptitle(figures.title(c), fontsize=10)
        extent = words.get_window_extent(FigureCanvasAgg(figure).get_renderer())
        assert 0 <= extent.x0 < extent.x1 <= figure.bbox.width and words.get_text().count("…") == 2


def test_dollar_signs_in_the_name_of_a_model_are_no_formula(tmp_path, monkeypatch):
    shutil.copy(Path(__file__).parent.parent / "tutorials" / "quickstart" / "pos.csv", tmp_path / "metrics.csv")
    (tmp_path / "summary.json").write_text('{"plateau_step": 25}')
    made = []
    monkeypatch.setattr(figures, "read_config", lambda folder: TrainConfig(model="$HOME/a_$b"))
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: made.append(figure))
    figures.draw_curves(tmp_path)
    (words,) = made[0].texts  # the title above the three pictures
    assert "$HOME/a_$b" in words.get_text() and not words.get_parse_math()


def test_s7_asks_for_the_strongest_updates():
    """Formal reasoning is more frequent among the largest changes than elsewhere, but connectives change more on average."""
    run = changed(big=20)
    run.changes["token"] = np.where(np.arange(4000) < 16, 2, np.where(np.arange(4000) < 26, 5, 3))
    run.changes["change"] = np.where(run.changes["token"] == 5, 0.4, run.changes["change"])
    run.token = (WORDS | {5: " so"}).__getitem__
    assert plateau.changed_tokens_are_formal([run]).verdicts[0].agrees == NO


def test_s7_compares_no_category_that_hardly_occurs():
    """One connective, in one problem, changes more than all else: resampling problems would give it an interval of no width."""
    run = changed(big=20)
    run.changes["token"] = np.where(np.arange(4000) == 20, 5, run.changes["token"])
    run.changes["change"] = np.where(run.changes["token"] == 5, 0.9, run.changes["change"])
    run.token = (WORDS | {5: " so"}).__getitem__
    found = plateau.changed_tokens_are_formal([run]).verdicts[0]
    assert found.agrees == YES and "logical structuring 5 % of the largest changes" in found.text
    assert "its mean change less that of semantic support" in found.text


def test_the_interval_of_the_largest_changes_is_over_problems():
    """Both of two problems or one of them: the interval goes from 0 to 1, however many completions each has."""
    size, member = np.repeat([3.0, 2.0], 50), np.repeat([True, False], 50)
    share, low, high, base = share_of_largest(size, member, np.repeat([7, 8], 50), 0.1)
    assert (share, low, high, base) == (1.0, 0.0, 1.0, 0.5)
    assert share_of_largest(size, member, np.arange(100), 0.1)[1] == 1.0  # a hundred problems: sure of it


# ---------------------------------------------------------------------------------------------------------------------------------------
# Instance and token


def test_i1(tmp_path):
    """Rows 0, 2, ... are the low half of their problem. All changes lie there, or all elsewhere."""
    run = changed(big=0)
    for rows, agrees in (((0, 2, 4, 6, 8), YES), ((1, 3, 5, 7, 9), NO), ((0, 2, 1, 3), OPEN)):
        run.changes["change"] = np.where(np.isin(run.changes["row"], rows), 0.2 + 0.001 * (np.arange(4000) % 7), 0.0)
        section = instance.learning_in_low_perplexity([run])
        low = section.rows[0]
        assert low["half"] == "low" and low["base_rate"] == 0.5 and (agrees == OPEN or low["share_of_top"] == (agrees == YES))
        assert section.verdicts[0].agrees == agrees and drawn(section, tmp_path)
    assert instance.learning_in_low_perplexity([changed(n=900)]).verdicts[0].agrees == CANNOT


def test_halves_by_perplexity_are_those_of_a_problem():
    """An easy problem and a hard one: each has a low half."""
    low = instance.low_of_their_group(np.array([0.1, 0.2, 5.0, 6.0]), np.array([1, 1, 2, 2]))
    assert low.tolist() == [True, False, True, False]


def replaced(n: int = 40, matters: float = 1.0, **drops) -> list[dict]:
    """Four completions of each of n problems, three places in each, a share of which matter; `drops` gives the loss of accuracy in the low
    and the high half of perplexity of each problem, or by place."""
    rows = []
    for i in range(4 * n):
        for where in ("early", "middle", "late"):
            lost, is_fork = drops.get(where, drops.get("high" if i % 2 else "low", 0.0)), i % 20 < 20 * matters
            kept, after = (0.75, 0.75 - lost + 0.1 * (-1) ** (i // 4)) if is_fork else (None, None)
            rows.append(dict(where=where, completion=i, problem=i // 4, step=40, log_ppl=i // 4 + i % 2, entropy=1.0, kept=kept, replaced=after))
    return rows


@pytest.mark.parametrize("low, high, agrees", [(0.1, 0.5, YES), (0.5, 0.1, NO), (0.3, 0.3, OPEN)])
def test_i2(tmp_path, low, high, agrees):
    """Halves are those of a problem: the log-perplexities of the problems differ by more than those of a problem's completions."""
    section = instance.low_perplexity_is_robust([made_up(replacements=replaced(low=low, high=high))])
    first, second = section.rows
    assert first["group"] == "low perplexity" and first["n"] == first["places"] == 240 and first["drop"] == pytest.approx(low)
    assert second["drop"] == pytest.approx(high) and first["low"] <= first["drop"] <= first["high"]
    assert section.verdicts[0].agrees == agrees and drawn(section, tmp_path)
    assert "240 of 240" in section.verdicts[0].text and "show a difference of" in section.verdicts[0].text


def test_i2_leaves_out_problems_with_one_right_completion():
    rows = replaced(low=0.1, high=0.5) + [dict(replaced()[0], completion=999, problem=999, replaced=-9.0)]
    assert [row["places"] for row in instance.low_perplexity_is_robust([made_up(replacements=rows)]).rows] == [240, 240]


def test_a_difference_that_chance_explains_leaves_i2_open():
    """2 points between halves whose differences scatter by 20 from problem to problem: the interval holds 0, whichever half happens to be ahead."""
    for gap in (0.02, -0.02):
        rows = replaced(low=0.3, high=0.3 + gap)
        for i, row in enumerate(rows):
            row["replaced"] += 0.1 * (-1) ** (i // 12 + i // 3)
        found = instance.low_perplexity_is_robust([made_up(replacements=rows)]).verdicts[0]
        assert found.agrees == OPEN, found.text


@pytest.mark.parametrize("early, late, agrees", [(0.5, 0.1, YES), (0.1, 0.5, NO), (0.2, 0.2, OPEN)])
def test_t2(tmp_path, early, late, agrees):
    section = position.early_tokens_decide([made_up(replacements=replaced(early=early, late=late))])
    assert [round(r["drop"], 2) for r in section.rows] == [early, late]
    assert section.verdicts[0].agrees == agrees and drawn(section, tmp_path)
    assert position.early_tokens_decide([made_up()]).verdicts[0].agrees == CANNOT


def test_replacements_that_do_not_matter_answer_nothing():
    """One place in twenty passes by chance, so one in ten is not enough; and ten of each kind are the fewest."""
    for n, matters, wanted in ((200, 0.1, CANNOT), (200, 0.15, YES), (4, 0.4, CANNOT), (4, 1.0, YES)):
        found = position.early_tokens_decide([made_up(replacements=replaced(n, matters, early=0.5, late=0.1))]).verdicts[0]
        assert found.agrees == wanted and ("wording" in found.text) is (wanted == CANNOT), (n, matters, found.text)


def test_too_few_places_for_the_stated_power_say_so():
    rows = replaced(8, early=0.3, late=0.3)
    for i, row in enumerate(rows):
        row["replaced"] += (0.5, -0.5, 0.3, -0.3)[i // 12 % 4] * (row["where"] == "early")
    found = position.early_tokens_decide([made_up(replacements=rows)]).verdicts[0]
    assert found.agrees == CANNOT and "times as many" in found.text


@pytest.mark.parametrize("first, middle, last, agrees", [(2.0, 1.0, 2.0, YES), (2.0, 1.0, 0.5, NO)])
def test_t1(tmp_path, first, middle, last, agrees):
    shape = [first] * 2 + [middle] * 16 + [last] * 2
    rows = [dict(step=s, correct=c, entropy=[h + 0.01 * (s % 3) for h in shape]) for s in range(1, 41) for c in (True, False)]
    section = position.entropy_by_position([made_up(completions=rows, plateau=20, last=40, replacements=replaced())])
    assert section.verdicts[0].agrees == agrees and drawn(section, tmp_path)
    profile = [r["entropy"] for r in section.rows if r["stage"] == "plateau" and r["answers"] == "right"]
    assert profile == pytest.approx([h + 0.01 for h in shape], abs=1e-3)
    assert position.entropy_by_position([made_up(last=3)]).verdicts[0].agrees == CANNOT
    assert position.entropy_by_position([made_up(completions=rows, last=40)]).verdicts[0].agrees == CANNOT  # there is no plateau
    unknown = position.entropy_by_position([made_up(completions=rows, plateau=20, last=40)]).verdicts[0]
    assert unknown.agrees == CANNOT and "python -m rlvr.analysis.probe runs/made-up" in unknown.text
    for matters, wanted in ((0.0, CANNOT), (0.5, agrees)):  # where nothing that is undecided matters, a U would be one of wording
        run = made_up(completions=rows, plateau=20, last=40, replacements=replaced(matters=matters))
        assert position.entropy_by_position([run]).verdicts[0].agrees == wanted


# ---------------------------------------------------------------------------------------------------------------------------------------
# Several runs


def test_intervals_over_runs_of_equal_settings():
    """Three seeds of one setting are put together, a run of another method is not; a run that could not be asked has no part."""
    runs = [staged(rise, 0.001) for rise in (0.04, 0.05, 0.06)] + [staged(0.05, 0.001), staged(0.05, 0.001, last_rate=0.0005)]
    for i, run in enumerate(runs):
        run.name, run.config = f"seed{i}", TrainConfig(method="pos" if i == 3 else "grpo", seed=i)
    section = stage.two_stages(runs)
    assert [v.agrees for v in section.verdicts] == [YES, YES, YES, YES, CANNOT, YES]
    together = section.verdicts[-1]
    assert together.run == "all of seed0, seed1, seed2" and "mean of 3 runs, with Student's 95 % interval over runs" in together.text
    mean, low, high = mean_interval([100 * (rise - 3 * 0.001) for rise in (0.04, 0.05, 0.06)])
    assert f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]" in together.text


def test_who_takes_part_does_not_depend_on_what_was_found():
    """Of two underpowered runs and one that is sure of the contrary all three count. A no that stands although a yes would prove nothing is
    put together with nothing, as the runs beside it that found something else."""
    runs = [made_up(replacements=replaced(8, early=0.3 + more, late=0.3), name=f"seed{i}") for i, more in enumerate((0.1, -0.1, 0.0))]
    for i, run in enumerate(runs):
        run.config = TrainConfig(seed=i)
        for j, row in enumerate(run.replacements):
            row["replaced"] += (0.5, -0.5, 0.3, -0.3)[j // 12 % 4] * (row["where"] == "early") * (i < 2)
    runs[2] = made_up(replacements=replaced(early=0.1, late=0.5), name="seed2", config=TrainConfig(seed=2))
    found = position.early_tokens_decide(runs).verdicts
    assert [v.agrees for v in found[:3]] == [CANNOT, CANNOT, NO] and found[3].run == "all of seed0, seed1, seed2"
    assert found[3].agrees == OPEN
    falling = [staged(rise, late, last_rate=0.0005) for rise, late in ((0.02, 0.015), (0.02, 0.014), (0.05, 0.001))]
    assert [v.agrees for v in stage.two_stages(falling).verdicts] == [NO, NO, CANNOT]


def test_what_is_the_same_in_all_runs_has_no_interval_over_them():
    runs = [entropies((0.5, 0.2 + i / 100), (2.0, 0.5)) for i in range(2)]
    together = stage.who_loses_entropy(runs).verdicts[-1]
    assert "mean of 2 runs" in together.text and "at the end" in together.text and "on the fixed text" not in together.text


def test_runs_that_differ_leave_open_what_each_is_sure_of():
    runs = [staged(rise, 0.01) for rise in (0.05, 0.04)]
    assert [v.agrees for v in stage.two_stages(runs).verdicts] == [YES, YES, OPEN]


# ---------------------------------------------------------------------------------------------------------------------------------------
# Arms and exploration


def made_experiment(tmp_path, seeds: int = 5, **gains) -> Experiment:
    """Arms whose every metric differs from that of GRPO by a factor or a difference `gains`, give or take some hundredths."""
    results, curves = [], []
    for arm in ("grpo", "ppl-strong", "ppl-high", "pos-strong", "pos-early", "pos-plateau"):
        for seed in range(seeds):
            gain = gains.get(arm.replace("-", "_"), 0.0) + 0.01 * (seed * len(arm) % 3 - 1)
            numbers = {name: np.exp(gain) if metric.ratio else 0.5 + gain for name, metric in METRICS.items()}
            results.append({"arm": arm, "seed": seed, **numbers})
            curves += [{"arm": arm, "seed": seed, "step": s, "pass_at_1": 0.1 * s, "entropy": 1.0} for s in range(3)]
    return Experiment(tmp_path, results, curves)


def test_i3_and_t3_against_the_signs_of_the_paper(tmp_path):
    section = instance.weights_by_perplexity([], made_experiment(tmp_path, ppl_high=-0.1))
    found = {(r["arm"], r["other"], r["metric"]): r for r in section.rows}
    assert [v.run for v in section.verdicts[::2]] == ["ppl-strong against grpo", "ppl-high against grpo", "ppl-strong against ppl-high"]
    high = found["ppl-high", "grpo", "pass_at_1"]
    assert high["difference"] == pytest.approx(-0.1, abs=0.01) and high["n"] == 5 and high["high"] < 0 and high["agrees"] == YES
    entropy = found["ppl-high", "grpo", "entropy_late"]
    assert entropy["difference"] == pytest.approx(np.exp(-0.1), abs=0.01) and entropy["agrees"] == NO  # it falls too, by a tenth
    assert found["ppl-strong", "grpo", "pass_at_1"]["agrees"] == OPEN
    assert len(drawn(section, tmp_path)) == 3 and "degrees of freedom" in section.shows
    section = position.bonus_by_position([], made_experiment(tmp_path, pos_strong=0.1, pos_early=0.1, pos_plateau=-0.1))
    assert [v.agrees for v in section.verdicts] == [YES, YES, YES, YES, NO, OPEN]
    assert instance.weights_by_perplexity([], None).verdicts[0].agrees == CANNOT
    none = Experiment(tmp_path, [r for r in made_experiment(tmp_path).results if r["arm"] == "grpo"], [])
    assert instance.weights_by_perplexity([], none).verdicts[0].agrees == CANNOT


def test_a_claim_among_many_is_adjusted(tmp_path):
    """p = 0.02 by itself; that one of twelve claims comes out so is no wonder."""
    experiment = made_experiment(tmp_path)
    for row in experiment.results:
        if row["arm"] == "pos-plateau":
            row["pass_at_1"] = 0.5 + 0.01 * (row["seed"] * 4 % 3 - 1) + (0.01, 0.05, 0.03, 0.02, 0.04)[row["seed"]]
    (row,) = [r for r in position.bonus_by_position([], experiment).rows if r["arm"] == "pos-plateau"]
    assert row["low"] > 0 and row["p"] < 0.05 < row["p_holm"] and row["agrees"] == OPEN


def test_an_experiment_is_read_back(tmp_path):
    assert arms.load_experiment(tmp_path) is None


def explored(first, last) -> dict:
    common = dict(samples=4, problems="same", entropy=1.0, length=9.0)
    return {
        "first": dict(correct=first, branching=3.0, different_answers=3.0, **common),
        "last": dict(correct=last, branching=1.5, different_answers=2.0, **common),
    }


def test_e1_e2_e3(tmp_path):
    run = made_up(exploration=explored([0, 1, 1, 1] * 10, [4, 0, 4, 4] * 10))
    one = exploration.pass_at_k_curves([run])
    values = {(r["model"], r["k"]): r["pass_at_k"] for r in one.rows}
    # 1 right of 4: pass@1 = 1/4, pass@2 = 1/2, pass@4 = 1; three of four problems
    assert values["start (tiny)", 1] == pytest.approx(0.1875) and values["start (tiny)", 2] == pytest.approx(0.375)
    assert values["start (tiny)", 4] == values["made-up", 4] == values["made-up", 1] == 0.75
    assert "Rise of pass@1 (points) +56.2" in one.verdicts[0].text and one.verdicts[0].agrees == OPEN  # pass@4: 0, but up to 0.2 either way
    two = exploration.unsolvable_sets([run])
    assert (
        "10 of 40 problems unsolvable before, 10 after, 0 for both" in two.verdicts[0].text and two.verdicts[0].agrees == OPEN
    )  # 1 right of 4 is chance
    three = exploration.branching([run])
    assert "3.00 → 1.50" in three.verdicts[0].text and "33 % fewer" in three.verdicts[0].text and three.verdicts[0].agrees == YES
    for section in (one, two, three):
        assert section.rows and drawn(section, tmp_path)
    solved = made_up(exploration=explored([1, 1], [4, 4]))
    assert exploration.pass_at_k_curves([solved]).verdicts[0].agrees == CANNOT  # nothing left to widen or to lose
    assert exploration.unsolvable_sets([solved]).verdicts[0].agrees == CANNOT
    ceiling = made_up(exploration=explored([1] * 40, [0] + [4] * 39))  # one is lost, and none could be won: true by construction
    assert exploration.pass_at_k_curves([ceiling]).verdicts[0].agrees == exploration.unsolvable_sets([ceiling]).verdicts[0].agrees == CANNOT
    flat = made_up(exploration=explored([0, 1, 1, 1] * 10, [0, 4, 4, 4] * 10))
    assert exploration.pass_at_k_curves([flat]).verdicts[0].agrees == YES
    wider = made_up(exploration=explored([0, 0, 1, 1] * 10, [0, 4, 4, 4] * 10))
    assert exploration.pass_at_k_curves([wider]).verdicts[0].agrees == NO
    worse = made_up(exploration=explored([0, 4, 4, 4] * 10, [0, 1, 1, 1] * 10))
    assert exploration.pass_at_k_curves([worse]).verdicts[0].agrees == NO
    crossed = made_up(exploration=explored([0, 4], [4, 0]))  # C(4, 4) / C(8, 4) = 1 / 70
    assert exploration.unsolvable_sets([crossed]).verdicts[0].agrees == YES
    nested = made_up(exploration=explored([0, 0, 1], [0, 4, 4]))
    assert exploration.unsolvable_sets([nested]).verdicts[0].agrees == NO
    assert exploration.branching([made_up()]).verdicts[0].agrees == CANNOT


def test_problems_of_different_sets_are_different():
    a, b = (made_up(exploration=explored([0, 0], [0, 1])) for _ in range(2))
    a.name, b.name = "a", "b"
    both = [r for r in exploration.unsolvable_sets([a, b]).rows if " + " in r["model"]]
    assert {(r["model"], r["unsolvable"]) for r in both} == {("start (tiny) + a + b", 1)} and len(both) == 1
    for model in b.exploration.values():
        model["problems"] = "others"
    names = [r["model"] for r in exploration.unsolvable_sets([a, b]).rows if " + " in r["model"]]
    assert names == ["start (tiny) + a", "start of b + b"]


def test_models_that_began_alike_are_shown_once():
    a, b = (made_up(exploration=explored([1], [n])) for n in (2, 3))
    a.name, b.name = "a", "b"
    assert list(exploration._models([a, b])) == ["start (tiny)", "a", "b"]
    b.exploration["first"]["correct"] = [4]
    assert list(exploration._models([a, b])) == ["start (tiny)", "a", "start of b", "b"]


def test_bootstrap():
    low, high = bootstrap(lambda rows: float(np.mean(rows)), [0.0, 1.0] * 200)
    assert 0.44 < low < 0.48 < 0.52 < high < 0.56  # standard error 0.025
    assert bootstrap(sum, [1.0] * 9) == (9.0, 9.0)


def test_a_share_that_is_not_0_is_not_called_0():
    assert percent(0.1234, 1) == "12.3 %" and percent(0.03) == "3 %" and percent(0.006) == "1 %"
    assert [percent(x) for x in (0.0, 0.0049, 0.005)] == ["0 %", "below 1 %", "below 1 %"] and percent(0.0005, 1) == "below 0.1 %"


def test_bootstrap_of_two_samples():
    """The difference of two samples, each drawn by itself."""
    a = list(np.random.default_rng(0).normal(size=200))
    b = [x + 1 for x in a]

    def gap(first, second):
        return float(np.mean(second) - np.mean(first))

    low, high = bootstrap(gap, a, b)
    assert 0.7 < low < 0.9 < 1.1 < high < 1.3  # standard error sqrt(2 / 200) = 0.1
    assert np.isnan(bootstrap(gap, a, [])).all()


def test_a_finding_is_a_function_of_one_run():
    """The section asks every run, puts its name to rows and pictures, and passes over what was not probed."""
    assert doctest.testmod(section).failed == doctest.testmod(text).failed == 0

    @section.section("X1", "Title", needs="fixed", together=lambda runs: ([{"runs": len(runs)}], [Panel(None, "all")]), n=3)
    def finding(run):
        """It shows {n}
        things.

        The paper found: More.

        A no would be: Less.
        """
        estimates = [Estimate("it", 1.0, 0.5, 1.5)]
        return Verdict(YES, run.name, [{"x": 1}], [Panel(None), Panel(None, "b", "caption")], estimates=estimates)

    run = made_up(fixed=[1])
    assert finding.__wrapped__(run).rows == [{"x": 1}]
    out = finding([run, made_up()])
    assert (out.label, out.title, out.shows, out.paper, out.no) == ("X1", "Title", "It shows 3 things.", "More.", "Less.")
    assert out.rows == [{"runs": 2}, {"run": "made-up", "x": 1}]
    assert [(p.name, p.caption) for p in out.panels] == [("all", ""), ("made-up", ""), ("made-up-b", "made-up: caption")]
    assert [v.agrees for v in out.verdicts] == [YES, CANNOT] and "rlvr.analysis.probe" in out.verdicts[1].text


# ---------------------------------------------------------------------------------------------------------------------------------------
# The page


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "pos"
    train(TrainConfig(**(RUN | dict(out=str(folder.parent), name="pos", keep_every=2, log_completions=6, final_eval_problems=6))))
    settings = dict(steps=2, shown=4, fixed=4, completions=6, continuations=2, problems=3, samples=4)
    probe.probe(folder, ProbeConfig(runs=[str(folder)], **settings))
    return folder


HOSTILE = "'\"></script><script>document.title = 'broken'</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def twin(run):
    """The same run, not probed, with a name and texts that would break a page made without care."""
    folder = run.parent / "b <i>& c"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("probe"))
    lines = [json.loads(line) for line in (folder / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        line |= {"prompt": HOSTILE, "completion": HOSTILE}
    (folder / "rollouts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for name, hostile in (("config.json", {"model": HOSTILE}), ("summary.json", {f"pass_at_{HOSTILE}_{when}": 0.5 for when in ("start", "end")})):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text(encoding="utf-8")) | hostile), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def written(run, twin, tmp_path_factory):
    out = tmp_path_factory.mktemp("page")
    return report(ReportConfig(runs=[str(run), str(twin)], out=str(out)))


@pytest.mark.slow
def test_everything_is_on_the_page(written):
    text = written.read_text(encoding="utf-8")
    assert re.findall(r'<h3 id="(\w+)">', text) == LABELS
    with open(written.parent / "findings.csv", newline="", encoding="utf-8") as file:
        findings = list(csv.DictReader(file))
    assert [label for label in LABELS if not any(f["label"] == label for f in findings)] == []
    for finding in findings:
        assert finding["agrees"] in (YES, NO, OPEN, CANNOT) and escape(finding["text"]) in text
    probed = {f["label"] for f in findings if f["run"] == "pos" and "rlvr.analysis.probe" not in f["text"]}
    assert probed >= set(LABELS) - {"I3", "T3"}
    assert {f["label"] for f in findings if f["run"] != "pos" and "rlvr.analysis.probe" in f["text"]} == {
        "S3",
        "S5",
        "S6",
        "S7",
        "I1",
        "I2",
        "T1",
        "T2",
        "E1",
        "E2",
        "E3",
    }
    pictures = {p.stem for p in written.parent.glob("*.png")}
    assert len(pictures) == text.count("<figure>") > 16 and all("/" not in p for p in pictures)
    assert {p.stem for p in written.parent.glob("?[0-9].csv")} >= {  # four steps are too few for S3, their tokens for S6
        "S1",
        "S4",
        "S5",
        "S7",
        "I1",
        "I2",
        "T1",
        "T2",
        "E1",
        "E2",
        "E3",
    }


@pytest.mark.slow
def test_the_page_needs_no_network(written):
    text = written.read_text(encoding="utf-8")
    outside = [u for u in re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(\w+:[^"')\s>]*)""", text) if not u.startswith("data:")]
    assert outside == [] and "@import" not in text and "fetch(" not in text


@pytest.mark.slow
def test_ids_of_pictures_do_not_clash(written):
    text = written.read_text(encoding="utf-8")
    for name in re.findall(r"url\(#([^)]+)\)", text):
        assert text.count(f'id="{name}"') == 1


def hostile_copy(value):
    """Hostile text in place of every text of a JSON value, and one more key in every dictionary."""
    if isinstance(value, dict):
        return {name: hostile_copy(inside) for name, inside in value.items()} | {HOSTILE: HOSTILE}
    return [hostile_copy(inside) for inside in value] if isinstance(value, list) else HOSTILE if isinstance(value, str) else value


class Tags(HTMLParser):
    """The tags of a page with their attributes, and the text outside of scripts and styles."""

    def __init__(self, page: str):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data if self.found and self.found[-1][0] not in ("script", "style") else ""


@pytest.fixture
def quick(monkeypatch):
    """Pictures and intervals take most of the time of a report."""
    monkeypatch.setattr("rlvr.analysis.report.__main__.draw", lambda panel, png: f"<svg><text>{escape(panel.caption)}</text></svg>")
    for name in ("changes", "instance", "section"):
        monkeypatch.setattr(f"rlvr.analysis.report.{name}.bootstrap", lambda *samples, **settings: (0.0, 0.0))
    for name in ("changes", "instance", "stage"):
        monkeypatch.setattr(f"rlvr.analysis.report.{name}.share_of_largest", lambda *arrays: (0.0, 0.0, 0.0, 0.0))


def test_no_text_of_a_run_becomes_code_of_the_page(run, tmp_path, quick, monkeypatch):
    """Hostile text in every field and key of every file, in the names of run and experiment, and in what the tokenizer knows."""
    folder, experiment = tmp_path / HOSTILE.replace("/", "|"), tmp_path / HOSTILE.replace("/", "!")
    shutil.copytree(run, folder)
    shutil.copytree(arms.SHIPPED, experiment)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    own = ("preset", "method", "branch", *(field.name for field in dataclasses.fields(TrainConfig) if get_origin(field.type) is Literal))
    settings = {name: HOSTILE if isinstance(value, str) and name not in own else value for name, value in settings.items()}
    (folder / "config.json").write_text(json.dumps(settings | {"reward": HOSTILE}), encoding="utf-8")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    scores = {f"pass_at_{HOSTILE}_{when}": 0.5 for when in ("start", "end")}
    (folder / "summary.json").write_text(json.dumps(hostile_copy(summary) | scores), encoding="utf-8")
    rows = (folder / "metrics.csv").read_text(encoding="utf-8").replace("rising", '"' + HOSTILE.replace('"', '""') + '"')
    (folder / "metrics.csv").write_text(rows, encoding="utf-8")
    (folder / "probe" / "exploration.json").write_text(json.dumps(hostile_copy(json.loads((folder / "probe" / "exploration.json").read_text()))))
    for path in (folder / "rollouts.jsonl", *(folder / "probe").glob("*.jsonl")):
        places = {name for name in ("where",) if path.stem == "replacements"}  # early, late: others are not looked at
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        lines = [hostile_copy(line) | {name: line[name] for name in places} for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    monkeypatch.setattr(Run, "token", lambda self, number: HOSTILE)
    page = report(ReportConfig(runs=[str(folder)], experiment=str(experiment), out=str(tmp_path / "out"))).read_text(encoding="utf-8")
    tags = Tags(page)
    assert [attributes for tag, attributes in tags.found if tag == "script"] == [{"type": "application/json", "id": "data"}, {}]
    assert {tag for tag, _ in tags.found} <= set("html head meta title link style body header button h1 h2 h3 p main div span table tr th td "
                                                 "input a figure svg text figcaption b ul li code footer script".split())  # fmt: skip
    assert not {name for _, attributes in tags.found for name in attributes if name.startswith("on")}
    assert tags.text.count("document.title = 'broken'") > 10 and "<script>document" not in page and "<img" not in page


@pytest.mark.parametrize(
    "file, change",
    [
        ("summary.json", lambda found: [found]),
        ("summary.json", lambda found: found | {"pass_at_1_start": HOSTILE}),
        ("summary.json", lambda found: found | {"plateau_step": HOSTILE}),
        ("summary.json", lambda found: {name: value for name, value in found.items() if name != "pass_at_2_end"}),
        ("probe/exploration.json", lambda found: found | {"first": HOSTILE}),
        ("probe/exploration.json", lambda found: {"last": found["last"]}),
        ("rollouts.jsonl", lambda found: HOSTILE),
        ("probe/completions.jsonl", lambda found: found | {"token_ids": [10**30]}),
        ("probe/completions.jsonl", lambda found: found | {"prompt": "\ud800"}),
    ],
)
def test_what_no_run_writes_is_a_sentence(file, change, run, tmp_path, quick, monkeypatch):
    monkeypatch.setattr("rlvr.analysis.report.__main__.SECTIONS", stage.SECTIONS + exploration.SECTIONS)
    shutil.copytree(run, tmp_path / "run")
    first, *others = (run / file).read_text(encoding="utf-8").splitlines(True) if file.endswith("l") else [(run / file).read_text(encoding="utf-8")]
    (tmp_path / "run" / file).write_text(json.dumps(change(json.loads(first))) + "\n" + "".join(others), encoding="utf-8")
    with pytest.raises(SettingError, match="There can be no report of .*run .* Put back the files that run and probe wrote"):
        report(ReportConfig(runs=[str(tmp_path / "run")]))


@pytest.mark.filterwarnings("ignore:constrained_layout")  # long labels leave no room for the axes
def test_what_a_label_says_stays_as_it_is(tmp_path):
    label = f"font: 3px {HOSTILE} #000000"
    svg = draw(Panel(lambda axis: (section.bars(axis, [label], [1], label, label=label), axis.set_title(label))), tmp_path / "x.png")
    root = ElementTree.fromstring(svg)
    assert [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")].count(label) == 4
    assert {element.tag.split("}")[1] for element in root.iter()} <= set("svg defs style g path use clipPath rect text".split())


def test_the_ink_of_pictures_follows_the_page(tmp_path):
    svg = draw(Panel(lambda axis: (axis.plot([0, 1], color="#010101"), axis.set(xlabel="<label> $not math$"))), tmp_path / "x.png")
    assert "#010101" not in svg and "currentColor" in svg and "&lt;label&gt; $not math$" in svg
    assert svg.startswith("<svg") and not re.match(r"<svg[^>]* (?:width|height)=", svg) and "viewBox" in svg
    assert (tmp_path / "x.png").stat().st_size > 1000
    log = draw(Panel(lambda axis: (axis.plot([0.001, 10], [1, 2]), axis.set_xscale("log"))), tmp_path / "y.png")
    assert "mathdefault" not in log and ">0.001<" in log


@pytest.mark.slow
def test_no_text_ends_the_script(written):
    text = written.read_text(encoding="utf-8")
    assert "<script>document" not in text and "<img" not in text
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert any("</script><script>document" in prompt for run in data for prompt in run["prompts"])


def test_what_the_microscope_shows(run):
    data = microscope_data(Run(run))
    assert [f["step"] for f in data["steps"]] == [1, 2, 3, 4] and [f["replayed"] for f in data["steps"]] == [True, False, False, True]
    logged = [json.loads(line) for line in (run / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()]
    mine = next(r for r in logged if r["step"] == 2)
    item = next(i for i in data["steps"][1]["items"] if i["ids"] == mine["token_ids"])
    assert item["H"] == [round(h, 3) for h in mine["entropy"]] and item["A"] == [round(a, 3) for a in mine["advantage"]]
    assert data["prompts"][item["p"]] == mine["prompt"] and item["ok"] == mine["correct"]
    assert "".join(data["vocab"][str(t)] for t in item["ids"]) == mine["completion"]  # the stop token is the empty text
    replayed = data["steps"][0]["items"][0]
    raw = next(json.loads(line) for line in (run / "probe" / "completions.jsonl").read_text(encoding="utf-8").splitlines())
    assert replayed["ids"] == raw["token_ids"]
    assert replayed["D"][0] == pytest.approx(np.exp(raw["logp_after"][0]) - np.exp(raw["logp"][0]), abs=1e-4)
    assert all(len(replayed[k]) == len(replayed["ids"]) for k in "HLADGPQ") and len(replayed["top"]) == len(replayed["ids"])
    assert [f["step"] for f in data["fixed"]] == [0, 3, 4] and len({tuple(i["ids"]) for f in data["fixed"] for i in f["items"]}) <= 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [dict(log_completions=0), dict(steps=1), dict(eval_data="", final_eval_problems=0), dict(engine="plain")]
)
def test_other_runs_have_a_page_too(tmp_path, changes):
    train(TrainConfig(**(RUN | dict(steps=2, out=str(tmp_path), name="r", keep_every=1) | changes)))
    settings = dict(steps=2, shown=2, fixed=2, completions=2, continuations=1, problems=2, samples=2)
    probe.probe(tmp_path / "r", ProbeConfig(runs=[], **settings))
    text = report(ReportConfig(runs=[str(tmp_path / "r")])).read_text(encoding="utf-8")
    assert re.findall(r'<h3 id="(\w+)">', text) == LABELS and "nan" not in text.split("<script")[0].lower()


def test_names_are_told_apart(tmp_path):
    assert unique_names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert unique_names([tmp_path / "x" / "a", tmp_path / "y" / "a"]) == ["x/a", "y/a"]


@pytest.mark.parametrize("missing", ["metrics.csv", "rollouts.jsonl", "summary.json", "model"])
def test_a_run_that_lacks_a_file(tmp_path, run, missing):
    shutil.copytree(run, tmp_path / "r", ignore=shutil.ignore_patterns(missing))
    with pytest.raises(SettingError, match=missing.split(".")[0]):
        report(ReportConfig(runs=[str(tmp_path / "r")], out=str(tmp_path / "o")))
    assert not (tmp_path / "o").exists()


def test_a_line_that_a_crash_cut_off_is_passed_over(tmp_path, run):
    shutil.copytree(run, tmp_path / "r")
    whole = Run(tmp_path / "r").completions
    with open(tmp_path / "r" / "rollouts.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 5, "gro')
    assert Run(tmp_path / "r").completions == whole


def test_a_linked_report_in_a_run_folder_is_refused(tmp_path):
    (tmp_path / "report").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SettingError, match="report is a link, so the report would go elsewhere"):
        report(ReportConfig(runs=[str(tmp_path)]))


def test_no_run_and_no_experiment(tmp_path, run):
    with pytest.raises(SettingError, match="No run"):
        report(ReportConfig(runs=[]))
    with pytest.raises(SettingError, match="no experiment"):
        report(ReportConfig(runs=[str(run)], experiment=str(tmp_path)))


# ---------------------------------------------------------------------------------------------------------------------------------------
# In a browser


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_fits_and_has_no_errors(browser, written, width, theme):
    window_size(browser, width, 900)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]})
    browser.get(written.as_uri())
    assert browser.title.startswith("Entropy and performance: pos")
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if theme == "light" else "rgb(20, 23, 26)")
    ink = browser.execute_script("return getComputedStyle(document.querySelector('figure svg text')).fill")
    assert ink == browser.execute_script("return getComputedStyle(document.body).color")
    browser.find_element("id", "theme").click()
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") != paper


@pytest.mark.slow
def test_the_microscope_works(browser, written):
    window_size(browser, 1280, 900)
    browser.get(written.as_uri())
    js = browser.execute_script

    def press(group, value):
        browser.find_element("css selector", f"#{group} [data-v='{value}']").click()

    def cards():
        return js("return [...document.querySelectorAll('.card')].map(c => c.className.split(' ')[1])")

    def colours():
        return js("return [...document.querySelectorAll('.t')].map(t => t.style.backgroundColor)")

    assert js("return document.getElementById('where').textContent").startswith("step 1,")
    everything = cards()
    assert len(everything) == 4 and len(set(colours())) > 3
    by_measure = [colours()]
    for measure in ("logp", "advantage", "change"):
        press("colours", measure)
        by_measure.append(colours())
    assert len({tuple(c) for c in by_measure}) == 4
    assert js("return document.getElementById('slider').max") == "1"  # changes are known for the two replayed steps
    press("colours", "entropy")
    assert js("return document.getElementById('slider').max") == "3"
    for kind in ("right", "wrong"):
        press("filters", kind)
        assert cards() == [c for c in everything if c == kind]
    press("filters", "defect")
    assert len(cards()) <= len(everything)
    press("filters", "all")
    # the slider
    js("const s = document.getElementById('slider'); s.value = 1; s.dispatchEvent(new Event('input'))")
    assert js("return document.getElementById('where').textContent").startswith("step 2,")
    # numbers and alternatives of a token
    js("const s = document.getElementById('slider'); s.value = 0; s.dispatchEvent(new Event('input'))")
    from selenium.webdriver.common.action_chains import ActionChains

    token = browser.find_element("css selector", ".card .t:nth-child(2)")
    js("arguments[0].scrollIntoView({block: 'center'})", token)  # before the pointer comes: scrolling hides the tip
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    ActionChains(browser).move_to_element(token).perform()
    tip = browser.find_element("id", "tip")
    assert tip.is_displayed() and "entropy" in tip.text and "→" in tip.text
    assert len(tip.find_elements("css selector", ".alt")) == replay.TOP
    box = tip.rect
    assert box["x"] >= 0 and box["x"] + box["width"] <= 1280
    # the same text under later models
    press("modes", "fixed")
    assert js("return document.getElementById('where').textContent") == "model after step 0"
    first = js("return [...document.querySelectorAll('.text')].map(t => t.textContent)"), colours()
    js("const s = document.getElementById('slider'); s.value = 2; s.dispatchEvent(new Event('input'))")
    last = js("return [...document.querySelectorAll('.text')].map(t => t.textContent)"), colours()
    assert first[0] == last[0] and first[1] != last[1]
    # the run that was not probed, whose texts are hostile
    press("modes", "steps")
    press("runs", 1)
    assert not browser.find_element("css selector", "#colours [data-v='change']").is_enabled()
    assert not browser.find_element("id", "fixed").is_enabled()
    assert "</script>" in js("return document.querySelector('.prompt').textContent") and "broken" not in browser.title
    assert js("return document.querySelectorAll('img').length") == 0 and js("return document.querySelectorAll('script').length") == 2
    # play goes to the end and stops
    browser.find_element("id", "play").click()
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 10).until(lambda b: "step 4" in js("return document.getElementById('where').textContent"))
    WebDriverWait(browser, 10).until(lambda b: "play" in js("return document.getElementById('play').textContent"))
    assert browser.get_log("browser") == []
