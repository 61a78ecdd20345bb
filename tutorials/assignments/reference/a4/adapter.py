"""The reference of assignment 4: rlvr itself."""

from rlvr import entropy as e

ASSIGNMENT = "a4"

token_entropy = e.token_entropy
perplexity = e.perplexity
branching_factor = e.branching_factor
entropy_by_correctness = e.entropy_by_correctness
plateau_step = e.plateau_step
