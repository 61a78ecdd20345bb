import torch


def group_advantages(rewards, group):
    out = torch.zeros_like(rewards)
    for g in group.unique():
        rows = group == g
        r = rewards[rows]
        if r.max() > r.min():
            out[rows] = (r - r.mean()) / (r.std() + 1e-6)
    return out


def completion_mask(ids, stop_ids):
    stop = torch.zeros_like(ids, dtype=torch.bool)
    for s in stop_ids:
        stop |= ids == s
    stopped_before = stop.long().cumsum(1) - stop.long()
    return stopped_before == 0


def token_logp(logits, ids, temperature):
    logp = torch.log_softmax(logits / temperature, dim=-1)
    return logp.gather(-1, ids[:, :, None])[:, :, 0]


def completion_logp(logits, ids, prompt_lengths, lengths, temperature):
    out = torch.zeros(len(ids), int(lengths.max()))
    for i in range(len(ids)):
        p, n = int(prompt_lengths[i]), int(lengths[i])
        logp = torch.log_softmax(logits[i, p - 1 : p + n - 1] / temperature, dim=-1)
        out[i, :n] = logp.gather(-1, ids[i, p : p + n, None])[:, 0]
    return out
