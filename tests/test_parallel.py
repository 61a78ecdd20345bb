"""Several processes share a run: it says the same for any number of them, and an accident of one loses nothing."""

import csv
import gc
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import RUN, check_equal, files_of, make_rollouts, new_model

from rlvr import config
from rlvr.advantage import METHODS, Strength, method
from rlvr.config import SettingError, TrainConfig
from rlvr.engine import decoder, parallel
from rlvr.engine.optimizer import MasterWeights
from rlvr.engine.parallel import Team, workers
from rlvr.methods import STRENGTHS
from rlvr.run.checkpoint import checkpoints
from rlvr.run.settings import read_config
from rlvr.train import Step, train

ROOT = Path(__file__).parents[1]
# Five groups are dealt to two and to three processes; the batch is filtered and filled again; a reference model is asked.
SETTINGS = RUN | dict(steps=3, prompts_per_step=5, completions_per_prompt=4, mini_batch_prompts=3, filter_groups=True, sampling_rounds=3,
                      kl_coef=0.01, method="ppl+pos", lr_schedule="constant")  # fmt: skip
pytestmark, slow = pytest.mark.usefixtures("forked"), pytest.mark.slow


def shared(settings: TrainConfig) -> None:
    with workers(settings):
        train(settings)


def ran(folder: Path, name: str, **settings) -> Path:
    shared(TrainConfig(**SETTINGS | dict(out=str(folder), name=name) | settings))
    return folder / name


def words(folder: Path, name: str, **settings) -> list[str]:
    """The same settings for the command line."""
    given = SETTINGS | dict(preset="tiny", out=str(folder), name=name) | settings
    flags = [[f"--{'no-' if value is False else ''}{key.replace('_', '-')}", *([] if isinstance(value, bool) else [str(value)])]
             for key, value in given.items()]  # fmt: skip
    return [str(ROOT / "train.py"), *sum(flags, [])]


def check_alike(folder: Path, reference: Path) -> None:
    """Two runs are the same but for rounding: the same completions, and numbers and weights that are near."""
    mine, other = files_of(folder), files_of(reference)
    assert [json.loads(line)["completion"] for line in mine["rollouts"].splitlines()] == [
        json.loads(line)["completion"] for line in other["rollouts"].splitlines()
    ]
    for row, wanted in zip(mine["metrics"], other["metrics"], strict=True):
        for name, value in wanted.items():
            assert row[name] == value or float(row[name]) == pytest.approx(float(value), rel=1e-3, abs=1e-4), (wanted["step"], name)
    difference = max((mine["weights"][name] - weight).abs().max().item() for name, weight in other["weights"].items())
    print(f"weights differ by at most {difference:.1e}")
    assert difference < 1e-4  # three steps of AdamW at 2e-3
    assert mine["others"] == other["others"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    return ran(tmp_path_factory.mktemp("alone"), "alone", workers=1)


# ---------------------------------------------------------------------------------------------------------------------------------------
# The parts


class Local(Team):
    """A team whose other processes are this one: shares are worked on one after the other."""

    def __init__(self, size: int, work):
        super().__init__(size, 0, "")
        self.work, self.weights, self.dealt = work, [torch.zeros(1)], []
        self.trainer = SimpleNamespace(config=TrainConfig())

    def _ask(self, work, shares):
        self.dealt.append(shares)
        return [self.work(*share) for share in shares]


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_completions_are_the_same_for_any_number_of_hands(size):
    model, prompts = new_model("qwen"), [[3], [4, 5], [6], [7, 8, 9], [5, 5, 5, 5]]
    u = torch.rand(10, 12, generator=torch.Generator().manual_seed(0))
    how = (2, {2}, 1.0, 1.0)
    ended = []
    team = Local(size, lambda prompts, *rest: decoder.complete(model, prompts, *rest) if prompts else None)
    found = team.complete(model, prompts, *how, u, ended.append)
    wanted = decoder.complete(model, prompts, *how, u)
    width = min(found[0].shape[1], wanted[0].shape[1])
    stop = (wanted[0] == 2).cumsum(1).cumsum(1)[:, :width] <= 1  # up to and with the stop token
    assert torch.equal(found[0][:, :width][stop], wanted[0][:, :width][stop]) and sum(ended) == 10
    assert torch.allclose(found[1][:, :width][stop], wanted[1][:, :width][stop], atol=1e-5)
    sizes = [len(share[0]) for share in team.dealt[0]]
    assert sum(sizes) == 5 and max(sizes) - min(sizes) <= 1


def test_groups_stay_whole_and_tokens_are_shared_evenly():
    lengths = [9, 9, 1, 1, 1, 1, 8, 8, 2, 2]
    batch = make_rollouts([3] * 10, lengths, groups=[4, 4, 0, 0, 1, 1, 2, 2, 3, 3])
    rows = torch.tensor([0, 1, 2, 3, 6, 7, 8, 9])  # group 1 is not learned from
    hands = Local(2, None)._hands(batch, rows)
    assert sorted(torch.cat(hands).tolist()) == rows.tolist()
    assert [set(batch.group[hand].tolist()) for hand in hands] == [{4, 0}, {2, 3}]  # 20 tokens each
    teach = torch.tensor([False] * 2 + [True] * 8)  # what has no advantage is no work
    assert [set(batch.group[hand].tolist()) for hand in Local(2, None)._hands(batch, rows, teach)] == [{2}, {0, 3, 4}]
    assert sorted(map(len, Local(6, None)._hands(batch, rows))) == [0, 0, 2, 2, 2, 2]


def test_scores_come_back_in_their_rows():
    batch = make_rollouts([3] * 6, [4, 2, 5, 1, 3, 3], groups=[0, 0, 1, 1, 2, 2])
    team = Local(2, lambda part, rows, *_: (part.old_logp, part.entropy))
    logp, entropy = team.score(batch, torch.tensor([0, 1, 4, 5]), 1.0, 100)
    for row in range(6):
        there = row not in (2, 3)
        assert torch.equal(logp[row], batch.old_logp[row] * there) and torch.equal(entropy[row], batch.entropy[row] * there)


def test_each_learns_from_whole_groups_with_the_denominator_of_all(monkeypatch):
    batch = make_rollouts([3] * 6, [4, 2, 5, 1, 3, 3], groups=[0, 0, 1, 1, 2, 2])
    shaped = torch.ones(batch.mask.shape) * batch.mask
    step = Step(batch, [0, 0, 1, 1, 2, 2], torch.ones(6), shaped, [[0, 1, 2]])
    shares = []

    def work(part, rows, tokens, denominator):
        shares.append((len(rows), tokens, denominator, part.rollouts.group.tolist()))
        assert torch.equal(part.shaped[:, : part.rollouts.mask.shape[1]], part.rollouts.mask.float())
        assert rows.tolist() == list(range(len(rows)))
        return Counter(tokens=int(part.rollouts.mask.sum()), loss=-1.0)

    sums = Local(2, work).gradient(step, torch.arange(6), 100)
    assert sums == Counter(tokens=18, loss=-2.0)
    assert shares == [(4, 50, 18, [0, 0, 2, 2]), (2, 50, 18, [1, 1])] or shares == [(2, 50, 18, [0, 0]), (4, 50, 18, [1, 1, 2, 2])]


def test_work_that_ran_out_of_memory_lets_go_of_its_tensors(tmp_path):
    """An exception that is kept keeps the frames it came through, and all that is in them."""
    seen, model = [], torch.nn.Linear(1, 1)
    model.device = torch.device("cpu")

    def score():
        activations = torch.nn.Linear(1, 1)
        seen.append(weakref.ref(activations))
        raise MemoryError

    team = Team(1, 0, str(tmp_path / "meet"))
    team.agree("")
    policy = SimpleNamespace(model=model, complete=SimpleNamespace(complete=None), score=score)
    team._meet(SimpleNamespace(policy=policy, optimizer=SimpleNamespace(weights=MasterWeights(model)), gradient=None))
    gc.disable()
    try:
        with pytest.raises(parallel.Told, match="process 0: out of memory"):
            team._work("score", (), True)
        assert seen[0]() is None
    finally:
        gc.enable()
        torch.distributed.destroy_process_group()


@slow
def test_the_threads_are_shared_among_the_processes(tmp_path, monkeypatch):
    seen, real = [], Team.gradient
    monkeypatch.setattr(Team, "gradient", lambda *args: seen.append(torch.get_num_threads()) or real(*args))
    before = torch.get_num_threads()
    ran(tmp_path, "run", workers=2, threads=4, steps=1)
    assert set(seen) == {2} and torch.get_num_threads() == before


def test_on_a_gpu_torchrun_is_named(monkeypatch):
    with pytest.raises(SettingError, match="torchrun --nproc_per_node 4 train.py"), workers(TrainConfig(device="cuda", workers=4)):
        pass
    with workers(TrainConfig(device="cuda")):
        assert parallel.team(TrainConfig()) is None
    with pytest.raises(SettingError, match="Nobody has started the workers"):
        parallel.team(TrainConfig(workers=2))


@pytest.mark.parametrize(
    "cores, settings, number",
    [
        (2, {}, 2),  # the quick start on two cores: what was measured
        (1, {}, 1),
        (64, {}, 4),  # 256 completions
        (64, {"prompts_per_step": 128}, 4),  # what does not fall with the rows is most of it by then
        (8, {"prompts_per_step": 16}, 2),
        (8, {"prompts_per_step": 4}, 1),
        (2, {"steps": 5}, 1),  # over before the others have begun
        (2, {"model": "a_folder"}, 1),  # larger: threads help
    ],
)
def test_as_many_processes_as_help(cores, settings, number, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    assert parallel.helpful(TrainConfig(**settings), cores) == number


def test_elsewhere_one_process_is_the_default(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert parallel.helpful(TrainConfig(), 8) == 1


# ---------------------------------------------------------------------------------------------------------------------------------------
# Whole runs


@slow
@pytest.mark.parametrize("size", [2, 3])
def test_any_number_of_processes_makes_one_run(size, alone, tmp_path):
    check_alike(ran(tmp_path, "alone", workers=size), alone)


@slow
def test_torchrun_starts_them_too(alone, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*launch, *words(tmp_path, "alone")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    check_alike(tmp_path / "alone", alone)
    assert done.stdout.count("run folder:") == 1 and "cpu, 2 processes;" in done.stdout


@slow
def test_all_processes_have_the_precision_that_the_lead_has_chosen(tmp_path, monkeypatch):
    """Others, which would choose float32 here, could not even take its weights."""
    monkeypatch.setattr("rlvr.loaders.models.times_as_long", lambda model_config: 0.4)
    run = ran(tmp_path, "run", workers=2, steps=1, kl_coef=0.0)
    assert read_config(run).dtype == "bfloat16" and 0 < float(files_of(run)["metrics"][-1]["logp_drift"]) < 0.1


@slow
def test_lora_the_plain_engine_and_a_method_that_only_the_lead_knows(tmp_path, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.setattr(config, "TrainConfig", config.TrainConfig)  # so that it is given back as it was

    @method("twice", reads="", twice_power=Strength(2.0, "How much."))
    def twice(shaped, advantages, old_logp, mask, group, *, twice_power):
        return shaped * twice_power

    few = SETTINGS | dict(steps=2, lora_rank=4, engine="plain", method="twice", twice_power=3.0, out=str(tmp_path))
    try:
        for size in (1, 2):
            shared(config.train_config()(**few | dict(name=f"run{size}", workers=size)))
    finally:
        del METHODS["twice"], STRENGTHS["twice_power"]
    a, b = ([row["log_ppl"] for row in csv.DictReader((tmp_path / f"run{size}" / "metrics.csv").open())] for size in (1, 2))
    assert [float(x) for x in a[1:]] == pytest.approx([float(x) for x in b[1:]], abs=1e-4)


@slow
def test_a_run_goes_on_bit_by_bit_with_as_many_processes_and_alike_with_others(tmp_path):
    straight = ran(tmp_path / "straight", "run", workers=2, steps=4)
    for size in (2, 1):
        begun = ran(tmp_path / str(size), "run", workers=2, steps=2)
        shared(replace(read_config(begun), resume=str(begun), workers=size, steps=4))
        (check_equal if size == 2 else check_alike)(begun, straight)


def started(folder: Path, **settings) -> subprocess.Popen:
    command = [sys.executable, *words(folder, "run", **dict(workers=2, steps=500, eval_every=0, save_every=1) | settings)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    for line in process.stdout:
        if line.startswith("step 3:"):
            return process
    raise AssertionError(process.communicate()[1])


def followers(process: subprocess.Popen) -> list[int]:
    """Its children that have a session of their own."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[3] == pid]


def ended(pid: int, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1][:3]:
            return True
        time.sleep(0.1)
    return False


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@slow
@needs_proc
def test_a_process_that_is_killed_ends_the_run_with_a_sentence_and_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.undo()  # no forks: a connection that is lost a moment before its process has ended is told in other words
    process = started(tmp_path)
    (follower,) = followers(process)
    os.kill(follower, signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "A process that helped is lost: process 1 ended (code -9)" in err and "Traceback" not in err
    done = int(checkpoints(tmp_path / "run" / "checkpoints")[0].name[5:11])
    assert done >= 3
    shared(replace(read_config(tmp_path / "run"), resume=str(tmp_path / "run"), workers=1, steps=done + 1))
    assert len(files_of(tmp_path / "run")["metrics"]) == done + 2  # with that of step 0


@slow
def test_without_the_others_a_run_that_did_not_ask_for_them_goes_on_alone(alone, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parallel, "FOLLOW", "raise SystemExit('no room')")
    monkeypatch.setattr(parallel, "helpful", lambda c, cores: 2)
    with workers(config := TrainConfig(**SETTINGS | dict(out=str(tmp_path), name="alone", threads=2))):
        assert torch.get_num_threads() == 1
        train(config)
        assert torch.get_num_threads() == 2
    assert "could not begin (no room), so this process works alone" in capsys.readouterr().out
    check_alike(tmp_path / "alone", alone)
    with pytest.raises(SettingError, match="could not begin .no room.. Choose --workers 1"):
        ran(tmp_path, "asked", workers=2)


@slow
@needs_proc
def test_when_the_lead_is_killed_nobody_stays_behind(tmp_path):
    process = started(tmp_path)
    (follower,) = followers(process)
    process.kill()
    process.communicate()
    assert ended(follower)


@slow
@needs_proc
def test_ctrl_c_ends_the_step_and_saves(tmp_path):
    process = started(tmp_path)
    (follower,) = followers(process)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "SIGINT: stopped after step" in out and ended(follower), err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["stopped_by"] == "SIGINT"


ACCIDENTS = """
import os, sys
sys.path[:0] = [{root!r}, {tests!r}]
from rlvr.engine import parallel
from rlvr.config import TrainConfig
from rlvr.train import Trainer, train

if os.environ["RANK"] == "1":
    real, seen = Trainer.gradient, []
    def gradient(self, step, rows, tokens, denominator=None):
        seen.append(tokens)
        if {kind!r} == "memory" and tokens > 50:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte")
        sums = real(self, step, rows, tokens, denominator)
        if {kind!r} == "nan" and len(seen) == 2:
            next(p for p in self.policy.model.parameters() if p.grad is not None).grad.fill_(float("nan"))
        if {kind!r} == "error" and len(seen) == 3:
            raise ValueError("a mistake")
        return sums
    Trainer.gradient = gradient
config = TrainConfig(**{settings!r})
with parallel.workers(config):
    train(config)
"""


def with_accident(folder: Path, kind: str) -> subprocess.CompletedProcess:
    """A run on two processes, of which the second meets with an accident."""
    settings = SETTINGS | dict(out=str(folder), name="alone")
    (folder / "run.py").write_text(ACCIDENTS.format(root=str(ROOT), tests=str(ROOT / "tests"), kind=kind, settings=settings))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(folder / "run.py")]
    return subprocess.run(launch, capture_output=True, text=True, timeout=300)


@slow
def test_out_of_memory_in_one_process_halves_what_goes_through_all(alone, tmp_path):
    done = with_accident(tmp_path, "memory")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "out of memory: --micro-batch-tokens is" in done.stdout
    check_alike(tmp_path / "alone", alone)


@slow
def test_a_gradient_that_is_not_finite_in_one_process_is_skipped_by_all(tmp_path):
    done = with_accident(tmp_path, "nan")
    assert done.returncode == 0, done.stderr[-2000:]
    rows = files_of(tmp_path / "alone")["metrics"]
    assert [row["skipped_updates"] for row in rows[1:]].count("1") == 1


@slow
def test_an_error_in_one_process_ends_the_run_and_is_told(tmp_path):
    done = with_accident(tmp_path, "error")
    assert done.returncode != 0 and "process 1: ValueError: a mistake" in done.stderr
    assert checkpoints(tmp_path / "alone" / "checkpoints")


@slow
def test_a_process_that_cannot_begin_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "FOLLOW", "raise SystemExit('no such luck')")
    with pytest.raises(SettingError, match=r"could not begin \(no such luck\). Choose --workers 1"):
        ran(tmp_path, "run", workers=2)
    assert not list((tmp_path / "run").glob("checkpoints/*"))
