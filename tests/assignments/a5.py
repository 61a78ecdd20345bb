from statistics import mean, stdev

import torch

T_QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def ppl_weights(old_logp, mask, group, alpha, direction):
    old_logp = old_logp.detach()
    log_ppl = -torch.where(mask, old_logp, 0.0).sum(1) / mask.sum(1).clamp(min=1)
    w = torch.zeros_like(log_ppl)
    for g in group.unique():
        rows = group == g
        x = log_ppl[rows]
        if x.max() == x.min():
            continue
        q1, q3 = torch.quantile(x, 0.25), torch.quantile(x, 0.75)
        kept = x[(x >= q1 - 1.5 * (q3 - q1)) & (x <= q3 + 1.5 * (q3 - q1))]
        std = kept.std(correction=0)
        w[rows] = (x - kept.mean()) / (std if std > 1e-6 else 1.0)
    factor = 1 - alpha * w if direction == "low" else 1 + alpha * w
    return factor.clamp(0.8, 1.2)


def position_bonus(advantages, mask, alpha, direction):
    lengths = mask.sum(1, keepdim=True).clamp(min=1)
    r = torch.arange(mask.shape[1])[None] / lengths
    slope = 15.0 if direction == "late" else -15.0
    bonus = alpha * torch.sigmoid(slope * (r - 0.5))
    a = advantages[:, None]
    bonus = torch.minimum(bonus, a.abs() / 2)
    return a.sign() * bonus * mask


def shaped_advantages(method, advantages, old_logp, mask, group, alpha):
    shaped = advantages[:, None] * mask
    if method == "ppl":
        shaped = shaped * ppl_weights(old_logp, mask, group, alpha, "low")[:, None]
    if method == "pos":
        shaped = shaped + position_bonus(advantages, mask, alpha, "late")
    return shaped


def mean_interval(differences):
    m, n = mean(differences), len(differences)
    if n == 1:
        return m, float("-inf"), float("inf")
    half = T_QUANTILES[n - 1] * stdev(differences) / n**0.5
    return m, m - half, m + half
