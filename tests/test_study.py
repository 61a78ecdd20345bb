"""A registered study: blocks, Holm, equivalence and verdicts by hand; what results.csv may lack; and rates of simulated studies."""

import doctest
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from rlvr.analysis import rules
from rlvr.analysis.intervals import holm, mean_interval, outside, p_value
from rlvr.analysis.rules import VERDICTS, Estimate, Study, by_trunk, contrast, estimate, judge, read_study, verdict
from rlvr.analysis.study import StudyConfig, analyse, rates, read_values, report, simulated
from rlvr.common.text import csv_text, markdown_table, table
from rlvr.config import SettingError
from rlvr.run.cli import parse_command, run_program

FOLDER = Path(__file__).parent.parent / "tutorials" / "experiment"
PLAN, REGISTRATION = FOLDER / "plan-study.yaml", FOLDER / "registration.md"
SHIPPED = read_study(PLAN)
SMALL = {  # two arms and their sham
    "trunks": {"t0": "", "t1": "", "t2": ""},
    "seeds": 2,
    "arms": {"grpo": {}, "pos": {}, "sham": {}},
    "study": {
        "metrics": {"primary": "pass_at_1", "co_primary": "cool"},
        "margin": 0.01,
        "dip": 0.1,
        "ratios": ["entropy_late"],
        "contrasts": {"pos - grpo": {"plus": ["pos"], "minus": ["grpo"]}, "pos - sham": {"pos": 1, "sham": -1}},
        "primary": {"pos - grpo": "pos - sham"},
        "secondary": {
            "entropy": {"metrics": ["entropy_late"], "contrasts": ["pos - grpo", "pos - sham"]},
            "errors": {"metrics": ["copying"], "contrasts": ["pos - grpo"]},
            "stability": {"metrics": ["dip"], "contrasts": ["pos - grpo"]},
        },
    },
}


def rows_of(gaps=((0.02, 0.04), (0.01, 0.01), (0.03, 0.01))) -> list[dict]:
    """results.csv of SMALL: grpo at 0.4, pos higher by gaps [trunk][seed], the sham as grpo; the entropy of pos is half of the others'."""
    found = []
    for t, seeds in enumerate(gaps):
        for seed, gap in enumerate(seeds):
            for arm in ("grpo", "pos", "sham"):
                up = gap * (arm == "pos")
                entropy = 0.04 / (1 + (arm == "pos"))
                found.append({"trunk": f"t{t}", "arm": arm, "seed": seed, "pass_at_1": 0.4 + up, "cool": 0.5 + up, "entropy_late": entropy})
    return found


@pytest.fixture
def study_folder(tmp_path):
    def write(rows: list[dict], plan: dict = SMALL) -> Path:
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
        (tmp_path / "results.csv").write_text(csv_text(rows), encoding="utf-8")
        return tmp_path

    return write


def read(folder: Path) -> tuple[Study, dict]:
    study = read_study(folder / "plan.yaml")
    return study, read_values(folder / "results.csv", study)


# ---------------------------------------------------------------------------------------------------------------------------------------
# Numbers


def test_the_examples_in_the_docstrings():
    result = doctest.testmod(rules)
    assert result.failed == 0 and result.attempted >= 2


def test_blocks_by_hand(study_folder):
    """pos - grpo is 0.02 and 0.04 from the first trunk, so 0.03; then 0.01, and 0.03 and 0.01: 0.02. Mean 0.02, sd 0.01, t(2) 4.303."""
    study, values = read(study_folder(rows_of()))
    gaps = by_trunk(values["pass_at_1"], study.weights["pos - grpo"])
    assert gaps == pytest.approx([0.03, 0.01, 0.02])
    found = estimate(gaps)
    assert (found.n, *found.ends) == pytest.approx((3, 0.02, 0.02 - 4.3027 * 0.01 / 3**0.5, 0.02 + 4.3027 * 0.01 / 3**0.5), abs=1e-6)
    assert found.half90 == pytest.approx(2.9200 * 0.01 / 3**0.5, abs=1e-6)
    assert found.ends == pytest.approx(mean_interval(gaps.tolist())) and found.p == p_value(gaps.tolist())


def test_a_block_counts_only_if_it_is_whole(study_folder):
    """The sham of t0 seed 1 is missing: no contrast uses that block, not even that of the two arms which are there."""
    study, values = read(study_folder([r for r in rows_of() if (r["trunk"], r["seed"], r["arm"]) != ("t0", 1, "sham")]))
    assert by_trunk(values["pass_at_1"], study.weights["pos - grpo"]) == pytest.approx([0.02, 0.01, 0.02])
    said = report(study, values, table)
    assert "5 of 6 blocks are whole, in 3 of 3 trunks. This is a partial result; not counted: t0 seed 1." in said


@pytest.mark.parametrize("column", ["pass_at_1", "cool"])
def test_a_number_that_is_missing_breaks_its_block(study_folder, column):
    rows = rows_of()
    rows[0][column] = rows[3][column] = float("nan")  # grpo of t0 with both seeds
    study, values = read(study_folder(rows))
    gaps = by_trunk(values["pass_at_1"], study.weights["pos - sham"])
    assert np.isnan(gaps[0]) and gaps[1:] == pytest.approx([0.01, 0.02]) and estimate(gaps).n == 2
    assert "4 of 6 blocks are whole, in 2 of 3 trunks" in report(study, values, table)


def test_one_trunk_decides_nothing(study_folder):
    study, values = read(study_folder(rows_of()[:6]))
    *_, p, said = judge(study, values)["pos - grpo"]
    assert said == "undecided" and np.isnan(p)


def test_many_studies_are_judged_as_each_of_them(study_folder):
    values = simulated(SHIPPED, StudyConfig("", simulate=40), 8, 2, 0.01, False)
    together = judge(SHIPPED, values)
    for i in range(40):
        alone = judge(SHIPPED, {metric: x[i] for metric, x in values.items()})
        for name, (gap, *_, p, said) in alone.items():
            assert together[name][3][i] == pytest.approx(p, abs=2e-3) and together[name][0].half[i] == pytest.approx(gap.half)
            assert together[name][-1][i] == said or abs(p - 0.05) < 2e-3
    t = np.array([0.3, 2.37, 4.01])
    assert np.interp(t, *rules._p_values(7)) == pytest.approx([outside(x, 7) for x in t], abs=1e-3)


def test_holm_over_the_primary_contrasts():
    """Each alone has p below 0.05; together the larger is at its p, or twice the smaller if that is more."""
    arms = ["a", "b", "sham"]
    weights = {"a": contrast({"a": 1, "sham": -1}, arms), "b": contrast({"b": 1, "sham": -1}, arms)}
    study = Study(arms, ["t"] * 4, [0], "m", "c", weights, {"a": "a", "b": "b"}, {}, [], 0.0, 0.1)
    gaps = np.array([[0.010, 0.030, 0.012, 0.014], [0.008, 0.030, 0.010, 0.012]])
    values = np.stack([*gaps, np.zeros(4)], -1)[:, None, :]
    ps = [p_value(g.tolist()) for g in gaps]
    assert 0.025 < ps[0] < 0.05 < 2 * ps[0] and 0.05 < 2 * ps[1]
    found = judge(study, {"m": values, "c": values})
    assert [found[name][3] for name in "ab"] == pytest.approx(holm(ps)) and {str(f[-1]) for f in found.values()} == {"undecided"}
    alone = judge(study._replace(primary={"a": "a"}), {"m": values, "c": values})
    assert alone["a"][-1] == "works"


# ---------------------------------------------------------------------------------------------------------------------------------------
# Rules


def about(mean: float, half: float = 0.01, half90: float = 0.008) -> Estimate:
    return Estimate(8, np.float64(mean), half, half90, np.nan)


@pytest.mark.parametrize(
    "gap, co_gap, sham, p, said",
    [
        (about(0.02), about(0.01), about(0.011), 0.01, "works"),
        (about(0.02), about(0.01), about(0.009), 0.01, "re-weighting works, the criterion does not"),
        (about(0.02), about(0.01), about(-0.02), 0.01, "re-weighting works, the criterion does not"),
        (about(0.02), about(-0.001), about(0.02), 0.01, "undecided"),  # not at the other temperature
        (about(0.02), about(0.01), about(0.02), 0.051, "undecided"),
        (about(-0.02), about(0.01), about(0.02), 0.01, "hurts"),
        (about(-0.02), about(-0.01), about(-0.02), 0.06, "undecided"),
        (about(0.0019), about(0.01), about(0.0), 0.7, "no effect worth having"),
        (about(0.0021), about(0.01), about(0.0), 0.7, "undecided"),  # its 90 % interval ends at 0.0101
        (about(-0.0019), about(0.01), about(0.0), 0.7, "no effect worth having"),
        (about(-0.0021), about(0.01), about(0.0), 0.7, "undecided"),
        (about(0.005, 0.004, 0.003), about(0.01), about(0.02), 0.01, "works"),  # small, and surely there: asked in this order
    ],
)
def test_each_rule(gap, co_gap, sham, p, said):
    assert verdict(gap, co_gap, sham, np.float64(p), 0.01) == said


def test_equivalence_by_hand():
    """Eight trunks with mean 0.002 and sd 0.0113: standard error 0.004, t(7) 1.8946 at 90 %, so [-0.0056, 0.0096]: inside. With sd 0.0125
    it ends at 0.0104. The 95 % interval of the first ends at 0.0115: two one-sided tests ask for less."""
    pattern = np.array([1.0, -1.0] * 4) / (8 / 7) ** 0.5  # sd 1
    for sd, said in ((0.0113, "no effect worth having"), (0.0125, "undecided")):
        e = estimate(0.002 + sd * pattern)
        assert e.half90 == pytest.approx(1.8946 * sd / 8**0.5, abs=1e-6)
        assert verdict(e, e, e, e.p, 0.01) == said


# ---------------------------------------------------------------------------------------------------------------------------------------
# Files


def test_the_report_of_a_small_study(study_folder, capsys):
    rows = rows_of()
    rows[0]["pass_at_1"] -= 0.15  # grpo of t0, seed 0: a dip
    folder = study_folder(rows)
    analyse(StudyConfig(str(folder)))
    said, page = capsys.readouterr().out, (folder / "study.md").read_text(encoding="utf-8")
    assert "6 of 6 blocks are whole" in said and "partial" not in said and "undecided: -" in said
    assert "below the median pass_at_1 of their trunk: grpo 1 of 6." in said
    assert "x0.50 [0.50, 0.50]" in said, "entropies as ratios"
    assert re.search(r"errors +copying +pos - grpo +0 +not measured", said)
    assert re.search(r"stability +dip +pos - grpo +3 +-0.167 ", said), "half of the branches of one trunk of three"
    assert "| pos - grpo | 3 |" in page
    assert (folder / "study.png").stat().st_size > 1000


def test_a_trunk_that_is_worse_than_others_does_not_dip(study_folder):
    rows = [row | {"pass_at_1": row["pass_at_1"] - 0.2 * (row["trunk"] == "t1")} for row in rows_of()]
    assert "of their trunk: none." in report(*read(study_folder(rows)), table)


def test_a_dip_counts_only_in_a_whole_block(study_folder):
    rows = rows_of()
    rows[0]["pass_at_1"] -= 0.15
    assert "grpo 1 of 6" in report(*read(study_folder(rows)), table)
    assert "of their trunk: none." in report(*read(study_folder([rows[0], *rows[2:]])), table)  # without pos of that block


def test_holm_inside_a_family_counts_what_was_measured(study_folder):
    rows = rows_of()
    for i, row in enumerate(rows):
        row["entropy_late"] *= 1 + 0.1 * (i % 4)  # some spread
    study, values = read(study_folder(rows))
    lines = [line.split() for line in report(study, values, table).splitlines() if line.startswith("entropy")]
    p, adjusted = [float(words[-2]) for words in lines], [float(words[-1]) for words in lines]
    assert adjusted == pytest.approx(holm(p), abs=2e-3) and adjusted != p


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda rows: [{k: v for k, v in r.items() if k != "cool"} for r in rows], "no column 'cool'"),
        (lambda rows: [{k: v for k, v in r.items() if k != "trunk"} for r in rows], "no column 'trunk'"),
        (lambda rows: [], "no column 'trunk', or no row"),
        (lambda rows: [r for r in rows if r["arm"] != "sham"], "no finished branch of the arm 'sham'"),
        (lambda rows: [r for r in rows if (r["arm"] == "pos") == (r["trunk"] == "t1")], "no whole block"),
        (lambda rows: [*rows, rows[0]], r"Line 20 of .*\(a branch that was there before"),
        (lambda rows: [rows[0] | {"trunk": "t9"}, *rows[1:]], r"Line 2 of .* does not fit the plan"),
        (lambda rows: [rows[0] | {"seed": 2}, *rows[1:]], "Line 2"),
        (lambda rows: [rows[0] | {"arm": "ppl"}, *rows[1:]], "Line 2"),
        (lambda rows: [rows[0] | {"cool": "much"}, *rows[1:]], "Line 2"),
        (lambda rows: [rows[0] | {"cool": "inf"}, *rows[1:]], "infinite"),
    ],
)
def test_results_that_cannot_be_judged(study_folder, change, said):
    with pytest.raises(SettingError, match=said):
        read(study_folder(change(rows_of())))


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda s: s["contrasts"].update(x={"pos": 1, "grpo": -0.5}), "must sum to 0"),
        (lambda s: s["contrasts"].update(x={"pos": 1, "ppl": -1}), "the arm 'ppl'"),
        (lambda s: s["primary"].update({"pos - grpo": "nothing"}), "the contrast 'nothing'"),
        (lambda s: s["secondary"]["errors"].update(contrasts=["nothing"]), "the contrast 'nothing'"),
        (lambda s: s.pop("margin"), "has no 'margin'"),
        (lambda s: s.update(contrasts=3), "is no plan of a study"),
    ],
)
def test_plans_that_cannot_be_used(study_folder, change, said):
    plan = yaml.safe_load(yaml.safe_dump(SMALL))
    change(plan["study"])
    with pytest.raises(SettingError, match=said):
        read(study_folder(rows_of(), plan))


@pytest.mark.parametrize("flags", [["--simulate", "-1"], ["--simulate", "5", "--branch-sd", "-1"], ["--simulate", "5", "--agreement", "2"]])
def test_what_cannot_be_simulated_is_one_sentence(flags):
    with pytest.raises(SettingError, match="0 or more, and --agreement is at most 1"):
        analyse(parse_command(StudyConfig, "study", [*flags, str(PLAN)]))


def test_a_folder_without_a_study_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run_program(lambda: analyse(StudyConfig(str(tmp_path))))
    assert capsys.readouterr().err.count("\n") == 1


# ---------------------------------------------------------------------------------------------------------------------------------------
# The study that is registered


def shares(config: StudyConfig) -> dict[tuple[str, str], list[float]]:
    return {(size, truth): list(map(float, numbers)) for size, truth, *numbers in rates(SHIPPED, config)}


@pytest.fixture(scope="module")
def found() -> dict:
    return shares(StudyConfig("", simulate=400, seed=1))


def registered() -> dict[tuple[str, str], list[float]]:
    lines = REGISTRATION.read_text(encoding="utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if re.match(r"\| \d x \d ", line)]
    return {(size, truth): list(map(float, numbers)) for size, truth, *numbers in rows}


def test_simulated_studies_find_what_is_there(found):
    of = {key: dict(zip(VERDICTS, numbers)) for key, numbers in found.items()}
    assert of["8 x 2", "+2 points"]["works"] > 0.85 and of["8 x 2", "+2 points"]["hurts"] == 0
    none = of["8 x 2", "none"]
    assert none["works"] < 0.05 and none["hurts"] < 0.05 and none["no effect worth having"] + none["undecided"] > 0.95
    assert of["8 x 2", "+2 points, the sham too"]["re-weighting works, the criterion does not"] > 0.9
    assert of["8 x 2", "+2 points, the sham too"]["works"] < 0.05 and of["8 x 2", "-2 points"]["hurts"] > 0.9
    other = judge(SHIPPED, simulated(SHIPPED, StudyConfig("", simulate=300), 8, 2, 0.02, False))["low - off"][-1]
    assert (other == "works").mean() < 0.05, "only the first contrast has the effect"
    assert of["8 x 1", "+2 points"]["works"] > 2 * of["4 x 2", "+2 points"]["works"], "the more trunks, the better"


def test_the_level_of_a_trunk_does_not_matter():
    """It cancels inside a block: ten times the spread, and the same verdicts."""
    wide = shares(StudyConfig("", simulate=50, trunk_sd=0.3))
    assert wide == shares(StudyConfig("", simulate=50))


def test_the_registration_has_the_rates_of_the_simulation(found):
    stated = registered()
    assert stated.keys() == found.keys() and all(sum(numbers) == pytest.approx(1, abs=0.002) for numbers in stated.values())
    for key, numbers in stated.items():
        assert numbers == pytest.approx(found[key], abs=0.1), key


def levels(flags: str) -> list[str]:
    """What an arm does to perplexity and to position, as the registration says it."""
    words = flags.split()
    given = dict(zip(words[::2], words[1::2]))
    method, found = given.pop("--method"), []
    for part, usual in (("ppl", "low"), ("pos", "late")):
        if f"{part}-sham" in method.split("+"):
            found.append(f"permuted {given.pop(f'--{part}-sham-alpha')}")
        elif part in method.split("+"):
            found.append(f"{given.pop(f'--{part}-direction', usual)} {given.pop(f'--{part}-alpha')}")
        else:
            found.append("off")
    assert not given, "nothing else is said of the arm"
    return found


def test_the_registration_has_the_rates_of_other_spreads():
    text = REGISTRATION.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (0\.0\d+) \| (0\.0\d+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    assert len(rows) == 4
    for branch_sd, effect_sd, works, no_effect in (map(float, row) for row in rows):
        for effect, name, stated in ((0.02, "works", works), (0.0, "no effect worth having", no_effect)):
            c = StudyConfig("", simulate=300, branch_sd=branch_sd, effect_sd=effect_sd, seed=1)
            said = judge(SHIPPED, simulated(SHIPPED, c, 8, 2, effect, False))["late - off"][-1]
            assert (said == name).mean() == pytest.approx(stated, abs=0.1)


def test_the_registration_has_the_numbers_of_the_plan():
    text, plan = REGISTRATION.read_text(encoding="utf-8"), yaml.safe_load(PLAN.read_text(encoding="utf-8"))
    arms, trunks, seeds = len(SHIPPED.arms), len(SHIPPED.trunks), len(SHIPPED.seeds)
    assert f"{arms} arms x {trunks} trunks x {seeds} seeds = {arms * trunks * seeds} branches" in text
    assert f"for {plan['steps']} steps" in text and f"step {plan['branch_at']}" in text
    assert f"±{100 * SHIPPED.margin:g} point" in text and f"more than {100 * SHIPPED.dip:g} points below" in text
    stated = {name: levels for name, *levels in re.findall(r"^\| `([\w+-]+)` \| (.*) \| (.*) \|$", text, re.MULTILINE)}
    assert list(stated) == SHIPPED.arms
    for name, arm in plan["arms"].items():
        assert [where.split()[0] + where[-4:] if where != "off" else where for where in stated[name]] == levels(arm["flags"]), name
    for flag, number in (("--lr", "3e-4"), ("--prompts-per-step", "32"), ("--mini-batch-prompts", "16"), ("--completions-per-prompt", "8")):
        assert f"`{flag} {number}`" in text and f"{flag} {number} " in plan["train"] + " "
    c = StudyConfig("")
    assert f"sd {c.branch_sd}" in text and f"sd of {c.effect_sd}" in text


def test_contrasts_of_the_plan_are_what_they_are_called():
    """Late - off is the mean effect of the late bonus over the three levels of the other factor; each arm once on its side."""
    grid = {"off": ("grpo", "ppl", "ppl-sham"), "late": ("pos", "ppl+pos", "ppl-sham+pos"),
            "sham": ("pos-sham", "ppl+pos-sham", "ppl-sham+pos-sham")}  # fmt: skip
    low, off, sham = ((grid["late"][i], grid["off"][i], grid["sham"][i]) for i in (1, 0, 2))
    sides = {"late - off": (grid["late"], grid["off"]), "late - sham": (grid["late"], grid["sham"]), "late - early": (["pos"], ["early"])}
    sides |= {"low - off": (low, off), "low - sham": (low, sham), "low - high": (["ppl"], ["high"])}
    for name, (plus, minus) in sides.items():
        wanted = {arm: 1 / len(plus) for arm in plus} | {arm: -1 / len(minus) for arm in minus}
        assert dict(zip(SHIPPED.arms, SHIPPED.weights[name])) == pytest.approx({arm: wanted.get(arm, 0) for arm in SHIPPED.arms}), name
    assert SHIPPED.primary == {"late - off": "late - sham", "low - off": "low - sham"}


def test_the_tables_line_up(study_folder):
    study, values = read(study_folder(rows_of()))
    for block in report(study, values, markdown_table).split("\n\n"):
        assert len({line.count("|") for line in block.splitlines()}) == 1
