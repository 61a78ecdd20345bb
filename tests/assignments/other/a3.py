"""Token by token, with the clip as a question instead of a maximum."""

import torch


def clipped_loss(logp, old_logp, advantages, mask, clip_low, clip_high, denominator):
    total, count = torch.zeros((), dtype=torch.float64), 0
    for i, t in mask.nonzero().tolist():
        a, ratio = (advantages[i, t].double(), torch.exp(logp[i, t].double() - old_logp[i, t].double()))
        too_far = (a > 0 and ratio > 1 + clip_high) or (a < 0 and ratio < 1 - clip_low)
        if too_far:
            ratio = torch.tensor(1 + clip_high if a > 0 else 1 - clip_low, dtype=torch.float64)
        total = total - ratio * a
        count += 1
    return total / (count if denominator is None else denominator)


def update(weights, before, ids, mask, rewards, group, old_logp, lr):
    """With the gradient of the softmax by hand."""
    step = torch.zeros(weights.shape, dtype=torch.float64)
    p = weights.double().softmax(-1)
    for i, t in mask.nonzero().tolist():
        mates = rewards[group == group[i]].double()
        a = 0.0 if len(mates.unique()) == 1 else ((rewards[i] - mates.mean()) / (mates.std() + 1e-6)).item()
        b, x = int(before[i, t]), int(ids[i, t])
        ratio = (p[b, x].log() - old_logp[i, t]).exp().item()
        if a > 0 and ratio > 1.28 or a < 0 and ratio < 0.8:
            continue
        step[b] += ratio * a * (torch.nn.functional.one_hot(torch.tensor(x), len(p)) - p[b])
    return weights + lr * step / mask.sum()
