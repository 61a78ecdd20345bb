"""Assignment 4: entropy, perplexity, stages. Write the functions; the handout says what they must do. Natural logarithms.

N rows (completions), T tokens of the longest one, V the vocabulary.
"""

from torch import Tensor


def token_entropy(logits: Tensor, temperature: float) -> Tensor:
    """logits [N, T, V] -> [N, T]: entropy of softmax(logits / temperature), in nats. Logits may be -inf."""
    raise NotImplementedError


def perplexity(logp: Tensor, mask: Tensor) -> Tensor:
    """logp [N, T] of the drawn tokens, mask [N, T] -> [N]: exp of the mean negative log-prob; 1 for a row without a token."""
    raise NotImplementedError


def branching_factor(logits: Tensor, top_p: float) -> Tensor:
    """logits [N, V] -> int [N]: size of the smallest set of tokens that holds top_p of the probability."""
    raise NotImplementedError


def entropy_by_correctness(entropy: Tensor, mask: Tensor, correct: Tensor) -> tuple[float, float]:
    """entropy [N, T], mask [N, T], correct [N] bool -> mean over the tokens of right and of wrong completions; NaN where there are none."""
    raise NotImplementedError


def plateau_step(entropies: list[float]) -> int | None:
    """Entropy of each training step -> the step (from 1) at which the rising stage is over, or None; the rule is in the handout."""
    raise NotImplementedError
