"""Assignment 2: group advantages, masks, log-probs. Write the functions; the handout says what they must do.

N rows (completions), T tokens of the longest one, V the vocabulary.
"""

from torch import Tensor


def group_advantages(rewards: Tensor, group: Tensor) -> Tensor:
    """rewards [N], group [N] (ids) -> [N]: (reward - mean) / (std + 1e-6) within each group; 0 where all rewards are equal."""
    raise NotImplementedError


def completion_mask(ids: Tensor, stop_ids: list[int]) -> Tensor:
    """ids [N, T] -> bool [N, T]: True up to the first stop token and including it, everywhere if there is none."""
    raise NotImplementedError


def token_logp(logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """logits [N, T, V], ids [N, T] -> [N, T]: log-prob of each id under softmax(logits / temperature)."""
    raise NotImplementedError


def completion_logp(logits: Tensor, ids: Tensor, prompt_lengths: Tensor, lengths: Tensor, temperature: float) -> Tensor:
    """logits [N, L, V] and ids [N, L] of prompt and completion together -> [N, max(lengths)]: log-probs of the completion tokens."""
    raise NotImplementedError
