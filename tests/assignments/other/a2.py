"""Loops over plain Python numbers, in float64."""

import math

import torch


def group_advantages(rewards, group):
    values, ids, out = rewards.tolist(), group.tolist(), []
    for r, g in zip(values, ids):
        mates = [v for v, h in zip(values, ids) if h == g]
        if all(v == mates[0] for v in mates):
            out.append(0.0)
            continue
        mean = math.fsum(mates) / len(mates)
        std = math.sqrt(math.fsum((v - mean) ** 2 for v in mates) / (len(mates) - 1))
        out.append((r - mean) / (std + 1e-6))
    return torch.tensor(out)


def completion_mask(ids, stop_ids):
    mask = []
    for row in ids.tolist():
        end = next((t for t, x in enumerate(row) if x in stop_ids), len(row))
        mask.append([t <= end for t in range(len(row))])
    return torch.tensor(mask)


def token_logp(logits, ids, temperature):
    z = logits.double() / temperature
    chosen = torch.zeros_like(z).scatter(-1, ids[..., None], 1.0)
    return (z * chosen).sum(-1) - z.logsumexp(-1)


def completion_logp(logits, ids, prompt_lengths, lengths, temperature):
    out = []
    for i, (p, n) in enumerate(zip(prompt_lengths.tolist(), lengths.tolist())):
        row = [token_logp(logits[i, p + t - 1], ids[i, p + t], temperature) for t in range(n)]
        out.append(torch.stack(row + [torch.tensor(0.0)] * (int(lengths.max()) - n)))
    return torch.stack(out)
