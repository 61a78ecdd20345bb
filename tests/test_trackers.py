"""Trackers: each gets every number of metrics.csv, at its step; none of them can end a run."""

import csv
import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import RUN

from rlvr.run import trackers
from rlvr.config import SettingError, TrainConfig
from rlvr.run.cli import parse_train
from rlvr.run.log import COLUMNS
from rlvr.train import train

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.usefixtures("no_figure")


def numbers_of(folder: Path) -> dict[tuple[int, str], float]:
    """(step, column) -> number, for all numbers of a metrics.csv."""
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {(int(row["step"]), name): float(row[name]) for row in rows for name in COLUMNS if row[name] and name not in ("step", "stage")}


def tensorboard_of(folder: Path) -> dict[tuple[int, str], float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {(e.step, name): e.value for name in events.Tags()["scalars"] for e in events.Scalars(name)}


def same(sent: dict, written: dict) -> None:
    assert sent.keys() == written.keys() and len({name for _, name in written}) > 30
    for key, value in written.items():
        assert sent[key] == pytest.approx(value, rel=1e-6), key  # TensorBoard keeps float32


@pytest.mark.slow
def test_tensorboard_gets_every_number(tmp_path):
    train(TrainConfig(**(RUN | dict(out=str(tmp_path), name="run", report_to="tensorboard"))))
    same(tensorboard_of(tmp_path / "run"), numbers_of(tmp_path / "run"))


@pytest.mark.slow
def test_a_resumed_run_is_one_curve_in_tensorboard(tmp_path):
    settings = dict(out=str(tmp_path), name="run", report_to="tensorboard", lr_schedule="constant")
    train(TrainConfig(**(RUN | settings | dict(steps=2))))
    train(parse_train(["--resume", str(tmp_path / "run"), "--steps", "4"]))
    sent, written = tensorboard_of(tmp_path / "run"), numbers_of(tmp_path / "run")
    same(sent, written)
    assert {step for step, _ in sent} == {0, 1, 2, 3, 4}


@pytest.mark.slow
def test_trackio_gets_every_number(tmp_path):
    pytest.importorskip("trackio")
    settings = RUN | dict(out=str(tmp_path), name="run", report_to="trackio")
    flags = [
        f"--{'' if v is not False else 'no-'}{k.replace('_', '-')}" + ("" if isinstance(v, bool) else f"={v}") for k, v in settings.items()
    ]
    env = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "train.py", *flags], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (database,) = (tmp_path / "trackio").glob("rlvr*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select step, metrics from metrics where run_name like 'run-%'").fetchall()
    sent = {(step, name): value for step, text in rows for name, value in json.loads(text).items()}
    same({key: value for key, value in sent.items() if key[1] in COLUMNS}, numbers_of(tmp_path / "run"))


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_wandb_and_trackio_are_called_as_they_ask_to_be(kind, monkeypatch, tmp_path):
    """With a stand-in for the package: opened once with the settings and the name of the run, each row at its step, closed."""
    calls = []

    class Run:
        def log(self, numbers, step):
            calls.append((step, numbers))

        def finish(self):
            calls.append("finish")

    class Package:
        @staticmethod
        def init(**settings):
            calls.append(settings)
            return Run()

    monkeypatch.setitem(sys.modules, kind, Package)
    monkeypatch.setattr("rlvr.run.set_up.need", lambda package, what: None)
    train(TrainConfig(**(RUN | dict(out=str(tmp_path), name="run", report_to=kind, steps=2))))
    opened, *rows, last = calls
    assert (opened["project"], opened["resume"], opened["config"]["steps"]) == ("rlvr", "allow", 2)
    assert opened["name"].startswith("run-") and len(opened["name"]) == 12
    assert last == "finish"
    same({(step, name): value for step, numbers in rows for name, value in numbers.items()}, numbers_of(tmp_path / "run"))
    calls.clear()
    train(parse_train(["--resume", str(tmp_path / "run")]))  # it finds its curves again
    assert calls[0]["name"] == opened["name"]
    calls.clear()
    train(TrainConfig(**(RUN | dict(out=str(tmp_path / "other"), name="run", report_to=kind, steps=1))))  # and another its own
    assert calls[0]["name"] != opened["name"]


@pytest.mark.slow
def test_a_tracker_that_fails_is_left_and_the_run_goes_on(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(trackers.Tracker, "_log", lambda *args: 1 / 0)
    train(TrainConfig(**(RUN | dict(out=str(tmp_path), name="run", report_to="tensorboard", steps=2))))
    assert capsys.readouterr().out.count("tensorboard failed (ZeroDivisionError") == 1
    assert (tmp_path / "run" / "summary.json").is_file()


@pytest.mark.parametrize("kind", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_not_there_is_named_before_anything_is_loaded(kind, monkeypatch, tmp_path):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == kind else real(name))
    with pytest.raises(SettingError, match=f"pip install {kind}"):
        train(TrainConfig(**(RUN | dict(out=str(tmp_path), name="run", report_to=kind))))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_without_the_flag_no_tracker_is_imported(tmp_path):
    code = (
        "import sys\nfrom rlvr.run.cli import parse_train\nimport rlvr.train\n"
        "print([m for m in ('tensorboard', 'wandb', 'trackio', 'peft', 'bitsandbytes') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
