"""The packed scorer: what `policy.logp_and_entropy` computes, with each prompt once and without holding all logits."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from rlvr.engine.attention import Packed
from rlvr.entropy import entropy_from_logp

LOGITS_AT_ONCE = 2**26  # numbers in a chunk of logits: 256 MiB in float32, whatever the vocabulary


def head_logits(model, hidden: Tensor) -> Tensor:
    """hidden [..., H] -> logits [..., V]: the output layer, and the scale or cap that some architectures put on top."""
    config, logits = model.config.get_text_config(), model.get_output_embeddings()(hidden)
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
        logits = cap * torch.tanh(logits / cap)
    if scale := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / scale
    if scale := getattr(config, "logit_scale", None):  # Cohere
        logits = logits * scale
    return logits


class _TokenLogp(torch.autograd.Function):
    """logits [K, V], targets [K] -> log-prob of each target and entropy (entropy.py's), [K] float32 each; the gradient is the log-prob's.

    What autograd would do, with one [K, V] buffer kept for the backward pass and fewer trips through memory.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        z = logits.float() if temperature == 1 else logits.float() / temperature
        z = (z - z.amax(-1, keepdim=True)).clamp_(min=-1e4)  # the clamp makes 0 * -inf a plain 0
        p = z.exp()
        total = p.sum(-1, keepdim=True)
        log_total = total[:, 0].log()
        p /= total
        ctx.save_for_backward(p, targets)
        ctx.temperature, ctx.dtype = temperature, logits.dtype
        entropy = log_total - torch.linalg.vecdot(p, z)
        ctx.mark_non_differentiable(entropy)
        return z.gather(-1, targets[:, None])[:, 0] - log_total, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, _) -> tuple[Tensor, None, None]:
        p, targets = ctx.saved_tensors
        grad = (grad / ctx.temperature)[:, None]
        return (p * -grad).scatter_add_(-1, targets[:, None], grad).to(ctx.dtype), None, None


def _head_logp_entropy(model, hidden: Tensor, targets: Tensor, temperature: float, with_grad_entropy: bool) -> tuple[Tensor, Tensor]:
    """hidden [K, H], targets [K] -> log-prob of each target [K] and entropy [K], float32."""
    logits = head_logits(model, hidden)
    if not with_grad_entropy:
        return _TokenLogp.apply(logits, targets, temperature)
    logp = torch.log_softmax(logits.float() / temperature, dim=-1)
    return logp.gather(-1, targets[:, None])[:, 0], entropy_from_logp(logp)


def logp_and_entropy(
    model, prompt_ids: list[list[int]], completion_ids: Tensor, mask: Tensor, temperature: float = 1.0, with_grad_entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """The fast twin of `policy.logp_and_entropy`, with the same arguments and results, for a model under our attention.

    Rows go through the model packed, equal prompts once. The output layer runs on completion positions alone; if their logits are more
    than LOGITS_AT_ONCE numbers, in chunks whose logits are thrown away and recomputed in the backward pass.
    """
    device, mask = model.device, mask.to(model.device)
    hidden, targets = hidden_states(model, prompt_ids, completion_ids, mask)
    chunk = logits_chunk(model)
    head = _head_logp_entropy if len(targets) <= chunk else partial(checkpoint, _head_logp_entropy, use_reentrant=False)
    parts = [head(model, h, y, temperature, with_grad_entropy) for h, y in zip(hidden.split(chunk), targets.split(chunk))]
    return tuple(torch.zeros(mask.shape, device=device).masked_scatter(mask, torch.cat(x)) for x in zip(*parts))


def logits_chunk(model) -> int:
    """How many positions go through the output layer at once, so that their logits are at most LOGITS_AT_ONCE numbers."""
    return max(1, LOGITS_AT_ONCE // model.get_output_embeddings().weight.shape[0])


def hidden_states(model, prompt_ids: list[list[int]], completion_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The states that predict the K valid tokens of a batch, row by row, and these tokens: [K, H] and [K]. mask: on the model's device."""
    completions = [ids[:n] for ids, n in zip(completion_ids.tolist(), mask.sum(1).tolist())]
    batch = Packed(prompt_ids, completions, model.device)
    unread = torch.zeros(1, 1, 1, 1, device=model.device)  # a mask of four dimensions, so that the model makes none of its own
    out = model.base_model(input_ids=batch.ids, position_ids=batch.positions, attention_mask=unread, use_cache=False, layout=batch)
    return out.last_hidden_state[0].index_select(0, batch.predicts), completion_ids.to(model.device)[mask]


@torch.no_grad()
def logits_in_chunks(model, prompt_ids: list[list[int]], completion_ids: Tensor, mask: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The logits that predict the K valid tokens, some [k, V] at a time, with their place among the K: for whole distributions."""
    hidden, _ = hidden_states(model, prompt_ids, completion_ids, mask.to(model.device))
    chunk = max(1, logits_chunk(model) // 4)  # sorting them takes several times their room
    for start in range(0, len(hidden), chunk):
        yield slice(start, start + chunk), head_logits(model, hidden[start : start + chunk])
