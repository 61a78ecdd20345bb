"""The experiment: arms, pairs, intervals and areas by hand; and a small one that is stopped, goes on, and ends."""

import contextlib
import csv
import doctest
import json
import math
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from helpers import STORIES

from rlvr.analysis import compare_arms, intervals
from rlvr.analysis import experiment as experiment_module
from rlvr.config import SettingError
from rlvr.run.cli import parse_command, parse_train
from rlvr.analysis.experiment import ARMS, ExperimentConfig, Run, chosen_plan, planned, run_all
from rlvr.analysis.plan import PUBLISHED, read_plan
from rlvr.analysis.treatments import TreatmentsConfig, treatments
from rlvr.common.text import csv_text
from rlvr.run.figures import read_metrics
from rlvr.analysis.compare_arms import (
    METRICS,
    area,
    comparison,
    curves,
    differences,
    markdown,
    measure,
    read_results,
)
from rlvr.analysis.intervals import gap_interval, holm, mean_interval, outside, p_value, t_quantile

ROOT = Path(__file__).parent.parent
SMALL = "--prompts-per-step 2 --completions-per-prompt 4 --mini-batch-prompts 2 --max-new-tokens 40 --final-eval-problems 2 "
SMALL += f"--eval-completions 2 --eval-every 0 --data {STORIES} --eval-data {STORIES}"


def plan(config: ExperimentConfig) -> list[Run]:
    return planned(chosen_plan(config), Path(config.out))


def rows(**arms) -> list[dict]:
    """results.csv with the given pass@1 by arm and seed; the other metrics are 1."""
    return [
        {"arm": arm, "seed": seed, **dict.fromkeys(METRICS, 1.0), "pass_at_1": v}
        for arm, values in arms.items()
        for seed, v in values.items()
    ]


# ---------------------------------------------------------------------------------------------------------------------------------------
# Numbers


@pytest.mark.parametrize("module, examples", [(compare_arms, 3), (intervals, 6)])
def test_the_examples_in_the_docstrings(module, examples):
    result = doctest.testmod(module)
    assert result.failed == 0 and result.attempted >= examples


@pytest.mark.parametrize("df, t", [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (29, 2.045), (1000, 1.962)])
def test_students_t_as_in_the_tables(df, t):
    assert round(t_quantile(df), 3) == t


def test_interval_by_hand():
    """0.1, 0.2, 0.3, 0.4, 0.5: mean 0.3, sd 0.1581, standard error 0.0707, times 2.776."""
    mean, low, high = mean_interval([0.1, 0.2, 0.3, 0.4, 0.5])
    assert (mean, low, high) == pytest.approx((0.3, 0.3 - 2.7764 * 0.0707107, 0.3 + 2.7764 * 0.0707107), abs=1e-5)
    assert mean_interval([1.0]) == (1.0, -math.inf, math.inf)


def test_p_value_as_in_the_tables_and_by_the_interval():
    assert outside(2.776445, 4) == pytest.approx(0.05, abs=1e-6) and outside(-4.604095, 4) == pytest.approx(0.01, abs=1e-6)
    values = [0.1, 0.2, 0.3, 0.4, 0.5]  # t = 0.3 / 0.0707107 = 4.2426, df 4
    assert p_value(values) == pytest.approx(0.0132, abs=1e-4)
    _, low, high = mean_interval(values, 1 - p_value(values))
    assert low == pytest.approx(0, abs=1e-9), "the interval at level 1 - p ends at 0"
    assert math.isnan(p_value([1.0])) and p_value([2.0, 2.0]) == 0 and p_value([0.0, 0.0]) == 1


def test_holm_by_hand():
    """0.01, 0.02, 0.03, 0.5 are multiplied by 4, 3, 2, 1; none may be smaller than one before it."""
    assert holm([0.5, 0.03, 0.01, 0.02]) == pytest.approx([0.5, 0.06, 0.04, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
    p, q = holm([float("nan"), 0.01])
    assert math.isnan(p) and q == 0.01, "what cannot be asked is not counted"


def test_two_samples_by_hand():
    """Means 4 and 2, both with a squared standard error of 1 / 3: t of 4 degrees of freedom times sqrt(2 / 3)."""
    gap, low, high = gap_interval([3.0, 4.0, 5.0], [1.0, 2.0, 3.0])
    assert (gap, low, high) == pytest.approx((2, 2 - 2.7764 * 0.8165, 2 + 2.7764 * 0.8165), abs=1e-4)
    # Welch: one sample does not vary, so the degrees of freedom are those of the other
    assert gap_interval([1.0, 3.0], [0.0] * 9)[1] == pytest.approx(mean_interval([1.0, 3.0])[1])
    assert gap_interval([2.0, 2.0], [1.0, 1.0]) == (1.0, 1.0, 1.0)


def test_entropies_are_compared_as_ratios():
    """0.1 and 0.4 against 0.2 each: half and twice as much, which is no difference."""
    results = rows(grpo={0: 0.5, 1: 0.5}, pos={0: 0.5, 1: 0.5})
    for row, entropy in zip(results, (0.2, 0.2, 0.1, 0.4)):
        row["entropy_late"] = entropy
    gaps = differences(results, "pos", "entropy_late")
    assert gaps == pytest.approx([-math.log(2), math.log(2)]) and compare_arms.difference_text(gaps, "entropy_late").startswith("x1.00 [0.00, ")
    assert comparison(results, "entropy_late")[1][4] == "x1.00"


SHIPPED = read_results(ROOT / "tutorials" / "experiment" / "results.csv")


def test_the_shipped_claims_by_other_code():
    """The one claim of twelve that holds after Holm's adjustment, with scipy's numbers: ttest_1samp of the logarithms of five ratios."""
    found = {(r["arm"], r["other"], r["metric"]): r for r in compare_arms.judge(SHIPPED)}
    assert len(found) == len(compare_arms.CLAIMS) == 12
    entropy = found["ppl-strong", "ppl-high", "entropy_late"]
    assert entropy["text"] == "x0.56 [0.45, 0.70]" and round(entropy["p"], 4) == 0.0019 and round(entropy["p_holm"], 3) == 0.023
    assert [key for key, row in found.items() if row["agrees"] != "open"] == [("ppl-strong", "ppl-high", "entropy_late")]
    assert entropy["agrees"] == "yes" and entropy["difference"] == pytest.approx(0.56, abs=0.005)
    asked = compare_arms.claims_table(SHIPPED)
    assert "| I3 | ppl-strong against ppl-high | late entropy | lower | x0.56 [0.45, 0.70] | 0.0019 | 0.023 | yes |" in markdown(SHIPPED)
    assert len(asked) == 12 and "25 seeds of each" in markdown(SHIPPED)


def test_a_claim_of_the_other_sign_is_a_no():
    results = rows(**{"grpo": dict.fromkeys(range(5), 0.5), "pos-plateau": {s: 0.4 + 0.001 * s for s in range(5)}})
    (row,) = [r for r in compare_arms.judge(results) if r["arm"] == "pos-plateau"]
    assert row["agrees"] == "no" and row["p_holm"] == row["p"] < 0.001  # the only one that could be asked


def test_the_residual_spread_by_hand():
    """An arm's and a seed's share taken away, rests of +-1 are left: 4 squares of 0.25, one degree of freedom."""
    assert compare_arms.residual_spread(rows(grpo={0: 1.0, 1: 4.0}, pos={0: 2.0, 1: 7.0}), "pass_at_1") == (pytest.approx(1.0), 1)
    spread = compare_arms.residual_spread(SHIPPED, "pass_at_1")
    assert spread == (pytest.approx(0.01793, abs=1e-5), 32)  # nine arms: ppl-dropped is grpo, negative-only is worlds apart
    assert compare_arms.seeds_for(spread[0], 0.015) == 25 and compare_arms.seeds_for(spread[0], 0.02) == 15
    assert math.isnan(compare_arms.residual_spread(rows(grpo={0: 1.0, 1: 2.0}), "pass_at_1")[0]) and compare_arms.power(rows(grpo={0: 1.0})) == ""


def test_area_by_hand():
    assert area([(0, 0.0), (10, 1.0), (30, 0.5)]) == pytest.approx((5 + 15) / 30)


def test_pairs_are_of_equal_seeds():
    results = rows(grpo={0: 0.5, 1: 0.6, 3: 0.9}, pos={3: 1.0, 1: 0.5, 2: 0.1})
    assert differences(results, "pos", "pass_at_1") == pytest.approx([-0.1, 0.1])  # seeds 1 and 3
    trunks = [r | {"trunk": t, "pass_at_1": r["pass_at_1"] + up} for t, up in (("a", 0.0), ("b", 0.3)) for r in results]
    trunks[-2]["pass_at_1"] += 0.1
    assert differences(trunks, "pos", "pass_at_1") == pytest.approx([0.0, 0.05]), "one of each trunk: its seeds are not independent"


def test_a_link_where_a_run_or_its_log_shall_be_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for name in ("grpo-seed0.log", "grpo-seed0"):
        (tmp_path / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(SettingError, match=f"{name} is a link"):
            plan(ExperimentConfig(arms=("grpo",), seeds=1, out=str(tmp_path)))
        (tmp_path / name).unlink()


def test_a_log_that_was_edited_is_found_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "trained", True)
    (tmp_path / "grpo-seed0").mkdir()
    (tmp_path / "grpo-seed0" / "metrics.csv").write_text("step;loss\n")
    with pytest.raises(SettingError, match="metrics.csv was edited"):
        plan(ExperimentConfig(arms=("grpo",), seeds=1, out=str(tmp_path)))


def test_whatever_ends_an_experiment_its_runs_do_not_outlive_it(tmp_path, monkeypatch):
    """The second run cannot be started: the first is asked to stop, and waited for."""
    asked, process = [], SimpleNamespace(send_signal=lambda number: asked.append(number), wait=lambda: asked.append("waited"))

    def start(run):
        if run.seed:
            raise OSError(28, "No space left on device")
        run.process = process
        return run

    monkeypatch.setattr(experiment_module, "_start", start)
    with pytest.raises(OSError):
        run_all(plan(ExperimentConfig(arms=("grpo",), seeds=2, out=str(tmp_path))), 2, lambda: None)
    assert asked == [signal.SIGINT, "waited"]


def test_the_table_by_hand():
    results = rows(grpo={0: 0.5, 1: 0.7}, pos={0: 0.6, 1: 0.9}, ppl={0: 0.4})
    first, second, third = comparison(results, "pass_at_1")
    assert first == ["grpo", "2", "0.600", "0.141", "", ""]
    assert second[:5] == ["pos", "2", "0.750", "0.212", "+0.150"]
    assert second[5] == "[{:+.3f}, {:+.3f}]".format(*mean_interval([0.1, 0.2])[1:])
    assert third == ["ppl", "1", "0.400", "–", "-0.100", "one pair"]
    text = markdown(results)
    assert len({line.count("|") for line in text.splitlines()}) == 1 and "0.750 ± 0.212<br>+0.150" in text


def test_arms_against_each_other(tmp_path):
    results = rows(**{"grpo": {0: 0.5}, "ppl-strong": {0: 0.6, 1: 0.8, 2: 0.9}, "ppl-high": {0: 0.5, 1: 0.5}, "pos-strong": {0: 0.1}})
    (row,) = compare_arms.contrasts(results)
    assert row[:3] == ["ppl-strong against ppl-high", "2", "{:+.3f} [{:+.3f}, {:+.3f}]".format(*mean_interval([0.1, 0.3]))]
    assert "ppl-strong against ppl-high" in markdown(results) and "against each other" in compare_arms.text_tables(results)
    results += rows(**{"negative-only": {0: -9.0, 1: -9.0}})
    compare_arms.draw_differences(results, tmp_path / "d.png")  # an arm that is worlds apart gets its numbers, and is drawn all the same
    assert (tmp_path / "d.png").stat().st_size > 1000


def test_measure_of_a_run_by_hand(tmp_path):
    from rlvr.run.log import COLUMNS

    steps = [{"step": 0, "stage": "rising", "eval_pass_at_1": 0.2, "eval_pass_at_max": 0.8, "entropy": 9.0}]
    steps += [{"step": s, "stage": "rising", "accuracy": 0.5, "entropy": s / 10, "length": 10 + s} for s in range(1, 11)]
    steps[5] |= {"eval_pass_at_1": 0.6, "eval_pass_at_max": 0.85}
    steps[10] |= {"eval_pass_at_1": 0.8, "eval_pass_at_max": 0.9}
    with open(tmp_path / "metrics.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(steps)
    found = measure(tmp_path)
    # the last fifth: steps 9 and 10; area: (0.4 * 5 + 0.7 * 5) / 10
    assert found == pytest.approx({"pass_at_1": 0.8, "area": 0.55, "pass_at_max": 0.9, "entropy_late": 0.95, "length_late": 19.5})
    assert [(p["step"], p["pass_at_1"]) for p in curves("a", 0, tmp_path)] == [(0, 0.2), (5, 0.6), (10, 0.8)]
    assert [p["entropy"] for p in curves("a", 0, tmp_path)] == pytest.approx([9.0, 0.3, 0.8])  # means of the steps since the last


# ---------------------------------------------------------------------------------------------------------------------------------------
# The plan


def test_arms_are_what_they_say():
    assert all(arm.says for arm in ARMS.values())
    by_name = {name: parse_train(arm.flags) for name, arm in ARMS.items()}
    assert by_name["grpo"].method == "grpo" and by_name["ppl"].ppl_alpha == 0.01 and by_name["pos"].pos_alpha == 0.1
    assert by_name["ppl-high"].ppl_direction == "high" and by_name["ppl-high"].ppl_alpha == by_name["ppl-strong"].ppl_alpha
    assert by_name["pos-early"].pos_direction == "early" and by_name["pos-early"].pos_alpha == by_name["pos-strong"].pos_alpha
    assert by_name["pos-plateau"].shape_start == "plateau" and not by_name["ppl-dropped"].ppl_apply
    assert by_name["positive-only"].learn_from == "positive" and by_name["negative-only"].learn_from == "negative"


def test_seeds_come_in_rounds(tmp_path):
    runs = plan(ExperimentConfig(arms=("grpo", "pos"), seeds=2, out=str(tmp_path)))
    assert [(r.arm, r.seed) for r in runs] == [("grpo", 0), ("pos", 0), ("grpo", 1), ("pos", 1)]
    configs = [parse_train(r.flags) for r in runs]
    assert all(c.level == 2 and c.steps == 80 and c.threads == 1 for c in configs)
    assert [c.seed for c in configs] == [0, 0, 1, 1] and configs[1].method == "pos"


@pytest.mark.parametrize(
    "settings, said",
    [
        (dict(arms=("grpo", "nothing")), "no arm 'nothing'"),
        (dict(arms=("grpo", "grpo")), "no arm twice"),
        (dict(seeds=-1), "--seeds, --steps and --jobs of 0 or more"),
        (dict(train="--lr nonsense"), "--lr"),
        (dict(train='--name "x'), "quotes"),
    ],
)
def test_bad_settings_are_refused_before_anything_runs(tmp_path, settings, said):
    with pytest.raises(SettingError, match=said):
        plan(ExperimentConfig(**(dict(out=str(tmp_path)) | settings)))
    assert not list(tmp_path.iterdir())


# -- trunks and branches ---------------------------------------------------------------------------------------------------------------


TRUNKS = dict(question="?", train="--level 3 --eval-every 1", steps=3, branch_at=2, seeds=[100, 101], trunks={"a": "--seed 0", "b": "--seed 1"},
              arms={"grpo": dict(flags="--method grpo", says="the baseline"), "pos": dict(flags="--method pos --pos-alpha 0.4", says="late")},
              evaluate={"cool": "--level 3 --temperature 0.6"}, average=2)  # fmt: skip


def with_trunks(folder: Path, **changes) -> ExperimentConfig:
    folder.mkdir(exist_ok=True)
    (folder / "my.yaml").write_text(yaml.safe_dump(TRUNKS | changes), encoding="utf-8")
    return ExperimentConfig(plan=str(folder / "my.yaml"), out=str(folder))


def test_the_plans_that_are_shipped_can_be_run(tmp_path):
    for path in (PUBLISHED, PUBLISHED.with_name("plan-study.yaml")):
        found = read_plan(path)
        found = found._replace(seeds=found.seeds[-1:], trunks=dict(list(found.trunks.items())[-1:]))  # reading all flags takes long
        runs = planned(found, tmp_path)
        assert len(runs) == len(found.seeds) * max(1, len(found.trunks)) * len(found.arms) + len(found.trunks) and found.question
    assert {run.wanted.lr_schedule for run in runs} == {"constant"} and {run.wanted.level for run in runs} == {3}
    steps = {bool(run.needs): (run.wanted.steps, run.to_do()) for run in runs}
    assert steps == {False: (80, 80), True: (180, 100)}


def test_a_trunk_comes_before_its_branches_and_every_trunk_before_the_second_seed(tmp_path):
    runs = plan(with_trunks(tmp_path))
    assert [run.folder.name for run in runs] == [
        "trunk-a", "a-grpo-seed100", "a-pos-seed100", "trunk-b", "b-grpo-seed100", "b-pos-seed100",
        "a-grpo-seed101", "a-pos-seed101", "b-grpo-seed101", "b-pos-seed101",
    ]  # fmt: skip
    trunk, branch = runs[0], runs[2]
    assert trunk.wanted.method == "grpo" and (trunk.wanted.steps, trunk.wanted.seed) == (2, 0) and not trunk.evaluate
    assert branch.needs is trunk and branch.flags[:2] == ["--branch", f"{trunk.folder}@2"] and branch.wanted.branch == branch.flags[1]
    assert (branch.wanted.steps, branch.wanted.seed, branch.wanted.pos_alpha, branch.to_do()) == (5, 100, 0.4, 3)


def test_rows_that_were_made_elsewhere_count_and_their_trunk_is_not_made_again(tmp_path):
    config = with_trunks(tmp_path)
    made = [(trunk, arm, seed) for trunk in "ab" for arm in ("grpo", "pos") for seed in (100, 101) if (trunk, arm) != ("b", "pos")]
    rows = [{"trunk": t, "arm": a, "seed": s} | dict.fromkeys(METRICS, 0.5) | {"cool": 0.25} for t, a, s in made]
    (tmp_path / "results.csv").write_text(csv_text(rows), encoding="utf-8")
    runs = plan(config)
    assert [run.folder.name for run in runs if not run.done] == ["trunk-b", "b-pos-seed100", "b-pos-seed101"]
    assert not [run for run in runs if run.folder.name == "trunk-a"]
    found = experiment_module.collect(runs, tmp_path, chosen_plan(config))
    assert sorted(found, key=str) == sorted(rows, key=str) and read_results(tmp_path / "results.csv") == found


def row_of(trunk="a", arm="grpo", seed=100, **numbers) -> dict:
    return {"trunk": trunk, "arm": arm, "seed": seed} | dict.fromkeys(METRICS, 0.5) | {"cool": 0.25} | numbers


@pytest.mark.parametrize(
    "rows, changes, said",
    [
        ([row_of(arm="other")], {}, "results.csv alone has a-other-seed100, not asked for here"),
        ([row_of(seed=7)], {}, "results.csv alone has a-grpo-seed7"),
        ([row_of(), row_of(cool=0.5)], {}, "has a run twice"),
        ([row_of(cool="high")], {}, "is not what an experiment wrote .*'high'"),
        ([row_of() | {"area": None}], {}, "is not what an experiment wrote"),
        ([row_of()], {"evaluate": {"warm": ""}}, "has no 'warm', which"),
        ([row_of()], {"errors": True}, "has no 'calculation', which"),
        ([row_of()], {"train": "--level 2"}, "differs from it"),
        ([row_of()], {"steps": 4}, "differs from it"),
        ([row_of()], {"trunks": {"a": "--seed 5", "b": "--seed 1"}}, "differs from it"),
        ([row_of()], {"arms": {"grpo": dict(flags="--method grpo --lr 1e-4", says="?")}}, "differs from it"),
        ([row_of()], {"trunks": TRUNKS["trunks"] | {"c": "--seed 2"}, "seeds": [100, 101, 102]}, ""),  # it grew: that is all
        ([row_of()], {"question": "!"}, ""),
    ],
)
def test_rows_made_elsewhere_are_not_lost_and_not_taken_for_others(tmp_path, rows, changes, said):
    (tmp_path / "results.csv").write_text(csv_text(rows), encoding="utf-8")
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(TRUNKS))
    config = with_trunks(tmp_path, **changes)
    if said:
        with pytest.raises(SettingError, match=said):
            plan(config)
    else:
        assert plan(config)


def test_a_row_that_is_not_asked_for_is_not_lost_if_its_run_is_here(tmp_path):
    (tmp_path / "a-other-seed100").mkdir()
    (tmp_path / "results.csv").write_text(csv_text([row_of(arm="other")]), encoding="utf-8")
    assert plan(with_trunks(tmp_path))


def test_curves_that_were_made_elsewhere_stay(tmp_path, monkeypatch):
    config = with_trunks(tmp_path, trunks={}, branch_at=0, seeds=[0], evaluate={}, average=1)
    for name, made in (("results", [row_of("", "grpo", 0)]), ("curves", [dict(trunk="", arm="grpo", seed=0, step=1, pass_at_1=0.5, entropy=1.0)])):
        (tmp_path / f"{name}.csv").write_text(csv_text(made), encoding="utf-8")
    runs = plan(config)
    monkeypatch.setattr(experiment_module, "row_of", lambda run, plan: row_of("", "pos", 0))
    monkeypatch.setattr(experiment_module, "curves", lambda *_: [dict(arm="pos", seed=0, step=1, pass_at_1=0.4, entropy=2.0)])
    monkeypatch.setattr(Run, "done", True)
    experiment_module.collect(runs, tmp_path, chosen_plan(config))
    assert [(p["arm"], p["pass_at_1"]) for p in read_results(tmp_path / "curves.csv")] == [("pos", 0.4), ("grpo", 0.5)]


def test_a_branch_is_expected_to_have_the_flags_of_its_trunk(tmp_path):
    """An arm that does not name a flag of the baseline takes it over, as --branch does; so the run that it makes is known again."""
    arms = {"grpo": dict(flags="--method grpo --lr 1e-4", says="?"), "pos": dict(flags="--method pos", says="?")}
    trunk, grpo, pos = plan(with_trunks(tmp_path, arms=arms, trunks={"a": "--seed 0"}, seeds=[100]))
    assert (trunk.wanted.lr, grpo.wanted.lr, pos.wanted.lr) == (1e-4, 1e-4, 1e-4)
    assert (pos.wanted.method, pos.wanted.steps, pos.wanted.seed, pos.wanted.name) == ("pos", 5, 100, "a-pos-seed100")
    pos.folder.mkdir()
    (pos.folder / "config.json").write_text(json.dumps(vars(pos.wanted)), encoding="utf-8")
    assert plan(with_trunks(tmp_path, arms=arms, trunks={"a": "--seed 0"}, seeds=[100]))[-1].begun


@pytest.mark.parametrize("trunk_fails", [False, True])
def test_a_branch_waits_for_its_trunk_and_is_then_trained_and_evaluated(tmp_path, monkeypatch, trunk_fails):
    """Programs are played: each ends at once, and leaves what the real one would."""
    order = []

    def start(run):
        run.asked, *flags = run.command()
        order.append((run.asked, run.folder.name))
        failed = trunk_fails and run.folder.name == "trunk-a"
        run.process = SimpleNamespace(poll=lambda: 1, returncode=int(failed))
        if not failed:
            run.folder.mkdir(exist_ok=True)
            (run.folder / "summary.json").write_text(json.dumps({"stopped_by": None, "steps": run.wanted.steps}))
            if run.asked == "eval.py":
                run.evaluation("cool").write_text("{}")
        return run

    monkeypatch.setattr(experiment_module, "_start", start)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    runs = plan(with_trunks(tmp_path, seeds=[100]))
    failed = run_all(runs, 2, lambda: None)
    assert order[:2] == [("train.py", "trunk-a"), ("train.py", "trunk-b")], "two at a time, and their branches cannot begin"
    of_b = [program for program, name in order if name == "b-pos-seed100"]
    assert of_b == ["train.py", "eval.py"]
    if trunk_fails:
        assert {run.folder.name for run in failed} == {"trunk-a", "a-grpo-seed100", "a-pos-seed100"}
        assert not [name for _, name in order if name.startswith("a-")]
    else:
        assert not failed and len(order) == 2 + 2 * 4 and all(run.done for run in runs)


def test_a_row_by_hand(tmp_path):
    """The mean of the last two evaluations; pass@1 of the evaluation afterwards; errors among the completions of the last two fifths."""
    config = with_trunks(tmp_path, errors=True, steps=5, arms={"grpo": TRUNKS["arms"]["grpo"]}, trunks={"a": ""}, seeds=[100])
    run = plan(config)[-1]
    run.folder.mkdir()
    from rlvr.run.log import COLUMNS

    with open(run.folder / "metrics.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerow({"step": 2, "stage": "rising", "eval_pass_at_1": 0.1, "eval_pass_at_max": 0.5})
        for step in range(3, 8):
            numbers = dict(eval_pass_at_1=step / 10, eval_pass_at_max=0.9, accuracy=0.5, entropy=0.1, length=50)
            writer.writerow({"step": step, "stage": "rising"} | numbers)
    (run.folder / "config.json").write_text(json.dumps(vars(run.wanted)), encoding="utf-8")
    run.evaluation("cool").write_text(json.dumps({"results": {"tiny": {"x": {"metrics": {"pass@1": {"mean": 0.75}}}}}}), encoding="utf-8")
    story = "Q: Ben has 24 apples. Ben gives away 8. How many apples are left?\nA:"
    lines = [{"step": step, "prompt": story, "completion": " Ben starts with 24. 24-8=16. The answer is \\boxed{15}.", "correct": right}
             for step, right in ((5, False), (6, True), (6, True), (7, False), (7, True))]  # fmt: skip
    (run.folder / "rollouts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    row = experiment_module.row_of(run, chosen_plan(config))
    assert (row["trunk"], row["arm"], row["seed"], row["pass_at_1"], row["cool"]) == ("a", "grpo", 100, pytest.approx(0.65), 0.75)
    errors = {kind: row[kind] for kind in ("copying", "calculation", "unfinished", "form", "selection")}
    assert sum(errors.values()) == pytest.approx(0.25) and max(errors.values()) == 0.25, "one of four after step 5"


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(arms={}), "it needs arms, seeds"),
        (dict(branch_at=0), "branch_at exactly if it has trunks"),
        (dict(trunks={}), "branch_at exactly if it has trunks"),
        (dict(speed=3), "it has 'speed', which no plan knows"),
        (dict(arms={"grpo": "--method grpo"}), "is no plan of an experiment"),
        (dict(train="--lr nonsense"), "--lr"),
        (dict(steps="many"), "steps is 'many', and not a whole number"),
        (dict(steps=True), "steps is True, and not a whole number"),
        (dict(train=["--level", "3"]), "train is .* and not a text"),
        (dict(errors="yes"), "errors is 'yes', and not true or false"),
        (dict(trunks=["a"]), "trunks is .* and not a table of names"),
        (dict(trunks={"a": None}), "None is no text with flags"),
        (dict(train="--level 3 --out=elsewhere"), "--out=elsewhere is not for a plan to say"),
        (dict(train="--help"), "--help is not for a plan to say"),
        (dict(seeds=[1, 1]), r"seeds are \[1, 1\], neither a whole number nor a list of different ones"),
        (dict(seeds=[1.5]), r"seeds are \[1.5\], neither"),
        (dict(evaluate={"cool": "--problms 3"}), "Did you mean --problems"),
        (dict(evaluate={"pass_at_1": ""}), "evaluates 'pass_at_1'. Choose another name"),
        (dict(evaluate={"cool": "--data svamp,gsm8k"}), "on several sets"),
        (dict(average=4), "fewer evaluations than the 4"),
        (dict(average=1, train="--level 3 --final-eval-problems 0"), "fewer evaluations than the 1"),
        (dict(average=1, errors=True, train="--data svamp"), "logs no built-in stories"),
        (dict(average=1, errors=True, train="--log-completions 0"), "logs no built-in stories"),
        (dict(trunks={"a": "", "a-b": ""}, arms={"b-c": TRUNKS["arms"]["grpo"], "c": TRUNKS["arms"]["pos"]}), "two runs that would be"),
    ],
)
def test_a_plan_that_cannot_be_is_one_sentence(tmp_path, changes, said):
    with pytest.raises(SettingError, match=said):
        plan(with_trunks(tmp_path, **changes))


@pytest.mark.slow
def test_trunks_branches_evaluations_and_treatments_from_beginning_to_end(tmp_path, monkeypatch, no_figure):
    """Each program runs in this process and ends before the next begins: ten more that import torch would take a minute."""

    def start(run):
        run.asked, *flags = run.command()
        monkeypatch.setattr(sys, "argv", [run.asked, *flags])
        runpy.run_path(str(ROOT / run.asked), run_name="__main__")
        run.process = SimpleNamespace(poll=lambda: 0, returncode=0)
        return run

    monkeypatch.setattr(experiment_module, "_start", start)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    words = f"{SMALL} --max-new-tokens 60 --prompts-per-step 16".replace(f"--data {STORIES} --eval-data {STORIES}", "--level 3")
    config = with_trunks(tmp_path, train=words, average=1, steps=1, seeds=[100], evaluate={"cool": "--level 3 --problems 4 --completions 2"}, errors=True)
    assert parse_command(ExperimentConfig, "it", ["--plan", config.plan, "--out", config.out]) == config
    experiment_module.experiment(config)
    rows = read_results(tmp_path / "results.csv")
    assert [(row["trunk"], row["arm"]) for row in rows] == [("a", "grpo"), ("b", "grpo"), ("a", "pos"), ("b", "pos")]
    assert all(0 <= row["cool"] <= 1 and row["selection"] >= 0 for row in rows)
    assert [row["step"] for row in read_metrics(tmp_path / "a-pos-seed100")] == [2, 3]
    found = treatments(TreatmentsConfig(out=config.out))
    by_arm = {(row["trunk"], row["arm"]): row for row in found}
    assert by_arm["a", "grpo"]["cosine"] == pytest.approx(1) and by_arm["a", "grpo"]["length"] == pytest.approx(1)
    assert 0.5 < by_arm["a", "pos"]["cosine"] < 0.9999 and by_arm["a", "pos"]["length"] > 1
    assert not list(tmp_path.glob("*-treatments"))


# ---------------------------------------------------------------------------------------------------------------------------------------
# A small one


def command(out: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "rlvr.analysis.experiment", "--arms", "grpo", "ppl-dropped", "--seeds", "1", "--steps", "2", "--out", str(out), "--jobs", "2",
            f"--train={SMALL}", *flags]  # fmt: skip


@pytest.fixture
def at_once(monkeypatch, capfd):
    """at_once(command, code=0): the same program without the seconds in which a process of its own imports torch. What it printed."""

    def run(command, code=0):
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", command[2:])
        with pytest.raises(SystemExit) if code else contextlib.nullcontext() as end:
            runpy.run_module(sys.argv[0], run_name="__main__")
        assert not code or end.value.code == code
        return capfd.readouterr()

    return run


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_an_experiment_from_beginning_to_end(tmp_path, at_once):
    out = tmp_path / "e"
    first = subprocess.run(command(out), cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "minus grpo" in first.stdout
    results = read_results(out / "results.csv")
    assert [(r["arm"], r["seed"]) for r in results] == [("grpo", 0), ("ppl-dropped", 0)]
    for metric in METRICS:  # the factor that is computed and dropped is bit for bit grpo
        assert differences(results, "ppl-dropped", metric) == [0.0]
    assert {p.name for p in out.iterdir() if p.is_file()} >= {"results.csv", "curves.csv", "table.md", "differences.png", "curves.png"}
    written = {p: p.stat().st_mtime_ns for p in out.glob("*-seed*/summary.json")}
    assert "2 done" in at_once(command(out)).out
    assert {p: p.stat().st_mtime_ns for p in out.glob("*-seed*/summary.json")} == written
    assert "other settings (--level 2)" in at_once(command(out, f"--train={SMALL} --level 1"), code=2).err


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_stopped_experiment_goes_on(tmp_path):
    out, flags = tmp_path / "e", [f"--train={SMALL} --save-every 1"]
    long = [w if w != "2" or before != "--steps" else "60" for before, w in zip(["", *command(out)], command(out))]
    process = subprocess.Popen([*long, *flags], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics = out / "grpo-seed0" / "metrics.csv"
    for _ in range(600):
        if metrics.exists() and metrics.read_text().count("\n") > 4:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    summary = json.loads((out / "grpo-seed0" / "summary.json").read_text())
    assert summary["stopped_by"] == "SIGINT" and summary["steps"] < 60
    lock = subprocess.run(
        [sys.executable, "-c", f"from filelock import FileLock; FileLock({str(out / 'grpo-seed0' / '.lock')!r}).acquire(timeout=0)"]
    )
    assert lock.returncode == 0  # nothing is left running


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_run_that_fails_is_named(tmp_path, at_once):
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{", encoding="utf-8")
    assert "-seed0.log" in at_once(command(tmp_path / "e", f"--train={SMALL} --data {bad}"), code=2).err
    assert "not valid JSON" in (tmp_path / "e" / "grpo-seed0.log").read_text()
