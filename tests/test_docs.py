"""What the documents say is true: every number has its entry, every command parses, every file and link exists."""

import ast
import csv
import dataclasses
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import RUN, make_rollouts

from rlvr.run import figures
from rlvr.run import log as runlog
from rlvr.config import EvalConfig, TrainConfig
from rlvr.run.cli import parse_eval, parse_train
from rlvr.data import Problem
from rlvr.train import train
from tutorials.assignments.grade import GradeConfig

ROOT = Path(__file__).parent.parent
GLOSSARY = ROOT / "tutorials" / "glossary.md"


def files() -> list[Path]:
    """All files of the repository that git knows or would add; without git, all that are not hidden or written by a run."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        paths = [p for p in ROOT.rglob("*") if not re.search(r"(?:^|/)(?:\.|runs/|__pycache__/)", p.relative_to(ROOT).as_posix())]
    return sorted(p for p in paths if p.is_file())


def texts(*suffixes: str) -> dict[Path, str]:
    found = {}
    for path in files():
        if not suffixes or path.suffix in suffixes:
            try:
                found[path] = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                assert path.suffix not in (".py", ".md", ".txt", ".ipynb", ".json", ".jsonl", ".toml", ""), f"{path} is not UTF-8"
    return found


def pages() -> dict[Path, str]:
    """README, tutorials and the other Markdown files; of notebooks, the text cells."""
    found = texts(".md")
    for path, text in texts(".ipynb").items():
        found[path] = "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")
    return found


# ---------------------------------------------------------------------------------------------------------------------------------------
# The glossary


def glossary() -> dict[str, set[str]]:
    """Heading -> the names in the first column of its table."""
    sections = re.split(r"^## ", GLOSSARY.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {s.splitlines()[0]: {m.strip("`* ") for m in re.findall(r"^\| (.+?) \|", s, re.MULTILINE)} - {"name", "word"} for s in sections}


def single(cells: set[str]) -> set[str]:
    """Cells that name several, as in `a`, `b`, one by one."""
    return {name for cell in cells for name in cell.replace("`", "").split(", ")}


def names_of(file: str) -> set[str]:
    """The names in all tables whose heading says that they are about this file."""
    return set().union(*(names for heading, names in glossary().items() if f"`{file}`" in heading))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run of one step."""
    folder = tmp_path_factory.mktemp("docs") / "runs" / "pos-seed0"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw_curves", lambda folder: folder / "curves.png")
        train(TrainConfig(**(RUN | dict(steps=1, max_new_tokens=20, eval_completions=8, out=str(folder.parent), name=folder.name))))
    return folder


def test_every_column_of_the_metrics_has_an_entry():
    assert names_of("metrics.csv") == set(runlog.COLUMNS)


def test_every_number_of_the_summary_has_an_entry(run_folder):
    assert names_of("summary.json") == set(json.loads((run_folder / "summary.json").read_text(encoding="utf-8")))


def test_every_field_of_a_logged_completion_has_an_entry(run_folder):
    assert names_of("rollouts.jsonl") == set(json.loads((run_folder / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()[0]))


def test_every_short_name_of_a_data_set_is_in_the_table():
    from rlvr.loaders.sources import HUB

    page = (ROOT / "tutorials" / "real_models.md").read_text(encoding="utf-8")
    for name, known in HUB.items():
        assert f"| `{name}` |" in page and known.hub_id in page, name


def test_no_placeholder_is_left():
    for path in (ROOT / "README.md", *(ROOT / "tutorials").rglob("*.md")):
        assert not re.search(r"^[A-Z]{4,}$", path.read_text(encoding="utf-8"), re.MULTILINE), path


def test_every_number_of_an_evaluation_has_an_entry(tmp_path, monkeypatch):
    from rlvr import evaluate
    from rlvr.run import compare

    policy = SimpleNamespace(model=SimpleNamespace(device="cpu", config=None), tokenizer=None, stop_ids={2}, complete=None)
    monkeypatch.setattr(compare, "check_model_name", lambda name: name)
    monkeypatch.setattr(compare, "load_policy", lambda *args: policy)
    monkeypatch.setattr(compare, "encode_prompts", lambda *args: ([Problem("p", "1")], [[3]], 0))
    monkeypatch.setattr(compare, "check_length", lambda *args: None)
    monkeypatch.setattr(compare, "most_positions", lambda config: 512)
    monkeypatch.setattr(evaluate, "sample", lambda *args, **kwargs: make_rollouts([1, 1], [3, 4]))
    written = compare.compare(EvalConfig(models=["tiny"], completions=2, problems=1, out=str(tmp_path / "eval.json")))
    result = written["results"]["tiny"]["tiny"]  # of the built-in problems, the built-in model
    names = set(result) | set(result["problems"][0])
    for interval in result["metrics"].values():
        names |= set(interval)
    assert names_of("eval.py") == names
    assert written == json.loads((tmp_path / "eval.json").read_text())


def test_every_number_of_a_probe_has_an_entry(run_folder):
    from safetensors.torch import load_file

    from rlvr.analysis.probe import ProbeConfig, probe

    folder = probe(run_folder, ProbeConfig(runs=[], steps=1, shown=1, fixed=1, completions=2, continuations=1, problems=1, samples=2))
    lines = [json.loads((folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[0]) for name in ("completions", "fixed")]
    assert single(names_of("changes.safetensors")) == set(load_file(folder / "changes.safetensors")) | {
        name for line in lines for name in line
    }
    replacement = json.loads((folder / "replacements.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert names_of("replacements.jsonl") == set(replacement)
    assert names_of("exploration.json") == set(json.loads((folder / "exploration.json").read_text(encoding="utf-8"))["last"])


def test_every_column_of_the_shipped_tables_has_an_entry():
    """Of the report, the probe and the runs with a collapsing entropy."""
    known = single(set().union(*glossary().values()))
    for path in (ROOT / "tutorials").rglob("*.csv"):
        if "assignments" not in path.parts:
            assert set(path.read_text(encoding="utf-8").splitlines()[0].split(",")) <= known, path


def test_every_number_of_an_experiment_has_an_entry():
    from rlvr.analysis.compare_arms import METRICS

    from rlvr.run.defects import ERRORS

    curves = {"arm", "seed", "step", "pass_at_1", "entropy"}
    assert names_of("results.csv") == {"arm", "seed", "trunk", "cool", *METRICS, *ERRORS} | curves
    for name in ("results", "curves"):
        with open(ROOT / "tutorials" / "experiment" / f"{name}.csv", newline="", encoding="utf-8") as file:
            assert set(next(csv.reader(file))) == ({"arm", "seed", *METRICS} if name == "results" else curves)


@pytest.mark.parametrize(
    "word",
    "prompt completion group reward advantage logp old_logp mask entropy perplexity G N T V".split()
    + ["branching factor", "rising stage", "plateau"],
)
def test_every_word_has_an_entry(word):
    assert word in glossary()["Words"]


def test_no_entry_is_empty_and_none_comes_twice_in_a_table():
    for section in re.split(r"^## ", GLOSSARY.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")]
        header, _, *rows = rows
        assert all(len(row) == len(header) and all(row[: min(len(row), 3)]) for row in rows)
        assert len({row[0] for row in rows}) == len(rows)


# ---------------------------------------------------------------------------------------------------------------------------------------
# Commands


def commands(text: str) -> list[tuple[str, str]]:
    """(program, arguments) of every `python train.py ...` and `python eval.py ...` that a text gives to be typed."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()  # a command may go on after a backslash
    return [match for line in lines for match in re.findall(r"python3? (train|eval)\.py([^`\n|;&#)]*)", line)]


def test_the_readme_shows_the_front_door():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "pip install -r requirements.txt" in text and "python -m pytest" in text
    assert {"train", "eval"} <= {program for program, _ in commands(text)}


def test_every_command_is_one_that_the_program_accepts(run_folder, monkeypatch):
    pages_found = pages()
    monkeypatch.chdir(run_folder.parent.parent)  # where --resume runs/pos-seed0 finds a run
    for path, text in pages_found.items():
        for program, arguments in commands(text):
            if "..." in arguments or not arguments.strip() and program == "eval":  # talks about the program, not a command to type
                continue
            argv = shlex.split(re.sub(r"\$\{?\w+\}?", "1", arguments))  # $seed, in a loop of the shell
            try:
                {"train": parse_train, "eval": parse_eval}[program](argv)
            except SystemExit as end:
                assert end.code == 0, f"{path.name}: python {program}.py{arguments}"


def test_every_flag_exists():
    fields = {f.name: f for config in (TrainConfig, EvalConfig) for f in dataclasses.fields(config)}
    known = {"--help"} | {"--" + name.replace("_", "-") for name in fields}
    known |= {"--no-" + name.replace("_", "-") for name, f in fields.items() if f.type in (bool, "bool")}
    graders = {"--" + f.name.replace("_", "-") for f in dataclasses.fields(GradeConfig)}
    for path in [ROOT / "README.md", *(ROOT / "tutorials").rglob("*.md")]:
        here = known | graders if "assignments" in path.parts else known
        for line in path.read_text(encoding="utf-8").splitlines():
            if not re.search(
                r"\b(pip|git|pytest|jupyter|torchrun|accelerate|python3? -m|benchmarks)\b", line
            ):  # they have flags of their own
                for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", line):
                    assert flag in here, f"{path.name}: {flag}"


# ---------------------------------------------------------------------------------------------------------------------------------------
# Files and links

WRITTEN_BY_A_RUN = {
    "config.json",
    "metrics.csv",
    "rollouts.jsonl",
    "summary.json",
    "curves.png",
    "model.safetensors",
    "results.json",
    "hidden_checks.py",
}
FILE_NAME = re.compile(r"[\w.-]*(?:/[\w.-]+)*/?")
KNOWN_SUFFIXES = {".py", ".md", ".ipynb", ".txt", ".toml", ".ini", ".json", ".jsonl", ".csv", ".png", ".safetensors", ".yml", ".sh"}


def named_files(text: str) -> list[str]:
    """What stands in backticks and is the path of a file or folder of this repository: not a run's, not the reader's own, not a Hub id."""
    names = [name for name in re.findall(r"`([^`\n]+)`", text) if FILE_NAME.fullmatch(name)]
    names = [n for n in names if Path(n).suffix in KNOWN_SUFFIXES and n != Path(n).suffix or n.endswith("/")]
    return [n for n in names if Path(n).name not in WRITTEN_BY_A_RUN and not n.startswith(("runs/", "my", "grades/")) and n != "model/"]


def test_pages_name_only_files_that_exist():
    missing, known = {}, {path.name for path in files()}
    for path, text in pages().items():
        if path == GLOSSARY:  # names what runs and probes write
            continue
        folders = (ROOT, ROOT / "rlvr", ROOT / "tutorials", path.parent)
        if names := [n for n in named_files(text) if n not in known and not any((folder / n).exists() for folder in folders)]:
            missing[path.name] = names
    assert missing == {}


def test_the_finder_of_file_names_finds():
    text = "`train.py`, `rlvr/tiny/`, `runs/pos-seed0/metrics.csv`, `a/b`, `--out x.json`, `my_problems.jsonl`, `.jsonl`, `rlvr/nowhere.py`"
    assert named_files(text) == ["train.py", "rlvr/tiny/", "rlvr/nowhere.py"]


def anchor(heading: str) -> str:
    """The name that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading).strip().lower()).replace(" ", "-")


def test_links_to_local_files_lead_somewhere():
    for path, text in pages().items():
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", prose):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, fragment = target.partition("#")
            linked = path.parent / name if name else path
            assert linked.exists(), f"{path.name}: {target}"
            if fragment and linked.suffix == ".md":
                headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
                assert fragment in map(anchor, headings), f"{path.name}: {target}"


def test_nothing_points_at_the_machine_it_was_written_on():
    absolute = re.compile(r"(?<![\w.:/~>-])/(?:work|tmp|home|root|mnt|Users)/\w*")
    for path, text in texts().items():
        assert not absolute.search(text), f"{path.relative_to(ROOT)}: {absolute.search(text).group()}"


def test_no_note_to_self_is_left():
    notes = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|X" r"XX)\b|@@\w*@@")
    for path, text in texts(".py", ".md", ".ipynb", ".txt", ".toml", ".ini", ".yml").items():
        text = re.sub(r'"image/png": "[^"]*"', "", text)
        assert not notes.search(text), f"{path.relative_to(ROOT)}: {notes.search(text).group()}"


def test_every_text_file_is_opened_as_utf_8():
    """Else Windows reads and writes its own code page."""
    missing = []
    for path in [*(ROOT / "rlvr").rglob("*.py"), ROOT / "train.py", ROOT / "eval.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                binary = any(isinstance(a, ast.Constant) and isinstance(a.value, str) and "b" in a.value for a in node.args[1:2])
                is_file = name in ("read_text", "write_text") or (name == "open" and isinstance(node.func, ast.Name))
                if is_file and not binary and not any(k.arg == "encoding" for k in node.keywords):
                    missing.append(f"{path.name}:{node.lineno}")
    assert not missing


# ---------------------------------------------------------------------------------------------------------------------------------------
# Programs run by their path


PROGRAMS = [path for place in ("rlvr", "tutorials") for path in (ROOT / place).rglob("*.py")
            if re.search(r'\nfrom rlvr.*__name__ == "__main__"', path.read_text(encoding="utf-8"), re.DOTALL)]  # fmt: skip


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.parent.name + "/" + path.stem)
def test_a_program_finds_rlvr_by_its_path(path, monkeypatch):
    """Python puts the folder of the file into sys.path, as it does for train.py; but this one is not in the root."""
    monkeypatch.setattr(sys, "path", [str(path.parent), *(p for p in sys.path if p not in ("", str(ROOT)))])
    head = path.read_text(encoding="utf-8").split("\nfrom rlvr")[0]
    exec(compile(head, path, "exec"), {"__file__": str(path), "__name__": "__main__", "__package__": None})
    assert sys.path[0] == str(ROOT)


def test_a_program_runs_from_another_folder(tmp_path):
    done = subprocess.run([sys.executable, "-E", ROOT / "rlvr" / "run" / "publish.py", "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "--merge" in done.stdout, done.stderr
