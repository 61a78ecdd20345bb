"""NumPy, and plain lists."""

import math

import numpy as np


def token_entropy(logits, temperature):
    z = logits.double().numpy() / temperature
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(-1)


def perplexity(logp, mask):
    rows = [[x for x, m in zip(row, valid) if m] for row, valid in zip(logp.tolist(), mask.tolist())]
    return [math.exp(-sum(row) / len(row)) if row else 1.0 for row in rows]


def branching_factor(logits, top_p):
    out = []
    for row in logits.double().softmax(-1).tolist():
        total, needed = 0.0, 0
        for p in sorted(row, reverse=True):
            total, needed = total + p, needed + 1
            if total >= top_p - 1e-6:
                break
        out.append(needed)
    return np.array(out)


def entropy_by_correctness(entropy, mask, correct):
    pools = {True: [], False: []}
    for row, valid, right in zip(entropy.tolist(), mask.tolist(), correct.tolist()):
        pools[right] += [h for h, m in zip(row, valid) if m]
    return tuple(float(np.mean(pool)) if pool else float("nan") for pool in (pools[True], pools[False]))


def plateau_step(entropies):
    s = np.zeros(len(entropies))
    for i, h in enumerate(entropies):
        s[i] = h if i == 0 else 0.7 * s[i - 1] + 0.3 * h
    slopes = (s[:-8] - s[8:]) / 8  # of the steps from the ninth on
    for i, slope in enumerate(slopes):
        if s[i + 8] <= 0.75 * s[: i + 9].max() and slope < 0.1 * max(0.0, slopes[: i + 1].max()):
            return i + 9
    return None
