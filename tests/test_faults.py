"""Faults, injected: memory that runs out, a disk that is full, rewards and gradients that are not numbers, models and answers gone wild."""

import asyncio
import errno
import gc
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pandas
import pytest
import torch
from helpers import RUN, STORIES, check_equal, one_step
from safetensors import SafetensorError
from tqdm.utils import DisableOnWriteError

from rlvr import reward
from rlvr import train as train_module
from rlvr.common import files, text
from rlvr.config import SettingError, TrainConfig
from rlvr.data import encode_prompts, load_problems
from rlvr.engine import decoder
from rlvr.engine.memory import Budget
from rlvr.policy import Policy, load_policy
from rlvr.reward import rewards_from
from rlvr.rollout import complete, sample
from rlvr.run import checkpoint, figures, held_out, session, set_up, stop
from rlvr.run.checkpoint import checkpoints, damage
from rlvr.run.cli import parse_train
from rlvr.run.log import Log
from rlvr.run.reward_function import fenced, load_reward
from rlvr.run.state import undone_if_it_fails
from rlvr.train import Trainer, train
from rlvr.verifier import ANSWER_SECONDS
from rlvr.verifier.process import CHILDREN

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.usefixtures("no_figure")


def run(folder, reward=None, **settings):
    return train(TrainConfig(**(RUN | dict(out=str(folder.parent), name=folder.name) | settings)), reward)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run in which nothing goes wrong."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw_curves", lambda folder: folder / "curves.png")
        run(folder)
    return folder


def resume(folder, *flags, reward=None):
    return train(parse_train(["--resume", str(folder), *flags]), reward)


def make_trainer(reward=None, **settings) -> Trainer:
    config = TrainConfig(**(RUN | settings))
    policy = load_policy(config.model)
    problems, prompts, _ = encode_prompts(policy.tokenizer, load_problems(config.data), "", 128)
    return Trainer(config, policy, problems, prompts, reward)


def weights(trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in trainer.policy.model.parameters()])


# ---------------------------------------------------------------------------------------------------------------------------------------
# Out of memory

MESSAGES = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried ..."),
    "mps": lambda: RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB)."),
    "python": lambda: MemoryError(),
}


def with_little_memory(monkeypatch, trainer, most: int, kind="cuda", training=True):
    """The model's forward fails for more than `most` tokens in the update (training=False: rows in sampling). Returns the sizes it saw."""
    model, seen = trainer.policy.model, []
    real = model.base_model.forward

    def forward(*args, input_ids, **kwargs):
        if torch.is_grad_enabled() == training:
            seen.append(input_ids.numel() if training else len(input_ids))
            if seen[-1] > most:
                raise MESSAGES[kind]()
        return real(*args, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(model.base_model, "forward", forward)
    return seen


@pytest.mark.parametrize("kind", MESSAGES)
def test_out_of_memory_in_the_update_halves_the_micro_batch_and_changes_nothing_but_rounding(kind, monkeypatch, capsys):
    plain, tight = make_trainer(), make_trainer()
    seen = with_little_memory(monkeypatch, tight, most=60, kind=kind)
    (a, *_), (b, *_) = one_step(plain), one_step(tight)
    assert max(seen) > 60 and tight.micro_batch_tokens.size < 4096 / 2
    assert f"out of memory: --micro-batch-tokens is {tight.micro_batch_tokens.size} from here on" in capsys.readouterr().out
    torch.testing.assert_close(weights(tight), weights(plain), rtol=0, atol=2e-5)
    assert not torch.equal(weights(plain), weights(make_trainer()))
    for name in ("loss", "grad_norm", "logp_drift", "clipped_high", "updates", "skipped_updates"):
        assert b[name] == pytest.approx(a[name], rel=1e-3, abs=1e-6), name
    seen.clear()
    tight.step()
    assert max(seen) <= 60  # it remembers


def test_out_of_memory_half_way_through_an_update_does_not_count_the_first_half_twice(monkeypatch):
    plain, tight = make_trainer(micro_batch_tokens=60), make_trainer(micro_batch_tokens=60)
    real, calls = train_module.clipped_loss, []

    def clipped_loss(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:  # two micro-batches have left their gradients
            raise MESSAGES["cuda"]()
        return real(*args, **kwargs)

    plain.step()
    monkeypatch.setattr(train_module, "clipped_loss", clipped_loss)
    tight.step()
    assert tight.micro_batch_tokens.size == 30
    torch.testing.assert_close(weights(tight), weights(plain), rtol=0, atol=2e-5)


def test_out_of_memory_with_bfloat16_masters_does_not_count_twice_either(monkeypatch):
    def after(fail_at):
        config = TrainConfig(**(RUN | dict(dtype="bfloat16", micro_batch_tokens=40, mini_batch_prompts=4)))
        policy = load_policy(config.model, dtype="bfloat16")
        problems, prompts, _ = encode_prompts(policy.tokenizer, load_problems(config.data), "", 128)
        trainer, norms = Trainer(config, policy, problems, prompts, plus), []
        real, calls = train_module.clipped_loss, []

        def clipped_loss(*args, **kwargs):
            calls.append(1)
            if len(calls) == fail_at:
                raise MESSAGES["cuda"]()
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(train_module, "clipped_loss", clipped_loss)
            norms.append(one_step(trainer)[0]["grad_norm"])
        assert len(calls) > 3
        return norms[0]

    assert after(fail_at=3) == pytest.approx(after(fail_at=0), rel=0.05)


def test_out_of_memory_in_sampling_halves_the_rows_and_changes_nothing(monkeypatch, capsys):
    plain, tight = make_trainer(), make_trainer()
    seen = with_little_memory(monkeypatch, tight, most=4, training=False)
    batch, tight_batch = plain.step().rollouts, tight.step().rollouts
    assert max(seen) > 4 and tight.policy.complete.rows == 4
    assert "--sampling-rows is 4 from here on" in capsys.readouterr().out
    assert torch.equal(batch.completion_ids, tight_batch.completion_ids) and batch.text == tight_batch.text
    torch.testing.assert_close(tight_batch.old_logp, batch.old_logp, rtol=0, atol=1e-4)
    torch.testing.assert_close(weights(tight), weights(plain), rtol=0, atol=2e-5)
    assert torch.equal(tight.generator.get_state(), plain.generator.get_state())  # the next batch is the same too


@pytest.mark.parametrize("complete", [complete, decoder.complete], ids=["plain", "fast"])
@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.7, 0.9)])
def test_a_completion_does_not_depend_on_its_neighbours(temperature, top_p, complete, model, tokenizer):
    prompts = [[3, 4, 5], [6], [7, 8, 9, 10, 11], [14, 6]]

    def completions(rows):
        generator = torch.Generator().manual_seed(0)
        rollouts = sample(
            model, tokenizer, prompts, completions_per_prompt=3, max_new_tokens=10, stop_ids={2}, temperature=temperature, top_p=top_p,
            generator=generator, sampling_rows=rows, complete=complete,
        )  # fmt: skip
        return [ids[:n].tolist() for ids, n in zip(rollouts.completion_ids, rollouts.lengths)]

    whole = completions(512)
    assert all(completions(rows) == whole for rows in (1, 3, 7)) and len({tuple(c) for c in whole}) > 6


def test_old_log_probs_that_are_recomputed_survive_it_too(monkeypatch):
    plain, tight = make_trainer(old_logp="recompute"), make_trainer(old_logp="recompute")
    real = Policy.score

    def tight_score(policy, rollouts, rows, temperature, tokens):
        if tokens > 1000:
            raise MESSAGES["cuda"]()
        return real(policy, rollouts, rows, temperature, tokens)

    batch = plain.step().rollouts
    monkeypatch.setattr(Policy, "score", tight_score)
    tight_batch = tight.step().rollouts
    assert tight.micro_batch_tokens.size <= 1000
    torch.testing.assert_close(tight_batch.old_logp, batch.old_logp, rtol=0, atol=1e-4)


def test_when_nothing_is_left_to_halve_it_says_so(monkeypatch):
    trainer = make_trainer()
    with_little_memory(monkeypatch, trainer, most=0)
    with pytest.raises(SettingError, match="even with --micro-batch-tokens 1. Lower --max-new-tokens, or choose a smaller model."):
        trainer.step()


def test_other_errors_are_not_taken_for_it():
    def broken(size):
        raise RuntimeError("shape mismatch")

    budget = Budget("--x", 8)
    with pytest.raises(RuntimeError, match="shape"):
        budget.run(broken)
    assert budget.size == 8


def test_gradient_checkpointing_is_at_work_in_every_update():
    """It is in training mode alone, and sampling leaves the model in the other one."""
    trainer, modes = make_trainer(gradient_checkpointing=True), []
    trainer.policy.model.base_model.register_forward_pre_hook(lambda model, _: modes.append(model.training) if torch.is_grad_enabled() else None)
    trainer.step()
    assert len(modes) >= 2 and all(modes)


def test_a_run_that_has_ended_keeps_no_memory(tmp_path, monkeypatch):
    """The next run of the same process, in a notebook or a sweep, may need it."""
    models = []

    def load(*args):
        policy = load_policy(*args)
        models.append(weakref.ref(policy.model))
        return policy

    monkeypatch.setattr(set_up, "load_policy", load)
    before = gc.isenabled()
    gc.disable()  # what goes, goes at once
    try:
        run(tmp_path / "run", steps=1, final_eval_problems=0, eval_data="")
        resume(tmp_path / "run", "--steps", "2")
        assert [model() for model in models] == [None, None]
    finally:
        gc.enable() if before else None


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the address space")
def test_real_memory_that_runs_out():
    """The process may take 600 MB more than it has; one micro-batch of everything needs more."""
    code = f"""
import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import resource, torch
torch.set_num_threads(1)
from helpers import STORIES, one_step
from test_faults import make_trainer
settings = dict(model="tiny", data=STORIES, max_new_tokens=60, overlong_buffer=0, micro_batch_tokens=10**6)
trainer = make_trainer(prompts_per_step=64, mini_batch_prompts=64, completions_per_prompt=16, **settings)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 600 * 2**20,) * 2)
metrics, *_ = one_step(trainer)
print("updates", metrics["updates"], "size", trainer.micro_batch_tokens.size)
"""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "out of memory: --micro-batch-tokens is 500000 from here on" in done.stdout and "updates 1" in done.stdout


# ---------------------------------------------------------------------------------------------------------------------------------------
# A full disk


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


class FullFile:
    """Takes `room` bytes, as a disk that is nearly full does, and then no more."""

    def __init__(self, file, room):
        self.file, self.room, self.name = file, room, file.name

    def write(self, data):
        if self.room <= 0:
            full_disk()
        written = self.file.write(bytes(data[: self.room]))
        self.room -= written
        return written

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("what", ["save_file", "replace", "fsync"])
def test_a_checkpoint_that_does_not_fit_leaves_those_before_it_and_the_run_goes_on(whole, what, tmp_path, monkeypatch, capsys):
    real_save, seen = checkpoint.save, []

    def save(folder, tensors, state, *, steps_done, **kwargs):
        with monkeypatch.context() as patch:
            if steps_done == 2:  # while the second is written, the disk is full
                target, name = {"save_file": (checkpoint, "save_file"), "replace": (Path, "rename"), "fsync": (files, "sync")}[what]
                patch.setattr(target, name, full_disk)
                before = {p.name: damage(p) for p in checkpoints(folder)}
                try:
                    real_save(folder, tensors, state, steps_done=steps_done, **kwargs)
                finally:
                    seen.append(before == {p.name: damage(p) for p in checkpoints(folder)} == {"step-000001": None})
                    assert [p.name for p in folder.iterdir()] == ["step-000001"]  # no half one takes up the room
            return real_save(folder, tensors, state, steps_done=steps_done, **kwargs)

    monkeypatch.setattr(checkpoint, "save", save)
    run(tmp_path / "run")
    assert seen == [True]
    assert "The checkpoint of step 2 could not be written ([Errno 28] No space left on device)" in capsys.readouterr().out
    check_equal(tmp_path / "run", whole)


def test_a_checkpoint_that_failed_is_tried_again_after_the_next_step_however_rare_they_are(tmp_path, monkeypatch):
    real, tried = checkpoint.save, []

    def save(*args, steps_done, **kwargs):
        tried.append(steps_done)
        return full_disk() if steps_done in (2, 3) else real(*args, steps_done=steps_done, **kwargs)

    monkeypatch.setattr(checkpoint, "save", save)
    run(tmp_path / "run", steps=6, save_every=2, final_eval_problems=0, eval_data="")
    assert tried == [2, 3, 4, 6]


def test_a_disk_that_stays_full_ends_the_run_with_one_sentence_and_what_was_saved_resumes(whole, tmp_path, monkeypatch):
    real = checkpoint.save

    def save(*args, steps_done, **kwargs):
        return real(*args, steps_done=steps_done, **kwargs) if steps_done < 3 else full_disk()

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save)
        with pytest.raises(SettingError, match=r"step 4 could not be written .*step-000002. Make room, then: python train.py --resume "):
            run(tmp_path / "run")
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()  # which is smaller, and fits
    resume(tmp_path / "run")
    check_equal(tmp_path / "run", whole)


@pytest.mark.parametrize("name", ["metrics", "rollouts"])
def test_rows_that_do_not_fit_wait_and_no_checkpoint_is_written_without_them(whole, name, tmp_path, monkeypatch, capsys):
    real, real_save, log = Log.row, checkpoint.save, []

    def row(self, numbers):
        file = getattr(self, name)
        if numbers["step"] == 2:
            file.file = FullFile(file.file, room=17)
        if numbers["step"] == 4:
            file.file.room = 10**9  # there is room again
        real(self, numbers)

    def save(*args, steps_done, **kwargs):
        log.append(steps_done)
        return real_save(*args, steps_done=steps_done, **kwargs)

    monkeypatch.setattr(Log, "row", row)
    monkeypatch.setattr(checkpoint, "save", save)
    run(tmp_path / "run")
    assert log == [1, 4]
    assert "could not be written (No space left on device); trying again with the next step" in capsys.readouterr().out
    check_equal(tmp_path / "run", whole)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left")])
def test_a_model_that_does_not_fit_leaves_the_checkpoint(error, tmp_path, monkeypatch):
    def fails(*args):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(session, "save_model", fails)
        with pytest.raises(SettingError, match=r"could not be written .*The newest checkpoint is .*step-000004. Make room, then"):
            run(tmp_path / "run")
    resume(tmp_path / "run")
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_a_text_file_is_whole_or_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    files.write_atomically(path, "old")
    monkeypatch.setattr(files, "sync", full_disk)
    with pytest.raises(OSError):
        files.write_atomically(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs tmpfs")
def test_a_real_disk_that_is_full(tmp_path):
    """A file system of 12 MB takes two checkpoints of 4.6 MB and no third: the run goes on, ends with one sentence, and can be resumed."""
    built_in = dict(keep=3, model="tiny", data=STORIES, eval_data=STORIES)
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        run(tmp_path / "whole", **built_in)
        with pytest.raises(SettingError, match="step 4 could not be written .*No space left .*step-000002. Make room"):
            run(disk / "run", **built_in)
        assert [damage(p) for p in checkpoints(disk / "run" / "checkpoints")] == [None, None]
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        resume(disk / "run")
        check_equal(disk / "run", tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# ---------------------------------------------------------------------------------------------------------------------------------------
# Reward functions


def plus(responses, golds):
    """A reward function: half of each group is right."""
    return [float(i % 2) for i in range(len(responses))]


def test_rewards_that_are_no_numbers_are_not_scored():
    given = [True, False, 2, -0.5, None, math.nan, math.inf, -math.inf, "1", [1], torch.tensor(0.25), 10**400, 1e39, -1e20]
    got = rewards_from(lambda r, g: given, ["x"] * len(given), ["y"] * len(given))
    assert got[:4] == [1.0, -1.0, 2.0, -0.5] and got[10] == 0.25
    assert all(math.isnan(r) for r in got[4:10] + got[11:])


def test_a_completion_that_the_reward_function_fails_for_costs_only_itself():
    def picky(responses, golds):
        if "bad" in responses:
            raise KeyError("bad")
        return plus(responses, golds) if len(responses) > 1 else [0.5]

    got = rewards_from(picky, ["good", "bad", "good"], ["1"] * 3)
    assert got[0] == got[2] == 0.5 and math.isnan(got[1])


class Exits(float):
    def __abs__(self):
        sys.exit(0)


class Unspeakable(Exception):
    def __str__(self):
        raise ValueError


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda r, g: [1.0] * (len(r) - 1), "returned 3 rewards for 4 completions. Return one for each, in order."),
        (lambda r, g: [1.0] * 5, "returned 5 rewards for 4 completions"),
        (lambda r, g: [], "returned 0 rewards for 4"),
        (lambda r, g: 1 / 0, "failed for all 4 completions .ZeroDivisionError: division by zero.. Mend it"),
        (lambda r, g: [None] * 4, "failed for all 4 completions .it returned no finite number"),
        (lambda r, g: 3.0, "failed for all 4 completions .TypeError"),
        (lambda r, g: sys.exit(0), "failed for all 4 completions .SystemExit: 0.. Mend it"),
        (lambda r, g: (_ for _ in r).throw(asyncio.CancelledError), "failed for all 4 completions .CancelledError"),
        (lambda r, g: [1e39] * 4, "failed for all 4 completions .it returned no finite number"),
        (lambda r, g: [Exits()] * 4, "failed for all 4 completions .it returned no finite number"),
    ],
)
def test_a_reward_function_that_cannot_be_used_is_named(function, message):
    with pytest.raises(ValueError, match="The reward function <lambda> " + message):
        rewards_from(function, ["x"] * 4, ["y"] * 4)


@pytest.mark.parametrize(
    "error, said", [(Unspeakable, "Unspeakable: it cannot say what it is"), (ValueError("a\n\x1b[2J"), r"ValueError: a \\x1b\[2J")]
)
def test_what_a_reward_function_raises_is_one_line(error, said):
    with pytest.raises(ValueError, match=f"<lambda> failed for all 4 completions .{said}.. Mend it"):
        rewards_from(fenced(lambda r, g: (_ for _ in r).throw(error)), ["x"] * 4, ["y"] * 4)


@pytest.mark.parametrize("found", [dict.fromkeys(range(4)), {1.0, 2.0, 3.0, 4.0}, "1234", b"1234", pandas.DataFrame(columns=range(4))])
def test_what_holds_no_rewards_in_order_is_refused(found):
    """Iterated over, each gives four things, and some of them numbers: keys, bytes, the names of columns."""
    kind = type(found).__name__
    with pytest.raises(ValueError, match=f"<lambda> failed for all 4 completions .TypeError: it returned a {kind}, not a list with a number"):
        rewards_from(fenced(lambda r, g: found), ["x"] * 4, ["y"] * 4)


def test_a_reward_function_gets_copies_and_each_completion_its_own_reward():
    """One function strips what it is given, another sorts it: then the completions are asked for one at a time."""

    def strips(responses, golds):
        responses[:], golds[:] = [r.strip() for r in responses], []
        return (len(r) for r in responses)

    def sorts(responses, golds):
        responses.sort()
        return [len(r) for r in responses]

    texts, golds = ["dddd", "a ", "ccc"], ["1", "2", "3"]
    assert rewards_from(fenced(strips), texts, golds) == [4.0, 1.0, 3.0] and rewards_from(fenced(sorts), texts, golds) == [4.0, 2.0, 3.0]
    assert (texts, golds) == (["dddd", "a ", "ccc"], ["1", "2", "3"])


def test_a_reward_of_nan_does_not_poison_its_group(monkeypatch):
    """The row gets advantage 0; the others are normalised without it; it is counted, and it makes no group look mixed."""
    pattern = [1.0, -1.0, 1.0, math.nan] + [1.0, 1.0, 1.0, math.nan] + [1.0, -1.0, -1.0, -1.0] + [math.nan, -1.0, -1.0, -1.0]
    trainer = make_trainer(lambda r, g: pattern, method="grpo", filter_groups=True, overlong_buffer=0)
    metrics, batch, correct, shaped = one_step(trainer)
    assert (metrics["reward_failures"], metrics["groups_kept"]) == (3, 2)
    assert metrics["reward"] == pytest.approx(sum(p for p in pattern if p == p) / 13) and math.isfinite(metrics["reward_std"])
    a = shaped[:, 0].tolist()
    assert a[3] == 0.0 and a[0] == pytest.approx(a[2]) == pytest.approx(0.57735, abs=1e-4) and a[1] == pytest.approx(-1.1547, abs=1e-4)
    assert metrics["updates"] == 1 and torch.isfinite(weights(trainer)).all()


def test_a_reward_function_that_starts_to_fail_loses_no_step(tmp_path):
    """It fails in step 3 of 4, between two checkpoints. Mended, the run goes on as if nothing had been."""
    run(tmp_path / "whole", plus)
    calls = []

    def fails(responses, golds):
        calls.append(1)
        if len(calls) == 3 or len(responses) == 1:
            raise RuntimeError("no connection to the judge")
        return plus(responses, golds)

    fails.__qualname__ = "plus"
    with pytest.raises(SettingError, match="failed for all 16 completions .RuntimeError: no connection to the judge"):
        run(tmp_path / "run", fails, save_every=0)
    assert [p.name for p in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-000002"]
    resume(tmp_path / "run", "--save-every", "1", reward=plus)
    check_equal(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("raised, said", [(SystemExit, "SystemExit: .. Mend it"), (KeyboardInterrupt, "newest checkpoint is .*step-000001. To go on")])
def test_a_reward_function_that_ends_the_program_loses_no_step(raised, said, tmp_path):
    calls = []

    def ends(responses, golds):
        calls.append(1)
        if len(calls) > 1:
            raise raised
        return plus(responses, golds)

    with pytest.raises(SettingError, match=said):
        run(tmp_path / "run", ends, save_every=0, eval_every=0, final_eval_problems=0, eval_data="")
    assert [p.name for p in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-000001"]


def switches_over(responses, golds):
    """A reward function with side effects: each would make the rest of the run fail, or write somewhere else."""
    torch.set_grad_enabled(False)
    torch.inference_mode().__enter__()
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.autocast("cpu", torch.bfloat16).__enter__()
    torch.set_num_threads(torch.get_num_threads() + 1)
    sys.setrecursionlimit(sys.getrecursionlimit() + 100)
    os.chdir("/")
    sys.stdout.close()
    sys.stderr.close()
    sys.stdout = None
    return plus(responses, golds)


def test_what_a_reward_function_switches_over_is_put_back(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads(), sys.getrecursionlimit()
    for name, reward in (("whole", plus), ("run", switches_over)):
        run(Path(name), reward, steps=2)
    check_equal(Path("run"), Path("whole"))
    assert (torch.get_num_threads(), sys.getrecursionlimit()) == before and not torch.is_autocast_enabled("cpu")
    assert "run folder: run" in capsys.readouterr().out
    Path("mine.py").write_text("import torch\ntorch.set_default_dtype(torch.float64)\ndef good(completions, answers): return [1, 0]\n")
    load_reward("mine.py:good")
    assert torch.get_default_dtype() == torch.float32 and not sys.stdout.closed


def test_completions_that_are_not_scored_are_spoken_of_once(tmp_path, capsys):
    run(tmp_path / "run", lambda responses, golds: [1e39, *plus(responses[1:], golds)], steps=2)
    assert capsys.readouterr().out.count("note: 1 of 16 completions of step 1 could not be scored and teach nothing; reward_failures") == 1


def test_a_step_that_fails_where_a_new_pass_over_the_data_begins_leaves_the_trainer_as_it_was():
    fail = [True]

    def fails_once(responses, golds):
        if fail and trainer.step_number == 3:
            raise RuntimeError
        return plus(responses, golds)

    def after(reward):
        nonlocal trainer
        trainer = make_trainer(reward, prompts_per_step=24)  # 64 problems: the third step needs a second pass
        while trainer.step_number < 3:
            try:
                with undone_if_it_fails(trainer):
                    trainer.step()
            except ValueError:
                torch.rand(1), fail.clear()
        return weights(trainer)

    trainer = None
    assert torch.equal(after(plus), after(fails_once))


def test_a_step_whose_evaluation_fails_is_not_lost(tmp_path, monkeypatch):
    real, calls = held_out.evaluate, []

    def evaluate(*args, **settings):
        calls.append(1)
        if len(calls) == 2:  # after step 2
            raise RuntimeError("evaluation broke")
        return real(*args, **settings)

    monkeypatch.setattr(held_out, "evaluate", evaluate)
    with pytest.raises(RuntimeError, match="evaluation broke"):
        run(tmp_path / "run", save_every=0)
    assert [p.name for p in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-000002"]


def test_a_reward_function_may_be_an_object(tmp_path):
    class Judge:
        def __call__(self, responses, golds):
            return plus(responses, golds)

    run(tmp_path / "run", Judge(), steps=2)
    assert resume(tmp_path / "run", "--steps", "3", reward=Judge())["steps"] == 3


# ---------------------------------------------------------------------------------------------------------------------------------------
# NaN and infinities


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_changes_nothing_and_is_counted(bad, monkeypatch):
    """Even if its gradient is: the optimiser's moments must stay clean too."""
    trainer = make_trainer()
    real, calls = train_module.clipped_loss, []

    def clipped_loss(*args, **kwargs):
        calls.append(1)
        loss, stats = real(*args, **kwargs)
        return (loss + bad if len(calls) == 1 else loss), stats

    monkeypatch.setattr(train_module, "clipped_loss", clipped_loss)
    metrics, *_ = one_step(trainer)
    assert (metrics["updates"], metrics["skipped_updates"]) == (1, 1)
    assert math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])
    assert torch.isfinite(weights(trainer)).all() and trainer.optimizer.skipped_in_a_row == 0


def test_it_stops_after_ten_with_a_diagnosis_and_the_weights_are_the_last_good_ones(tmp_path, monkeypatch):
    real, calls = train_module.clipped_loss, []

    def clipped_loss(*args, **kwargs):
        calls.append(1)
        loss, stats = real(*args, **kwargs)
        return (loss if len(calls) <= 2 else loss * math.nan), stats

    monkeypatch.setattr(train_module, "clipped_loss", clipped_loss)
    with pytest.raises(SettingError) as caught:
        run(tmp_path / "run", plus, steps=30)  # every group teaches, so every update has a loss
    assert str(caught.value) == (
        "Loss or gradient was not finite in 10 updates in a row (the last: loss nan, gradient norm nan); the weights are those of the last "
        "good update. Start again with a lower --lr, or --dtype float32."
    )
    assert len(calls) == 12
    newest = checkpoints(tmp_path / "run" / "checkpoints")[0]
    assert all(w.isfinite().all() for w in checkpoint.load_file(newest / "weights.safetensors").values())


def test_the_diagnosis_tells_a_broken_model_from_a_learning_rate(tmp_path, monkeypatch):
    def message(spoil):
        def spoiled(*args):
            policy = load_policy(*args)
            spoil(policy.model)
            return policy

        monkeypatch.setattr(set_up, "load_policy", spoiled)
        once = dict(mini_batch_prompts=1, prompts_per_step=10, final_eval_problems=0, eval_data="")
        with pytest.raises(SettingError, match="in 10 updates in a row") as caught:
            run(tmp_path / spoil.__name__, plus, **once)
        return str(caught.value)

    def weights_are_nan(model):
        with torch.no_grad():
            next(model.parameters()).fill_(math.nan)

    def model_overflows(model):
        model.get_output_embeddings().register_forward_hook(lambda *args: args[-1] * math.nan)

    assert "and so are the weights" in message(weights_are_nan)
    assert "the model gives NaN already when it samples, with finite weights" in message(model_overflows)


# ---------------------------------------------------------------------------------------------------------------------------------------
# Models and answers gone wild


class Biased:
    """The model with the stop token made certain, or impossible."""

    def __init__(self, monkeypatch, trainer, bias):
        head, stops = trainer.policy.model.get_output_embeddings(), sorted(trainer.policy.stop_ids)

        def hook(module, inputs, logits):
            logits = logits.clone()
            logits[..., stops] += bias
            return logits

        head.register_forward_hook(hook)


@pytest.mark.parametrize("bias, length, truncated", [(-1e4, RUN["max_new_tokens"], 1.0), (1e4, 1, 0.0)], ids=["never stops", "stops at once"])
@pytest.mark.parametrize("method", ["grpo", "ppl+pos"])
def test_a_model_that_never_stops_or_stops_at_once(bias, length, truncated, method, monkeypatch):
    trainer = make_trainer(lambda r, g: plus(r, g), method=method)
    Biased(monkeypatch, trainer, bias)
    for _ in range(2):
        metrics, batch, _, shaped = one_step(trainer)
        assert (metrics["length"], metrics["truncated"], metrics["updates"]) == (length, truncated, 2)
        assert set(batch.lengths.tolist()) == {length} and shaped.isfinite().all() and shaped.abs().max() > 0.1
    assert torch.isfinite(weights(trainer)).all() and all(math.isfinite(e) for e in trainer.entropies)


HOSTILE = [
    r"\boxed{9^{9^{9^9}}}", r"\boxed{10^{10^{%d}}}", r"\boxed{\sum_{k=1}^{10^{9}} k^{k}}", r"\boxed{%d!!!!}", r"\boxed{(x+%d)^{100000}}",
    r"\boxed{" + "{" * 500 + "}" * 500 + "}", r"\boxed{\int_0^{%d} e^{e^{e^x}} dx}", r"\boxed{\prod_{k=1}^{9999999} \sqrt{k+%d}}",
    r"\boxed{" + r"\sin(" * 90 + "x" + ")" * 90 + "}", r"\boxed{\gcd(7^{7^{7^{%d}}}, 5)}",
]  # fmt: skip


@pytest.mark.slow
def test_100_hostile_answers_in_a_row_while_a_run_goes_on(tmp_path, monkeypatch):
    """They cost what a batch may cost, leave no process behind, and the steps after them are as fast as the steps before."""
    trainer = make_trainer(prompts_per_step=25, max_new_tokens=40)  # 100 completions, short: what is timed is the verifier
    answers = [HOSTILE[i % len(HOSTILE)].replace("%d", str(i)) for i in range(100)]
    import psutil  # among the extra test requirements

    me, seconds = psutil.Process(), []
    before = set(me.children(recursive=True))  # those of tests that ran before this one
    for number in range(7):
        with monkeypatch.context() as patch:
            if number == 3:
                patch.setattr(trainer, "reward", lambda texts, golds: reward.rewards_from(None, answers, [r"\sqrt{2}+\pi"] * 100))
            metrics, *_ = one_step(trainer)
        seconds.append(metrics["seconds_step"])
        if number == 3:
            assert metrics["accuracy"] == 0 and metrics["verifier_kills"] > 5
            assert metrics["seconds_reward"] < reward.BATCH_SECONDS + 2 * ANSWER_SECONDS + 10
        assert len(set(me.children(recursive=True)) - before) <= CHILDREN  # the checkers
    assert min(seconds[4:]) < 2 * max(seconds[:3])
    assert reward.verify(r"\boxed{\frac{\sqrt{8}}{2}}", r"\sqrt{2}")  # and it still checks


# ---------------------------------------------------------------------------------------------------------------------------------------
# Signals


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_the_signals_are_handled_during_the_run_and_given_back_after_it(name, capfd):
    if not hasattr(signal, name):
        pytest.skip("this system does not have it")
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with stop.Stop() as stopping:
        stopping.nothing_to_save = False
        os.kill(os.getpid(), number)
        assert stopping.count == 1 and stopping.name == name
        os.kill(os.getpid(), number)
        assert stopping.count == 2
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            time.sleep(1)
    assert signal.getsignal(number) is before
    said = capfd.readouterr().err
    assert f"{name}: finishing the step, then saving" in said and "finishing the update, then saving" in said


def test_before_the_first_step_there_is_nothing_to_finish(tmp_path, monkeypatch):
    monkeypatch.setattr(held_out, "evaluate", lambda *a, **k: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SettingError, match="Interrupted before the first step; nothing was trained.") as caught:
        run(tmp_path / "run")
    assert caught.value.exit_code == 128 + signal.SIGTERM


def test_a_signal_that_is_ignored_stays_ignored():
    """nohup ignores SIGHUP, so that a closed terminal does not end what it started."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with stop.Stop() as stopping:
            stopping.nothing_to_save = False
            os.kill(os.getpid(), signal.SIGTERM)
            assert stopping.count == 0
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_third_signal_stops_at_once_and_what_was_saved_stays(whole, tmp_path, monkeypatch):
    real = Trainer.gradient

    def gradient(trainer, *args):
        if trainer.step_number == 3:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGINT)
        return real(trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "gradient", gradient)
        with pytest.raises(SettingError, match=r"Stopped at once. The newest checkpoint is .*step-000002. To go on: .* --resume"):
            run(tmp_path / "run")
    resume(tmp_path / "run")
    check_equal(tmp_path / "run", whole)


def test_a_run_in_a_thread_leaves_the_signals_alone(tmp_path):
    result = []
    thread = threading.Thread(target=lambda: result.append(run(tmp_path / "run", steps=1, final_eval_problems=0, eval_data="")))
    thread.start()
    thread.join()
    assert result[0]["steps"] == 1


def test_a_terminal_that_is_gone_does_not_end_the_run(tmp_path, monkeypatch):
    class Gone:
        encoding = "utf-8"

        def write(self, *text):
            raise OSError(errno.EIO, "Input/output error")

        flush = write

    monkeypatch.setattr(sys, "stdout", Gone())
    assert run(tmp_path / "run", show_every=1)["steps"] == 4


def test_half_a_line_is_cut_from_a_log_though_its_step_is_kept(tmp_path):
    log = tmp_path / "metrics.csv"
    log.write_bytes(b"step,loss\n1,0.5\n2,0.4\n3,0.")
    assert files.cut_back(log, lambda line: True) == 3 and log.read_bytes() == b"step,loss\n1,0.5\n2,0.4\n"


def fill_folder(path: Path) -> None:
    with files.replaced_folder(path) as beside:
        (beside / "file").write_text("new")


@pytest.mark.parametrize("name", ["x", "x.part", "x.old"])
def test_whatever_is_written_whole_replaces_a_link_and_leaves_what_it_leads_to(name, tmp_path):
    from matplotlib.figure import Figure

    writers = [
        lambda path: files.write_atomically(path, "new"),
        fill_folder,
        lambda path: figures.save_figure(Figure(), path),
    ]
    for number, write in enumerate(writers):
        here, elsewhere = tmp_path / f"here{number}", tmp_path / f"elsewhere{number}"
        here.mkdir(), elsewhere.mkdir()
        (elsewhere / "file").write_text("precious")
        (here / name).symlink_to(elsewhere if number == 1 else elsewhere / "file")
        write(here / "x")
        assert [path.read_text() for path in elsewhere.rglob("*")] == ["precious"]
        assert (here / "x").exists() and not (here / "x").is_symlink()


def test_a_stream_that_is_gone_swallows_what_it_is_told():
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", buffering=1) as pipe:
        stream = text.Patient(pipe)
        assert stream.write("x\n") == 2 and stream.encoding == pipe.encoding
        stream.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)  # so that closing it works


def test_tqdm_knows_its_stream_again():
    """Or a message would run into the bar, and the bar past the end of the line."""
    patient = text.Patient(sys.stderr)
    assert DisableOnWriteError(patient, text) == patient and patient == text.Patient(sys.stderr) and patient != text.Patient(sys.stdout)


def test_a_terminal_that_knows_few_letters_does_not_end_the_run(monkeypatch, tmp_path):
    with open(tmp_path / "out", "w", encoding="ascii") as out:
        monkeypatch.setattr(sys, "stdout", out)
        text.say("\u221a2 \ud800")
    assert (tmp_path / "out").read_text() == "\\u221a2 \\ud800\n"


def test_what_a_model_wrote_cannot_move_the_cursor():
    assert text.printable("a\x1b[2J\r\b\x00\u202eb\n\tc\u221a") == "a\\x1b[2J\\r\\x08\\x00\\u202eb\n\tc\u221a"


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_command_line(number, tmp_path):
    """As a person or a job scheduler sends it: one clear line, exit code 128 + number, everything saved; --resume ends the run."""
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in RUN.items() if k != "filter_groups"] + ["--no-filter-groups", "--steps=40"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(*arguments):
        return subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
        )

    process = start(*flags, f"--out={tmp_path}", "--name=run")
    metrics = tmp_path / "run" / "metrics.csv"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 4):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "Traceback" not in err
    name = signal.Signals(number).name
    assert f"{name}: finishing the step, then saving" in err and f"{name}: stopped after step" in out and "all is saved" in out
    done = start("--resume", str(tmp_path / "run"))
    out, err = done.communicate(timeout=120)
    assert done.returncode == 0 and "resumed from step-" in out, err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 40
