"""The adapter: what the tests call, and nothing else. Keep names and arguments; let the bodies call your code, wherever it is."""

import given
import solution
from torch import Tensor

ASSIGNMENT = "a6"


def rewards(texts: list[str], golds: list[str]) -> Tensor:
    """Task 6.1. N completions and the right answers of their problems. -> [N] float: 1 for a right one, -1 for a wrong one."""
    return solution.rewards(texts, golds)


def loss(
    logits: Tensor, ids: Tensor, prompt_lengths: Tensor, completions: Tensor, old_logp: Tensor, group: Tensor, rewards: Tensor
) -> Tensor:
    """Task 6.2. Your loss of a small batch, of which the model says the logits [N, L, V]: the loss as a function of them."""
    batch = given.Batch(ids, prompt_lengths, completions, old_logp, group, texts=[""] * len(ids), golds=[""] * len(ids))
    return solution.loss(lambda ids: logits[:, : ids.shape[1]], batch, rewards)


def train(seed: int) -> Tensor:
    """Task 6.3. The weights of the built-in model [379104] after the given loop has trained it with your rewards and your loss."""
    return given.weights(given.train(solution.rewards, solution.loss, seed))
