"""Assignment 5: the two shaping methods of Deng et al. 2025. Write the functions; the handout says what they must do.

N rows (completions), T tokens of the longest one.
"""

from torch import Tensor


def ppl_weights(old_logp: Tensor, mask: Tensor, group: Tensor, alpha: float, direction: str) -> Tensor:
    """old_logp, mask [N, T], group [N] -> [N]: clamp(1 - alpha * w, 0.8, 1.2), w the standardised log-perplexity within the group."""
    raise NotImplementedError


def position_bonus(advantages: Tensor, mask: Tensor, alpha: float, direction: str) -> Tensor:
    """advantages [N], mask [N, T] -> [N, T]: sign(A) * min(alpha * sigmoid(15 * (r - 1/2)), |A| / 2), 0 outside the mask."""
    raise NotImplementedError


def shaped_advantages(method: str, advantages: Tensor, old_logp: Tensor, mask: Tensor, group: Tensor, alpha: float) -> Tensor:
    """method "grpo", "ppl" or "pos"; advantages [N] -> [N, T]: the advantage of every token, 0 outside the mask."""
    raise NotImplementedError


def mean_interval(differences: list[float]) -> tuple[float, float, float]:
    """Mean of the differences and Student's 95 % interval: (mean, low, high)."""
    raise NotImplementedError
