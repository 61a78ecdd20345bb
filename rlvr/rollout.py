"""Sample G completions for each prompt, over the Hugging Face forward of any causal language model.

Plain `generate()` spends most of its time on waste. Five things remove it, and none of them touches the model's code:

1. the prompt is run once and its keys and values are repeated for its G completions;
2. completions that have ended leave the batch;
3. keys and values lie in one contiguous block per layer that grows by a few columns at a time, and new ones are written in place;
4. one query against a cache is two small matrix products; the query heads that share a key head are folded together;
5. log-prob and entropy are taken from the logits that are there anyway; nothing of size [N, T, V] is ever kept.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlvr.entropy import entropy_from_logp

ATTENTION = "rlvr"  # the name under which our attention is registered; policy.py sets it on the model
GROW = 16  # columns by which the cache grows, and steps between two looks at which rows have ended


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
    old_logp: Tensor  # [N, T] float32: log-prob of each token under the policy that sampled, at the sampling temperature
    entropy: Tensor  # [N, T] float32, nats: entropy at each position, at the sampling temperature
    group: Tensor  # [N] int64: which prompt
    text: list[str]  # N decoded completions

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def select(self, rows: Tensor) -> "Rollouts":
        """The given rows (indices [n]) as a batch, cut to their longest completion."""
        width = max(int(self.lengths[rows].max()), 1) if len(rows) else 1
        picked = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                picked[field.name] = [value[i] for i in rows.tolist()]
            else:
                picked[field.name] = value[rows][:, :width] if value.dim() == 2 else value[rows]
        return Rollouts(**picked)

    @staticmethod
    def concat(parts: Sequence["Rollouts"]) -> "Rollouts":
        """Several batches as one, padded to the longest completion."""
        width = max(part.mask.shape[1] for part in parts)

        def join(values: list):
            if isinstance(values[0], list):
                return sum(values, [])
            if values[0].dim() == 2:
                values = [torch.nn.functional.pad(v, (0, width - v.shape[1])) for v in values]
            return torch.cat(values)

        return Rollouts(**{f.name: join([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(Rollouts)})


# ---------------------------------------------------------------------------------------------------------------------------------------
# The cache and the attention


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer: contiguous [rows, heads, columns, head_dim], a few columns ahead of what is written.

    Columns not yet written hold zeros and are hidden by the mask. Nothing is concatenated from token to token.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.written = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:  # the prompts
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            self.written = key_states.shape[-2]
        else:
            end = self.written + key_states.shape[-2]
            self.keys[:, :, self.written : end] = key_states
            self.values[:, :, self.written : end] = value_states
            self.written = end
        return self.keys, self.values

    def rearrange(self, rows: Tensor, columns: int) -> None:
        """Keep (or repeat) the given rows and make room for `columns` columns in all: one copy for both."""

        def moved(old: Tensor) -> Tensor:
            new = old.new_zeros(len(rows), old.shape[1], columns, old.shape[3])
            new[:, :, : self.written] = old[rows, :, : self.written]
            return new

        self.keys, self.values = moved(self.keys), moved(self.values)

    def get_seq_length(self) -> int:
        return self.written


def decode_attention(
    module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None = None, **kwargs
):
    """One new token against the cache: matmul, softmax, matmul. Longer queries (prompts, training) go to the stock SDPA attention."""
    rows, heads, length, dim = query.shape
    if length > 1 or attention_mask is None or kwargs.get("softcap") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    folded = query.reshape(rows, key.shape[1], -1, dim)  # query heads of one key head side by side
    scores = torch.matmul(folded, key.transpose(2, 3)) * (dim**-0.5 if scaling is None else scaling) + attention_mask
    out = torch.matmul(scores.softmax(-1, dtype=torch.float32).to(value.dtype), value)
    return out.reshape(rows, 1, heads, value.shape[-1]), None


AttentionInterface.register(ATTENTION, decode_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


# ---------------------------------------------------------------------------------------------------------------------------------------
# Sampling


def _keep_top_p(probs: Tensor, top_p: float) -> Tensor:
    """Set to 0 the probability of all tokens outside the smallest set that holds `top_p` (for evaluation; training samples from all)."""
    ordered, index = probs.sort(dim=-1, descending=True)
    ordered[ordered.cumsum(-1) - ordered >= top_p] = 0.0
    return torch.zeros_like(probs).scatter_(-1, index, ordered)


def choose(logits: Tensor, temperature: float, top_p: float, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one token per row: logits [B, V] -> token [B], its log-prob [B], entropy [B], both at `temperature` and before top-p.

    u [B], uniform in (0, 1], decides: the probabilities laid end to end make a line, and the token is the one that u falls on.
    Temperature 0 takes the most likely token (and gives log-prob and entropy at 1).
    """
    logp = torch.log_softmax(logits.float() / (temperature or 1.0), dim=-1)
    probs = logp.exp()
    entropy = entropy_from_logp(logp, probs)
    if temperature == 0:
        token = logp.argmax(-1)
    else:
        if top_p < 1:
            probs = _keep_top_p(probs, top_p)
        line = probs.cumsum(-1)
        # u * total is above 0 and at most total, so a token of probability 0 is never hit; the clamp is for NaN, which falls on none
        token = torch.searchsorted(line, u[:, None] * line[:, -1:])[:, 0].clamp(max=line.shape[1] - 1)
    return token, logp.gather(-1, token[:, None])[:, 0], entropy


def left_pad(prompts: Sequence[Sequence[int]], device) -> tuple[Tensor, Tensor]:
    """Token ids and validity, [P, W] each, prompts at the right edge: every prompt's next token comes in the same column."""
    width = max(len(p) for p in prompts)
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
    valid = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device, dtype=torch.bool)
    return ids, valid


@torch.inference_mode()
def _sample_batch(model, prompts, repeats, stop_ids, max_new_tokens, temperature, top_p, u, on_ended):
    """Complete `prompts`, each `repeats` times, side by side; u [N, T] decides the draws.

    -> ids [N, T], lengths [N], finished [N], logp [N, T], entropy [N, T].
    """
    device = model.device
    ids, valid = left_pad(prompts, device)
    width, n = ids.shape[1], len(prompts) * repeats
    hidden = torch.finfo(model.dtype).min  # not -inf: a padded position sees nothing, and softmax over -inf alone is NaN
    position = valid.cumsum(1) - 1
    causal = torch.ones(width, width, dtype=torch.bool, device=device).tril() & valid[:, None, None, :]
    mask = torch.zeros(causal.shape, dtype=model.dtype, device=device).masked_fill_(~causal, hidden)
    cache = Cache(layer_class_to_replicate=GrowingLayer)
    out = model(
        input_ids=ids, attention_mask=mask, position_ids=position.clamp(min=0), past_key_values=cache, use_cache=True, logits_to_keep=1
    )

    prompt_of = torch.arange(len(prompts), device=device).repeat_interleave(repeats)
    logits, position, valid = out.logits[prompt_of, -1], position[prompt_of, -1:], valid[prompt_of]
    tokens = torch.zeros(n, max_new_tokens, dtype=torch.long, device=device)
    logp, entropy = torch.zeros(2, n, max_new_tokens, device=device).unbind(0)
    lengths = torch.full((n,), max_new_tokens, device=device)
    finished = torch.zeros(n, dtype=torch.bool, device=device)
    stops = torch.tensor(sorted(stop_ids), device=device)
    rows = torch.arange(n, device=device)  # the completions in the batch
    cached = prompt_of  # for each of them, where its keys and values lie in the cache: at first with its prompt
    for t in range(max_new_tokens):
        token, token_logp, position_entropy = choose(logits, temperature, top_p, u[rows, t])
        tokens[rows, t], logp[rows, t], entropy[rows, t] = token, token_logp, position_entropy
        ended = finished[rows]
        ends = torch.isin(token, stops) & ~ended
        lengths[rows] = torch.where(ends, t + 1, lengths[rows])  # no boolean indexing here: it would make a GPU wait at every token
        finished[rows] = ended | ends
        if t == max_new_tokens - 1:
            break
        if t % GROW == 0:  # let ended rows leave and make room: one copy of the cache for both
            alive = (~finished[rows]).nonzero()[:, 0]
            on_ended(len(rows) - len(alive))
            if len(alive) == 0:
                break
            columns = width + t + GROW
            for layer in cache.layers:
                layer.rearrange(cached[alive], columns)
            cached = torch.arange(len(alive), device=device)
            rows, token, position, valid = rows[alive], token[alive], position[alive], valid[alive]
            mask = torch.full((len(rows), 1, 1, columns), hidden, dtype=model.dtype, device=device)
            mask[:, 0, 0, :width].masked_fill_(valid, 0.0)
            mask[..., width : width + t] = 0.0
        mask[..., width + t] = 0.0
        position = position + 1
        out = model(input_ids=token[:, None], attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True)
        logits = out.logits[:, -1]
    on_ended(len(rows) if t == max_new_tokens - 1 else 0)
    return tokens, lengths, finished, logp, entropy


def sample(
    model, tokenizer, prompts: Sequence[Sequence[int]], *, completions_per_prompt: int, max_new_tokens: int, stop_ids: set[int],
    temperature: float = 1.0, top_p: float = 1.0, generator: torch.Generator | None = None, sampling_rows: int = 512, progress: str = "",
) -> Rollouts:  # fmt: skip
    """Sample `completions_per_prompt` completions of each prompt (lists of token ids) -> Rollouts; group i holds those of prompt i.

    At most `sampling_rows` completions run side by side, prompts of like length together. A completion ends with the first token of
    `stop_ids`, which belongs to it, or is truncated after `max_new_tokens`. Everything random is drawn from `generator` (a CPU one) at the
    start: one number for each token of each completion. So what a completion says does not depend on which others run beside it, on how
    many, or on the device (but for rounding).
    """
    if any(len(p) == 0 for p in prompts):
        raise ValueError("A prompt has no token. Give every prompt at least one token, for example the tokenizer's BOS.")
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    per_batch = max(1, sampling_rows // completions_per_prompt)
    at_once = min(completions_per_prompt, sampling_rows)
    u = 1 - torch.rand(len(prompts), completions_per_prompt, max_new_tokens, generator=generator)  # (0, 1]
    parts, groups = [], []
    training = model.training
    model.eval()
    try:
        with tqdm(total=len(prompts) * completions_per_prompt, desc=progress, unit="completion", leave=False, disable=not progress) as bar:
            for start, done in itertools.product(range(0, len(order), per_batch), range(0, completions_per_prompt, at_once)):
                batch, repeats = order[start : start + per_batch], min(at_once, completions_per_prompt - done)
                batch_prompts, batch_u = [prompts[i] for i in batch], u[batch, done : done + repeats].flatten(0, 1).to(model.device)
                parts.append(
                    _sample_batch(model, batch_prompts, repeats, stop_ids, max_new_tokens, temperature, top_p, batch_u, bar.update)
                )
                groups += [i for i in batch for _ in range(repeats)]
    finally:
        model.train(training)

    group = torch.tensor(groups)
    back = group.argsort(stable=True)  # to the order in which the prompts came
    ids, lengths, finished, logp, entropy = (torch.cat([part[i].cpu() for part in parts])[back] for i in range(5))
    group = group[back]
    width = int(lengths.max())
    mask = torch.arange(width)[None, :] < lengths[:, None]
    ids, logp, entropy = (x[:, :width].masked_fill(~mask, 0) for x in (ids, logp, entropy))
    text = tokenizer.batch_decode([row[:n].tolist() for row, n in zip(ids, lengths)], skip_special_tokens=True)
    return Rollouts([list(prompts[g]) for g in group.tolist()], ids, lengths, mask, finished, logp, entropy, group, text)
