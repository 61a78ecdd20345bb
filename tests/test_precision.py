"""`--dtype auto` on a CPU: measured once, with a margin, said in a line; then it is the run's, here, elsewhere and in every process.

No test here asks what this machine is good at: all of them hold with and without instructions for bfloat16.
"""

import json
import re
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import RUN, SMALL_MODEL, check_equal
from transformers import GPT2Config, LlamaConfig

from rlvr.analysis import experiment
from rlvr.config import SettingError, TrainConfig
from rlvr.engine import precision
from rlvr.engine.parallel import Team
from rlvr.loaders import models
from rlvr.loaders.models import settle_dtype
from rlvr.policy import load_policy
from rlvr.run import checkpoint, set_up
from rlvr.run.cli import parse_train
from rlvr.run.figures import read_metrics
from rlvr.run.settings import read_config
from rlvr.train import train

FEW = RUN | dict(steps=2, final_eval_problems=0, eval_data="")
BIG = LlamaConfig(  # SmolLM2-135M
    hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, vocab_size=49152,
    tie_word_embeddings=True,
)  # fmt: skip


def trials(monkeypatch, ratios: list[float], each: float = 0.05) -> list[tuple]:
    """Trials take no time: those of float32 say `each`, those of bfloat16 a multiple of it. Returns what is tried."""
    tried, left = [], iter(ratios)

    def seconds(shape, dtype):
        tried.append((tuple(shape), dtype))
        return each * (next(left) if dtype == torch.bfloat16 else 1)

    monkeypatch.setattr(precision, "_seconds", seconds)
    return tried


def test_what_counts_is_the_median_of_trials_in_turns_without_the_first(monkeypatch):
    tried = trials(monkeypatch, [9.0, 0.5, 0.3, 0.5, 7.0], each=0.03)  # 0.43 seconds with the fourth
    assert precision.times_as_long(BIG) == 0.5
    assert tried == 4 * [((1536, 576), torch.bfloat16), ((1536, 576), torch.float32)]  # two in three matrices of a layer have this shape


def test_slow_trials_are_made_twice_and_a_small_model_is_not_tried(monkeypatch):
    tried = trials(monkeypatch, [40.0, 15.0], each=1.0)
    assert precision.times_as_long(BIG) == 15 and len(tried) == 4
    assert precision.times_as_long(LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, vocab_size=1000)) is None
    assert len(tried) == 4


def test_a_trial_is_three_products_of_at_most_1024_numbers_each_way_and_draws_nothing(monkeypatch):
    state, seen = torch.get_rng_state(), []
    real = torch.autograd.grad

    def grad(y, inputs, out):
        seen.append([tuple(x.shape) for x in (y, *inputs)] + [y.dtype])
        return real(y, inputs, out)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    assert all(precision._seconds(torch.Size([1536, 64]), dtype) > 0 for dtype in (torch.float32, torch.bfloat16))
    assert seen == [[(128, 1024), (128, 64), (1024, 64), dtype] for dtype in (torch.float32, torch.bfloat16)]
    assert torch.equal(torch.get_rng_state(), state)


def test_models_with_their_weights_on_their_side_can_be_tried_too(monkeypatch):
    trials(monkeypatch, [2.0] * 9)
    assert precision.times_as_long(GPT2Config()) == 2


def measured(monkeypatch, ratio: float | None) -> list:
    """As if bfloat16 took `ratio` times as long here. Returns the models that were asked for."""
    asked = []

    def times_as_long(model_config):
        asked.append(model_config)
        return ratio

    monkeypatch.setattr(models, "times_as_long", times_as_long)
    return asked


@pytest.mark.parametrize("ratio, dtype", [(0.4, "bfloat16"), (0.83, "bfloat16"), (0.84, "float32"), (1.0, "float32"), (13.6, "float32")])
def test_bfloat16_must_be_clearly_faster(ratio, dtype, monkeypatch, capsys):
    measured(monkeypatch, ratio)
    assert settle_dtype(TrainConfig(model=SMALL_MODEL, device="cpu")) == dtype
    said = f"{dtype}: products of this model's shapes take {ratio:.1f} times as long in bfloat16 as in float32 here\n"
    assert capsys.readouterr().out == said


@pytest.mark.parametrize("settings", [
    dict(dtype="float32"), dict(dtype="bfloat16"), dict(model="tiny"), dict(model="tiny3"), dict(resume="runs/x"), dict(branch="runs/x@2"),
    dict(model="/no/such/folder"),
])  # fmt: skip
def test_nothing_is_measured_where_nothing_is_to_be_chosen(settings, monkeypatch, capsys):
    asked = measured(monkeypatch, 0.4)
    c = TrainConfig(**dict(model=SMALL_MODEL) | settings)
    assert settle_dtype(c) == c.dtype and not asked and not capsys.readouterr().out


def test_a_gpu_and_a_small_model_leave_it_at_auto(monkeypatch, capsys):
    asked = measured(monkeypatch, None)
    assert settle_dtype(TrainConfig(model=SMALL_MODEL)) == "auto" and len(asked) == 1
    monkeypatch.setattr(models, "choose_device", lambda device: "cuda")
    assert settle_dtype(TrainConfig(model=SMALL_MODEL, device="auto")) == "auto" and len(asked) == 1
    assert not capsys.readouterr().out


def test_the_choice_goes_with_the_run(tmp_path, monkeypatch, capsys, no_figure):
    """Like one with --dtype bfloat16, bit by bit; resumed and branched without another measurement, whatever that would say."""
    measured(monkeypatch, 0.4)
    estimated, real = [], set_up.estimate
    monkeypatch.setattr(set_up, "estimate", lambda c, shape, device, dtype: estimated.append(dtype) or real(c, shape, device, dtype))
    for name, dtype in (("auto", "auto"), ("given", "bfloat16")):
        train(TrainConfig(**FEW | dict(out=str(tmp_path), name=name, dtype=dtype)))
        assert set(estimated) == {"bfloat16"}
    said = capsys.readouterr().out
    assert said.count("bfloat16: products of") == 1 and said.count("torch.bfloat16, cpu") == 2
    asked, run = measured(monkeypatch, 13.6), tmp_path / "auto"
    assert read_config(run).dtype == "bfloat16" and checkpoint.load_newest(run / "checkpoints")[2]["settings"]["dtype"] == "bfloat16"
    weights = checkpoint.load_newest(run / "checkpoints")[1]["weights"]
    assert {weight.dtype for weight in weights.values()} == {torch.float32}  # the masters
    for name in ("auto", "given"):
        train(parse_train(["--resume", str(tmp_path / name), "--steps", "3"]))
    check_equal(run, tmp_path / "given")
    train(parse_train(["--branch", f"{run}@3", "--steps", "4", "--name", "branch"]))
    assert read_config(tmp_path / "branch").dtype == "bfloat16" and not asked
    drifts = [row["logp_drift"] for row in read_metrics(run)]
    assert len(drifts) == 3 and all(1e-5 < drift < 0.1 for drift in drifts)


def test_a_run_that_was_killed_before_its_first_checkpoint_keeps_it_too(tmp_path, monkeypatch, no_figure):
    measured(monkeypatch, 0.4)
    train(TrainConfig(**FEW | dict(steps=1, out=str(tmp_path), name="run")))
    for path in ("checkpoints", "model", "summary.json", "metrics.csv", "rollouts.jsonl"):
        shutil.rmtree(tmp_path / "run" / path) if (tmp_path / "run" / path).is_dir() else (tmp_path / "run" / path).unlink()
    asked = measured(monkeypatch, 13.6)
    train(parse_train(["--resume", str(tmp_path / "run")]))
    assert read_config(tmp_path / "run").dtype == "bfloat16" and not asked
    with pytest.raises(SettingError, match="--dtype cannot change in a run that is resumed"):
        parse_train(["--resume", str(tmp_path / "run"), "--dtype", "float32"])


def test_an_evaluation_measures_nothing(tmp_path, monkeypatch, no_figure):
    """Numbers that are compared must not depend on how fast a machine was: on a CPU auto is float32 there."""
    measured(monkeypatch, 0.4)
    train(TrainConfig(**FEW | dict(steps=1, out=str(tmp_path), name="run")))
    asked = measured(monkeypatch, 0.4)
    saved = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert "bfloat16" in json.dumps(saved) and load_policy(str(tmp_path / "run")).model.dtype == torch.float32 and not asked
    assert load_policy(str(tmp_path / "run"), dtype="bfloat16").model.dtype == torch.bfloat16


@pytest.mark.parametrize("flags, dtype", [([], "float32"), (["--dtype", "bfloat16"], "bfloat16"), (["--device", "cuda"], "auto")])
def test_all_arms_of_an_experiment_have_one_precision(flags, dtype, tmp_path):
    """None measures for itself. What the plan says is done, and the built-in model has nothing to measure."""
    run = experiment._run(tmp_path, "arm", ["--model", SMALL_MODEL, "--data", "tiny", *flags], "")
    assert parse_train(run.flags).dtype == dtype
    assert "--dtype" not in experiment._run(tmp_path, "other", [], "").flags


def test_who_follows_takes_the_choice_of_the_lead(tmp_path):
    found, late = {}, threading.Event()

    def process(rank: int) -> None:
        team = Team(3, rank, str(tmp_path / "meet"))
        late.wait(0 if rank else 0.2)  # the lead measures while the others wait
        found[rank] = team.agree("" if rank else "bfloat16")

    threads = [threading.Thread(target=process, args=(rank,), daemon=True) for rank in (2, 1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == dict.fromkeys(range(3), "bfloat16")


def test_a_process_that_follows_measures_nothing(monkeypatch):
    asked, loaded = measured(monkeypatch, 13.6), []
    team = type("Team", (), {"agree": lambda self, choice: choice or "bfloat16"})()
    monkeypatch.setattr(set_up, "rank", lambda: 1)
    monkeypatch.setattr(set_up, "team", lambda c: team)
    monkeypatch.setattr(set_up, "_policy", lambda c: loaded.append(c.dtype))
    c = TrainConfig(model=SMALL_MODEL)
    assert set_up.load(c, None)[0] == replace(c, dtype="bfloat16") and loaded == ["bfloat16"] and not asked


def test_the_help_and_the_text_name_the_size_that_is_measured():
    size = f"{precision.SMALL / 1e6:.0f}"
    for file in ("rlvr/config.py", "tutorials/speed.md"):
        text = (Path(__file__).parents[1] / file).read_text(encoding="utf-8")
        assert re.search(rf"{size} (M|million) parameters", text), file
