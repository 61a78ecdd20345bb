"""The adapter: what the tests call, and nothing else. Keep names and arguments; let the bodies call your code, wherever it is."""

import given
import solution
from torch import Tensor

ASSIGNMENT = "a6"


def rewards(texts: list[str], golds: list[str]) -> Tensor:
    """Task 6.1. N completions and the right answers of their problems. -> [N] float: 1 for a right one, -1 for a wrong one."""
    return solution.rewards(texts, golds)


def train(seed: int) -> Tensor:
    """Task 6.2. The weights of the built-in model [379104] after the given loop has trained it with your rewards and your loss."""
    return given.weights(given.train(solution.rewards, solution.loss, seed))
