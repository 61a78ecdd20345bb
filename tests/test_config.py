"""Settings: what the command line accepts, what it refuses and in which words, and what `--help` shows. More mistakes: test_bad_input.py"""

import ast
import dataclasses
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlvr import advantage
from rlvr import config as config_module
from rlvr.advantage import METHODS, STRENGTHS, Strength, method
from rlvr.config import PRESETS, EvalConfig, SettingError, TrainConfig
from rlvr.run.cli import parse_eval, parse_train
from rlvr.run.folder import run_folder
from rlvr.run.settings import check_train, read_config

ROOT = Path(__file__).parent.parent


def refused(parse, command: str) -> str:
    with pytest.raises(SettingError) as caught:
        parse(command.split())
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------------------------
# What is refused

BAD_TRAIN = [
    ("--completions-per-prompt 1", "is 1, but the advantage compares the completions of one prompt. Choose 2 or more."),
    ("--preset big", "no preset 'big'"),
    ("--preset=big", f"Choose one of: {', '.join(PRESETS)}."),
    ("--lora-rank -1", "--lora-rank is -1. Choose 0 or more."),
    ("--lora-alpha 0", "--lora-alpha is 0.0. Choose a positive number."),
    ("--lora-merge", "--lora-merge has nothing to merge"),
    ("--template Q:", "--template is 'Q:'. Choose auto, chat or plain"),
    *((f"--{name} 0", f"--{name} is 0. Choose 1 or more.") for name in (
        "steps", "prompts-per-step", "mini-batch-prompts", "micro-batch-tokens", "sampling-rounds", "max-new-tokens", "max-prompt-tokens",
        "sampling-rows", "eval-completions")),
    *((f"--{name} -1", f"--{name} is -1. Choose 0 or more.") for name in (
        "warmup-steps", "overlong-buffer", "shape-stop", "eval-every", "final-eval-problems", "show-every", "log-completions", "threads",
        "seed")),
    *((f"--{name} -0.5", f"--{name} is -0.5. Choose 0 or more.") for name in (
        "weight-decay", "overlong-factor", "kl-coef", "entropy-coef", "ppl-alpha", "pos-alpha")),
    *((f"--{name} {value}", f"--{name} is {float(value)}. Choose a positive number.") for name in (
        "lr", "temperature", "max-grad-norm") for value in ("0", "-1", "inf", "nan")),
    *((f"--{name} {value}", f"--{name} is {value}") for name in (
        "weight-decay", "overlong-factor", "kl-coef", "entropy-coef", "ppl-alpha", "pos-alpha") for value in ("nan", "inf")),
    ("--eval-problems 0", "--eval-problems is 0"),
    ("--clip-low 1", "Clip values 1.0 and 0.28"),
    ("--clip-low -0.1", "Choose --clip-low from 0 to below 1"),
    ("--clip-low nan", "Clip values nan"),
    ("--clip-high -0.1", "--clip-high 0 or more"),
    ("--clip-high nan", "and nan"),
    ("--overlong-buffer 121", "--overlong-buffer 121 is longer than --max-new-tokens 120"),
    ("--max-new-tokens 10", "--overlong-buffer 15 is longer than --max-new-tokens 10"),
    ("--shape-start 0", "steps count from 1"),
    ("--shape-start 5000", "--shape-start 5000 comes after the last step, 100."),
    ("--shape-start 8 --steps 7", "--shape-start 8 comes after the last step, 7."),
    ("--shape-start 9 --shape-stop 8", "from --shape-start 9 to --shape-stop 8 is empty"),
    ("--name a/b", "not a plain folder name"),
    ("--name ..", "not a plain folder name"),
    ("--name .", "not a plain folder name"),
]  # fmt: skip


@pytest.mark.parametrize("command, fragment", BAD_TRAIN, ids=[command for command, _ in BAD_TRAIN])
def test_train_refuses(command, fragment):
    message = refused(parse_train, command)
    assert fragment in message
    assert re.fullmatch(r"[^\n]+\. (Leave it out, or c|C)hoose [^\n]+\.", message) and len(message) < 250


BAD_EVAL = [
    ("", "No model was named"),
    ("--data tiny", "python eval.py tiny runs/pos-seed0"),
    *((f"m --{name} 0", f"--{name} is 0. Choose 1 or more.") for name in (
        "completions", "max-prompt-tokens", "sampling-rows")),
    *((f"m --{name} -1", f"--{name} is -1. Choose 0 or more.") for name in (
        "problems", "max-new-tokens", "threads", "seed")),
    ("m --temperature -0.1", "--temperature is -0.1"),
    ("m --temperature nan", "--temperature is nan"),
    ("m --temperature inf", "--temperature is inf"),
    ("m --top-p 0", "--top-p is 0.0. Choose a number above 0 and at most 1."),
    ("m --top-p 1.1", "--top-p is 1.1"),
    ("m --top-p nan", "--top-p is nan"),
]  # fmt: skip


@pytest.mark.parametrize("command, fragment", BAD_EVAL, ids=[command or "no model" for command, _ in BAD_EVAL])
def test_eval_refuses(command, fragment):
    assert fragment in refused(parse_eval, command)


@pytest.mark.parametrize(
    "command",
    [
        "--eval-every 0 --eval-problems 0",
        "--final-eval-problems 0 --eval-problems 0",
        "--overlong-buffer 120",
        "--clip-low 0 --clip-high 0",
        "--shape-start plateau --shape-stop 3",
        "--shape-start 8 --shape-stop 8",
        "--shape-start 7 --steps 7",
        "--warmup-steps 0 --weight-decay 0",
        "--no-filter-groups",
    ],
)
def test_train_accepts_the_edge_of_a_range(command):
    assert isinstance(parse_train(command.split()), TrainConfig)


# ---------------------------------------------------------------------------------------------------------------------------------------
# Presets and values


def test_without_flags_the_built_in_model_is_trained():
    assert parse_train([]) == TrainConfig()
    assert (TrainConfig().model, TrainConfig().data, TrainConfig().method) == ("tiny", "tiny", "pos")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_valid_and_overrides_the_defaults(preset):
    config = dataclasses.asdict(parse_train(["--preset", preset]))
    assert config == dataclasses.asdict(TrainConfig()) | PRESETS[preset] | {"preset": preset}


def test_a_flag_overrides_the_preset():
    config = parse_train("--lr 3e-6 --preset qwen2.5-math-1.5b --steps=7".split())
    assert (config.lr, config.steps, config.prompts_per_step) == (3e-6, 7, 128)
    assert config.model == "Qwen/Qwen2.5-Math-1.5B"


@pytest.mark.parametrize("command", ["--model some/model", "--model=some/model", "--steps 3 --model some/model --seed 1"])
def test_another_model_gets_the_settings_of_a_real_one(command):
    config = parse_train(command.split())
    assert (config.preset, config.model, config.data, config.lr) == ("hf", "some/model", "gsm8k", 1e-6)


def test_the_preset_that_is_named_wins():
    assert parse_train("--model my_model --preset tiny".split()).lr == TrainConfig().lr
    assert parse_train("--model tiny".split()).preset == "tiny"


def test_level_3_has_a_model_and_settings_of_its_own():
    alone = parse_train("--level 3".split())
    assert (alone.preset, alone.model, alone.level) == ("tiny3", "tiny3", 3) and alone == parse_train("--preset tiny3".split())
    assert (alone.lr, alone.lr_schedule, alone.sampling_rounds) == (3e-4, "constant", 1)
    assert (alone.prompts_per_step, alone.mini_batch_prompts, alone.completions_per_prompt, alone.max_new_tokens) == (32, 16, 8, 120)
    assert parse_train("--model tiny --level=3 --lr 1e-4".split()) == dataclasses.replace(alone, lr=1e-4)
    assert parse_train("--model my_model --level 3".split()) == dataclasses.replace(alone, model="my_model")
    assert parse_train("--preset tiny --level 3".split()) == TrainConfig(level=3) == TrainConfig(level=3, model="tiny3")
    assert parse_eval("tiny runs/pos-seed0 --level 3".split()).models == ["tiny3", "runs/pos-seed0"]
    for level in (1, 2):
        assert parse_train(["--level", str(level)]) == TrainConfig(level=level) and TrainConfig(level=level).model == "tiny"
        assert parse_eval(["tiny", "--level", str(level)]).models == ["tiny"]


def test_shape_start_is_a_number_or_the_plateau():
    assert parse_train("--shape-start 20".split()).shape_start == 20
    assert parse_train("--shape-start plateau".split()).shape_start == "plateau"


def test_eval_takes_its_models_by_position():
    config = parse_eval("tiny runs/pos-seed0 --problems 50".split())
    assert (config.models, config.problems, config.temperature, config.top_p) == (["tiny", "runs/pos-seed0"], 50, 0.6, 0.95)


@pytest.mark.parametrize("config", [TrainConfig, EvalConfig])
def test_the_examples_in_the_help_are_valid(config):
    examples = re.findall(r"python (train|eval)\.py (.+)", config.__doc__)
    assert len(examples) >= 2
    for program, arguments in examples:
        {"train": parse_train, "eval": parse_eval}[program](arguments.split(" -- ")[0].split())  # " -- " starts a comment


@pytest.mark.parametrize("config", [TrainConfig, EvalConfig])
def test_every_setting_is_used_somewhere(config):
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "rlvr").rglob("*.py") if path.name != "config.py")
    unused = [f.name for f in dataclasses.fields(config) if not re.search(rf"\.{f.name}\b", code)]
    assert set(unused) <= {"preset", *STRENGTHS}  # a preset acts through the defaults it sets; strengths: see test_advantage.py


# ---------------------------------------------------------------------------------------------------------------------------------------
# The run folder


def test_run_folder_is_named_for_method_and_seed_and_counts_on(tmp_path):
    config = TrainConfig(method="ppl+pos", seed=3, out=str(tmp_path))
    assert run_folder(config) == tmp_path / "ppl+pos-seed3"
    for taken in ("ppl+pos-seed3", "ppl+pos-seed3-2"):
        (tmp_path / taken).mkdir()
        (tmp_path / taken / "config.json").write_text("{}")
    assert run_folder(config) == tmp_path / "ppl+pos-seed3-3"


def test_run_folder_of_a_chosen_name_must_be_free(tmp_path):
    config = TrainConfig(name="mine", out=str(tmp_path))
    assert run_folder(config) == tmp_path / "mine"
    (tmp_path / "mine").mkdir()
    assert run_folder(config) == tmp_path / "mine"  # there, but empty
    (tmp_path / "mine" / "metrics.csv").write_text("step\n")
    with pytest.raises(SettingError, match="is not empty. Choose another --name, or go on with it: --resume "):
        run_folder(config)
    shutil.rmtree(tmp_path / "mine")
    (tmp_path / "mine").write_text("a file")
    with pytest.raises(SettingError, match="Choose another --name"):
        run_folder(config)


# ---------------------------------------------------------------------------------------------------------------------------------------
# --help


def run_script(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    env = os.environ | {"COLUMNS": "100", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, encoding="utf-8", cwd=cwd, env=env, timeout=120)


def help_texts(config) -> dict[str, str]:
    """The string under each field of a dataclass and its bases, from their source; for a strength the text of its method."""
    texts = {name: strength.help for name, strength in STRENGTHS.items()}
    for base in reversed(config.__mro__[:-1]):
        body = ast.parse(inspect.getsource(base)).body[0].body
        for field, below in zip(body, body[1:]):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                texts[field.target.id] = below.value.value
    return texts


@pytest.mark.parametrize("script, config", [("train.py", TrainConfig), ("eval.py", EvalConfig)])
def test_help_shows_every_setting_with_its_text(script, config):
    done = run_script(str(ROOT / script), "--help")
    assert done.returncode == 0 and done.stderr == ""
    shown = re.sub(r"[│\s]+", " ", done.stdout)
    texts = help_texts(config)
    for field in dataclasses.fields(config):
        assert re.search(rf"--{field.name.replace('_', '-')}[ ,]", shown) or field.name == "models"  # which is given by position
        # Words break at hyphens and slashes in a narrow box, so blanks do not count.
        assert texts[field.name].replace("\n", "").replace(" ", "") in shown.replace(" ", ""), field.name


def test_help_begins_with_the_flags_that_matter_and_gives_the_rest_in_groups():
    boxes = re.split(r"╭─ (.+?) ─+╮", run_script(str(ROOT / "train.py"), "--help").stdout)[1:]
    headings, texts = boxes[::2], boxes[1::2]
    flags = [re.findall(r"^│ (--[a-z-]+)", text, re.M) for text in texts]
    assert headings[0] == "options" and flags[0][:4] == ["--method", "--model", "--data", "--preset"] and 10 <= len(flags[0]) <= 15
    groups = dict(zip(headings, flags))
    assert {"sampling options", "reward options", "machine options", "evaluation and logging options"} <= groups.keys()
    assert "--temperature" in groups["sampling options"]
    of_the_paper = {name for part in ("ppl", "pos") for name in METHODS[part].strengths}
    for heading, strengths in (("shaping options", of_the_paper), ("further methods options", set(STRENGTHS) - of_the_paper)):
        assert strengths <= {flag[2:].replace("-", "_") for flag in groups[heading]}
    assert all(1 < len(flags) < 12 for flags in groups.values() if flags != groups["options"])


def test_help_breaks_its_lines_once_to_the_width_of_the_terminal():
    """A line ends only where the next word would not have found room."""
    lines = [line[2:-2] for line in run_script(str(ROOT / "train.py"), "--help").stdout.splitlines() if line.startswith("│")]
    goes_on = [(line, after.split()[0]) for line, after in zip(lines, lines[1:]) if after.startswith("  ") and re.match(".{20}  [^ ]", line)]
    assert len(goes_on) > 50
    assert [line for line, word in goes_on if len(line.rstrip()) + 1 + len(word) < len(line)] == []


def processor_seconds(*arguments: str) -> float:
    """What a program costs, whatever else the machine does meanwhile."""
    before = os.times()
    assert run_script(*arguments).returncode == 0
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_help_comes_at_once():
    """In half of the time, at most, that an import of torch takes, on a fast machine and on a slow one."""
    torch = processor_seconds("-c", "import torch")
    assert max(processor_seconds(str(ROOT / script), "--help") for script in ("train.py", "eval.py")) < torch / 2


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_help_does_not_load_torch(script):
    code = f"""
import runpy, sys
sys.path.insert(0, {str(ROOT)!r})
sys.argv = [{script!r}, "--help"]
try:
    runpy.run_path({str(ROOT / script)!r}, run_name="__main__")
except SystemExit as end:
    print("exit", end.code, sorted({{"torch", "transformers", "datasets", "matplotlib"}} & set(sys.modules)))
"""
    assert run_script("-c", code).stdout.splitlines()[-1] == "exit 0 []"


# ---------------------------------------------------------------------------------------------------------------------------------------
# A method of one's own: one function, one declaration

MINE = """

@method("mine", mine_alpha=Strength(0.25, "Share of the advantage that is taken away."))
def mine(shaped, advantages, old_logp, mask, group, *, mine_alpha):
    return shaped * (1 - mine_alpha)
"""
RUN_MINE = """
import json, sys, torch
from rlvr.advantage import shape
from rlvr.run.cli import parse_train
from rlvr.train import train
config = parse_train(sys.argv[1:])
train(config)
rows = torch.tensor([1.0, -1.0]), torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([0, 0])
print(json.dumps([config.mine_alpha, shape("mine", *rows, mine_alpha=0.5).tolist()]))
"""


@pytest.fixture
def copy_with_mine(tmp_path):
    """A copy of the library in which advantage.py has one function and one declaration more."""
    shutil.copytree(ROOT / "rlvr", tmp_path / "rlvr", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", tmp_path)
    with (tmp_path / "rlvr" / "advantage.py").open("a", encoding="utf-8") as file:
        file.write(MINE)
    return tmp_path


def test_a_method_is_one_function_and_one_declaration(copy_with_mine):
    """The flag, its text and its check follow from what is added to advantage.py."""
    tmp_path = copy_with_mine
    shown = " ".join(run_script("train.py", "--help", cwd=tmp_path).stdout.split())
    assert "--mine-alpha FLOAT Share of the advantage that is taken away. (default: 0.25)" in shown
    bad = run_script("train.py", "--method", "mine", "--mine-alpha", "-1", cwd=tmp_path)
    assert (bad.returncode, bad.stderr) == (2, "error: --mine-alpha is -1.0. Choose 0 or more.\n")


@pytest.mark.slow  # imports torch in a process of its own
def test_a_method_that_was_added_trains(copy_with_mine):
    """So do the setting of the run and the effect."""
    tmp_path = copy_with_mine
    small = "--steps 1 --prompts-per-step 2 --sampling-rounds 1 --final-eval-problems 0 --max-new-tokens 16 --save-every 0 --name run"
    done = run_script("-c", RUN_MINE, "--method", "mine", "--mine-alpha", "0.75", *small.split(), cwd=tmp_path)
    assert json.loads(done.stdout.splitlines()[-1]) == [0.75, [[0.5] * 3, [-0.5] * 3]], done.stderr
    saved = json.loads((tmp_path / "runs" / "run" / "config.json").read_text(encoding="utf-8"))
    assert saved["method"] == "mine" and saved["mine_alpha"] == 0.75


@pytest.fixture
def declarations(monkeypatch):
    """What a test declares is forgotten afterwards."""
    monkeypatch.setattr(advantage, "METHODS", dict(advantage.METHODS))
    for name in set(STRENGTHS):
        monkeypatch.setitem(STRENGTHS, name, STRENGTHS[name])
    monkeypatch.setattr(config_module, "TrainConfig", TrainConfig)
    yield
    for name in set(STRENGTHS) - {f.name for f in dataclasses.fields(TrainConfig)}:
        del STRENGTHS[name]


def mine(shaped, *_, **__):
    return shaped


def test_a_method_that_is_declared_later_has_settings_too(declarations, tmp_path):
    """As in a notebook. The settings of a run are read with them."""
    assert config_module.train_config() is TrainConfig
    method("mine", mine_alpha=Strength(0.25, "How much."), mine_end=Strength("left", "Which.", ("left", "right")))(mine)
    with pytest.raises(SettingError, match="made before mine_alpha was declared. Make them again, with TrainConfig = train_config"):
        check_train(TrainConfig())
    newer = config_module.train_config()
    assert newer is config_module.train_config() and newer is not TrainConfig and issubclass(newer, TrainConfig)
    config = parse_train("--method mine --mine-alpha 2 --mine-end right".split())
    assert config == newer(method="mine", mine_alpha=2.0, mine_end="right")
    with pytest.raises(SettingError, match="--mine-alpha is -1. Choose 0 or more."):
        check_train(newer(mine_alpha=-1))
    with pytest.raises(SettingError, match="--mine-end is 'up'. Choose a value of the kind that --help shows."):
        check_train(newer(mine_end="up"))
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(config)), encoding="utf-8")
    assert read_config(tmp_path) == config
    method("mine", mine_alpha=Strength(0.5, "Declared again."))(mine)
    assert config_module.train_config()().mine_alpha == 0.5


def test_a_strength_cannot_take_the_name_of_another_setting(declarations):
    method("mine", seed=Strength(1, "Not that one."))(mine)
    try:
        with pytest.raises(ValueError, match="seed is the name of another setting. Give the strength another name, such as mine_seed."):
            config_module.train_config()
    finally:
        del STRENGTHS["seed"]
