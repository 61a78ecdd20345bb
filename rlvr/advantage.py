"""Advantages: who did better than the rest of the group, and by which token. All functions are pure, tensor in, tensor out.

N = completions (rows), T = longest completion. `group` [N] says which rows answer the same prompt: any integers, in any order.
A method takes the advantage of each row and gives every token its own: it is one function and one name in METHODS.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rlvr.entropy import log_perplexity


def grpo_advantages(rewards: Tensor, group: Tensor) -> Tensor:
    """Group-normalised advantages: (reward - group mean) / (group standard deviation + 1e-6).

    rewards [N] float, group [N] int -> [N] float. The standard deviation is that of a sample (divisor G - 1), as in the released code
    (Deng et al. 2025). A group whose rewards are all equal, or with one row, gets exactly 0. A row whose reward is NaN (it could not be
    scored) gets 0 too, and the rest of its group is normalised as if it were not there.

    >>> grpo_advantages(torch.tensor([1., -1., -1., 1., 1.]), torch.tensor([0, 0, 0, 7, 7]))
    tensor([ 1.1547, -0.5773, -0.5773,  0.0000,  0.0000])
    """
    advantages = torch.zeros_like(rewards)
    scored = ~rewards.isnan()
    for g in group[scored].unique():
        rows = (group == g) & scored
        r = rewards[rows]
        # Compare, do not compute a variance: three rewards of 0.1 have a mean that is not exactly 0.1.
        if r.max() > r.min():
            advantages[rows] = (r - r.mean()) / (r.std() + 1e-6)
    return advantages


def ppl_weights(old_logp: Tensor, mask: Tensor, group: Tensor, alpha: float, direction: str = "low") -> Tensor:
    """Perplexity shaping: the factor that favours the low-perplexity completions of a group (direction "high": the opposite arm).

    old_logp [N, T], mask [N, T], group [N] -> [N], between 0.8 and 1.2. Multiply the advantage by it (Deng et al. 2025, released code):

        w = (logPPL - mean) / std  within the group,   factor = clamp(1 - alpha * w, 0.8, 1.2)

    Mean and population standard deviation leave out values beyond 1.5 interquartile ranges (Tukey's rule); every row gets a w.
    No gradient passes through the factor. A group of equal perplexities gets exactly 1.
    """
    if direction not in ("low", "high"):
        raise ValueError(f"direction is {direction!r}; it must be 'low' or 'high'")
    log_ppl = log_perplexity(old_logp.detach(), mask)
    w = torch.zeros_like(log_ppl)
    for g in group.unique():
        rows = group == g
        x = log_ppl[rows]
        if x.max() == x.min():  # compare, as above: their mean may differ from them by rounding
            continue
        q1, q3 = torch.quantile(x, 0.25), torch.quantile(x, 0.75)
        reach = 1.5 * (q3 - q1)
        kept = x[(x >= q1 - reach) & (x <= q3 + reach)]
        kept = kept if len(kept) else x
        std = kept.std(correction=0)
        w[rows] = (x - kept.mean()) / (std if std > 1e-6 else 1.0)
    return (1 - alpha * w if direction == "low" else 1 + alpha * w).clamp(0.8, 1.2)


def position_bonus(advantages: Tensor, mask: Tensor, alpha: float, direction: str = "late", k: float = 15.0) -> Tensor:
    """Position shaping: the signed bonus that strengthens late tokens (direction "early": the opposite arm).

    advantages [N], mask [N, T] -> [N, T]. Add it to the advantage (Deng et al. 2025, released code):

        bonus_t = sign(A) * min(alpha * sigmoid(k * (r_t - 1/2)), |A| / 2),   r_t = (t - 1) / L,  t = 1..L

    so it pushes right answers further up and wrong ones further down, can never turn a sign, and is 0 where A is 0.
    """
    if direction not in ("late", "early"):
        raise ValueError(f"direction is {direction!r}; it must be 'late' or 'early'")
    valid = mask.to(advantages.dtype)
    r = (valid.cumsum(1) - 1) / valid.sum(1, keepdim=True).clamp(min=1)  # [N, T], relative position of each token
    slope = k if direction == "late" else -k
    a = advantages.detach()[:, None]
    return a.sign() * torch.minimum(alpha * torch.sigmoid(slope * (r - 0.5)), 0.5 * a.abs()) * valid


# ---------------------------------------------------------------------------------------------------------------------------------------
# The methods. Each one: (token advantages [N, T], row advantages [N], old_logp, mask, group, strengths) -> token advantages [N, T].


def _grpo(shaped, *_, **__):
    return shaped


def _ppl(shaped, advantages, old_logp, mask, group, *, ppl_alpha, ppl_direction, ppl_apply, **_):
    weights = ppl_weights(old_logp, mask, group, ppl_alpha, ppl_direction)
    return shaped * weights[:, None] if ppl_apply else shaped


def _pos(shaped, advantages, old_logp, mask, group, *, pos_alpha, pos_direction, **_):
    return shaped + position_bonus(advantages, mask, pos_alpha, pos_direction)


METHODS: dict[str, Callable] = {"grpo": _grpo, "ppl": _ppl, "pos": _pos}


def method_parts(method: str) -> list[str]:
    """ "ppl+pos" -> ["ppl", "pos"]. Raises ValueError for an unknown name or a name that comes twice."""
    parts = method.split("+")
    unknown = [p for p in parts if p not in METHODS]
    if unknown or len(set(parts)) < len(parts) or ("grpo" in parts and len(parts) > 1):
        raise ValueError(f"There is no method {method!r}. Choose one of {', '.join(METHODS)}, or join shaping methods by + as in ppl+pos.")
    return parts


def shape(
    method: str, advantages: Tensor, old_logp: Tensor, mask: Tensor, group: Tensor, *, ppl_alpha: float = 0.01, ppl_direction: str = "low",
    ppl_apply: bool = True, pos_alpha: float = 0.1, pos_direction: str = "late",
) -> Tensor:  # fmt: skip
    """Give every token its advantage: advantages [N] -> [N, T], 0 outside the mask.

    "grpo" repeats the row's advantage; the other methods change it, in the order they are named. At strength 0 each of them returns
    bit for bit what "grpo" does. "ppl+pos" is our combination: the released code never joins the two. Its bonus, and the cap of the
    bonus, come from the row's plain advantage. ppl_apply False computes the factor and drops it, as the released code does.
    """
    shaped = advantages.detach()[:, None] * mask.to(advantages.dtype)
    settings = dict(ppl_alpha=ppl_alpha, ppl_direction=ppl_direction, ppl_apply=ppl_apply, pos_alpha=pos_alpha, pos_direction=pos_direction)
    for name in method_parts(method):
        shaped = METHODS[name](shaped, advantages, old_logp, mask, group, **settings)
    return shaped


def keep_sign(shaped: Tensor, learn_from: str) -> Tensor:
    """Keep only the positive or only the negative advantages ("all": both); the rest become 0. [N, T] -> [N, T].

    The switches positive_only and negative_only of the released code (Deng et al. 2025). The denominator of the loss stays that of all
    tokens, so the gradients of the two halves add up to that of "all". Raises ValueError for another name.

    >>> keep_sign(torch.tensor([[1.5, -0.5]]), "negative")
    tensor([[ 0.0000, -0.5000]])
    """
    if learn_from not in ("all", "positive", "negative"):
        raise ValueError(f"learn_from is {learn_from!r}; it must be 'all', 'positive' or 'negative'")
    return shaped if learn_from == "all" else shaped.clamp(min=0) if learn_from == "positive" else shaped.clamp(max=0)
