import torch


def token_entropy(logits, temperature):
    logp = torch.log_softmax(logits / temperature, -1)
    return -(logp.exp() * logp.clamp(min=-1e9)).sum(-1)


def perplexity(logp, mask):
    total = torch.where(mask, logp, 0.0).sum(1)
    return torch.exp(-total / mask.sum(1).clamp(min=1))


def branching_factor(logits, top_p):
    p = torch.softmax(logits, -1).sort(-1, descending=True).values
    before = p.cumsum(-1) - p
    return (before < top_p - 1e-6).sum(-1)


def entropy_by_correctness(entropy, mask, correct):
    right = entropy[correct][mask[correct]].mean()
    wrong = entropy[~correct][mask[~correct]].mean()
    return right.item(), wrong.item()


def plateau_step(entropies):
    smooth, steepest = [], 0.0
    for step, h in enumerate(entropies, start=1):
        smooth.append(0.7 * smooth[-1] + 0.3 * h if smooth else h)
        if step <= 8:
            continue
        slope = (smooth[-9] - smooth[-1]) / 8
        steepest = max(steepest, slope)
        fallen = smooth[-1] <= 0.75 * max(smooth)
        if fallen and slope < 0.1 * steepest:
            return step
    return None
