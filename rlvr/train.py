"""The training loop of GRPO. `Trainer.begin` makes a batch with an advantage for every token; `Trainer.update` learns from a part of it.

N completions, T tokens of the longest one. A group holds the completions of one prompt.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlvr.advantage import STRENGTHS, grpo_advantages, keep_sign, mixed_groups, shape
from rlvr.config import TrainConfig
from rlvr.data import columns_for, next_problems
from rlvr.engine.memory import Budget, memory_error_as_sentence
from rlvr.engine.optimizer import Optimizer
from rlvr.entropy import plateau_step
from rlvr.loss import clipped_loss
from rlvr.policy import Policy, micro_batches
from rlvr.reward import overlong_penalty, rewards_from
from rlvr.rollout import Rollouts
from rlvr.run.session import session
from rlvr.run.set_up import load


@dataclass
class Step:
    """One batch, and what was learned from it so far."""

    rollouts: Rollouts
    problem_ids: list[int]  # [N], the problem of each row: an index
    rewards: Tensor  # [N], above 0: right; NaN: could not be scored; without the overlong penalty
    shaped: Tensor  # [N, T], the advantage of every token
    mini_batches: list[list[int]]  # the groups of each update
    updates: list[dict] = field(default_factory=list)  # for each update made: sums over its tokens, and what the optimiser reports

    @property
    def finished(self) -> bool:
        return len(self.updates) == len(self.mini_batches)


class Trainer:
    """Everything that a run keeps between two updates; rlvr/run/state.py saves and restores it."""

    @memory_error_as_sentence()
    def __init__(self, config: TrainConfig, policy: Policy, problems: list, prompts: list[list[int]], reward: Callable | None = None):
        self.config, self.policy, self.problems, self.prompts = config, policy, problems, prompts
        self.reward = reward  # any reward function (see rewards_from); None: is the answer right?
        policy.prepare(config)
        self.optimizer = Optimizer(config, policy.model)
        self.micro_batch_tokens = Budget("--micro-batch-tokens", config.micro_batch_tokens)
        self.generator = torch.Generator().manual_seed(config.seed)  # draws the tokens
        self.shuffle = random.Random(config.seed)  # orders problems, and groups within a batch
        self.queue: list[int] = []  # problems still to come in this pass over the data
        self.entropies: list[float] = []  # of each step, for the stage detector
        self.plateau: int | None = None  # the step at which it began
        self.step_number = 0  # of the step in progress, or the last one

    def step(self) -> Step:
        """A whole step: one batch, and all updates that are made with it."""
        step = self.begin()
        while not step.finished:
            self.update(step)
        return step

    def begin(self) -> Step:
        """Sample, reward, compare within the group, and give every token its advantage."""
        c = self.config
        self.step_number += 1
        rollouts, problem_ids, rewards = self.sample_groups()
        groups = self.teachable_groups(rollouts.group, rewards)
        self.shuffle.shuffle(groups)
        mini_batches = [groups[i : i + c.mini_batch_prompts] for i in range(0, len(groups), c.mini_batch_prompts)]
        self.policy.rescore(rollouts, mini_batches, c, self.micro_batch_tokens)  # bfloat16: log-probs where rounding would matter
        self.entropies.append(rollouts.entropy[rollouts.mask].mean().item())
        self.plateau = self.plateau or plateau_step(self.entropies)

        penalty = overlong_penalty(rollouts.lengths, c.max_new_tokens, c.overlong_buffer, c.overlong_factor)
        advantages = grpo_advantages(rewards + penalty, rollouts.group)  # [N]
        method = c.method_at(self.step_number, self.plateau)
        more = {name: getattr(c, name) for name in STRENGTHS} | dict(rewards=rewards + penalty, step=self.step_number)
        shaped = shape(method, advantages, rollouts.old_logp, rollouts.mask, rollouts.group, entropy=rollouts.entropy, **more)  # [N, T]
        return Step(rollouts, problem_ids, rewards, keep_sign(shaped, c.learn_from), mini_batches)

    def sample_groups(self) -> tuple[Rollouts, list[int], Tensor]:
        """Sample until enough groups can teach, or the rounds are used up (dynamic sampling).

        Returns N completions, the problem (index) of each, and their rewards [N].
        """
        c, parts, problem_ids, rewards, useful = self.config, [], [], [], 0
        while useful < c.prompts_per_step and len(parts) < c.sampling_rounds:
            chosen, self.queue = next_problems(self.queue, c.prompts_per_step - useful, len(self.problems), self.shuffle)
            part = self.policy.sample([self.prompts[i] for i in chosen], c.completions_per_prompt, c, self.generator)
            problem_ids += [chosen[g] for g in part.group.tolist()]
            rewards += self.rewards_of(part.text, [self.problems[i] for i in problem_ids[-len(part) :]])
            part.group += sum(map(len, parts)) // c.completions_per_prompt  # ids go on: a problem that is drawn twice makes two groups
            parts.append(part)
            useful = len(self.teachable_groups(torch.cat([p.group for p in parts]), torch.tensor(rewards)))
        return Rollouts.concat(parts), problem_ids, torch.tensor(rewards)

    def rewards_of(self, completions: list[str], problems: list) -> list[float]:  # a method, so that a run can time it
        return rewards_from(self.reward, completions, *columns_for(self.reward, problems))

    def teachable_groups(self, group: Tensor, rewards: Tensor) -> list[int]:
        """The groups to learn from. Right or wrong decides: a group that differs only in the overlong penalty is dropped too (Deng et al.
        2025, released code)."""
        return mixed_groups(rewards, group) if self.config.filter_groups else group.unique().tolist()

    def update(self, step: Step) -> None:
        """One optimiser step on the next mini-batch. A loss or gradient that is not finite changes nothing, and is counted."""
        rows = torch.isin(step.rollouts.group, torch.tensor(step.mini_batches[len(step.updates)])).nonzero()[:, 0]
        sums = self.micro_batch_tokens.run(lambda tokens: self.gradient(step, rows, tokens))  # fewer at once if memory runs out
        step.updates.append(dict(sums) | self.optimizer.step(sums["loss"], self.step_number))

    def gradient(self, step: Step, rows: Tensor, micro_batch_tokens: int, denominator: int | None = None) -> Counter:
        """Add up the gradient of the loss over the given rows, in micro-batches -> sums over tokens, for the log.

        denominator: the tokens of the whole update, if these rows are only a part of it (see --workers).
        """
        c, policy, batch = self.config, self.policy, step.rollouts
        self.optimizer.weights.zero_grad()  # of a try that ran out of memory
        sums = Counter(tokens=int(batch.mask[rows].sum()))
        denominator = denominator or sums["tokens"]  # of the whole update: else the gradient would depend on the micro-batches
        if not (c.kl_coef or c.entropy_coef):
            rows = rows[(step.shaped[rows] != 0).any(1)]  # no advantage, no gradient: skip the work, keep the denominator
        for micro in micro_batches(batch, rows, micro_batch_tokens, policy.packed):
            part = batch.select(micro)
            logp, entropy = policy.logp_of(part, c.temperature, with_grad_entropy=c.entropy_coef > 0)  # [n, T]
            shaped = step.shaped[micro][:, : part.mask.shape[1]]
            old_logp, mask, shaped = (x.to(logp.device) for x in (part.old_logp, part.mask, shaped))
            if not step.updates:  # the policy has not moved yet: any difference to the old log-probs is numerical
                sums.update(drift=(logp.detach() - old_logp)[mask].abs().sum().item(), first_tokens=int(mask.sum()))
                old_logp = logp.detach() if policy.first_update_is_on_policy(c) else old_logp
            loss, counts = clipped_loss(
                logp, old_logp, shaped, mask, clip_low=c.clip_low, clip_high=c.clip_high, denominator=denominator, entropy=entropy,
                ref_logp=policy.reference_logp(part, c.temperature), kl_coef=c.kl_coef, entropy_coef=c.entropy_coef,
            )  # fmt: skip
            loss.backward()
            self.optimizer.weights.collect_grads()
            sums.update({name: x.item() for name, x in counts.items()} | {"loss": loss.item() * denominator})
        return sums


def train(config: TrainConfig, reward: Callable | None = None) -> dict:
    """A whole run: load, measure, train, measure, save. Returns the summary that is also in summary.json. Raises SettingError.

    reward: a reward function of your own, (completions, answers) -> one number each (see rewards_from); None: is the answer right?
    """
    # The session keeps folder, log, checkpoints and signals; it resumes (a Step may be in a checkpoint), and finishes when the block ends.
    with session(*set_up(config, reward), Step) as run:
        for step in run.steps():  # each begun by the trainer, or found half done in the newest checkpoint
            while not step.finished and run.may_go_on():  # a second Ctrl-C stops between two updates
                run.trainer.update(step)
            run.log(step)
    return run.summary


def set_up(config: TrainConfig, reward: Callable | None = None):
    """Check the settings and load what they name -> a Trainer before its first step, and the held-out problems that measure it."""
    config, policy, problems, prompts, reward, held_out = load(config, reward)
    return Trainer(config, policy, problems, prompts, reward), held_out
