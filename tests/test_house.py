"""The shape of the code: what a student reads is short, ideas do not depend on machinery, and imports go one way."""

import ast
import io
import re
import tokenize
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COURSE = ("rollout", "reward", "entropy", "advantage", "loss", "train")  # in the order in which they are read
BESIDE = ("data", "policy", "evaluate", "config", "methods")
# Each may import those before it, and no other. A file directly in rlvr/ counts by itself.
LAYERS = [
    {"common"}, {"verifier"}, {"entropy"}, {"rollout", "advantage", "loss", "reward"}, {"methods"}, {"config"}, {"tiny"}, {"engine"}, {"loaders"},
    {"data", "policy"}, {"evaluate"}, {"run"}, {"train"}, {"adapters"}, {"analysis"},
]  # fmt: skip
PLACE = {name: place for place, names in enumerate(LAYERS) for name in names}


def modules() -> list[Path]:
    return sorted(path for path in (ROOT / "rlvr").rglob("*.py"))


@lru_cache(maxsize=None)
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def code_lines(path: Path) -> set[int]:
    """The numbers of the lines with code: no blank ones, no comments, no docstrings."""
    ignored = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type not in ignored:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return lines


def functions(path: Path) -> dict[str, int]:
    """The code lines of each function of a file."""
    lines = code_lines(path)
    found = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef)]
    return {f"{node.name}:{node.lineno}": len(lines & set(range(node.lineno, node.end_lineno + 1))) for node in found}


def imports(path: Path) -> list[tuple[str, str]]:
    """(module, name) of everything that a file imports, at its top or inside a function."""
    found = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found += [(name.name, "") for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports from the top, as in from rlvr.common.text import say"
            found += [(node.module, name.name) for name in node.names]
    return found


def part(module: str, name: str = "") -> str | None:
    """rlvr.engine.memory -> engine, rlvr.policy -> policy, from rlvr import policy -> policy; None for what is not ours."""
    words = [*module.split("."), name]
    return words[1] if words[0] == "rlvr" else None


def of_file(path: Path) -> str:
    return path.relative_to(ROOT / "rlvr").parts[0].removesuffix(".py")


# ---------------------------------------------------------------------------------------------------------------------------------------


def test_the_course_is_short_enough_for_an_evening():
    lengths = {name: len(code_lines(ROOT / "rlvr" / f"{name}.py")) for name in COURSE}
    assert max(lengths.values()) <= 120 and sum(lengths.values()) <= 450, lengths
    longest = {name: max(functions(ROOT / "rlvr" / f"{name}.py").values()) for name in COURSE}
    assert max(longest.values()) <= 40, longest


def test_the_readme_states_the_length_of_each_file_of_the_course():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    stated = {name: int(n) for name, n in re.findall(r"\| `rlvr/(\w+)\.py` \| (\d+) \|", text)}
    assert stated == {name: len(code_lines(ROOT / "rlvr" / f"{name}.py")) for name in (*COURSE, *BESIDE)}
    assert list(stated)[:6] == list(COURSE), "in the order in which they are read"


@pytest.mark.parametrize("name", ["rollout", "entropy", "advantage", "loss"])
def test_ideas_import_torch_the_standard_library_and_each_other(name):
    import sys

    for module, imported in imports(ROOT / "rlvr" / f"{name}.py"):
        ours = part(module, imported)
        allowed = ours in COURSE[:5] if ours else module.split(".")[0] in {"torch", "tqdm", *sys.stdlib_module_names}
        assert allowed, f"rlvr/{name}.py imports {imported} from {module}"


def test_only_reward_asks_the_verifier_and_only_train_uses_machinery_in_ten_names():
    folders = {path.name for path in (ROOT / "rlvr").iterdir() if path.is_dir() and path.name != "__pycache__"}
    for name in COURSE:
        used = [(part(*found), found[1]) for found in imports(ROOT / "rlvr" / f"{name}.py")]
        machinery = {imported for where, imported in used if where in folders}
        if name == "train":
            beside = {imported for where, imported in used if where in BESIDE}
            assert len(machinery | beside) <= 10, machinery | beside
        else:
            assert {where for where, _ in used if where in folders} == ({"verifier"} if name == "reward" else set()), name


def test_imports_go_one_way():
    unknown = {of_file(path) for path in modules()} - set(PLACE) - {"__init__"}
    assert not unknown, f"{unknown}: where do they belong in LAYERS?"
    for path in modules():
        for module, name in imports(path):
            target = part(module, name)
            if target and of_file(path) not in ("__init__", target):
                assert PLACE[target] < PLACE[of_file(path)] or {target, of_file(path)} <= {"advantage", "rollout", "loss", "entropy"}, (
                    f"{path.relative_to(ROOT)} imports {module}: an arrow that runs back"
                )


def test_no_circle():
    """Not even inside a folder: files can be put in an order in which each imports only those before it."""
    names = {path: "rlvr." + ".".join(path.relative_to(ROOT / "rlvr").with_suffix("").parts).removesuffix(".__init__") for path in modules()}
    known = set(names.values())
    needs = {}
    for path, name in names.items():
        wanted = {m for module, imported in imports(path) for m in (module, f"{module}.{imported}") if m in known} - {name, "rlvr"}
        needs[name] = {m for m in wanted if not (m == name.rsplit(".", 1)[0])}
    while ready := {name for name, wanted in needs.items() if not wanted & needs.keys()}:
        needs = {name: wanted for name, wanted in needs.items() if name not in ready}
    assert not needs, f"a circle among {sorted(needs)}"


def test_every_folder_says_in_a_paragraph_what_is_in_it():
    for folder in {path.parent for path in modules()} - {ROOT / "rlvr"}:
        text = ast.get_docstring(parsed(folder / "__init__.py"))
        assert text and len(text) > 100, f"{folder.relative_to(ROOT)}/__init__.py"


def test_functions_fit_on_a_screen_and_the_whole_stays_small():
    longest = {f"{path.relative_to(ROOT)}:{name}": n for path in modules() for name, n in functions(path).items()}
    assert max(longest.values()) <= 60, sorted(longest, key=longest.get)[-3:]
    total = sum(len(code_lines(path)) for path in modules() if of_file(path) not in ("tiny", "adapters"))
    assert sum(len(code_lines(path)) for path in modules() if of_file(path) == "adapters") <= 285
    assert total <= 7741, total  # lower it when the code gets shorter; nothing may be added for free
