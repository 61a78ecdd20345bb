"""Entropy and its relatives, told apart, and the detector of the two training stages. Natural logarithms: the unit is the nat.

- entropy of a position: how undecided the policy is there, over the whole vocabulary, whatever token was drawn;
- log-perplexity of a completion: how surprised the policy is by the tokens that were drawn (mean negative log-prob);
- branching factor of a position: how many tokens share 95 % of the probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for annotations alone: advantage.py imports this file, and `--help` must not wait for torch
    from torch import Tensor


def token_entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """H = -sum_v p_v log p_v of softmax(logits / temperature). logits [..., V] -> [...] float32, from 0 to log V.

    Masked logits of -inf count as probability 0.

    >>> import torch
    >>> token_entropy(torch.zeros(4))
    tensor(1.3863)
    """
    return entropy_from_logp((logits.float() / temperature).log_softmax(-1))


def entropy_from_logp(logp: Tensor) -> Tensor:
    """The same from log-probs over the vocabulary: logp [..., V] -> [...]. A log-prob of -inf adds nothing."""
    return -(logp.exp() * logp.clamp(min=-1e4)).sum(-1)  # the clamp makes 0 * -inf a plain 0


def entropy_by_correctness(entropy: Tensor, mask: Tensor, correct: Tensor) -> tuple[float, float]:
    """Mean entropy over the tokens of all right completions, and of all wrong ones: do wrong answers come from undecided positions?

    entropy [N, T], mask [N, T], correct [N] bool -> (right, wrong), in nats. Every token counts the same; NaN if no token is left.
    """
    return tuple(entropy[rows][mask[rows].bool()].mean().item() for rows in (correct, ~correct))


def log_perplexity(logp: Tensor, mask: Tensor) -> Tensor:
    """Mean negative log-prob of the valid tokens: logp [N, T], mask [N, T] -> [N]. A row without a valid token gets 0."""
    mask = mask.bool()
    return -logp.masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)  # not logp * mask: padding may hold NaN


def perplexity(logp: Tensor, mask: Tensor) -> Tensor:
    """exp(log_perplexity): logp [N, T], mask [N, T] -> [N], 1 or more. The stop token counts (Deng et al. 2025, released code).

    >>> import torch
    >>> perplexity(torch.log(torch.tensor([[0.5, 0.5], [0.25, 9.0]])), torch.tensor([[1, 1], [1, 0]]))
    tensor([2., 4.])
    """
    return log_perplexity(logp, mask).exp()


def branching_factor(logits: Tensor, top_p: float = 0.95) -> Tensor:
    """Size of the smallest set of tokens that holds `top_p` of the probability: [..., V] -> [...] int (Deng et al. 2025b, 2508.07534).

    >>> import torch
    >>> branching_factor(torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])), top_p=0.8)
    tensor(2)
    """
    p = logits.float().softmax(-1).sort(dim=-1, descending=True).values
    # A token is needed if those before it do not reach top_p yet; the tolerance forgives the rounding of the sum.
    return ((p.cumsum(-1) - p) < top_p - 1e-6).sum(-1)


def plateau_step(
    entropies: Sequence[float], window: int = 8, fraction: float = 0.1, least_fall: float = 0.25, smoothing: float = 0.7
) -> int | None:
    """The stage detector: at which step (from 1) the rising stage was over, or None while it lasts.

    The papers split training where entropy stops falling fast and give no number; this criterion is ours. The entropy of each step is
    smoothed (exponential moving average); its slope is the change over `window` steps. The plateau begins at the first step at which the
    entropy is `least_fall` (a quarter) below its highest value and falls at less than `fraction` of its steepest fall so far. It needs
    the past alone, so a run can act on it. Steps without a number (NaN) are passed over.
    """
    smooth: list[float] = []
    steepest = 0.0
    for step, value in enumerate(entropies, start=1):
        if value != value:
            continue
        smooth.append(smoothing * smooth[-1] + (1 - smoothing) * value if smooth else value)
        if len(smooth) > window:
            slope = (smooth[-1 - window] - smooth[-1]) / window
            steepest = max(steepest, slope)
            has_fallen = smooth[-1] <= (1 - least_fall) * max(smooth)
            if has_fallen and slope < fraction * steepest:
                return step
    return None
