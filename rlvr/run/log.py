"""The record of a run: config.json, metrics.csv, rollouts.jsonl, checkpoints, summary.json, curves.png and the model.

tutorials/glossary.md explains each number.
"""

import csv
import dataclasses
import io
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from rlvr.run import checkpoint
from rlvr.config import LOCK, SettingError, TrainConfig, in_use, resume_command, run_folder
from rlvr.run.defects import DEFECTS, defects
from rlvr.entropy import log_perplexity
from rlvr.evaluate import Evaluation
from rlvr.common.files import Appender, clear_leftovers, cut_back, replace_folder, write_atomically
from rlvr.common.text import printable, say, table
from rlvr.loaders.adapters import save_lora
from rlvr.policy import Policy
from rlvr.run.publish import merge, model_card, push
from rlvr.rollout import Rollouts
from rlvr.run.trackers import Tracker

# Columns of metrics.csv: one row per step; empty where a step has no such number (no wrong completion, no evaluation).
COLUMNS = (
    "step stage shaped accuracy reward reward_std entropy entropy_right entropy_wrong log_ppl log_ppl_right log_ppl_wrong length "
    "length_right length_wrong truncated completions groups groups_kept groups_all_right groups_all_wrong sampling_rounds loss clipped_low "
    "clipped_high kl grad_norm lr updates skipped_updates logp_drift verifier_kills reward_failures "
    + " ".join(f"defect_{d}" for d in DEFECTS)
    + " eval_pass_at_1 eval_pass_at_1_low eval_pass_at_1_high eval_pass_at_max eval_problems seconds_sampling seconds_reward "
    "seconds_scoring seconds_update seconds_step"
).split()


def _mean(values: Tensor) -> float | None:
    return values.float().mean().item() if len(values) else None


def batch_metrics(batch: Rollouts, correct: Tensor, rewards: Tensor, steps: list[int | None]) -> dict[str, float | None]:
    """What a batch of completions looks like, before filtering. `steps`: solution steps of each row's problem, for the defects.

    The entropies are token means (every token counts the same) over all, right and wrong completions; the perplexities are means over
    completions of the log-perplexity. A reward of NaN (not scored) is left out of the reward's mean and counts as not right.
    """
    scored = rewards[~rewards.isnan()]
    log_ppl = log_perplexity(batch.old_logp, batch.mask)
    lengths = batch.lengths
    right_in_group = torch.stack([correct[batch.group == g].float().mean() for g in batch.group.unique()])
    found = [defects(text, done, n) for text, done, n in zip(batch.text, batch.finished.tolist(), steps)]
    metrics = {
        "accuracy": _mean(correct),
        "reward": _mean(scored),
        "reward_std": scored.std().item(),
        "truncated": _mean(~batch.finished),
        "completions": len(batch),
        "groups": len(right_in_group),
        "groups_all_right": _mean(right_in_group == 1),
        "groups_all_wrong": _mean(right_in_group == 0),
    }
    for suffix, rows in (("", torch.ones_like(correct)), ("_right", correct), ("_wrong", ~correct)):
        metrics["entropy" + suffix] = _mean(batch.entropy[rows][batch.mask[rows]])
        metrics["log_ppl" + suffix] = _mean(log_ppl[rows])
        metrics["length" + suffix] = _mean(lengths[rows])
    return metrics | {f"defect_{name}": sum(f[name] for f in found) / len(found) for name in DEFECTS}


def _number(value) -> str:
    """A CSV cell that reads back to the same number; empty for None and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return repr(value) if isinstance(value, float) else str(value)


def claim_run_folder(config: TrainConfig) -> tuple[Path, FileLock]:
    """The folder of this run, locked against any other process until this one ends, however it ends. Raises SettingError."""
    while True:
        folder = Path(config.resume) if config.resume else run_folder(config)
        lock = FileLock(folder / LOCK)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
            if not isinstance(error, Timeout):
                remedy = "Check its permissions." if config.resume else "Choose another --out."
                raise SettingError(f"The run folder {str(folder)!r} cannot be written ({error}). {remedy}") from None
            if config.resume or config.name:
                remedy = "Wait until it has ended." if config.resume else "Wait until it has ended, or choose another --name."
                raise SettingError(f"Another process is writing the run folder {folder}. {remedy}") from None
            time.sleep(0.05)  # it took the name in this very moment: look for the next one
            continue
        if config.resume or not in_use(folder):
            return folder, lock
        lock.release()


def _csv_line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue()


def _step_of(number: bytes) -> int:
    """The step that a line begins with; -1 for a line that no run has written."""
    return int(number) if number.isdigit() else -1


def _and_half(trainer) -> str:
    """How far the step is that was stopped between two updates."""
    return f" and {trainer.unfinished.updates} updates of the next" if trainer.unfinished else ""


class RunLog:
    """Writes a run folder. Use as a context manager: entering takes the folder, leaving closes the files, whatever happens."""

    def __init__(self, config: TrainConfig, policy: Policy, problems: int, too_long: int, held_out: int):
        self.config, self.policy = config, policy
        self.problems, self.too_long, self.held_out = problems, too_long, held_out
        self.started = time.perf_counter()
        self.pending: dict[str, float] = {}  # numbers of an evaluation, for the row of its step
        self.updates = self.last_step = 0  # updates made, and the last step logged
        self.saving_seconds = 0.0
        self.first: dict | None = None  # the evaluation before the first step: number of problems, and metrics
        self.last: dict | None = None  # and after the last step
        self.saved: Path | None = None  # the newest checkpoint
        self.save_failed = False  # the last attempt at one

    def __enter__(self):
        self.folder, self.lock = claim_run_folder(self.config)
        return self

    def __exit__(self, *_):
        for file in (getattr(self, "csv_file", None), getattr(self, "jsonl_file", None), getattr(self, "tracker", None)):
            if file:
                file.close()
        self.lock.release()

    def open(self, trainer, data: str) -> None:
        """Open the files of a new run; or put the trainer into the state of the newest checkpoint and cut the files back to its step.

        data: the fingerprint of the problems, which must be those that the run began with. Raises SettingError.
        """
        c, self.data, self.model = self.config, data, checkpoint.model_fingerprint(trainer.policy.model)
        found = checkpoint.load_newest(self.folder / "checkpoints") if c.resume else None
        if c.resume and found is None and (self.folder / "summary.json").exists():
            raise SettingError(f"{self.folder} has no checkpoint left. Start a new run from its weights with --model {self.folder}")
        if found is not None:
            path, tensors, state = found
            if state["data"] != data:
                raise SettingError(
                    f"The problems are not those that {self.folder} began with. Put back the old --data and --eval-data, or start anew."
                )
            if state["model"] != self.model:
                raise SettingError(
                    f"The model {c.model} is not what {self.folder} began with, in weights or precision. Put it back, on such a device."
                )
            if state["reward"] != trainer.reward_name:
                raise SettingError(
                    f"{self.folder} was trained with the reward function {state['reward']}, not {trainer.reward_name}. "
                    "Pass that one to train()."
                )
            checkpoint.restore_trainer(trainer, tensors, state)
            if trainer.steps_done > c.steps:
                done = trainer.steps_done
                raise SettingError(f"{self.folder} has made {done} steps already. Choose --steps {done} or more.")
            self.saved, self.last_step, self.planned = path, trainer.steps_done, state["log"]["steps"]
            self.updates, self.first, self.last = (state["log"][name] for name in ("updates", "first", "last"))
            self.started -= state["log"]["seconds"]
            if trainer.steps_done < c.steps:  # it was made longer
                self.last = None
        try:
            # The settings first: from here on the folder is a run, which can be resumed.
            write_atomically(self.folder / "config.json", json.dumps(dataclasses.asdict(c) | {"resume": ""}, indent=2) + "\n")
            self._open_files(trainer.steps_done if found else -1)
        except OSError as error:
            raise SettingError(f"The run folder {self.folder} cannot be written ({error}). Make room, or check its permissions.") from None
        self._say_what_runs(trainer)
        self.tracker = Tracker(c, self.folder, trainer.steps_done)
        if c.report_to == "tensorboard":
            say(f"to watch it: tensorboard --logdir {self.folder / 'tensorboard'}")

    def _open_files(self, last_step: int) -> None:
        """metrics.csv and rollouts.jsonl, without what they hold of later steps than `last_step`."""
        header = ",".join(COLUMNS).encode()
        metrics, rollouts = self.folder / "metrics.csv", self.folder / "rollouts.jsonl"
        for path in (metrics, rollouts):
            path.touch()
        with open(metrics, "rb") as file:
            if file.readline().rstrip() not in (header, b"") and last_step >= 0:
                raise SettingError(f"{metrics} has other columns than this version writes. Resume with the version that wrote it.")
        rows = cut_back(metrics, lambda line: line.rstrip() == header or 0 <= _step_of(line.split(b",")[0]) <= last_step)
        if rows < 1 + last_step:  # the header, and a row for each step; the first evaluation may have one too
            say(f"note: {metrics} lacks some of the {last_step} steps that are done; it was changed or deleted")
        cut_back(rollouts, lambda line: 0 <= _step_of(line[len(b'{"step": ') :].split(b",")[0]) <= last_step)
        for pattern in ("config.json", "summary.json", "model", "adapter"):
            clear_leftovers(self.folder, pattern)
        clear_leftovers(self.folder / "checkpoints", "step-*")
        self.csv_file, self.jsonl_file = Appender(metrics), Appender(rollouts)
        if metrics.stat().st_size == 0:
            self.csv_file.write(_csv_line(COLUMNS))

    def _say_what_runs(self, trainer) -> None:
        c = self.config
        parameters = sum(p.numel() for p in self.policy.model.parameters())
        trained = sum(p.numel() for p in trainer.weights.parameters)
        adapter = f", of which {trained / 1e6:.2f} M are trained (LoRA, rank {c.lora_rank})" if c.lora_rank else ""
        reward = f"; reward {trainer.reward_name}" if trainer.reward_name != "verify_all" else ""
        left_out = f" ({self.too_long} left out, prompt over {c.max_prompt_tokens} tokens)" if self.too_long else ""
        measured = f"{self.held_out} held-out problems" if self.held_out else "no held-out problems (name some with --eval-data)"
        say(
            f"{c.method} on {c.model}: {parameters / 1e6:.2f} M parameters{adapter}, {self.policy.model.dtype}, "
            f"{self.policy.model.device}; "
            f"{self.problems} problems{left_out}, {measured}; {c.steps} steps of {c.prompts_per_step} prompts x "
            f"{c.completions_per_prompt} completions{reward}\n"
            f"run folder: {self.folder}"
        )
        if self.saved:
            say(f"resumed from {self.saved.name}: {trainer.steps_done} steps done{_and_half(trainer)}")
        elif c.resume:
            say("there is no checkpoint: the run begins anew")
        if trainer.steps_done == c.steps:
            say("it is complete; --steps makes it longer")
        elif self.saved and c.lr_schedule == "linear" and c.steps != self.planned:
            say(f"note: {c.steps} steps instead of {self.planned}: the learning rate follows the new length from here on")

    def save(self, trainer, must: bool = False) -> None:
        """Write a checkpoint. If that fails (a full disk), say so and go on without; `must`: raise SettingError."""
        began = time.perf_counter()
        tensors, state = checkpoint.trainer_state(trainer)
        state["data"], state["model"] = self.data, self.model
        state["log"] = {"updates": self.updates, "first": self.first, "last": self.last, "seconds": began - self.started}
        state["log"]["steps"] = self.config.steps
        updates = trainer.unfinished.updates if trainer.unfinished else None
        self.save_failed = False
        try:
            self.csv_file.sync()  # the checkpoint says that these rows are there
            self.jsonl_file.sync()
            self.saved = checkpoint.save(
                self.folder / "checkpoints", tensors, state, steps_done=trainer.steps_done, updates=updates,
                keep=self.config.keep, keep_every=self.config.keep_every,
            )
        except OSError as error:
            self.save_failed = True
            failed = f"The checkpoint of step {trainer.steps_done} could not be written ({error}); {self.saved_as()}"
            if must:
                raise SettingError(f"{failed} Make room, then: {resume_command(self.config, self.folder)}") from None
            say(f"{failed} The run goes on.")
        self.saving_seconds += time.perf_counter() - began

    def saved_as(self) -> str:
        found = checkpoint.checkpoints(self.folder / "checkpoints")
        return f"the newest checkpoint is {found[0]}." if found else "there is no checkpoint yet."

    def evaluation(self, step: int, result: Evaluation | None) -> None:
        """Print an evaluation and keep its numbers for the row of its step, which is logged next; step 0 gets a row here."""
        if result is None:
            return
        mean, low, high = result.metrics["pass@1"]
        most = result.metrics[f"pass@{self.config.eval_completions}"][0]
        numbers = {"eval_pass_at_1": mean, "eval_pass_at_1_low": low, "eval_pass_at_1_high": high, "eval_pass_at_max": most}
        numbers["eval_problems"] = len(result.rows)
        say(
            f"step {step}: held-out pass@1 {mean:.3f} [{low:.3f}, {high:.3f}], pass@{self.config.eval_completions} {most:.3f} "
            f"({len(result.rows)} problems)"
        )
        if step == 0:
            self.first = {"problems": len(result.rows), "metrics": result.metrics}
            correct = torch.tensor(result.correct)
            entropy = {
                f"entropy{s}": _mean(result.rollouts.entropy[r][result.rollouts.mask[r]])
                for s, r in (("", correct | True), ("_right", correct), ("_wrong", ~correct))
            }
            self._row({"step": 0, "stage": "rising"} | entropy | numbers)
        else:
            self.pending = numbers
        if step == self.config.steps:
            self.last = {"problems": len(result.rows), "metrics": result.metrics}

    def _row(self, metrics: dict) -> None:
        cells = {name: _number(metrics.get(name)) for name in COLUMNS}
        self._write(self.csv_file, _csv_line(list(cells.values())))
        self.tracker.log(metrics["step"], {name: metrics[name] for name, cell in cells.items() if cell})

    def _write(self, file: Appender, text: str) -> None:
        try:
            file.write(text)
        except OSError as error:  # a full disk: the line waits, no checkpoint is written without it, and the run goes on
            say(f"{file.file.name} could not be written ({error.strerror}); trying again with the next step")

    def step(self, metrics: dict, batch: Rollouts, correct: Tensor, shaped: Tensor, bar: tqdm) -> None:
        """Log one step: CSV row, a few completions, progress bar, now and then a sample on the screen."""
        self._row(metrics | self.pending)
        self.pending = {}
        step = self.last_step = metrics["step"]
        self.updates += metrics["updates"]
        lines = [json.dumps(self._completion(step, batch, correct, shaped, i)) + "\n" for i in self._spread(len(batch))]
        self._write(self.jsonl_file, "".join(lines))
        bar.set_postfix(
            reward=f"{metrics['reward']:+.2f}", accuracy=f"{metrics['accuracy']:.2f}", entropy=f"{metrics['entropy']:.3f}",
            refresh=False,
        )  # fmt: skip
        if self.config.show_every and (step == 1 or step % self.config.show_every == 0):
            i = (step * 7919) % len(batch)  # any row, but not always the same one
            prompt = self.policy.tokenizer.decode(batch.prompt_ids[i], skip_special_tokens=True)
            verdict = "right" if correct[i] else "wrong"
            say(f"\n--- step {step}, a sample ({verdict}, {int(batch.lengths[i])} tokens)\n{printable(prompt + batch.text[i])}\n---")

    def _spread(self, n: int) -> list[int]:
        """Indices of the completions to keep: evenly spread over the batch."""
        kept = min(self.config.log_completions, n)
        return [n * i // kept for i in range(kept)]

    def _completion(self, step: int, batch: Rollouts, correct: Tensor, shaped: Tensor, i: int) -> dict:
        n = int(batch.lengths[i])

        def numbers(x: Tensor) -> list[float]:
            return [round(v, 5) for v in x[i, :n].tolist()]

        return {
            "step": step,
            "group": int(batch.group[i]),
            "prompt": self.policy.tokenizer.decode(batch.prompt_ids[i], skip_special_tokens=True),
            "completion": batch.text[i],
            "correct": bool(correct[i]),
            "finished": bool(batch.finished[i]),
            "token_ids": batch.completion_ids[i, :n].tolist(),
            "logp": numbers(batch.old_logp),
            "entropy": numbers(batch.entropy),
            "advantage": numbers(shaped),
        }

    def finish(self, trainer, stopped_by: str | None) -> dict:
        """Save the model, write summary.json, draw curves.png, print the table. Raises SettingError if the disk is full."""
        try:
            return self._finish(trainer, stopped_by)
        except (OSError, SafetensorError) as error:
            raise SettingError(
                f"The model or the figure could not be written ({error}); {self.saved_as()} Make room, then: "
                f"{resume_command(self.config, self.folder)}"
            ) from None

    def _finish(self, trainer, stopped_by: str | None) -> dict:
        from rlvr.run.figures import draw_curves

        c, k = self.config, self.config.eval_completions

        def metric(result: dict | None, name: str) -> float | None:
            return result["metrics"][name][0] if result else None

        summary = {
            "method": c.method,
            "seed": c.seed,
            "steps": trainer.steps_done,
            "stopped_by": stopped_by,
            "wall_seconds": round(time.perf_counter() - self.started, 1),
            "saving_seconds": round(self.saving_seconds, 2),
            "pass_at_1_start": metric(self.first, "pass@1"),
            "pass_at_1_end": metric(self.last, "pass@1"),
            f"pass_at_{k}_start": metric(self.first, f"pass@{k}"),
            f"pass_at_{k}_end": metric(self.last, f"pass@{k}"),
            "plateau_step": trainer.plateau,
        }
        card = model_card(c, summary, {"start": self.first, "end": self.last})

        def write_model(folder: Path) -> None:
            save_lora(self.policy.model, folder) if c.lora_rank else self.policy.model.save_pretrained(folder)
            self.policy.tokenizer.save_pretrained(folder)
            (folder / "README.md").write_text(card, encoding="utf-8")

        replace_folder(self.folder / ("adapter" if c.lora_merge else "model"), write_model)
        if c.lora_merge:
            merge(self.folder / "adapter", self.folder / "model", str(self.policy.model.dtype).removeprefix("torch."))
        write_atomically(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        figure = draw_curves(self.folder)
        names = ["pass@1", f"pass@{k}", f"maj@{k}"]
        rows = [
            [f"{when} ({result['problems']} problems)", *("{:.3f} [{:.3f}, {:.3f}]".format(*result["metrics"][n]) for n in names)]
            for when, result in (("start", self.first), ("end", self.last))
            if result
        ]
        if rows:
            say("\n" + table(["held-out, 95 % interval", *names], rows))
        minutes, seconds = divmod(round(summary["wall_seconds"]), 60)
        stage = f"the plateau began at step {trainer.plateau}" if trainer.plateau else "still in the rising stage"
        if not self.updates and trainer.steps_done:
            say(
                "\nNo update was made: no group had both right and wrong completions. If nearly all are wrong (groups_all_wrong in "
                "metrics.csv), choose easier problems or a better model; if nearly all are right, harder problems."
            )
        say(f"\n{minutes} min {seconds} s; {stage}\nmodel:  {self.folder / 'model'}\nfigure: {figure}")
        if stopped_by:
            say(
                f"\n{stopped_by}: stopped after step {trainer.steps_done} of {c.steps}{_and_half(trainer)}; all is saved.\n"
                f"To go on: {resume_command(c, self.folder)}"
            )
        elif c.push_to_hub:
            say(f"uploaded to {push(self.folder / 'model', c.push_to_hub)}")
        return summary
