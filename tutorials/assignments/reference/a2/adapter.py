"""The reference of assignment 2: rlvr itself. Where the library asks a model for its logits, a table of logits answers."""

from types import SimpleNamespace

import torch

from rlvr import advantage, policy, rollout

ASSIGNMENT = "a2"

group_advantages = advantage.grpo_advantages


def completion_mask(ids, stop_ids):
    lengths, _ = rollout.completion_lengths(ids, set(stop_ids))
    return torch.arange(ids.shape[1]) < lengths[:, None]


def token_logp(logits, ids, temperature):
    one_token = [[0]] * len(ids)  # as a prompt: its logits are those at t = 0
    return policy.logp_and_entropy(table(logits), one_token, ids, torch.ones_like(ids, dtype=torch.bool), temperature)[0]


def completion_logp(logits, ids, prompt_lengths, lengths, temperature):
    t = torch.arange(int(lengths.max()))
    prompts = [row[:n] for row, n in zip(ids.tolist(), prompt_lengths.tolist())]
    completions = ids.gather(1, (prompt_lengths[:, None] + t).clamp(max=ids.shape[1] - 1))
    return policy.logp_and_entropy(table(logits), prompts, completions, t < lengths[:, None], temperature)[0]


def table(logits):
    """A model that says the same whatever it reads."""

    def model(input_ids, use_cache):
        return SimpleNamespace(logits=logits)

    model.device = logits.device
    return model
