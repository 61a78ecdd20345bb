"""Public tests of assignment 3: the clipped token-level loss and one update. The right answers are those of rlvr."""

import random
from contextlib import suppress

import torch

from rlvr.advantage import grpo_advantages
from rlvr.loss import clipped_loss
from tutorials.assignments.checks import Assignment, Wrong, alike, exchanged, expect, need, on_random_inputs

tests = Assignment()
check = tests.check
CLIP = (0.2, 0.28)


def _ask(student, ratios, advantages, mask=None, clip=CLIP, denominator=None):
    """Value and gradient for given ratios and advantages (lists of lists); old_logp is -1 everywhere."""
    ratio = torch.tensor(ratios)
    mask = torch.ones_like(ratio).bool() if mask is None else torch.tensor(mask).bool()
    old = torch.full_like(ratio, -1.0)
    return student.gradient("clipped_loss", 0, old + ratio.log(), old, torch.tensor(advantages), mask, *clip, denominator)


def _right(ratios, advantages, mask=None, clip=CLIP, denominator=None):
    ratio = torch.tensor(ratios)
    mask = torch.ones_like(ratio).bool() if mask is None else torch.tensor(mask).bool()
    old = torch.full_like(ratio, -1.0)
    logp = (old + ratio.log()).requires_grad_()
    loss, _ = clipped_loss(logp, old, torch.tensor(advantages), mask, clip_low=clip[0], clip_high=clip[1], denominator=denominator)
    return loss.item(), torch.autograd.grad(loss, logp)[0]


def _flows(gradient, row: int, t: int) -> bool:
    return gradient is not None and bool(gradient[row, t].abs() > 1e-6)


# ---------------------------------------------------------------------------------------------------------------------------------------
tests.task("3.1", "ratio and policy gradient")


@check("3.1", 2, hint="ratio = exp(logp - old_logp); minimise -ratio * A. Where the ratio is 1 the gradient in logp is -A / tokens.")
def at_ratio_one_it_is_the_policy_gradient(student):
    value, gradient = _ask(student, [[1.0, 1.0, 1.0, 1.0]], [[1.5, -0.5, 1.0, 0.4]])
    expect(value, -0.6, "ratios 1, advantages 1.5, -0.5, 1, 0.4: the loss")
    need(gradient is not None, "no gradient flows: keep logp in the graph (no detach, no .item())")
    expect(gradient, torch.tensor([[-0.375, 0.125, -0.25, -0.1]]), "its gradient in logp")


@check("3.1", 1, hint="Centred advantages make a loss of 0 at ratio 1; the gradient is not 0. It must not be a loss without logp in it.")
def the_loss_that_is_zero_still_learns(student):
    value, gradient = _ask(student, [[1.0, 1.0]], [[2.0, -2.0]])
    expect(value, 0.0, "ratios 1, advantages 2 and -2: the loss")
    need(_flows(gradient, 0, 0) and _flows(gradient, 0, 1), "ratios 1, advantages 2 and -2: the gradient is 0 or missing")


@check("3.1", 1, hint="The ratio is exp of a difference of log-probs, not the difference, and not the ratio of log-probs.")
def the_loss_is_minus_ratio_times_advantage(student):
    for ratio, advantage in ((1.1, 1.0), (0.9, -1.0), (0.5, 2.0), (3.0, -2.0)):
        value, _ = _ask(student, [[ratio]], [[advantage]], clip=(0.99, 99.0))  # a clip that does not act
        expect(value, -ratio * advantage, f"one token, ratio {ratio}, advantage {advantage}: the loss", 1e-4)


# ---------------------------------------------------------------------------------------------------------------------------------------
tests.task("3.2", "clipping")


@check("3.2", 2, hint="For A > 0 stop at 1 + clip_high, for A < 0 at 1 - clip_low: beyond, the gradient is 0.")
def beyond_the_clip_the_gradient_is_zero(student):
    _, gradient = _ask(student, [[1.5, 0.5, 1.0]], [[1.0, -1.0, 1.0]])
    need(_flows(gradient, 0, 2), "ratio 1, advantage 1: no gradient flows")
    need(not _flows(gradient, 0, 0), "ratio 1.5, advantage 1: the token is likely enough already, but there is still a gradient")
    need(not _flows(gradient, 0, 1), "ratio 0.5, advantage -1: the token is unlikely enough already, but there is still a gradient")
    # A token beyond the clip is still one of the tokens, in the value and in the denominator.
    far, inside = (_ask(student, [[ratio, 1.0]], [[1.0, 1.0]], clip=(0.3, 0.3)) for ratio in (9.0, 1.0))
    need(_flows(inside[1], 0, 1) and far[1] is not None, "ratios 1 and 1: no gradient flows")
    share = (far[1][0, 1] / inside[1][0, 1]).item()
    expect(share, 1.0, "ratios 9 and 1, then 1 and 1: the gradient of the second token, over that in the other batch")
    if abs(inside[0].item() + 1) < 1e-5:  # or the value is wrong everywhere
        expect(far[0], -1.15, "ratios 9 and 1, advantages 1, clip 0.3: the loss", 0.05)  # a bound that is a little off costs below


@check(
    "3.2", 2, hint="max(-ratio * A, -clip(ratio) * A): the worse of the two. A token that moved the wrong way must be able to come back."
)
def on_the_wrong_side_the_gradient_stays(student):
    _, gradient = _ask(student, [[0.5, 1.5]], [[1.0, -1.0]])
    need(_flows(gradient, 0, 0), "ratio 0.5, advantage 1: a good token became unlikely, and the clip keeps it so")
    need(_flows(gradient, 0, 1), "ratio 1.5, advantage -1: a bad token became likely, and the clip keeps it so")
    need(bool(gradient[0, 0] * gradient[0, 1] < 0), "advantages 1 and -1: both tokens are moved in the same direction")
    _, gradient = _ask(student, [[0.05, 4.0]], [[1.0, -1.0]])
    need(_flows(gradient, 0, 0), "ratio 0.05, advantage 1: a good token became very unlikely, and has no gradient")
    need(_flows(gradient, 0, 1), "ratio 4, advantage -1: a bad token became four times as likely, and has no gradient")


@check("3.2", 1, hint="Two bounds: 1 - clip_low below and 1 + clip_high above (clip-higher). Do not use one for both.")
def the_two_bounds_differ(student):
    _, gradient = _ask(student, [[1.25, 0.75]], [[1.0, -1.0]])
    need(_flows(gradient, 0, 0), "ratio 1.25 is inside 1 + clip_high = 1.28, but has no gradient")
    need(not _flows(gradient, 0, 1), "ratio 0.75 is below 1 - clip_low = 0.8, but has a gradient")
    _, gradient = _ask(student, [[1.25, 0.75]], [[1.0, -1.0]], clip=(0.3, 0.2))
    need(not _flows(gradient, 0, 0) and _flows(gradient, 0, 1), "the same with clip_low 0.3 and clip_high 0.2")
    plain, _ = _ask(student, [[1.1]], [[1.0]])
    if abs(plain.item() + 1.1) < 1e-4:  # the ratio is right
        _, gradient = _ask(student, [[1.3, 0.81]], [[1.0, -1.0]])
        need(not _flows(gradient, 0, 0), "ratio 1.3 is above 1 + clip_high = 1.28, but has a gradient")
        need(_flows(gradient, 0, 1), "ratio 0.81 is inside 1 - clip_low = 0.8, but has no gradient")


# ---------------------------------------------------------------------------------------------------------------------------------------
tests.task("3.3", "mask and denominator")


@check(
    "3.3", 1, hint="Sum over all valid tokens of the batch, divided by their number. A mean of row means gives a token of a short row more."
)
def every_token_weighs_the_same(student):
    mask = [[1, 1, 1, 1], [1, 0, 0, 0]]
    value, gradient = _ask(student, [[1.0] * 4, [1.0] * 4], [[1.0] * 4, [-1.0] * 4], mask)
    expect(value, -0.6, "rows of 4 tokens (advantage 1) and 1 token (advantage -1): the loss")
    need(gradient is not None, "no gradient flows")
    need(
        bool((gradient[0] + 0.2).abs().max() < 1e-5),
        f"the gradient of the long row is {gradient[0].tolist()} instead of -0.2 for each token",
    )


@check("3.3", 2, hint="0 * inf is NaN, in the value and in the gradient. Put harmless numbers outside the mask before exp: torch.where.")
def garbage_outside_the_mask_changes_nothing(student):
    mask = torch.tensor([[True, True, False]])

    def ask(place: str, garbage: float):
        batch = {"logp": [-1.0, -1.1, -1.0], "old_logp": [-1.0, -1.0, -1.0], "advantages": [1.0, 3.0, 1.0]}
        batch |= {name: [*numbers[:2], garbage] for name, numbers in batch.items() if name == place}
        return student.gradient("clipped_loss", 0, *(torch.tensor([numbers]) for numbers in batch.values()), mask, *CLIP, None)

    clean, clean_gradient = ask("", 0.0)
    need(_flows(clean_gradient, 0, 0), "a batch without garbage: no gradient flows")
    for place in ("logp", "old_logp", "advantages"):
        for garbage in (float("nan"), float("inf"), 1e30):
            value, gradient = ask(place, garbage)
            expect(value, clean, f"the loss with {garbage} in {place} at a masked place, and with an ordinary number there")
            need(
                gradient is not None and bool(gradient.isfinite().all()), f"{place} {garbage} at a masked place: the gradient is not finite"
            )
            expect(gradient, clean_gradient, f"the gradient with {garbage} in {place} at a masked place, and with an ordinary number there")


@check("3.3", 1, hint="The denominator is that of the whole update, passed down; a part must not divide by its own number of tokens.")
def parts_of_a_batch_add_up(student):
    ratios, advantages, mask = [[1.1, 0.9, 1.0], [1.2, 1.0, 1.0]], [[1.0] * 3, [-2.0] * 3], [[1, 1, 1], [1, 0, 0]]
    parts = [_ask(student, ratios[i : i + 1], advantages[i : i + 1], mask[i : i + 1], denominator=4)[0] for i in range(2)]
    whole, _ = _right(ratios, advantages, mask)
    got = sum(p.item() if isinstance(p, torch.Tensor) else p for p in parts)
    expect(got, whole, "two rows of 3 and 1 tokens, each by itself with denominator 4: the sum of their losses")


def _random_batches(dice: random.Random):
    """No valid ratio is on a bound of the clip, where the gradient is what the form of the maximum makes of it."""
    for seed in range(50):
        g = torch.Generator().manual_seed(seed)
        shape = dice.randint(1, 5), dice.randint(1, 7)
        old = -2 * torch.rand(shape, generator=g)
        moved = dice.choice([0.0, 0.1, 0.5, 1.5])
        logp = old + moved * torch.randn(shape, generator=g)
        advantages = torch.randn(shape, generator=g) * dice.choice([0.0, 1.0, 1.0, 3.0])
        mask = torch.rand(shape, generator=g) < dice.choice([0.5, 0.9, 1.0])
        mask[0, 0] = True
        batch = [torch.where(mask, x, dice.choice([0.0, -9.0, float("nan"), float("inf")])) for x in (logp, old, advantages)]
        batch = [x.to(dice.choice([torch.float32, torch.float64])) for x in batch]
        clip = dice.choice([CLIP, (0.1, 0.1), (0.3, 0.2), (0.0, 0.5) if moved else CLIP, (0.9, 9.0), (1.0, 0.28)])
        yield *batch, mask, *clip, dice.choice([None, None, dice.randint(1, 50), dice.uniform(0.3, 9.0)])
    for far in (-12.0, -6.0, -4.0, 4.0, 6.0, 12.0):  # ratios far from 1, on both sides, and large advantages
        for a in (-30.0, -9.0, 1.0, 30.0):
            yield torch.tensor([[far - 14, -1.0]]), torch.tensor([[-14.0, -1.5]]), torch.tensor([[a, 0.5]]), torch.ones(1, 2).bool(), *CLIP, None
    g = torch.Generator().manual_seed(50)  # long rows
    old, a, mask = -torch.rand(2, 300, generator=g), torch.randn(2, 300, generator=g), torch.rand(2, 300, generator=g) < 0.7
    yield torch.where(mask, old + 0.3 * a.sin() + 0.01, float("nan")), old, a, mask, *CLIP, None


def _batches():
    """All that is asked about the loss."""
    return exchanged(_random_batches(random.Random(33)), a2=lambda a: 1 - a, a4=lambda low: low / 2 + 0.07, a5=lambda high: high + 0.11, a6=lambda d: 7)


def _right_loss(logp, old_logp, advantages, mask, clip_low, clip_high, denominator):
    leaf = logp.double().requires_grad_()
    loss, _ = clipped_loss(leaf, old_logp, advantages, mask, clip_low=clip_low, clip_high=clip_high, denominator=denominator)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


@check(
    "3.3",
    1,
    follows="every token weighs the same",
    tasks=("3.1", "3.2", "3.3"),
    hint="Take the first token that differs: its ratio, the sign of its advantage, and which of the two terms is the larger one.",
)
def fifty_random_batches(student):
    on_random_inputs(student, "clipped_loss", _batches(), _right_loss, 2e-4, of=0)


# ---------------------------------------------------------------------------------------------------------------------------------------
tests.task("3.4", "one update")


def _batch():
    """Eight completions of two prompts by a bigram policy of 5 tokens; token 4 is the stop token."""
    g = torch.Generator().manual_seed(3)
    weights = torch.randn(5, 5, generator=g)
    ids = torch.randint(0, 4, (8, 4), generator=g)
    lengths = torch.tensor([4, 2, 3, 1, 4, 4, 2, 3])
    ids[torch.arange(8), lengths - 1] = 4
    mask = torch.arange(4)[None] < lengths[:, None]
    before = torch.cat([torch.tensor([[0], [0], [0], [0], [2], [2], [2], [2]]), ids[:, :-1]], 1)  # the token before each
    rewards = torch.tensor([1.0, -1, -1, 1, -1, -1, -1, 1])
    group = torch.tensor([0] * 4 + [1] * 4)
    return weights, before, ids, mask, rewards, group


def _logp(weights, before, ids):
    return weights[before].log_softmax(-1).gather(-1, ids[..., None])[..., 0]


def _right_gradient(logp, old_logp, advantages, mask):
    leaf = logp.requires_grad_()
    loss, _ = clipped_loss(leaf, old_logp, advantages, mask, clip_low=CLIP[0], clip_high=CLIP[1])
    return torch.autograd.grad(loss, leaf)[0]


def _own_gradient(student):
    """The gradient of the student's own loss."""

    def gradient(*batch):
        _, found = student.gradient("clipped_loss", 0, *batch, *CLIP, None)
        need(found is not None, "no gradient flows from your loss")
        return found.float()

    return gradient


def _updated(weights, before, ids, mask, rewards, group, old_logp, lr, gradient=_right_gradient):
    """The new weights. gradient: that of the loss in logp [N, T], a function of logp, old_logp, advantages and mask."""
    leaf = weights.clone().requires_grad_()
    logp = _logp(leaf, before, ids)
    advantages = grpo_advantages(rewards, group)[:, None].expand(mask.shape)
    logp.backward(gradient(logp.detach(), old_logp, advantages, mask))
    return weights - lr * leaf.grad


@check("3.4", 2, hint="advantages -> logp of the ids under the weights -> clipped loss -> weights - lr * gradient.")
def a_step_of_gradient_descent(student):
    weights, before, ids, mask, rewards, group = _batch()
    old = _logp(weights, before, ids)
    for old_logp, name in ((old, "on policy"), (old + 0.1, "after the policy has moved")):
        wanted = _updated(weights, before, ids, mask, rewards, group, old_logp, 0.5)
        expect(student.update(weights, before, ids, mask, rewards, group, old_logp, 0.5), wanted, f"{name}: the new weights", 1e-4)
    # Where the clip acts, beside the gradient of the student's own loss: a mistake in the loss has cost its points above.
    old_logp = old + torch.tensor([-0.23, 0.1, 0.25, -0.1])  # of the four tokens of a row: ratios 1.26, 0.90, 0.78, 1.11
    wanted = _updated(weights, before, ids, mask, rewards, group, old_logp, 0.5, _own_gradient(student))
    got = student.update(weights, before, ids, mask, rewards, group, old_logp, 0.5)
    expect(got, wanted, "ratios 1.26, 0.90, 0.78, 1.11: the new weights, by the gradient of your own clipped_loss", 1e-4)


@check("3.4", 1, hint="Minimise the loss: right completions must become more probable, not less.")
def right_completions_become_more_probable(student):
    weights, before, ids, mask, rewards, group = _batch()
    old = _logp(weights, before, ids)
    for given in (rewards, -rewards):
        new = student.update(weights, before, ids, mask, given, group, old, 0.5)
        change = ((_logp(new, before, ids) - old) * mask).sum(1)
        right, wrong = change[given > 0].mean().item(), change[given < 0].mean().item()
        need(right > wrong + 1e-4, f"the log-prob of right completions changes by {right:.4f}, that of wrong ones by {wrong:.4f}")


@check("3.4", 1, hint="If all completions of a prompt are right, there is nothing to compare: the weights stay as they are.")
def without_contrast_nothing_changes(student):
    weights, before, ids, mask, rewards, group = _batch()
    old = _logp(weights, before, ids)
    got = student.update(weights, before, ids, mask, torch.ones(8), group, old, 0.5)
    expect(got, weights, "all rewards 1: the weights", 1e-6)
    got = student.update(weights, before, ids, mask, rewards, group, old, 0.5)
    need(not alike(got, weights), "rewards 1 and -1: the weights have not changed")


@check("3.4", 1, hint="What stands behind the stop token is no action of the policy: it must not move a weight.")
def padding_moves_no_weight(student):
    weights, before, ids, mask, rewards, group = _batch()
    old = _logp(weights, before, ids)
    first = student.update(weights, before, ids, mask, rewards, group, old, 0.5)
    other_ids, other_before = torch.where(mask, ids, 3), torch.where(mask, before, 1)
    second = student.update(weights, other_before, other_ids, mask, rewards, group, old, 0.5)
    expect(second, first, "other tokens behind the stop token: the new weights", 1e-6)
    other = student.update(weights, before, ids, mask, -rewards, group, old, 0.5)
    need(not alike(first, other), "right and wrong exchanged: the new weights are the same")


def _ask_with_nan(student) -> None:
    """Raise Wrong if a NaN in old_logp outside the mask gets into the gradient of the student's own loss."""
    logp, nan = torch.zeros(1, 2), torch.tensor([[0.0, float("nan")]])
    need(student.gradient("clipped_loss", 0, logp, nan, logp + 1, torch.tensor([[True, False]]), *CLIP, None)[1] is not None, "no gradient")


def _random_updates(dice: random.Random, garbage: float):
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        n, t, v = dice.choice([2, 6, 8]), dice.randint(1, 5), dice.choice([3, 6])
        weights = torch.randn(v, v, generator=g)
        before, ids = (torch.randint(0, v, (n, t), generator=g) for _ in range(2))
        mask = torch.arange(t)[None] < torch.randint(1, t + 1, (n, 1), generator=g)
        rewards = torch.tensor([dice.choice([1.0, -1.0, 0.5, 3.3]) for _ in range(n)])
        group = torch.tensor([dice.choice(dice.choice([[4, -1], [4, -4], [2**24, 2**24 + 1]])) for _ in range(n)])
        if seed % 3 == 1:  # hardly unlike
            rewards, group = torch.zeros(n), torch.zeros(n, dtype=torch.long)
            rewards[0] = dice.choice([1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
        old_logp = _logp(weights, before, ids) + dice.choice([0.0, 0.2, 1.0]) * torch.randn(n, t, generator=g)
        yield weights, before, ids, mask, rewards, group, torch.where(mask, old_logp, garbage), dice.choice([0.1, 1.0])
    for n in (2, 64):  # one right of many; nearly equal, far off the policy that sampled, and with a large gradient
        weights, ids = torch.eye(3), torch.arange(n)[:, None] % 3
        for rewards in ([1.0] + [0.0] * (n - 1), [1 + 2.0**-17] + [1.0] * (n - 1)):
            yield weights, ids, ids, torch.ones(n, 1).bool(), torch.tensor(rewards), torch.zeros(n).long(), _logp(weights, ids, ids) - 3, 10.0


@check(
    "3.4",
    1,
    follows="a step of gradient descent",
    hint="Rewards of any size, groups mixed, ratios beyond the clip; the weights given stay as they are.",
)
def twenty_random_updates(student):
    """By the gradient of the student's own loss, as above."""

    def right(*batch):
        return _updated(*batch, _own_gradient(student))

    garbage = 0.0
    with suppress(Wrong):  # or it has cost its points above
        _ask_with_nan(student)
        garbage = float("nan")
    questions = exchanged(_random_updates(random.Random(34), garbage), a4=lambda rewards: 1 - rewards, a7=lambda lr: lr / 2)
    on_random_inputs(student, "update", questions, right, 2e-4)
