"""The session around the training loop: the run folder, checkpoints, the log, evaluations and signals. It resumes a run, and ends it.

    with session(trainer, held_out, Step) as run:
        for step in run.steps():
            while not step.finished and run.may_go_on():
                trainer.update(step)
            run.log(step)
"""

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from tqdm import tqdm

from rlvr.common.files import write_atomically
from rlvr.common.text import printable, progress_bar, quoted, say, table
from rlvr.config import SettingError, as_sentence, flag, refuse
from rlvr.engine import parallel
from rlvr.engine.memory import memory_error_as_sentence
from rlvr.run import checkpoint, figures
from rlvr.run.branch import start_branch
from rlvr.run.cli import resume_command
from rlvr.run.folder import claimed_run_folder
from rlvr.run.held_out import HeldOut
from rlvr.run.log import Log
from rlvr.run.metrics import Watch, entropies
from rlvr.run.publish import check_can_save, measured_rows, model_card, push, save_model
from rlvr.run.settings import MAY_CHANGE, MAY_MOVE, first_step
from rlvr.run.sound import check_log, check_sound, edits_as_sentence
from rlvr.run.state import model_fingerprint, restore_trainer, reward_name, trainer_state, undone_if_it_fails
from rlvr.run.stop import Stop

NON_FINITE_LIMIT = 10  # updates in a row with a NaN or infinite loss or gradient before the run gives up


@contextmanager
def session(trainer, held_out: HeldOut, step_type: type):
    """A `Session` in its folder, which is locked against other processes. However the run ends, what was done is saved.

    step_type: what the trainer's `begin` returns, to make one from a checkpoint. In a process that only helps (see parallel.py) there is
    no session, but somebody else's work until that ends.
    """
    if (team := parallel.team(trainer.config)) and team.rank:
        yield team.follower(trainer)
        return
    helped = team.helping(trainer) if team else nullcontext()
    with claimed_run_folder(trainer.config) as folder, Stop() as stop, memory_error_as_sentence(), helped:
        run = Session(trainer, held_out, step_type, folder, stop)
        try:
            yield run
            run.finish()
        except KeyboardInterrupt:
            if not stop.count:  # nobody pressed Ctrl-C: a reward function raised it
                with suppress(KeyboardInterrupt):
                    run.save_what_was_done()
            raise run.interrupted() from None
        except Exception:
            run.save_what_was_done()
            raise
        finally:
            run.close()


class Session:
    """One run in progress."""

    def __init__(self, trainer, held_out: HeldOut, step_type: type, folder: Path, stop: Stop):
        self.trainer, self.config, self.held_out, self.step_type = trainer, trainer.config, held_out, step_type
        self.folder, self.stop = folder, stop
        self.watch = Watch(trainer)
        self.started, self.saving_seconds = time.perf_counter(), 0.0
        self.step = None  # the step in progress
        self.totals = Counter(updates=0, skipped_updates=0)  # over all steps
        self.first = first_step(trainer.config)  # steps made before this run began: those of the run that it branches from
        self.last_step = self.first  # the last one logged
        self.unscored = 0  # rewards that were no numbers, since this process began
        self.evaluated: dict[str, float] = {}  # numbers of an evaluation, for the row of its step
        # The evaluations before the first step and after the last: number of problems, and metrics.
        self.measured: dict[str, dict | None] = {"start": None, "end": None}
        self.saved: Path | None = None  # the newest checkpoint
        self.save_failed = ""  # why the last attempt at one came to nothing
        self.summary: dict = {}  # when all is done
        self.log_files: Log | None = None
        self.rows: list[str] = []  # the lines of metrics.csv that the checkpoint has
        self.bar: tqdm | None = None

    @property
    def steps_done(self) -> int:
        return self.trainer.step_number - (self.step is not None)

    def seconds(self) -> float:
        """Since the run began, without the time between being stopped and resumed."""
        return time.perf_counter() - self.started

    # -----------------------------------------------------------------------------------------------------------------------------------
    # The loop

    def steps(self) -> Iterator:
        """The steps that are left to do. Each is begun, or found half done in the newest checkpoint, and must be logged before the next."""
        c = self.config
        self._open()
        if self.trainer.step_number == self.first:
            self._evaluate(self.first, c.final_eval_problems)
        self.stop.nothing_to_save = False
        self.bar = progress_bar(total=c.steps, initial=self.steps_done, desc=c.method, unit="step")
        while self.steps_done < c.steps and not self.stop.count:
            if self.step is None:
                with undone_if_it_fails(self.trainer):
                    self.step = self.trainer.begin()
            yield self.step

    def may_go_on(self) -> bool:
        """Whether another update may be made: False after a second signal. Raises SettingError if too many came to nothing."""
        self._check_finite()
        return self.stop.count < 2

    def log(self, step) -> None:
        """Record a step that is finished: evaluation, CSV row, a few completions, progress bar, checkpoint. A step that is not waits."""
        self._check_finite()
        if not step.finished:
            return
        self.step, c, number = None, self.config, self.trainer.step_number
        try:
            if number == c.steps:
                self._evaluate(number, c.final_eval_problems)
            elif c.eval_every and number % c.eval_every == 0:
                self._evaluate(number, c.eval_problems)
        finally:  # whatever becomes of its evaluation, the step is done
            self._record(step, number)
        self.bar.update()
        due = self.save_failed or (c.save_every and number % c.save_every == 0)
        if due and number < c.steps:  # after the last step it is saved when the run ends
            self.save()

    def _record(self, step, number: int) -> None:
        batch, correct, row = step.rollouts, step.rewards > 0, self.watch.row(step)
        self.log_files.row(row | self.evaluated)
        self.log_files.completions(number, batch, correct, step.shaped)
        self.evaluated, self.last_step = {}, number
        self.totals.update({name: row[name] for name in self.totals})
        if row["reward_failures"] and not self.unscored:
            what = f"{row['reward_failures']} of {len(batch)} completions of step {number} could not be scored"
            say(f"note: {what} and teach nothing; reward_failures in metrics.csv counts them at each step")
        self.unscored += row["reward_failures"]
        shown = {"reward": f"{row['reward']:+.2f}", "accuracy": f"{row['accuracy']:.2f}", "entropy": f"{row['entropy']:.3f}"}
        self.bar.set_postfix(shown, refresh=False)
        if self.bar.disable:  # a log file gets a line instead
            say(f"step {number}: " + ", ".join(f"{name} {value}" for name, value in shown.items()))
        if self.config.show_every and (number == 1 or number % self.config.show_every == 0):
            i = (number * 7919) % len(batch)  # any row, but not always the same one
            prompt = self.trainer.policy.tokenizer.decode(batch.prompt_ids[i], skip_special_tokens=True)
            verdict = "right" if correct[i] else "wrong"
            say(f"\n--- step {number}, a sample ({verdict}, {int(batch.lengths[i])} tokens)\n{printable(prompt + batch.text[i])}\n---")

    def _evaluate(self, number: int, problems: int) -> None:
        """Print an evaluation and keep its numbers for the row of its step, which is logged next; step 0 gets a row here."""
        if not self.held_out.problems:
            return
        result = self.held_out.measure(self.trainer.policy, self.config, problems)
        n, k, kept = len(result.rows), self.config.eval_completions, {"problems": len(result.rows), "metrics": result.metrics}
        mean, low, high = result.metrics["pass@1"]
        most = result.metrics[f"pass@{k}"][0]
        say(f"step {number}: held-out pass@1 {mean:.3f} [{low:.3f}, {high:.3f}], pass@{k} {most:.3f} ({n} problems)")
        self.evaluated = {"eval_pass_at_1": mean, "eval_pass_at_1_low": low, "eval_pass_at_1_high": high, "eval_pass_at_max": most,
                          "eval_problems": n}  # fmt: skip
        if number == self.first:
            self.measured["start"] = kept
            stage = "plateau" if self.trainer.plateau else "rising"
            self.log_files.row({"step": number, "stage": stage} | entropies(result.rollouts, torch.tensor(result.correct)) | self.evaluated)
            self.evaluated = {}
        if number == self.config.steps:
            self.measured["end"] = kept

    def _check_finite(self) -> None:
        """Give up if no update could be made for too long, and say why, as far as it shows. Raises SettingError."""
        optimizer = self.trainer.optimizer
        if optimizer.skipped_in_a_row < NON_FINITE_LIMIT:
            return
        optimizer.skipped_in_a_row = 0  # resumed, the run may try again
        last = f"loss {self.step.updates[-1]['loss']:g}, gradient norm {self.step.updates[-1]['grad_norm']:g}"
        what = f"Loss or gradient was not finite in {NON_FINITE_LIMIT} updates in a row (the last: {last})"
        if not all(p.isfinite().all() for p in optimizer.weights.parameters):
            raise SettingError(f"{what}, and so are the weights. Go back to a model folder whose weights are sound.")
        if not self.step.rollouts.old_logp.isfinite().all():
            raise SettingError(f"{what}; the model gives NaN already when it samples, with finite weights. Choose --dtype float32.")
        raise SettingError(f"{what}; the weights are those of the last good update. Start again with a lower --lr, or --dtype float32.")

    # -----------------------------------------------------------------------------------------------------------------------------------
    # Begin and resume

    def _open(self) -> None:
        """Resume from the newest checkpoint, if asked to, and open the files of the run. Raises SettingError."""
        c = self.config
        check_can_save(self.folder, c, self.trainer.policy)
        trained, held_out = ([(p.problem, p.answer) for p in some] for some in (self.trainer.problems, self.held_out.problems))
        self.data = checkpoint.fingerprint(trained, self.trainer.prompts, held_out)
        self.model = model_fingerprint(self.trainer.policy.model)
        planned = self._resume() if c.resume else c.steps
        if c.branch and not self.saved:
            start_branch(self.trainer)
        remedy = f"Make room or clear what is in the way, then: {resume_command(self.folder, c.reward)}"
        with as_sentence(f"The run folder {self.folder} cannot be written", f"{self._saved_as()} {remedy}", OSError):
            # The settings first: from here on the folder is a run, which can be resumed.
            write_atomically(self.folder / "config.json", json.dumps(dataclasses.asdict(c) | {"resume": ""}, indent=2) + "\n")
            self.log_files = Log(self.folder, c, self.last_step if self.saved else -1, self.trainer.policy.tokenizer, self.rows)
        self._say_what_runs(planned)

    def _resume(self) -> int:
        """Put the trainer into the state of the newest checkpoint. Returns for how many steps the run was planned."""
        c = self.config
        found = checkpoint.load_newest(self.folder / "checkpoints")
        if found is None:
            left = f"{self.folder} has no checkpoint left. Start a new run from its weights with --model {quoted(self.folder)}"
            refuse((self.folder / "summary.json").exists(), left)
            return c.steps
        self.saved, tensors, state = found
        with edits_as_sentence(self.saved):
            return self._restore(tensors, state)

    def _restore(self, tensors: dict, state: dict) -> int:
        """The rest of `_resume`, from what the checkpoint holds."""
        c = self.config
        # fmt: off
        refuse(state["data"] != self.data,
               f"The problems are not those that {self.folder} began with. Name those with --data and --eval-data, or start anew.")
        refuse(state["model"] != self.model,
               f"The model {c.model} is not what {self.folder} began with, in weights or precision. Name that one, on such a device.")
        refuse(state["reward"] != (name := reward_name(self.trainer)),
               f"{self.folder} was trained with the reward function {state['reward']}, not {name}. Pass that one to train().")
        # fmt: on
        # JSON has no tuples.
        saved = {name: tuple(value) if isinstance(value, list) else value for name, value in state["settings"].items()}
        edited = [f"{flag(name)} {value}" for name, value in saved.items() if value != getattr(c, name)]
        refuse(edited, f"{self.folder / 'config.json'} was edited: the run has {', '.join(edited)}. Put that back, or start anew.")
        self.step = restore_trainer(self.trainer, tensors, state, self.step_type)
        check_log(state["log"], state["watch"], self.first, checkpoint.step_of(self.saved), self._shown())
        check_sound(name=checkpoint.step_of(self.saved) != self.steps_done)
        self.watch.seconds.update(state["watch"][0])
        self.watch.seen.update(state["watch"][1])
        self.last_step = done = self.steps_done
        refuse(done > c.steps, f"{self.folder} has made {done} steps already. Choose --steps {done} or more.")
        self.rows = state["log"]["rows"]
        self.totals, self.measured = Counter(state["log"]["updates"]), {"start": state["log"]["first"], "end": state["log"]["last"]}
        self.started -= state["log"]["seconds"]
        if self.steps_done < c.steps:  # it was made longer
            self.measured["end"] = None
        return state["log"]["steps"]

    def _say_what_runs(self, planned: int) -> None:
        c, policy, name = self.config, self.trainer.policy, reward_name(self.trainer)
        trained = sum(p.numel() for p in self.trainer.optimizer.weights.parameters)
        adapter = f", of which {trained / 1e6:.2f} M are trained (LoRA, rank {c.lora_rank})" if c.lora_rank else ""
        held_out = len(self.held_out.problems)
        measured = f"{held_out} held-out problems" if held_out else "no held-out problems (name some with --eval-data)"
        what = f"{c.method} on {c.model}: {sum(p.numel() for p in policy.model.parameters()) / 1e6:.2f} M parameters{adapter}, "
        shared = f", {parallel.processes()} processes" if parallel.processes() > 1 else ""
        what += f"{policy.model.dtype}, {policy.model.device}{shared}; {len(self.trainer.problems)} problems, {measured}; {c.steps} steps of "
        what += f"{c.prompts_per_step} prompts x {c.completions_per_prompt} completions{'' if name == 'verify_all' else f'; reward {name}'}"
        say(f"{what}\nrun folder: {self.folder}")
        if c.branch and not self.saved:
            say(f"branched from {c.branch}")
        if self.saved:
            say(f"resumed from {self.saved.name}: {self.steps_done} steps done{self._and_half()}")
        elif c.resume:
            say("there is no checkpoint: the run begins again")
        if self.steps_done == c.steps:
            say("it is complete; --steps makes it longer")
        elif self.saved and c.lr_schedule == "linear" and c.steps != planned:
            say(f"note: {c.steps} steps instead of {planned}: the learning rate follows the new length from here on")
        if c.report_to == "tensorboard":
            say(f"to watch it: tensorboard --logdir {quoted(self.folder / 'tensorboard')}")

    def _and_half(self) -> str:
        """How far a step came that was stopped between two updates."""
        return f" and {len(self.step.updates)} updates of the next" if self.step else ""

    # -----------------------------------------------------------------------------------------------------------------------------------
    # Save and end

    def save(self, at_end: bool = False) -> None:
        """Write a checkpoint. If that fails (a full disk), say so and go on without. `at_end`: nothing is said, `finish` looks at it."""
        began, c = time.perf_counter(), self.config
        tensors, state = trainer_state(self.trainer, self.step)
        free = MAY_CHANGE | MAY_MOVE | {"resume", "name", "out"}
        state["settings"] = {name: value for name, value in vars(c).items() if name not in free}
        state |= {"data": self.data, "model": self.model, "watch": [self.watch.seconds, self.watch.seen]}
        state["log"] = {"updates": self.totals, "first": self.measured["start"], "last": self.measured["end"]}
        state["log"] |= {"seconds": self.seconds(), "steps": c.steps, "rows": self.log_files.lines}
        self.save_failed = ""
        try:
            self.log_files.sync()  # the checkpoint says that these rows are there
            made = dict(steps_done=self.steps_done, updates=len(self.step.updates) if self.step else None)
            self.saved = checkpoint.save(self.folder / "checkpoints", tensors, state, **made, keep=c.keep, keep_every=c.keep_every)
        except OSError as error:
            self.save_failed = f"The checkpoint of step {self.steps_done} could not be written ({error}). {self._saved_as()}"
            if not at_end:
                say(f"{self.save_failed} The run goes on.")
        self.saving_seconds += time.perf_counter() - began

    def _saved_as(self) -> str:
        found = checkpoint.checkpoints(self.folder / "checkpoints")
        return f"The newest checkpoint is {found[0].name}." if found else "There is no checkpoint yet."

    def save_what_was_done(self) -> None:
        """After an error: the steps that were done, and the batch of the one that was not."""
        begun = self.trainer.step_number > self.first and self.log_files
        if self.trainer.optimizer.between_updates and begun and self.steps_done == self.last_step:
            self.save(at_end=bool(self.summary))

    def finish(self) -> None:
        """Save checkpoint and model, write summary.json, draw curves.png, print the table. Raises SettingError if the disk is full."""
        c, go_on = self.config, resume_command(self.folder, self.config.reward)
        self.bar.close()
        self.save(at_end=True)  # where there is no room for it, there may be for the model, which is smaller
        stopped_by = self.stop.name if self.steps_done < c.steps else None
        self.summary = self._summarise(stopped_by)
        remedy = f"{self._saved_as()} Make room, then: {go_on}"
        with as_sentence("The model or the figure could not be written", remedy, OSError, SafetensorError):
            save_model(self.folder, c, self.trainer.policy, model_card(c, self.summary, self.measured))
            write_atomically(self.folder / "summary.json", json.dumps(self.summary, indent=2) + "\n")
            if not self.save_failed:  # else the rows may be in the old file alone
                self.log_files.mend()
            figure = figures.draw_curves(self.folder)
        self._say_end(figure)
        if stopped_by:
            say(f"\n{stopped_by}: stopped after step {self.steps_done} of {c.steps}{self._and_half()}; all is saved.\nTo go on: {go_on}")
        elif c.push_to_hub:
            say(f"uploaded to {push(self.folder / 'model', c.push_to_hub)}")
        refuse(self.save_failed, f"{self.save_failed} Make room, then: {go_on}")

    def _summarise(self, stopped_by: str | None) -> dict:
        """What summary.json holds."""
        c = self.config
        out = {"method": c.method, "seed": c.seed, "steps": self.steps_done, "stopped_by": stopped_by}
        out |= {"wall_seconds": round(self.seconds(), 1), "saving_seconds": round(self.saving_seconds, 2)}
        for n in (1, c.eval_completions):
            for when, result in self.measured.items():
                out[f"pass_at_{n}_{when}"] = result["metrics"][f"pass@{n}"][0] if result else None
        return out | {"plateau_step": self.trainer.plateau}

    def _shown(self) -> list[str]:
        """The numbers of an evaluation that the end of a run shows."""
        return ["pass@1", f"pass@{self.config.eval_completions}", f"maj@{self.config.eval_completions}"]

    def _say_end(self, figure: Path) -> None:
        """The held-out table, how long the run took, and where its results are."""
        names = self._shown()
        if rows := [[f"{when} ({n} problems)", *numbers] for when, n, *numbers in measured_rows(self.measured, names)]:
            say("\n" + table(["held-out, 95 % interval", *names], rows))
        if skipped := self.totals["skipped_updates"]:
            cause = f"{skipped} of {self.totals.total()} updates were skipped: loss or gradient was not finite"
            say(f"\n{cause}. Choose a lower --lr, or --dtype float32.")
        elif not self.totals["updates"] and self.steps_done:
            cause = "No update was made: no group had both right and wrong completions. If nearly all are wrong (groups_all_wrong in"
            say(f"\n{cause} metrics.csv), choose easier problems or a better model; if nearly all are right, harder problems.")
        minutes, seconds = divmod(round(self.summary["wall_seconds"]), 60)
        plateau = self.trainer.plateau
        stage = f"the plateau began at step {plateau}" if plateau else "still in the rising stage"
        say(f"\n{minutes} min {seconds} s; {stage}\nmodel:  {self.folder / 'model'}\nfigure: {figure}")

    def interrupted(self) -> SettingError:
        """What to say when Ctrl-C ended the run at once."""
        if self.trainer.step_number == self.first and not self.config.resume:
            ended = SettingError(f"Interrupted before the first step; nothing was trained. {self.folder} can be deleted.")
        else:
            ended = SettingError(f"Stopped at once. {self._saved_as()} To go on: {resume_command(self.folder, self.config.reward)}")
        ended.exit_code = self.stop.exit_code or 130
        return ended

    def close(self) -> None:
        for thing in (self.bar, self.log_files):
            if thing is not None:
                thing.close()
        self.watch.end()
