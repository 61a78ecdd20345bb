"""Bad input: whatever is wrong with a setting or a file, it costs one line that says what and what to do, and nothing else happens.

One table of mistakes: a command line, the files it is about, and a piece of the message. The rows run in this process; some of each kind
also in a process of their own (`-m slow`).
"""

import json
import os
import re
import runpy
import shlex
import shutil
import stat
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_config import ROOT, run_script

import rlvr.evaluate
import rlvr.policy
from rlvr.config import TINY_MODEL, SettingError, TrainConfig
from rlvr.data import load_problems
from rlvr.loaders.rows import MAX_PROBLEM_CHARS
from rlvr.verifier import MAX_CHARS

GOOD = '{"problem": "1+1", "answer": "2"}\n'
MEGABYTES = 10**7
LINUX = sys.platform == "linux"


def line(**row) -> str:
    """One line of JSON."""
    return json.dumps(row) + "\n"


def parquet(*rows: dict) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)

    return write


def link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def folder(**files) -> Callable[[Path], None]:
    """A folder with these files; __ in a name stands for the dot."""

    def write(path: Path) -> None:
        path.mkdir(parents=True)
        for name, content in files.items():
            create(path / name.replace("__", "."), content)

    return write


def model(**files) -> Callable[[Path], None]:
    """The built-in model with some files replaced (text, bytes), taken away (None), or changed as JSON (a dict; None takes a key away)."""

    def write(path: Path) -> None:
        shutil.copytree(TINY_MODEL, path)
        for name, content in files.items():
            file = path / name.replace("__", ".")
            if isinstance(content, dict):
                changed = (json.loads(file.read_text()) if file.is_file() else {}) | content
                content = json.dumps({key: value for key, value in changed.items() if value is not None})
            file.unlink(missing_ok=True)
            if content is not None:
                create(file, content)

    return write


def saved(kind: str, config: str, **shape) -> Callable[[Path], None]:
    """A random model of another kind, with the built-in tokenizer."""

    def write(path: Path) -> None:
        import transformers

        shutil.copytree(TINY_MODEL, path)
        getattr(transformers, kind)(getattr(transformers, config)(vocab_size=768, **shape)).save_pretrained(path)

    return write


def weights(change: Callable[[dict], None]) -> Callable[[Path], None]:
    """The weights of the built-in model after a change."""

    def write(path: Path) -> None:
        tensors = load_file(TINY_MODEL / "model.safetensors")
        change(tensors)
        save_file(tensors, path, {"format": "pt"})

    return write


def create(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
        content(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


# ---------------------------------------------------------------------------------------------------------------------------------------
# The table. A row: command line; the files it needs, by name; a piece of the message.

COMMAND_LINE = [
    ("train.py --completions-per-prompt 1", "--completions-per-prompt is 1"),
    ("train.py --mehtod pos", "Did you mean --method?"),
    ("train.py --step 1", "Did you mean --steps?"),
    ("train.py --step=1", "Did you mean --steps?"),
    ("train.py --eval-problem 1", "Did you mean --eval-problems?"),
    ("train.py --method", "--method"),
    ("train.py pos", "pos"),
    ("train.py --steps ten", "'ten'"),
    ("train.py --cuda-graphs --device cpu", "--cuda-graphs needs a CUDA GPU"),
    ("train.py --engine plain --cuda-graphs", "--cuda-graphs has no effect with --engine plain"),
    ("eval.py tiny --engine plain --cuda-graphs", "--cuda-graphs has no effect with --engine plain"),
    ("train.py --engine generate", "'generate'"),
    ("train.py --steps 1.5", "'1.5'"),
    ("train.py --steps ''", "--steps"),
    ("train.py --lr small", "'small'"),
    ("train.py --dtype float16", "'float16'"),
    ("train.py --device tpu", "'tpu'"),
    ("train.py --lr-schedule cosine", "'cosine'"),
    ("train.py --filter-groups yes", "yes"),
    ("train.py --shape-start soon", "soon"),
    ("train.py --steps 0", "--steps is 0"),
    ("train.py --lr nan", "--lr is nan"),
    ("train.py --seed -1", "--seed is -1"),
    (f"train.py --seed {'9' * 400}", "--seed is out of all bounds"),
    ("train.py --threads 100000", "--threads is 100000"),
    ("train.py --temperature 1e-40", "--temperature is 1e-40. Choose 0.01 or more."),
    ("train.py --prompts-per-step 1000000000", "too many for any memory"),
    ("train.py --final-eval-problems 1000000000", "too many for any memory"),
    ("train.py --max-new-tokens 1000000", "too many for any memory"),
    ("train.py --data good.jsonl --max-new-tokens 600", "the model has positions for 512"),
    ("train.py --data good.jsonl --max-prompt-tokens 1", "All 1 prompts are longer than 1 tokens"),
    ("train.py --overlong-buffer 200", "--overlong-buffer 200 is longer than --max-new-tokens 120"),
    ("train.py --shape-start 9 --shape-stop 8", "is empty"),
    ("train.py --eval-data tiny --final-eval-problems 0", "--final-eval-problems 0 evaluates none"),
    ("train.py --device mps", "no mps device"),
    ("train.py --method nope", "There is no method 'nope'"),
    ("train.py --method grpo+pos", "There is no method 'grpo+pos'"),
    ("train.py --method ''", "There is no method ''"),
    ("train.py --preset big", "There is no preset 'big'"),
    (["train.py", "--preset", "p" * 5000], "There is no preset 'ppp"),
    (["train.py", "--resume", "r" * 5000], "Name a run folder, such as"),
    (["train.py", "--resume", "a\x1b[2Jb"], "a\\x1b[2Jb is not a run folder"),
    ("train.py --data ''", "--data is empty"),
    ("train.py --data math500", "evaluation set"),
    ("train.py --data a/b/c --model ./nowhere", "There is no model folder ./nowhere"),
    ("train.py --model a/b/c", "There is no model folder a/b/c"),
    ("train.py --resume nowhere", "is not a run folder"),
    ("train.py --model ''", "--model is empty"),
    (["train.py", "--instruction", "a\udcff"], "--instruction 'a\\udcff' has characters that cannot be shown"),
    (["train.py", "--data", "a\nb.jsonl"], "--data 'a\\nb.jsonl' has characters"),
    ("eval.py", "No model was named"),
    ("eval.py tiny --top-k 5", "--top-k"),
    ("eval.py tiny --top-p 0", "--top-p is 0.0"),
    ("eval.py tiny --temperature cold", "'cold'"),
    ("eval.py tiny --completions 1000000000", "too many for any memory"),
    ("eval.py tiny --problems 100000 --completions 100000 --max-new-tokens 100", "too many for any memory"),
    ("eval.py tiny --max-new-tokens 500", "the model has positions for 512"),
    ("eval.py ''", "The model is empty"),
    (["eval.py", "a\0b"], "The model 'a\\x00b' has characters"),
    (["eval.py", "m" * 5000], "is too long for a file name"),
]

DATA = [
    ("missing.jsonl", None, "There is no file missing.jsonl"),
    ("x.jsonl", folder(), "is a folder"),
    ("x.parquet", folder(a=""), "is a folder"),
    ("x.jsonl", os.mkfifo, "a pipe"),  # opening it would wait for ever
    ("x.csv", link("/dev/zero"), "a device"),  # and this has no end
    *([("x.jsonl", link("/proc/self/mem"), "cannot be read (Input/output error)")] if LINUX else []),  # for root too
    ("x.jsonl", link("x.jsonl"), "There is no file"),
    ("x.jsonl", link("nowhere"), "There is no file"),
    ("problems", GOOD, "is not a .jsonl"),
    ("x.txt", GOOD, "is not a .jsonl"),
    ("x.jsonl", "", "holds no problem"),
    ("x.jsonl", " \n\n\t\n", "holds no problem"),
    ("x.json", "[]", "holds no problem"),
    ("x.csv", "", "holds no problem"),
    ("x.csv", "\n \n", "holds no problem"),
    ("x.csv", "problem,answer\n", "holds no problem"),
    ("x.json", "", "holds no problem"),
    ("x.jsonl", line(problem="caf\u00e9", answer=1).encode("latin-1").replace(b"\\u00e9", b"\xe9"), "not UTF-8"),
    ("x.csv", "problem,answer\ncaf\u00e9,1\n".encode("latin-1"), "not UTF-8"),
    ("x.jsonl", GOOD.encode("utf-16"), "not UTF-8"),
    ("x.json", f"[{GOOD}]".encode("utf-16-le"), "not UTF-8"),  # without a mark at the start it is valid UTF-8, full of NULs
    ("x.csv", "problem,answer\np,1\n".encode("utf-32-be"), "not UTF-8"),
    ("x.jsonl", bytes(range(256)) * 40, "not UTF-8"),
    ("x.csv", "problem,answer\np\0q,1\n", "not UTF-8"),
    ("x.jsonl", GOOD + '{"problem": \n', "line 2 is not valid JSON"),
    ("x.jsonl", GOOD.strip() + GOOD, "line 1 is not valid JSON"),
    ("x.jsonl", "{" * MEGABYTES, "line 1 is not valid JSON"),
    ("x.jsonl", "x" * MEGABYTES, "line 1 is not valid JSON"),
    ("x.jsonl", "[" * MEGABYTES, "line 1 is not valid JSON"),
    ("x.json", "[" * 900 + "]" * 900, "other than objects"),
    ("x.jsonl", line(problem="p" * MEGABYTES, answer=1), "Row 1 of x.jsonl has 10000000 characters"),
    ("x.jsonl", line(problem="p", answer="9" * MEGABYTES), "Row 1 of x.jsonl has 1 characters"),
    ("x.jsonl", '{"problem": "p", "answer": ' + "9" * MEGABYTES + "}", "line 1 is not valid JSON"),
    ("x.jsonl", line(**{"k" * MEGABYTES: 1}), "has the columns 'kkkk"),
    ("x.jsonl", line(**{f"column {i}": 1 for i in range(100_000)}), "has the columns 'column 0', 'column 1'"),
    ("x.csv", "x" * MEGABYTES, "not valid CSV"),
    ("x.csv", '"' + "x\n" * (MEGABYTES // 2), "not valid CSV"),
    ("x.csv", f"problem,answer\n{'p' * 200_000},1\n", "line 2 is not valid CSV (field larger than field limit"),
    ("x.jsonl", line(problem="p", answer="7" * (MAX_CHARS + 1)), "8001 in the answer"),
    ("x.json", line(data=[{"frage": "p", "antwort": 1}]), "has the columns 'frage', 'antwort'"),
    ("x.json", "12", "other than objects"),
    ("x.json", '["p", "q"]', "other than objects"),
    ("x.json", "null", "other than objects"),
    ("x.jsonl", '"p"\n', "other than objects"),
    ("x.jsonl", GOOD + "[1, 2]\n", "other than objects"),
    ("x.jsonl", "{}\n", "has the columns . Say"),
    ("x.jsonl", '{"problem": "p", "problem": "q", "answer": 1}\n', "a key appears twice"),
    ("x.jsonl", line(frage="p", antwort=1), "has the columns 'frage', 'antwort'"),
    ("x.jsonl", line(**{"a\nb\x1b[2J": 1}), "has the columns 'a\\nb\\x1b[2J'"),
    ("x.csv", "frage;antwort\np;1\n", "has the columns 'frage', 'antwort'"),
    ("x.csv", "problem,answer,answer\np,1,2\n", "two columns have one name"),
    ("x.csv", "problem,answer\nWhat is 1,000 + 1?,1001\n", "line 2 is not valid CSV (more cells"),
    ("x.csv", 'problem,answer\n"What is 1+1?,2\nq,3\n', "not valid CSV"),
    ("x.csv", 'problem,answer\n"p" and "q",2\n', "line 2 is not valid CSV"),
    ("x.csv", "problem,answer\np,1\nq\n", "Row 2 of x.csv lacks"),
    ("x.csv", "problem,answer\np,\n", "Row 1 of x.csv lacks"),
    ("x.jsonl", GOOD + line(problem="p", answer=None), "Row 2 of x.jsonl lacks"),
    ("x.jsonl", GOOD + '{"problem": "p", "answer": NaN}', "Row 2 of x.jsonl lacks"),
    ("x.jsonl", GOOD + '{"problem": "p", "answer": -Infinity}', "The answer in row 2 of x.jsonl is -inf"),
    ("x.jsonl", GOOD + '{"problem": "p", "answer": 1e999}', "The answer in row 2 of x.jsonl is inf"),
    ("x.jsonl", GOOD + line(problem="p", answer=""), "Row 2 of x.jsonl lacks"),
    ("x.jsonl", GOOD + line(problem="p", answer="\u00a0\n"), "Row 2 of x.jsonl lacks"),
    ("x.jsonl", GOOD + line(problem="p"), "Row 2 of x.jsonl lacks"),
    ("x.jsonl", GOOD + line(problem="p", answer=[[2]]), "The answer in row 2 of x.jsonl is a list"),
    ("x.jsonl", GOOD + line(problem="p", answer={"value": 2}), "The answer in row 2 of x.jsonl is a dict"),
    ("x.jsonl", GOOD + line(problem="p", answer=True), "The answer in row 2 of x.jsonl is True"),
    ("x.jsonl", line(prompt=[{"text": "1+1"}], answer="2"), "The prompt in row 1 of x.jsonl is a list"),
    ("x.jsonl", line(problem=" \t ", answer=2), "Row 1 of x.jsonl lacks"),
    ("x.jsonl", line(problem=None, answer=2), "Row 1 of x.jsonl lacks"),
    ("x.jsonl", line(problem="half a \ud83d", answer=2), "The problem in row 1 of x.jsonl has a character that is no text"),
    ("x.jsonl", line(problem="p", answer="\udc00"), "The answer in row 1 of x.jsonl has a character that is no text"),
    ("x.jsonl", line(problem="p\0", answer=2), "The problem in row 1 of x.jsonl has a character that is no text"),
    ("x.jsonl", GOOD + line(problem="p", answer=2) + line(problem=" 1+1", answer=3), "Rows 1 and 3 of x.jsonl give one problem two"),
    ("x.csv", "problem,answer\np,1\np,1\np,2\n", "Rows 1 and 3 of x.csv give one problem two answers"),
    ("x.parquet", "", "cannot be read as parquet"),
    ("x.parquet", GOOD * 1000, "cannot be read as parquet"),
    ("x.parquet", b"PAR1" + b"\0" * 100 + b"PAR1", "cannot be read as parquet"),
    ("x.parquet", parquet({"problem": "p", "answer": [[2]]}), "The answer in row 1 of x.parquet is a list"),
    ("x.parquet", parquet({"problem": b"p", "answer": "2"}), "The problem in row 1 of x.parquet is a bytes"),
    ("x.parquet", parquet({"problem": "p", "answer": 2}, {"problem": "q", "answer": None}), "Row 2 of x.parquet lacks"),
]  # fmt: skip
FLAGS = ["train.py --strict --data {}", "train.py --strict --data good.jsonl --eval-data {}", "eval.py tiny --strict --data {}"]

CODE = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
MODELS = [
    (folder(), "no config.json"),
    (folder(config__json='{"model_type": "qwen2"}'), "has no tokenizer"),
    (link("m"), "There is no model folder"),
    ("a file", "is a file. Name the folder that holds it"),
    (model(config__json="model_type: qwen2"), "config.json cannot be read as a JSON object"),
    (model(config__json=""), "config.json cannot be read as a JSON object"),
    (model(config__json="[]"), "config.json cannot be read as a JSON object"),
    (model(config__json="[" * 100_000), "config.json cannot be read as a JSON object"),
    (model(config__json='{"model_type": "caf\u00e9"}'.encode("latin-1")), "config.json cannot be read as a JSON object"),
    (model(config__json="{}"), "`model_type`"),
    (model(config__json={"model_type": "no\x1b[2J"}), "`no\\x1b[2J`"),
    (model(config__json={"model_type": ["qwen2"]}), "cannot be loaded"),
    (model(config__json={"hidden_size": "wide"}), "hidden_size"),
    (model(config__json={"num_hidden_layers": 4}), "num_hidden_layers"),
    (model(config__json={"hidden_size": 192}), "other shapes than its config.json says"),
    (model(config__json={"vocab_size": 10**9}), "other shapes than its config.json says"),
    (model(config__json={"tie_word_embeddings": False}), "its weights lack lm_head.weight"),
    (model(config__json={"model_type": "t5"}), "T5Config"),
    (model(config__json={"model_type": "bert"}), "its weights lack bert."),
    (model(config__json={"model_type": "vit"}), "ViTConfig"),
    (saved("XLNetLMHeadModel", "XLNetConfig", d_model=32, n_layer=1, n_head=2, d_inner=32), "lets a token see later ones"),
    (saved("Qwen2ForSequenceClassification", "Qwen2Config", hidden_size=32, intermediate_size=32, num_hidden_layers=1,
           num_attention_heads=2, num_key_value_heads=2, pad_token_id=1), "its weights lack lm_head.weight"),
    (model(config__json={"model_type": "mine", "auto_map": CODE}, code__py="import os; os.mkdir('ran')\n"), "such code is not run here"),
    (model(model__safetensors=None), "has no weights"),
    (model(model__safetensors=None, pytorch_model__bin="junk"), "only a pickle of weights (pytorch_model.bin)"),
    (model(model__safetensors=""), "cannot be loaded"),
    (model(model__safetensors="weights" * 100), "cannot be loaded"),
    (model(model__safetensors=(TINY_MODEL / "model.safetensors").read_bytes()[:-1000]), "cannot be loaded"),
    (model(model__safetensors=weights(lambda w: w.pop("model.norm.weight"))), "its weights lack model.norm.weight"),
    (model(model__safetensors=weights(lambda w: w["model.norm.weight"].mul_(torch.nan))), "NaN or infinity in model.norm.weight"),
    (model(model__safetensors=weights(lambda w: w["model.norm.weight"].div_(0))), "NaN or infinity in model.norm.weight"),
    (model(model__safetensors=None, model__safetensors__index__json="[]"), "index.json cannot be read"),
    (model(tokenizer__json=None, tokenizer_config__json=None), "has no tokenizer"),
    (model(tokenizer__json=None), "its tokenizer has no vocabulary"),
    (model(tokenizer__json=None, tokenizer_config__json=None, tokenizer__model="pieces"), "is there as tokenizer.model alone"),
    (model(tokenizer__json="{"), "tokenizer.json cannot be read as a JSON object"),
    (model(tokenizer__json="{}"), "cannot be loaded"),
    (model(tokenizer_config__json="[]"), "tokenizer_config.json cannot be read as a JSON object"),
    (model(tokenizer__json=lambda path: more_tokens(path)), "but the model knows only 768 tokens"),
    (model(tokenizer_config__json={"eos_token": None}, generation_config__json={"eos_token_id": 10**6}), "no token that ends a text"),
    (model(generation_config__json="eos"), "generation_config.json cannot be read as a JSON object"),
    (model(chat_template__jinja="{% for %}"), "chat template fails"),
    (model(chat_template__jinja="{{ raise_exception('only with a system prompt') }}"), "(only with a system prompt)"),
    (model(chat_template__jinja="{{ '' }}"), "makes nothing of the problems"),
    (folder(config__json='{"preset": "tiny", "method": "pos"}', metrics__csv="step\n"), "has no model yet"),
]  # fmt: skip
MODEL_FLAGS = ["train.py --preset tiny --data good.jsonl --model {}", "eval.py {} --data good.jsonl", "eval.py tiny {} --data good.jsonl"]

FOLDERS_AND_FILES = [
    ("train.py --name mine", {"runs/mine/metrics.csv": "step\n"}, "is not empty"),
    ("train.py --name mine", {"runs/mine": "a file"}, "Not a directory"),
    ("train.py --name loop", {"runs/loop": link("loop")}, "Nothing can be written to the run folder, runs/loop"),
    ("train.py --name dead", {"runs/dead": link("nowhere")}, "Nothing can be written to the run folder, runs/dead"),
    ("train.py --name a/b", {}, "not a plain folder name"),
    ("train.py --name ..", {}, "not a plain folder name"),
    (["train.py", "--name", "a\0b"], {}, "--name 'a\\x00b' has characters"),
    (["train.py", "--name", "a\nb"], {}, "--name 'a\\nb' has characters"),
    (["train.py", "--name", "n" * 300], {}, "is too long for a file name"),
    (["train.py", "--out", "o/" * 2000], {}, "is too long for a file name"),
    ("train.py --out a_file", {"a_file": "not a folder"}, "a_file"),
    ("train.py --out a_file/runs", {"a_file": "not a folder"}, "a_file"),
    ("train.py --out loop", {"loop": link("loop")}, "Nothing can be written"),
    ("train.py", {"runs": "a file"}, "runs"),
    ("eval.py tiny --data x.jsonl", {"x.jsonl": GOOD + line(problem="1" * 600, answer=1)}, "but the model has positions for 512"),
    # Without --preset, train.py looks into config.json for the preset of a run
    ("train.py --model ./m --data good.jsonl", {"m": model(config__json="[" * 100_000), "good.jsonl": GOOD}, "cannot be read as a JSON"),
    ("train.py --model ./m --data good.jsonl", {"m": model(config__json={"preset": [1]}), "good.jsonl": GOOD}, "has no model yet"),
    ("train.py --resume run", {"run": folder(config__json="{")}, "run/config.json is damaged"),
    ("train.py --resume run", {"run": folder(config__json=json.dumps(asdict(TrainConfig(lr_schedule="cosine"))))}, "has 'cosine' for lr_"),
    ("train.py --resume run", {"run": folder(config__json='{"model_type": "qwen2"}')}, "does not belong to a run"),
    ("eval.py tiny --out out", {"out/note": "mine"}, "There is a file or folder out already"),
    ("eval.py tiny --out old.json", {"old.json": "{}"}, "There is a file or folder old.json already"),
    ("eval.py tiny --out dead.json", {"dead.json": link("nowhere")}, "There is a file or folder dead.json already"),
    ("eval.py tiny --out a_file/eval.json", {"a_file": "not a folder"}, "Nothing can be written to the folder of --out, a_file"),
    ("eval.py tiny", {"runs": "a file"}, "Nothing can be written"),
    (["eval.py", "tiny", "--out", "o" * 250 + ".json"], {}, "is too long for a file name"),
    *((f"{program} --out /{place}/x", {}, "Nothing can be written")
      for place in ("proc", "sys") for program in ("train.py", "eval.py tiny") if LINUX),
]  # fmt: skip

MISTAKES = [
    *((command, {"good.jsonl": GOOD}, fragment) for command, fragment in COMMAND_LINE),
    *((FLAGS[i % 3].format(name), {name: content, "good.jsonl": GOOD}, fragment) for i, (name, content, fragment) in enumerate(DATA)),
    *((MODEL_FLAGS[i % 3].format("./m"), {"m": content, "good.jsonl": GOOD}, fragment) for i, (content, fragment) in enumerate(MODELS)),
    *FOLDERS_AND_FILES,
]


def more_tokens(path: Path) -> None:
    """A tokenizer with one token more than the model: the word "What"."""
    content = json.loads((TINY_MODEL / "tokenizer.json").read_text(encoding="utf-8"))
    content["added_tokens"].append(content["added_tokens"][0] | {"id": 768, "content": "1+1", "special": False})
    path.write_text(json.dumps(content), encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------------------------
# Each row


def listing(place: Path) -> dict[Path, object]:
    """Everything in a folder: the bytes of files, where links point, what is no file."""
    found = {}
    for path in place.rglob("*"):
        mode = path.lstat().st_mode
        found[path] = os.readlink(path) if stat.S_ISLNK(mode) else path.read_bytes() if stat.S_ISREG(mode) else mode
    return found


def check_error(code, out: str, err: str, fragment: str) -> None:
    assert code == 2, out + err
    assert re.fullmatch(r"error: [^\n]+[.)] [A-Z][^\n]+\n", err), err
    assert fragment in err and len(err) < 350, err
    assert err[:-1].isprintable() and "Traceback" not in out + err


def prepare(command, files: dict, place: Path) -> list[str]:
    for name, content in files.items():
        if content is not None:
            create(place / name, content)
    return command if isinstance(command, list) else shlex.split(command)


IDS = [f"{' '.join(command) if isinstance(command, list) else command} -- {fragment}"[:120] for command, _, fragment in MISTAKES]


@pytest.mark.parametrize("command, files, fragment", MISTAKES, ids=IDS)
def test_a_mistake_is_one_line_and_nothing_is_written(command, files, fragment, tmp_path, monkeypatch, capfd):
    for module in (rlvr.policy, rlvr.evaluate):
        monkeypatch.setattr(module, "sample", lambda *args, **settings: pytest.fail("found too late: the model is at work already"))
    argv = prepare(command, files, tmp_path)
    before = listing(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / argv[0]), run_name="__main__")
    check_error(end.value.code, *capfd.readouterr(), fragment)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("command", ["train.py --model nobody/nothing", "eval.py tiny nobody/nothing --data gsm8k"])
def test_a_model_that_cannot_be_reached_is_named_before_problems_are_loaded(command, monkeypatch, tmp_path, capfd):
    def unreachable(*args, **settings):
        raise OSError("We couldn't connect to 'https://huggingface.co'")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", unreachable)
    for module in ("rlvr.run.set_up", "rlvr.run.compare"):
        for name in ("load_problems", "load_held_out"):
            monkeypatch.setattr(f"{module}.{name}", lambda *args, **settings: pytest.fail("problems first"), raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
    check_error(end.value.code, *capfd.readouterr(), "The model 'nobody/nothing' cannot be loaded (We couldn't connect")


LOUD = ("other shapes than", "its weights lack model.norm", "T5Config")  # here transformers has pages to say
OF_EACH_KIND = MISTAKES[::24] + [mistake for mistake in MISTAKES if mistake[2].startswith(LOUD)] + [
    ("train.py --data nobody/nothing", {}, "The data set 'nobody/nothing' (train split) cannot be loaded"),
    ("eval.py nobody/nothing", {}, "The model 'nobody/nothing' cannot be loaded"),
]


@pytest.mark.slow
@pytest.mark.parametrize("command, files, fragment", OF_EACH_KIND, ids=lambda value: value if isinstance(value, str) else "")
def test_a_mistake_in_a_process_of_its_own(command, files, fragment, tmp_path, request):
    if "nobody" not in command:  # two of them start from nothing
        request.getfixturevalue("forked")
    argv = prepare(command, files, tmp_path)
    before = listing(tmp_path)
    done = run_script(str(ROOT / argv[0]), *argv[1:], cwd=tmp_path)
    check_error(done.returncode, done.stdout, done.stderr, fragment)
    assert listing(tmp_path) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not stop root")
def test_what_permissions_forbid(tmp_path):
    for name in ("x.jsonl", "x.csv", "x.parquet"):
        create(tmp_path / name, GOOD)
        (tmp_path / name).chmod(0)
        with pytest.raises(SettingError, match="cannot be read.*Permission denied"):
            load_problems(str(tmp_path / name))


# ---------------------------------------------------------------------------------------------------------------------------------------
# What is odd, but right


LONG = "p" * MAX_PROBLEM_CHARS


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("one.jsonl", GOOD.strip(), [("1+1", "2")]),
        ("one.json", f"[{GOOD}]", [("1+1", "2")]),
        ("object.json", GOOD, [("1+1", "2")]),
        ("one.csv", "problem,answer\n1+1,2", [("1+1", "2")]),
        ("one.parquet", parquet({"problem": "1+1", "answer": 2}), [("1+1", "2")]),
        ("ONE.JSONL", GOOD, [("1+1", "2")]),
        ("a name with spaces; $(touch x).csv", "problem,answer\n1+1,2", [("1+1", "2")]),
        ("numbers.jsonl", "".join(line(problem=str(i), answer=x) for i, x in enumerate((7, -7, 0, 7.0, 0.5, 1e21))),
         [("0", "7"), ("1", "-7"), ("2", "0"), ("3", "7"), ("4", "0.5"), ("5", "1" + "0" * 21)]),
        ("number.jsonl", line(problem=12, answer="twelve"), [("12", "twelve")]),
        ("other_columns.jsonl", line(id=[1, {"a": None}], problem="p", answer="1", tags=True), [("p", "1")]),
        ("empty_cells.csv", "problem,answer,,\np,1,,,,\n", [("p", "1")]),
        ("blank_first.csv", "\n\nproblem,answer\n\np,1\n", [("p", "1")]),
        ("inch.csv", 'problem,answer\nA 5" pipe,1\n', [('A 5" pipe', "1")]),
        ("pair.jsonl", line(problem="\U0001f600 caf\u00e9", answer="\u221a2"), [("\U0001f600 caf\u00e9", "\u221a2")]),
        ("control.jsonl", line(problem="a\x1b[31m\tb\x07", answer="1"), [("a\x1b[31m\tb\x07", "1")]),
        ("longest.jsonl", line(problem=LONG, answer="7" * MAX_CHARS), [(LONG, "7" * MAX_CHARS)]),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 40 else "",
)  # fmt: skip
def test_what_is_odd_but_right_is_read(name, content, expected, tmp_path):
    create(tmp_path / name, content)
    assert [(p.problem, p.answer) for p in load_problems(str(tmp_path / name))] == expected


def test_a_row_that_comes_again_is_used_once_and_the_run_says_so(tmp_path, capsys):
    create(tmp_path / "x.jsonl", GOOD + line(problem="p", answer="1/2") + line(problem="1+1 ", answer=2.0) + line(problem="p", answer=".5"))
    problems = load_problems(str(tmp_path / "x.jsonl"))
    assert [(p.problem, p.answer) for p in problems] == [("1+1", "2"), ("p", "1/2")]
    assert "2 of 4 rows repeat a problem and its answer" in capsys.readouterr().out
    assert load_problems(str(tmp_path / "x.jsonl"), limit=1) == problems[:1]


def test_one_row_is_enough_to_train_and_to_evaluate(tmp_path, monkeypatch):
    create(tmp_path / "x.jsonl", GOOD)
    monkeypatch.chdir(tmp_path)
    small = "--prompts-per-step 2 --completions-per-prompt 2 --max-new-tokens 4 --overlong-buffer 0 --final-eval-problems 1"
    for command in (
        f"train.py --data x.jsonl --eval-data x.jsonl --steps 1 --show-every 0 --name one {small}",
        "eval.py tiny runs/one --data x.jsonl --completions 1 --max-new-tokens 4 --out eval.json",
    ):
        monkeypatch.setattr(sys, "argv", command.split())
        runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
    assert len(json.loads((tmp_path / "eval.json").read_text())["results"]["x.jsonl"]["runs/one"]["problems"]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval.json", "runs", "x.jsonl"]
