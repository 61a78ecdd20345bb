"""The reference of assignment 3: rlvr itself."""

import torch

from rlvr import loss
from rlvr.advantage import grpo_advantages, shape

ASSIGNMENT = "a3"


def clipped_loss(logp, old_logp, advantages, mask, clip_low, clip_high, denominator):
    return loss.clipped_loss(logp, old_logp, advantages, mask, clip_low=clip_low, clip_high=clip_high, denominator=denominator)[0]


def update(weights, before, ids, mask, rewards, group, old_logp, lr):
    weights = weights.clone().requires_grad_()
    advantages = shape("grpo", grpo_advantages(rewards, group), old_logp, mask, group)
    logp = weights[before].log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    clipped_loss(logp, old_logp, advantages, mask, 0.2, 0.28, None).backward()
    with torch.no_grad():
        return weights - lr * weights.grad
