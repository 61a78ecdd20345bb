"""Assignment 3: the clipped token-level loss and one update. Write the functions; the handout says what they must do.

N rows (completions), T tokens of the longest one, V the vocabulary.
"""

from torch import Tensor


def clipped_loss(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, clip_low: float, clip_high: float, denominator: float | None
) -> Tensor:
    """logp, old_logp, advantages, mask: [N, T] -> the loss to minimise, one number with a graph behind it.

    sum over valid tokens of max(-ratio * A, -clip(ratio, 1 - clip_low, 1 + clip_high) * A) / denominator;
    denominator None: the valid tokens given here.
    """
    raise NotImplementedError


def update(
    weights: Tensor, before: Tensor, ids: Tensor, mask: Tensor, rewards: Tensor, group: Tensor, old_logp: Tensor, lr: float
) -> Tensor:
    """One step of gradient descent for a bigram policy: weights [V, V], where softmax(weights[b]) is what may follow token b.

    before, ids, mask, old_logp [N, T]; rewards, group [N] -> new weights [V, V]. Clip at 0.8 and 1.28.
    """
    raise NotImplementedError
