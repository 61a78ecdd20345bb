"""The reference of assignment 1: rlvr itself, where it accepts no more than the handout does."""

import re

import torch

from rlvr import evaluate, reward

ASSIGNMENT = "a1"

pass_at_k = evaluate.pass_at_k
majority = evaluate.majority


NUMBER = re.compile(r" *([-+]?(\d+|\d{1,3}(,\d{3})+)(\.\d+)?|-?\d+/\d+|\\frac\{\d+\}\{\d+\}) *", re.ASCII)


def last_boxed(text):
    found = reward.last_boxed(text.replace(r"\fbox", "\0"))  # a box too, for rlvr
    return None if found is None else found.replace("\0", r"\fbox")


def verify(completion, gold):
    return NUMBER.fullmatch(last_boxed(completion) or "") is not None and reward.verify(completion, gold)


def overlong_penalty(length, max_tokens, buffer, factor):
    return reward.overlong_penalty(torch.tensor([length]), max_tokens, buffer, factor).item()
