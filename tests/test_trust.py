"""Trust: nothing that comes from outside - a model folder, a data file, what a model writes - is ever run, and none of it becomes a path.

First a scan of the code itself, and a test of that scan; then hostile files and hostile completions, each of which would leave a mark.
"""

import ast
import dataclasses
import json
import os
import pickle
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

import rlvr.evaluate
import rlvr.policy
import rlvr.run.set_up
from rlvr import verifier
from rlvr.config import TINY_MODEL, SettingError, TrainConfig
from rlvr.run.cli import parse_train
from rlvr.data import load_problems, prompt_ids
from rlvr.loaders import chat
from rlvr.policy import load_policy
from rlvr.analysis.probe import ProbeConfig, probe
from rlvr.reward import verify
from rlvr.verifier import process
from rlvr.verifier.child import equal_by_math_verify

ROOT = Path(__file__).parent.parent

# ---------------------------------------------------------------------------------------------------------------------------------------
# The scan

BUILTINS = {"eval", "exec", "compile", "__import__", "__builtins__"}
MODULES = {"builtins", "pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
CALLS = {"torch.jit.load", "torch.hub.load", "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "importlib.import_module",
         "runpy.run_path", "runpy.run_module", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput",
         "asyncio.create_subprocess_shell", "pandas.read_pickle"}  # fmt: skip
PROCESSES = {f"subprocess.{name}" for name in ("run", "call", "check_call", "check_output", "Popen")}


class Scan(ast.NodeVisitor):
    """What a piece of code does that it must not, as a list of (line, what). Names are followed through `import ... as ...`."""

    def __init__(self, code: str):
        self.found: list[tuple[int, str]] = []
        self.meaning: dict[str, str] = {}  # name in this file -> what was imported under it
        self.fine: set[ast.AST] = set()  # mentions of torch.load that are calls as they should be
        tree = ast.parse(code)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                self.meaning |= {alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0]
                                 for alias in node.names}  # fmt: skip
            elif isinstance(node, ast.ImportFrom):
                self.meaning |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        self.visit(tree)

    def report(self, node: ast.AST, what: str) -> None:
        self.found.append((node.lineno, what))

    def name(self, node: ast.AST) -> str:
        """The full name of a.b.c; empty for what has none."""
        if isinstance(node, ast.Name):
            return self.meaning.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            return f"{self.name(node.value)}.{node.attr}"
        return ""

    def visit_Import(self, node):
        for alias in node.names:
            if alias.name.split(".")[0] in MODULES:
                self.report(node, alias.name)

    def visit_ImportFrom(self, node):
        for alias in node.names:
            if (node.module or "").split(".")[0] in MODULES or alias.name in MODULES:
                self.report(node, f"{node.module}.{alias.name}")

    def visit_Name(self, node):
        self.mention(node)

    def visit_Attribute(self, node):
        self.mention(node)
        self.generic_visit(node)

    def mention(self, node):
        """A name stands here, called or not: a forbidden function must not get another name either."""
        name = self.name(node)
        if isinstance(node, ast.Name) and node.id in BUILTINS or isinstance(node, ast.Attribute) and node.attr in MODULES:
            self.report(node, name)
        elif name in CALLS or name.startswith(("os.exec", "os.spawn")) or name.endswith(".exec_module"):
            self.report(node, name)
        elif name in ("torch.load", "torch.serialization.load") and node not in self.fine:
            self.report(node, f"{name} without weights_only=True")

    def visit_Call(self, node):
        name = self.name(node.func)
        last = name.split(".")[-1]
        given = {k.arg: k.value.value if isinstance(k.value, ast.Constant) else k.value for k in node.keywords}
        if given.get("weights_only") is True:
            self.fine.add(node.func)
        if last == "eval" and (node.args or node.keywords) and not isinstance(node.func, ast.Name):
            self.report(node, "eval of a text")  # model.eval() takes none
        for option in ("shell", "allow_pickle", "trust_remote_code"):
            if given.get(option, False) is not False:
                self.report(node, f"{option} is not False")
        if name == "numpy.load" and len(node.args) > 1:
            self.report(node, "numpy.load with options by position")
        if name in PROCESSES and not (node.args and isinstance(node.args[0], (ast.List, ast.Tuple))):
            self.report(node, f"{name} of something other than a list")
        if last == "from_pretrained":
            kind = self.name(node.func.value).split(".")[-1]
            if kind.startswith("Auto") and "trust_remote_code" not in given:
                self.report(node, "from_pretrained without trust_remote_code=False")
            if not kind.endswith(("Tokenizer", "TokenizerFast", "Config")) and given.get("use_safetensors") is not True:
                self.report(node, "from_pretrained without use_safetensors=True")
        if last in ("HTML", "Javascript", "SVG", "display_html") and not all(isinstance(a, ast.Constant) for a in node.args):
            self.report(node, f"{last} of a variable")
        self.generic_visit(node)

    def visit_Dict(self, node):
        for key, value in zip(node.keys, node.values):
            if isinstance(key, ast.Constant) and key.value == "trust_remote_code" and getattr(value, "value", None) is not False:
                self.report(node, "trust_remote_code is not False")
        self.generic_visit(node)

    def visit_Subscript(self, node):
        if isinstance(node.ctx, ast.Store) and isinstance(node.slice, ast.Constant) and node.slice.value == "trust_remote_code":
            self.report(node, "trust_remote_code is set")
        self.generic_visit(node)


def shell_lines(code: str) -> list[str]:
    """Lines of a notebook cell that IPython hands to a shell, or that are no Python."""
    return [line for line in code.splitlines() if line.lstrip().startswith(("!", "%"))]


def sources() -> dict[str, str]:
    """Every piece of code that a user runs: the package, the two programs, the cells of the notebooks."""
    files = [*(ROOT / "rlvr").rglob("*.py"), *ROOT.glob("*.py"), *(ROOT / "tutorials").rglob("*.py")]
    found = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in files}
    for path in (ROOT / "tutorials").rglob("*.ipynb"):
        cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
        found |= {f"{path.relative_to(ROOT)}, cell {i}": "".join(cell["source"]) for i, cell in enumerate(cells, start=1)}
    return found


def test_the_code_runs_nothing_that_comes_from_outside():
    code = sources()
    assert {"train.py", "eval.py", "rlvr/policy.py", "rlvr/tiny/task.py", "tutorials/01_what_rlvr_is.ipynb, cell 1"} <= set(code)
    for place, text in code.items():
        assert shell_lines(text) == [] or place.endswith(".py"), f"{place} runs commands of a shell"
        if place == "rlvr/run/reward_function.py":  # --reward imports what the user names on the command line, there and nowhere else
            function = next(node for node in ast.parse(text).body if getattr(node, "name", None) == "load_reward")
            text = text.replace(ast.get_source_segment(text, function), "")
        assert Scan(text).found == [], place


def test_the_memory_estimate_runs_no_code_of_a_model(tmp_path, monkeypatch):
    mark, folder = tmp_path / "mark", tmp_path / "m"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Model: pass\n")
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    for name in ("tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # the answer to "Do you wish to run the custom code?"
    rlvr.run.set_up.say_memory(TrainConfig(model=str(folder), device="cpu"))
    assert not mark.exists()


@pytest.mark.parametrize("reward", ["evil:reward", "evil.py:reward"])
def test_a_run_folder_runs_no_reward_function_that_it_names(reward, tmp_path, monkeypatch, capsys):
    """config.json of a folder from somebody else says which reward function it had: it is not imported until the user names it too."""
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "mark"
    Path("evil.py").write_text(f"open({str(mark)!r}, 'w')\ndef reward(completions, answers): return [1.0] * len(completions)\n")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(TrainConfig(reward=reward))))
    with pytest.raises(SettingError, match="add --reward evil"):
        parse_train(["--resume", str(folder)])
    with pytest.raises(SettingError, match="reward"):
        probe(folder, ProbeConfig(runs=[str(folder)]))
    assert not mark.exists() and "evil" not in sys.modules


BAD = [
    "eval('1+1')",
    "run = eval",
    "list(map(eval, texts))",
    "exec(text)",
    "compile(text, '', 'exec')",
    "__import__(name)",
    "__builtins__['eval'](text)",
    "import builtins\nbuiltins.eval(text)",
    "from builtins import eval as check\ncheck(text)",
    "frame.eval(text)",
    "import pickle",
    "import pickle as p",
    "from pickle import loads",
    "import cloudpickle",
    "import dill, json",
    "from joblib import load",
    "import marshal",
    "import shelve",
    "from torch.serialization import pickle",
    "import torch\ntorch.serialization.pickle.loads(x)",
    "import importlib\nimportlib.import_module(name)",
    "from importlib import import_module as get\nget(name)",
    "spec.loader.exec_module(module)",
    "import torch\ntorch.load(path)",
    "import torch\ntorch.load(path, weights_only=False)",
    "import torch\ntorch.load(path, weights_only=flag)",
    "import torch\ntorch.load(path, **options)",
    "import torch as t\nt.load(path)",
    "from torch import load\nload(path)",
    "from torch import load as read\nread(path)",
    "import torch\nread = torch.load",
    "import torch.serialization as s\ns.load(path)",
    "import torch\ntorch.hub.load(repo, name)",
    "from torch import hub\nhub.load(repo, name)",
    "from torch.jit import load\nload(path)",
    "import numpy as np\nnp.load(path, allow_pickle=True)",
    "import numpy as np\nnp.load(path, None, True)",
    "from numpy import load\nload(path, allow_pickle=flag)",
    "import yaml\nyaml.load(text)",
    "from yaml import unsafe_load as safe\nsafe(text)",
    "import pandas as pd\npd.read_pickle(path)",
    "import os\nos.system(command)",
    "from os import system as say\nsay(command)",
    "import os as o\no.popen(command)",
    "import os\nos.execvp(program, arguments)",
    "import subprocess\nsubprocess.run(command, shell=True)",
    "import subprocess\nsubprocess.run(['ls'], shell=flag)",
    "import subprocess\nsubprocess.run('ls ' + folder)",
    "import subprocess as s\ns.Popen(f'ls {folder}')",
    "from subprocess import check_output\ncheck_output(command)",
    "import subprocess\nsubprocess.getoutput(command)",
    "AutoModelForCausalLM.from_pretrained(path, use_safetensors=True, trust_remote_code=True)",
    "AutoModelForCausalLM.from_pretrained(path, use_safetensors=True, trust_remote_code=settings.trust)",
    "AutoModelForCausalLM.from_pretrained(path, use_safetensors=True)",
    "AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False)",
    "AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False, use_safetensors=None)",
    "Qwen2ForCausalLM.from_pretrained(path)",
    "from transformers import AutoModel as A\nA.from_pretrained(path, trust_remote_code=False)",
    "AutoTokenizer.from_pretrained(path)",
    "options = {'trust_remote_code': True}",
    "options['trust_remote_code'] = True",
    "options = dict(trust_remote_code=True)",
    "from IPython.display import HTML\nHTML(text)",
    "from IPython import display\ndisplay.HTML(f'<b>{text}</b>')",
    "from IPython.display import HTML as show\nshow(text)",
]

GOOD = [
    "model.eval()",
    "copy.deepcopy(model).eval()",
    "import re\nre.compile(pattern)",
    "evaluate(policy)",
    "executor.execute(plan)",
    "def verify(compiled): return compiled",
    "text = 'eval(x), exec(y), import pickle, torch.load(z), shell=True'",
    "# torch.load(path)",
    "import torch\ntorch.load(path, weights_only=True)",
    "from torch import load as read\nread(path, map_location='cpu', weights_only=True)",
    "import json\njson.load(file)",
    "from safetensors.torch import load_file\nload_file(path)",
    "import numpy as np\nnp.load(path)",
    "import numpy as np\nnp.load(path, allow_pickle=False)",
    "import yaml\nyaml.safe_load(text)",
    "import importlib.util\nimportlib.util.find_spec('math_verify')",
    "import os\nos.path.join(a, b)",
    "import subprocess\nsubprocess.run(['git', 'status'], shell=False)",
    "import subprocess, sys\nsubprocess.Popen([sys.executable, path])",
    "AutoModelForCausalLM.from_pretrained(path, use_safetensors=True, trust_remote_code=False)",
    "AutoTokenizer.from_pretrained(path, trust_remote_code=False)",
    "PreTrainedTokenizerFast.from_pretrained(path)",
    "options = {'trust_remote_code': False}",
    "if 'trust_remote_code' in message: pass",
    "from IPython.display import HTML, Image\nHTML('<b>text</b>')\nImage(path)",
]


@pytest.mark.parametrize("code", BAD)
def test_the_scan_finds(code):
    assert Scan(code).found


@pytest.mark.parametrize("code", GOOD)
def test_the_scan_lets_pass(code):
    assert Scan(code).found == []


def test_the_scan_finds_commands_in_a_notebook():
    assert shell_lines("x = 1\n  !rm {text}\n%run other.py") == ["  !rm {text}", "%run other.py"] and shell_lines("a = 5 % 3\nb != a") == []


# ---------------------------------------------------------------------------------------------------------------------------------------
# Models


@pytest.fixture
def mark(tmp_path, monkeypatch) -> Path:
    """A folder that only hostile code would make. The current folder is an empty one."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "mark"
    assert not (tmp_path / "mark").exists(), "something from outside was run"


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_the_bombs_work(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "mark")))
    assert (tmp_path / "mark").is_dir()


@pytest.fixture
def model(tmp_path) -> Path:
    return shutil.copytree(TINY_MODEL, tmp_path / "model")


def change(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("model_type", ["mine", "qwen2"])
def test_code_that_comes_with_a_model_is_not_run(model_type, model, mark):
    (model / "code.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    classes = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M", "AutoTokenizer": ["code.T", None]}
    change(model / "config.json", model_type=model_type, auto_map=classes)
    change(model / "tokenizer_config.json", auto_map=classes, tokenizer_class="T")
    if model_type == "qwen2":  # which transformers knows: its own class is taken
        assert type(load_policy(str(model)).model).__module__ == "transformers.models.qwen2.modeling_qwen2"
    else:
        with pytest.raises(SettingError, match="needs Python code that comes with it, and such code is not run here"):
            load_policy(str(model))


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "model.safetensors"])
@pytest.mark.parametrize("old_format", [True, False])
def test_a_pickle_of_weights_is_not_opened(file, old_format, model, mark):
    (model / "model.safetensors").unlink()
    torch.save({"weights": Bomb(mark)}, model / file, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(SettingError, match="SafetensorError" if file == "model.safetensors" else "only a pickle of weights"):
        load_policy(str(model))


def test_a_pickle_beside_the_weights_is_not_opened(model, mark):
    for file in ("pytorch_model.bin", "optimizer.pt", "training_args.bin", "adapter_model.bin"):
        (model / file).write_bytes(pickle.dumps(Bomb(mark)))
    weights = load_policy(str(model)).model.state_dict()
    assert all(torch.equal(weights[name], x) for name, x in load_file(TINY_MODEL / "model.safetensors").items())


@pytest.mark.parametrize("name", ["x.pkl", "x.pickle", "x.pt", "x.py"])
def test_a_data_file_of_a_type_that_can_run_code_is_not_opened(name, tmp_path, mark):
    code = f"import os\nos.mkdir({str(mark)!r})\n".encode()
    (tmp_path / name).write_bytes(code if name == "x.py" else pickle.dumps(Bomb(mark)))
    with pytest.raises(SettingError, match="is not a .jsonl, .json, .csv or .parquet file"):
        load_problems(str(tmp_path / name))


def test_a_chat_template_cannot_leave_its_sandbox(model, mark):
    (model / "chat_template.jinja").write_text("{{ ''.__class__.__base__.__subclasses__() }}")
    tokenizer = load_policy(str(model)).tokenizer
    with pytest.raises(SettingError, match="chat template fails"):
        prompt_ids(tokenizer, "1+1", "")


ENDLESS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "{{ 9 ** (9 ** 9) }}",  # inside one operation
    "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}gigabytes{% endfor %}{% endfor %}",
    "{{ 'x' * 10 ** 12 }}",
    "{{ 'x' * 2 ** 21 }}{{ messages[-1]['content'] }}",
    "{{ '%0999999999d' | format(1) }}",
    "{% set n = namespace(x='xx') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no limits on such a system")
@pytest.mark.parametrize("template", ENDLESS)
def test_a_chat_template_has_little_time_and_memory(template, model, mark, monkeypatch):
    monkeypatch.setattr(chat, "SECONDS", 0.2)
    monkeypatch.setattr(chat, "ROOM", 2**27)
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    tokenizer.chat_template = template
    with pytest.raises(SettingError, match=r"chat template fails \(.*(more than|recursion|characters of).*\). Choose --template plain"):
        prompt_ids(tokenizer, "1+1", "")


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"])
def test_attention_and_experts_that_a_model_names_are_not_fetched(name, model, mark, monkeypatch):
    """A name from the Hub there is a program. The memory estimate builds the model too."""
    monkeypatch.setattr("transformers.modeling_utils.is_kernel", lambda name: str(name).startswith("evil/") and pytest.fail("fetched"))
    change(model / "config.json", **{name: "evil/kernel"})
    policy = load_policy(str(model), engine="plain")
    config = policy.model.config
    assert config._attn_implementation == "sdpa" and config._experts_implementation in (None, "eager", "grouped_mm")
    rlvr.run.set_up.say_memory(TrainConfig(model=str(model), device="cpu"))


# ---------------------------------------------------------------------------------------------------------------------------------------
# Data


def test_a_problem_is_no_template(mark):
    problem = "{{ 7 * 7 }}{% for i in range(3) %}{{ messages }}{% endfor %}"
    tokenizer = load_policy("tiny").tokenizer
    assert problem in tokenizer.decode(prompt_ids(tokenizer, problem, ""))


HOSTILE_NAMES = ["$(mkdir mark).jsonl", "; mkdir mark;.jsonl", "`mkdir mark`.csv", "|mkdir mark.json", "<script>alert(1)<.jsonl",
                 "{x}%s%n.jsonl", "-rf.jsonl"]  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="such names are not allowed there")
@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_name_is_only_a_name(name, tmp_path, mark, monkeypatch):
    row = {"problem": "$(mkdir mark) <img src=x onerror=alert(1)> ../../mark", "answer": "../mark"}
    csv = "problem,answer\n{problem},{answer}\n".format(**row)
    Path(name).write_text({".csv": csv, ".json": json.dumps([row]), ".jsonl": json.dumps(row)}[Path(name).suffix])
    monkeypatch.setattr(sys, "argv", ["eval.py", "tiny", f"--data=./{name}", "--completions", "1", "--max-new-tokens", "2"])
    runpy.run_path(str(ROOT / "eval.py"), run_name="__main__")
    written = Path("runs", f"eval-{name.split('.')[0]}.json")
    assert json.loads(written.read_text())["results"][f"./{name}"]["tiny"]["problems"][0]["problem"] == row["problem"]
    assert sorted(Path().rglob("*")) == sorted([Path(name), Path("runs"), written])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here"]


# ---------------------------------------------------------------------------------------------------------------------------------------
# What a model writes

EVIL = [
    "\x1b[2J\x1b]0;title\x07 \\boxed{1}",  # clears a terminal and renames its window
    "<script>alert(1)</script> \\boxed{<img src=x onerror=alert(1)>}",
    "../../mark \\boxed{../../mark}",
    "line\r\nline\u2028line\x00 \\boxed{\x00}",
    '"}\n{"step": 1} \\boxed{"}',
    "\\boxed{__import__('os').mkdir('mark')}",
    "{0.__class__} %s %n ${HOME} $(mkdir mark)",
    "\u202egnirts desrever \ufeff \\boxed{\u202e1}",
]


def test_a_completion_is_written_as_json_and_shown_without_control_characters(tmp_path, mark, monkeypatch, capfd):
    sample = rlvr.policy.sample

    def write_evil(*args, **settings):
        rollouts = sample(*args, **settings)
        rollouts.text = [evil[i % len(evil)] for i in range(len(rollouts))]
        return rollouts

    evil = ["\n".join(EVIL[i:] + EVIL[:i]) for i in range(len(EVIL))]  # each ends with another one

    monkeypatch.setattr(rlvr.policy, "sample", write_evil)
    monkeypatch.setattr(rlvr.evaluate, "sample", write_evil)
    Path("x.jsonl").write_text(json.dumps({"problem": "1+1", "answer": "2"}) + "\n")
    command = "train.py --data x.jsonl --eval-data x.jsonl --steps 1 --prompts-per-step 2 --completions-per-prompt 4 --max-new-tokens 3 "
    command += "--overlong-buffer 0 --final-eval-problems 1 --show-every 1 --log-completions 99 --name evil"
    monkeypatch.setattr(sys, "argv", command.split())
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    monkeypatch.setattr(sys, "argv", "eval.py runs/evil --data x.jsonl --max-new-tokens 3 --out eval.json".split())
    runpy.run_path(str(ROOT / "eval.py"), run_name="__main__")
    lines = Path("runs/evil/rollouts.jsonl").read_bytes().decode("ascii").splitlines()
    assert {json.loads(line)["completion"] for line in lines} == set(evil)
    printed = "".join(capfd.readouterr())
    assert "alert(1)" in printed, "no sample was shown"
    for text in ("\x1b[2J", "\x1b]0", "\x07", "\x00", "\u202e", "\ufeff"):
        assert text not in printed
    assert {path.name for path in Path().iterdir()} == {"runs", "x.jsonl", "eval.json"}
    assert {path.name for path in Path("runs").iterdir()} == {"evil"} and {path.name for path in tmp_path.iterdir()} == {"here"}


CODE = ["__import__('os').mkdir('{}')", 'open("{}","w")', "exec(\"import os; os.mkdir('{}')\")", "(lambda: __import__('os').mkdir('{}'))()",
        "eval(compile(\"open('{}','w')\",'','exec'))", "().__class__.__base__.__subclasses__()", "x.__class__.__init__.__globals__",
        "\\immediate\\write18{{mkdir {}}}", "\\input{{/etc/passwd}}"]  # fmt: skip
SETTINGS = [r"%s", r"\text{%s}", r"\{1,\text{%s}\}", r"(\text{%s},2)", r"\mathrm{%s}", r"\operatorname{%s}", r"\sin(%s)", r"\frac{%s}{2}",
            r"x=\text{%s}", r"\sqrt{%s}", r"\begin{pmatrix} %s \\ 2 \end{pmatrix}", r"x_{%s}", r"%s\%%", r"\sqrt{2}+%s"]  # fmt: skip


def hostile_answers(mark: Path) -> list[str]:
    return [setting % code.format(mark) for code in CODE for setting in SETTINGS]


@pytest.mark.slow
def test_python_in_an_answer_is_not_run(mark):
    """Through the real child process. Each answer is given to math-verify too, which most of them do not reach otherwise."""
    asked, golds = verifier.stats["slow"], [r"\sqrt{2}", r"\{x, \text{blue}\}"]
    for i, answer in enumerate(hostile_answers(mark)):
        assert verify(rf"\boxed{{{answer}}}", golds[i % 2]) is False
        assert process._ask(answer, golds[i % 2]) is not True
    assert verifier.stats["slow"] - asked > 80


@pytest.mark.slow
def test_only_numbers_reach_the_eval_inside_sympy(mark, monkeypatch):
    """sympy turns texts into numbers with eval. Of an answer it gets only what the grammar of LaTeX calls a number."""
    import math_verify.parser
    import sympy.parsing.sympy_parser as parser
    import sympy.physics.units  # noqa: F401  which math-verify imports late, and which makes its names with parse_expr

    equal_by_math_verify(r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}")  # imports all there is
    texts, parse_expr = set(), parser.parse_expr
    monkeypatch.setattr(parser, "parse_expr", lambda text, *args, **settings: texts.add(text) or parse_expr(text, *args, **settings))
    monkeypatch.setattr(math_verify.parser, "extract_expr", lambda *args: pytest.fail("taken for an expression of Python, not of LaTeX"))
    for answer in [*hostile_answers(mark), "1e5+x", r"50\%+x"]:
        try:
            equal_by_math_verify(answer, r"\{x, \sqrt{2}\}")
        except Exception:  # as in the child: it is wrong
            pass
    assert {"1", "2", "50"} <= texts
    assert not [text for text in texts if set(text) - set("0123456789.eE+-")]
