"""Advantages: who did better than the rest of the group, and by which token. All functions are pure, tensor in, tensor out.

N = completions (rows), T = longest completion. `group` [N] says which rows answer the same prompt: any integers, in any order.
A method takes the advantage of each row and gives every token its own. It is one function with one declaration, `@method(...)`, from which
its settings, their flags and their lines in `--help` follow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from rlvr.entropy import log_perplexity

if TYPE_CHECKING:  # for annotations alone: `--help` reads the declarations below, and must not wait for torch
    from torch import Tensor


def grpo_advantages(rewards: Tensor, group: Tensor) -> Tensor:
    """Group-normalised advantages: (reward - group mean) / (group standard deviation + 1e-6).

    rewards [N] float, group [N] int -> [N] float. The standard deviation is that of a sample (divisor G - 1), as in the released code
    (Deng et al. 2025). A group whose rewards are all equal, or with one row, gets exactly 0. A row whose reward is NaN (it could not be
    scored) gets 0 too, and the rest of its group is normalised as if it were not there.

    >>> import torch
    >>> grpo_advantages(torch.tensor([1., -1., -1., 1., 1.]), torch.tensor([0, 0, 0, 7, 7]))
    tensor([ 1.1547, -0.5773, -0.5773,  0.0000,  0.0000])
    """
    advantages = rewards.new_zeros(rewards.shape)
    scored = ~rewards.isnan()
    for g in group[scored].unique():
        rows = (group == g) & scored
        r = rewards[rows]
        # Compare, do not compute a variance: three rewards of 0.1 have a mean that is not exactly 0.1.
        if r.max() > r.min():
            advantages[rows] = (r - r.mean()) / (r.std() + 1e-6)
    return advantages


def mixed_groups(rewards: Tensor, group: Tensor) -> list[int]:
    """The groups that can teach: those with right and wrong completions. What was not scored (NaN) is neither. rewards, group [N]

    >>> import torch
    >>> mixed_groups(torch.tensor([1.0, -1.0, 1.0, 1.0]), torch.tensor([0, 0, 7, 7]))
    [0]
    """
    return [g for g in group.unique().tolist() if (rewards[group == g] > 0).any() and (rewards[group == g] <= 0).any()]


def ppl_weights(old_logp: Tensor, mask: Tensor, group: Tensor, alpha: float, direction: str = "low") -> Tensor:
    """Perplexity shaping: the factor that favours the low-perplexity completions of a group (direction "high": the opposite arm).

    old_logp [N, T], mask [N, T], group [N] -> [N], between 0.8 and 1.2. Multiply the advantage by it (Deng et al. 2025, released code):

        w = (logPPL - mean) / std  within the group,   factor = clamp(1 - alpha * w, 0.8, 1.2)

    Mean and population standard deviation leave out values beyond 1.5 interquartile ranges (Tukey's rule); every row gets a w. In groups
    of 2 or 3 the rule finds none; of 4 or 5, often one. If the values that are left are all equal, w is in nats: the divisor is then 1.
    No gradient passes through the factor. A group of equal perplexities gets exactly 1.
    """
    if direction not in ("low", "high"):
        raise ValueError(f"direction is {direction!r}; it must be 'low' or 'high'")
    log_ppl = log_perplexity(old_logp.detach(), mask)
    w = log_ppl.new_zeros(log_ppl.shape)
    for g in group.unique():
        rows = group == g
        x = log_ppl[rows]
        if x.max() != x.min():  # compare, as above: their mean may differ from them by rounding
            q1, q3 = x.quantile(0.25), x.quantile(0.75)
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
    return a.sign() * (alpha * (slope * (r - 0.5)).sigmoid()).minimum(0.5 * a.abs()) * valid


# ---------------------------------------------------------------------------------------------------------------------------------------
# Methods. A function that is declared with @method is all that a new one takes.


class Strength(NamedTuple):
    """A setting of a method: a number of 0 or more, one of several choices, or a switch (True or False)."""

    default: float | str | bool
    help: str  # its line in `--help`
    choices: tuple[str, ...] = ()


METHODS: dict[str, Callable] = {}  # what --method can name
STRENGTHS: dict[str, Strength] = {}  # those of all methods; each is a field of TrainConfig, a flag, and a keyword of shape()


def method(name: str, reads: str = "old_logp", **strengths: Strength) -> Callable:
    """Declare the function below as the method `name`: (shaped, advantages, old_logp, mask, group, its strengths) -> token advantages.

    shaped [N, T] are the token advantages so far, 0 outside the mask; advantages [N] are those of the rows. The result is [N, T].
    reads: what it looks at beside advantages. Without old_logp in it, a pass is saved in bfloat16. `entropy`, `rewards` and
    `step` (see `shape`) are handed over as keywords if they are in it. Raises ValueError for a strength of another method.
    """
    for other, known in METHODS.items():
        if other != name and (taken := strengths.keys() & set(getattr(known, "strengths", ()))):
            raise ValueError(f"The strength {min(taken)} belongs to the method {other}. Choose another name for that of {name}.")

    def declare(function: Callable) -> Callable:
        function.strengths, function.reads = tuple(strengths), reads
        METHODS[name] = function
        STRENGTHS.update(strengths)
        return function

    return declare


@method("grpo", reads="")
def grpo(shaped, advantages, old_logp, mask, group):
    return shaped


@method("ppl",
    ppl_alpha=Strength(0.01, "Strength of perplexity shaping (released code: 0.01, a very weak re-weighting; try 0.2)."),
    ppl_direction=Strength("low", "Completions that weigh more: of low perplexity (the paper) or of high (its opposite).", ("low", "high")),
    ppl_apply=Strength(True, "--no-ppl-apply computes the factor and drops it, as the released code does: a control, bit for bit grpo."))
def ppl(shaped, advantages, old_logp, mask, group, *, ppl_alpha, ppl_direction, ppl_apply):
    weights = ppl_weights(old_logp, mask, group, ppl_alpha, ppl_direction)
    return shaped * weights[:, None] if ppl_apply else shaped


@method("pos", reads="",
    pos_alpha=Strength(0.1, "Strength of position shaping: the largest bonus (released code: 0.1)."),
    pos_direction=Strength("late", "Tokens that get the bonus: late ones (the paper) or early ones (its opposite).", ("late", "early")))
def pos(shaped, advantages, old_logp, mask, group, *, pos_alpha, pos_direction):
    return shaped + position_bonus(advantages, mask, pos_alpha, pos_direction)


def method_parts(method: str) -> list[str]:
    """ "ppl+pos" -> ["ppl", "pos"]. Raises ValueError for an unknown name or a name that comes twice."""
    parts = method.split("+")
    if set(parts) - METHODS.keys() or len(set(parts)) < len(parts) or ("grpo" in parts and len(parts) > 1):
        raise ValueError(f"There is no method {method!r}. Choose one of {', '.join(METHODS)}, or join shaping methods by + as in ppl+pos.")
    return parts


def shape(method: str, advantages, old_logp, mask, group, *, entropy=None, rewards=None, step=None, **strengths) -> Tensor:
    """Give every token its advantage: advantages [N], old_logp [N, T], mask [N, T], group [N] -> [N, T], 0 outside the mask.

    entropy [N, T] of the tokens, rewards [N] and the number of the step are needed by some methods alone, which raise ValueError without
    them. A row whose reward is NaN (it could not be scored) takes no part in the statistics of its group.

    "grpo" repeats the row's advantage; the other methods change it, in the order they are named. At strength 0 each of them returns
    bit for bit what "grpo" does. "ppl+pos" is our combination: the released code never joins the two. Its bonus, and the cap of the
    bonus, come from the row's plain advantage.

    A strength that is not given takes its default. Each method gets only its own. Raises ValueError for one that no method declares.
    """
    if unknown := sorted(strengths.keys() - STRENGTHS.keys()):
        raise ValueError(f"No method declares the strength {' or '.join(unknown)}. Choose from {', '.join(STRENGTHS)}.")
    shaped = advantages.detach()[:, None] * mask.to(advantages.dtype)
    if rewards is not None:
        group = group.where(~rewards.isnan(), group.max() + group.new_ones(len(group)).cumsum(0))  # what was not scored: one of its own
    more = {"entropy": entropy, "rewards": rewards, "step": step}
    for name in method_parts(method):
        own = {key: strengths.get(key, STRENGTHS[key].default) for key in getattr(METHODS[name], "strengths", ())}
        own |= {key: more[key] for key in getattr(METHODS[name], "reads", "").split() if key in more}
        if missing := [key for key, value in own.items() if value is None]:
            raise ValueError(f"The method {name} needs {missing[0]}, as in shape(..., {missing[0]}={missing[0]}).")
        shaped = METHODS[name](shaped, advantages, old_logp, mask, group, **own)
    return shaped


def keep_sign(shaped: Tensor, learn_from: str) -> Tensor:
    """Keep only the positive or only the negative advantages ("all": both); the rest become 0. [N, T] -> [N, T].

    The switches positive_only and negative_only of the released code (Deng et al. 2025). The denominator of the loss stays that of all
    tokens, so the gradients of the two halves add up to that of "all". Raises ValueError for another name.

    >>> import torch
    >>> keep_sign(torch.tensor([[1.5, -0.5]]), "negative")
    tensor([[ 0.0000, -0.5000]])
    """
    if learn_from not in ("all", "positive", "negative"):
        raise ValueError(f"learn_from is {learn_from!r}; it must be 'all', 'positive' or 'negative'")
    return shaped if learn_from == "all" else shaped.clamp(min=0) if learn_from == "positive" else shaped.clamp(max=0)
