"""The report: sections on runs made up so that the answer is known, the page as a whole, and the microscope in a real browser."""

import csv
import dataclasses
import doctest
import json
import re
import shutil
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Literal, get_origin
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers import RUN
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
from rlvr.analysis.report.run import Run, bootstrap, share_of_largest
from rlvr.analysis.report.section import Panel, Section, draw, percent
from rlvr.train import train

LABELS = "S1 S2 S3 S4 S5 S6 S7 I1 I2 I3 T1 T2 T3 E1 E2 E3".split()


def made_up(**parts) -> SimpleNamespace:
    """A run of which only the given parts exist."""
    columns = {"stage": None, "eval_pass_at_1": None}
    run = SimpleNamespace(name="made-up", folder="runs/made-up", plateau=None, completions=[], fixed=[], replacements=[], exploration={}, changes={},
                          config=TrainConfig(), **{k: v for k, v in parts.items() if k == "token"})  # fmt: skip
    vars(run).update(parts)
    if "steps" in parts:
        run.steps = [columns | row for row in parts["steps"]]
        run.metrics, run.last = run.steps, int(run.steps[-1]["step"])
        run.series = lambda name: (
            [r["step"] for r in run.steps if r[name] is not None],
            [r[name] for r in run.steps if r[name] is not None],
        )
    run.rising_end = run.plateau or getattr(run, "last", 0)
    return run


def drawn(section: Section, tmp_path) -> list[str]:
    """All pictures of a section can be drawn."""
    return [draw(panel, tmp_path / f"{i}.png") for i, panel in enumerate(section.panels)]


# ---------------------------------------------------------------------------------------------------------------------------------------
# Stage


def staged(rise: float, late: float, plateau: int | None = 10) -> SimpleNamespace:
    steps = []
    for s in range(1, 31):
        early, after = min(s, 10), max(0, s - 10)
        steps.append({"step": float(s), "accuracy": 0.1 + rise * early + late * after, "entropy": 2 - rise * early - late * after})
    return made_up(steps=steps, plateau=plateau)


@pytest.mark.parametrize(
    "rise, late, plateau, agrees", [(0.05, 0.001, 10, True), (0.02, 0.015, 10, False), (0.05, 0.001, None, None), (0.05, 0, 28, None)]
)
def test_s1(tmp_path, rise, late, plateau, agrees):
    section = stage.two_stages([staged(rise, late, plateau)])
    assert section.verdicts[0].agrees is agrees
    assert len(section.rows) == 30 and len(drawn(section, tmp_path)) == 1
    if agrees:
        assert "5.00 points" in section.verdicts[0].text and "0.10 points" in section.verdicts[0].text


def test_s2_takes_only_the_rising_stage(tmp_path):
    """The numbers of the hand example of drop_shares, spread over steps 1 and 3 (2 has no wrong answer); step 4 is the plateau's."""
    steps = [
        dict(step=1.0, accuracy=0.25, entropy_right=1.0, entropy_wrong=3.0, length_right=10.0, length_wrong=10.0),
        dict(step=2.0, accuracy=1.0, entropy_right=0.9, entropy_wrong=None, length_right=10.0, length_wrong=None),
        dict(step=3.0, accuracy=0.5, entropy_right=0.9, entropy_wrong=2.5, length_right=10.0, length_wrong=10.0),
        dict(step=4.0, accuracy=0.75, entropy_right=0.8, entropy_wrong=2.0, length_right=10.0, length_wrong=10.0),
        dict(step=5.0, accuracy=0.75, entropy_right=0.0, entropy_wrong=9.0, length_right=10.0, length_wrong=10.0),
    ]
    fixed = [dict(step=s, correct=c, entropy=[h, h]) for s, c, h in [(0, True, 0.5), (0, False, 1.5), (4, True, 0.4), (4, False, 1.0)]]
    section = stage.who_loses_entropy([made_up(steps=steps, plateau=4, fixed=fixed)])
    (row,) = section.rows
    assert (row["from_step"], row["to_step"]) == (1, 4)
    # two parts: w 1/4 -> 1/2 -> 3/4; wrong: 0.625 * 0.5 + 0.375 * 0.5; right: 0.375 * 0.1 + 0.625 * 0.1; all: 2.5 -> 1.1
    assert row["wrong"] == pytest.approx(0.5) and row["right"] == pytest.approx(0.1) and row["total"] == pytest.approx(1.4)
    assert section.verdicts[0].agrees is True and "from 1.50 to 1.00" in " ".join(section.verdicts[0].text.split()).replace("went ", "")
    assert len(drawn(section, tmp_path)) == 2


def test_s2_can_disagree():
    steps = [
        dict(step=float(s), accuracy=0.5, entropy_right=2.0 - s / 2, entropy_wrong=3.0 - s / 10, length_right=9.0, length_wrong=9.0)
        for s in range(3)
    ]
    assert stage.who_loses_entropy([made_up(steps=steps, plateau=None)]).verdicts[0].agrees is False


WORDS = {1: " lunch", 2: "=", 3: " the", 4: "5"}


def token_run(before, after) -> SimpleNamespace:
    """Completions of steps 1 and 10: lists of (token, entropy), each six times."""
    rows = [dict(step=s, token_ids=[t for t, _ in pairs] * 6, entropy=[h for _, h in pairs] * 6) for s, pairs in ((1, before), (10, after))]
    return made_up(completions=rows, plateau=10, token=WORDS.__getitem__)


def test_s3(tmp_path):
    run = token_run([(1, 2.0), (2, 0.5), (3, 1.0), (3, 1.0)], [(1, 0.5), (2, 0.4), (2, 0.4), (4, 0.2), (3, 0.9)])
    section = stage.token_shifts([run])
    by = {r["token"]: r for r in section.rows}
    assert by[" lunch"]["entropy_before"] == 2.0 and by[" lunch"]["entropy_after"] == 0.5
    assert by["="]["share_before"] == 0.25 and by["="]["share_after"] == 0.4 and by["5"]["category"] == "formal reasoning"
    text = section.verdicts[0].text
    assert "25.0 % to 60.0 %" in text and "lost at “lunch”" in text and section.verdicts[0].agrees is True
    assert len(drawn(section, tmp_path)) == 3
    assert stage.token_shifts([token_run([(2, 1.0)], [(1, 1.0)])]).verdicts[0].agrees is False
    assert stage.token_shifts([made_up(plateau=10)]).verdicts[0].agrees is None


def test_s4(tmp_path):
    from rlvr.run.defects import DEFECTS

    def steps(first, last):
        return [
            {"step": float(s), **dict.fromkeys((f"defect_{d}" for d in DEFECTS), 0.0), "defect_no_box": first if s < 4 else last}
            for s in range(1, 11)
        ]

    rows = [dict(step=s, prompt="how", completion="五" if s < 4 else "5") for s in range(1, 11)]
    section = stage.defects_vanish([made_up(steps=steps(0.4, 0.1), plateau=10, completions=rows)])
    assert section.verdicts[0].agrees is True
    assert "format violation 40.0 % → 10.0 %" in section.verdicts[0].text and "language mixing 100.0 % → 0.0 %" in section.verdicts[0].text
    assert section.rows[0]["format violation"] == 0.4 and len(drawn(section, tmp_path)) == 1
    assert stage.defects_vanish([made_up(steps=steps(0.4, 0.3), plateau=10)]).verdicts[0].agrees is False
    assert stage.defects_vanish([made_up(steps=steps(0.0, 0.0), plateau=10)]).verdicts[0].agrees is None


def changes(n: int = 1000, big: int = 5, against: bool = False, entropic: bool = True) -> dict[str, np.ndarray]:
    """n tokens in 10 completions of one plateau step; the first `big` change by 0.2, along or against their advantage."""
    i = np.arange(n)
    advantage = np.where(i % 2 == 0, 1.0, -1.0)
    change = np.where(i < big, 0.2, 0.0001 * (1 + i / n)) * advantage * (-1 if against else 1)
    entropy = np.where(i < big, 1.0, 0.1 + 0.1 * i / n) if entropic else np.where(i < big, 0.0, 1 - i / n)
    return dict(change=change, advantage=advantage, entropy=entropy, grad_norm=entropy, token=np.where(i < big, 2, 3), step=np.full(n, 21), row=i % 10,
                problem=i % 10, plateau=np.ones(n, bool), row_step=np.full(10, 21), row_log_ppl=np.arange(10.0))  # fmt: skip


def test_s5(tmp_path):
    section = plateau.few_tokens_change([made_up(changes=changes(), plateau=10)])
    (row,) = section.rows
    assert row["share_changed"] == 0.005 and row["with_their_advantage"] == 1
    assert row["share_changed_positive"] == 0.006 and row["share_changed_negative"] == 0.004  # 3 and 2 of 500
    assert row["mean_change_positive"] > 0 > row["mean_change_negative"]
    assert section.verdicts[0].agrees is True and len(drawn(section, tmp_path)) == 1
    assert plateau.few_tokens_change([made_up(changes=changes(big=50), plateau=10)]).verdicts[0].agrees is False
    assert plateau.few_tokens_change([made_up(changes=changes(against=True), plateau=10)]).verdicts[0].agrees is False
    still = plateau.few_tokens_change([made_up(changes=changes(big=0), plateau=10)])
    assert still.verdicts[0].agrees is None and "nan" not in still.verdicts[0].text  # nothing moved: no direction to speak of
    assert plateau.few_tokens_change([made_up()]).verdicts[0].agrees is None
    assert "python -m rlvr.analysis.probe runs/made-up" in plateau.few_tokens_change([made_up()]).verdicts[0].text


def test_a_rising_stage_alone_proves_nothing_about_the_plateau(tmp_path):
    found = changes() | {"plateau": np.zeros(1000, bool)}
    for function in (
        plateau.few_tokens_change,
        plateau.changed_tokens_are_uncertain,
        plateau.changed_tokens_are_formal,
        instance.learning_in_low_perplexity,
    ):
        section = function([made_up(changes=found, plateau=10, token=WORDS.__getitem__)])
        assert section.verdicts[0].agrees is None and section.rows and drawn(section, tmp_path)


def test_s6(tmp_path):
    section = plateau.changed_tokens_are_uncertain([made_up(changes=changes(big=10), plateau=10)])
    assert section.verdicts[0].agrees is True and "mean entropy of 1.00 nats" in section.verdicts[0].text
    assert len(section.rows) == 10 and section.rows[-1]["change"] == pytest.approx((10 * 0.2 + 90 * 0.0001 * 1.955) / 100, rel=1e-3)
    assert drawn(section, tmp_path)
    assert plateau.changed_tokens_are_uncertain([made_up(changes=changes(big=10, entropic=False), plateau=10)]).verdicts[0].agrees is False


def test_s7(tmp_path):
    run = made_up(changes=changes(big=10), plateau=10, token=WORDS.__getitem__)
    section = plateau.changed_tokens_are_formal([run])
    formal = section.rows[0]
    assert formal["category"] == "formal reasoning" and formal["share_of_top"] == 1 and formal["base_rate"] == 0.01
    assert formal["ratio"] == pytest.approx(100) and formal["mean_change"] == pytest.approx(0.2)
    assert section.verdicts[0].agrees is True and drawn(section, tmp_path)
    run.token = {2: " the", 3: "5"}.__getitem__
    assert plateau.changed_tokens_are_formal([run]).verdicts[0].agrees is False  # now 99 % of all tokens, and none of the largest


def test_the_interval_of_the_largest_changes_is_over_problems():
    """Both of two problems or one of them: the interval goes from 0 to 1, however many completions each has."""
    size, member = np.repeat([3.0, 2.0], 50), np.repeat([True, False], 50)
    share, low, high, base = share_of_largest(size, member, np.repeat([7, 8], 50), 0.1)
    assert (share, low, high, base) == (1.0, 0.0, 1.0, 0.5)
    assert share_of_largest(size, member, np.arange(100), 0.1)[1] == 1.0  # a hundred problems: sure of it


# ---------------------------------------------------------------------------------------------------------------------------------------
# Instance and token


def test_i1(tmp_path):
    """Rows 0 to 4 are the low half. All changes lie there, or all elsewhere."""
    found = changes(big=0)
    for rows, agrees in (((0, 1, 2, 3, 4), True), ((5, 6, 7, 8, 9), False)):
        found["change"] = np.where(np.isin(found["row"], rows), 0.2, 0.0)
        section = instance.learning_in_low_perplexity([made_up(changes=found, plateau=10)])
        low = section.rows[0]
        assert low["half"] == "low" and low["share_of_top"] == (1.0 if agrees else 0.0) and low["base_rate"] == 0.5
        assert section.verdicts[0].agrees is agrees and drawn(section, tmp_path)


def replaced(**drops) -> list[dict]:
    """20 completions for each place; `drops` gives the loss of accuracy in low and high halves of perplexity, or by place."""
    rows = []
    for i in range(20):
        for where in ("anywhere", "early", "late"):
            lost = drops.get(where, drops.get("low" if i < 10 else "high", 0.0))
            rows.append(
                dict(where=where, completion=i, step=40, log_ppl=float(i), entropy=1.0, kept=0.75, replaced=0.75 - lost + 0.001 * (i % 2))
            )
    return rows


@pytest.mark.parametrize("low, high, agrees", [(0.1, 0.5, True), (0.5, 0.1, False), (0.3, 0.3, None)])
def test_i2(tmp_path, low, high, agrees):
    section = instance.low_perplexity_is_robust([made_up(replacements=replaced(low=low, high=high))])
    first, second = section.rows
    assert first["group"] == "low perplexity" and first["n"] == 10 and first["drop"] == pytest.approx(low - 0.0005)
    assert second["drop"] == pytest.approx(high - 0.0005) and first["low"] <= first["drop"] <= first["high"]
    assert section.verdicts[0].agrees is agrees and drawn(section, tmp_path)


def test_a_difference_that_chance_explains_leaves_i2_open():
    """2 points between halves whose completions scatter by 10: the interval holds 0, whichever half happens to be ahead."""
    for gap in (0.02, -0.02):
        rows = replaced(low=0.3, high=0.3 + gap)
        for i, row in enumerate(rows):
            row["replaced"] += 0.1 * (-1) ** (i // 3)
        verdict = instance.low_perplexity_is_robust([made_up(replacements=rows)]).verdicts[0]
        assert verdict.agrees is None, verdict.text


@pytest.mark.parametrize("early, late, agrees", [(0.5, 0.1, True), (0.1, 0.5, False), (0.2, 0.2, None)])
def test_t2(tmp_path, early, late, agrees):
    section = position.early_tokens_decide([made_up(replacements=replaced(early=early, late=late))])
    assert [round(r["drop"], 2) for r in section.rows] == [early, late]
    assert section.verdicts[0].agrees is agrees and drawn(section, tmp_path)
    assert position.early_tokens_decide([made_up()]).verdicts[0].agrees is None
    for n, open_ in ((3, True), (4, False)):  # of each group
        few = [row for where in ("early", "late") for row in [r for r in replaced(early=0.5, late=0.0) if r["where"] == where][:n]]
        text = position.early_tokens_decide([made_up(replacements=few)]).verdicts[0].text
        assert ("fewer than 4 completions" in text) is open_


@pytest.mark.parametrize("first, middle, last, agrees", [(2.0, 1.0, 2.0, True), (2.0, 1.0, 0.5, False)])
def test_t1(tmp_path, first, middle, last, agrees):
    shape = [first] * 2 + [middle] * 16 + [last] * 2
    rows = [dict(step=s, correct=c, entropy=[h + 0.01 * (s % 3) for h in shape]) for s in range(1, 41) for c in (True, False)]
    section = position.entropy_by_position([made_up(completions=rows, plateau=20, last=40)])
    assert section.verdicts[0].agrees is agrees and drawn(section, tmp_path)
    profile = [r["entropy"] for r in section.rows if r["stage"] == "plateau" and r["answers"] == "right"]
    assert profile == pytest.approx([h + 0.01 for h in shape], abs=1e-3)
    assert position.entropy_by_position([made_up(last=3)]).verdicts[0].agrees is None


# ---------------------------------------------------------------------------------------------------------------------------------------
# Arms and exploration


def made_experiment(tmp_path, **gains) -> Experiment:
    results, curves = [], []
    for arm in ("grpo", "ppl-strong", "ppl-high", "pos-strong", "pos-early", "pos-plateau"):
        for seed in range(5):
            gain = gains.get(arm.replace("-", "_"), 0.0)
            results.append({"arm": arm, "seed": seed, **dict.fromkeys(METRICS, 0.5 + gain + 0.001 * seed * (arm != "grpo"))})
            curves += [{"arm": arm, "seed": seed, "step": s, "pass_at_1": 0.1 * s, "entropy": 1.0} for s in range(3)]
    return Experiment(tmp_path, results, curves)


def test_i3_and_t3_against_the_signs_of_the_paper(tmp_path):
    section = instance.weights_by_perplexity([], made_experiment(tmp_path, ppl_high=-0.1))
    assert [v.run for v in section.verdicts] == ["ppl-strong minus grpo", "ppl-high minus grpo", "ppl-strong minus ppl-high"]
    high = {r["metric"]: r for r in section.rows if r["arm"] == "ppl-high"}
    assert high["pass_at_1"]["difference"] == pytest.approx(-0.098) and high["pass_at_1"]["n"] == 5 and high["pass_at_1"]["high"] < 0
    assert section.verdicts[1].agrees is False  # accuracy falls as the paper says, but so does entropy
    assert len(drawn(section, tmp_path)) == 3
    section = position.bonus_by_position([], made_experiment(tmp_path, pos_strong=0.1, pos_early=0.1, pos_plateau=-0.1))
    assert [v.agrees for v in section.verdicts] == [True, True, False, None]
    unclear = position.bonus_by_position([], made_experiment(tmp_path, pos_strong=-0.002))
    assert unclear.verdicts[0].agrees is None and "cannot be told apart" in unclear.verdicts[0].text
    assert instance.weights_by_perplexity([], None).verdicts[0].agrees is None


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
    assert "pass@1 +0.562" in one.verdicts[0].text and one.verdicts[0].agrees is None  # pass@4: 0, but up to 0.2 either way
    two = exploration.unsolvable_sets([run])
    assert (
        "10 of 40 problems unsolvable before, 10 after, 0 for both" in two.verdicts[0].text and two.verdicts[0].agrees is None
    )  # 1 right of 4 is chance
    three = exploration.branching([run])
    assert "3.00 → 1.50" in three.verdicts[0].text and "33 % fewer" in three.verdicts[0].text and three.verdicts[0].agrees is True
    for section in (one, two, three):
        assert section.rows and drawn(section, tmp_path)
    solved = made_up(exploration=explored([1, 1], [4, 4]))
    assert exploration.pass_at_k_curves([solved]).verdicts[0].agrees is None  # nothing left to widen or to lose
    assert exploration.unsolvable_sets([solved]).verdicts[0].agrees is None
    flat = made_up(exploration=explored([0, 1, 1, 1] * 10, [0, 4, 4, 4] * 10))
    assert exploration.pass_at_k_curves([flat]).verdicts[0].agrees is True
    crossed = made_up(exploration=explored([0, 4], [4, 0]))  # C(4, 4) / C(8, 4) = 1 / 70
    assert exploration.unsolvable_sets([crossed]).verdicts[0].agrees is True
    nested = made_up(exploration=explored([0, 0, 1], [0, 4, 4]))
    assert exploration.unsolvable_sets([nested]).verdicts[0].agrees is False
    assert exploration.branching([made_up()]).verdicts[0].agrees is None


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
    assert percent(0.1234, 1) == "12.3 %"


def test_bootstrap_of_two_samples():
    """The difference of two samples; drawn together, what they have in common cancels."""
    a = list(np.random.default_rng(0).normal(size=200))
    b = [x + 1 for x in a]

    def gap(first, second):
        return float(np.mean(second) - np.mean(first))

    low, high = bootstrap(gap, a, b)
    assert 0.7 < low < 0.9 < 1.1 < high < 1.3  # standard error sqrt(2 / 200) = 0.1
    assert bootstrap(gap, a, b, paired=True) == pytest.approx((1.0, 1.0))
    assert np.isnan(bootstrap(gap, a, [])).all()


def test_a_finding_is_a_function_of_one_run():
    """The section asks every run, puts its name to rows and pictures, and passes over what was not probed."""
    assert doctest.testmod(section).failed == doctest.testmod(text).failed == 0

    @section.section("X1", "Title", needs="fixed", together=lambda runs: ([{"runs": len(runs)}], [Panel(None, "all")]), n=3)
    def finding(run):
        """It shows {n}
        things.

        The paper found: More.
        """
        return section.Verdict(True, run.name, [{"x": 1}], [Panel(None), Panel(None, "b", "caption")])

    run = made_up(fixed=[1])
    assert finding.__wrapped__(run).rows == [{"x": 1}]
    out = finding([run, made_up()])
    assert (out.label, out.title, out.shows, out.paper) == ("X1", "Title", "It shows 3 things.", "More.")
    assert out.rows == [{"runs": 2}, {"run": "made-up", "x": 1}]
    assert [(p.name, p.caption) for p in out.panels] == [("all", ""), ("made-up", ""), ("made-up-b", "made-up: caption")]
    assert [v.agrees for v in out.verdicts] == [True, None] and "rlvr.analysis.probe" in out.verdicts[1].text


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
        assert finding["agrees"] in ("yes", "no", "open") and escape(finding["text"]) in text
    probed = {f["label"] for f in findings if f["run"] == "pos" and "rlvr.analysis.probe" not in f["text"]}
    assert probed >= set(LABELS) - {"I3", "T3"}
    assert {f["label"] for f in findings if f["run"] != "pos" and "rlvr.analysis.probe" in f["text"]} == {
        "S5",
        "S6",
        "S7",
        "I1",
        "I2",
        "T2",
        "E1",
        "E2",
        "E3",
    }
    pictures = {p.stem for p in written.parent.glob("*.png")}
    assert len(pictures) == text.count("<figure>") > 16 and all("/" not in p for p in pictures)
    assert {p.stem for p in written.parent.glob("?[0-9].csv")} >= {
        "S1",
        "S3",
        "S4",
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
    for name in ("changes", "instance", "position"):
        monkeypatch.setattr(f"rlvr.analysis.report.{name}.bootstrap", lambda *samples, **settings: (0.0, 0.0))
    for name in ("changes", "instance"):
        monkeypatch.setattr(f"rlvr.analysis.report.{name}.share_of_largest", lambda *arrays: (0.0, 0.0, 0.0, 0.0))


def test_no_text_of_a_run_becomes_code_of_the_page(run, tmp_path, quick, monkeypatch):
    """Hostile text in every field and key of every file, in the names of run and experiment, and in what the tokenizer knows."""
    folder, experiment = tmp_path / HOSTILE.replace("/", "|"), tmp_path / HOSTILE.replace("/", "!")
    shutil.copytree(run, folder)
    shutil.copytree(arms.SHIPPED, experiment)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    own = ("preset", "method", *(field.name for field in dataclasses.fields(TrainConfig) if get_origin(field.type) is Literal))
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
        ("rollouts.jsonl", lambda found: found | {"token_ids": [10**30]}),
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


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium or not shutil.which("chromedriver"):
        pytest.skip("needs chromium and chromedriver (on Debian: apt-get install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in "--headless=new --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync --no-first-run".split():
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def size(browser, width: int, height: int) -> None:
    metrics = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_fits_and_has_no_errors(browser, written, width, theme):
    size(browser, width, 900)
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
    size(browser, 1280, 900)
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
