"""The training loop of GRPO: sample, reward, advantage, shape, update, log. One step reads from top to bottom in `Trainer.step`."""

import copy
import math
import random
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from rlvr.advantage import grpo_advantages, keep_sign, method_parts, shape
from rlvr.engine.attention import is_ours
from rlvr.run.checkpoint import fingerprint, random_states, restore_random_states
from rlvr.config import SettingError, TrainConfig, check_train, resume_command, run_folder
from rlvr.data import Problem, encode_prompts, has_test_split, load_held_out, load_problems, prompt_ids
from rlvr.entropy import plateau_step
from rlvr.engine.estimate import Estimate, advice, estimate, free_memory
from rlvr.evaluate import Evaluation, evaluate
from rlvr.common.text import say
from rlvr.loaders.adapters import add_lora, chain, check_peft, without_lora
from rlvr.loss import clipped_loss
from rlvr.engine.memory import Budget, out_of_memory
from rlvr.policy import (
    MasterWeights,
    Policy,
    check_length,
    check_model_name,
    choose_device,
    choose_dtype,
    load_policy,
    logp_and_entropy,
    micro_batches,
    resolve_model,
    score,
)
from rlvr.run.publish import check_hub
from rlvr.reward import overlong_penalty, rewards_from, verify_all
from rlvr.rollout import Rollouts, sample
from rlvr.run.log import RunLog, batch_metrics
from rlvr.run.reward_function import load_reward
from rlvr.run.stop import Stop
from rlvr.run.trackers import check_tracker
from rlvr.verifier import stats as verifier_stats

NON_FINITE_LIMIT = 10  # updates in a row with a NaN or infinite loss or gradient before the run gives up

NO_ROOM = "Out of memory for the weights, their gradients and the optimiser. Choose a smaller model."


@dataclass
class Step:
    """A step in progress: its batch, and what was learned from it so far."""

    sampled: Rollouts
    correct: Tensor  # [N] bool
    shaped: Tensor  # [N, T], the advantages
    groups: list[int]  # those still to learn from, in the order of the updates
    metrics: dict[str, float]
    totals: dict[str, float]  # sums over the tokens of the updates made
    norms: list[float]  # gradient norms of the updates made
    skipped: int = 0  # updates not made, because loss or gradient was not finite

    @property
    def updates(self) -> int:
        """Made or skipped so far."""
        return len(self.norms) + self.skipped


def make_optimizer(config: TrainConfig, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW, its two moments in float32 or in 8 bits (Dettmers et al. 2022). Raises SettingError if bitsandbytes is not there."""
    settings = dict(lr=config.lr, weight_decay=config.weight_decay)
    if config.optimizer == "adamw":
        fused = parameters[0].device.type == "cuda"  # one kernel, where the usual way makes copies as large as the weights
        return torch.optim.AdamW(parameters, **settings, fused=fused or None)
    try:
        from bitsandbytes.optim import AdamW8bit
    except Exception as error:  # not there, or its library does not fit this machine
        reason = "is not there" if isinstance(error, ImportError) else f"fails here ({' '.join(str(error).split())[:80]})"
        raise SettingError(f"The package bitsandbytes, for --optimizer adamw8bit, {reason}. Install it: pip install bitsandbytes") from None
    return AdamW8bit(parameters, **settings)


class Trainer:
    """Everything a run keeps between steps. checkpoint.py saves and restores it."""

    def __init__(
        self, config: TrainConfig, policy: Policy, problems: list[Problem], prompts: list[list[int]], reward: Callable | None = None
    ):
        self.config, self.policy, self.problems, self.prompts = config, policy, problems, prompts
        self.reward = reward  # any reward function (see rewards_from); None: verify_all
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
        self.reference = copy.deepcopy(model).eval().requires_grad_(False) if config.kl_coef and not config.lora_rank else None
        self.weights = MasterWeights(model)
        self.optimizer = make_optimizer(config, self.weights.parameters)
        self.shuffle = random.Random(config.seed)  # order of problems and of groups in mini-batches
        self.generator = torch.Generator().manual_seed(config.seed)  # sampling
        self.queue: list[int] = []  # problems still to come in this pass over the data
        self.entropies: list[float] = []  # of each step, for the stage detector
        self.plateau: int | None = None
        self.step_number = 0  # of the step in progress, or the last one
        self.unfinished: Step | None = None  # the step in progress, if it was interrupted between two updates
        self.failed_updates_in_a_row = 0
        self.micro_batch_tokens = Budget("--micro-batch-tokens", config.micro_batch_tokens)
        self.sampling_rows = Budget("--sampling-rows", config.sampling_rows)
        self.seconds: dict[str, float] = defaultdict(float)  # of this step, by part
        self.between_updates = True  # False while the optimiser changes the weights: what it leaves if that fails must not be saved

    @property
    def reward_name(self) -> str:
        if self.config.reward:
            return self.config.reward
        reward = self.reward or verify_all
        return getattr(reward, "__qualname__", type(reward).__qualname__)

    @property
    def steps_done(self) -> int:
        return self.step_number - (self.unfinished is not None)

    # -----------------------------------------------------------------------------------------------------------------------------------

    def step(self, interrupted: Callable[[], bool] = lambda: False) -> tuple[dict, Rollouts, Tensor, Tensor] | None:
        """One step. Returns its metrics, the completions, whether each is correct [N], and the shaped advantages [N, T].

        `interrupted` is asked before every update. If it says yes, the return value is None, `unfinished` holds the rest of the step, and
        the next call goes on with it.
        """
        if self.unfinished is None:
            self.unfinished = self._begin()
        step = self.unfinished
        with self._timed("update"):
            while step.groups:
                if interrupted():
                    return None
                self._update(step)
        self.unfinished = None
        metrics = step.metrics | self._update_metrics(step)
        metrics |= {f"seconds_{k}": self.seconds[k] for k in ("sampling", "reward", "scoring", "update")}
        metrics["seconds_step"] = self.seconds["begin"] + self.seconds["update"]
        return metrics, step.sampled, step.correct, step.shaped

    def _begin(self) -> Step:
        """The first half of a step: sample, reward, advantage, shape, and choose what to learn from."""
        c = self.config
        self.step_number += 1
        self.seconds.clear()
        with self._undone_if_it_fails(), self._timed("begin"):
            killed_before = self._verifier_kills()
            sampled, rewards, problem_ids, rounds = self._collect()
            correct = rewards > 0
            kept = self._kept_groups(sampled.group, rewards)
            self.shuffle.shuffle(kept)
            drift = self._score(sampled, kept)
            self.entropies.append(sampled.entropy[sampled.mask].mean().item())
            if self.plateau is None:
                self.plateau = plateau_step(self.entropies)

            rewards = rewards + overlong_penalty(sampled.lengths, c.max_new_tokens, c.overlong_buffer, c.overlong_factor)
            advantages = grpo_advantages(rewards, sampled.group)
            method = c.method if self._shaping_is_on() else "grpo"
            shaped = shape(
                method, advantages, sampled.old_logp, sampled.mask, sampled.group, ppl_alpha=c.ppl_alpha, ppl_direction=c.ppl_direction,
                ppl_apply=c.ppl_apply, pos_alpha=c.pos_alpha, pos_direction=c.pos_direction,
            )  # fmt: skip
            shaped = keep_sign(shaped, c.learn_from)

            metrics = {"step": self.step_number, "stage": "plateau" if self.plateau else "rising", "shaped": int(method != "grpo")}
            metrics |= batch_metrics(sampled, correct, rewards, [self.problems[i].solution_steps for i in problem_ids])
            metrics |= {"groups_kept": len(kept), "sampling_rounds": rounds, "verifier_kills": self._verifier_kills() - killed_before}
            metrics["reward_failures"] = int(rewards.isnan().sum())
            if drift is not None:
                metrics["logp_drift"] = drift
        return Step(sampled, correct, shaped, groups=kept, metrics=metrics, totals={}, norms=[])

    @contextmanager
    def _undone_if_it_fails(self):
        """Whatever goes wrong inside (a reward function that raises, say) leaves the trainer as it was after the step before."""
        state = (self.step_number - 1, self.queue, list(self.entropies), self.plateau)
        shuffle, generator, others = self.shuffle.getstate(), self.generator.get_state(), random_states()
        try:
            yield
        except BaseException:
            self.step_number, self.queue, self.entropies, self.plateau = state
            self.shuffle.setstate(shuffle)
            self.generator.set_state(generator)
            restore_random_states(others)
            raise

    # -----------------------------------------------------------------------------------------------------------------------------------

    def _collect(self) -> tuple[Rollouts, Tensor, list[int], int]:
        """Sample until enough groups can be learned from, or the rounds are used up (dynamic sampling).

        Returns all completions sampled, their rewards [N] (NaN: could not be scored), the problem of each row, and the rounds it took.
        Right or wrong decides, not the reward: a group that differs only in the overlong penalty is dropped too (Deng et al. 2025,
        released code).
        """
        c, parts, problem_ids, rewards = self.config, [], [], []
        useful = 0
        for rounds in range(1, c.sampling_rounds + 1):
            chosen = self._next_problems(c.prompts_per_step - useful)
            with self._timed("sampling"):
                part = self._sample([self.prompts[i] for i in chosen])
            ids = [chosen[g] for g in part.group.tolist()]
            with self._timed("reward"):
                try:
                    rewards += self._rewards(part.text, [self.problems[i].answer for i in ids])
                except (ValueError, ImportError) as error:
                    raise SettingError(str(error)) from None
            part.group += sum(len(p) for p in parts) // c.completions_per_prompt  # group ids go on: a problem drawn twice is two groups
            parts.append(part)
            problem_ids += ids
            useful = len(self._kept_groups(torch.cat([p.group for p in parts]), torch.tensor(rewards)))
            if useful >= c.prompts_per_step:
                break
        return Rollouts.concat(parts), torch.tensor(rewards), problem_ids, rounds

    def _rewards(self, completions: list[str], answers: list[str]) -> list[float]:
        if self.reward is None:
            return [1.0 if right else -1.0 for right in verify_all(completions, answers)]
        return rewards_from(self.reward, completions, answers)

    def _sample(self, prompts: list[list[int]]) -> Rollouts:
        c, before = self.config, self.generator.get_state()

        def work(sampling_rows: int) -> Rollouts:
            self.generator.set_state(before)  # a second try draws what the first did
            return sample(
                self.policy.model, self.policy.tokenizer, prompts, stop_ids=self.policy.stop_ids,
                completions_per_prompt=c.completions_per_prompt, max_new_tokens=c.max_new_tokens, temperature=c.temperature,
                generator=self.generator, sampling_rows=sampling_rows, cuda_graphs=c.cuda_graphs,
            )  # fmt: skip

        return self.sampling_rows.run(work)

    def _kept_groups(self, group: Tensor, rewards: Tensor) -> list[int]:
        """The groups to learn from: all, or with filtering those with right and wrong completions. What was not scored is neither."""
        ids = group.unique().tolist()
        if self.config.filter_groups:
            ids = [g for g in ids if (rewards[group == g] > 0).any() and (rewards[group == g] <= 0).any()]
        return ids

    @staticmethod
    def _verifier_kills() -> int:
        return sum(verifier_stats[k] for k in ("timeouts", "crashes", "skipped"))

    def _next_problems(self, n: int) -> list[int]:
        """The next n problems (indices) of a shuffled pass over the data; a new pass starts when one is through."""
        while len(self.queue) < n:
            order = list(range(len(self.problems)))
            self.shuffle.shuffle(order)
            self.queue = self.queue + order  # not in place: a step that fails goes back to the old one
        chosen, self.queue = self.queue[:n], self.queue[n:]
        return chosen

    def _score(self, sampled: Rollouts, kept: list[int]) -> float | None:
        """Replace the sampler's log-probs by those of the training forward, where they are needed (--old-logp).

        Returns how far the two lie apart, in nats per token (NaN if the sampler has none), or None if the first update is to find out.
        """
        c, model = self.config, self.policy.model
        everything = c.old_logp == "recompute" or not is_ours(model)
        groups = [] if c.old_logp == "sampler" or model.dtype == torch.float32 else kept[self._on_policy_groups() :]
        rows = torch.arange(len(sampled)) if everything else torch.isin(sampled.group, torch.tensor(groups)).nonzero()[:, 0]
        if not len(rows):
            return None
        with self._timed("scoring"):
            logp, entropy = self.micro_batch_tokens.run(lambda tokens: score(model, sampled, rows, c.temperature, tokens))
        before, sampled.old_logp = sampled.old_logp, sampled.old_logp.index_copy(0, rows, logp[rows])
        if everything:
            sampled.entropy = entropy
        return (logp - before)[rows][sampled.mask[rows]].abs().mean().item()

    def _on_policy_groups(self) -> int:
        """How many groups, from the first, need no old log-probs from elsewhere: those of the first update are its own, before it moves.

        In float32 the sampler's are as good, and perplexity shaping asks for all before the first update.
        """
        c, model = self.config, self.policy.model
        lean = c.old_logp == "auto" and is_ours(model) and model.dtype != torch.float32 and "ppl" not in method_parts(c.method)
        return c.mini_batch_prompts if lean else 0

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

    def _update(self, step: Step) -> None:
        """One optimiser step on the next mini-batch of groups. A loss or gradient that is not finite changes nothing, and is counted."""
        c = self.config
        rows = torch.isin(step.sampled.group, torch.tensor(step.groups[: c.mini_batch_prompts])).nonzero()[:, 0]
        totals = self.micro_batch_tokens.run(lambda tokens: self._backward(step, rows, tokens))
        norm = torch.nn.utils.clip_grad_norm_(self.weights.parameters, c.max_grad_norm).item()
        if math.isfinite(norm) and math.isfinite(totals["loss"]):
            for param_group in self.optimizer.param_groups:
                param_group["lr"] = self._learning_rate()
            self.between_updates = False
            self.optimizer.step()
            self.weights.write_back()
            self.between_updates = True
            self.failed_updates_in_a_row = 0
            step.norms.append(norm)
            for name, value in totals.items():
                step.totals[name] = step.totals.get(name, 0.0) + value
        else:
            self.failed_updates_in_a_row += 1
            step.skipped += 1
        step.groups = step.groups[c.mini_batch_prompts :]
        self.weights.zero_grad()
        if self.failed_updates_in_a_row >= NON_FINITE_LIMIT:
            self.failed_updates_in_a_row = 0  # resumed, the run may try again
            raise SettingError(self._diagnosis(step, totals["loss"], norm))

    def _backward(self, step: Step, rows: Tensor, micro_batch_tokens: int) -> dict[str, float]:
        """Add up the gradient of the given rows, in micro-batches. Returns sums over tokens, for the log."""
        c, model, batch = self.config, self.policy.model, step.sampled
        self.weights.zero_grad()  # of a try that ran out of memory
        denominator = int(batch.mask[rows].sum())  # of the whole update, whatever the micro-batches
        totals = defaultdict(float, tokens=denominator)
        if not (c.kl_coef or c.entropy_coef):
            rows = rows[(step.shaped[rows] != 0).any(1)]  # no advantage, no gradient: skip the work, keep the denominator
        for micro in micro_batches(batch, rows, micro_batch_tokens, is_ours(model)):
            part = batch.select(micro)
            width = part.mask.shape[1]
            logp, entropy = logp_and_entropy(
                model, part.prompt_ids, part.completion_ids, part.mask, c.temperature, with_grad_entropy=c.entropy_coef > 0
            )
            ref_logp = None
            if c.kl_coef:
                with torch.no_grad(), nullcontext(self.reference) if self.reference else without_lora(model) as reference:
                    ref_logp, _ = logp_and_entropy(reference, part.prompt_ids, part.completion_ids, part.mask, c.temperature)
            old_logp, advantages, mask = (x.to(logp.device) for x in (part.old_logp, step.shaped[micro][:, :width], part.mask))
            if step.updates == 0:  # the policy has not moved yet: any difference to the old log-probs is numerical
                totals["drift"] += (logp.detach() - old_logp)[mask].abs().sum().item()
                totals["first_tokens"] += int(mask.sum())
                if self._on_policy_groups():
                    old_logp = logp.detach()
            loss, stats = clipped_loss(
                logp, old_logp, advantages, mask, clip_low=c.clip_low, clip_high=c.clip_high, denominator=denominator, ref_logp=ref_logp,
                kl_coef=c.kl_coef, entropy=entropy, entropy_coef=c.entropy_coef,
            )  # fmt: skip
            loss.backward()
            self.weights.collect_grads()
            totals["loss"] += loss.item() * denominator
            for name, value in stats.items():
                totals[name] += value.item()
        return totals

    def _update_metrics(self, step: Step) -> dict[str, float | None]:
        """What the updates of a step were like, as means over their tokens."""
        totals = defaultdict(float, step.totals)
        tokens = max(totals["tokens"], 1)
        log = {"lr": self._learning_rate(), "updates": len(step.norms), "skipped_updates": step.skipped}
        log["grad_norm"] = sum(step.norms) / len(step.norms) if step.norms else None
        log |= {name: totals[name] / tokens for name in ("loss", "clipped_low", "clipped_high")}
        if "logp_drift" not in step.metrics and totals["first_tokens"]:
            log["logp_drift"] = totals["drift"] / totals["first_tokens"]
        if self.config.kl_coef:
            log["kl"] = totals["kl"] / tokens
        return log

    def _diagnosis(self, step: Step, loss: float, norm: float) -> str:
        """Why no update could be made for so long, as far as it shows. Cause and remedy."""
        what = f"Loss or gradient was not finite in {NON_FINITE_LIMIT} updates in a row (the last: loss {loss:g}, gradient norm {norm:g})"
        if not all(p.isfinite().all() for p in self.weights.parameters):
            return f"{what}, and so are the weights. Go back to a model folder whose weights are sound."
        if not step.sampled.old_logp.isfinite().all():
            return f"{what}; the model gives NaN already when it samples, with weights that are finite. Choose --dtype float32."
        return f"{what}; the weights are those of the last good update. Start anew with a lower --lr, or with --dtype float32."

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


def say_memory(config: TrainConfig) -> None:
    """Print what memory the run will need, before a model is loaded, and what to change if that is not there."""
    if config.model == "tiny":
        return
    from transformers import AutoConfig

    device = choose_device(config.device)
    *_, base = chain(resolve_model(config.model), check_model_name)

    def again(c: TrainConfig) -> Estimate:
        return estimate(c, shape, device, choose_dtype(c.dtype, device))

    try:
        shape = AutoConfig.from_pretrained(base, trust_remote_code=False)
        e = again(config)
    except Exception:  # a damaged folder, a model that is no language model: loading it says what is wrong
        return
    say(f"memory at most: {e}")
    free = free_memory(device)
    if free is not None and (remedy := advice(config, free, again)):
        say(f"note: {remedy}")
    positions = getattr(shape.get_text_config(), "max_position_embeddings", None) or float("inf")
    if config.max_new_tokens >= positions:  # with the prompts, it is checked again once they are known
        raise SettingError(f"--max-new-tokens is {config.max_new_tokens}, but the model has positions for {positions} tokens. Lower it.")


def encode(config: TrainConfig, policy: Policy, problems: list[Problem]) -> tuple[list[Problem], list[list[int]], int]:
    """Problems that fit, as prompts: see encode_prompts."""
    c = config
    first = policy.tokenizer, problems[0].problem, c.instruction
    if c.system and prompt_ids(*first, c.system, c.template) == prompt_ids(*first, "", c.template):
        say("note: the model's template leaves --system out, so it changes nothing")
    return encode_prompts(policy.tokenizer, problems, c.instruction, c.max_prompt_tokens, c.system, c.template)


class Progress:
    """Measures a policy on held-out problems during a run, always the same ones."""

    def __init__(self, config: TrainConfig, policy: Policy, problems: list[Problem]):
        self.config, self.policy = config, policy
        self.sampling_rows = Budget("--sampling-rows", config.sampling_rows)
        self.problems, self.prompts = [], []
        if problems:
            self.problems, self.prompts, too_long = encode(config, policy, problems)
            if too_long:
                say(f"{too_long} of {len(problems)} held-out problems left out, prompt over {config.max_prompt_tokens} tokens")

    def measure(self, limit: int) -> Evaluation | None:
        """Sampling as in training (same temperature, no top-p), so that the curve and the training accuracy can be compared."""
        c = self.config
        if not self.problems:
            return None
        return self.sampling_rows.run(
            lambda rows: evaluate(
                self.policy, self.problems[:limit], self.prompts[:limit], completions=c.eval_completions, temperature=c.temperature,
                top_p=1.0, max_new_tokens=c.max_new_tokens, seed=c.seed, sampling_rows=rows, progress="evaluating",
                cuda_graphs=c.cuda_graphs,
            )
        )  # fmt: skip


def train(config: TrainConfig, reward: Callable | None = None) -> dict:
    """A whole run: load, measure, train, measure, save. Returns the summary that is also in summary.json.

    reward: a reward function of your own, (completions, answers) -> one number each (see rlvr.reward.rewards_from); None: is the answer
    right? Held-out problems are always measured by that. Raises SettingError.
    """
    trainer, progress, too_long = set_up(config, reward)
    problems, held_out = trainer.problems, progress.problems
    data = fingerprint([(p.problem, p.answer) for p in problems], trainer.prompts, [(p.problem, p.answer) for p in held_out])
    with RunLog(config, trainer.policy, problems=len(problems), too_long=too_long, held_out=len(held_out)) as log, Stop() as stop:
        return _run(config, trainer, progress, log, stop, data)


def set_up(config: TrainConfig, reward: Callable | None = None) -> tuple[Trainer, Progress, int]:
    """Check the settings and load what they name: a trainer before its first step, what measures it, and how many problems were too long.
    Raises SettingError."""
    check_train(config)
    try:
        method_parts(config.method)
    except ValueError as error:
        raise SettingError(str(error)) from None
    check_model_name(config.model)
    choose_device(config.device, config.cuda_graphs)
    check_tracker(config.report_to)
    if config.lora_rank:
        check_peft()
    make_optimizer(config, [torch.nn.Parameter(torch.zeros(1))])
    if config.push_to_hub:
        check_hub(config.push_to_hub)
    if not config.resume:
        run_folder(config)  # its mistakes, before anything is loaded
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.reward and reward:
        raise SettingError(f"There are two reward functions, --reward {config.reward} and the one passed to train(). Leave one out.")
    if config.reward:
        try:
            reward = load_reward(config.reward)
        except ValueError as error:
            raise SettingError(str(error)) from None
    columns = dict(problem_column=config.problem_column, answer_column=config.answer_column)
    problems = load_problems(config.data, "train", seed=config.seed, level=config.level, **columns)
    held_out_data = config.eval_data or (config.data if has_test_split(config.data) else "")
    held_out = []
    if held_out_data and config.final_eval_problems:
        held_out = load_held_out(held_out_data, config.final_eval_problems, level=config.level, **columns)
        known = {p.problem for p in problems}
        if both := sum(p.problem in known for p in held_out):
            say(f"note: {both} of {len(held_out)} held-out problems are among those of --data too: what they show is not held out")
    say_memory(config)
    policy = load_policy(config.model, config.device, config.dtype, config.sampler)
    if config.lora_rank:
        add_lora(policy.model, config.lora_rank, config.lora_alpha, config.seed, resolve_model(config.model))
    problems, prompts, too_long = encode(config, policy, problems)
    progress = Progress(config, policy, held_out)
    check_length(policy, prompts + progress.prompts, config.max_new_tokens)
    try:
        trainer = Trainer(config, policy, problems, prompts, reward)
    except (RuntimeError, MemoryError) as error:
        raise (SettingError(NO_ROOM) if out_of_memory(error) else error) from None
    progress.sampling_rows = trainer.sampling_rows
    return trainer, progress, too_long


def _run(config: TrainConfig, trainer: Trainer, progress: Progress, log: RunLog, stop: Stop, data: str) -> dict:
    """The loop over steps, from wherever the newest checkpoint stands. Each finished step is in the log, every so often in a checkpoint."""
    try:
        log.open(trainer, data)
        if trainer.step_number == 0:
            log.evaluation(0, progress.measure(config.final_eval_problems))
        stop.nothing_to_save = False
        with tqdm(total=config.steps, initial=trainer.steps_done, desc=config.method, unit="step") as bar:
            while trainer.steps_done < config.steps and not stop.asked:
                result = trainer.step(interrupted=stop.now)
                if result is None:
                    break
                step = trainer.steps_done
                try:
                    if step == config.steps:
                        log.evaluation(step, progress.measure(config.final_eval_problems))
                    elif config.eval_every and step % config.eval_every == 0:
                        log.evaluation(step, progress.measure(config.eval_problems))
                finally:  # whatever becomes of its evaluation, the step is done
                    log.step(*result, bar)
                bar.update()
                due = log.save_failed or (config.save_every and step % config.save_every == 0)
                if due and step < config.steps:  # after the last step it is saved below
                    log.save(trainer)
        failed = None
        try:
            log.save(trainer, must=True)
        except SettingError as error:
            failed = error  # no room for a checkpoint; the model alone is smaller
        summary = log.finish(trainer, stop.name if trainer.steps_done < config.steps else None)
        if failed:
            raise failed
        return summary
    except KeyboardInterrupt:
        if trainer.step_number == 0 and not config.resume:
            ended = SettingError(f"Interrupted before the first step; nothing was trained. {log.folder} can be deleted.")
        else:
            ended = SettingError(f"Stopped at once; {log.saved_as()} To go on: {resume_command(config, log.folder)}")
        ended.exit_code = stop.exit_code or 130
        raise ended from None
    except Exception as error:
        if trainer.between_updates and trainer.step_number and trainer.steps_done == log.last_step:
            log.save(trainer)  # the steps that were done, and the batch of the one that was not
        if out_of_memory(error):
            raise SettingError(NO_ROOM) from None
        raise
