"""The reference of assignment 1: rlvr itself."""

import torch

from rlvr import evaluate, reward

ASSIGNMENT = "a1"

last_boxed = reward.last_boxed
verify = reward.verify
pass_at_k = evaluate.pass_at_k
majority = evaluate.majority


def overlong_penalty(length, max_tokens, buffer, factor):
    return reward.overlong_penalty(torch.tensor([length]), max_tokens, buffer, factor).item()
