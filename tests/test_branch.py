"""Branches: a new run that begins where another one was after a step."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers import RUN, SMALL_MODEL, check_equal

from rlvr.config import SettingError, TrainConfig
from rlvr.run import checkpoint
from rlvr.run.branch import start_branch
from rlvr.run.cli import parse_train
from rlvr.run.figures import read_metrics
from rlvr.run.settings import branch_settings, first_step
from rlvr.train import Trainer, set_up, train

pytestmark = pytest.mark.usefixtures("no_figure")


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    """A run of grpo of 4 steps that kept its checkpoints."""
    folder = tmp_path_factory.mktemp("runs") / "trunk"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlvr.run.figures.draw_curves", lambda folder: folder / "curves.png")
        train(TrainConfig(**RUN | dict(method="grpo", keep_every=1, out=str(folder.parent), name="trunk")))
    return folder


def branch(trunk: Path, out: Path, *flags: str, name="branch") -> Path:
    train(parse_train(["--branch", f"{trunk}@2", "--seed", "5", "--out", str(out), "--name", name, *flags]))
    return out / name


@pytest.fixture(scope="module")
def whole(trunk):
    """A branch that was never stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlvr.run.figures.draw_curves", lambda folder: folder / "curves.png")
        return branch(trunk, trunk.parent / "whole", name="branch")


def begun(trunk: Path, *flags: str) -> Trainer:
    trainer, _ = set_up(parse_train(["--branch", f"{trunk}@2", *flags]))
    start_branch(trainer)
    return trainer


def test_it_has_weights_moments_step_and_entropies_of_the_other_run_and_its_own_draws(trunk):
    tensors, state = checkpoint.load(trunk / "checkpoints" / "step-000002")
    trainer, anew = begun(trunk, "--seed", "5"), begun(trunk, "--seed", "6")
    names = [name for name, _ in trainer.policy.model.named_parameters()]
    assert all(torch.equal(p, tensors["weights"][n]) for n, p in zip(names, trainer.policy.model.parameters()))
    moments = trainer.optimizer.adamw.state_dict()["state"]
    assert all(torch.equal(moments[i][key], tensors["optimizer"][f"{i}.{key}"]) for i in range(len(names)) for key in ("exp_avg", "exp_avg_sq"))
    assert (trainer.step_number, trainer.entropies) == (2, state["entropies"])
    assert not trainer.queue and torch.equal(trainer.generator.get_state(), torch.Generator().manual_seed(5).get_state())
    assert trainer.begin().problem_ids != anew.begin().problem_ids, "another seed, another order"


def test_its_settings_are_those_of_the_other_run_but_for_the_flags(trunk):
    c = parse_train(["--branch", f"{trunk}@2", "--method", "pos", "--lr", "5e-4"])
    assert (c.method, c.lr, c.steps, c.prompts_per_step, c.model) == ("pos", 5e-4, 4, 4, SMALL_MODEL)
    assert (c.name, Path(c.out), c.branch, first_step(c), first_step(TrainConfig())) == ("", trunk.parent, f"{trunk}@2", 2, 0)
    assert branch_settings(f"{trunk}@2").method == "grpo"


def test_arms_of_one_seed_begin_with_the_same_completions_and_differ_by_the_method_alone(trunk, tmp_path):
    arms = {flags: branch(trunk, tmp_path, *flags.split(), name=f"arm{i}") for i, flags in enumerate(
        ["--method grpo", "--method pos --pos-alpha 0", "--method pos --pos-alpha 0.4"])}  # fmt: skip
    grpo, nothing, shaped = arms.values()
    rows = [read_metrics(folder) for folder in (grpo, nothing, shaped)]
    assert [row["step"] for row in rows[0]] == [2, 3, 4] and rows[0][0]["accuracy"] is None, "first the model as it was found"
    assert rows[0][1]["log_ppl"] == rows[2][1]["log_ppl"] and rows[0][2]["log_ppl"] != rows[2][2]["log_ppl"]
    assert [r["log_ppl"] for r in rows[0]] == [r["log_ppl"] for r in rows[1]], "strength 0 is grpo"
    summary = json.loads((grpo / "summary.json").read_text())
    assert summary["steps"] == 4 and summary["pass_at_1_start"] == rows[0][0]["eval_pass_at_1"]
    assert json.loads((grpo / "config.json").read_text())["branch"] == f"{trunk}@2"


def test_stopped_and_resumed_it_is_the_branch_that_was_never_stopped(trunk, whole, tmp_path, monkeypatch, capsys):
    real = Trainer.update

    def fails_in_step_4(trainer, step):
        if trainer.step_number == 4:
            raise RuntimeError("a fault")
        real(trainer, step)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", fails_in_step_4)
        with pytest.raises(RuntimeError, match="a fault"):
            branch(trunk, tmp_path)
    train(parse_train(["--resume", str(tmp_path / "branch")]))
    check_equal(tmp_path / "branch", whole)
    assert "resumed from step-000003" in capsys.readouterr().out


def test_killed_before_its_first_checkpoint_it_begins_again_at_the_same_place(trunk, whole, tmp_path, capsys):
    killed = tmp_path / "branch"
    shutil.copytree(whole, killed)
    for left in ("checkpoints", "model"):
        shutil.rmtree(killed / left)
    (killed / "summary.json").unlink()
    train(parse_train(["--resume", str(killed)]))
    check_equal(killed, whole)
    assert f"branched from {trunk}@2" in capsys.readouterr().out


def test_it_needs_its_trunk_no_more_and_is_found_beside_it_after_a_move(trunk, tmp_path):
    shutil.copytree(trunk, tmp_path / "before" / "trunk")
    folder = branch(tmp_path / "before" / "trunk", tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    moved = tmp_path / "after" / folder.name
    trainer, _ = set_up(parse_train(["--resume", str(moved)]))
    start_branch(trainer)  # as the probe does
    assert trainer.step_number == 2
    shutil.rmtree(tmp_path / "after" / "trunk")
    train(parse_train(["--resume", str(moved), "--steps", "5"]))
    assert read_metrics(moved)[-1]["step"] == 5


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--branch", "{trunk}"], "names no step of a run. Write it as in --branch runs/grpo-seed0@80."),
        (["--branch", "{trunk}@9"], "has no checkpoint of step 9; it has: 1, 2, 3, 4. Choose one of them"),
        (["--branch", "{trunk}@4"], "--steps 4 counts from the first step of"),
        (["--branch", "{trunk}/nothing@4"], "is not a run folder"),
        (["--branch", "{trunk}@2", "--optimizer", "adamw8bit"], "--optimizer cannot differ in a branch"),
        (["--branch", "{trunk}@2", "--model", "tiny"], "is not what"),
        (["--branch", "{trunk}@2", "--preset", "tiny3"], "has the settings of its run, not those of a preset"),
        (["--branch", "{trunk}@2", "--method", "pos", "--shape-stop", "2"], "so --method pos does nothing"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_nothing_is_written(trunk, tmp_path, monkeypatch, flags, says):
    monkeypatch.setattr("rlvr.run.set_up.make_adamw", lambda *_: None)  # bitsandbytes need not be there
    with pytest.raises(SettingError, match=re.escape(says)):
        train(parse_train([flag.format(trunk=trunk) for flag in flags] + ["--out", str(tmp_path), "--name", "x"]))
    assert not (tmp_path / "x" / "config.json").exists()


def test_a_damaged_or_edited_checkpoint_is_not_branched_from(trunk, tmp_path):
    damaged = tmp_path / "trunk"
    shutil.copytree(trunk, damaged)
    weights = damaged / "checkpoints" / "step-000002" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(SettingError, match="is damaged .*branch from another step"):
        branch(damaged, tmp_path)
    shutil.rmtree(damaged / "checkpoints" / "step-000002")
    (damaged / "checkpoints" / "step-000003").rename(damaged / "checkpoints" / "step-000002")
    with pytest.raises(SettingError, match="was edited or is damaged.*its name"):
        branch(damaged, tmp_path, name="other")


def test_a_reward_function_of_the_other_run_is_named_again(trunk, tmp_path):
    own = tmp_path / "trunk"
    shutil.copytree(trunk, own)
    config = json.loads((own / "config.json").read_text()) | {"reward": "mine.py:short"}
    (own / "config.json").write_text(json.dumps(config))
    with pytest.raises(SettingError, match="Name it again: add --reward mine.py:short"):
        branch(own, tmp_path)


def test_an_edited_metrics_file_of_a_branch_is_found(whole, tmp_path):
    shutil.copy(whole / "config.json", tmp_path)
    lines = (whole / "metrics.csv").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.csv").write_text("".join(lines[:1] + lines[3:]))
    with pytest.raises(SettingError, match="line 2 is not the step that follows"):
        read_metrics(tmp_path)
