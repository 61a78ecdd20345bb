import torch


def clipped_loss(logp, old_logp, advantages, mask, clip_low, clip_high, denominator):
    log_ratio = torch.where(mask, logp - old_logp, 0.0)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    per_token = torch.maximum(-ratio * advantages, -clipped * advantages)
    per_token = torch.where(mask, per_token, 0.0)
    if denominator is None:
        denominator = mask.sum()
    return per_token.sum() / denominator


def group_advantages(rewards, group):
    out = torch.zeros_like(rewards)
    for g in group.unique():
        rows = group == g
        if rewards[rows].max() > rewards[rows].min():
            out[rows] = (rewards[rows] - rewards[rows].mean()) / (rewards[rows].std() + 1e-6)
    return out


def update(weights, before, ids, mask, rewards, group, old_logp, lr):
    weights = weights.clone().requires_grad_()
    advantages = group_advantages(rewards, group)[:, None].expand(ids.shape)
    logp = torch.log_softmax(weights[before], -1).gather(-1, ids[..., None])[..., 0]
    loss = clipped_loss(logp, old_logp, advantages, mask, 0.2, 0.28, None)
    loss.backward()
    return weights.detach() - lr * weights.grad
