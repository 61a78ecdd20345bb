"""The record of a run: config.json, metrics.csv, rollouts.jsonl, summary.json, curves.png and the model.

tutorials/glossary.md explains each number.
"""

import csv
import dataclasses
import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from rlvr.config import TrainConfig
from rlvr.defects import DEFECTS, defects
from rlvr.entropy import log_perplexity
from rlvr.evaluate import Evaluation
from rlvr.files import table, write_atomically
from rlvr.policy import Policy
from rlvr.rollout import Rollouts

# Columns of metrics.csv: one row per step; empty where a step has no such number (no wrong completion, no evaluation).
COLUMNS = (
    "step stage shaped accuracy reward reward_std entropy entropy_right entropy_wrong log_ppl log_ppl_right log_ppl_wrong length "
    "length_right length_wrong truncated completions groups groups_kept groups_all_right groups_all_wrong sampling_rounds loss clipped_low "
    "clipped_high kl grad_norm lr updates skipped_updates logp_drift verifier_kills "
    + " ".join(f"defect_{d}" for d in DEFECTS)
    + " eval_pass_at_1 eval_pass_at_1_low eval_pass_at_1_high eval_pass_at_max eval_problems seconds_sampling seconds_reward "
    "seconds_scoring seconds_update seconds_step"
).split()


def _mean(values: Tensor) -> float | None:
    return values.float().mean().item() if len(values) else None


def batch_metrics(batch: Rollouts, correct: Tensor, rewards: Tensor, steps: list[int | None]) -> dict[str, float | None]:
    """What a batch of completions looks like, before filtering. `steps`: solution steps of each row's problem, for the defects.

    The entropies are token means (every token counts the same) over all, right and wrong completions; the perplexities are means over
    completions of the log-perplexity.
    """
    log_ppl = log_perplexity(batch.old_logp, batch.mask)
    lengths = batch.lengths
    right_in_group = torch.stack([correct[batch.group == g].float().mean() for g in batch.group.unique()])
    found = [defects(text, done, n) for text, done, n in zip(batch.text, batch.finished.tolist(), steps)]
    metrics = {
        "accuracy": _mean(correct),
        "reward": _mean(rewards),
        "reward_std": rewards.std().item(),
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


class RunLog:
    """Writes a run folder. Use as a context manager, so that the files are closed whatever happens."""

    def __init__(self, folder: Path, config: TrainConfig, policy: Policy, problems: int, too_long: int, held_out: int):
        self.folder, self.config, self.policy = folder, config, policy
        self.started = time.perf_counter()
        self.pending: dict[str, float] = {}  # numbers of an evaluation, for the row of its step
        self.steps_done = self.updates = 0
        self.first: Evaluation | None = None  # before the first step
        self.last: Evaluation | None = None  # after the last step
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "config.json", json.dumps(dataclasses.asdict(config), indent=2) + "\n")
        parameters = sum(p.numel() for p in policy.model.parameters())
        left_out = f" ({too_long} left out, prompt over {config.max_prompt_tokens} tokens)" if too_long else ""
        measured = f"{held_out} held-out problems" if held_out else "no held-out problems (name some with --eval-data)"
        print(
            f"{config.method} on {config.model}: {parameters / 1e6:.2f} M parameters, {policy.model.dtype}, {policy.model.device}; "
            f"{problems} problems{left_out}, {measured}; {config.steps} steps of {config.prompts_per_step} prompts x "
            f"{config.completions_per_prompt} completions\n"
            f"run folder: {folder}"
        )

    def __enter__(self):
        self.csv_file = open(self.folder / "metrics.csv", "w", newline="", encoding="utf-8")
        self.jsonl_file = open(self.folder / "rollouts.jsonl", "w", encoding="utf-8")
        self.csv = csv.writer(self.csv_file)
        self.csv.writerow(COLUMNS)
        return self

    def __exit__(self, *_):
        self.csv_file.close()
        self.jsonl_file.close()

    def evaluation(self, step: int, result: Evaluation | None) -> None:
        """Print an evaluation and keep its numbers for the row of its step, which is logged next; step 0 gets a row here."""
        if result is None:
            return
        mean, low, high = result.metrics["pass@1"]
        most = result.metrics[f"pass@{self.config.eval_completions}"][0]
        numbers = {"eval_pass_at_1": mean, "eval_pass_at_1_low": low, "eval_pass_at_1_high": high, "eval_pass_at_max": most}
        numbers["eval_problems"] = len(result.rows)
        tqdm.write(
            f"step {step}: held-out pass@1 {mean:.3f} [{low:.3f}, {high:.3f}], pass@{self.config.eval_completions} {most:.3f} "
            f"({len(result.rows)} problems)"
        )
        if step == 0:
            self.first = result
            correct = torch.tensor(result.correct)
            entropy = {
                f"entropy{s}": _mean(result.rollouts.entropy[r][result.rollouts.mask[r]])
                for s, r in (("", correct | True), ("_right", correct), ("_wrong", ~correct))
            }
            self._row({"step": 0, "stage": "rising"} | entropy | numbers)
        else:
            self.pending = numbers
        if step == self.config.steps:
            self.last = result

    def _row(self, metrics: dict) -> None:
        self.csv.writerow([_number(metrics.get(name)) for name in COLUMNS])
        self.csv_file.flush()

    def step(self, metrics: dict, batch: Rollouts, correct: Tensor, shaped: Tensor, bar: tqdm) -> None:
        """Log one step: CSV row, a few completions, progress bar, now and then a sample on the screen."""
        self._row(metrics | self.pending)
        self.pending = {}
        step = self.steps_done = metrics["step"]
        self.updates += metrics["updates"]
        for i in self._spread(len(batch)):
            self.jsonl_file.write(json.dumps(self._completion(step, batch, correct, shaped, i)) + "\n")
        self.jsonl_file.flush()
        bar.set_postfix(
            reward=f"{metrics['reward']:+.2f}", accuracy=f"{metrics['accuracy']:.2f}", entropy=f"{metrics['entropy']:.3f}",
            refresh=False,
        )  # fmt: skip
        if self.config.show_every and (step == 1 or step % self.config.show_every == 0):
            i = (step * 7919) % len(batch)  # any row, but not always the same one
            prompt = self.policy.tokenizer.decode(batch.prompt_ids[i], skip_special_tokens=True)
            verdict = "right" if correct[i] else "wrong"
            tqdm.write(f"\n--- step {step}, a sample ({verdict}, {int(batch.lengths[i])} tokens)\n{prompt}{batch.text[i]}\n---")

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

    def finish(self, plateau: int | None) -> dict:
        """Save the model, write summary.json, draw curves.png, print the table."""
        from rlvr.figures import draw_curves

        c, k = self.config, self.config.eval_completions
        self.policy.model.save_pretrained(self.folder / "model")
        self.policy.tokenizer.save_pretrained(self.folder / "model")

        def metric(result: Evaluation | None, name: str) -> float | None:
            return result.metrics[name][0] if result else None

        summary = {
            "method": c.method,
            "seed": c.seed,
            "steps": self.steps_done,
            "wall_seconds": round(time.perf_counter() - self.started, 1),
            "pass_at_1_start": metric(self.first, "pass@1"),
            "pass_at_1_end": metric(self.last, "pass@1"),
            f"pass_at_{k}_start": metric(self.first, f"pass@{k}"),
            f"pass_at_{k}_end": metric(self.last, f"pass@{k}"),
            "plateau_step": plateau,
        }
        write_atomically(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        figure = draw_curves(self.folder)
        names = ["pass@1", f"pass@{k}", f"maj@{k}"]
        rows = [
            [f"{when} ({len(result.rows)} problems)", *("{:.3f} [{:.3f}, {:.3f}]".format(*result.metrics[n]) for n in names)]
            for when, result in (("start", self.first), ("end", self.last))
            if result
        ]
        if rows:
            print("\n" + table(["held-out, 95 % interval", *names], rows))
        minutes, seconds = divmod(round(summary["wall_seconds"]), 60)
        stage = f"the plateau began at step {plateau}" if plateau else "still in the rising stage"
        if not self.updates:
            print(
                "\nNo update was made: no group had both right and wrong completions. If nearly all are wrong (groups_all_wrong in "
                "metrics.csv), choose easier problems or a better model; if nearly all are right, harder problems."
            )
        print(f"\n{minutes} min {seconds} s; {stage}\nmodel:  {self.folder / 'model'}\nfigure: {figure}")
        return summary
