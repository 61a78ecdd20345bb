"""The reference of assignment 4: rlvr itself."""

from rlvr import entropy as e
from rlvr.run.log import _mean

ASSIGNMENT = "a4"

token_entropy = e.token_entropy
perplexity = e.perplexity
branching_factor = e.branching_factor
plateau_step = e.plateau_step


def entropy_by_correctness(entropy, mask, correct):
    means = [_mean(entropy[rows][mask[rows]]) for rows in (correct, ~correct)]
    return [float("nan") if m is None else m for m in means]
