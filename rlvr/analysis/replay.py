"""A training step made again: every token scored before and after it, and the gradient of one update."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from rlvr.advantage import shape
from rlvr.analysis.exchange import logit_gradient_norm, relative_positions, right_and_wrong, spread
from rlvr.config import TrainConfig
from rlvr.engine import scorer
from rlvr.entropy import branching_factor, entropy_from_logp, log_perplexity
from rlvr.policy import Policy, micro_batches
from rlvr.rollout import Rollouts
from rlvr.run import checkpoint
from rlvr.run.log import completion
from rlvr.train import Step, Trainer

TOP = 5  # alternatives kept for each token that the microscope shows
SHOWN = ("logp", "entropy", "grad_norm", "branching", "top", "top_p")  # numbers of a token that the microscope shows


def _logits(policy: Policy, part: Rollouts) -> Iterator[tuple[slice, Tensor]]:
    """The logits that predict the K valid tokens of some completions, [k, V] at a time, with their place among the K."""
    if policy.packed:
        yield from scorer.logits_in_chunks(policy.model, part.prompt_ids, part.completion_ids, part.mask)
        return
    done = 0
    for prompt, row, n in zip(part.prompt_ids, part.completion_ids.tolist(), part.lengths.tolist()):
        ids = torch.tensor([prompt + row[:n]], device=policy.model.device)
        yield slice(done, done + n), policy.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        done += n


@torch.no_grad()
def token_stats(policy: Policy, rollouts: Rollouts, temperature: float, budget: int, watch: Tensor | None = None) -> dict[str, Tensor]:
    """What the policy thinks at every token of some completions: a dict of [N, T] float32, 0 outside the mask.

    logp: log-prob of the token; entropy; grad_norm: length of the gradient of logp in the logits; branching: how many tokens share 95 % of
    the probability. Besides, [N, T, TOP]: top, the most likely tokens, and top_p, their probabilities; if `watch` [N, T, TOP] names
    tokens, top_p is theirs. budget: the tokens of a micro-batch. Logits exist a chunk at a time.
    """
    size = rollouts.mask.shape
    out = {name: torch.zeros(size) for name in ("logp", "entropy", "grad_norm", "branching")} | {"top_p": torch.zeros(*size, TOP)}
    out["top"] = torch.zeros(*size, TOP, dtype=torch.long)
    for rows in micro_batches(rollouts, torch.arange(len(rollouts)), budget, policy.packed):
        part = rollouts.select(rows)
        row, t = part.mask.nonzero(as_tuple=True)
        for some, logits in _logits(policy, part):
            here = rows[row[some]], t[some]
            z, y = logits.float() / temperature, rollouts.completion_ids[here][:, None].to(logits.device)
            logp = torch.log_softmax(z, -1)
            p = logp.exp()
            # of k tokens: [k] each, and [k, TOP]
            values = {"logp": logp.gather(-1, y)[:, 0], "entropy": entropy_from_logp(logp), "branching": branching_factor(z)}
            values["grad_norm"] = logit_gradient_norm(p.gather(-1, y)[:, 0], p.square().sum(-1))
            values["top"] = p.topk(TOP, -1).indices if watch is None else watch[here].to(p.device)
            values["top_p"] = p.gather(-1, values["top"])
            for name, value in values.items():
                out[name][here] = value.to("cpu", out[name].dtype)
    return out


def update_gradient(policy: Policy, batch: Rollouts, advantages: Tensor, method: str, micro_batch_tokens=4096, **strengths) -> Tensor:
    """The gradient of one update under a method, as one long vector [parameters]: how much does the method change it?

    advantages [N] float, of the rows; those of 0 are skipped and stay in the denominator. method and strengths: as in `advantage.shape`.
    It is `Trainer.gradient`, at temperature 1, on the batch's own policy. The model's own gradients are empty afterwards.
    """
    shaped = shape(method, advantages, batch.old_logp, batch.mask, batch.group, **strengths)  # [N, T]
    trainer = Trainer(TrainConfig(), policy, [], [])
    trainer.gradient(Step(batch, [], advantages, shaped, []), torch.arange(len(batch)), micro_batch_tokens)
    parameters = trainer.optimizer.weights.parameters
    gradient = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    trainer.optimizer.weights.zero_grad()
    policy.model.eval()
    return gradient


def rows_that_teach(step: Step) -> Tensor:
    """The rows of a batch that its updates learn from: indices."""
    return torch.isin(step.rollouts.group, torch.tensor(sum(step.mini_batches, []))).nonzero()[:, 0]


def replay(trainer: Trainer) -> tuple[Rollouts, Tensor, Tensor, dict, dict] | None:
    """The next training step of a trainer, with every token scored before and after.

    Returns the completions that were learned from, whether each is right [N], the shaped advantages [N, T], and token_stats before and
    after (of the same alternatives). None if this step had nothing to learn from.
    """
    step, policy, c = trainer.begin(), trainer.policy, trainer.config
    rows = rows_that_teach(step)
    if not len(rows):
        return None
    batch, correct = step.rollouts.select(rows), step.rewards[rows] > 0
    before = token_stats(policy, batch, c.temperature, c.micro_batch_tokens)
    while not step.finished:
        trainer.update(step)
    after = token_stats(policy, batch, c.temperature, c.micro_batch_tokens, watch=before["top"])
    return batch, correct, step.shaped[rows][:, : batch.mask.shape[1]], before, after


def replayable(folder: Path, last: int, most: int) -> list[Path | None]:
    """Checkpoints of a run of `last` steps from which one can be made again, spread evenly; None stands for the start. In order."""
    found = [p for p in checkpoint.checkpoints(folder / "checkpoints") if "+" not in p.name and 0 < checkpoint.step_of(p) < last]
    return [None, *spread(list(reversed(found)), most - 1)]


def change_of_step(trainer: Trainer, shown: int) -> tuple[dict[str, Tensor], list[dict]] | None:
    """Replay the next step of a trainer -> what became of its tokens, and `shown` completions for the microscope.

    Tensors with a number for each token: row (which completion), r (relative position), token, advantage, logp and logp_after, entropy and
    entropy_after, grad_norm, branching, step; and with one for each completion: row_step, row_group, row_correct, row_log_ppl.
    """
    if (result := replay(trainer)) is None:
        return None
    batch, correct, shaped, before, after = result
    step, mask, n = trainer.step_number, batch.mask, len(batch)
    tokens = {"row": torch.arange(n)[:, None].expand_as(mask), "token": batch.completion_ids, "advantage": shaped}
    tokens |= {name: before[name] for name in ("logp", "entropy", "grad_norm", "branching")}
    tokens |= {f"{name}_after": after[name] for name in ("logp", "entropy")} | {"step": torch.full(mask.shape, step)}
    flat = {name: value[mask] for name, value in tokens.items()}
    flat["r"] = torch.cat([torch.from_numpy(relative_positions(length)).float() for length in batch.lengths.tolist()])
    log_ppl = log_perplexity(before["logp"], mask)
    flat |= {"row_step": torch.full((n,), step), "row_group": batch.group, "row_correct": correct, "row_log_ppl": log_ppl}
    numbers = {name: before[name] for name in SHOWN} | {"advantage": shaped, "logp_after": after["logp"], "top_p_after": after["top_p"]}
    rows = right_and_wrong(correct.tolist(), shown)
    lines = [{"step": step, "group": int(batch.group[i])} | completion(trainer.policy.tokenizer, batch, i, correct, numbers) for i in rows]
    return flat, lines
