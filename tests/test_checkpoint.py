"""Exact resume: a run that is stopped anywhere and resumed is the run that was never stopped. And what a checkpoint is on the disk."""

import json
import math
import os
import random
import shutil
import signal
from pathlib import Path

import numpy
import pytest
import torch
from filelock import FileLock
from helpers import RUN, SMALL_DATA, SMALL_MODEL, check_equal

from rlvr import train as train_module
from rlvr.common.files import clear_leftovers
from rlvr.config import SettingError, TrainConfig
from rlvr.data import encode_prompts, load_problems, prompt_ids
from rlvr.policy import load_policy
from rlvr.run import checkpoint, figures, set_up
from rlvr.run import folder as folder_module
from rlvr.run import session as session_module
from rlvr.run.checkpoint import checkpoints, damage, load_newest, save
from rlvr.run.cli import parse_train
from rlvr.run.log import Log
from rlvr.run.metrics import COLUMNS
from rlvr.run.session import Session
from rlvr.run.settings import read_config
from rlvr.run.sound import check_log, edits_as_sentence
from rlvr.run.state import restore_trainer, trainer_state
from rlvr.train import Step, Trainer, train

UPDATES = 2  # in each step of RUN

pytestmark = pytest.mark.usefixtures("no_figure")


@pytest.fixture
def stop_in(monkeypatch):
    """stop_in(n, times): while the n-th update of the next run is made, that many signals arrive."""
    real = Trainer.update

    def arm(n, times=1, number=signal.SIGTERM):
        count = 0

        def update(trainer, step):
            nonlocal count
            count += 1
            real(trainer, step)
            if count == n:
                for _ in range(times):
                    os.kill(os.getpid(), number)

        monkeypatch.setattr(Trainer, "update", update)

    return arm


def run(folder, **settings):
    return train(TrainConfig(**(RUN | dict(out=str(folder.parent), name=folder.name) | settings)))


def resume(folder, *flags):
    return train(parse_train(["--resume", str(folder), *flags]))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """reference(**settings): the run that was never stopped."""
    made = {}

    def get(**settings):
        key = str(settings)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("reference") / "run"
            run(made[key], **settings)
        return made[key]

    return get


# ---------------------------------------------------------------------------------------------------------------------------------------
# Exact resume


def run_and_stop(folder, stop_in, n, **settings):
    stop_in(n)
    assert run(folder, **settings)["stopped_by"] == "SIGTERM"
    stop_in(0)


def test_stopped_after_each_step_and_resumed_it_is_the_run_that_was_never_stopped(tmp_path, stop_in, reference, capsys):
    folder = tmp_path / "run"
    for done in (1, 2, 3):
        stop_in(1)
        summary = run(folder) if done == 1 else resume(folder)
        assert summary["stopped_by"] == "SIGTERM"
        assert summary["steps"] == done and checkpoints(folder / "checkpoints")[0].name == f"step-{done:06}"
        said = capsys.readouterr().out
        assert f"SIGTERM: stopped after step {done} of 4; all is saved." in said
        assert done == 1 or f"resumed from step-{done - 1:06}: {done - 1} steps done" in said
    stop_in(0)
    resume(folder)
    check_equal(folder, reference())


def test_stopped_between_two_updates_the_rest_of_the_batch_is_used(tmp_path, stop_in, reference, capsys):
    folder = tmp_path / "run"
    for n, updates in ((1, 1), (2, 3), (4, 7)):  # the n-th update of this run, and of the whole
        stop_in(n, times=2)
        summary = run(folder) if updates == 1 else resume(folder)
        assert summary["steps"] == updates // UPDATES
        assert checkpoints(folder / "checkpoints")[0].name == f"step-{updates // UPDATES:06}+1"
        assert updates == 1 or "and 1 updates of the next" in capsys.readouterr().out
    stop_in(0)
    resume(folder)
    assert "and 1 updates of the next" in capsys.readouterr().out
    check_equal(folder, reference())


def test_stopped_after_sampling_the_whole_batch_is_used(tmp_path, monkeypatch, reference):
    real = Trainer.begin

    def begin(trainer):
        step = real(trainer)
        if trainer.step_number == 2:
            os.kill(os.getpid(), signal.SIGINT), os.kill(os.getpid(), signal.SIGINT)
        return step

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "begin", begin)
        assert run(tmp_path / "run")["stopped_by"] == "SIGINT"
    assert checkpoints(tmp_path / "run" / "checkpoints")[0].name == "step-000001+0"
    with monkeypatch.context() as patch:  # the second step is not sampled again
        patch.setattr(Trainer, "begin", lambda trainer: pytest.fail("sampled again") if trainer.step_number == 1 else real(trainer))
        resume(tmp_path / "run")
    check_equal(tmp_path / "run", reference())


KINDS = {
    "grpo": dict(method="grpo"),
    "ppl": dict(method="ppl", ppl_alpha=0.2),
    "ppl+pos": dict(method="ppl+pos", ppl_alpha=0.2),
    "filtered": dict(filter_groups=True, sampling_rounds=2, mini_batch_prompts=1),
    "kl": dict(kl_coef=0.1, entropy_coef=0.01),
    "bfloat16": dict(dtype="bfloat16", weight_decay=0.1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_resume_is_exact_for_every_method(kind, tmp_path, stop_in, reference):
    """Stopped after the first step, then between the first two updates of the second."""
    settings = dict(steps=3, final_eval_problems=0, eval_data="") | KINDS[kind]
    folder = tmp_path / "run"
    stop_in(1)
    run(folder, **settings)
    assert checkpoints(folder / "checkpoints")[0].name == "step-000001"
    stop_in(1, times=2)
    resume(folder)
    assert checkpoints(folder / "checkpoints")[0].name == "step-000001+1"
    stop_in(0)
    resume(folder)
    check_equal(folder, reference(**settings))


def test_the_stage_detector_remembers(tmp_path, stop_in, monkeypatch):
    """The plateau is found before the stop, or needs the entropies from before it; either way shaping goes on from there."""
    settings = dict(method="pos", shape_start="plateau", steps=5, final_eval_problems=0, eval_data="")

    def detector(entropies):  # the plateau begins at the third step, and is not found a second time
        return 3 if len(entropies) == 3 else None

    monkeypatch.setattr(train_module, "plateau_step", detector)
    run(tmp_path / "whole", **settings)
    for n in (2, 7):  # after step 1, after step 4
        stop_in(n)
        run(tmp_path / f"run{n}", **settings)
        stop_in(0)
        resume(tmp_path / f"run{n}")
        check_equal(tmp_path / f"run{n}", tmp_path / "whole")


def test_the_place_in_the_data_is_kept_over_several_passes(tmp_path, stop_in, reference):
    (tmp_path / "six.jsonl").write_text(
        "".join(json.dumps({"problem": p.problem, "answer": p.answer}) + "\n" for p in load_problems(SMALL_DATA)[:6]), encoding="utf-8"
    )
    settings = dict(data=str(tmp_path / "six.jsonl"), instruction="", final_eval_problems=0, eval_data="")  # 4 of 6 in each step
    run_and_stop(tmp_path / "run", stop_in, 4, **settings)
    resume(tmp_path / "run")
    check_equal(tmp_path / "run", reference(**settings))


def test_rows_after_the_checkpoint_are_cut_from_the_logs(tmp_path, monkeypatch, reference):
    """A run that crashes has logged steps that its newest checkpoint does not know; they are made again, not logged twice."""
    real = Trainer.begin

    def begin(trainer):
        if trainer.step_number == 3:
            trainer.optimizer.between_updates = False  # as after a crash: nothing can be saved any more
            raise RuntimeError("crash")
        return real(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "begin", begin)
        with pytest.raises(RuntimeError, match="crash"):
            run(tmp_path / "run", save_every=2)
    assert (tmp_path / "run" / "metrics.csv").read_text().count("\n") == 5  # header, evaluation, 3 steps
    with open(tmp_path / "run" / "metrics.csv", "a") as file:
        file.write("4,rising,1,0.")  # half a row
    with open(tmp_path / "run" / "rollouts.jsonl", "a") as file:
        file.write('{"step": 4, "gro')
    resume(tmp_path / "run", "--save-every", "1")
    check_equal(tmp_path / "run", reference())


def test_a_log_that_was_spoiled_is_put_back_from_the_checkpoint_and_kept_aside(tmp_path, stop_in, reference, capsys):
    run_and_stop(tmp_path / "run", stop_in, 5)
    metrics = tmp_path / "run" / "metrics.csv"
    spoiled = metrics.read_text(encoding="utf-8").replace("\n1,", "\nhello,")
    metrics.write_text(spoiled, encoding="utf-8")
    resume(tmp_path / "run")
    assert "metrics.csv was edited (that file is metrics-edited.csv now); it is put back" in capsys.readouterr().out
    assert (tmp_path / "run" / "metrics-edited.csv").read_text(encoding="utf-8") == spoiled
    (tmp_path / "run" / "metrics-edited.csv").unlink()
    check_equal(tmp_path / "run", reference())


def rows_of(change):
    """Changes the lines of a metrics.csv."""
    return lambda data: b"\r\n".join(change(data.split(b"\r\n")))


EDITED = {
    "semicolons": (lambda data: data.replace(b",", b";"), "line 1 does not name the columns"),
    "another encoding": (lambda data: data.decode().encode("utf-16"), "codec can't decode"),
    "one column more": (lambda data: data.replace(b"\r\n", b",x\r\n"), "line 1 does not name"),
    "one cell more": (rows_of(lambda rows: [*rows[:2], rows[2] + b",7", *rows[3:]]), "line 3 has ..7.. for no column"),
    "a cell that is no number": (rows_of(lambda rows: [*rows[:2], rows[2].replace(b"rising,", b"rising,x"), *rows[3:]]), "line 3 has 'x1' for shaped"),
    "a cell that is NaN": (rows_of(lambda rows: [*rows[:2], rows[2].replace(b"rising,1", b"rising,NaN"), *rows[3:]]), "line 3 has 'NaN' for shaped"),
    "half a row": (lambda data: data[:-150], "has 'nothing' for"),
    "a missing row": (rows_of(lambda rows: [*rows[:3], *rows[4:]]), "line 4 is not the step that follows"),
    "a doubled row": (rows_of(lambda rows: [*rows[:3], *rows[2:]]), "line 4 is not the step that follows"),
    "no row": (lambda data: b"", "line 1 does not name"),
}  # fmt: skip


@pytest.mark.parametrize("kind", EDITED)
def test_an_edited_log_is_named_where_it_stands_and_mended(kind, tmp_path, reference, monkeypatch, capsys):
    data = (reference() / "metrics.csv").read_bytes()
    monkeypatch.chdir(tmp_path)
    folder = Path("run")  # a short name: a long one would shorten the sentence
    folder.mkdir()
    edit, reason = EDITED[kind]
    (folder / "metrics.csv").write_bytes(edit(data))
    with pytest.raises(SettingError, match=f"metrics.csv was edited or is damaged .*{reason}.*Put back the file .*--resume"):
        figures.read_metrics(folder)
    (folder / "checkpoints").mkdir()
    for number in (1, 2):  # a finished run, then one that has made steps since its last checkpoint
        Log(folder, TrainConfig(), 4, None, data.decode().splitlines(keepends=True)).close()
        assert (folder / "metrics.csv").read_bytes() == data and len(figures.read_metrics(folder)) == 5
        assert ("metrics.csv was edited" in capsys.readouterr().out) == (number == 1)
        with open(folder / "metrics.csv", "ab") as file:
            file.write(b"5,rising,1,0.")
    assert (folder / "metrics-edited.csv").read_bytes() == edit(data) and not (folder / "metrics-edited-2.csv").exists()


def test_a_log_that_only_got_a_mark_of_its_encoding_is_read(tmp_path, reference):
    (tmp_path / "metrics.csv").write_bytes(b"\xef\xbb\xbf" + (reference() / "metrics.csv").read_bytes())
    assert figures.read_metrics(tmp_path) == figures.read_metrics(reference())


def test_a_log_that_became_a_folder_or_is_gone_is_put_back(copy, capsys):
    data = (copy / "metrics.csv").read_bytes()
    for spoil in (lambda: (copy / "metrics.csv").mkdir(), lambda: None):
        (copy / "metrics.csv").unlink()
        spoil()
        resume(copy)
        assert (copy / "metrics.csv").read_bytes() == data
    said = capsys.readouterr().out
    assert "was edited (that file is metrics-edited.csv now)" in said and "was deleted; it is put back" in said


def test_a_log_that_is_edited_during_the_run_is_mended_at_its_end(tmp_path, monkeypatch, reference):
    real = Session.finish

    def finish(session):
        (session.folder / "metrics.csv").write_text("step;hello\n")
        real(session)

    monkeypatch.setattr(Session, "finish", finish)
    run(tmp_path / "run")
    assert len(figures.read_metrics(tmp_path / "run")) == 5


def test_a_disk_that_is_still_full_when_a_run_is_resumed_is_one_sentence(copy, monkeypatch):
    before = listing(copy)
    monkeypatch.setattr(session_module, "write_atomically", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(SettingError, match=r"cannot be written .*No space left on device\). The newest checkpoint is .*step-000004. Make room"):
        resume(copy)
    assert listing(copy) == before


def test_settings_that_were_edited_are_refused_and_a_mark_of_the_encoding_is_not(copy):
    config = copy / "config.json"
    whole = config.read_text(encoding="utf-8")
    config.write_text("\ufeff" + whole, encoding="utf-8")
    resume(copy)
    for old, new, named in (('"lr": 0.002', '"lr": 0.5', "--lr 0.002"), ('"seed": 0', '"seed": 1', "--seed 0"), ('"pos"', '"grpo"', "--method pos")):
        config.write_text(whole.replace(old, new), encoding="utf-8")
        with pytest.raises(SettingError, match=f"config.json was edited: the run has {named}. Put that back"):
            resume(copy)


def test_without_a_checkpoint_the_run_begins_anew(tmp_path, monkeypatch, reference, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(SettingError, match="There is no checkpoint yet"):
            run(tmp_path / "run")
    assert not checkpoints(tmp_path / "run" / "checkpoints")
    resume(tmp_path / "run")
    assert "there is no checkpoint: the run begins again" in capsys.readouterr().out
    check_equal(tmp_path / "run", reference())


def test_a_folder_of_checkpoints_that_cannot_be_read_is_not_one_without_any(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()

    def closed(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", closed)
    with pytest.raises(SettingError, match="checkpoints cannot be read .Permission denied.. Make it readable"):
        checkpoints(tmp_path / "checkpoints")


def test_a_finished_run_can_be_resumed_and_made_longer(tmp_path, reference, capsys):
    folder = tmp_path / "run"
    shutil.copytree(reference(lr_schedule="constant"), folder)
    resume(folder)
    check_equal(folder, reference(lr_schedule="constant"))
    with pytest.raises(SettingError, match="has made 4 steps already. Choose --steps 4 or more."):
        resume(folder, "--steps", "2")
    assert "it is complete; --steps makes it longer" in capsys.readouterr().out
    assert resume(folder, "--steps", "5")["steps"] == 5
    assert "learning rate" not in capsys.readouterr().out  # constant
    assert json.loads((folder / "config.json").read_text())["steps"] == 5
    longer = reference(lr_schedule="constant", steps=5)
    weights = [checkpoint.load_file(f / "model" / "model.safetensors") for f in (folder, longer)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_a_finished_run_without_checkpoints_is_not_begun_anew(copy):
    """They were deleted to make room: the record must stay."""
    shutil.rmtree(copy / "checkpoints")
    before = listing(copy)
    with pytest.raises(SettingError, match="has no checkpoint left. Start a new run from its weights with --model"):
        resume(copy)
    assert listing(copy) == before


def test_a_longer_run_that_is_stopped_has_no_end_to_report(tmp_path, stop_in, reference, capsys):
    folder = tmp_path / "run"
    shutil.copytree(reference(), folder)
    stop_in(1)
    summary = resume(folder, "--steps", "8")
    assert "8 steps instead of 4: the learning rate follows the new length from here on" in capsys.readouterr().out
    assert summary["steps"] == 5 and summary["pass_at_1_end"] is None and summary["pass_at_1_start"] is not None


def test_python_cannot_resume_with_other_settings_either(copy):
    with pytest.raises(SettingError, match="--lr cannot change"):
        run(copy, resume=str(copy), lr=0.5)
    with pytest.raises(SettingError, match="--warmup-steps is 2.0. Choose a value of the kind that --help shows."):
        run(copy.parent / "new", warmup_steps=2.0)


def test_another_model_is_refused(copy, monkeypatch):
    real = set_up.load_policy

    def changed(*args):
        policy = real(*args)
        with torch.no_grad():
            next(policy.model.parameters()).mul_(1.01)
        return policy

    monkeypatch.setattr(set_up, "load_policy", changed)
    with pytest.raises(SettingError, match="The model .*words is not what .* began with"):
        resume(copy, "--steps", "6")


def new_trainer(**settings) -> Trainer:
    config = TrainConfig(**(RUN | settings))
    policy = load_policy(config.model)
    problems, prompts, _ = encode_prompts(policy.tokenizer, load_problems(config.data), "", 128)
    return Trainer(config, policy, problems, prompts)


def test_every_random_generator_is_saved(tmp_path):
    trainer = new_trainer()
    save(tmp_path, *trainer_state(trainer, None), steps_done=0, updates=None, keep=1)

    def draws():
        return random.random(), numpy.random.rand(), torch.rand(1).item(), trainer.shuffle.random(), torch.rand(
            1, generator=trainer.generator
        ).item()

    first = draws()
    assert draws() != first
    restore_trainer(trainer, *load_newest(tmp_path)[1:], Step)
    assert draws() == first


def test_weights_that_are_tied_are_saved_once_and_stay_tied(tmp_path):
    trainer = new_trainer()
    model = trainer.policy.model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    save(tmp_path, *trainer_state(trainer, None), steps_done=0, updates=None, keep=1)
    _, tensors, state = load_newest(tmp_path)
    assert sum(w.numel() for w in tensors["weights"].values()) == sum(p.numel() for p in model.parameters())
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        for weight in model.parameters():
            weight.zero_()
        restore_trainer(trainer, tensors, state, Step)
        assert torch.equal(model(input_ids=ids).logits, before)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_what_memory_allowed_is_remembered_unless_the_flag_changes(tmp_path):
    trainer = new_trainer(micro_batch_tokens=4096, sampling_rows=64)
    trainer.micro_batch_tokens.size, trainer.policy.complete.rows = 1024, 16
    tensors, state = trainer_state(trainer, None)
    again = new_trainer(micro_batch_tokens=4096, sampling_rows=128)
    restore_trainer(again, tensors, json.loads(json.dumps(state)), Step)
    assert (again.micro_batch_tokens.size, again.policy.complete.rows) == (1024, None)


def test_another_machine_is_noted(tmp_path, capsys):
    trainer = new_trainer()
    tensors, state = trainer_state(trainer, None)
    restore_trainer(trainer, tensors, state, Step)
    assert "note" not in capsys.readouterr().out
    state["made_with"]["torch"] = "1.0"
    restore_trainer(trainer, tensors, state, Step)
    assert f"made with torch 1.0 (now {torch.__version__})" in capsys.readouterr().out
    state["made_with"]["torch"] = "\x1b[2J"  # from somebody else
    restore_trainer(trainer, tensors, state, Step)
    assert "made with torch \\x1b[2J (now" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------------------------------
# On the disk


@pytest.fixture
def folder(tmp_path):
    """Three checkpoints of a few numbers."""
    for step in (1, 2, 3):
        tensors = {"weights": {"w": torch.full((4,), float(step))}, "optimizer": {"0.exp_avg": torch.zeros(4)}}
        save(tmp_path / "checkpoints", tensors, {"step": step}, steps_done=step, updates=None, keep=9)
    return tmp_path / "checkpoints"


def test_the_newest_is_loaded_and_only_as_many_as_asked_are_kept(folder):
    assert load_newest(folder)[2] == {"step": 3}
    tensors = {"weights": {"w": torch.ones(4)}, "optimizer": {}}
    save(folder, tensors, {"step": 4}, steps_done=3, updates=2, keep=2)
    assert [p.name for p in checkpoints(folder)] == ["step-000003+2", "step-000003"]
    save(folder, tensors, {"step": 5}, steps_done=999_999, updates=None, keep=1)
    save(folder, tensors, {"step": 6}, steps_done=1_000_000, updates=2, keep=2)
    save(folder, tensors, {"step": 7}, steps_done=1_000_000, updates=11, keep=3)  # by number: the letters would put 9 before 1, 2 before 11
    assert [p.name for p in checkpoints(folder)] == ["step-1000000+11", "step-1000000+2", "step-999999"]
    save(folder, tensors, {"step": 8}, steps_done=1_000_001, updates=None, keep=1)
    assert [p.name for p in checkpoints(folder)] == ["step-1000001"] == [p.name for p in folder.iterdir()]


def test_every_so_manyth_is_kept_besides(folder):
    tensors = {"weights": {"w": torch.ones(4)}, "optimizer": {}}
    for steps_done, updates in ((4, None), (4, 1), (5, None), (6, None), (7, None)):
        save(folder, tensors, {}, steps_done=steps_done, updates=updates, keep=1, keep_every=2)
    assert [p.name for p in checkpoints(folder)] == ["step-000007", "step-000006", "step-000004", "step-000002"]
    save(folder, tensors, {}, steps_done=8, updates=None, keep=1)
    assert [p.name for p in checkpoints(folder)] == ["step-000008"]


def test_updates_of_the_next_step_are_newer_than_the_step():
    names = ["step-000009", "step-000010", "step-000010+0", "step-000010+2", "step-000010+11", "step-000011"]
    keys = [tuple(-1 if g is None else int(g) for g in checkpoint.NAME.fullmatch(n).groups()) for n in names]
    assert keys == sorted(keys)


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "a flipped bit in the weights": (lambda p: flip_a_bit(p / "weights.safetensors"), "weights.safetensors has other content"),
    "a flipped bit in the state": (lambda p: flip_a_bit(p / "state.json"), "state.json has other content"),
    "half a file": (lambda p: os.truncate(p / "optimizer.safetensors", 20), "optimizer.safetensors has 20 bytes, not"),
    "an empty file": (lambda p: os.truncate(p / "state.json", 0), "state.json has 0 bytes"),
    "a missing file": (lambda p: (p / "weights.safetensors").unlink(), "weights.safetensors is missing"),
    "no manifest": (lambda p: (p / "manifest.json").unlink(), "manifest.json is missing"),
    "half a manifest": (lambda p: os.truncate(p / "manifest.json", 30), "cannot be read"),
    "an empty manifest": (lambda p: (p / "manifest.json").write_text("{}"), "names too few files"),
    "a manifest that is a list": (lambda p: (p / "manifest.json").write_text("[]"), "cannot be read"),
    "an empty folder": (lambda p: [f.unlink() for f in p.iterdir()], "manifest.json is missing"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_recognised_and_the_one_before_it_used(kind, folder, capsys):
    do, reason = DAMAGE[kind]
    do(folder / "step-000003")
    assert reason in damage(folder / "step-000003") and damage(folder / "step-000002") is None
    path, tensors, state = load_newest(folder)
    assert path.name == "step-000002" and state == {"step": 2} and tensors["weights"]["w"].tolist() == [2.0] * 4
    assert "checkpoint step-000003 is damaged" in capsys.readouterr().out
    # it is out of the way, so that the next one is not deleted in its favour
    assert sorted(p.name for p in folder.iterdir()) == ["step-000001", "step-000002", "step-000003.damaged"]


def test_if_all_are_damaged_nothing_is_touched(folder):
    for path in checkpoints(folder):
        (path / "manifest.json").unlink()
    with pytest.raises(SettingError, match="are damaged. Put them back from a copy, or start a new run"):
        load_newest(folder)
    assert len(checkpoints(folder)) == 3


def test_a_checkpoint_that_was_not_finished_is_no_checkpoint(folder, monkeypatch):
    def crash(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", crash)
    with pytest.raises(KeyboardInterrupt):
        save(folder, {"weights": {}}, {}, steps_done=4, updates=None, keep=1)
    assert [p.name for p in folder.iterdir() if p.name > "step-000003"] == [] and len(checkpoints(folder)) == 3
    (folder / "step-000009.part").mkdir()  # as a kill leaves it
    assert load_newest(folder)[0].name == "step-000003"
    clear_leftovers(folder, "step-*")
    assert len(list(folder.iterdir())) == 3


def test_resuming_over_a_damaged_checkpoint_is_exact(tmp_path, stop_in, monkeypatch, reference, capsys):
    run_and_stop(tmp_path / "run", stop_in, 5)
    flip_a_bit(tmp_path / "run" / "checkpoints" / "step-000003" / "weights.safetensors")
    resume(tmp_path / "run", "--keep", "1")
    said = capsys.readouterr().out
    assert "step-000003 is damaged" in said and "resumed from step-000002" in said
    check_equal(tmp_path / "run", reference())
    assert [p.name for p in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-000004"]


# ---------------------------------------------------------------------------------------------------------------------------------------
# What somebody has edited, with hashes that fit again


@pytest.fixture(scope="module")
def half_a_step():
    """A trainer after one update of its first step, and its state as JSON."""
    trainer = new_trainer()
    step = trainer.begin()
    trainer.update(step)
    tensors, state = trainer_state(trainer, step)
    return trainer, tensors, json.dumps(state)


NORM = "model.norm.weight"
IMPOSSIBLE = {
    "a problem that does not exist": (lambda s, t: s.update(queue=[64]), "its queue"),
    "a problem before the first": (lambda s, t: s.update(queue=[-1]), "its queue"),
    "a problem that is a text": (lambda s, t: s.update(queue=["a"]), "its queue"),
    "a queue that is a number": (lambda s, t: s.update(queue=7), "not iterable"),
    "no queue": (lambda s, t: s.pop("queue"), "queue"),
    "a step before the first": (lambda s, t: s.update(step_number=-1), "its step number"),
    "an entropy too many": (lambda s, t: s["entropies"].append(1.0), "its entropies"),
    "a plateau to come": (lambda s, t: s.update(plateau=2), "its plateau"),
    "no tokens at once": (lambda s, t: s.update(micro_batch_tokens=[4096, 0]), "its batch sizes"),
    "no rows at once": (lambda s, t: s.update(sampling_rows=[512, 0]), "its batch sizes"),
    "a machine that is a number": (lambda s, t: s["made_with"].update(torch=2), "its machine"),
    "a generator that reads beyond its end": (lambda s, t: s["random"]["numpy"].__setitem__(2, 10**6), "its generator"),
    "half a generator": (lambda s, t: s.update(generator=s["generator"][:100]), "Expected a CPUGeneratorImplState"),
    "a generator that is no number": (lambda s, t: s["shuffle"].__setitem__(2, "x"), "can.t multiply sequence"),
    "a weight that broadcasts": (lambda s, t: t["weights"].update({NORM: torch.ones(1)}), "its weights"),
    "a weight that is NaN": (lambda s, t: t["weights"].update({NORM: torch.full((32,), torch.nan)}), "its weights"),
    "a weight in another precision": (lambda s, t: t["weights"].update({NORM: torch.ones(32).half()}), "its weights"),
    "a weight less": (lambda s, t: t["weights"].pop(NORM), "its weights"),
    "a weight more": (lambda s, t: t["weights"].update(x=torch.ones(1)), "its weights"),
    "no weights": (lambda s, t: t.pop("weights"), "weights"),
    "a moment that broadcasts": (lambda s, t: t["optimizer"].update({"0.exp_avg": torch.ones(1)}), "its moments"),
    "a moment that is infinite": (lambda s, t: t["optimizer"]["0.exp_avg"].fill_(torch.inf), "its moments"),
    "a square below 0": (lambda s, t: t["optimizer"]["0.exp_avg_sq"].fill_(-1), "its moments"),
    "a moment less": (lambda s, t: t["optimizer"].pop("0.exp_avg"), "its moments"),
    "no update before": (lambda s, t: t["optimizer"]["0.step"].zero_(), "its moments"),
    "a moment of no weight": (lambda s, t: t["optimizer"].update({"999.step": torch.ones(())}), "999"),
    "a token beyond the vocabulary": (lambda s, t: t["batch"]["rollouts.completion_ids"].fill_(999), "its tokens"),
    "a prompt of nothing": (lambda s, t: s["unfinished"]["rollouts.prompt_ids"].__setitem__(0, []), "its tokens"),
    "a mask that is not that of the lengths": (lambda s, t: t["batch"]["rollouts.lengths"].fill_(999), "its batch"),
    "an advantage that broadcasts": (lambda s, t: t["batch"].update(shaped=torch.ones(16, 1)), "its batch"),
    "a reward less": (lambda s, t: t["batch"].update(rewards=torch.ones(15)), "its batch"),
    "a text less": (lambda s, t: s["unfinished"]["rollouts.text"].pop(), "its texts"),
    "a row of no problem": (lambda s, t: s["unfinished"]["problem_ids"].__setitem__(0, 64), "its problems"),
    "an update of no group": (lambda s, t: s["unfinished"]["mini_batches"].__setitem__(1, [99]), "its groups"),
    "an update too many": (lambda s, t: s["unfinished"].update(updates=s["unfinished"]["updates"] * 9), "its updates"),
    "a field of no batch": (lambda s, t: s["unfinished"].update({"rollouts.x": 1}), "unexpected keyword"),
}  # fmt: skip


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_a_state_that_no_run_can_be_in_is_one_sentence_and_changes_nothing(kind, half_a_step):
    trainer, tensors, state = half_a_step
    spoil, reason = IMPOSSIBLE[kind]
    edited, spoiled = json.loads(state), {file: {name: x.clone() for name, x in group.items()} for file, group in tensors.items()}
    spoil(edited, spoiled)
    with pytest.raises(SettingError, match=f"The checkpoint here was edited or is damaged: .*{reason}.*Copy the run folder again"):
        with edits_as_sentence("here"):
            restore_trainer(trainer, spoiled, edited, Step)
    now, _ = trainer_state(trainer, None)
    assert all(torch.equal(now["weights"][name], x) for name, x in tensors["weights"].items())
    assert restore_trainer(trainer, tensors, json.loads(state), Step).updates


RECORD = {
    "no end": ({"last": {"problems": 3}}, "metrics"),
    "an accuracy without its interval": ({"last": {"problems": 3, "metrics": {"pass@1": [0.5]}}}, "its evaluations"),
    "an accuracy that is NaN": ({"last": {"problems": 3, "metrics": {"pass@1": [0.5, 0.4, math.nan]}}}, "its evaluations"),
    "seconds that are a text": ({"seconds": "x"}, "its seconds"),
    "fewer updates than none": ({"updates": {"updates": -1}}, "its counts"),
    "rows of another step": ({"rows": ["step,loss\r\n", "4,1\r\n"]}, "line 1 does not name"),
    "rows that are numbers": ({"rows": [1, 2]}, "iterator should return strings"),
    "no row": ({"rows": [",".join(COLUMNS) + "\r\n"]}, "its rows"),
}


@pytest.mark.parametrize("kind", RECORD)
def test_a_record_that_no_run_has_made_is_one_sentence(kind, reference):
    rows = (reference() / "metrics.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    log, watch = {"steps": 4, "updates": {"updates": 8}, "first": None, "last": None, "seconds": 1.0, "rows": rows}, [{}, {"rounds": 1, "kills": 0, "drift": None}]
    check_log(log, watch, 0, 4, ["pass@1"])
    edited, reason = RECORD[kind]
    with pytest.raises(SettingError, match=reason), edits_as_sentence("here"):
        check_log(log | edited, watch, 0, 4, ["pass@1"])


def edit_newest(folder, edit):
    """Change the state of the newest checkpoint, and make its manifest fit again."""
    newest = checkpoints(folder / "checkpoints")[0]
    state, manifest = (json.loads((newest / name).read_text()) for name in ("state.json", "manifest.json"))
    edit(state, manifest)
    (newest / "state.json").write_text(json.dumps(state))
    manifest["state.json"] = {"size": (newest / "state.json").stat().st_size, "sha256": checkpoint._sha256(newest / "state.json")}
    (newest / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("edit", [lambda s, m: s.clear(), lambda s, m: s.update(watch=[]), lambda s, m: s["log"].update(rows=[]), lambda s, m: s.update(queue=[64])])
def test_a_run_whose_checkpoint_was_edited_is_not_resumed(edit, copy):
    edit_newest(copy, edit)
    before = listing(copy)
    with pytest.raises(SettingError, match="step-000004 was edited or is damaged"):
        resume(copy, "--steps", "5")
    assert listing(copy) == before


def test_a_manifest_that_names_a_device_or_a_file_elsewhere_is_damaged(folder):
    for name in ("/dev/zero", "../step-000002/state.json", ".."):
        edit_newest(folder.parent, lambda state, manifest: manifest.update({name: {"size": (folder / "step-000003" / name).stat().st_size}}))
        assert "is no file of it" in damage(folder / "step-000003")
        edit_newest(folder.parent, lambda state, manifest: manifest.pop(name))
    assert damage(folder / "step-000003") is None
    (folder / "step-000003" / "manifest.json").unlink()
    os.mkfifo(folder / "step-000003" / "manifest.json")
    assert damage(folder / "step-000003") == "manifest.json is no file"


# ---------------------------------------------------------------------------------------------------------------------------------------
# What is refused


@pytest.fixture
def copy(tmp_path, reference):
    """A run of four steps, to be spoiled."""
    shutil.copytree(reference(), tmp_path / "run")
    return tmp_path / "run"


def listing(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("flags", ["--lr 1e-4", "--method grpo", "--seed 3", "--name other", "--prompts-per-step 8"])
def test_a_setting_that_changes_the_result_cannot_change(flags, copy):
    with pytest.raises(SettingError, match=f"{flags.split()[0]} cannot change in a run that is resumed. Leave it out"):
        parse_train(["--resume", str(copy), *flags.split()])


@pytest.mark.parametrize(
    "flags", ["--threads 1", "--micro-batch-tokens 999", "--sampling-rows 7", "--keep 5", "--save-every 0", "--steps 9"]
)
def test_a_setting_that_does_not_change_the_result_can(flags, copy):
    config = parse_train(["--resume", str(copy), *flags.split()])
    assert str(getattr(config, flags.split()[0].strip("-").replace("-", "_"))) == flags.split()[1]
    assert (config.method, config.lr) == ("pos", 2e-3)


def test_other_problems_are_refused_and_nothing_is_touched(copy, monkeypatch):
    real = set_up.load_problems
    monkeypatch.setattr(set_up, "load_problems", lambda *a, **k: real(*a, **k)[1:])
    before = listing(copy)
    with pytest.raises(SettingError, match="The problems are not those that .* began with"):
        resume(copy, "--steps", "6")
    assert listing(copy) == before


def test_another_reward_function_is_refused(copy):
    with pytest.raises(SettingError, match="was trained with the reward function verify_all, not longest"):
        train(parse_train(["--resume", str(copy)]), reward=lambda_named("longest"))


def test_a_run_goes_on_from_another_folder_and_after_its_model_and_data_were_moved(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir(), (tmp_path / "elsewhere").mkdir()
    shutil.copytree(SMALL_MODEL, tmp_path / "here" / "words"), shutil.copy(SMALL_DATA, tmp_path / "here" / "sums.jsonl")
    monkeypatch.chdir(tmp_path / "here")
    run(Path("runs/run"), steps=1, model="words", data="sums.jsonl", eval_data="sums.jsonl")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert resume("../here/runs/run", "--steps", "2")["steps"] == 2
    (tmp_path / "here" / "words").rename("other"), (tmp_path / "here" / "sums.jsonl").rename("others.jsonl"), (tmp_path / "here").rename("moved")
    there = ["--model", "other", "--data", "others.jsonl", "--eval-data", "others.jsonl"]
    assert resume("moved/runs/run", "--steps", "3", *there)["steps"] == 3
    assert read_config(Path("moved/runs/run")).data == "others.jsonl"
    Path("fewer.jsonl").write_text("".join(open("others.jsonl").readlines()[1:]), encoding="utf-8")
    for moved, message in (("--data fewer.jsonl", "The problems are not those that .* Name those with --data"), ("--model tiny", "The .* not .*began with")):
        with pytest.raises(SettingError, match=message):
            resume("moved/runs/run", *moved.split())


def test_settings_that_are_no_path_of_the_run_are_left_alone(copy):
    (copy.parent / "tiny").mkdir()
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    for out in (str(copy.parent), "../x", "a/" * 99, "."):
        (copy / "config.json").write_text(json.dumps(config | {"model": "tiny", "data": "nobody/set", "out": out}), encoding="utf-8")
        found = read_config(copy)
        assert (found.model, found.data) == ("tiny", "nobody/set")


def test_a_reward_function_may_be_moved_too(copy, monkeypatch):
    (copy / "config.json").write_text((copy / "config.json").read_text().replace('"reward": ""', '"reward": "old/my rewards.py:short"'))
    assert parse_train(["--resume", str(copy), "--reward", "new/my rewards.py:short"]).reward == "new/my rewards.py:short"
    with pytest.raises(SettingError, match="add --reward 'old/my rewards.py:short'"):
        parse_train(["--resume", str(copy)])
    with pytest.raises(SettingError, match="--reward cannot change .* Give the run's own"):
        parse_train(["--resume", str(copy), "--reward", "old/my rewards.py:long"])


def test_another_day_changes_no_prompt():
    """A template with today's date: that of a fixed day is taken."""
    tokenizer = load_policy("tiny").tokenizer
    date = "{% if strftime_now is defined %}{%- set date = strftime_now('%d %b %Y, %f') %}{%- endif %}"
    for template in ("\n" + date + "{{ date }} {{ messages[0]['content'] }}", "\n{{ messages[0]['content'] }}"):
        tokenizer.chat_template = template
        text = tokenizer.decode(prompt_ids(tokenizer, "1 + 1", ""))
        assert text == ("\n04 Aug 2025, 000000 1 + 1" if date in template else "\n1 + 1")


def lambda_named(name):
    def function(responses, golds):
        return [1.0] * len(responses)

    function.__qualname__ = name
    return function


WRITTEN = ["metrics.csv", "rollouts.jsonl", "curves.png", "config.json.part", ".lock", "checkpoints/step-000009.part"]


@pytest.mark.parametrize(
    "name, link", [*((name, os.symlink) for name in WRITTEN), ("rollouts.jsonl", os.link), ("metrics.csv", lambda _, path: os.mkfifo(path))]
)
def test_a_link_in_a_run_folder_is_refused_and_what_it_leads_to_stays(name, link, copy, tmp_path):
    (tmp_path / "precious").write_text("precious")
    config = parse_train(["--resume", str(copy)])
    (copy / name).unlink(missing_ok=True)
    link(tmp_path / "precious", copy / name)
    with pytest.raises(SettingError, match=f"{name} is a link, a pipe or a device"), folder_module.claimed_run_folder(config):
        pass
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("name", ["checkpoints", "model", "tensorboard"])
def test_a_linked_folder_in_a_run_folder_is_refused(name, copy, tmp_path):
    shutil.rmtree(copy / name, ignore_errors=True)
    (copy / name).symlink_to(tmp_path)
    with pytest.raises(SettingError, match=f"{name} is a link"):
        resume(copy)


def test_two_processes_cannot_write_one_run_folder(copy, tmp_path):
    with FileLock(copy / ".lock"):
        before = listing(copy)
        with pytest.raises(SettingError, match="Another process is writing the run folder .*run. Wait until it has ended"):
            resume(copy)
        assert listing(copy) == before
    resume(copy)


def test_two_runs_that_start_together_get_two_folders(tmp_path, monkeypatch):
    """Both find the name free; the one that comes second to the lock takes the next name."""
    config, real, other = TrainConfig(**RUN, out=str(tmp_path)), folder_module.run_folder, []

    def slow(config):
        folder = real(config)
        if not other:  # in this very moment another process takes it ...
            other.append(FileLock(folder / ".lock"))
            folder.mkdir()
            other[0].acquire()
        elif not (folder / "config.json").exists():  # ... and then writes its settings there
            (tmp_path / "pos-seed0" / "config.json").write_text("{}")
        return folder

    monkeypatch.setattr(folder_module, "run_folder", slow)
    with folder_module.claimed_run_folder(config) as folder:
        assert folder.name == "pos-seed0-2"
    other[0].release()


def test_what_is_the_users_own_is_left_alone_and_a_half_swapped_folder_is_put_back(tmp_path):
    (tmp_path / "notes.old").write_text("mine")
    (tmp_path / "config.json.old").write_text("mine")
    (tmp_path / "model.part").mkdir()
    (tmp_path / "model.old").mkdir()
    for pattern in ("config.json", "model"):
        clear_leftovers(tmp_path, pattern)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json.old", "model", "notes.old"]
    (tmp_path / "model.old").mkdir()
    clear_leftovers(tmp_path, "model")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json.old", "model", "notes.old"]
