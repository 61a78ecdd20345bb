import re
from fractions import Fraction

import torch
from given import STOP_IDS, TEMPERATURE


def verify(text, gold):
    boxes = re.findall(r"\\boxed\{([^{}]*)\}", text)
    return bool(boxes) and re.fullmatch(r"[+-]?\d+(/\d+)?", boxes[-1]) is not None and Fraction(boxes[-1]) == Fraction(gold)


def rewards(texts, golds):
    return torch.tensor([1.0 if verify(text, gold) else -1.0 for text, gold in zip(texts, golds)])


def completion_mask(ids, stop_ids):
    stop = torch.isin(ids, torch.tensor(stop_ids)).long()
    return stop.cumsum(1) - stop == 0


def group_advantages(rewards, group):
    out = torch.zeros_like(rewards)
    for g in group.unique():
        r = rewards[group == g]
        if r.max() > r.min():
            out[group == g] = (r - r.mean()) / (r.std() + 1e-6)
    return out


def completion_logp(logits, ids, prompt_lengths, lengths, temperature):
    out = torch.zeros(len(ids), int(lengths.max()))
    for i, (p, n) in enumerate(zip(prompt_lengths.tolist(), lengths.tolist())):
        out[i, :n] = torch.log_softmax(logits[i, p - 1 : p + n - 1] / temperature, -1).gather(-1, ids[i, p : p + n, None])[:, 0]
    return out


def clipped_loss(logp, old_logp, advantages, mask, clip_low, clip_high):
    logp, old_logp, advantages = logp[mask], old_logp[mask], advantages[mask]
    ratio = (logp - old_logp).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return torch.maximum(-ratio * advantages, -clipped * advantages).mean()


def loss(model, batch, rewards):
    mask = completion_mask(batch.completions, STOP_IDS)
    lengths = mask.sum(1)
    logp = completion_logp(model(batch.ids), batch.ids, batch.prompt_lengths, lengths, TEMPERATURE)
    advantages = group_advantages(rewards, batch.group)[:, None].expand(mask.shape)
    t = logp.shape[1]
    return clipped_loss(logp, batch.old_logp[:, :t], advantages[:, :t], mask[:, :t], 0.2, 0.28)
