"""Plain Python numbers, row by row."""

import math

import torch

T = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]


def quartile(values, share):
    values, place = sorted(values), share * (len(values) - 1)
    low = int(place)
    return values[low] + (place - low) * (values[min(low + 1, len(values) - 1)] - values[low])


def ppl_weights(old_logp, mask, group, alpha, direction):
    rows = [[x for x, m in zip(row, valid) if m] for row, valid in zip(old_logp.tolist(), mask.tolist())]
    log_ppl = [-sum(row) / len(row) if row else 0.0 for row in rows]
    out = []
    for x, g in zip(log_ppl, group.tolist()):
        mates = [y for y, h in zip(log_ppl, group.tolist()) if h == g]
        if max(mates) - min(mates) < 1e-9:
            out.append(1.0)
            continue
        q1, q3 = quartile(mates, 0.25), quartile(mates, 0.75)
        kept = [y for y in mates if q1 - 1.5 * (q3 - q1) - 1e-9 <= y <= q3 + 1.5 * (q3 - q1) + 1e-9]
        mean = sum(kept) / len(kept)
        std = math.sqrt(sum((y - mean) ** 2 for y in kept) / len(kept))
        w = (x - mean) / (std if std > 1e-6 else 1.0)
        out.append(min(1.2, max(0.8, 1 - alpha * w if direction == "low" else 1 + alpha * w)))
    return torch.tensor(out)


def position_bonus(advantages, mask, alpha, direction):
    out = torch.zeros(mask.shape)
    for i, a in enumerate(advantages.tolist()):
        length = int(mask[i].sum())
        for t in range(length):
            x = 15 * (t / length - 0.5) * (1 if direction == "late" else -1)
            out[i, t] = math.copysign(min(alpha / (1 + math.exp(-x)), abs(a) / 2), a)
    return out


def shaped_advantages(method, advantages, old_logp, mask, group, alpha):
    out = torch.where(mask, advantages[:, None], 0.0)
    if method == "ppl" and alpha:
        return out * ppl_weights(old_logp, mask, group, alpha, "low")[:, None]
    return out + position_bonus(advantages, mask, alpha, "late") if method == "pos" else out


def mean_interval(differences):
    n = len(differences)
    mean = math.fsum(differences) / n
    if n == 1:
        return [mean, -math.inf, math.inf]
    half = T[n - 2] * math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (n - 1) / n)
    return [mean, mean - half, mean + half]
