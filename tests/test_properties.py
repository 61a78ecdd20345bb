r"""Properties: what must hold for every input, tried on inputs that nobody thought of (hypothesis makes them up, the same ones each time).

The other tests compare with numbers worked out by hand. These say what must not matter (the order of the rows, the names of the groups,
the padding, the cut into micro-batches, the spelling of a number), and what can never happen.
"""

import dataclasses
import math
import statistics
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import hypothesis.configuration
import pytest
import torch
from helpers import make_rollouts
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from rlvr.advantage import grpo_advantages, position_bonus, ppl_weights, shape
from rlvr.entropy import branching_factor, log_perplexity, perplexity, plateau_step, token_entropy
from rlvr.loss import clipped_loss
from rlvr.policy import micro_batches
from rlvr.evaluate import answer_key
from rlvr.reward import last_boxed, overlong_penalty, rewards_from, verify, verify_all
from rlvr.rollout import Rollouts
from rlvr.verifier import process

D = torch.float64
NAN, INF = float("nan"), float("inf")
GARBAGE = [NAN, INF, -INF, 1e30, -1e30]

NOTES = tempfile.TemporaryDirectory()  # where hypothesis keeps its tables; else it makes a folder .hypothesis here
hypothesis.configuration.set_hypothesis_home_dir(Path(NOTES.name))
SAME_EACH_TIME = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def for_all(examples=50, **strategies):
    """Run a test with this many made-up values of its arguments."""
    return lambda test: settings(SAME_EACH_TIME, max_examples=examples)(given(**strategies)(test))


def close(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=False)


def grid(draw, shape, low, high):
    """A float64 tensor of multiples of 1/32: sums of a few are exact, equal ones are common, and a reader can follow them."""
    ticks = bytes_of(draw, math.prod(shape)) % 33
    return low + (high - low) * ticks.to(D).reshape(shape) / 32


def bytes_of(draw, n):
    return torch.tensor(list(draw(st.binary(min_size=n, max_size=n))), dtype=torch.long)


def masks(draw, rows=None, least=0):
    """A mask from the lengths of 1 to 5 completions (of 0 to 5 tokens), at least as wide as the longest."""
    rows = rows or draw(st.integers(1, 5))
    lengths = least + bytes_of(draw, rows) % (6 - least)
    return torch.arange(max(int(lengths.max()), 1) + draw(st.integers(0, 1)))[None] < lengths[:, None]


def groups(draw, rows):
    return bytes_of(draw, rows) % 3


def orders(draw, n):
    return torch.tensor(draw(st.permutations(range(n))))


def spoiled(draw, x, mask):
    """The same inside the mask, and outside it what may stand in memory that nobody cleaned."""
    outside = torch.tensor(GARBAGE, dtype=x.dtype)[bytes_of(draw, x.numel()) % len(GARBAGE)]
    return torch.where(mask, x, outside.reshape(x.shape))


def widened(x, columns, value=0.0):
    return torch.nn.functional.pad(x, (0, columns), value=value)


# -- group-normalised advantages --------------------------------------------------------------------------------------------------------

ANY_FLOAT = st.floats(allow_nan=False, allow_infinity=False, width=32)
DTYPES = st.sampled_from([torch.float32, D])
REWARDS = st.sampled_from([0.0, 1.0, -1.0, 0.1]) | st.floats(-100, 100)


@st.composite
def graded(draw, rewards=REWARDS):
    """Rewards and groups of up to 9 rows."""
    r = torch.tensor(draw(st.lists(rewards, min_size=1, max_size=9)), dtype=D)
    return r, groups(draw, len(r))


@for_all(case=graded())
def test_advantages_by_definition(case):
    rewards, group = case
    advantages = grpo_advantages(rewards, group).tolist()
    for i, g in enumerate(group.tolist()):
        peers = [r for r, other in zip(rewards.tolist(), group.tolist()) if other == g]
        spread = statistics.stdev(peers) if len(peers) > 1 else 0.0
        assert advantages[i] == pytest.approx((rewards[i].item() - statistics.fmean(peers)) / (spread + 1e-6), rel=1e-6, abs=1e-6)


@for_all(case=graded(), data=st.data())
def test_the_order_of_the_rows_does_not_matter_to_the_advantages(case, data):
    rewards, group = case
    order = orders(data.draw, len(rewards))
    close(grpo_advantages(rewards[order], group[order]), grpo_advantages(rewards, group)[order], 1e-6)


@for_all(case=graded(), names=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=3, max_size=3, unique=True))
def test_the_names_of_the_groups_do_not_matter(case, names):
    rewards, group = case
    assert torch.equal(grpo_advantages(rewards, torch.tensor(names)[group]), grpo_advantages(rewards, group))


@for_all(case=graded(), constant=st.floats(-1000, 1000))
def test_a_bonus_to_the_whole_group_changes_no_advantage(case, constant):
    rewards, group = case
    close(grpo_advantages(rewards + constant * (group == group[0]), group), grpo_advantages(rewards, group), 1e-5)


@for_all(case=graded(st.integers(-8, 8).map(float)), scale=st.floats(0.1, 1000))
def test_the_unit_of_the_reward_hardly_matters(case, scale):
    rewards, group = case
    close(grpo_advantages(scale * rewards, group), grpo_advantages(rewards, group), 1e-4)


@for_all(case=graded())
def test_advantages_of_a_group_sum_to_zero_keep_the_order_of_the_rewards_and_are_bounded(case):
    rewards, group = case
    advantages = grpo_advantages(rewards, group)
    for g in group.unique():
        r, a = rewards[group == g], advantages[group == g]
        assert abs(a.sum().item()) < 1e-5
        assert (a[r.argsort()].diff() >= 0).all()
        assert a.abs().max() <= (len(r) - 1) / math.sqrt(len(r)) + 1e-6  # one right among G - 1 wrong


@for_all(reward=ANY_FLOAT, size=st.integers(1, 16), dtype=DTYPES)
def test_equal_rewards_of_any_size_give_exactly_zero(reward, size, dtype):
    advantages = grpo_advantages(torch.full((size,), reward, dtype=dtype), torch.zeros(size, dtype=torch.long))
    assert torch.equal(advantages, torch.zeros(size, dtype=dtype))


@for_all(case=graded(), others=graded(st.floats(-1e30, 1e30) | st.sampled_from([NAN, 1e-30])), data=st.data())
def test_what_one_group_does_is_nothing_to_another_bit_for_bit(case, others, data):
    (rewards, group), (more, _) = case, others
    order = orders(data.draw, len(rewards) + len(more))
    both, ids = torch.cat([rewards, more])[order], torch.cat([group, torch.full((len(more),), 7)])[order]
    ours = ids != 7
    assert torch.equal(grpo_advantages(both, ids)[ours], grpo_advantages(both[ours], ids[ours]))


@for_all(case=graded(), data=st.data())
def test_a_reward_of_nan_gets_zero_and_the_others_are_normalised_as_if_it_were_not_there(case, data):
    rewards, group = case
    lost = bytes_of(data.draw, len(rewards)) % 3 == 1
    advantages = grpo_advantages(rewards.masked_fill(lost, NAN), group)
    assert torch.equal(advantages[lost], torch.zeros(int(lost.sum()), dtype=D))
    assert torch.equal(advantages[~lost], grpo_advantages(rewards[~lost], group[~lost]))


# -- perplexity weights -----------------------------------------------------------------------------------------------------------------

DIRECTIONS = st.sampled_from(["low", "high"])
ALPHAS = st.sampled_from([0.01, 0.1, 0.2, 1.0, 50.0])


@st.composite
def sampled(draw, least=0):
    """Log-probs of sampled tokens, their mask and their groups."""
    mask = masks(draw, draw(st.integers(1, 7)), least)
    return grid(draw, mask.shape, -5, 0), mask, groups(draw, len(mask))


@for_all(case=sampled(), alpha=ALPHAS, direction=DIRECTIONS)
def test_weights_lie_between_08_and_12_and_low_perplexity_has_the_greater_one(case, alpha, direction):
    weights = ppl_weights(*case, alpha, direction)
    assert ((weights >= 0.8) & (weights <= 1.2)).all()
    surprise = log_perplexity(*case[:2]) * (1 if direction == "low" else -1)
    for g in case[2].unique():
        assert (weights[case[2] == g][surprise[case[2] == g].argsort()].diff() <= 0).all()


# Once they got 1 - alpha * (x - mean), and the float32 mean of equal numbers is not always that number.
@for_all(
    tokens=st.lists(st.floats(-12, 0, width=32), min_size=1, max_size=4),
    size=st.integers(1, 16), alpha=st.floats(0, 1), direction=DIRECTIONS, dtype=DTYPES,
)  # fmt: skip
def test_equal_perplexities_weigh_exactly_one_whatever_their_value(tokens, size, alpha, direction, dtype):
    old_logp = torch.tensor(tokens, dtype=dtype).expand(size, -1)
    weights = ppl_weights(old_logp, torch.ones_like(old_logp), torch.zeros(size, dtype=torch.long), alpha, direction)
    assert torch.equal(weights, torch.ones(size, dtype=dtype))


@for_all(case=sampled(), direction=DIRECTIONS)
def test_a_strength_of_zero_weighs_exactly_one(case, direction):
    assert torch.equal(ppl_weights(*case, 0.0, direction), torch.ones(len(case[0]), dtype=D))


@for_all(case=sampled(), alpha=ALPHAS)
def test_the_weights_of_the_two_arms_add_up_to_two(case, alpha):
    low, high = ppl_weights(*case, alpha, "low"), ppl_weights(*case, alpha, "high")
    close(low + high, torch.full_like(low, 2.0))  # clamped ones too: 0.8 + 1.2


@for_all(case=sampled(), alpha=ALPHAS, data=st.data())
def test_neither_the_order_of_the_rows_nor_the_padding_nor_other_groups_matter_to_the_weights(case, alpha, data):
    old_logp, mask, group = case
    weights, order = ppl_weights(*case, alpha), orders(data.draw, len(mask))
    close(ppl_weights(old_logp[order], mask[order], group[order], alpha), weights[order], 1e-6)
    assert torch.equal(ppl_weights(spoiled(data.draw, old_logp, mask), mask, group, alpha), weights)
    close(ppl_weights(widened(old_logp, 3, NAN), widened(mask, 3), group, alpha), weights, 1e-6)
    for g in group.unique():
        rows = group == g
        assert torch.equal(ppl_weights(old_logp[rows], mask[rows], group[rows], alpha), weights[rows])


# -- position bonus and methods ---------------------------------------------------------------------------------------------------------

STRENGTHS = st.floats(0, 2) | st.sampled_from([0.0, 1e6])
ARMS = st.sampled_from(["late", "early"])
SHAPING = st.sampled_from(["ppl", "pos", "ppl+pos", "pos+ppl"])


@st.composite
def to_shape(draw):
    """Row advantages (some of them 0), old log-probs, mask, group."""
    old_logp, mask, group = draw(sampled())
    return grid(draw, (len(mask),), -3, 3), old_logp, mask, group


@for_all(case=to_shape(), alpha=STRENGTHS, arm=ARMS)
def test_the_bonus_has_the_sign_of_the_advantage_at_most_half_its_size_and_rises_or_falls_along_the_row(case, alpha, arm):
    advantages, _, mask, _ = case
    bonus = position_bonus(advantages, mask, alpha, arm)
    assert (bonus[~mask] == 0).all() and (bonus[advantages == 0] == 0).all()
    assert (bonus * advantages[:, None] >= 0).all()
    assert (bonus.abs() <= 0.5 * advantages.abs()[:, None]).all() and (bonus.abs() <= alpha).all()
    for row, valid in zip(bonus.abs(), mask):
        steps = row[valid].diff()
        assert (steps >= 0).all() if arm == "late" else (steps <= 0).all()


@for_all(case=to_shape(), method=SHAPING, ppl=STRENGTHS, pos=STRENGTHS, low=DIRECTIONS, late=ARMS)
def test_no_method_and_no_strength_turns_a_sign_or_reaches_outside_the_mask(case, method, ppl, pos, low, late):
    advantages, _, mask, _ = case
    shaped = shape(method, *case, ppl_alpha=ppl, pos_alpha=pos, ppl_direction=low, pos_direction=late)
    assert torch.equal(shaped.sign(), advantages.sign()[:, None] * mask)


@for_all(case=to_shape(), method=SHAPING, low=DIRECTIONS, late=ARMS)
def test_at_strength_zero_every_method_is_grpo_bit_for_bit_on_any_batch(case, method, low, late):
    shaped = shape(method, *case, ppl_alpha=0.0, pos_alpha=0.0, ppl_direction=low, pos_direction=late)
    assert torch.equal(shaped, case[0][:, None] * case[2])


@for_all(case=to_shape(), method=SHAPING, columns=st.integers(1, 4), data=st.data())
def test_shaping_sees_neither_padding_nor_the_order_of_the_rows(case, method, columns, data):
    advantages, old_logp, mask, group = case
    strengths = dict(ppl_alpha=0.1, pos_alpha=0.3)
    shaped, order = shape(method, *case, **strengths), orders(data.draw, len(mask))
    assert torch.equal(shape(method, advantages, spoiled(data.draw, old_logp, mask), mask, group, **strengths), shaped)
    wide = shape(method, advantages, widened(old_logp, columns, NAN), widened(mask, columns), group, **strengths)
    close(wide, widened(shaped, columns), 1e-6)
    close(shape(method, advantages[order], old_logp[order], mask[order], group[order], **strengths), shaped[order], 1e-6)


# -- loss -------------------------------------------------------------------------------------------------------------------------------

TERMS = st.sampled_from([{}, {"kl_coef": 0.1}, {"entropy_coef": 0.01}, {"kl_coef": 1.0, "entropy_coef": 1.0}])
PER_TOKEN = ("logp", "old_logp", "advantages", "ref_logp", "entropy")


@st.composite
def updates(draw):
    """Everything that the loss takes, for one update, in float64."""
    mask = masks(draw)
    ranges = {"logp": (-3, 0), "old_logp": (-3, 0), "advantages": (-2, 2), "ref_logp": (-3, 0), "entropy": (0, 3)}
    return {"mask": mask} | {name: grid(draw, mask.shape, *ends) for name, ends in ranges.items()}


def loss_and_grads(update, **options):
    """The loss, its gradient by the log-probs and by the entropies, and the counts."""
    leaves = {name: update[name].clone().requires_grad_() for name in ("logp", "entropy")}
    loss, stats = clipped_loss(**update | leaves, **options)
    loss.backward()
    return loss.detach(), leaves["logp"].grad, torch.zeros_like(update["entropy"]) if (g := leaves["entropy"].grad) is None else g, stats


def equal(a, b):
    return all(map(torch.equal, a[:3], b[:3])) and a[3].keys() == b[3].keys() and all(torch.equal(a[3][k], b[3][k]) for k in a[3])


@for_all(update=updates(), low=st.sampled_from([0.0, 0.2, 0.5, 0.9]), high=st.sampled_from([0.0, 0.2, 0.28, 2.0]), terms=TERMS)
def test_loss_gradient_and_counts_by_definition_token_by_token(update, low, high, terms):
    loss, grad, entropy_grad, stats = loss_and_grads(update, clip_low=low, clip_high=high, **terms)
    n, total, counts, kl_sum = max(int(update["mask"].sum()), 1), 0.0, {"clipped_low": 0, "clipped_high": 0}, 0.0
    kl_coef, entropy_coef = terms.get("kl_coef", 0.0), terms.get("entropy_coef", 0.0)
    for i, t in torch.cartesian_prod(*map(torch.arange, grad.shape)).tolist():
        logp, old, a, ref, entropy = (update[name][i, t].item() for name in PER_TOKEN)
        if not update["mask"][i, t]:
            assert grad[i, t] == 0 and entropy_grad[i, t] == 0
            continue
        ratio, log_ref = math.exp(logp - old), ref - logp
        is_high, is_low = a > 0 and ratio > 1 + high, a < 0 and ratio < 1 - low
        bound = 1 + high if is_high else 1 - low if is_low else ratio
        kl = math.exp(log_ref) - 1 - log_ref
        total += -bound * a + kl_coef * kl - entropy_coef * entropy
        slope = (0.0 if is_high or is_low else -ratio * a) + kl_coef * (1 - math.exp(log_ref))
        assert grad[i, t].item() == pytest.approx(slope / n, rel=1e-9, abs=1e-12)
        assert entropy_grad[i, t].item() == pytest.approx(-entropy_coef / n, rel=1e-9)
        counts["clipped_high"] += is_high
        counts["clipped_low"] += is_low
        kl_sum += kl
    assert loss.item() == pytest.approx(total / n, rel=1e-9, abs=1e-12)
    assert {k: int(stats[k]) for k in counts} == counts
    assert not kl_coef or stats["kl"].item() == pytest.approx(kl_sum, rel=1e-9, abs=1e-12)


@for_all(update=updates(), terms=TERMS, data=st.data())
def test_the_order_of_the_rows_does_not_matter_to_the_loss(update, terms, data):
    order = orders(data.draw, len(update["mask"]))
    loss, grad, entropy_grad, _ = loss_and_grads(update, **terms)
    turned = loss_and_grads({name: x[order] for name, x in update.items()}, **terms)
    close(turned[0], loss)
    assert torch.equal(turned[1], grad[order]) and torch.equal(turned[2], entropy_grad[order])


@for_all(update=updates(), terms=TERMS, data=st.data())
def test_any_cut_into_micro_batches_adds_up_to_the_same_loss_gradient_and_counts(update, terms, data):
    part_of_row = groups(data.draw, len(update["mask"]))
    whole, denominator = loss_and_grads(update, **terms), max(int(update["mask"].sum()), 1)
    grads, losses, counts = [torch.zeros_like(whole[1]), torch.zeros_like(whole[2])], [], []
    for part in part_of_row.unique():
        rows = part_of_row == part
        width = max(int(update["mask"][rows].sum(1).max()), 1)  # each is cut to its own longest row, as in training
        piece = loss_and_grads({name: x[rows, :width] for name, x in update.items()}, denominator=denominator, **terms)
        losses.append(piece[0])
        counts.append(piece[3])
        for grad, new in zip(grads, piece[1:3]):
            grad[rows, :width] = new
    close(sum(losses), whole[0])
    close(grads, list(whole[1:3]))
    for name, count in whole[3].items():
        close(sum(c[name] for c in counts), count)


@for_all(update=updates(), terms=TERMS, data=st.data())
def test_garbage_outside_the_mask_changes_no_bit_of_loss_gradient_and_counts(update, terms, data):
    dirty = update | {name: spoiled(data.draw, update[name], update["mask"]) for name in PER_TOKEN}
    assert equal(loss_and_grads(dirty, **terms), loss_and_grads(update, **terms))


@for_all(update=updates(), terms=TERMS, columns=st.integers(1, 4), value=st.sampled_from([0.0, *GARBAGE]))
def test_more_padding_changes_nothing_in_the_loss(update, terms, columns, value):
    loss, grad, entropy_grad, _ = loss_and_grads(update, **terms)
    wide = {name: widened(x, columns, value if name != "mask" else False) for name, x in update.items()}
    wide_loss, *wide_grads, _ = loss_and_grads(wide, **terms)
    close(wide_loss, loss)
    assert torch.equal(wide_grads[0], widened(grad, columns)) and torch.equal(wide_grads[1], widened(entropy_grad, columns))


@for_all(update=updates(), data=st.data())
def test_rows_without_advantage_get_no_gradient_and_change_no_other_row(update, data):
    silent = bytes_of(data.draw, len(update["mask"])) % 2 == 1
    update["advantages"] = update["advantages"].masked_fill(silent[:, None], 0.0)
    loss, grad, _, _ = loss_and_grads(update, denominator=8.0)
    assert (grad[silent] == 0).all()
    if not silent.all():
        spoken = loss_and_grads({name: x[~silent] for name, x in update.items()}, denominator=8.0)
        close(spoken[0], loss)
        assert torch.equal(spoken[1], grad[~silent])


@for_all(update=updates(), denominator=st.sampled_from([1.0, 4.0, 64.0]))
def test_at_ratio_one_the_gradient_is_exactly_the_advantage_over_the_denominator(update, denominator):
    update["old_logp"] = update["logp"]
    _, grad, _, stats = loss_and_grads(update, denominator=denominator)
    assert torch.equal(grad, torch.where(update["mask"], -update["advantages"] / denominator, 0.0))
    assert int(stats["clipped_low"]) == int(stats["clipped_high"]) == 0


@for_all(
    logp=ANY_FLOAT, old_logp=ANY_FLOAT, ref_logp=ANY_FLOAT, advantage=st.floats(-10, 10, width=32),
    kl_coef=st.sampled_from([0.0, 1.0]), dtype=DTYPES,
)  # fmt: skip
def test_log_probs_however_far_apart_leave_loss_and_gradient_finite(logp, old_logp, ref_logp, advantage, kl_coef, dtype):
    numbers = dict(logp=logp, old_logp=old_logp, ref_logp=ref_logp, advantages=advantage, entropy=0.0)
    update = {name: torch.tensor([[x, -1.0]], dtype=dtype) for name, x in numbers.items()} | {"mask": torch.ones(1, 2).bool()}
    loss, grad, _, stats = loss_and_grads(update, kl_coef=kl_coef)
    assert loss.isfinite() and grad.isfinite().all() and all(x.isfinite() for x in stats.values())


# exp(x) - 1 - x is rounded below 0 for small x; expm1(x) - x never is.
@for_all(logp=st.floats(-20, 0), gap=st.floats(-5, 5) | st.floats(-1e-3, 1e-3), dtype=DTYPES)
def test_the_kl_term_is_never_negative(logp, gap, dtype):
    logp = torch.tensor([[logp]], dtype=dtype)
    stats = clipped_loss(logp, logp, 0 * logp, torch.ones(1, 1), ref_logp=logp + gap, kl_coef=1.0)[1]
    assert stats["kl"].item() >= 0


@for_all(update=updates(), terms=TERMS, data=st.data())
def test_a_batch_without_a_valid_token_has_loss_and_gradient_zero(update, terms, data):
    nothing = torch.zeros_like(update["mask"])
    empty = {name: spoiled(data.draw, update[name], nothing) for name in PER_TOKEN} | {"mask": nothing}
    loss, grad, entropy_grad, stats = loss_and_grads(empty, **terms)
    assert loss == 0 and (grad == 0).all() and (entropy_grad == 0).all() and all(x == 0 for x in stats.values())


# -- masks: micro-batches, select and concat, perplexity --------------------------------------------------------------------------------


@st.composite
def rollouts(draw):
    """Up to 8 completions of 0 to 6 tokens, after prompts of 1 to 6."""
    shapes = draw(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6), st.integers(0, 3), st.booleans()), min_size=1, max_size=8))
    prompts, lengths, group, finished = zip(*shapes)
    return make_rollouts(prompts, list(lengths), list(group), seed=len(shapes), finished=list(finished))


def same(a: Rollouts, b: Rollouts):
    for field in dataclasses.fields(Rollouts):
        x, y = getattr(a, field.name), getattr(b, field.name)
        assert torch.equal(x, y) and x.dtype == y.dtype if isinstance(x, torch.Tensor) else x == y, field.name


@for_all(batch=rollouts(), budget=st.integers(1, 60), packed=st.booleans(), data=st.data())
def test_micro_batches_take_every_row_once_keep_the_budget_and_are_no_smaller_than_they_must(batch, budget, packed, data):
    rows = orders(data.draw, len(batch))[: data.draw(st.integers(0, len(batch)))]
    length = [len(p) + n for p, n in zip(batch.prompt_ids, batch.lengths.tolist())]
    parts = [part.tolist() for part in micro_batches(batch, rows, budget, packed)]

    def tokens(part):
        if packed:  # each prompt once
            prompts = [batch.prompt_ids[i] for i in part]
            return sum(batch.lengths[part].tolist()) + sum(len(p) for i, p in enumerate(prompts) if i == 0 or p != prompts[i - 1])
        return len(part) * max(length[i] for i in part)

    assert sorted(sum(parts, [])) == sorted(rows.tolist()) and all(parts)
    for part in parts:
        assert len(part) == 1 or tokens(part) <= budget
    for part, following in zip(parts, parts[1:]):
        assert tokens(part + following[:1]) > budget


@for_all(batch=rollouts(), data=st.data())
def test_rollouts_cut_into_any_parts_and_joined_are_the_rollouts(batch, data):
    n = len(batch)
    same(batch.select(torch.arange(n)), batch)
    order = orders(data.draw, n)
    cuts = sorted(data.draw(st.sets(st.integers(1, n - 1))) if n > 1 else [])
    parts = [order[i:j] for i, j in zip([0, *cuts], [*cuts, n])]
    joined = Rollouts.concat([batch.select(rows) for rows in parts])
    same(joined, batch.select(order))
    same(joined.select(order.argsort()), batch)


@for_all(batch=rollouts(), data=st.data())
def test_selecting_twice_is_selecting_once_and_rows_may_repeat(batch, data):
    first = torch.tensor(data.draw(st.lists(st.integers(0, len(batch) - 1), min_size=1, max_size=9)))
    second = torch.tensor(data.draw(st.lists(st.integers(0, len(first) - 1), max_size=9)), dtype=torch.long)
    picked = batch.select(first)
    assert picked.mask.shape[1] == max(int(picked.lengths.max()), 1) and torch.equal(picked.mask.sum(1), picked.lengths)
    same(picked.select(second), batch.select(first[second]))


@for_all(case=sampled(), data=st.data())
def test_perplexity_is_that_of_the_rows_own_tokens_in_any_order(case, data):
    logp, mask, _ = case
    value = log_perplexity(logp, mask)
    own = [row[valid].tolist() or [0.0] for row, valid in zip(logp, mask)]
    close(value, torch.tensor([-statistics.fmean(x) for x in own], dtype=D))
    assert torch.equal(log_perplexity(spoiled(data.draw, logp, mask), mask), value)
    columns = orders(data.draw, mask.shape[1])
    close(log_perplexity(widened(logp[:, columns], 2, INF), widened(mask[:, columns], 2)), value)
    close(log_perplexity(logp.repeat(1, 2), mask.repeat(1, 2)), value)  # a text said twice is no more surprising per token
    assert (perplexity(logp, mask) >= 1).all() and (perplexity(logp, mask)[mask.sum(1) == 0] == 1).all()


# -- entropy ----------------------------------------------------------------------------------------------------------------------------


@st.composite
def positions(draw):
    """Logits of one position over 1 to 8 tokens, some of them nearly impossible. Multiples of 1/2: exact in float32 after a shift."""
    return grid(draw, (draw(st.integers(1, 8)),), -8, 8).float() * draw(st.sampled_from([1, 1, 8]))


@for_all(logits=positions(), shift=st.integers(-50, 50), data=st.data())
def test_entropy_is_that_of_the_definition_between_0_and_log_v_and_sees_neither_a_shift_nor_the_order_of_the_tokens(logits, shift, data):
    entropy, p = token_entropy(logits), torch.softmax(logits.double(), 0).tolist()
    assert entropy.item() == pytest.approx(-sum(x * math.log(x) for x in p if x > 0), abs=1e-5)
    assert 0 <= entropy.item() <= math.log(len(logits)) + 1e-6
    close(token_entropy(logits + shift), entropy, 1e-5)
    close(token_entropy(logits[orders(data.draw, len(logits))]), entropy, 1e-5)
    masked = torch.cat([logits, torch.tensor([-INF])])
    close(token_entropy(masked), entropy, 1e-5)


@for_all(logits=positions(), cold=st.floats(0.25, 4), warm=st.floats(0.25, 4))
def test_a_warmer_policy_is_less_decided(logits, cold, warm):
    cold, warm = sorted((cold, warm))
    assert token_entropy(logits, cold) <= token_entropy(logits, warm) + 1e-5
    close(token_entropy(logits, cold), token_entropy(logits / cold), 1e-5)


@for_all(logits=positions(), few=st.floats(0.001, 1), many=st.floats(0.001, 1), data=st.data())
def test_branching_factor_is_the_smallest_set_that_holds_the_share_and_grows_with_it(logits, few, many, data):
    few, many = sorted((few, many))
    n = branching_factor(logits, few).item()
    assert 1 <= n <= branching_factor(logits, many).item() <= len(logits)
    p = sorted(torch.softmax(logits.double(), 0).tolist(), reverse=True)
    assert sum(p[:n]) >= few - 1e-5 and sum(p[: n - 1]) < few
    if few - sum(p[: n - 1]) > 1e-5:  # else it is rounding that decides about the last one, and rounding goes by the order
        assert branching_factor(logits[orders(data.draw, len(logits))], few).item() == n


@st.composite
def curves(draw):
    """An entropy curve that falls fast, then slowly, with noise, and with steps of which nothing is known."""
    value, curve = draw(st.integers(64, 512)), []
    for fall, steps in ((draw(st.integers(0, 60)), draw(st.integers(1, 15))), (draw(st.integers(-2, 3)), draw(st.integers(0, 25)))):
        for noise in bytes_of(draw, steps).tolist():
            value = max(value - fall, 0)
            curve.append((value + noise % 4) / 64)
    unknown = draw(st.sets(st.integers(0, len(curve) - 1), max_size=5))
    return [NAN if i in unknown else x for i, x in enumerate(curve)]


@for_all(curve=curves(), window=st.integers(1, 8), scale=st.sampled_from([0.25, 2.0, 1024.0]))
def test_the_stage_detector_needs_the_past_alone_passes_over_nan_and_knows_no_unit(curve, window, scale):
    step = plateau_step(curve, window)
    for n in range(len(curve) + 1):
        assert plateau_step(curve[:n], window) == (step if step is not None and n >= step else None)
    assert plateau_step([scale * x for x in curve], window) == step
    known = [i for i, x in enumerate(curve, start=1) if x == x]
    without = plateau_step([curve[i - 1] for i in known], window)
    assert step == (None if without is None else known[without - 1])


# -- verification: any text -------------------------------------------------------------------------------------------------------------

PIECES = [
    r"\boxed{", r"\boxed{", r"\fbox{", r"\boxed ", r"\\boxed{", "\\", "{", "}", "}", "(", ")", "[", "]", r"\{", r"\}", r"\frac", r"\dfrac{",
    r"\text{", r"\mathrm{", r"\left(", r"\right)", r"\sqrt{", r"\%", r"\$", r"\times", r"\circ", r"\cdot10^{", r"\,", r"\!", "0", "1", "23",
    ",", ".", "/", "-", "+", "=", "^", "_", "%", "$", "!", "~", " ", "\n", "\t", "e", "i", "x", "nan", "and", "10^", "½", "⁴", "−", "٣",
    "\u2044", "\x00", "\ud800", "\u200b", "ﷺ",
]  # fmt: skip
LETTERS = (st.integers(0, 0x2FF) | st.integers(0, 0x10FFFF)).map(chr)  # all of Unicode, control characters and lone surrogates too
WORDS = st.lists(st.sampled_from(PIECES) | LETTERS, max_size=20).map("".join)
DEEP = st.tuples(WORDS, st.sampled_from(["{", "(", r"\boxed{", r"\frac{", "[{("]), st.integers(0, 300), WORDS, st.sampled_from("})]")).map(
    lambda x: x[0] + x[1] * x[2] + x[3] + x[4] * x[2]
)
TEXTS = WORDS | WORDS.map(r"\boxed{{{}}}".format) | DEEP


def boxed(answer):
    return rf"The answer is $\boxed{{{answer}}}$."


@pytest.fixture
def alone(monkeypatch):
    """Without math-verify: whatever it would be asked is wrong."""
    monkeypatch.setattr(process, "_ask", lambda *_: False)


@pytest.fixture
def exact(monkeypatch):
    """For numbers, which are all decided in this process."""
    monkeypatch.setattr(process, "_ask", lambda *question: pytest.fail(f"math-verify was asked {question}"))


@for_all(text=TEXTS, other=TEXTS, more=st.integers(0, 2))
def test_no_text_makes_the_checker_raise(text, other, more, alone):
    gold = [other, last_boxed(other) or "5", "5"][more]
    assert isinstance(verify(text, gold), bool) and isinstance(verify(boxed(text), gold), bool)
    assert verify_all([text, boxed(text)], [gold, "7"]) == [verify(text, gold), verify(boxed(text), "7")]
    answer, key = last_boxed(text), answer_key(text)
    assert answer is None or answer in text
    assert key is None or isinstance(key, str) and answer is not None
    assert answer is not None or verify(text, gold) is False


def last_boxed_by_trying(text):
    r"""The slow way: from each box, the last one first, walk until its brace closes. Does not know \boxed 5 and \\boxed{5}."""
    for start in range(len(text), -1, -1):
        opening = next((b for b in (r"\boxed{", r"\fbox{") if text.startswith(b, start)), None)
        i = begin = start + len(opening or "")
        depth = 1 if opening else 0
        while depth and i < len(text):
            if text[i] == "\\":
                i += 1  # and what it escapes
            elif text[i] in "{}":
                depth += 1 if text[i] == "{" else -1
            i += 1
        if opening and not depth:
            return text[begin : i - 1]
    return None


BRACES = st.sampled_from([r"\boxed{", r"\boxed{", r"\fbox{", "{", "}", "}", "}", r"\{", r"\}", r"\\,", "1", "b"])


@for_all(100, pieces=st.lists(BRACES, max_size=30))
def test_the_last_box_is_found_where_a_slow_search_finds_it(pieces):
    text = "".join(pieces)
    assert last_boxed(text) == last_boxed_by_trying(text)


@for_all(before=TEXTS, after=WORDS, never_closed=st.booleans(), data=st.data())
def test_text_around_the_last_balanced_box_does_not_matter(before, after, never_closed, data):
    after += r" \boxed{6" * never_closed + data.draw(WORDS).replace("}", "") * never_closed
    assume("box" not in after.replace(r"\boxed{6", ""))
    answer = data.draw(st.sampled_from(["7", r"\frac{1}{2}", r"\{1,2\}", "", r"1\\{2}"]))
    assert last_boxed(before + rf"\boxed{{{answer}}}" + after) == answer
    assert verify(before + r"\boxed{7}" + after, "7") and not verify(before + r"\boxed{7}" + after, "8")
    assert answer_key(before + r"\boxed{7}" + after) == "7"


@for_all(100, text=st.lists(st.sampled_from("0123456789abxyzABC+-*^_=,./() "), max_size=12).map("".join), end=st.sampled_from("07axC"))
def test_every_answer_answers_itself(text, end, exact):
    assume((text + end).strip().lower() != "nan")
    assert verify(boxed(text + end), text + end) and verify(boxed(f" {text + end} "), text + end)
    assert answer_key(boxed(f" {text + end}")) == answer_key(boxed(text + end)) is not None


BLANK = st.lists(st.sampled_from([" ", "$", r"\,", r"\!", "~", r"\left", r"\quad", "\u200b"]), max_size=4).map("".join)


# Of \boxed{$$} nothing is left. Its key was once "": a vote for nothing.
@for_all(inner=BLANK, brackets=st.sampled_from(["{}", "({})", "{{{}}}", "({{{}}})"]), outer=BLANK)
def test_an_answer_without_content_is_never_right_and_has_no_key(inner, brackets, outer, alone):
    answer = outer + brackets.format(inner)
    assert not verify(boxed(answer), answer) and not verify(boxed(answer), "5") and not verify(boxed("5"), answer)
    assert answer_key(boxed(answer)) is None


def seconds(function, *args):
    start = time.process_time()
    function(*args)
    return time.process_time() - start


@for_all(20, pieces=st.lists(st.sampled_from(PIECES) | LETTERS, min_size=1, max_size=3), first=WORDS, last=WORDS)
def test_the_time_for_a_long_hostile_text_stays_short(pieces, first, last, alone):
    pattern = "".join(pieces)
    text = r"\boxed{" + first + pattern * (200_000 // len(pattern)) + last
    assert seconds(last_boxed, text) < 1 and seconds(last_boxed, text + "}") < 1  # typically 0.03; quadratic: minutes
    answer = boxed(first + pattern * (7500 // len(pattern)) + last)
    assert seconds(verify, answer, "5") < 2 and seconds(answer_key, answer) < 2 and seconds(verify, boxed("5"), answer) < 2


# -- verification: numbers --------------------------------------------------------------------------------------------------------------

WHOLE = st.integers(-20, 20) | st.integers(-(10**12), 10**12)
RATIONALS = st.builds(Fraction, WHOLE, st.integers(1, 12) | st.integers(1, 9999))
DECIMALS = st.builds(lambda n, places: Fraction(n, 10**places), WHOLE, st.integers(0, 8))
NUMBERS = RATIONALS | DECIMALS | WHOLE.map(Fraction)


def decimal(size: Fraction, zeros: int) -> tuple[str, str] | None:
    """The digits before and after the point, with so many zeros more, or None if they do not end."""
    places = next((n for n in range(400) if 10**n % size.denominator == 0), None)
    if places is None:
        return None
    digits = str(int(size * 10 ** (places + zeros))).zfill(places + zeros + 1)
    return digits[: len(digits) - places - zeros], digits[len(digits) - places - zeros :]


SPACES = (" ", r"\,", r"\ ")
COMMAS = (",", "{,}", r",\!")


def spelled(draw, value: Fraction, marks=COMMAS + SPACES) -> str:
    """One of the many ways to write a number exactly; `marks` may part its thousands."""
    minus = draw(st.sampled_from(["-", "-", "−", "–", "- "]))
    sign, size = (minus, -value) if value < 0 else (draw(st.sampled_from(["", "", "+"])), value)
    k = draw(st.integers(1, 12))
    a, b = size.numerator * k, size.denominator * k
    ways = [sign + x for x in (f"{a}/{b}", f"{a} / {b}", rf"\frac{{{a}}}{{{b}}}", rf"\dfrac{{{a}}}{{{b}}}", rf"\tfrac{{ {a} }} {{ {b} }}")]
    if value < 0:
        ways += [f"{a}/-{b}", rf"\frac{{-{a}}}{{{b}}}", rf"\frac{{{a}}}{{-{b}}}", rf"-\frac{{-{a}}}{{-{b}}}"]
    if a < 10 and b < 10:
        ways += [rf"{sign}\frac{a}{b}", rf"{sign}\frac {a}{{{b}}}", rf"{sign}\frac{{{a}}}{b}"]
    if size > 1 and size.denominator > 1:
        ways += [rf"{sign}{a // b}{gap}\frac{{{a % b}}}{{{b}}}" for gap in ("", " ", r"\,")]
    zeros = draw(st.integers(0, 3))
    if parts := decimal(size, zeros):
        whole, rest = parts
        tail = "." + rest if rest else draw(st.sampled_from(["", "."]))
        ways += [sign + whole + tail, sign + draw(st.sampled_from(["0", "00"])) + whole + tail]
        ways += [sign + f"{int(whole):,}".replace(",", mark) + tail for mark in marks]
        ways += [sign + tail] if whole == "0" and rest else []
        shift = draw(st.integers(-9, 9))
        mantissa = ".".join(decimal(size / Fraction(10) ** shift, 0)).removesuffix(".")
        ways += [sign + x for x in (f"{mantissa}e{shift}", rf"{mantissa}\times10^{{{shift}}}", rf"{mantissa} \cdot 10^{{ {shift} }}")]
        ways += [f"{sign}{mantissa}×10^{shift}"] if shift >= 0 else []
    return draw(st.sampled_from(ways))


UNITS = ["", r"\text{ cm}", r"\text{ dollars}", r"\mathrm{ kg}", r" \text{cm}^2", r"\ \mathrm{m}/\mathrm{s}", r"^\circ", r"^{\circ}"]
BRACKETS = ["{}", "{}", "{{{}}}", "({})", r"\left({}\right)", r"\left( {} \right)", "({{{}}})"]
FRAMES = ["{}", "${}$", r"\${}", "{}.", "${}$.", "${}.$", " {}\n", r"\displaystyle {}", r"\, {}~"]


def dressed(draw, value: Fraction, names=("", "x = ", "x=", "n_1 = ", "f(x) = ", r"k \in "), units=("",)) -> str:
    """The same with brackets around it, a unit, a name, dollars, a full stop or spaces."""
    brackets = draw(st.sampled_from(BRACKETS))
    bare = brackets.format(spelled(draw, value, () if "(" in brackets else COMMAS + SPACES))  # the point (1,234) is no number
    return draw(st.sampled_from(FRAMES)).format(draw(st.sampled_from(names)) + bare + draw(st.sampled_from(units)))


@for_all(100, value=NUMBERS, unit=st.sampled_from(UNITS), data=st.data())
def test_a_number_is_right_in_every_spelling_and_all_spellings_vote_alike(value, unit, data, exact):
    answer, gold = dressed(data.draw, value, units=("", unit)), dressed(data.draw, value, names=[""], units=("", unit))
    assert verify(boxed(answer), gold)
    assert verify(boxed(gold), answer)
    assert answer_key(boxed(answer)) == answer_key(boxed(gold)) == str(value)


# A name before the brackets once kept them on, and a unit inside them then hid the number.
@for_all(name=st.sampled_from(["", "x = "]), brackets=st.sampled_from(BRACKETS), unit=st.sampled_from(UNITS))
def test_a_unit_may_stand_inside_the_brackets(name, brackets, unit, exact):
    gold = "1/2"
    answer = boxed(name + brackets.format(gold + unit))
    assert verify(answer, gold) and answer_key(answer) == gold


@for_all(100, value=NUMBERS, unit=st.sampled_from(UNITS), data=st.data())
def test_two_units_are_never_equal(value, unit, data, exact):
    assume(unit.strip(" \\text{}") not in ("", "km"))
    answer, gold = dressed(data.draw, value, units=[unit]), dressed(data.draw, value, names=[""], units=[r"\text{ km}"])
    assert not verify(boxed(answer), gold) and not verify(boxed(gold), answer)


@for_all(100, value=NUMBERS, other=NUMBERS, nudge=st.integers(0, 30), data=st.data())
def test_two_different_numbers_are_never_equal_however_near(value, other, nudge, data, exact):
    if nudge:
        other = value + data.draw(st.sampled_from([1, -1])) * Fraction(1, 10**nudge)
    assume(value != other)
    answer, gold = dressed(data.draw, value, units=UNITS), dressed(data.draw, other, names=[""], units=UNITS)
    assert not verify(boxed(answer), gold) and not verify(boxed(gold), answer)
    assert answer_key(boxed(answer)) != answer_key(boxed(gold))


@for_all(value=WHOLE, zero=st.sampled_from(["0", "-0", "0.0", ".00"]), gold=NUMBERS, data=st.data())
def test_a_division_by_zero_equals_no_number(value, zero, gold, data, exact):
    nothing = data.draw(st.sampled_from([rf"\frac{{{value}}}{{{zero}}}", f"{value}/{zero}", rf"-\dfrac{{{value}}}{{{zero}}}"]))
    number = spelled(data.draw, gold)
    assert not verify(boxed(nothing), number) and not verify(boxed(number), nothing) and not verify(boxed(f"1, {nothing}"), f"1, {number}")
    assert answer_key(boxed(nothing)) not in (None, "0", str(gold))


@for_all(value=st.integers(-(10**15), 10**15) | st.floats(allow_nan=False, allow_infinity=False) | RATIONALS, data=st.data())
def test_a_gold_answer_may_be_a_plain_number_of_any_size(value, data, exact):
    assert verify(boxed(spelled(data.draw, Fraction(str(value)))), value)
    assert not verify(boxed(spelled(data.draw, Fraction(str(value)) + Fraction(1, 7))), value)


@for_all(value=DECIMALS, data=st.data())
def test_a_percentage_is_its_number_or_a_hundredth_of_it_and_nothing_else(value, data, exact):
    percent = spelled(data.draw, value) + data.draw(st.sampled_from([r"\%", "%", r" \%", r"\text{ percent}"]))
    plain = data.draw(st.sampled_from([value, value / 100, value * 100, value + 1, -value]))
    right, text = plain in (value, value / 100), spelled(data.draw, plain)
    assert verify(boxed(percent), text) is right
    assert verify(boxed(text), percent) is right
    assert verify(boxed(percent), spelled(data.draw, plain) + "%") is (plain == value)


SHORT = (st.integers(-20, 20) | st.integers(-9999, 9999)).map(Fraction) | st.builds(Fraction, st.integers(-99, 99), st.integers(1, 12))


@for_all(values=st.lists(SHORT, min_size=2, max_size=4), data=st.data())
def test_a_list_has_no_order_a_point_has_one_and_a_set_is_no_point(values, data, exact):
    some, any_ = st.lists(st.sampled_from(values), min_size=1, max_size=4), st.lists(SHORT, min_size=2, max_size=4)
    other = data.draw(st.permutations(values) | some | any_)
    ours, theirs = (", ".join(spelled(data.draw, x, SPACES) for x in numbers) for numbers in (values, other))
    plain, point, set_ = "{}", data.draw(st.sampled_from(["({})", r"\left({}\right)"])), r"\{{{}\}}"
    for a, b in ((plain, plain), (set_, set_), (set_, plain), (plain, set_)):
        assert verify(boxed(a.format(ours)), b.format(theirs)) is (sorted(values) == sorted(other))
    if len(other) > 1:  # (5) is 5
        for a, b in ((point, point), (point, plain), (plain, point)):
            assert verify(boxed(a.format(ours)), b.format(theirs)) is (values == other)
        assert not verify(boxed(set_.format(ours)), point.format(ours)) and not verify(boxed(point.format(ours)), set_.format(ours))


@for_all(8, n=st.sampled_from([2, 3, 5, 6, 7]), m=st.integers(2, 99), hostile=WORDS)
def test_with_math_verify_too_roots_are_exact_and_hostile_answers_only_wrong(n, m, hostile):
    process._ask.cache_clear()
    assert isinstance(verify(boxed(hostile + r"\sqrt{"), rf"{m}\sqrt{{{n}}}"), bool)
    assert isinstance(verify(boxed(rf"\sqrt{{{n}}}" + hostile), rf"{m}\sqrt{{{n}}}"), bool)
    assert verify(boxed(rf"\sqrt{{{m * m * n}}}"), rf"{m}\sqrt{{{n}}}")
    assert not verify(boxed(rf"\sqrt{{{m * m * n + 1}}}"), rf"{m}\sqrt{{{n}}}")


# -- reward functions of one's own ------------------------------------------------------------------------------------------------------

SCORES = st.sampled_from([1.0, 0.0, -1.0, 0.25, 3, True, False, torch.tensor(0.5), None, NAN, INF, -INF, "good", [], 10**400])


def as_reward(score):
    """What the score of one completion should become."""
    if score is True or score is False:
        return 1.0 if score else -1.0
    usable = isinstance(score, (int, float, torch.Tensor)) and abs(score) < 1e300  # 10**400 is a number, but no float
    return float(score) if usable else NAN


@for_all(scores=st.lists(SCORES | st.just("raises"), min_size=1, max_size=8))
def test_each_completion_gets_the_reward_of_its_own_score_whatever_the_others_do(scores):
    def function(responses, golds):
        if any(scores[int(r)] == "raises" for r in responses):
            raise KeyError("no answer")
        assert responses == golds
        return [scores[int(r)] for r in responses]

    names, expected = [str(i) for i in range(len(scores))], [as_reward(score) for score in scores]
    if all(map(math.isnan, expected)):
        with pytest.raises(ValueError, match="function"):
            rewards_from(function, names, names)
    else:
        assert rewards_from(function, names, names) == pytest.approx(expected, abs=0, nan_ok=True)


# Asked for one completion at a time, 0 numbers for one and 2 for the next once passed for one each.
@for_all(counts=st.lists(st.integers(0, 2), min_size=1, max_size=6), raises=st.booleans())
def test_a_reward_never_slips_to_another_completion(counts, raises):
    """A function that returns too few or too many numbers for some completions, and raises for a batch: refuse, or keep them apart."""

    def function(responses, golds):
        if raises and len(responses) > 1:
            raise RuntimeError
        return [float(r) for r in responses for _ in range(counts[int(r)])]

    names = [str(i) for i in range(len(counts))]
    assume(raises or sum(counts) != len(counts))  # a batch in one call, of the right length, cannot be seen through
    try:
        rewards = rewards_from(function, names, names)
    except ValueError:
        assert counts != [1] * len(counts)
    else:
        assert all(reward != reward or reward == i for i, reward in enumerate(rewards)) and len(rewards) == len(counts)


# False of a tensor is not Python's own False, and once became 0.
@for_all(right=st.lists(st.booleans(), min_size=1, max_size=5))
def test_truth_from_a_tensor_is_rewarded_as_plain_truth(right):
    names = ["x"] * len(right)
    assert rewards_from(lambda *_: torch.tensor(right), names, names) == [1.0 if x else -1.0 for x in right]


# -- length -----------------------------------------------------------------------------------------------------------------------------


@for_all(longest=st.integers(1, 9000), share=st.floats(0, 1), factor=st.sampled_from([0.5, 1.0, 2.0]), data=st.data())
def test_the_overlong_penalty_is_zero_then_falls_steadily_to_minus_the_factor(longest, share, factor, data):
    buffer = max(1, int(share * longest))
    lengths = sorted(data.draw(st.lists(st.integers(0, longest), max_size=6))) + [longest]
    penalty = overlong_penalty(torch.tensor(lengths), longest, buffer, factor)
    free = torch.tensor(lengths) <= longest - buffer
    assert (penalty[free] == 0).all() and (penalty[~free] < 0).all()
    assert (penalty.diff() <= 0).all() and penalty[-1].item() == pytest.approx(-factor, rel=1e-6)
    close(penalty[~free].double(), (-factor * (torch.tensor(lengths)[~free] - longest + buffer).double() / buffer), 1e-6)
    assert (overlong_penalty(torch.tensor(lengths), longest, 0, factor) == 0).all()
