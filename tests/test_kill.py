"""SIGKILL, at random moments and at every moment that matters: whatever is killed and resumed ends as the run that was never killed.

Each life of a run is a process of its own. A server that has imported torch once forks them, which saves seconds on each.
"""

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from helpers import RUN, check_equal

from rlvr.run.checkpoint import checkpoints, damage

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="needs a fork server")]
KILLS = 36
PHASES = ["loading", "sampling", "update", "checkpoint", "log", "evaluation", "between", "finish"]


@pytest.fixture(scope="module")
def server():
    here = Path(__file__).parent
    os.environ["PYTHONPATH"] = os.pathsep.join([str(here.parent), str(here)])  # the server looks nowhere else
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "helpers", "rlvr.train", "rlvr.run.figures", "matplotlib.figure"])
    return context


def live(folder: str, settings: dict, phase, kill_at: int, half_row: int) -> None:
    """One life: start the run, or resume it. `phase` (shared) says what it is doing. kill_at: the file operation before which it is killed.
    half_row: of which write to the logs only half is made before it is killed."""
    import torch

    from rlvr import train as train_module
    from rlvr.common import files
    from rlvr.config import TrainConfig
    from rlvr.policy import Policy
    from rlvr.run import checkpoint, figures, held_out
    from rlvr.run.cli import parse_train
    from rlvr.run.log import Log
    from rlvr.run.session import Session

    torch.set_num_threads(1)
    figures.draw_curves = lambda folder: folder / "curves.png"

    def named(owner, name, index):
        real = getattr(owner, name)

        def wrapped(*args, **kwargs):
            before, phase.value = phase.value, index
            try:
                return real(*args, **kwargs)
            finally:
                phase.value = before

        setattr(owner, name, wrapped)

    for owner, name, index in (
        (Policy, "sample", 1), (train_module.Trainer, "update", 2), (checkpoint, "save", 3), (Log, "_write", 4), (held_out, "evaluate", 5),
        (Session, "finish", 7),
    ):  # fmt: skip
        named(owner, name, index)
    begun = Session._open

    def begin(session):
        phase.value = 6
        begun(session)

    Session._open = begin
    if kill_at:
        left = kill_at

        def hook(event, args):  # every opening, renaming and deleting in the run folder, by Python's own account
            nonlocal left
            if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"):
                if isinstance(args[0], (str, Path)) and str(args[0]).startswith(folder):
                    left -= 1
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
    if half_row:
        real, rows = files.Appender.write, []

        def write(appender, text):
            rows.append(text)
            if len([row for row in rows if row]) == half_row and text:
                appender.file.write(text[: len(text) // 2].encode())
                os.kill(os.getpid(), signal.SIGKILL)
            real(appender, text)

        files.Appender.write = write
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        if (Path(folder) / "config.json").exists():
            train_module.train(parse_train(["--resume", folder]))
        else:
            train_module.train(TrainConfig(**settings))


def life(server, folder: Path, settings: dict, seconds: float | None = None, kill_at: int = 0, half_row: int = 0) -> tuple[int, str]:
    """Exit code (0, or -9 for killed) and what it was doing at the end."""
    phase = server.Value("i", 0, lock=False)
    process = server.Process(target=live, args=(str(folder), settings, phase, kill_at, half_row))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
    process.join()
    return process.exitcode, PHASES[phase.value]


def settings_for(folder: Path, **settings) -> dict:
    return RUN | dict(out=str(folder.parent), name=folder.name, threads=1) | settings


def test_killed_at_random_moments_the_run_ends_as_if_it_had_not_been(server, tmp_path):
    """36 kills; after each, the newest checkpoint is whole and not older than before. A run that ends is checked and begun anew."""
    more = dict(steps=15, method="ppl+pos", ppl_alpha=0.2, eval_every=5)
    assert life(server, tmp_path / "whole", settings_for(tmp_path / "whole", **more))[0] == 0  # starts the server
    shutil.rmtree(tmp_path / "whole")
    started = time.monotonic()
    assert life(server, tmp_path / "whole", settings_for(tmp_path / "whole", **more))[0] == 0
    whole = time.monotonic() - started
    folder, settings = tmp_path / "run", settings_for(tmp_path / "run", **more)
    moments, phases, newest, kills, ended = random.Random(0), Counter(), "", 0, 0
    while kills < KILLS:
        code, phase = life(server, folder, settings, seconds=whole * moments.uniform(0.1, 1.0))
        if code == 0:
            check_equal(folder, tmp_path / "whole")
            shutil.rmtree(folder)
            ended, newest = ended + 1, ""
            continue
        assert code == -signal.SIGKILL
        kills += 1
        phases[phase] += 1
        if found := checkpoints(folder / "checkpoints"):
            assert damage(found[0]) is None and found[0].name >= newest
            newest = found[0].name
    assert life(server, folder, settings)[0] == 0
    check_equal(folder, tmp_path / "whole")
    print(f"{kills} kills over {ended + 1} runs: {dict(phases)}")
    assert phases["sampling"] and phases["update"]


@pytest.mark.parametrize("part", [0, 1])  # two halves, for two workers
def test_killed_before_each_file_operation_of_a_step(part, server, tmp_path):
    """Checkpoint writing, renaming, deleting the old one, CSV writing, the final model: a kill at each of them in turn loses nothing."""
    more = dict(steps=2, final_eval_problems=0, eval_data="", keep=1, prompts_per_step=2, mini_batch_prompts=1, max_new_tokens=8, overlong_buffer=4)
    whole = tmp_path / "whole"
    assert life(server, whole, settings_for(whole, **more))[0] == 0
    phases = Counter()
    for kill_at in range(1 + part, 300, 2):
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        settings = settings_for(folder, **more)
        code, phase = life(server, folder, settings, kill_at=kill_at)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        phases[phase] += 1
        for path in checkpoints(folder / "checkpoints"):  # what bears its proper name is whole, or is the older one being deleted
            assert damage(path) is None or path != checkpoints(folder / "checkpoints")[0]
        code, _ = life(server, folder, settings)
        assert code == 0, f"could not be resumed after kill {kill_at}"
        check_equal(folder, whole)
    print(f"{sum(phases.values())} kills: {dict(phases)}")
    assert phases["checkpoint"] >= 5 and phases["finish"] >= 3


def test_killed_in_the_middle_of_a_row(server, tmp_path):
    """metrics.csv and rollouts.jsonl end in half a line, which the resumed run cuts off."""
    more = dict(steps=3, keep=1, prompts_per_step=2, mini_batch_prompts=1, max_new_tokens=8, overlong_buffer=4)
    assert life(server, tmp_path / "whole", settings_for(tmp_path / "whole", **more))[0] == 0
    for row in range(1, 8):  # the first evaluation, and two files in each of three steps; the header is written whole or not at all
        folder = tmp_path / f"run{row}"
        assert life(server, folder, settings_for(folder, **more), half_row=row)[0] == -signal.SIGKILL
        half = [path.name for path in folder.iterdir() if path.is_file() and path.stat().st_size and path.read_bytes()[-1:] != b"\n"]
        assert half == ["metrics.csv" if row == 1 or row % 2 == 0 else "rollouts.jsonl"]
        assert life(server, folder, settings_for(folder, **more))[0] == 0
        check_equal(folder, tmp_path / "whole")
