"""The record of a run: the numbers of a batch worked out by hand, and what the files of a run say about what was logged."""

import csv
import dataclasses
import io
import json
import math
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import RUN, SMALL_DATA, SMALL_MODEL, make_rollouts

from rlvr.common import text
from rlvr.config import SettingError, TrainConfig
from rlvr.engine.optimizer import Optimizer
from rlvr.run import held_out
from rlvr.run.cli import parse_train, resume_command
from rlvr.run.folder import run_folder
from rlvr.run.log import Log
from rlvr.run.metrics import batch_metrics
from rlvr.run.session import Session
from rlvr.train import train


def run_in(folder, **settings):
    return train(TrainConfig(**(RUN | dict(out=str(folder), name="a run", steps=1, final_eval_problems=1) | settings)))


def test_a_log_file_gets_a_line_for_each_step_and_no_control_character(tmp_path, no_figure, capfd):
    run_in(tmp_path)
    printed = "".join(capfd.readouterr())
    assert "\nstep 1: reward " in printed and not set(printed) & set("\r\x1b\x08")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream, notebook, shown", [(io.StringIO, False, False), (Terminal, False, True), (io.StringIO, True, True)])
def test_a_bar_is_for_terminals_and_notebooks(stream, notebook, shown, monkeypatch):
    out = stream()
    monkeypatch.setitem(sys.modules, "ipykernel", sys) if notebook else monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    with text.progress_bar(total=2, file=out) as bar:
        bar.update()
    assert bool(out.getvalue()) == shown


def test_updates_that_were_skipped_are_not_taken_for_groups_without_a_difference(tmp_path, no_figure, monkeypatch, capsys):
    monkeypatch.setattr(Optimizer, "step", lambda *args: {"grad_norm": math.nan, "skipped": True})
    run_in(tmp_path, eval_data="", final_eval_problems=0)
    said = capsys.readouterr().out
    assert "2 of 2 updates were skipped: loss or gradient was not finite. Choose a lower --lr" in said and "No update was made" not in said
    monkeypatch.setattr(Session, "_check_finite", lambda session: None)
    train(parse_train(["--resume", str(tmp_path / "a run"), "--steps", "2"]))  # it remembers
    assert "4 of 4 updates were skipped" in capsys.readouterr().out


def test_a_command_to_go_on_can_be_pasted(tmp_path):
    folder = tmp_path / "it's a run"
    command = shlex.split(resume_command(folder, "my rewards.py:short"))
    assert command == ["python", "train.py", "--resume", str(folder), "--reward", "my rewards.py:short"]
    (folder / "notes").mkdir(parents=True)
    with pytest.raises(SettingError) as caught:
        parse_train(["--out", str(tmp_path), "--name", folder.name]), run_folder(TrainConfig(out=str(tmp_path), name=folder.name))
    assert shlex.split(str(caught.value).partition("go on with it: ")[2]) == ["--resume", str(folder)]


def test_the_numbers_of_a_batch_worked_out_by_hand():
    x = 99.0  # padding: must not count
    batch = dataclasses.replace(
        make_rollouts([3] * 4, [2, 1, 1, 3], groups=[0, 0, 1, 1], finished=[True, True, True, False]),
        entropy=torch.tensor([[1.0, 2.0, x], [4.0, x, x], [6.0, x, x], [1.0, 0.0, 1.0]]),
        old_logp=-torch.tensor([[1.0, 3.0, x], [0.5, x, x], [5.0, x, x], [1.0, 2.0, 6.0]]),  # log-perplexities 2, 0.5, 5, 3
        text=["So \\boxed{1}.", "So \\boxed{2}.", "So \\boxed{3}.", "So it is 4"],
    )
    correct, rewards = torch.tensor([True, False, True, False]), torch.tensor([1.0, -1.0, 1.0, -1.5])
    metrics = batch_metrics(batch, correct, rewards, steps=[0, None, 1, 2])  # no equation anywhere: rows 2 and 3 skip steps
    expected = {
        "accuracy": 0.5,
        "reward": -0.125,
        "reward_std": math.sqrt((2 * 1.125**2 + 0.875**2 + 1.375**2) / 3),
        "entropy": (1 + 2 + 4 + 6 + 1 + 0 + 1) / 7,  # every token counts the same
        "entropy_right": (1 + 2 + 6) / 3,
        "entropy_wrong": (4 + 1 + 0 + 1) / 4,
        "log_ppl": (2 + 0.5 + 5 + 3) / 4,  # every completion counts the same
        "log_ppl_right": (2 + 5) / 2,
        "log_ppl_wrong": (0.5 + 3) / 2,
        "length": 7 / 4,
        "length_right": 3 / 2,
        "length_wrong": 4 / 2,
        "truncated": 1 / 4,
        "completions": 4,
        "groups": 2,
        "defect_no_box": 1 / 4,
        "defect_skipped_step": 2 / 4,
        "defect_overlong": 1 / 4,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps that logs every completion. Its steps are recorded; its evaluations say 0.1, 0.2, 0.3, one after the other."""
    steps, evaluations = [], []
    real_log, real_evaluate = Session.log, held_out.evaluate

    def log(session, step):
        steps.append(step)
        real_log(session, step)

    def evaluate(*args, **settings):
        evaluations.append(len(evaluations) + 1)
        mean = evaluations[-1] / 10
        metrics = {"pass@1": (mean, 0.0, 1.0), "maj@8": (mean, 0.0, 1.0), "pass@8": (mean + 0.5, 0.0, 1.0)}
        return dataclasses.replace(real_evaluate(*args, **settings), metrics=metrics)

    config = TrainConfig(
        steps=2, prompts_per_step=4, completions_per_prompt=4, sampling_rounds=1, log_completions=16, eval_every=1, eval_problems=2,
        final_eval_problems=2, seed=1, model=SMALL_MODEL, data=SMALL_DATA, eval_data=SMALL_DATA, instruction="", max_new_tokens=20,
        overlong_buffer=10, out=str(tmp_path_factory.mktemp("runs")), name="r",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "log", log)
        patch.setattr(held_out, "evaluate", evaluate)
        summary = train(config)
    return SimpleNamespace(folder=Path(config.out) / "r", steps=steps, summary=summary)


def test_each_line_of_rollouts_is_the_completion_that_was_logged(run):
    lines = [json.loads(line) for line in (run.folder / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [1] * 16 + [2] * 16
    for number, step in enumerate(run.steps):
        batch, correct, shaped = step.rollouts, step.rewards > 0, step.shaped
        assert len(set(shaped[batch.mask].tolist())) > 2  # advantages differ: a mix-up would show
        for i, line in enumerate(lines[16 * number : 16 * number + 16]):
            n = int(batch.lengths[i])
            said = (line["group"], line["completion"], line["correct"], line["finished"], line["token_ids"])
            assert said == (batch.group[i], batch.text[i], correct[i], batch.finished[i], batch.completion_ids[i, :n].tolist())
            for name, values in (("logp", batch.old_logp), ("entropy", batch.entropy), ("advantage", shaped)):
                assert line[name] == pytest.approx(values[i, :n].tolist(), abs=1e-5), name


def test_the_summary_tells_the_start_from_the_end(run):
    names = ("pass_at_1_start", "pass_at_1_end", "pass_at_8_start", "pass_at_8_end")
    assert [run.summary[name] for name in names] == pytest.approx([0.1, 0.3, 0.6, 0.8])


def test_each_evaluation_stands_in_the_row_of_its_step(run):
    with open(run.folder / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    numbers = [(int(row["step"]), float(row["eval_pass_at_1"]), float(row["eval_pass_at_max"])) for row in rows]
    assert numbers == [(0, 0.1, 0.6), (1, 0.2, 0.7), (2, 0.3, 0.8)]


@pytest.mark.parametrize("kept, n, rows", [(4, 8, [0, 2, 4, 6]), (16, 4, [0, 1, 2, 3]), (3, 4, [0, 1, 2]), (0, 4, [])])
def test_the_logged_completions_are_spread_over_the_batch_each_once(kept, n, rows):
    log, batch, written = object.__new__(Log), make_rollouts([3] * n, [2] * n), []
    log.config, log.rollouts = TrainConfig(log_completions=kept), None
    log.tokenizer = SimpleNamespace(decode=lambda ids, **settings: str(ids))
    log._write = lambda file, text: written.append(text)
    log.completions(1, batch, torch.ones(n, dtype=torch.bool), batch.entropy)
    assert [json.loads(line)["completion"] for line in "".join(written).splitlines()] == [batch.text[i] for i in rows]
