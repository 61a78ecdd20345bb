"""The assignments: the reference gets all points and the stubs none, every typical mistake costs exactly what it should, and nothing that a
student writes crashes the grader, changes a point or leaves its folder."""

import ast
import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
import urllib.request
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "assignments"))

from bank import A6_LOSSES, BANK, LEARNERS, LOSS, POOR, SLOW, STUDIES
from edges import EDGES
from hostile import ATTEMPT, ATTEMPTS, FLOODS, REPLY, WORKS_UNFENCED
from hostile import RIGHT as RIGHT_VALUE

from rlvr.config import SettingError
from tutorials.assignments import fences, pdf
from tutorials.assignments import grade as grader
from tutorials.assignments.a3.tests import _batches as a3_batches
from tutorials.assignments.a6 import tests as a6
from tutorials.assignments.checks import Answer, Assignment, Wrong, expect, need, passed_over, same
from tutorials.assignments.grade import ASSIGNMENTS, HERE, ROOT, GradeConfig, gradescope, main, text
from tutorials.assignments.runner import call, pack, pack_weights, unpack, unpack_weights

RIGHT = Path(__file__).parent / "assignments"  # right solutions, as a student would write them
QUICK = [name for name in ASSIGNMENTS if name != "a6"]  # A6 trains a model: it has a section of its own
HELD = fences.why_not() is None  # where bubblewrap works, these tests use it; elsewhere they do without, as --no-fences does
needs_fences = pytest.mark.skipif(not HELD, reason=f"no fences: {fences.why_not()}")


def grade(folder: Path, name: str, **settings):
    return grader.grade(folder, name, **{"fenced": HELD} | settings)


def submit(name: str, to: Path, solution: str = "", adapter: str = "") -> Path:
    """A submission of assignment `name`, with the right solution if no other is given."""
    to.mkdir(exist_ok=True)
    (to / "adapter.py").write_text(adapter or (HERE / name / "adapter.py").read_text(encoding="utf-8"), encoding="utf-8")
    (to / "solution.py").write_text(solution or (RIGHT / f"{name}.py").read_text(encoding="utf-8"), encoding="utf-8")
    if name == "a5":
        shutil.copytree(RIGHT / "study", to, dirs_exist_ok=True)
    return to


def changed(text: str, changes) -> str:
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


# ---------------------------------------------------------------------------------------------------------------------------------------
# The parts of an assignment fit together


def functions(path: Path) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", QUICK)
def test_stub_adapter_and_reference_have_the_same_functions(name):
    adapter, stub, right = functions(HERE / name / "adapter.py"), functions(HERE / name / "solution.py"), functions(RIGHT / f"{name}.py")
    assert adapter.keys() == stub.keys() <= right.keys()
    for function, node in adapter.items():
        assert ast.get_docstring(node) and ast.get_docstring(stub[function]), function
        assert ast.unparse(node.args) == ast.unparse(stub[function].args), function
    reference = (HERE / "reference" / name / "adapter.py").read_text(encoding="utf-8")
    assert all(re.search(rf"^(def )?{function}\b", reference, re.MULTILINE) for function in adapter)
    asked = set(re.findall(r"student\.(?:gradient\(\"(\w+)\"|(\w+))", (HERE / name / "tests.py").read_text(encoding="utf-8")))
    assert {a or b for a, b in asked} - {"read", "gradient", "is_reference"} == adapter.keys()


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_the_handout_names_the_points_that_the_tests_give(name):
    handout, a = (HERE / name / "handout.md").read_text(encoding="utf-8"), ASSIGNMENTS[name]
    said = {n: float(p) for n, p in re.findall(r"^(?:## |\*\*)(\d\.\d) [^\n(]*\((\d+) points", handout, re.MULTILINE)}
    assert said == {task: a.by_hand.get(task) or a.points(task) for task in a.tasks}
    assert f"**{sum(said.values()):.0f} points**" in handout
    overview = (HERE / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| \[A{name[1]}\].*\| {sum(said.values()):.0f} \|", overview, re.MULTILINE)


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_every_check_has_a_hint_and_a_name_of_its_own(name):
    checks = ASSIGNMENTS[name].checks
    assert all(c.hint and c.points > 0 for c in checks) and len({c.name for c in checks}) == len(checks)


def test_a_check_of_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="no task 9.9"):
        Assignment().check("9.9", 1)


# ---------------------------------------------------------------------------------------------------------------------------------------
# Comparing, and values on their way between the processes


@pytest.mark.parametrize(
    "got, wanted, equal",
    [
        (1.0, 1.0, True), (1, 1.0, True), (1.000001, 1.0, True), (1.001, 1.0, False), (True, 1, False), (1, True, False), (None, 0, False),
        ("1", 1, False), (float("nan"), float("nan"), False), (float("nan"), 1.0, False), (float("inf"), float("inf"), True),
        (float("-inf"), float("inf"), False), (torch.tensor(2.0), 2.0, True), ([1, 2], [1, 2], True), ([1, 2], [1, 2, 3], False),
        (torch.tensor([1.0, 2.0]), [1.0, 2.0], True), (torch.ones(2), torch.ones(2), True), (torch.ones(2), torch.ones(1, 2), False),
        ([1.0, 1.0], torch.ones(2), True), (torch.tensor([1, 0]), torch.tensor([True, False]), True),
        (torch.tensor([2, 0]), torch.tensor([True, False]), False), ("text", torch.ones(2), False), (None, None, True), ([None], [None], True),
        (torch.tensor([float("nan")]), torch.tensor([0.0]), False), ([[1], 2], torch.ones(2), False),
    ],
)  # fmt: skip
def test_same(got, wanted, equal):
    assert same(got, wanted, 1e-5) is equal


def test_expect_says_what_came_and_what_should_have_come():
    with pytest.raises(Wrong, match=r"^the sum: 3 instead of 4$"):
        expect(3, 4, "the sum")
    with pytest.raises(Wrong, match=r"shape \(2,\) instead of \(3,\)"):
        expect(torch.ones(2), torch.ones(3))
    with pytest.raises(Wrong, match=r"^x: 2 of 8 numbers differ, the first at \[1, 0\]: nan instead of 1$"):
        expect(torch.tensor([[1.0] * 4, [float("nan"), 1, 2, 1]]), torch.ones(2, 4), "x")
    with pytest.raises(Wrong, match="no"):
        need(False, "no")


@pytest.mark.parametrize(
    "value",
    [None, True, 3, -2.5, "text", [1, [2.0, None]], {"a": [1]}, torch.eye(2), torch.tensor([True]), torch.tensor(3), torch.zeros(0, 4)],
)
def test_values_survive_the_way(value):
    there = unpack(json.loads(json.dumps(pack(value))))
    if isinstance(value, torch.Tensor):
        assert there.dtype == value.dtype and torch.equal(there, value)
    else:
        assert there == value


def test_what_cannot_travel_is_refused():
    circle: list = []
    circle.append(circle)
    big = (torch.zeros(2000, 2000), torch.zeros(10**9, 0), torch.zeros(0, 3000), torch.zeros([1] * 9))
    for value in (circle, object(), lambda: 0, 10**2000, "x" * 10**6, *big, {1, 2}):
        with pytest.raises(TypeError, match="returned"):
            pack(value)
    shaped = [[2001], [2001, 0], [0, 10**12], [1] * 9, [0.0], ["1"], [True], 1, None]
    forged_shapes = [{"tensor": [], "dtype": "float32", "shape": shape} for shape in shaped]
    nested = [{"tensor": t, "dtype": "float32", "shape": [1, 4]} for t in ([[1, 2, 3, 4]], ["1"] * 4, [None] * 4, [{}] * 4, "1234")]
    for forged in ({"tensor": "x"}, {"tensor": [1], "dtype": "float32", "shape": [7]}, {"tensor": [1]}, {}, *forged_shapes, *nested):
        with pytest.raises(ValueError):
            unpack(forged)


# ---------------------------------------------------------------------------------------------------------------------------------------
# Points


def lost(report) -> set[str]:
    return set(report.lost())


def with_followers(name: str, fails) -> set[str]:
    """The checks that fail, and those on random inputs whose points go with theirs."""
    return set(fails) | {c.name for c in ASSIGNMENTS[name].checks if c.follows in fails}


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_the_reference_gets_all_points(name):
    report = grade(HERE / "reference" / name, name, trusted=[str(ROOT)])
    assert report.score == ASSIGNMENTS[name].total, text(report)


@pytest.mark.parametrize("name", ["a2", *(pytest.param(n, marks=pytest.mark.slow) for n in ("a1", "a3", "a4", "a5"))])
def test_the_stubs_get_none(name):
    report = grade(HERE / name, name)
    assert report.score == 0 and all("not written yet" in r.message or name == "a5" for r in report.results)
    assert not any(r.hint for r in report.results if "not written yet" in r.message)
    if name == "a5":  # its study is not made either
        assert {r.message[:25] for r in report.results if "not written" not in r.message} == {"there is no results.csv i"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "a5" else pytest.mark.slow) for n in QUICK])
def test_a_right_solution_without_rlvr_gets_all_points(name, tmp_path):
    report = grade(submit(name, tmp_path / "s"), name)
    assert report.score == ASSIGNMENTS[name].total, text(report)


class Here:
    """Stands in for the student's process where a mistake is harmless: the same questions and answers, without the two seconds of a start."""

    waited = 0.0

    def __init__(self, folder: Path, monkeypatch):
        for module in ("solution", "adapter"):
            made = types.ModuleType(module)
            monkeypatch.setitem(sys.modules, module, made)
            exec(compile((folder / f"{module}.py").read_text(encoding="utf-8"), f"{module}.py", "exec"), vars(made))
        self.adapter = made
        self.process = types.SimpleNamespace(poll=lambda: None)

    def ask(self, question: dict, seconds: float) -> dict:
        return json.loads(json.dumps(call(self.adapter, json.loads(json.dumps(question)), "")))

    def take_printed(self) -> bytes:
        return b""

    def kill(self) -> None:
        pass


def grade_here(folder: Path, name: str, monkeypatch):
    child = Here(folder, monkeypatch)
    monkeypatch.setattr(grader.Student, "_start", lambda student: setattr(student, "_child", child))
    return grade(folder, name, fenced=False)


def some_at_once(entries: list[tuple], name) -> list:
    """A parameter for each entry; every sixth is a quick test, the others are longer checks, as all of them take two minutes."""
    return [pytest.param(*entry, id=name(entry), marks=[pytest.mark.slow] if i % 6 else []) for i, entry in enumerate(entries)]


@pytest.mark.parametrize("name, what, changes, fails", some_at_once(BANK, lambda entry: f"{entry[0]}: {entry[1]}"))
def test_a_typical_mistake_costs_exactly_what_it_should(name, what, changes, fails, tmp_path, monkeypatch):
    wrong = changed((RIGHT / f"{name}.py").read_text(encoding="utf-8"), changes)
    report = grade_here(submit(name, tmp_path / "s", wrong), name, monkeypatch)
    fails = with_followers(name, fails)
    assert lost(report) == fails, text(report)
    assert report.score == ASSIGNMENTS[name].total - sum(c.points for c in ASSIGNMENTS[name].checks if c.name in fails)


@pytest.mark.parametrize("name, what, code, fails", some_at_once(EDGES, lambda entry: f"{entry[0]}: {entry[1]}"))
def test_a_mistake_at_the_ends_of_what_is_allowed_costs_exactly_what_it_should(name, what, code, fails, tmp_path, monkeypatch):
    solution = (RIGHT / f"{name}.py").read_text(encoding="utf-8") + "\n\n" + code
    report = grade_here(submit(name, tmp_path / "s", solution), name, monkeypatch)
    assert lost(report) == with_followers(name, fails), text(report)


PROMISES = [  # sentences of the handouts, and the checks that ask for them
    ("a1", "An answer may go over several lines", "fifty random texts"), ("a1", "They may be thousands deep", "braces inside of the box"),
    ("a1", "Only `\\boxed{` begins a box", "fifty random texts"), ("a1", "It neither hides an earlier box", "a box that never closes"),
    ("a1", "Nor is anything else that only means one", "nonsense is wrong and raises nothing"),
    ("a1", "Numbers may have hundreds of digits", "fifty random answers"), ("a1", "with a capital E too", "nonsense is wrong and raises nothing"),
    ("a1", "compared as they are", "fifty random votes"), ("a2", "every advantage is exactly 0", "a group of equal rewards gets zero"),
    ("a2", "however little it is", "a group of equal rewards gets zero"), ("a2", "Group ids are any", "fifty random groups"),
    ("a2", "The result is bool", "fifty random completions"), ("a2", "a gradient flows from the result into the logits", "fifty random logits"),
    ("a2", "here and in 2.4", "fifty random rows"), ("a2", "Stay finite for improbable tokens", "fifty random logits"),
    ("a3", "every ratio and every advantage counts as", "fifty random batches"), ("a3", "even NaN", "garbage outside the mask changes nothing"),
    ("a3", "may be NaN here too", "twenty random updates"), ("a3", "neither cut off nor scaled", "twenty random updates"),
    ("a3", "may differ by little", "twenty random updates"), ("a4", "over the whole vocabulary", "fifty random logits"),
    ("a4", "A mean over no tokens is NaN", "nothing to average is nan"), ("a4", "but no more", "fifty random distributions"),
    ("a4", "above 0 and at most 1", "fifty random distributions"), ("a4", "that of all steps", "sixty noisy curves"),
    ("a5", "Equal means equal", "fifty random groups"), ("a5", "NaN included", "garbage outside the mask changes nothing"),
    ("a5", "A row may be empty", "fifty random rows"), ("a5", "No gradient passes into old_logp", "no gradient passes through the factor"),
    ("a5", "round nothing else", "fifty random differences"), ("a5", "the cap is on", "it is at most half the advantage"),
]  # fmt: skip


@pytest.mark.parametrize("name", QUICK)
def test_what_a_handout_promises_is_asked_for_by_a_check_that_a_wrong_solution_fails(name):
    handout = " ".join((HERE / name / "handout.md").read_text(encoding="utf-8").split())
    failed = set().union(*(fails for n, *_, fails in [*BANK, *EDGES] if n == name))
    for said, check in ((said, check) for n, said, check in PROMISES if n == name):
        assert said.lower() in handout.lower() and check in failed, (said, check)


def test_no_random_ratio_is_on_a_bound_of_the_clip():
    """There the gradient depends on how the maximum is written, and all ways are right."""
    for logp, old_logp, advantages, mask, low, high, _ in a3_batches():
        ratio = (logp.double() - old_logp.double()).exp()[mask & (advantages != 0)]
        assert all(bool(((ratio - bound).abs() > 1e-6).all()) for bound in (1 - low, 1 + high))


@pytest.mark.slow
@pytest.mark.parametrize("entry", [next(e for e in BANK if e[0] == name) for name in QUICK], ids=QUICK)
def test_a_mistake_costs_the_same_in_the_students_process(entry, tmp_path):
    name, _, changes, fails = entry
    wrong = changed((RIGHT / f"{name}.py").read_text(encoding="utf-8"), changes)
    assert lost(grade(submit(name, tmp_path / "s", wrong), name)) == with_followers(name, fails)


CONSTANTS = ["None", "True", "False", "0", "1", "0.0", "0.5", "1.0", "'7'", "''", "[0, 0]", "[1.0, 1.0]", "nan", "raise ValueError", "TENSOR", "0 * TENSOR", "0 * TENSOR + 1", "ones(8, 3)", "MASK"]  # fmt: skip


@pytest.mark.parametrize("constant", CONSTANTS)
@pytest.mark.parametrize("name", QUICK)
def test_functions_that_do_not_look_at_their_arguments_earn_nothing(name, constant, tmp_path, monkeypatch):
    """TENSOR: the first tensor among the arguments, returned as it is. MASK: the first that is bool, as numbers."""
    value = constant.replace("TENSOR", "first(arguments)").replace("MASK", "1.0 * first(arguments, bool)")
    body = constant if constant.startswith("raise") else f"return {value}"
    first = (
        "import torch\nfrom math import nan\nfrom torch import ones\n"
        "def first(arguments, kind=None):\n"
        "    return next((a for a in arguments if hasattr(a, 'shape') and (kind is None or a.dtype == torch.bool)), 0)\n"
    )
    solution = first + "".join(f"def {f}(*arguments):\n    {body}\n" for f in functions(HERE / name / "adapter.py"))
    folder = submit(name, tmp_path / "s", solution)
    for file in ("results.csv", "answer.md"):
        (folder / file).unlink(missing_ok=True)
    report = grade_here(folder, name, monkeypatch)
    assert report.score == 0, text(report)


FORMS = {  # the same right answers in other forms
    "float64": "value.double() if hasattr(value, 'dtype') and value.is_floating_point() else value",
    "numpy": "__import__('numpy').asarray(value.detach()) if hasattr(value, 'detach') else value",
    "numpy numbers": "__import__('numpy').array([value])[0] if type(value) in (int, float) else value",
    "lists": "value.tolist() if hasattr(value, 'tolist') else value",
    "fractions": "Fraction(value) if type(value) is float and abs(value) < 1e9 else value",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", QUICK)
def test_right_answers_in_another_form_get_all_points(name, form, tmp_path, monkeypatch):
    """But the loss of A3 must stay a tensor, for its gradient."""
    adapter = (HERE / name / "adapter.py").read_text(encoding="utf-8") + "\nfrom fractions import Fraction\n"
    for f in functions(HERE / name / "adapter.py"):
        if form == "float64" or f not in ("clipped_loss", "shaped_advantages"):
            adapter += f"_{f} = {f}\ndef {f}(*arguments):\n    value = _{f}(*arguments)\n    return {FORMS[form]}\n"
    report = grade_here(submit(name, tmp_path / "s", adapter=adapter), name, monkeypatch)
    assert report.score == ASSIGNMENTS[name].total, text(report)


def test_a_list_of_empty_lists_stays_a_list():
    """As a tensor of no columns it could have more rows than memory has room for."""
    assert grader._as_tensor([[]] * 3).shape == (3, 0) and grader._as_tensor([[]] * 2001) == [[]] * 2001


@pytest.mark.parametrize(
    "file, content, says",
    [
        ("results.csv", "arm,seed,pass_at_1\n" + "".join(f"{i:x},1,.5\n" for i in range(3000)), "more than 500 rows"),
        ("results.csv", "arm,seed,pass_at_1\n" + "".join(f"{i:x},1,.5\n" for i in range(500)), "three different ones"),
        ("results.csv", "arm,seed,pass_at_1" + ",a" * 20_000 + "\n1,1,1" * 400, "20003 columns"),
        ("results.csv", "arm,seed,pass_at_1\n" + "x" * 10**5, "no results.csv"),
        ("results.csv", '"' + "x,\n" * 30_000, "no rows"), ("results.csv", "\n" * 90_000, "rows"), ("results.csv", "\0", "no rows"),
        ("answer.md", "arm: a" + " " * 90_000 + "b\n", "more than 200 characters"), ("answer.md", "arm:" + " " * 90_000, "no line"),
        ("answer.md", "arm:\n" * 10_000, "no line 'arm: ...'"), ("answer.md", "x" * 10**6, "no line"),
    ],
    ids=lambda x: x[:12] + "..." if len(x) > 40 else x,
)  # fmt: skip
def test_a_study_made_to_keep_the_grader_busy_costs_nothing_but_itself(file, content, says, tmp_path):
    folder = submit("a5", tmp_path / "s")
    (folder / file).write_text(content)
    started = time.process_time()
    failed = refused(folder)
    assert len(failed) == 3 and all(says in message for message in list(failed.values())[:1]), failed
    assert time.process_time() - started < 2


@pytest.mark.parametrize("file, what, old, new, fails, says", STUDIES, ids=[s[1] for s in STUDIES])
def test_a_study_that_does_not_fit_its_numbers_loses_points(file, what, old, new, fails, says, tmp_path, monkeypatch):
    folder = submit("a5", tmp_path / "s")
    (folder / file).write_text(changed((folder / file).read_text(encoding="utf-8"), [(old, new)]), encoding="utf-8")
    failed = refused(folder)
    assert failed.keys() == fails and all(says in message for message in failed.values())


def refused(folder: Path) -> dict[str, str]:
    """The checks of the study that fail, and what they say."""
    student = grader.Student(folder, [], 1.0)
    results = [grader.run_check(check, student) for check in ASSIGNMENTS["a5"].checks if check.task == "5.5"]
    return {r.check.name: r.message for r in results if not r.passed}


STUDY = (RIGHT / "study" / "results.csv").read_text().splitlines()
SHIPPED_ROWS = (ROOT / "tutorials" / "experiment" / "results.csv").read_text().splitlines()
OF_TWO_ARMS = [row for row in SHIPPED_ROWS[1:] if row.split(",")[0] in ("grpo", "pos-strong")]


def columns(rows: list[str], wanted: int) -> list[str]:
    return [",".join(row.split(",")[:wanted]) for row in rows]


@pytest.mark.parametrize(
    "rows",
    [
        SHIPPED_ROWS[1:], OF_TWO_ARMS[::-1], [*STUDY[1:], OF_TWO_ARMS[0].replace("grpo,0", "grpo,24")],
        [row.replace("grpo", "a").replace("pos-strong", "grpo").replace("a", "pos-strong", 1) for row in OF_TWO_ARMS],
        columns(OF_TWO_ARMS, 3), [row.replace(",1,", ",11,") for row in columns(OF_TWO_ARMS, 3)],
        [*columns(STUDY[1:], 3), *columns([r for r in OF_TWO_ARMS if r.split(",")[1] in "01"], 3)],
        [",".join([*r.split(",")[:2], *(f"{float(x):.4f}" for x in r.split(",")[2:])]) for r in OF_TWO_ARMS],
    ],
    ids=["all", "two arms, reordered", "one of them", "other names", "pass_at_1 alone", "other seeds", "some beside own ones", "rounded"],
)  # fmt: skip
def test_a_study_with_runs_that_are_shipped_is_refused(rows, tmp_path):
    folder = submit("a5", tmp_path / "s")
    header = ",".join(SHIPPED_ROWS[0].split(",")[: len(rows[0].split(","))])
    (folder / "results.csv").write_text("\n".join([header, *rows]) + "\n")
    failed = refused(folder)
    assert len(failed) == 3 and all("runs that come with the tutorials" in message for message in failed.values())


def test_the_bank_covers_every_check():
    assert len(BANK) > 100 and all(fails for *_, fails in BANK)
    for name in QUICK:
        a = ASSIGNMENTS[name]
        failed = set().union(*(fails for n, *_, fails in BANK if n == name), *(s[-2] for s in STUDIES if name == "a5"))
        assert failed == {c.name for c in a.checks}


# ---------------------------------------------------------------------------------------------------------------------------------------
# Random inputs


@pytest.mark.parametrize("name", QUICK)
def test_a_right_solution_in_another_style_gets_all_points(name, tmp_path, monkeypatch):
    solution = (RIGHT / "other" / f"{name}.py").read_text(encoding="utf-8")
    report = grade_here(submit(name, tmp_path / "s", solution), name, monkeypatch)
    assert report.score == ASSIGNMENTS[name].total, text(report)


def test_every_function_is_asked_on_random_inputs_once():
    for name in QUICK:
        a = ASSIGNMENTS[name]
        followed = {task: [c for c in a.checks if c.follows and task in c.tasks] for task in a.tasks if task not in ("5.5", "5.6")}
        assert all(len(checks) == 1 for checks in followed.values())
        for (check,) in followed.values():  # it comes last, and what it follows is a check of the same function
            others = [c for c in a.checks if c.task in check.tasks and c is not check]
            assert check.follows in {c.name for c in others} and a.checks.index(check) > max(map(a.checks.index, others))


def test_random_inputs_are_passed_over_where_the_mistake_is_known():
    a = Assignment({"1": "x"})
    main, other, after = (a.check("1", 1, follows=f)(lambda s: None) and a.checks[-1] for f in ("", "", "main"))
    main.function.__name__ = "main"

    def results(*passed):
        return [grader.Result(c, p) for c, p in zip((main, other), passed)]

    assert passed_over(after, results(True, True)) is None and passed_over(other, results(False, True)) is None
    assert passed_over(after, results(True, False)) is True and passed_over(after, results(False, True)) is False
    assert passed_over(after, results(False, False)) is None  # so that "not written yet" is said here too


def test_what_a_function_does_to_its_arguments_is_seen():
    def ask(body, *arguments):
        made = types.SimpleNamespace(f=body)
        question = {"function": "f", "arguments": [pack(a) for a in arguments], "named": {}, "gradient_of": None, "weights": False}
        return call(made, question, "")["changed"]

    nan = torch.tensor([float("nan"), 1.0])
    assert ask(lambda x, y: 1, nan, [1, None]) == [] and ask(lambda x, y: x.add_(1).sum(), nan, [1]) == [0]
    assert ask(lambda x, y: y.append(1), nan, [1]) == [1]


def test_nan_is_wrong_wherever_it_stands():
    class Student:
        def f(self, *arguments):
            return torch.tensor([1.0, float("nan")])

        def gradient(self, function, of, *arguments):
            return 1.0, torch.tensor([float("nan")])

    a = Assignment({"1": "x"})
    for nan in (False, True):
        a.check("1", 1, nan=nan)(lambda student: need(not bool(student.f(2)[0] == student.f(2)[1]), "no"))
    a.check("1", 1)(lambda student: student.gradient("f", 0, 3.0))
    with pytest.raises(Wrong, match=r"f\(2\): there is a NaN in the answer"):
        a.checks[0].function(Student())
    a.checks[1].function(Student())
    with pytest.raises(Wrong, match=r"f\(3.0\): there is a NaN in its gradient"):
        a.checks[2].function(Student())


# ---------------------------------------------------------------------------------------------------------------------------------------
# A6: a model is trained


def learner(to: Path) -> Path:
    """A submission of A6 with the right solution and what is given."""
    submit("a6", to)
    for file in ("given.py", "model.safetensors", "tokenizer.json", "problems.json"):
        shutil.copy(HERE / "a6" / file, to)
    return to


@pytest.fixture(scope="module")
def given():
    from tutorials.assignments.a6 import given

    return given


@pytest.fixture(scope="module")
def batch(given):
    return given.sample(given.Model(), given.problems("own")[:3], 4, 0)


def test_what_a6_gives_is_what_rlvr_has(given, batch):
    from rlvr.data import encode_prompts, load_problems
    from rlvr.policy import load_policy

    for file in ("model.safetensors", "tokenizer.json"):
        assert (HERE / "a6" / file).read_bytes() == (ROOT / "rlvr" / "tiny" / "model" / file).read_bytes(), file
    policy = load_policy("tiny")
    assert set(given.STOP_IDS) == policy.stop_ids
    problems = load_problems("tiny", "train", 356, 6)
    assert given.problems("train") + given.problems("own") == [{"question": p.problem, "answer": p.answer} for p in problems]
    _, prompts, _ = encode_prompts(policy.tokenizer, problems[256:259], "", 128)
    assert [ids[:n].tolist() for ids, n in zip(batch.ids[::4], batch.prompt_lengths[::4])] == prompts
    with torch.no_grad():
        assert torch.allclose(given.Model()(batch.ids), policy.model(batch.ids).logits, atol=1e-4)
    mask = ~batch.old_logp.isnan()
    logp, _ = policy.logp_and_entropy(policy.model, [p for p in prompts for _ in range(4)], batch.completions, mask, given.TEMPERATURE)
    assert torch.allclose(logp[mask], batch.old_logp[mask], atol=1e-4)
    lengths = mask.sum(1)
    assert bool((mask == (torch.arange(mask.shape[1]) < lengths[:, None])).all())
    ended = batch.completions.gather(1, lengths[:, None] - 1)[:, 0] == given.STOP_IDS[0]
    assert bool((ended | (lengths == given.MAX_TOKENS)).all())
    assert batch.texts[0] == policy.tokenizer.decode(batch.completions[0][mask[0]], skip_special_tokens=True)


@pytest.fixture(scope="module")
def loss(given):
    """The loss of the right solution of A6."""
    sys.modules["given"], made = given, {}
    exec((RIGHT / "a6.py").read_text(encoding="utf-8"), made)
    return made["loss"]


def test_the_reference_of_a6_and_a_students_solution_agree(given, batch, loss):
    from tutorials.assignments.reference.a6 import adapter

    rewards = torch.tensor([1.0, -1, -1, 1, -1, -1, 1, -1, -1, -1, -1, -1])
    gradients = []
    for some_loss in (adapter.loss_of, loss):
        model = given.Model()
        value = some_loss(model, batch, rewards)
        value.backward()
        gradients.append(torch.cat([x.grad.flatten() for x in model.parameters()]))
        assert abs(value.item()) < 0.5
    assert gradients[0].abs().max() > 1e-3 and torch.allclose(*gradients, atol=1e-5)


def test_weights_that_cannot_be_of_the_training_earn_nothing(given, monkeypatch):
    base = given.weights(given.Model())
    trained = base + 0.01
    nan = trained.clone()
    nan[7] = float("nan")
    shares = []
    monkeypatch.setattr(a6, "pass_at_1", lambda model: shares.append(1) or 0.4)
    monkeypatch.setattr(a6, "_measured", {})
    for weights, passes, says in (
        (base, [], "is what it was"), (base[:9], [], "but the model has 379104"), (nan, [], "NaN"), (base + 1, [], "has moved by 1"),
        (trained, ["every weight is a number and some have moved", "it is right more often than before"], "0.400, not above 0.5"),
    ):  # fmt: skip
        right = lambda function, *batch, of: Answer(None, a6._right_loss(*batch)[1])  # noqa: E731
        student = types.SimpleNamespace(weights=lambda function, seed, found=weights: found, whole=right)
        results = [grader._run_check(c, types.SimpleNamespace(_broken=None, **vars(student))) for c in a6.tests.checks if c.task == "6.3"]
        assert [r.check.name for r in results if r.passed] == passes and any(says in r.message for r in results), [
            r.message for r in results
        ]
    assert len(shares) == 1  # measured once


def test_a_student_can_watch_the_curve(given, loss, monkeypatch, capsys):
    monkeypatch.setattr(given, "STEPS", 2)
    monkeypatch.setattr(given, "PROMPTS", 2)
    monkeypatch.setattr(given, "MAX_TOKENS", 30)
    rewards = torch.tensor([1.0, -1.0] * 8)
    model = given.train(lambda texts, golds: rewards, loss, show=True)
    assert "step  2 of 2  ####################                     0.50 right" in capsys.readouterr().out
    assert 0 < (given.weights(model) - given.weights(given.Model())).abs().max() < a6.REACH


def test_a_loss_that_is_nan_is_told_at_once(given, loss, monkeypatch):
    monkeypatch.setattr(given, "PROMPTS", 2)
    monkeypatch.setattr(given, "MAX_TOKENS", 30)
    with pytest.raises(ValueError, match="the loss of step 1 is nan: what is behind a stop token"):
        given.train(lambda texts, golds: [1.0] * 16, lambda model, batch, rewards: loss(model, batch, rewards) * torch.nan)


def test_weights_travel_in_a_few_bytes_each():
    there = unpack_weights(json.loads(json.dumps(pack_weights(torch.arange(5.0)))))
    assert torch.equal(there, torch.arange(5.0))
    for forged in ("x", None, "AAAA", "A" * 10**7, {}):
        with pytest.raises(ValueError):
            unpack_weights(forged)
    for value in (torch.ones(2, 2), [1.0], torch.ones(500_001)):
        with pytest.raises(TypeError, match="no row of at most 500000 weights"):
            pack_weights(value)


@pytest.mark.parametrize("what, changes, alike", some_at_once(A6_LOSSES, lambda entry: entry[0]))
def test_a_wrong_loss_is_seen_in_small_batches(what, changes, alike, given, tmp_path, monkeypatch):
    """The weights are right ones all the same: those of a model that was trained elsewhere, or made surer of what it says."""
    monkeypatch.setitem(sys.modules, "given", given)
    monkeypatch.setattr(given, "train", lambda rewards, loss, seed: given.with_weights(given.weights(given.Model()) + 0.01))
    monkeypatch.setattr(a6, "pass_at_1", lambda model: 0.7)
    monkeypatch.setattr(a6, "_measured", {})
    wrong = changed((RIGHT / "a6.py").read_text(encoding="utf-8"), changes)
    report = grade_here(submit("a6", tmp_path / "s", wrong), "a6", monkeypatch)
    failed = {r.check.name for r in report.results if not r.passed}
    assert failed == (set() if what.startswith("right") else {LOSS} if alike else {LOSS, POOR, SLOW}), text(report)


@pytest.mark.slow  # a minute
def test_a_right_solution_of_a6_learns(tmp_path):
    report = grade(learner(tmp_path / "s"), "a6")
    assert report.score == 20, text(report)


@pytest.mark.slow
@pytest.mark.parametrize("what, changes, fails, steps, says", LEARNERS, ids=[entry[0] for entry in LEARNERS])
def test_a_mistake_of_a6_costs_what_it_should(what, changes, fails, steps, says, given, tmp_path, monkeypatch):
    """In this process. The mistake that comes nearest to the bounds is trained and measured as the grader does it.

    Those that teach the model something else are certain when it is worse than it was before: the right solution has gained by then.
    """
    monkeypatch.setitem(sys.modules, "given", given)
    if steps:
        monkeypatch.setattr(given, "STEPS", steps)
        monkeypatch.setattr(given, "PROMPTS", given.PROMPTS if steps > 1 else 2)
        monkeypatch.setattr(a6, "PROBLEMS", 100)
        monkeypatch.setattr(a6, "ALIKE", -1.1)  # what pass@1 says alone
    wrong = changed((RIGHT / "a6.py").read_text(encoding="utf-8"), changes)
    report = grade_here(submit("a6", tmp_path / "s", wrong), "a6", monkeypatch)
    messages = {r.check.name: r.message for r in report.results if not r.passed}
    assert messages.keys() == fails and any(says in message for message in messages.values()), text(report)
    if steps > 1:
        assert float(re.search(r"problems: ([\d.]+), not", messages[SLOW])[1]) < a6.BASE, text(report)


# ---------------------------------------------------------------------------------------------------------------------------------------
# What a student can write

GOOD = (RIGHT / "a1.py").read_text(encoding="utf-8")
PASS_AT_K = {"the unbiased estimate"}
SHORT = Assignment(ASSIGNMENTS["a1"].tasks)  # a check before, the one that calls the hostile code, and one after
SHORT.checks = [c for c in ASSIGNMENTS["a1"].checks if c.name in {"a box and no box", "the unbiased estimate", "no box is no vote"}]
ALL = {c.name for c in SHORT.checks}


def with_pass_at_k(body: str) -> str:
    """The right solution of A1 with another body of pass_at_k."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return f"{GOOD}\n\ndef pass_at_k(n, c, k):\n{lines}"


FORGED = """
import os
for fd in range(3, 30):
    try:
        os.write(fd, b'{"id": 1, "value": true}' + bytes([10]))
        for i in range(100):
            os.write(fd, b'{"id": %d, "value": 0.5}' % i + bytes([10]))
    except OSError:
        pass
return 0.5
"""
# name -> solution.py, the checks that it may lose (None: any), a text that the report must hold
HOSTILE = {
    "a syntax error": ("def last_boxed(text:\n", ALL, "solution.py, line 1"),
    "an error at import": ("1 / 0\n", ALL, "division by zero (solution.py, line 1)"),
    "exit at import": ("exit()\n", ALL, "SystemExit"),
    "os._exit at import": ("import os\nos._exit(0)\n", ALL, "ended its process"),
    "an endless loop at import": ("while True: pass\n", ALL, "took longer"),
    "an endless loop": (with_pass_at_k("while True: pass"), PASS_AT_K, "took longer than 1 s"),
    "sleep": (with_pass_at_k("import time\ntime.sleep(1e6)"), PASS_AT_K, "pass_at_k(8, 2, 4): took longer"),
    "exit": (with_pass_at_k("exit(0)"), PASS_AT_K, "exit()"),
    "os._exit": (with_pass_at_k("import os\nos._exit(0)"), PASS_AT_K, "ended its process"),
    "a stopped process": (with_pass_at_k("import signal\nsignal.raise_signal(signal.SIGSTOP)"), PASS_AT_K, "took longer"),
    "deep recursion": (with_pass_at_k("return pass_at_k(n, c, k)"), PASS_AT_K, "RecursionError"),
    "a crash": (with_pass_at_k("import faulthandler\nfaulthandler._sigsegv()"), PASS_AT_K, "signal 11"),
    "much memory": (with_pass_at_k("return len('x' * 10**11)"), PASS_AT_K, "MemoryError"),
    "more and more memory": (with_pass_at_k("x = []\nwhile True: x.append(bytearray(10**7))"), PASS_AT_K, ""),
    "a big tensor": (with_pass_at_k("import torch\nreturn torch.ones(10**10).sum()"), PASS_AT_K, ""),
    "megabytes of text": (
        with_pass_at_k("for _ in range(20): print('spam' * 10**6)\nreturn 1 - comb(n - c, k) / comb(n, k)"),
        None,
        "spam",
    ),
    "the solutions imported": (
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom rlvr.evaluate import pass_at_k\n",
        ALL,
        "may not import rlvr",
    ),
    "the solutions by name": ("from rlvr.reward import last_boxed\n", ALL, "may not import rlvr"),
    "comparison turned off": (
        with_pass_at_k("import builtins, torch\nbuiltins.abs = lambda x: 0\ntorch.allclose = lambda *a, **k: True\nreturn 0.1"),
        None,
        "",
    ),
    "equal to everything": (
        with_pass_at_k("class A(float):\n    __eq__ = lambda s, o: True\n    __sub__ = __rsub__ = lambda s, o: 0\nreturn A(0.1)"),
        None,
        "",
    ),
    "an object": (with_pass_at_k("return object()"), PASS_AT_K, "return numbers"),
    "a list in itself": (with_pass_at_k("x = []\nx.append(x)\nreturn x"), PASS_AT_K, "lists inside lists"),
    "a text for a number": (with_pass_at_k("return 'one half'"), PASS_AT_K, "'one half' instead of"),
    "an error without a text": (with_pass_at_k("class E(Exception):\n    def __str__(self): raise self\nraise E"), PASS_AT_K, ""),
    "an interrupt": (with_pass_at_k("raise KeyboardInterrupt"), PASS_AT_K, "KeyboardInterrupt"),
    "forged replies": (with_pass_at_k(FORGED), None, ""),
    "closed files": (
        with_pass_at_k(
            "import os, sys\nsys.stdout.close()\nsys.stderr = None\nfor fd in range(20):\n    try: os.close(fd)\n    except OSError: pass"
        ),
        PASS_AT_K,
        "",
    ),
    "its own folder deleted": (
        with_pass_at_k("import shutil\nshutil.rmtree('.', ignore_errors=True)\nreturn 1 - comb(n - c, k) / comb(n, k)"),
        None,
        "",
    ),
    "threads that stay": (
        with_pass_at_k(
            "import threading, time\nthreading.Thread(target=time.sleep, args=(1e6,)).start()\nreturn 1 - comb(n - c, k) / comb(n, k)"
        ),
        None,
        "",
    ),
    "an exit function": (
        with_pass_at_k("import atexit, time\natexit.register(time.sleep, 1e6)\nreturn 1 - comb(n - c, k) / comb(n, k)"),
        None,
        "",
    ),
    "input": (with_pass_at_k("return float(input())"), PASS_AT_K, "nobody is at the keyboard"),
    "a function that is gone": (GOOD + "\ndel pass_at_k\n", PASS_AT_K, "solution.py has no function pass_at_k (renamed?)"),
    "builtins redefined": (
        with_pass_at_k(
            "import builtins\nbuiltins.len = lambda x: 0\nbuiltins.type = lambda *a: int\nbuiltins.isinstance = lambda *a: True\nreturn 0.1"
        ),
        None,
        "",
    ),
    "replies that lie": (
        with_pass_at_k(
            "import json, sys, torch\njson.dumps = lambda reply: str(reply).replace('0.1', '0.9')\ntorch.Tensor.tolist = lambda t: [0.5]\n"
            "sys.modules['__main__'].pack = lambda *a: 0.7\nreturn 0.1"
        ),
        None,
        "",
    ),
    "every object looked at": (
        with_pass_at_k("import gc\nreturn [str(o)[:9] for o in gc.get_objects() if 'comb(8' in str(o)[:99]][:9]"),
        PASS_AT_K,
        "",
    ),
    "a tensor of its own kind": (
        with_pass_at_k(
            "import torch\nclass T(torch.Tensor):\n    __eq__ = __le__ = lambda s, o: True\n    tolist = lambda s: [0.5]\n"
            "return torch.ones(1).as_subclass(T)"
        ),
        PASS_AT_K,
        "",
    ),
    "a process that stays": (
        with_pass_at_k("import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(5)\nreturn 0.5"),
        PASS_AT_K,
        "",
    ),
}
GAINS_NOTHING = {"comparison turned off", "equal to everything", "forged replies", "builtins redefined", "replies that lie"}
QUICK_HOSTILE = {"an endless loop", "the solutions imported", "forged replies", "a process that stays"}


@pytest.mark.skipif(sys.platform == "win32", reason="limits and signals of POSIX systems")
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK_HOSTILE else pytest.mark.slow) for n in HOSTILE])
def test_nothing_that_a_student_writes_harms_the_grader(name, tmp_path, monkeypatch):
    if name == "the solutions imported" and not HELD:
        pytest.skip("no fences here")
    monkeypatch.setitem(ASSIGNMENTS, "a1", SHORT)
    solution, may_lose, says = HOSTILE[name]
    started = time.monotonic()
    report = grade(submit("a1", tmp_path / "s", solution), "a1", seconds=1.0)
    assert len(report.results) == 3 and time.monotonic() - started < 30
    assert (tmp_path / "s" / "solution.py").is_file()
    if may_lose is not None:
        assert lost(report) == may_lose, text(report)
    elif name in GAINS_NOTHING:
        assert lost(report) == PASS_AT_K, text(report)
    else:  # what is right stays right
        assert "the unbiased estimate" not in lost(report), text(report)
    assert says in text(report), text(report)
    json.dumps(gradescope(report), allow_nan=False)


@pytest.fixture
def outside(monkeypatch):
    """What hostile code would like: a folder where everybody may write, with a file, and three sockets. -> names for ATTEMPT, sockets."""
    monkeypatch.setitem(ASSIGNMENTS, "a1", SHORT)
    monkeypatch.setenv("SECRET", "x")
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as named,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        names = {"MARK": f"{folder}/mark", "PORT": server.getsockname()[1], "SOCKET": f"{folder}/socket", "PLANTED": f"{folder}/planted"}
        names |= {"ABSTRACT": f"\0grader-{os.getpid()}", "HERE": str(HERE), "ROOT": str(ROOT), "GRADER": os.getpid()}
        Path(names["PLANTED"]).write_text("x")
        named.bind(names["SOCKET"])
        abstract.bind(names["ABSTRACT"])
        for listener in (server, named, abstract):
            listener.listen()
            listener.settimeout(0.0)
        for path in (folder, names["SOCKET"]):
            os.chmod(path, 0o777)
        yield names, (server, named, abstract)


def what_worked(names: dict, attempts: dict, to: Path, fenced: bool) -> set[str]:
    """One process tries all of it in turn; those attempts that did not fail."""
    constants = "".join(f"{name} = {value!r}\n" for name, value in {**names, "ATTEMPTS": attempts}.items())
    attempt = ATTEMPT.replace("RIGHT_VALUE", RIGHT_VALUE)
    report = grade(submit("a1", to, GOOD + constants + attempt), "a1", seconds=20.0, fenced=fenced)
    if report.score == sum(c.points for c in SHORT.checks):
        return set()
    (said,) = (r.message for r in report.results if not r.passed)
    return set(re.search(r"raised AssertionError: (.*) \(solution\.py", said)[1].split(", "))


@needs_fences
def test_nothing_that_a_student_tries_works_inside_of_the_fences(outside, tmp_path):
    (names, listeners), before = outside, (HERE / "a1" / "tests.py").read_bytes()
    assert what_worked(names, ATTEMPTS, tmp_path / "s", fenced=True) == set()
    for listener in listeners:
        with pytest.raises(BlockingIOError):
            listener.accept()  # nobody has called
    assert sorted(os.listdir(Path(names["MARK"]).parent)) == ["planted", "socket"] and (HERE / "a1" / "tests.py").read_bytes() == before


@pytest.mark.skipif(sys.platform != "linux", reason="the attempts are Linux's")
def test_what_a_student_tries_works_without_the_fences(outside, tmp_path):
    """So that the test above can fail: what it asks for is there, and the attempts are no slips of the pen. Those that harm nothing."""
    names, listeners = outside
    attempts = {name: ATTEMPTS[name] for name in WORKS_UNFENCED}
    assert what_worked(names, attempts, tmp_path / "s", fenced=False) == WORKS_UNFENCED
    for listener in listeners:
        listener.accept()[0].close()
    assert sum(path.name.startswith("mark") for path in Path(names["MARK"]).parent.iterdir()) == sum("MARK" in a for a in attempts.values())


GRADE_FLOODS = """
import sys
from pathlib import Path
from tutorials.assignments import grade as g
c = g.ASSIGNMENTS["a1"].checks
c[:] = [check for check in c if check.name in ("a box and no box", "the unbiased estimate", "no box is no vote")]
g.main(g.GradeConfig(submissions=sys.argv[2:], out=sys.argv[1], seconds=1.0, no_fences=True))
print("peak", [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory from /proc")
def test_whatever_a_process_writes_the_grader_stays_small_and_quick(tmp_path):
    """In one grader, one submission after the other; it prints its own peak of memory. Without fences, which must not matter here."""
    folders = []
    for name, body in FLOODS.items():
        function = f"\n\ndef pass_at_k(n, c, k):\n    {body}\n    return 0.5\n"
        folders.append(str(submit("a1", tmp_path / name.replace(" ", "_"), GOOD + REPLY + function)))
    command = [sys.executable, "-c", GRADE_FLOODS, str(tmp_path / "out"), *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20 * len(FLOODS))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": 1.5 of 2.5\n") == len(FLOODS), done.stdout
    assert chr(27) not in done.stdout and int(done.stdout.split()[-1]) < 500_000


def test_a_process_that_holds_the_pipes_open_after_the_end_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setitem(ASSIGNMENTS, "a1", SHORT)
    body = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(8)\n    os._exit(0)\nreturn 1 - comb(n - c, k) / comb(n, k)"
    )
    started = time.monotonic()
    grade(submit("a1", tmp_path / "s", with_pass_at_k(body)), "a1", fenced=False)
    assert time.monotonic() - started < 7


@pytest.mark.slow
@pytest.mark.parametrize(
    "adapter, says",
    [
        (b"\x00\xff garbage \x00", "at its import"),
        (b'ASSIGNMENT = "a1"\n', "the adapter has no function last_boxed"),
        (b"", "the adapter has no function last_boxed"),
        (b'ASSIGNMENT = "a1"\nraise SystemExit\n', "at its import"),
        (b"import solution.deeper\n", "at its import"),
    ],
)
def test_an_adapter_that_is_none(adapter, says, tmp_path):
    folder = submit("a1", tmp_path / "s")
    (folder / "adapter.py").write_bytes(adapter)
    report = grade(folder, "a1")
    assert report.score == 0 and says in report.broken + report.results[0].message and says in text(report)
    assert not report.broken or (text(report).count(says) == 1 and "hint" not in text(report) and says in gradescope(report)["output"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes of POSIX systems")
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path, monkeypatch):
    folder = submit("a5", tmp_path / "s")
    (folder / "results.csv").unlink()
    os.mkfifo(folder / "results.csv")
    assert "there is no results.csv" in text(grade_here(folder, "a5", monkeypatch))


@pytest.mark.skipif(os.name != "posix", reason="needs rm")
def test_a_thousand_folders_inside_of_each_other_are_removed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(1500):
        os.mkdir("d")
        os.chdir("d")
    os.chdir(tmp_path)
    grader.remove(tmp_path / "d")
    assert os.listdir(tmp_path) == []


def test_what_is_printed_is_cut_and_says_so():
    assert grader.beginning(b"x" * 2000) == "x" * 500 + "\n... (the rest is not shown)"
    assert grader.beginning(b"x\n" * 50) == "x\n" * 8 + "... (the rest is not shown)"
    assert grader.beginning(b"\x1b[2J\xff") == "\\x1b[2J\N{REPLACEMENT CHARACTER}" and grader.beginning(b"") == ""


def test_what_the_code_prints_stands_beside_the_check_that_printed_it(tmp_path, monkeypatch):
    monkeypatch.setitem(ASSIGNMENTS, "a1", SHORT)
    says = "print('at', n, c, k)\nimport os\nos.write(2, b'and ' + str(k).encode())\nreturn 0.5"
    report = grade(submit("a1", tmp_path / "s", with_pass_at_k(says) + "\nprint('hello')\n"), "a1")
    assert {r.check.name: r.printed for r in report.results if r.printed} == {"the unbiased estimate": "at 8 2 4\nand 4"}
    assert report.printed == "hello" and "imported, your code printed:\n  hello" in text(report)
    assert "your code printed:\n         at 8 2 4\n" in text(report)
    outputs = [test["output"] for test in gradescope(report)["tests"]]
    assert outputs[0] == outputs[2] == "" and outputs[1].endswith("your code printed:\n  at 8 2 4\n  and 4")


@pytest.mark.slow
def test_code_in_several_files_and_packages_is_fine(tmp_path):
    folder = submit("a1", tmp_path / "s", "from parts.one import *\n")
    (folder / "parts").mkdir()
    (folder / "parts" / "__init__.py").write_text("")
    (folder / "parts" / "one.py").write_text("from .two import *\n")
    (folder / "parts" / "two.py").write_text(GOOD)
    assert grade(folder, "a1").score == 20


def test_links_caches_and_what_is_too_big_are_not_copied(tmp_path, monkeypatch):
    folder, to = submit("a1", tmp_path / "s"), tmp_path / "copy"
    (folder / "link.py").symlink_to(ROOT / "rlvr" / "reward.py")
    (folder / "linked").symlink_to(ROOT / "rlvr")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x.pyc").write_bytes(b"x")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("x")
    grader.copy_submission(folder, to)
    assert sorted(p.name for p in to.rglob("*")) == ["adapter.py", "solution.py"]
    grown = submit("a1", tmp_path / "grown")
    os.truncate(grown / "adapter.py", 2 * 10**9)
    assert grader.assignment_of(grown) == "a1"  # its beginning says so
    with pytest.raises(SettingError, match="more than 500 files or 32 MiB"):
        grader.copy_submission(grown, tmp_path / "copy4")
    many = submit("a1", tmp_path / "many")
    for i in range(501):
        (many / f"empty{i}").mkdir()
    with pytest.raises(SettingError, match="more than 500 files or 32 MiB"):
        grader.copy_submission(many, tmp_path / "copy5")
    deep = tmp_path / "deep"
    for _ in range(30):
        deep = deep / "d"
    deep.mkdir(parents=True)
    with pytest.raises(SettingError, match="more than 20 deep"):
        grader.copy_submission(tmp_path / "deep", tmp_path / "copy3")
    monkeypatch.setattr(grader, "MAX_BYTES", 100)
    with pytest.raises(SettingError, match="no models or runs"):
        grader.copy_submission(folder, tmp_path / "copy2")


# ---------------------------------------------------------------------------------------------------------------------------------------
# The command


def test_the_command_prints_points_and_hints_and_writes_gradescopes_file(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    submit("a1", tmp_path / "s", changed(GOOD, BANK[0][2]))
    main(GradeConfig(submissions=["s"], no_fences=not HELD))
    out = capsys.readouterr().out
    assert "a1: 19 of 20 points" in out and "hint: A model that corrects itself" in out and "written to results.json" in out
    result = json.loads(Path("results.json").read_text())
    assert result["score"] == 19 and sum(t["score"] for t in result["tests"]) == 19 and sum(t["max_score"] for t in result["tests"]) == 20
    failed = [t for t in result["tests"] if t["status"] == "failed"]
    assert (
        len(failed) == 1 and "'1' instead of '30'" in failed[0]["output"] and "hint" in failed[0]["output"] and failed[0]["number"] == "1.1"
    )


@pytest.mark.slow
def test_a_class_of_submissions(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for student in ("x", "y"):
        Path(student).mkdir()
        submit("a1", Path(student, "a1"))
    Path("nothing").mkdir()
    main(GradeConfig(submissions=["x/a1", "nothing", "y/a1", "missing"], no_fences=not HELD))
    out = capsys.readouterr().out
    assert "failed most often:\n  nothing\n" in out
    assert "x/a1: 20 of 20" in out and "no adapter.py in nothing" in out and "no folder missing" in out
    assert sorted(os.listdir("grades")) == ["grades.csv", "x-a1.json", "y-a1.json"]
    lines = Path("grades/grades.csv").read_text().splitlines()
    assert lines[0] == "submission,assignment,points,1.1,1.2,1.3,1.4,1.5,error" and lines[1].endswith(",4,5,3,4,4,")


def test_one_folder_too_deep_is_found(tmp_path):
    outer = tmp_path / "x" / "y"
    outer.mkdir(parents=True)
    submit("a1", outer / "my_a1")
    (outer / "__MACOSX").mkdir()
    (outer / "__MACOSX" / "adapter.py").write_text("")
    assert grader.find_adapter(outer) == grader.find_adapter(outer / "my_a1") == grader.find_adapter(tmp_path) == outer / "my_a1"
    submit("a1", outer / "other")
    with pytest.raises(SettingError, match="There are 2 folders with an adapter.py"):
        grader.find_adapter(outer)


@pytest.mark.parametrize("place", ["", "work", "a/b", "work/adapter.py", "adapter.py"])
def test_a_neighbours_work_is_not_graded_through_a_link(place, tmp_path):
    neighbour, mine = submit("a1", tmp_path / "alice"), tmp_path / "bob"
    (mine / place).parent.mkdir(parents=True, exist_ok=True)
    (mine / place).symlink_to(neighbour / "adapter.py" if place.endswith(".py") else neighbour)
    with pytest.raises(SettingError, match="links? (is|are)? ?not followed|is a link|There is no adapter.py"):
        grader.find_adapter(mine)


@pytest.mark.parametrize(
    "name, says", [("x.zip", "unzip it first"), ("s/solution.py", "name its folder, "), ("s", "There are solution.py: rename one?")]
)
def test_what_is_no_submission_is_told_apart(name, says, tmp_path):
    submit("a1", tmp_path / "s")
    (tmp_path / "s" / "adapter.py").unlink()
    (tmp_path / "x.zip").write_bytes(b"PK")
    with pytest.raises(SettingError, match=re.escape(says)):
        grader.find_adapter(tmp_path / name)


def test_a_function_that_hangs_twice_is_not_asked_again(tmp_path, monkeypatch):
    student = grader.Student(tmp_path, [], 1.0)
    student._child, asked = Here.__new__(Here), []
    student._child.process = types.SimpleNamespace(poll=lambda: None)

    def ask(question, seconds):
        asked.append(question["function"])
        raise grader.StudentError("Timeout", "took longer than 1 s")

    student._child.ask = ask
    for says in ("f(1): took", "f(1): took", "not run: f took longer than 1 s 2 times"):
        with pytest.raises(grader.StudentError, match="took longer") as raised:
            student.f(1)
        assert says in (f"{raised.value.asked}: {raised.value}" if raised.value.asked else str(raised.value))
    assert asked == ["f", "f"]


@needs_fences
@pytest.mark.skipif(not Path("/proc/self/schedstat").is_file(), reason="the kernel does not count")
def test_waiting_for_a_processor_is_no_time_of_the_students(tmp_path, monkeypatch):
    """A kernel that says so is believed for a while: here each look finds that all of the time was waiting."""
    child = grader.Child(submit("a1", tmp_path / "s"), [], True)
    try:
        for _ in range(2):
            child.reply(60.0)
        assert Path(f"/proc/{child.pid}/comm").read_text().startswith("python") and child._count() > 0
        began = time.monotonic()
        monkeypatch.setattr(child, "_count", time.monotonic)
        with pytest.raises(grader.StudentError, match="took longer than 0 s"):
            child.reply(0.2)
        assert 0.9 < time.monotonic() - began < 5 and child.waited > 0.9
    finally:
        child.kill()


def test_limits_grow_with_seconds(tmp_path):
    assert [grader.Student(tmp_path, [], seconds)._scale for seconds in (1.0, 10.0, 30.0)] == [1, 1, 3]
    student = grader.Student(tmp_path, [], 30.0)
    student._child, asked = Here.__new__(Here), []
    student._child.process = types.SimpleNamespace(poll=lambda: None)
    student._child.ask = lambda question, seconds: asked.append(seconds) or {}
    with pytest.raises(ValueError, match="not a value"):  # none came
        student.weights("train", 6)
    assert asked == [3 * grader.TRAINING_SECONDS]


def test_what_does_not_answer_gets_no_hint(monkeypatch):
    def ask(kind):
        raise grader.StudentError(kind, "it says")

    check = ASSIGNMENTS["a1"].checks[0]
    for kind, hint in (("Timeout", ""), ("Died", ""), ("ZeroDivisionError at its import", ""), ("ZeroDivisionError", check.hint)):
        student = types.SimpleNamespace(_broken=None, last_boxed=lambda *_, kind=kind: ask(kind))
        assert grader._run_check(check, student).hint == hint


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX systems")
@pytest.mark.parametrize("harm", ["while True: pass", "x = [0] * 10**9", "os.kill(os.getpid(), 9)", "1 / 0"])
def test_what_harms_the_grader_costs_one_submission(harm, tmp_path, monkeypatch, capsys):
    """A hole of a kind that nobody knows yet, in grading, is a row with a reason; the others are graded, and nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(grader, "GRADING_SECONDS", 0.5)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "left"))
    Path("left").mkdir()
    right = grader.Report("a1", [grader.Result(check, i > 0, "no", "hint", "said") for i, check in enumerate(ASSIGNMENTS["a1"].checks)], seconds=2.5)

    def grade(folder, *_, **__):
        tempfile.mkdtemp()
        exec(harm if folder.name == "bad" else "")
        return right

    monkeypatch.setattr(grader, "grade", grade)
    folders = [str(submit("a1", Path(name))) for name in ("a", "bad", "c")]
    main(GradeConfig(submissions=folders, assignment="a1", no_fences=True))
    rows, out = table_of("grades"), capsys.readouterr().out
    assert [row["points"] for row in rows] == [str(right.score), "0", str(right.score)] and rows[1]["assignment"] == "a1"
    assert "The grading of bad was cut off: " in rows[1]["error"] and "1 of 3 could not be graded" in out and "c: 19" in out
    assert os.listdir("left") == [] and grader._grade_one(Path("a"), GradeConfig(no_fences=True)) == right


def test_types_that_differ_are_named():
    with pytest.raises(Wrong, match=r"1 \(int\) instead of True \(bool\)"):
        expect(1, True)
    with pytest.raises(Wrong, match=r"'0' \(str\) instead of 0.0|'0' instead of 0.0"):
        expect("0", 0.0)
    with pytest.raises(Wrong, match=r"None \(is a return missing\?\) instead of 3"):
        expect(None, 3)


def test_a_submission_that_cannot_be_read_does_not_end_a_class(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    calls = []

    def grade_one(folder, c):
        calls.append(folder)
        assert len(calls) == 1 or Path("grades/grades.csv").is_file()  # the rows so far are safe
        raise OSError(5, "Input/output error", str(folder)) if len(calls) == 1 else RecursionError("too deep")

    monkeypatch.setattr(grader, "_grade_one", grade_one)
    main(GradeConfig(submissions=["x", "M\udcfcller"]))  # a name as an old Windows writes it into a zip
    out, table = capsys.readouterr().out, Path("grades/grades.csv").read_text(encoding="utf-8")
    for text in (out, table):
        assert "Input/output error" in text and "RecursionError: too deep" in text and r"M\udcfcller" in text


# ---------------------------------------------------------------------------------------------------------------------------------------
# The handouts, printed


@pytest.fixture
def printer(tmp_path, monkeypatch) -> list[tuple[str, ...]]:
    """Stand-ins for pandoc and Google Chrome, which write down what they are asked, and write what they should."""
    monkeypatch.chdir(tmp_path)
    asked = []

    def run(command: list[str], **_):
        if command[0] == "/bin/pandoc":
            asked.append((Path(command[1]).read_text(encoding="utf-8"), Path(command[command.index("-H") + 1]).read_text(), *command))
            Path(command[-1]).write_text("<html>")
        else:
            page = Path(urllib.request.url2pathname(command[-1].removeprefix("file://")))
            (out,) = (word.removeprefix("--print-to-pdf=") for word in command if word.startswith("--print-to-pdf="))
            Path(out).write_bytes(b"%PDF of " + page.read_bytes())
        return types.SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(pdf.shutil, "which", lambda name: {"pandoc": "/bin/pandoc", "google-chrome": "/bin/google-chrome"}.get(name))
    monkeypatch.setattr(pdf.subprocess, "run", run)
    return asked


def test_handouts_are_printed_into_the_folder_that_one_is_in(printer, capsys):
    pdf.main(["a1", "a6"])
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == {f"{a}-handout.pdf": b"%PDF of <html>" for a in ("a1", "a6")}
    assert capsys.readouterr().out == "written to a1-handout.pdf\nwritten to a6-handout.pdf\n"
    for name, (handout, style, *command) in zip(("a1", "a6"), printer):
        assert handout == (HERE / name / "handout.md").read_text(encoding="utf-8") and "@page" in style and "--mathml" in command
        assert f"pagetitle={handout.splitlines()[0].removeprefix('# ')}" in command


@pytest.mark.parametrize(
    "names, programs, says",
    [
        ([], "pandoc chromium", "Name one or more of a1, a2, a3, a4, a5, a6, as in: "), (["a1", "a7"], "pandoc chromium", "Name one or more of a1,"),
        (["a1"], "chromium", "There is no pandoc, which makes HTML out of a handout. On Debian: apt-get install pandoc chromium"),
        (["a1"], "pandoc", "There is no chromium or google-chrome or chromium-browser or chrome, which prints the HTML. On Debian: "),
        (["a1"], "pandoc chromium", "pandoc could not make a1-handout.pdf (no such reader). Look at "),
    ],
)  # fmt: skip
def test_why_a_handout_is_not_printed_is_one_sentence(names, programs, says, printer, monkeypatch):
    monkeypatch.setattr(pdf.shutil, "which", lambda name: f"/bin/{name}" if name in programs.split() else None)
    monkeypatch.setattr(pdf.subprocess, "run", lambda *_, **__: types.SimpleNamespace(returncode=1, stderr="no such reader\n"))
    with pytest.raises(SettingError, match=re.escape(says)):
        pdf.main(names)
    assert not list(Path().iterdir())


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("pandoc") and shutil.which("chromium")), reason="needs pandoc and chromium")
def test_a_handout_becomes_a_pdf_with_its_formulas(tmp_path):
    done = subprocess.run([sys.executable, HERE / "pdf.py", "a3"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    content = (tmp_path / "a3-handout.pdf").read_bytes()
    assert content.startswith(b"%PDF-") and len(re.findall(rb"/Type */Page\b", content)) >= 2
    assert re.search(rb"Math", content), "no font for formulas: MathML is not drawn as such"


GUIDE = re.search(r"```python\n(.*?)```", (HERE / "instructor.md").read_text(encoding="utf-8"), re.DOTALL)[1]


@pytest.fixture
def hidden(tmp_path, monkeypatch) -> Assignment:
    """Assignment 1 with the hidden checks of the guide, and one check that students see."""
    a = Assignment(dict(ASSIGNMENTS["a1"].tasks), [c for c in ASSIGNMENTS["a1"].checks if c.name == "a box and no box"])
    monkeypatch.setitem(ASSIGNMENTS, "a1", a)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "hidden_checks", raising=False)
    Path("hidden_checks.py").write_text(GUIDE, encoding="utf-8")
    return a


def test_hidden_checks_are_added_and_not_explained(hidden, capsys):
    wrong = "\n\ndef overlong_penalty(*arguments):\n    print('secret', arguments)\n    return -0.5\n"
    submit("a1", Path("s"), with_pass_at_k("return 0.25") + wrong)
    main(GradeConfig(submissions=["s"], hidden=".", no_fences=not HELD))
    out, result = capsys.readouterr().out, json.loads(Path("results.json").read_text())
    assert "a1: 0.5 of 0.5" in out and "0 of 4 points in the hidden checks" in out and "a hidden check" in out
    assert "0.25" not in out and "secret" not in out and "pass at 64" in out
    test = result["tests"][-1]
    assert test["visibility"] == "after_published" and "instead of" in test["output"]
    report = grade(submit("a1", Path("s")), "a1")
    assert report.score == 4.5 and "pass at 64" not in text(report)


@pytest.mark.parametrize(
    "old, new",
    [
        ("-factor * over / buffer", "-factor * over / max_tokens"), ("-factor * over / buffer", "-over / buffer"),
        ("max_tokens - buffer)", "max_tokens)"), ("min(0.0, -factor", "(-factor"),
        ("1 - comb(n - c, k) / comb(n, k)", "1 - (1 - c / n) ** k"),
    ],
)  # fmt: skip
def test_the_hidden_checks_of_the_guide_fail_a_wrong_solution(old, new, hidden, monkeypatch):
    exec(GUIDE, made := {})
    made["add"](ASSIGNMENTS)
    report = grade_here(submit("a1", Path("s"), changed(GOOD, [(old, new)])), "a1", monkeypatch)
    assert report.part(hidden=True) == "2 of 4"


def test_before_publication_nothing_tells_the_hidden_points(hidden, monkeypatch):
    """What Gradescope may show of a submission that passes the hidden checks and of one that fails them is the same."""
    exec(GUIDE, made := {})
    made["add"](ASSIGNMENTS)
    seen = []
    for solution in (GOOD, with_pass_at_k("return 0.25")):
        report = grade_here(submit("a1", Path("s"), solution), "a1", monkeypatch)
        report.seconds = 1.0
        result = gradescope(report)
        result["tests"] = [test for test in result["tests"] if test["visibility"] == "visible"]
        seen.append(result)
    assert seen[0] == seen[1] and "score" not in seen[0] and seen[0]["stdout_visibility"] == "hidden"
    assert seen[0]["output"] == "0.5 of 0.5 points in the tests that you can see"


def test_what_was_printed_during_hidden_checks_is_shown_nowhere(hidden, monkeypatch):
    """Code that ends in a hidden check is imported again for the next one, and could print then what it was asked."""
    exec(GUIDE, made := {})
    made["add"](ASSIGNMENTS)
    leak = GOOD + "\n\ndef pass_at_k(*asked):\n    open('seen', 'w').write(str(asked))\n    import os\n    os._exit(3)\n"
    leak += "import os\nif os.path.exists('seen'):\n    print(open('seen').read())\n"
    report = grade(submit("a1", Path("s"), leak), "a1", fenced=False)
    result = gradescope(report)
    shown = [result["output"], *(test for test in result["tests"] if test["visibility"] == "visible")]
    assert report.printed == "" and report.part(hidden=True) == "2 of 4" and "200, 3" not in json.dumps(shown)


def test_names_that_a_spreadsheet_would_run_are_texts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "\uff1d1", "plain"]
    monkeypatch.setattr(grader, "_grade_one", lambda folder, c: (_ for _ in ()).throw(SettingError(f"{folder.name} is none")))
    main(GradeConfig(submissions=names, no_fences=True))
    with open("grades/grades.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["submission"] for row in rows] == ["'" + name if name != "plain" else name for name in names]
    assert [row["error"][0] for row in rows] == ["'"] * 6 + ["p"]
    assert grader.cell("a;=1; @x;b") == "a;'=1;' @x;b" and grader.cell("a=1") == "a=1"
    assert grader.cell("\t=1") == "'\t=1" and grader.cell("\r1") == "'\r1" and grader.cell("") == ""
    assert grader.cell("\N{NO-BREAK SPACE}=1") == "'\N{NO-BREAK SPACE}=1" and grader.cell("a; \t@x") == "a;' \t@x"


@pytest.mark.parametrize(
    "submissions, out, says",
    [
        (["s"], ".", "--out . is a folder, but one submission needs a file"),
        (["s"], "pipe", "--out pipe is a device, a pipe or a link"), (["s", "t"], "pipe", "--out pipe is a device, a pipe or a link"),
        (["s"], "/dev/null", "--out /dev/null is a device, a pipe or a link"), (["s"], "link", "--out link is a device, a pipe or a link"),
        (["s", "t"], "done", "--out done has a grades.csv, which would be lost"),
        (["s", "t"], "file", "--out file is a file, but several submissions need a folder"),
        (["s"], "file/x.json", "Nothing can be written to file"), (["s", "t"], "file/x", "Nothing can be written to file/x"),
        (["s"], "/proc/x.json", "Nothing can be written to /proc"), (["s", "t"], "/proc/x", "Nothing can be written to /proc/x"),
    ],
)  # fmt: skip
def test_where_the_result_goes_is_tried_before_anything_runs(submissions, out, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("kept")
    os.mkfifo("pipe")
    os.symlink("file", "link")
    Path("done").mkdir()
    Path("done/grades.csv").write_text("kept")
    monkeypatch.setattr(grader, "_grade_one", lambda *_: pytest.fail("it ran"))
    with pytest.raises(SettingError, match=re.escape(says)):
        main(GradeConfig(submissions=submissions, out=out, no_fences=True))
    assert sorted(os.listdir()) == ["done", "file", "link", "pipe"] and Path("file").read_text() == "kept"
    assert os.listdir("done") == ["grades.csv"] and Path("done/grades.csv").read_text() == "kept"


def stands_in(monkeypatch, report=None) -> None:
    """Every submission gets this report, without being looked at."""
    report = report or grader.Report("a1", [grader.Result(check, True) for check in ASSIGNMENTS["a1"].checks])
    monkeypatch.setattr(grader, "_grade_one", lambda folder, c: report)


def table_of(folder: str) -> list[dict]:
    with open(Path(folder, "grades.csv"), encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "folders",
    [
        ["x/a1", "y/a1", "x-a1", "c1/ann/a1", "c2/ann/a1"], ["x", "x"], ["Ann", "ann"], ["a\nb", "a\\nb", "a/b", "a-b", "a-b-2"],
        ["L" * 252, "l" * 252, "L" * 251 + "\N{LATIN SMALL LETTER E WITH ACUTE}"], ["\N{GRINNING FACE}" * 60, "\N{GRINNING FACE}" * 61],
        ["\N{LATIN SMALL LETTER E WITH ACUTE}", "e\N{COMBINING ACUTE ACCENT}"], ["/", ".", ".."],
    ],
    ids=range(8),
)  # fmt: skip
def test_every_submission_has_a_row_and_a_file_of_its_own(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    stands_in(monkeypatch)
    main(GradeConfig(submissions=folders, no_fences=True))
    names = [row["submission"] for row in table_of("grades")]
    assert len(set(names)) == len(folders) == len(os.listdir("grades")) - 1, (names, os.listdir("grades"))
    assert len({name.casefold() for name in os.listdir("grades")}) == len(folders) + 1
    assert not any("\n" in name or "\t" in name for name in names)
    assert len([line for line in capsys.readouterr().out.splitlines() if ": 20 of 20" in line]) == len(folders)


def test_nothing_in_a_name_or_an_error_makes_a_line_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trap = "x\nbob: 20 of 20"
    main(GradeConfig(submissions=[trap, "a\t=1"], no_fences=True))  # neither is there, and the reason says the name again
    stands_in(monkeypatch, grader.Report("a1", [], broken="no\nbob: 20 of 20"))
    main(GradeConfig(submissions=[trap, "a\t=1"], no_fences=True))
    assert not [line for line in capsys.readouterr().out.splitlines() if line.startswith("bob")]
    for row in (*table_of("grades"), *table_of("grades-2")):
        assert not re.search(r"[\n\t]", row["submission"] + row["error"])


def test_a_class_that_was_graded_before_stays(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    stands_in(monkeypatch)
    main(GradeConfig(submissions=["x", "y"], no_fences=True))
    first = Path("grades/grades.csv").read_text()
    main(GradeConfig(submissions=["z", "y"], no_fences=True))
    assert "written to grades-2/grades.csv" in capsys.readouterr().out and Path("grades/grades.csv").read_text() == first
    with pytest.raises(SettingError, match="--out grades has a grades.csv"):
        main(GradeConfig(submissions=["z", "y"], out="grades", no_fences=True))


def test_two_graders_do_not_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stands_in(monkeypatch)
    Path("grades").mkdir()
    with grader.alone_in(Path("grades")):
        with pytest.raises(SettingError, match="Another grader writes to grades"):
            main(GradeConfig(submissions=["x", "y"], no_fences=True))
    main(GradeConfig(submissions=["x", "y"], no_fences=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX systems")
def test_two_processes_may_write_one_file(tmp_path):
    """Neither fails, and what stays is whole."""
    other = os.fork()
    failed = 1
    try:
        for _ in range(200):
            grader.write(tmp_path / "x.json", f"{'x' * 3000}")
        failed = 0
    finally:
        if other == 0:
            os._exit(failed)
    assert os.waitpid(other, 0)[1] == 0 and os.listdir(tmp_path) == ["x.json"] and (tmp_path / "x.json").read_text() == "x" * 3000 + "\n"


def test_points_are_in_the_table_though_their_file_cannot_be_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    stands_in(monkeypatch)
    Path("grades/x.json").mkdir(parents=True)
    main(GradeConfig(submissions=["x", "y"], no_fences=True))
    assert [row["points"] for row in table_of("grades")] == ["20", "20"] and len(os.listdir("grades")) == 3
    assert "grades/x.json cannot be written (" in (out := capsys.readouterr().out) and "y: 20 of 20" in out

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(grader, "write_atomically", full)
    with pytest.raises(SettingError, match=r"new/grades.csv, is not complete \(.*No space left"):
        main(GradeConfig(submissions=["x", "y"], out="new", no_fences=True))
    assert "y: 20 of 20" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX systems")
def test_an_interrupt_while_it_imports_is_no_traceback():
    """It says when it has come to torch, by an import that is watched, and waits there."""
    watch = "import sys, time\nclass F:\n    def find_spec(s, name, *_):\n"
    watch += "        if name == 'torch':\n            print('now', flush=True)\n            time.sleep(60)\n"
    start = f"{watch}sys.meta_path.insert(0, F())\nimport runpy; runpy.run_module('tutorials.assignments.grade', run_name='__main__')"
    process = subprocess.Popen([sys.executable, "-c", start], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"now\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == (b"", b"") and process.returncode == 130


def test_without_fences_the_grader_refuses_and_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    submit("a1", Path("s"))
    monkeypatch.setitem(ASSIGNMENTS, "a1", SHORT)
    monkeypatch.setattr(fences.shutil, "which", lambda name: None)
    fences.why_not.cache_clear()
    try:
        with pytest.raises(SettingError) as refused:
            main(GradeConfig(submissions=["s"]))
        assert "bubblewrap" in str(refused.value) and "add --no-fences" in str(refused.value)
        main(GradeConfig(submissions=["s"], no_fences=True))
    finally:
        fences.why_not.cache_clear()
    assert "a1: 2.5 of 2.5" in (out := capsys.readouterr().out) and "Nothing held the code" in out


@needs_fences
def test_bubblewrap_that_does_not_work_is_named(monkeypatch):
    failed = types.SimpleNamespace(returncode=1, stderr="bwrap: Creating new namespace failed: Operation not permitted\n", stdout="[]")
    fences.why_not.cache_clear()
    monkeypatch.setattr(fences.subprocess, "run", lambda *_, **__: failed)
    try:
        assert fences.why_not() == "bubblewrap does not work here (bwrap: Creating new namespace failed: Operation not permitted)"
    finally:
        fences.why_not.cache_clear()


@needs_fences
def test_a_repository_inside_of_what_python_needs_stays_out_of_sight(tmp_path, monkeypatch):
    """A virtual environment in the repository, the repository in a folder of packages, and an installed rlvr."""
    root, venv = tmp_path / "root", tmp_path / "root" / ".venv"
    packages = tmp_path / "packages"
    for folder in (venv / "lib", root / "rlvr", packages / "rlvr"):
        folder.mkdir(parents=True)
        (folder / "x.py").write_text("")
    python = "import json, sys; print(json.dumps(sys.path))"
    monkeypatch.setattr(fences, "ROOT", root)
    monkeypatch.setattr(fences.sys, "exec_prefix", str(venv))
    paths = [
        *json.loads(subprocess.run([sys.executable, "-I", "-c", python], capture_output=True).stdout),
        str(root),
        str(tmp_path),
        str(packages),
    ]
    run = subprocess.run
    monkeypatch.setattr(fences.subprocess, "run", lambda *a, **k: types.SimpleNamespace(stdout=json.dumps(paths)))
    fences._visible.cache_clear()
    try:
        command = fences.command(tmp_path)
    finally:
        fences._visible.cache_clear()
    look = f"import os; print(os.listdir({str(root)!r}), os.listdir({str(venv / 'lib')!r}), os.listdir({str(packages / 'rlvr')!r}))"
    seen = run([*command, sys.executable, "-I", "-c", look], capture_output=True, text=True)
    assert seen.stdout.split() == ["['.venv']", "['x.py']", "[]"], seen


@pytest.mark.parametrize(
    "config, says",
    [
        (dict(), "No submission was named"),
        (dict(submissions=["nowhere"]), "There is no folder nowhere"),
        (dict(submissions=["empty"]), "There is no adapter.py in empty"),
        (dict(submissions=["unnamed"]), "does not say ASSIGNMENT"),
        (dict(submissions=["empty"], assignment="a9"), "There is no assignment 'a9'"),
        (dict(submissions=["empty"], seconds=0.0), "--seconds is 0.0"),
        (dict(submissions=["empty"], seconds=float("nan")), "--seconds is nan"),
        (dict(submissions=["empty"], seconds=1e300), "--seconds is 1e+300. Choose a number above 0, and at most 600."),
        (dict(submissions=["empty"], hidden="nowhere"), "There is no hidden_checks.py"),
    ],
)
def test_a_mistake_of_the_user_is_one_sentence(config, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("unnamed").mkdir()
    Path("unnamed/adapter.py").write_text("import solution\n")
    with pytest.raises(SettingError, match=re.escape(says)):
        main(GradeConfig(**config))
