"""The reference of assignment 5: rlvr itself. Its study is the one that is shipped (tutorials/experiment), two arms of it."""

from rlvr import advantage
from rlvr.analysis import intervals

ASSIGNMENT = "a5"

ppl_weights = advantage.ppl_weights
position_bonus = advantage.position_bonus
mean_interval = intervals.mean_interval


def shaped_advantages(method, advantages, old_logp, mask, group, alpha):
    return advantage.shape(method, advantages, old_logp, mask, group, ppl_alpha=alpha, pos_alpha=alpha)
