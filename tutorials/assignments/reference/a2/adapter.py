"""The reference of assignment 2: rlvr itself. Its log-probs come from a model; here a table of logits stands in for one."""

import torch

from rlvr import advantage, policy

ASSIGNMENT = "a2"

group_advantages = advantage.grpo_advantages


def completion_mask(ids, stop_ids):
    # as Decoder._close and sample() of rlvr/rollout.py: lengths first, then the mask
    stop = torch.isin(ids, torch.tensor(stop_ids))
    lengths = torch.where(stop.any(1), stop.int().argmax(1) + 1, ids.shape[1])
    return torch.arange(ids.shape[1])[None] < lengths[:, None]


def token_logp(logits, ids, temperature):
    logp, _ = policy._TokenLogp.apply(logits.flatten(0, 1), ids.flatten(), temperature)
    return logp.view(ids.shape)


def completion_logp(logits, ids, prompt_lengths, lengths, temperature):
    mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    row, t = mask.nonzero(as_tuple=True)
    place = prompt_lengths[row] + t
    logp, _ = policy._TokenLogp.apply(logits[row, place - 1], ids[row, place], temperature)
    return torch.zeros(mask.shape).masked_scatter(mask, logp)
