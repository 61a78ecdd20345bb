"""The notebooks: their form, that they re-define nothing, that their outputs are there, and that they run."""

import ast
import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from programs import Forked

import tutorials.execute
from tutorials import first_cell
from tutorials.execute import execute, main, notebooks

ROOT = Path(__file__).parent.parent
NOTEBOOKS, SOLUTIONS = notebooks([]), notebooks([], solutions=True)


def cells(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def source(path: Path, kind: str) -> str:
    return "\n\n".join("".join(cell["source"]) for cell in cells(path, kind))


def test_there_are_ten_with_their_numbers():
    assert [int(path.name[:2]) for path in NOTEBOOKS] == list(range(1, 11))
    guide = (ROOT / "tutorials" / "README.md").read_text(encoding="utf-8")
    assert all(path.name in guide for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_has_what_every_notebook_has(path):
    text, code = source(path, "markdown"), source(path, "code")
    assert text.startswith(f"# {int(path.name[:2])}. ")
    for heading in ("**You will learn**", "**Time and hardware**", "**You need**", "## Questions", "## Exercises", "## Where to go on"):
        assert heading in text, heading
    assert int(path.name[:2]) < 5 or "**What is general here**" in text[: text.index("**You will learn**")]
    questions = text[text.index("## Questions") : text.index("## Exercises")]
    assert len(re.findall(r"^\d\. ", questions, re.MULTILINE)) == questions.count("</details>") == questions.count("<summary>Answer<") == 3
    exercises = text[text.index("## Exercises") : text.index("## Where to go on")]
    assert 2 <= len(re.findall(r"^\d\. ", exercises, re.MULTILINE)) <= 4 and exercises.count("<details>") == exercises.count("</details>") >= 2
    assert re.search(r"^(from|import) rlvr", code, re.MULTILINE)
    assert len(cells(path, "markdown")) >= len(cells(path, "code"))


@pytest.mark.parametrize("path", NOTEBOOKS + SOLUTIONS, ids=lambda p: p.parent.stem[:3] + p.stem)
def test_every_notebook_begins_with_the_same_cell_and_has_short_lines(path):
    code = ["".join(cell["source"]) for cell in cells(path, "code")]
    assert code[0] == first_cell.cell(first_cell.ADDRESS), "write it anew: python -m tutorials.first_cell"
    long = [line for text in code for line in text.splitlines() if len(line) > 100]
    assert not long, "at most 100 characters: " + long[0]


# Jupyter; its solutions; VS Code; Colab, the project being there; somewhere beside
@pytest.mark.parametrize("start", ["clone/tutorials", "clone/tutorials/solutions", "clone", ".", "clone/tests"])
def test_a_notebook_finds_its_files_from_where_it_starts(start, tmp_path, monkeypatch):
    """The first cell goes to the folder of the notebooks, above which rlvr is."""
    (tmp_path / "clone" / "tutorials" / "solutions").mkdir(parents=True)
    (tmp_path / "clone" / "tests").mkdir()
    (tmp_path / "clone" / "tutorials" / "glossary.md").touch()
    monkeypatch.chdir(tmp_path / start)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("TQDM_DISABLE", "1")  # the cell sets it; undone after the test
    exec(first_cell.cell(""), {})
    assert Path.cwd() == tmp_path / "clone" / "tutorials" and sys.path[0] == ".."


def test_a_notebook_fetches_the_project_where_it_is_missing(tmp_path, monkeypatch):
    """As in Colab: from a git repository, here one on this disk. What it needs is installed by pip; here that command is only written down."""
    remote, elsewhere = tmp_path / "remote", tmp_path / "content"
    (remote / "tutorials").mkdir(parents=True)
    (remote / "tutorials" / "glossary.md").touch()
    (remote / "requirements.txt").touch()
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-q", "-m", "all"]):
        subprocess.run(["git", "-C", str(remote), *command], check=True)
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("TQDM_DISABLE", "1")  # the cell sets it; undone after the test
    with pytest.raises(FileNotFoundError, match="ADDRESS is empty"):
        exec(first_cell.cell(""), {})
    ran, run = [], subprocess.run

    def note(command: list[str], check: bool) -> None:
        ran.append(command)
        if command[0] == "git":
            run(command, check=check)

    monkeypatch.setattr(subprocess, "run", note)
    for _ in range(2):  # the second time the project is there
        exec(first_cell.cell(remote.as_uri()), {})
        assert Path.cwd() == elsewhere / "rlvr-course" / "tutorials" and [c[0] for c in ran] == ["git", sys.executable]
        monkeypatch.chdir(elsewhere)
    assert ran[1][-1] == "rlvr-course/requirements.txt"


def test_the_address_is_set_in_one_place(tmp_path, monkeypatch):
    write_notebook(tmp_path / "01_a.ipynb", first_cell.cell(""), "1 + 1")
    content = json.loads((tmp_path / "01_a.ipynb").read_text())
    content["cells"][0]["id"] = first_cell.ID
    (tmp_path / "01_a.ipynb").write_text(json.dumps(content))
    shutil.copy(ROOT / "tutorials" / "first_cell.py", tmp_path)
    monkeypatch.setattr(first_cell, "HERE", tmp_path)
    assert first_cell.main(["https://example.org/a.git"]) == 0 and first_cell.main(['a"b']) == 2
    assert 'ADDRESS = "https://example.org/a.git"' in (tmp_path / "first_cell.py").read_text()
    assert source(tmp_path / "01_a.ipynb", "code") == first_cell.cell("https://example.org/a.git") + "\n\n1 + 1"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_shows_its_outputs(path):
    assert path.stat().st_size < 500_000
    images = 0
    for number, cell in enumerate(cells(path, "code"), start=1):
        assert cell["execution_count"] == number, "run it from top to bottom: python -m tutorials.execute"
        for output in cell["outputs"]:
            assert output["output_type"] != "error" and output.get("name") != "stderr", (number, output)
            if image := output.get("data", {}).get("image/png"):
                assert base64.b64decode("".join(image)).startswith(b"\x89PNG")
                images += 1
    assert images >= 1


def defined(tree: ast.AST) -> set[str]:
    return {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_redefines_nothing(path):
    ours = set()
    for file in (ROOT / "rlvr").rglob("*.py"):
        ours |= {node.name for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assert {"pass_at_k", "clipped_loss", "Trainer", "shape"} <= ours
    assert defined(ast.parse(source(path, "code"))) & ours == set()


# What the longest notebooks would spend minutes on: smaller batches, fewer problems. `python -m tutorials.execute` runs them as they are.
FEW = 'data="../tests/data/stories.jsonl", prompts_per_step=4, mini_batch_prompts=2'  # 64 problems: all 8192 take seconds to encode
FEWER_PROMPTS = ("prompts_per_step=16, mini_batch_prompts=8", FEW)
AND_HELD_OUT = ("prompts_per_step=16, mini_batch_prompts=8", f'eval_data="../tests/data/stories.jsonl", {FEW}')
FEWER_HELD_OUT = ("eval_problems=48, final_eval_problems=48", "eval_problems=8, final_eval_problems=8")
SMALLER = {
    1: [("    for tau in (1.0, 0.6, 0.2):\n        e", "    for tau in (1.0,):\n        e")],
    2: [AND_HELD_OUT, ("steps=24", "steps=8"), FEWER_HELD_OUT],
    3: [AND_HELD_OUT, ("steps=36", "steps=9"), FEWER_HELD_OUT, ("for step in range(10):", "for step in range(3):"),
        ("steps=10, prompts_per_step=8, mini_batch_prompts=8", 'data="../tests/data/stories.jsonl", prompts_per_step=2, mini_batch_prompts=2'),
        ("for _ in range(10):", "for _ in range(2):")],
    4: [FEWER_PROMPTS, ("temperatures = (0.3, 0.6, 1.0, 1.4)", "temperatures = (0.6, 1.0)"), ('"test", 100)', '"test", 16)')],
    5: [FEWER_PROMPTS],
    7: [FEWER_PROMPTS, ("steps=30", "steps=10"), ('"test", 64)', '"test", 24)')],
    8: [("repeats=3", "repeats=1"), ("(1, 8, 64, 512)", "(1, 8, 64)")],
    9: [("prompts_per_step=4, completions_per_prompt=4, mini_batch_prompts=4", "prompts_per_step=2, completions_per_prompt=4, mini_batch_prompts=2"),
        ('answers("auto", 64)', 'answers("auto", 24)')],
    10: [("prompts_per_step=12, mini_batch_prompts=6", FEW),
         ("eval_problems=48,\n                    final_eval_problems=48", "eval_problems=8,\n                    final_eval_problems=8"),
         ("log_completions=4,", 'log_completions=4, eval_data="../tests/data/stories.jsonl",'),
         ("eval_every=0, final_eval_problems=0)", 'eval_every=0, final_eval_problems=0, eval_data="")')],
}  # fmt: skip


SMALLER_SOLUTIONS = {
    2: [("def trained(seed, steps=5)", "def trained(seed, steps=1)")],
    3: [("_ = grpo_steps(3,", "_ = grpo_steps(1,"), ("(grpo_steps(3, divide", "(grpo_steps(2, divide"), ("for seed in range(3):", "for seed in range(2):")],
    4: [("for tau in (0.3, 0.6, 1.0, 1.4):", "for tau in (0.6,):")],
    5: [("steps=4, prompts_per_step=8, mini_batch_prompts=8", "steps=2, prompts_per_step=4, mini_batch_prompts=4")],
    6: [("for alpha in (0.2, 1.0, 10.0):", "for alpha in (1.0,):")],
    8: [("def clock(work, repeats=3)", "def clock(work, repeats=1)"), ("for seed in (0, 1):", "for seed in (0,):")],
    9: [("completions_per_prompt=3, max_new_tokens=24", "completions_per_prompt=3, max_new_tokens=4")],
}


def make_smaller(notebook: Path, changes: list[tuple[str, str]]) -> None:
    """Each old text stands in one cell, once: whoever changes the cell changes what is made smaller too."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    for old, new in changes:
        holding = [cell for cell in content["cells"] if cell["cell_type"] == "code" and old in "".join(cell["source"])]
        assert len(holding) == 1, f"{old!r} stands in {len(holding)} cells"
        holding[0]["source"] = "".join(holding[0]["source"]).replace(old, new)
    notebook.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def kernels(monkeypatch):
    """The kernels of notebooks have imported torch and transformers already: see programs.py."""
    monkeypatch.setattr(pytest.importorskip("jupyter_client.launcher"), "Popen", Forked)
    monkeypatch.setenv("TQDM_DISABLE", "1")  # as their first cell sets it; it is read when tqdm is imported


@pytest.fixture
def copied(request, monkeypatch, tmp_path, kernels):
    """The number of a notebook and its copy in a copy of the folder: those that run at the same time do not take each other's run folders."""
    def copy(path: Path) -> tuple[int, Path]:
        for name in ("rlvr", "tests"):
            (tmp_path / name).symlink_to(ROOT / name)
        shutil.copytree(ROOT / "tutorials", tmp_path / "tutorials", ignore=shutil.ignore_patterns("assignments", "__pycache__"))
        if path.name.startswith("09"):
            monkeypatch.setenv("RLVR_MODEL", str(request.getfixturevalue("smollm2")))
        return int(path.name[:2]), tmp_path / path.relative_to(ROOT)

    return copy


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_notebook_runs(path, copied):
    number, notebook = copied(path)
    make_smaller(notebook, SMALLER.get(number, []))
    execute(notebook, check=True)


def exercises(path: Path) -> list[str]:
    """The texts of a chapter's exercises, each in one line, without hints."""
    text = source(path, "markdown")
    text = text[text.index("## Exercises") : text.index("## Where to go on")]
    return [" ".join(item.split("<details>")[0].split()) for item in re.split(r"^\d\. ", text, flags=re.MULTILINE)[1:]]


def test_every_exercise_has_its_solution():
    """Its number and its text stand before it. Whoever changes an exercise looks at its solution too."""
    assert [path.name for path in SOLUTIONS] == [path.name for path in NOTEBOOKS]
    for chapter, solutions in zip(NOTEBOOKS, SOLUTIONS):
        solved = re.findall(r"^## Exercise (\d)\n\n> (.*)$", source(solutions, "markdown"), re.MULTILINE)
        assert solved == [(str(i), text) for i, text in enumerate(exercises(chapter), start=1)], chapter.name
        assert f"(solutions/{chapter.name})" in source(chapter, "markdown"), f"{chapter.name} does not point to its solutions"


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda p: p.stem)
def test_solutions_show_their_outputs_in_short_lines(path):
    assert path.stat().st_size < 200_000
    for number, cell in enumerate(cells(path, "code"), start=1):
        assert cell["execution_count"] == number, "run it from top to bottom: python -m tutorials.execute --solutions"
        assert all(output["output_type"] != "error" and output.get("name") != "stderr" for output in cell["outputs"])
        assert cell["outputs"] or number <= 2 or "print(" not in "".join(cell["source"])
        assert max(map(len, "".join(cell["source"]).splitlines())) <= 100


@pytest.mark.slow
@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda p: p.stem)
def test_every_solution_runs(path, copied, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    number, notebook = copied(path)
    make_smaller(notebook, SMALLER_SOLUTIONS.get(number, []))
    execute(notebook, check=True)


def test_the_command_names_what_is_wrong(capsys):
    assert main(["x"]) == 2 and "'x' is no number" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="no notebook 77. Choose from 1 to 10"):
        main(["77"])
    with pytest.raises(SystemExit, match="no notebook 78. Choose from 1 to 10"):
        main(["78", "--solutions"])
    assert main(["--help"]) == 0 and "--check" in capsys.readouterr().out


def write_notebook(path: Path, *code: str) -> None:
    shown = [{"cell_type": "code", "id": f"c{i}", "execution_count": None, "metadata": {}, "outputs": [], "source": c} for i, c in enumerate(code)]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    path.write_text(json.dumps({"cells": shown, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")


@pytest.mark.slow
def test_executing_puts_outputs_in_place_and_tells_of_a_failure(tmp_path, monkeypatch, capsys, kernels):
    monkeypatch.setattr(tutorials.execute, "HERE", tmp_path)
    write_notebook(tmp_path / "01_good.ipynb", "print(6 * 7)")
    write_notebook(tmp_path / "02_bad.ipynb", "1 / 0")
    assert main(["1", "--check"]) == 0
    assert "42" not in (tmp_path / "01_good.ipynb").read_text().replace("6 * 7", "")
    assert main([]) == 1
    assert "42" in (tmp_path / "01_good.ipynb").read_text() and "timestamp" not in (tmp_path / "01_good.ipynb").read_text().lower()
    out = capsys.readouterr()
    assert "ZeroDivisionError" in out.out and "failed: 02_bad.ipynb" in out.err
