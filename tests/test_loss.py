"""The clipped objective, against numbers worked out by hand."""

import math

import pytest
import torch

from rlvr.loss import clipped_loss

D = torch.float64
NAN, INF = float("nan"), float("inf")


def example():
    """2 rows x 3 tokens, the first row one token shorter. Ratios 1.1, 1.5, - / 0.5, 1.0, 0.7; advantages 1, 2, - / -1, 0.5, 2."""
    ratio = torch.tensor([[1.1, 1.5, 1.0], [0.5, 1.0, 0.7]], dtype=D)
    old_logp = torch.tensor([[-1.0, -2, 0], [-0.5, -1.5, -3]], dtype=D)
    logp = (old_logp + ratio.log()).requires_grad_()
    advantages = torch.tensor([[1.0, 2, 0], [-1, 0.5, 2]], dtype=D)
    return logp, old_logp, advantages, torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()


def test_the_worked_example():
    logp, *rest = example()
    loss, stats = clipped_loss(logp, *rest)
    # per token, negated: 1.1 * 1; 1.28 * 2 (clipped high); 0.8 * -1 (clipped low); 1 * 0.5; 0.7 * 2 (not clipped: the ratio is smaller)
    assert loss.item() == pytest.approx(-(1.1 + 2.56 - 0.8 + 0.5 + 1.4) / 5, abs=1e-12)
    assert (int(stats["clipped_low"]), int(stats["clipped_high"])) == (1, 1)
    loss.backward()
    # the gradient by logp is -ratio * A / 5, and 0 where the clip holds
    expected = [[-1.1 / 5, 0, 0], [0, -0.5 / 5, -1.4 / 5]]
    torch.testing.assert_close(logp.grad, torch.tensor(expected, dtype=D), rtol=0, atol=1e-12)


# ratio, advantage, value of the objective, does the token still learn?
CLIPS = [
    (1.5, 1.0, 1.28, False),  # raised enough already
    (1.27, 1.0, 1.27, True),
    (0.5, 1.0, 0.5, True),  # a good token that became rare is still pulled up
    (0.5, -1.0, -0.8, False),  # lowered enough already
    (0.81, -1.0, -0.81, True),
    (1.5, -1.0, -1.5, True),  # a bad token that became likely is still pushed down
    (9.0, -1.0, -9.0, True),  # however likely: there is no third clip
    (3.5, -2.0, -7.0, True),
]


@pytest.mark.parametrize("ratio, advantage, value, learns", CLIPS)
def test_which_tokens_the_clip_stops(ratio, advantage, value, learns):
    logp = torch.tensor([[math.log(ratio)]], dtype=D, requires_grad=True)
    one = torch.ones(1, 1, dtype=D)
    loss, stats = clipped_loss(logp, torch.zeros(1, 1, dtype=D), advantage * one, one.bool())
    loss.backward()
    assert loss.item() == pytest.approx(-value, abs=1e-12)
    assert logp.grad.item() == pytest.approx(-ratio * advantage if learns else 0.0, abs=1e-12)
    assert int(stats["clipped_low"] + stats["clipped_high"]) == int(not learns)


def test_clip_bounds_can_be_set():
    logp = torch.tensor([[math.log(1.15), math.log(0.85)]], dtype=D)
    zero, advantages = torch.zeros(1, 2, dtype=D), torch.tensor([[1.0, -1.0]], dtype=D)
    loss, _ = clipped_loss(logp, zero, advantages, torch.ones(1, 2), clip_low=0.05, clip_high=0.1)
    assert loss.item() == pytest.approx(-(1.1 - 0.95) / 2, abs=1e-12)


def test_the_mean_is_over_tokens_not_over_rows():
    # one token of advantage 1 and three of advantage -1: the token mean is -1/2, the mean of the row means would be 0
    mask = torch.tensor([[1, 0, 0], [1, 1, 1]]).bool()
    loss, _ = clipped_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([[1.0], [-1.0]]).expand(2, 3), mask)
    assert loss.item() == pytest.approx(0.5, abs=1e-7)


def batch_of_8(seed=0):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([7, 1, 3, 6, 2, 7, 5, 4])
    mask = torch.arange(7)[None] < lengths[:, None]
    old_logp = -2 * torch.rand(8, 7, generator=g, dtype=D)
    drift = 0.5 * torch.randn(8, 7, generator=g, dtype=D)
    advantages = torch.randn(8, 7, generator=g, dtype=D)
    return old_logp + drift, old_logp, advantages, mask, -3 * torch.rand(8, 7, generator=g, dtype=D)


@pytest.mark.parametrize("pieces", [1, 2, 4, 8])
def test_micro_batches_with_the_denominator_of_the_whole_add_up_to_the_same_gradient(pieces):
    values, old_logp, advantages, mask, ref_logp = batch_of_8()

    def gradient(splits):
        logp = values.clone().requires_grad_()
        total = 0.0
        for rows in torch.arange(8).chunk(splits):
            entropy = -logp[rows].exp() * logp[rows]
            loss, _ = clipped_loss(
                logp[rows], old_logp[rows], advantages[rows], mask[rows], denominator=int(mask.sum()), ref_logp=ref_logp[rows], kl_coef=0.1,
                entropy=entropy, entropy_coef=0.1,
            )  # fmt: skip
            loss.backward()
            total += loss.item()
        return logp.grad, total

    whole, whole_loss = gradient(1)
    split, split_loss = gradient(pieces)
    torch.testing.assert_close(split, whole, rtol=0, atol=1e-14)
    assert split_loss == pytest.approx(whole_loss, abs=1e-12)
    # and the default denominator is the number of valid tokens given
    default, _ = clipped_loss(values, old_logp, advantages, mask)
    assert default.item() == pytest.approx(clipped_loss(values, old_logp, advantages, mask, denominator=35)[0].item(), abs=1e-14)


@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 1e30, 100.0, -100.0])
@pytest.mark.parametrize("place", ["logp", "old_logp", "advantages", "ref_logp", "entropy"])
def test_whatever_stands_outside_the_mask_changes_nothing(garbage, place):
    values, old_logp, advantages, mask, ref_logp = batch_of_8()

    def loss_and_gradient(spoil):
        inputs = dict(logp=values, old_logp=old_logp, advantages=advantages, ref_logp=ref_logp, entropy=ref_logp.abs())
        inputs = {name: x.clone() for name, x in inputs.items()}
        if spoil:
            inputs[place][~mask] = garbage
        logp = inputs["logp"].requires_grad_()
        entropy = inputs.pop("entropy")
        loss, stats = clipped_loss(**inputs, mask=mask, kl_coef=0.1, entropy=entropy, entropy_coef=0.1)
        loss.backward()
        return loss.item(), logp.grad, [v.item() for v in stats.values()]

    loss, grad, stats = loss_and_gradient(True)
    clean_loss, clean_grad, clean_stats = loss_and_gradient(False)
    assert loss == clean_loss and torch.equal(grad, clean_grad) and stats == clean_stats
    assert torch.equal(grad[~mask], torch.zeros_like(grad[~mask]))


def test_a_batch_without_a_valid_token_has_zero_loss_and_gradient():
    logp = torch.full((2, 3), NAN).requires_grad_()
    nothing = torch.zeros(2, 3)
    loss, stats = clipped_loss(logp, nothing, nothing + 1, nothing.bool(), ref_logp=nothing, kl_coef=1.0, entropy=nothing, entropy_coef=1.0)
    loss.backward()
    assert loss.item() == 0 and torch.equal(logp.grad, nothing)
    assert all(v.item() == 0 for v in stats.values())


def test_a_loss_near_zero_has_a_gradient():
    """At ratio 1 with centred advantages the printed loss is 0 by construction, and says nothing about learning."""
    logp = torch.full((2, 2), -1.0, requires_grad=True)
    loss, _ = clipped_loss(logp, logp.detach(), torch.tensor([[1.0], [-1.0]]).expand(2, 2), torch.ones(2, 2))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logp.grad, torch.tensor([[-0.25, -0.25], [0.25, 0.25]]))


def test_kl_is_the_k3_estimate_of_the_distance_to_the_reference():
    # reference / policy probabilities 2 and 1/2:  r - 1 - log r = 2 - 1 - log 2  and  1/2 - 1 + log 2
    logp = torch.tensor([[-1.0, -1.0, 5.0]], dtype=D, requires_grad=True)
    ref_logp = torch.tensor([[-1 + math.log(2), -1 - math.log(2), 9.0]], dtype=D)
    zero, mask = torch.zeros(1, 3, dtype=D), torch.tensor([[1, 1, 0]])
    loss, stats = clipped_loss(logp, logp.detach(), zero, mask, ref_logp=ref_logp, kl_coef=0.3)
    loss.backward()
    assert stats["kl"].item() == pytest.approx(0.5, abs=1e-12)  # (1 - log 2) + (log 2 - 1/2), a sum over tokens
    assert loss.item() == pytest.approx(0.3 * 0.5 / 2, abs=1e-12)
    # by logp: -r + 1, so a token that the reference likes more is pulled up
    torch.testing.assert_close(logp.grad, torch.tensor([[-0.3 / 2, 0.3 * 0.5 / 2, 0]], dtype=D), rtol=0, atol=1e-12)


def test_the_entropy_bonus_lowers_the_loss_by_the_mean_entropy():
    zero = torch.zeros(1, 3, dtype=D)
    entropy = torch.tensor([[1.0, 3.0, 50.0]], dtype=D, requires_grad=True)
    loss, _ = clipped_loss(zero, zero, zero, torch.tensor([[1, 1, 0]]), entropy=entropy, entropy_coef=0.1)
    loss.backward()
    assert loss.item() == pytest.approx(-0.1 * 2, abs=1e-12)
    assert torch.equal(entropy.grad < 0, torch.tensor([[True, True, False]]))
