"""The training loop of GRPO: sample, reward, advantage, shape, update, log. One step reads from top to bottom in `Trainer.step`."""

import copy
import math
import random
import time
from collections import defaultdict
from contextlib import contextmanager

import torch
from torch import Tensor
from tqdm import tqdm

from rlvr.advantage import grpo_advantages, method_parts, shape
from rlvr.config import SettingError, TrainConfig, run_folder
from rlvr.data import Problem, encode_prompts, has_test_split, load_problems
from rlvr.entropy import plateau_step
from rlvr.evaluate import Evaluation, evaluate
from rlvr.loss import clipped_loss
from rlvr.policy import (
    MasterWeights,
    Policy,
    check_length,
    check_model_name,
    choose_device,
    load_policy,
    logp_and_entropy,
    micro_batches,
    score,
)
from rlvr.reward import overlong_penalty, verify_all
from rlvr.reward import stats as verifier_stats
from rlvr.rollout import Rollouts, sample
from rlvr.runlog import RunLog, batch_metrics

NON_FINITE_LIMIT = 10  # updates in a row with a NaN or infinite gradient before the run gives up


class Trainer:
    """Everything a run keeps between steps."""

    def __init__(self, config: TrainConfig, policy: Policy, problems: list[Problem], prompts: list[list[int]]):
        self.config, self.policy, self.problems, self.prompts = config, policy, problems, prompts
        model = policy.model
        model.train()
        for module in model.modules():  # no dropout: old and new log-probs must be of the same policy
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.0
        if config.gradient_checkpointing:
            # transformers renamed this; the old name goes in version 6
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        self.reference = copy.deepcopy(model).eval().requires_grad_(False) if config.kl_coef else None
        self.weights = MasterWeights(model)
        self.optimizer = torch.optim.AdamW(self.weights.parameters, lr=config.lr, weight_decay=config.weight_decay)
        self.shuffle = random.Random(config.seed)  # order of problems and of groups in mini-batches
        self.generator = torch.Generator(model.device).manual_seed(config.seed)  # sampling
        self.queue: list[int] = []  # problems still to come in this pass over the data
        self.entropies: list[float] = []  # of each step, for the stage detector
        self.plateau: int | None = None
        self.step_number = 0
        self.failed_updates_in_a_row = 0
        self.seconds: dict[str, float] = {}

    # -----------------------------------------------------------------------------------------------------------------------------------

    def step(self) -> tuple[dict, Rollouts, Tensor, Tensor]:
        """One step. Returns its metrics, the completions, whether each is correct [N], and the shaped advantages [N, T]."""
        c = self.config
        self.step_number += 1
        self.seconds = defaultdict(float)
        started = time.perf_counter()

        killed_before = sum(verifier_stats[k] for k in ("timeouts", "crashes", "skipped"))
        sampled, correct, problem_ids, rounds = self._collect()
        if self._scores_anew():
            with self._timed("scoring"):
                sampler_logp = sampled.old_logp
                sampled.old_logp, sampled.entropy = score(self.policy.model, sampled, c.temperature, c.micro_batch_tokens)
                drift = (sampled.old_logp - sampler_logp).abs()[sampled.mask].mean().item()
        else:
            drift = None  # measured in the first update

        self.entropies.append(sampled.entropy[sampled.mask].mean().item())
        if self.plateau is None:
            self.plateau = plateau_step(self.entropies)

        rewards = 2.0 * correct.float() - 1.0 + overlong_penalty(sampled.lengths, c.max_new_tokens, c.overlong_buffer, c.overlong_factor)
        advantages = grpo_advantages(rewards, sampled.group)
        method = c.method if self._shaping_is_on() else "grpo"
        shaped = shape(
            method, advantages, sampled.old_logp, sampled.mask, sampled.group, ppl_alpha=c.ppl_alpha, ppl_direction=c.ppl_direction,
            pos_alpha=c.pos_alpha, pos_direction=c.pos_direction,
        )  # fmt: skip
        kept = self._kept_groups(sampled.group, correct)
        with self._timed("update"):
            update = self._update(sampled, shaped, kept)

        metrics = {"step": self.step_number, "stage": "plateau" if self.plateau else "rising", "shaped": int(method != "grpo")}
        metrics |= batch_metrics(sampled, correct, rewards, [self.problems[i].steps for i in problem_ids])
        metrics |= {"groups_kept": len(kept), "sampling_rounds": rounds} | update
        metrics["verifier_kills"] = sum(verifier_stats[k] for k in ("timeouts", "crashes", "skipped")) - killed_before
        if drift is not None:
            metrics["logp_drift"] = drift
        metrics |= {f"seconds_{k}": self.seconds[k] for k in ("sampling", "reward", "scoring", "update")}
        metrics["seconds_step"] = time.perf_counter() - started
        return metrics, sampled, correct, shaped

    # -----------------------------------------------------------------------------------------------------------------------------------

    def _collect(self) -> tuple[Rollouts, Tensor, list[int], int]:
        """Sample until enough groups can be learned from, or the rounds are used up (dynamic sampling).

        Returns all completions sampled, correctness [N], the problem of each row, and the rounds it took. Right or wrong decides, not the
        reward: a group that differs only in the overlong penalty is dropped too (Deng et al. 2025, released code).
        """
        c, parts, problem_ids, correct = self.config, [], [], []
        useful = 0
        for rounds in range(1, c.sampling_rounds + 1):
            chosen = self._next_problems(c.prompts_per_step - useful)
            with self._timed("sampling"):
                part = sample(
                    self.policy.model, self.policy.tokenizer, [self.prompts[i] for i in chosen], stop_ids=self.policy.stop_ids,
                    completions_per_prompt=c.completions_per_prompt, max_new_tokens=c.max_new_tokens, temperature=c.temperature,
                    generator=self.generator, sampling_rows=c.sampling_rows,
                )  # fmt: skip
            ids = [chosen[g] for g in part.group.tolist()]
            with self._timed("reward"):
                right = verify_all(part.text, [self.problems[i].answer for i in ids])
            part.group += sum(len(p) for p in parts) // c.completions_per_prompt  # group ids go on: a problem drawn twice is two groups
            parts.append(part)
            problem_ids += ids
            correct += right
            useful = len(self._kept_groups(torch.cat([p.group for p in parts]), torch.tensor(correct)))
            if useful >= c.prompts_per_step:
                break
        return Rollouts.concat(parts), torch.tensor(correct), problem_ids, rounds

    def _kept_groups(self, group: Tensor, correct: Tensor) -> list[int]:
        """The groups to learn from: all, or with filtering those with right and wrong completions."""
        ids = group.unique().tolist()
        if self.config.filter_groups:
            ids = [g for g in ids if 0 < int(correct[group == g].sum()) < int((group == g).sum())]
        return ids

    def _next_problems(self, n: int) -> list[int]:
        """The next n problems (indices) of a shuffled pass over the data; a new pass starts when one is through."""
        while len(self.queue) < n:
            order = list(range(len(self.problems)))
            self.shuffle.shuffle(order)
            self.queue += order
        chosen, self.queue = self.queue[:n], self.queue[n:]
        return chosen

    def _scores_anew(self) -> bool:
        mode = self.config.old_logp
        return mode == "recompute" or (mode == "auto" and self.policy.model.dtype != torch.float32)

    def _shaping_is_on(self) -> bool:
        c = self.config
        start = (self.plateau or float("inf")) if c.shape_start == "plateau" else c.shape_start
        return start <= self.step_number and (not c.shape_stop or self.step_number <= c.shape_stop)

    @contextmanager
    def _timed(self, part: str):
        """Adds the seconds spent inside to seconds[part]."""
        started = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - started

    # -----------------------------------------------------------------------------------------------------------------------------------

    def _update(self, batch: Rollouts, shaped: Tensor, kept: list[int]) -> dict[str, float]:
        """Learn from the kept groups: one optimiser step per mini-batch of groups. Returns what to log."""
        c = self.config
        lr = self._learning_rate()
        for param_group in self.optimizer.param_groups:
            param_group["lr"] = lr
        groups = list(kept)
        self.shuffle.shuffle(groups)
        totals: dict[str, float] = defaultdict(float)
        norms = []
        for start in range(0, len(groups), c.mini_batch_prompts):
            wanted = torch.tensor(groups[start : start + c.mini_batch_prompts])
            rows = torch.isin(batch.group, wanted).nonzero()[:, 0]
            norm = self._update_once(batch, shaped, rows, totals, first=start == 0)
            if norm is None:
                totals["skipped_updates"] += 1
            else:
                norms.append(norm)
        tokens = max(totals["tokens"], 1)
        log = {"lr": lr, "updates": len(norms), "skipped_updates": int(totals["skipped_updates"])}
        log["grad_norm"] = sum(norms) / len(norms) if norms else None
        log |= {name: totals[name] / tokens for name in ("loss", "clipped_low", "clipped_high")}
        log["logp_drift"] = totals["drift"] / totals["first_tokens"] if totals["first_tokens"] else None
        if c.kl_coef:
            log["kl"] = totals["kl"] / tokens
        return log

    def _update_once(self, batch: Rollouts, shaped: Tensor, rows: Tensor, totals: dict[str, float], first: bool) -> float | None:
        """One optimiser step on the given rows. Returns the gradient norm before clipping, or None if it was not finite and was skipped."""
        c, model = self.config, self.policy.model
        denominator = int(batch.mask[rows].sum())  # of the whole update, whatever the micro-batches
        if not (c.kl_coef or c.entropy_coef):
            rows = rows[(shaped[rows] != 0).any(1)]  # no advantage, no gradient: skip the work, keep the denominator
        for micro in micro_batches(batch, rows, c.micro_batch_tokens):
            part = batch.select(micro)
            width = part.mask.shape[1]
            logp, entropy = logp_and_entropy(
                model, part.prompt_ids, part.completion_ids, part.mask, c.temperature, with_grad_entropy=c.entropy_coef > 0
            )
            ref_logp = None
            if self.reference is not None:
                with torch.no_grad():
                    ref_logp, _ = logp_and_entropy(self.reference, part.prompt_ids, part.completion_ids, part.mask, c.temperature)
            old_logp, advantages, mask = (x.to(logp.device) for x in (part.old_logp, shaped[micro][:, :width], part.mask))
            loss, stats = clipped_loss(
                logp, old_logp, advantages, mask, clip_low=c.clip_low, clip_high=c.clip_high, denominator=denominator, ref_logp=ref_logp,
                kl_coef=c.kl_coef, entropy=entropy, entropy_coef=c.entropy_coef,
            )  # fmt: skip
            loss.backward()
            self.weights.collect_grads()
            totals["loss"] += loss.item() * denominator
            for name, value in stats.items():
                totals[name] += value.item()
            if first:  # the policy has not moved yet: any difference to the old log-probs is numerical
                totals["drift"] += (logp.detach() - old_logp)[mask].abs().sum().item()
                totals["first_tokens"] += int(mask.sum())
        totals["tokens"] += denominator
        norm = torch.nn.utils.clip_grad_norm_(self.weights.parameters, c.max_grad_norm).item()
        finite = math.isfinite(norm)
        if finite:
            self.optimizer.step()
            self.weights.write_back()
        self.optimizer.zero_grad(set_to_none=True)
        self.failed_updates_in_a_row = 0 if finite else self.failed_updates_in_a_row + 1
        if self.failed_updates_in_a_row >= NON_FINITE_LIMIT:
            raise SettingError(
                f"The gradient was not finite in {NON_FINITE_LIMIT} updates in a row. Lower --lr, or use --dtype float32."
            )
        return norm if finite else None

    def _learning_rate(self) -> float:
        """Linear warm-up, then constant, or linear to a tenth at the last step. It moves once per step, not per update."""
        c = self.config
        if self.step_number <= c.warmup_steps:
            return c.lr * self.step_number / (c.warmup_steps + 1)
        if c.lr_schedule == "constant":
            return c.lr
        done = (self.step_number - c.warmup_steps) / max(c.steps - c.warmup_steps, 1)
        return c.lr * (1 - 0.9 * done)


# ---------------------------------------------------------------------------------------------------------------------------------------
# A run


class Progress:
    """Measures a policy on held-out problems during a run, always the same ones."""

    def __init__(self, config: TrainConfig, policy: Policy, problems: list[Problem]):
        self.config, self.policy = config, policy
        self.problems, self.prompts = [], []
        if problems:
            self.problems, self.prompts, _ = encode_prompts(policy.tokenizer, problems, config.instruction, config.max_prompt_tokens)

    def measure(self, limit: int) -> Evaluation | None:
        """Sampling as in training (same temperature, no top-p), so that the curve and the training accuracy can be compared."""
        c = self.config
        if not self.problems:
            return None
        return evaluate(
            self.policy, self.problems[:limit], self.prompts[:limit], completions=c.eval_completions, temperature=c.temperature, top_p=1.0,
            max_new_tokens=c.max_new_tokens, seed=c.seed, sampling_rows=c.sampling_rows, progress="evaluating",
        )  # fmt: skip


def train(config: TrainConfig) -> dict:
    """A whole run: load, measure, train, measure, save. Returns the summary that is also in summary.json. Raises SettingError."""
    try:
        method_parts(config.method)
    except ValueError as error:
        raise SettingError(str(error)) from None
    check_model_name(config.model)
    choose_device(config.device)
    folder = run_folder(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    problems = load_problems(config.data, "train", seed=config.seed)
    held_out_data = config.eval_data or (config.data if has_test_split(config.data) else "")
    held_out = load_problems(held_out_data, "test", config.final_eval_problems) if held_out_data and config.final_eval_problems else []
    policy = load_policy(config.model, config.device, config.dtype)
    problems, prompts, too_long = encode_prompts(policy.tokenizer, problems, config.instruction, config.max_prompt_tokens)
    progress = Progress(config, policy, held_out)
    check_length(policy, prompts + progress.prompts, config.max_new_tokens)
    trainer = Trainer(config, policy, problems, prompts)
    log = RunLog(folder, config, policy, problems=len(problems), too_long=too_long, held_out=len(progress.problems))
    with log:
        try:
            log.evaluation(0, progress.measure(config.final_eval_problems))
            with tqdm(total=config.steps, desc=config.method, unit="step") as bar:
                for step in range(1, config.steps + 1):
                    metrics, batch, correct, shaped = trainer.step()
                    if step == config.steps:
                        log.evaluation(step, progress.measure(config.final_eval_problems))
                    elif config.eval_every and step % config.eval_every == 0:
                        log.evaluation(step, progress.measure(config.eval_problems))
                    log.step(metrics, batch, correct, shaped, bar)
                    bar.update()
        except KeyboardInterrupt:
            if not log.steps_done:
                raise SettingError(f"Interrupted before the first step was done; nothing was trained. {folder} can be deleted.") from None
            print(f"\ninterrupted in step {trainer.step_number}; the model is saved as it is")
        return log.finish(trainer.plateau)
