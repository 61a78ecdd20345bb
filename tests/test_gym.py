"""Problems made by reasoning-gym: seeds, settings, scoring in a process that can be killed, runs. A small package stands in for the library;
the library itself is asked where it is installed."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import RUN

from rlvr.config import EvalConfig, SettingError, TrainConfig
from rlvr.data import load_held_out, load_problems
from rlvr.evaluate import right
from rlvr.loaders import gym
from rlvr.run.cli import parse_eval, parse_train
from rlvr.run.settings import read_config

# A family in the form of the library. It evaluates answers as Python, as some of the library's do, and depends on the order of a set.
PACKAGE = '''
import random
from dataclasses import dataclass

@dataclass
class Config:
    numbers: int = 6
    seed: int = 0
    size: int = 500

    def validate(self):
        assert self.numbers > 0, "numbers must be positive"

class Sums:
    def __init__(self, config):
        self.config = config
        print("making problems")

    def __getitem__(self, i):
        rng = random.Random(self.config.seed + i)
        numbers = [rng.choice("1234") for _ in range(self.config.numbers)]
        rng.shuffle(letters := list(set("abcdefghijk")))
        gold = len("".join(numbers).replace("1", "")) % 3 + 1
        return {"question": " + ".join(numbers) + "\\n", "answer": str(gold), "metadata": {"letters": "".join(letters), "pair": (1, 2)}}

    def score_answer(self, answer, entry):
        assert entry["metadata"]["pair"] == (1, 2)  # not what JSON makes of it
        return 1.0 if eval(answer) == int(entry["answer"]) else 0.25

DATASETS = {"sums": (Sums, Config), "other": (Sums, Config)}

def create_dataset(name, **settings):
    config = Config(**settings)
    config.validate()
    return Sums(config)
'''
SUMS = "reasoning-gym:sums"


@pytest.fixture
def family(tmp_path, monkeypatch):
    """`import reasoning_gym` finds the package above, here and in the child."""
    package = tmp_path / "package" / "reasoning_gym"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "factory.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setattr(gym, "HELD_OUT", 20)
    monkeypatch.setattr(gym, "child", gym.Library())
    yield package
    gym.child.stop()


def points(answer: str, problem) -> float:
    (reward,) = problem.reward([rf"So it is \boxed{{{answer}}}."], [problem.answer], [problem.row])
    return reward


def test_problems_come_from_seeds_and_none_is_held_out_and_trained_on(family, monkeypatch):
    train, other, held_out = load_problems(SUMS), load_problems(SUMS, seed=1), load_problems(SUMS, "test")
    assert len({p.problem for p in train}) == len(train) > 800 and len(held_out) == 20
    assert not {p.problem for p in train} & {p.problem for p in held_out}
    places = [{p.row["place"]["seed"] + p.row["place"]["index"] for p in some} for some in (train, other, held_out)]
    assert not places[0] & places[1] and not places[0] & places[2] and not places[1] & places[2]
    assert load_problems(SUMS, "test", seed=1) == held_out and load_problems(SUMS, limit=3) == train[:3]
    assert len(load_problems(SUMS, settings=("size=7",))) <= 7
    monkeypatch.setattr(gym, "child", gym.Library())  # another process
    again = load_problems(SUMS)
    assert again == train and [p.row for p in again] == [p.row for p in train]  # whatever the order of a set there
    gym.child.stop()


def test_settings_are_those_of_the_family(family):
    assert all(p.problem.count("+") == 2 for p in load_problems(SUMS, "test", settings=("numbers=3",)))
    assert load_held_out(SUMS, 0, settings=("nothing=1",)) == load_problems(SUMS, "test")  # it was said of another family
    assert gym.parse_settings(("a=1", "b=true", "c=[1, 'x']", "d=word", "e=0.5", "f=a=b")) == dict(
        a=1, b=True, c=[1, "x"], d="word", e=0.5, f="a=b"
    )


@pytest.mark.parametrize(
    "data, settings, said",
    [
        ("reasoning-gym:sumz", (), "no family 'sumz'. Did you mean reasoning-gym:sums?"),
        ("reasoning-gym:", (), "no family ''. Choose one of its 2"),
        (SUMS, ("number=3",), "has no setting 'number'. Choose among: size, numbers."),
        (SUMS, ("numbers=-1",), "cannot make these problems (AssertionError: numbers must be positive). Choose other settings"),
        (SUMS, ("numbers=x",), "cannot make these problems"),
        (SUMS, ("numbers=1",), "too few different problems"),
        (SUMS, ("size=0",), "size=0 is no number of problems"),
        (SUMS, ("seed=3",), "--seed seeds the problems"),
        (SUMS, ("numbers",), "Write each key=value once"),
        (SUMS, ("numbers=1", "numbers=2"), "Write each key=value once"),
    ],
)
def test_a_mistake_in_a_family_or_its_settings_is_one_sentence(family, data, settings, said):
    with pytest.raises(SettingError) as caught:
        load_problems(data, settings=settings)
    assert said in str(caught.value)


def test_without_the_package_the_command_to_install_it_is_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingError, match="needs the package reasoning-gym. Install it with: pip install reasoning-gym"):
        load_problems(SUMS)


def test_a_package_that_cannot_be_imported_is_one_sentence(family):
    (family / "factory.py").write_text("import nowhere")
    with pytest.raises(SettingError, match="cannot be used. To see why, run: "):
        load_problems(SUMS)


def test_the_family_scores_the_last_box_and_a_part_of_a_point_is_no_right_answer(family):
    problem = load_problems(SUMS, limit=1)[0]
    assert points(problem.answer, problem) == 1.0 and points(f"{problem.answer}+1-1", problem) == 1.0
    assert points("7", problem) == -0.75  # a quarter of a point
    rewards = problem.reward(["no box", rf"\boxed{{7}} or \boxed{{{problem.answer}}}"], ["", ""], [problem.row] * 2)
    assert rewards == [-1.0, 1.0]
    assert right([rf"\boxed{{int('{problem.answer}')}}", r"\boxed{7}"], [problem] * 2) == [True, False]  # no verifier would say so


def test_an_answer_that_is_run_as_python_does_no_harm(family, tmp_path, monkeypatch):
    monkeypatch.setattr(gym, "ANSWER_SECONDS", 2.0)
    problem, mark = load_problems(SUMS, limit=1)[0], tmp_path / "mark"
    for answer in (
        "9**9**9**9", f"open({str(mark)!r}, 'w')", f"__import__('os').mkdir({str(mark)!r})", f"__import__('os').system('touch {mark}')", "exit()",
        f"__import__('subprocess').run(['touch', {str(mark)!r}])", "__import__('os')._exit(0)", f"__import__('os').rmdir({str(tmp_path)!r})",
        "print('{\"is\": 1.0}')", "__import__('socket').socket()", "(" * 7000, "1" * 9000, "\ud800",
    ):  # fmt: skip
        assert points(answer, problem) <= 0, answer
        assert points(problem.answer, problem) == 1.0, answer
    assert not mark.exists() and tmp_path.exists()


def test_what_comes_after_many_hostile_answers_is_not_scored(family, monkeypatch):
    problem = load_problems(SUMS, limit=1)[0]
    monkeypatch.setattr(gym, "MOST_KILLED", 1)
    texts = [rf"\boxed{{{x}}}" for x in (problem.answer, "__import__('os')._exit(0)", "7", problem.answer)]
    assert problem.reward(texts, [""] * 4, [problem.row] * 4) == [1.0, -1.0, None, 1.0]


SETTINGS = RUN | dict(data=SUMS, eval_data="", data_config=("numbers=5",), final_eval_problems=5, steps=2)


@pytest.mark.usefixtures("no_figure")
def test_a_run_is_rewarded_measured_and_resumed_by_the_family(family, tmp_path, capsys):
    from rlvr.run.compare import compare
    from rlvr.train import train

    train(TrainConfig(**(SETTINGS | dict(out=str(tmp_path), name="run"))))
    said = capsys.readouterr().out
    assert "; reward reasoning_gym" in said and "(5 problems)" in said and "held out" not in said
    rows = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    assert {row["correct"] for row in rows} <= {True, False} and all("+" in row["prompt"] for row in rows)
    assert read_config(tmp_path / "run").data_config == ("numbers=5",)
    train(parse_train(["--resume", str(tmp_path / "run"), "--steps", "3"]))
    out = tmp_path / "eval.json"
    models = [str(tmp_path / "run")]
    written = compare(EvalConfig(models=models, data=SUMS, problems=4, completions=2, max_new_tokens=20, instruction="", out=str(out)))
    result = written["results"][SUMS][models[0]]
    assert len(result["problems"]) == 4 and json.loads(out.read_text()) == written


def test_a_reward_function_of_ones_own_gets_the_rows_of_the_family(family, tmp_path, monkeypatch):
    from rlvr.train import set_up

    (tmp_path / "mine.py").write_text("def mine(completions, answers, rows):\n    return [len(row['metadata']['letters']) for row in rows]\n")
    settings = SETTINGS | dict(out=str(tmp_path), name="r", reward=f"{tmp_path / 'mine.py'}:mine")
    trainer, held_out = set_up(TrainConfig(**settings))
    _, _, rewards = trainer.sample_groups()
    assert set(rewards.tolist()) == {11.0} and held_out.problems[0].reward is gym.reasoning_gym


def test_settings_without_a_family_and_columns_with_one_are_refused(family):
    with pytest.raises(SettingError, match="no --data is one"):
        parse_train(["--data-config", "a=1"])
    with pytest.raises(SettingError, match="no --data is one"):
        parse_eval(["tiny", "--data-config", "a=1", "b=2"])
    with pytest.raises(SettingError, match="made have no columns"):
        parse_train(["--data", SUMS, "--problem-column", "x"])
    assert parse_train(["--eval-data", SUMS, "--data-config", "a=1", "b=2"]).data_config == ("a=1", "b=2")
    assert parse_eval(["tiny", "--data", SUMS]).data_config == ()


# ---------------------------------------------------------------------------------------------------------------------------------------
# The library itself


@pytest.mark.slow
@pytest.mark.parametrize("name", ["leg_counting", "countdown", "chain_sum", "gsm_symbolic", "word_ladder", "number_sorting", "simple_integration"])
def test_families_of_the_library(name, monkeypatch):
    """The published answer is right, problems are the same in another process, and held-out ones are others."""
    pytest.importorskip("reasoning_gym")
    data = f"reasoning-gym:{name}"
    train, held_out = load_problems(data, settings=("size=20",)), load_problems(data, "test", limit=20)
    assert train and not {p.problem for p in train} & {p.problem for p in held_out}
    for problem in train[:5]:
        assert points(problem.answer, problem) == 1.0, problem.answer
    with monkeypatch.context() as impatient:  # a family that computes these takes all the time that it may
        impatient.setattr(gym, "ANSWER_SECONDS", 2.0)
        assert points("9**9**9**9", train[0]) <= 0 and points("__import__('os')._exit(1)", train[0]) <= 0
    gym.child.stop()
    assert load_problems(data, settings=("size=20",)) == train


@pytest.mark.slow
def test_the_library_is_not_imported_by_a_run():
    pytest.importorskip("reasoning_gym")
    code = "from rlvr.data import load_problems; load_problems('reasoning-gym:chain_sum', 'test', 3); import sys; assert 'reasoning_gym' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
