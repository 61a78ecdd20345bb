"""Sample G completions of each prompt.

`complete` says what sampling is, in a dozen lines. `rlvr.engine.decoder` does the same two to four times faster. A test holds the two
equal.
"""

import inspect
import itertools
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm

from rlvr.entropy import entropy_from_logp


@dataclass
class Rollouts:
    """A batch of N sampled completions; everything after sampling reads from it. T is the longest completion.

    The mask comes from the lengths, never from the pad token: pad may be the same token as the stop token, which is trained.
    """

    prompt_ids: list[list[int]]  # N lists, without padding
    completion_ids: Tensor  # [N, T] int64, 0 outside the mask
    lengths: Tensor  # [N] int64: tokens of each completion, the stop token included
    mask: Tensor  # [N, T] bool
    finished: Tensor  # [N] bool: ended with a stop token; False: truncated at max_new_tokens
    old_logp: Tensor  # [N, T] float32, 0 outside the mask: log-prob of each token under the policy that sampled, at its temperature
    entropy: Tensor  # [N, T] float32, 0 outside the mask, nats: entropy at each position, at the sampling temperature
    group: Tensor  # [N] int64: which prompt
    text: list[str]  # N decoded completions

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def select(self, rows: Tensor) -> "Rollouts":
        """The given rows (indices [n]) as a batch, cut to their longest completion."""
        width = max(int(self.lengths[rows].max()), 1) if len(rows) else 1

        def pick(value):
            if isinstance(value, list):
                return [value[i] for i in rows.tolist()]
            return value[rows][:, :width] if value.dim() == 2 else value[rows]

        return Rollouts(**{name: pick(value) for name, value in vars(self).items()})

    @staticmethod
    def concat(parts: Sequence["Rollouts"]) -> "Rollouts":
        """Several batches as one, padded to the longest completion."""
        width = max(part.mask.shape[1] for part in parts)

        def join(values: Sequence):
            if isinstance(values[0], list):
                return sum(values, [])
            return torch.cat([pad(v, (0, width - v.shape[1])) if v.dim() == 2 else v for v in values])

        return Rollouts(**{name: join([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def choose(logits: Tensor, temperature: float, top_p: float, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one token per row: logits [B, V] -> token [B], its log-prob [B], entropy [B], both at `temperature` and before top-p.

    u [B], uniform in (0, 1], decides: the probabilities laid end to end make a line, and the token is the one that u falls on.
    Temperature 0 takes the most likely token (and gives log-prob and entropy at 1).
    """
    logp = torch.log_softmax(logits.float() / (temperature or 1.0), dim=-1)  # [B, V]
    if temperature == 0:
        token = logp.argmax(-1)
    else:
        line = keep_top_p(logp.exp(), top_p).cumsum(-1)
        # The place on the line is above 0, so a token of probability 0 is never hit; the clamp is for NaN, which falls on none.
        token = torch.searchsorted(line, u[:, None] * line[:, -1:])[:, 0].clamp(max=line.shape[1] - 1)
    return token, logp.gather(-1, token[:, None])[:, 0], entropy_from_logp(logp)


def keep_top_p(probs: Tensor, top_p: float) -> Tensor:
    """probs [B, V], with 0 for every token outside the smallest set that holds `top_p` (for evaluation; training samples from all)."""
    if top_p == 1:
        return probs
    ordered, index = probs.sort(dim=-1, descending=True)
    ordered[ordered.cumsum(-1) - ordered >= top_p] = 0.0
    return torch.zeros_like(probs).scatter_(-1, index, ordered)


def left_pad(prompts: Sequence[Sequence[int]], device) -> tuple[Tensor, Tensor]:
    """Token ids and validity, [P, W] each, prompts at the right edge: every prompt's next token comes in the same column."""
    width = max(len(p) for p in prompts)
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
    valid = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device, dtype=torch.bool)
    return ids, valid


def completion_lengths(ids: Tensor, stop_ids: set[int]) -> tuple[Tensor, Tensor]:
    """ids [N, T] -> lengths [N] up to and including the first stop token (T without one), and whether there is one [N]."""
    stop = torch.isin(ids, torch.tensor(sorted(stop_ids), device=ids.device))
    return torch.where(stop.any(1), stop.int().argmax(1) + 1, ids.shape[1]), stop.any(1)


@torch.inference_mode()
def complete(model, prompts, repeats: int, stop_ids: set[int], temperature: float, top_p: float, u: Tensor, on_ended=lambda rows: None):
    """What sampling is: complete each prompt `repeats` times, token by token -> ids, log-probs, entropies, [N, T] each.

    u [N, T], N = P * repeats, decides the draws. Ignore whatever follows a row's stop token. `on_ended` is told how many rows ended.
    """
    ids, valid = (x.repeat_interleave(repeats, 0) for x in left_pad(prompts, model.device))  # [N, W]; valid grows with the text
    position, cache, columns = (valid.cumsum(1) - 1).clamp(min=0), None, []  # [N, W]; after the prompt [N, 1]
    ended = torch.zeros(len(ids), dtype=torch.bool, device=model.device)  # [N]
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"  # newer models have renamed it
    while len(columns) < u.shape[1] and not ended.all():
        out = model(input_ids=ids, attention_mask=valid, position_ids=position, use_cache=True, logits_to_keep=1, **{name: cache})
        columns.append(choose(out.logits[:, -1], temperature, top_p, u[:, len(columns)]))
        cache, ids, position = out.past_key_values, columns[-1][0][:, None], position[:, -1:] + 1
        valid = torch.cat([valid, torch.ones_like(ids, dtype=torch.bool)], 1)
        newly = completion_lengths(ids, stop_ids)[1] & ~ended
        ended |= newly
        on_ended(int(newly.sum()))
    on_ended(int((~ended).sum()))
    return tuple(torch.stack(x, 1) for x in zip(*columns))


def sample(
    model, tokenizer, prompts: Sequence[Sequence[int]], *, completions_per_prompt: int, max_new_tokens: int, stop_ids: set[int],
    temperature: float = 1.0, top_p: float = 1.0, generator: torch.Generator | None = None, sampling_rows: int = 512, progress: str = "",
    complete: Callable = complete,
) -> Rollouts:  # fmt: skip
    """Sample `completions_per_prompt` completions of each prompt (lists of token ids) -> Rollouts; group i holds those of prompt i.

    At most `sampling_rows` completions run side by side, prompts of like length together. A completion ends with the first token of
    `stop_ids`, which belongs to it, or is truncated after `max_new_tokens`. Everything random is drawn from `generator` (a CPU one) at the
    start: one number for each token of each completion. So what a completion says does not depend on which others run beside it, on how
    many, or on the device (but for rounding). `complete` does the work: the plain one above, or `policy.complete`, which is two to four
    times faster.
    """
    if any(len(p) == 0 for p in prompts):
        raise ValueError("A prompt has no token. Give every prompt at least one token, for example the tokenizer's BOS.")
    u = 1 - torch.rand(len(prompts), completions_per_prompt, max_new_tokens, generator=generator)  # (0, 1]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    per_batch, repeats = max(1, sampling_rows // completions_per_prompt), min(completions_per_prompt, sampling_rows)
    batches, parts = itertools.product(range(0, len(order), per_batch), range(0, completions_per_prompt, repeats)), []
    with evaluation_mode(model), tqdm(None, progress, u[..., 0].numel(), leave=False, unit="completion", disable=not progress or None) as bar:
        for start, done in batches:
            batch = order[start : start + per_batch]
            batch_u = u[batch, done : done + repeats]  # [P, repeats, T]
            results = complete(model, [prompts[i] for i in batch], batch_u.shape[1], stop_ids, temperature, top_p,
                               batch_u.flatten(0, 1).to(model.device), bar.update)  # fmt: skip
            group = torch.tensor(batch).repeat_interleave(batch_u.shape[1])
            parts.append(as_rollouts(tokenizer, prompts, group, stop_ids, *(x.cpu() for x in results)))
    whole = Rollouts.concat(parts)
    return whole.select(whole.group.argsort(stable=True))  # in the order in which the prompts came


@contextmanager
def evaluation_mode(model):
    """No dropout meanwhile. Afterwards each module is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def as_rollouts(tokenizer, prompts, group: Tensor, stop_ids: set[int], ids: Tensor, logp: Tensor, entropy: Tensor) -> Rollouts:
    """What `complete` gave for the prompts `group` [N], without what comes after a stop token."""
    lengths, finished = completion_lengths(ids, stop_ids)
    # The mask comes from the lengths: pad may be the stop token, which is trained.
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    ids, logp, entropy = (x.masked_fill(~mask, 0) for x in (ids, logp, entropy))
    text = tokenizer.batch_decode([row[:n].tolist() for row, n in zip(ids, lengths)], skip_special_tokens=True)
    return Rollouts([list(prompts[g]) for g in group.tolist()], ids, lengths, mask, finished, logp, entropy, group, text)
