"""What a step was like: the numbers of a row of metrics.csv (tutorials/glossary.md explains each), and the seconds that its parts took."""

import time
from collections import Counter, defaultdict
from contextlib import contextmanager

import torch
from torch import Tensor

from rlvr.config import in_its_own_words
from rlvr.entropy import entropy_by_correctness, log_perplexity
from rlvr.reward import overlong_penalty
from rlvr.rollout import Rollouts
from rlvr.run.defects import DEFECTS, defect_shares
from rlvr.verifier import stats as verifier_stats

# Columns of metrics.csv: one row per step; empty where a step has no such number (no wrong completion, no evaluation).
_DEFECT_COLUMNS = " ".join(f"defect_{name}" for name in DEFECTS)
COLUMNS = (
    "step stage shaped accuracy reward reward_std entropy entropy_right entropy_wrong log_ppl log_ppl_right log_ppl_wrong length "
    "length_right length_wrong truncated completions groups groups_kept groups_all_right groups_all_wrong sampling_rounds loss clipped_low "
    f"clipped_high kl grad_norm lr updates skipped_updates logp_drift verifier_kills reward_failures {_DEFECT_COLUMNS} eval_pass_at_1 "
    "eval_pass_at_1_low eval_pass_at_1_high eval_pass_at_max eval_problems seconds_sampling seconds_reward seconds_scoring seconds_update "
    "seconds_step").split()  # fmt: skip


class Watch:
    """Measures a trainer's steps from outside: wraps its methods, and makes the row of a step that is finished."""

    def __init__(self, trainer):
        self.trainer, policy = trainer, trainer.policy
        self.seconds: dict[str, float] = defaultdict(float)  # of this step, by part
        self.seen: dict = {"rounds": 0, "kills": 0, "drift": None}  # of this step: rounds of sampling, answers given up, see rescore
        # A context manager that is made by a function is a decorator too: what it does around a block, it does around each call.
        trainer.begin = self._begun()(self._timed("begin")(trainer.begin))
        trainer.rewards_of = self._timed("reward")(in_its_own_words(ValueError, ImportError)(trainer.rewards_of))
        trainer.update = self._timed("update")(trainer.update)
        policy.sample = self._round()(self._timed("sampling")(policy.sample))
        policy.score = self._timed("scoring")(policy.score)
        rescore = policy.rescore
        policy.rescore = lambda *args: self.seen.update(drift=rescore(*args))

    def end(self) -> None:
        """Give back the methods as they were: trainer and wrappers refer to each other, which would keep the weights in memory."""
        trainer, policy = self.trainer, self.trainer.policy
        del trainer.begin, trainer.rewards_of, trainer.update, policy.sample, policy.score, policy.rescore

    @contextmanager
    def _timed(self, part: str):
        started = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - started

    @contextmanager
    def _begun(self):
        self.seconds.clear()
        self.seen = {"rounds": 0, "kills": -_kills(), "drift": None}
        yield
        self.seen["kills"] += _kills()

    @contextmanager
    def _round(self):
        self.seen["rounds"] += 1
        yield

    def row(self, step) -> dict[str, float | str | None]:
        """The numbers of a step, by the names of COLUMNS; None where it has no such number."""
        trainer, c = self.trainer, self.trainer.config
        penalty = overlong_penalty(step.rollouts.lengths, c.max_new_tokens, c.overlong_buffer, c.overlong_factor)
        shaped = c.method_at(trainer.step_number, trainer.plateau) != "grpo"
        row = {"step": trainer.step_number, "stage": "plateau" if trainer.plateau else "rising", "shaped": int(shaped)}
        steps = [trainer.problems[i].solution_steps for i in step.problem_ids]
        row |= batch_metrics(step.rollouts, step.rewards > 0, step.rewards + penalty, steps)
        row |= {"groups_kept": sum(map(len, step.mini_batches)), "sampling_rounds": self.seen["rounds"]}
        row |= {"verifier_kills": self.seen["kills"], "reward_failures": int(step.rewards.isnan().sum())}
        row |= {"lr": trainer.optimizer.learning_rate(trainer.step_number)} | update_metrics(step.updates, self.seen["drift"])
        row |= {f"seconds_{part}": self.seconds[part] for part in ("sampling", "reward", "scoring", "update")}
        return row | {"seconds_step": self.seconds["begin"] + self.seconds["update"]}


def _kills() -> int:
    return sum(verifier_stats[k] for k in ("timeouts", "crashes"))


def mean(values: Tensor) -> float | None:
    """None of nothing."""
    return values.float().mean().item() if len(values) else None


def entropies(rollouts: Rollouts, correct: Tensor) -> dict[str, float | None]:
    """Token means of the entropy (every token counts the same) over all, right and wrong completions."""
    right, wrong = entropy_by_correctness(rollouts.entropy, rollouts.mask, correct)
    return {"entropy": mean(rollouts.entropy[rollouts.mask]), "entropy_right": right, "entropy_wrong": wrong}


def batch_metrics(batch: Rollouts, correct: Tensor, rewards: Tensor, steps: list[int | None]) -> dict[str, float | None]:
    """What a batch of completions looks like, before filtering. `steps`: solution steps of each row's problem, for the defects.

    The perplexities are means over completions of the log-perplexity. A reward of NaN (not scored) is left out of the reward's mean and
    counts as not right.
    """
    scored = rewards[~rewards.isnan()]
    log_ppl = log_perplexity(batch.old_logp, batch.mask)
    right_in_group = torch.stack([correct[batch.group == g].float().mean() for g in batch.group.unique()])
    metrics = {"accuracy": mean(correct), "reward": mean(scored), "reward_std": scored.std().item(), "truncated": mean(~batch.finished)}
    metrics |= {"groups_all_right": mean(right_in_group == 1), "groups_all_wrong": mean(right_in_group == 0)}
    metrics |= {"completions": len(batch), "groups": len(right_in_group)} | entropies(batch, correct)
    for suffix, rows in (("", torch.ones_like(correct)), ("_right", correct), ("_wrong", ~correct)):
        metrics["log_ppl" + suffix] = mean(log_ppl[rows])
        metrics["length" + suffix] = mean(batch.lengths[rows])
    return metrics | {f"defect_{name}": share for name, share in defect_shares(batch.text, batch.finished.tolist(), steps).items()}


def update_metrics(updates: list[dict], drift: float | None) -> dict[str, float | None]:
    """What the updates of a step were like, as means over their tokens. drift: of completions scored again, where there were any."""
    made = [update for update in updates if not update["skipped"]]
    sums = Counter()
    for update in made:
        sums.update(update)
    tokens = max(sums["tokens"], 1)
    metrics = {name: sums[name] / tokens for name in ("loss", "clipped_low", "clipped_high")}
    metrics |= {"updates": len(made), "skipped_updates": len(updates) - len(made)}
    metrics["grad_norm"] = sums["grad_norm"] / len(made) if made else None
    metrics["kl"] = sums["kl"] / tokens if "kl" in sums else None
    metrics["logp_drift"] = drift if drift is not None or not sums["first_tokens"] else sums["drift"] / sums["first_tokens"]
    return metrics
