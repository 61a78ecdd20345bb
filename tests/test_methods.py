"""Further methods and shams: numbers by hand, grpo at strength 0, what each may never do."""

import pytest
import torch

from rlvr.advantage import METHODS, position_bonus, ppl_weights, shape
from rlvr.config import STRENGTHS, TrainConfig
from rlvr.methods import permuted

NAN = float("nan")
# At these each of them is grpo.
NOTHING = dict(forks_share=1.0, entropy_adv_alpha=0.0, clip_cov_share=0.0, psr_weight=1.0, dr_grpo_power=0.0, ppl_sham_alpha=0.0,
               pos_sham_alpha=0.0)  # fmt: skip
OURS = ("forks", "entropy-adv", "clip-cov", "psr-nsr", "dr-grpo", "ppl-sham", "pos-sham")


def batch(seed=0, rows=8, longest=9):
    """Two groups, unequal lengths, garbage at the padding, one row that was not scored: what shape() takes."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (rows,), generator=g)
    lengths[0] = longest
    mask = torch.arange(longest) < lengths[:, None]
    old_logp, entropy = (x.masked_fill(~mask, NAN) for x in (-3 * torch.rand(rows, longest, generator=g), torch.rand(rows, longest, generator=g)))
    group = torch.arange(rows) % 2
    advantages, rewards = torch.linspace(-1.5, 1.5, rows), torch.linspace(-1, 1, rows)
    advantages[3], rewards[3] = 0.0, NAN
    return (advantages, old_logp, mask, group), dict(entropy=entropy, rewards=rewards, step=7)


@pytest.mark.parametrize("method", [*OURS, "ppl+forks", "dr-grpo+pos-sham+clip-cov"])
def test_without_strength_it_is_grpo_bit_for_bit(method):
    (advantages, *rest), more = batch()
    shaped = shape(method, advantages, *rest, **more, **NOTHING, ppl_alpha=0.0)
    assert torch.equal(shaped, shape("grpo", advantages, *rest))


@pytest.mark.parametrize("method", OURS)
def test_at_any_strength_padding_stays_0_nothing_is_nan_and_the_batch_is_left_alone(method):
    for seed in range(20):
        rows, more = batch(seed)
        before = [x.clone() for x in (*rows, *more.values()) if isinstance(x, torch.Tensor)]
        for strong in ({}, {name: 3.0 for name in NOTHING}):
            shaped = shape(method, *rows, **more, **strong)
            assert shaped.isfinite().all() and (shaped[~rows[2]] == 0).all() and (shaped[3] == 0).all()
        after = [x for x in (*rows, *more.values()) if isinstance(x, torch.Tensor)]
        assert all(torch.equal(a.nan_to_num(9), b.nan_to_num(9)) for a, b in zip(before, after))


def test_every_method_says_what_it_reads_and_has_a_source():
    for name in OURS:
        assert METHODS[name].strengths and ("arXiv" in METHODS[name].__doc__ or "Ours." in METHODS[name].__doc__)
        rows, more = batch()
        needed = {key: more[key] for key in METHODS[name].reads.split() if key in more}
        shaped = shape(name, *rows, **more)
        unread = (rows[0], rows[1] if "old_logp" in METHODS[name].reads else rows[1] - 1, *rows[2:])
        if "rewards" in needed:
            assert torch.equal(shape(name, *unread, **needed), shaped)
    assert all(hasattr(TrainConfig(), name) and name in STRENGTHS for name in NOTHING)


# -- by hand ----------------------------------------------------------------------------------------------------------------------------

A = torch.tensor([2.0, -1.0])
MASK = torch.tensor([[True, True, True], [True, True, False]])
GROUP = torch.tensor([0, 0])


def by_hand(method, old_logp=torch.zeros(2, 3), **settings):
    return shape(method, A, old_logp, MASK, GROUP, **settings)


def test_forks_by_hand():
    """Of 5 tokens the 2 of highest entropy (0.4 of them) are 0.9 and 0.7; what stands in the padding does not count."""
    entropy = torch.tensor([[0.1, 0.9, 0.3], [0.7, 0.2, 99.0]])
    assert by_hand("forks", entropy=entropy, forks_share=0.4).tolist() == [[0, 2, 0], [-1, 0, 0]]
    assert by_hand("forks", entropy=entropy, forks_share=0.0).tolist() == [[0, 2, 0], [0, 0, 0]], "one token at least"
    tie = torch.tensor([[0.7, 0.7, 0.1], [0.7, 0.2, 0.0]])
    assert by_hand("forks", entropy=tie, forks_share=0.2).tolist() == [[2, 2, 0], [-1, 0, 0]], "equal ones stay together"


def test_entropy_adv_by_hand():
    """0.4 H, at most |A| / 2: of row 0 at most 1, of row 1 at most 0.5. It is added to wrong answers too, so they are pushed down less."""
    entropy = torch.tensor([[0.5, 5.0, 0.0], [1.0, 5.0, NAN]])
    expected = torch.tensor([[2.2, 3.0, 2.0], [-0.6, -0.5, 0.0]])
    torch.testing.assert_close(by_hand("entropy-adv", entropy=entropy), expected)
    torch.testing.assert_close(by_hand("entropy-adv", entropy=entropy, entropy_adv_kappa=4.0)[0], torch.tensor([2.2, 2.5, 2.0]))
    grown = by_hand("entropy-adv", entropy=entropy.clone().requires_grad_())
    assert not grown.requires_grad


@pytest.mark.parametrize("first", ["forks", "clip-cov", "psr-nsr", "dr-grpo", "ppl", "pos"])
def test_entropy_adv_after_another_method_turns_no_sign_and_teaches_no_token_that_it_left_out(first):
    rows, more = batch()
    more["rewards"] = more["rewards"] / 10  # a group whose rewards hardly differ
    before = shape(first, *rows, **more, clip_cov_share=0.5, clip_cov_low=-5.0)
    after = shape(f"{first}+entropy-adv", *rows, **more, clip_cov_share=0.5, clip_cov_low=-5.0)
    assert torch.equal(after.sign(), before.sign()) and not torch.equal(after, before)


def test_clip_cov_by_hand():
    """logp -1, -1, -6 and -1, -1: mean -2. A 2, 2, 2, -1, -1: mean 0.8. cov 1.2, 1.2, -4.8 and -1.8, -1.8."""
    old_logp = torch.tensor([[-1.0, -1.0, -6.0], [-1.0, -1.0, NAN]])
    shaped = by_hand("clip-cov", old_logp, step=1, clip_cov_share=0.4)
    assert shaped.tolist() == [[0, 0, 2], [-1, -1, 0]]
    one = by_hand("clip-cov", old_logp, step=1, clip_cov_share=0.2)
    assert sorted(one[0, :2].tolist()) == [0, 2] and one[1].tolist() == [-1, -1, 0], "a fifth of five tokens"
    assert torch.equal(one, by_hand("clip-cov", old_logp, step=1, clip_cov_share=0.2)), "drawn by the step"
    assert len({str(by_hand("clip-cov", old_logp, step=s, clip_cov_share=0.2)) for s in range(20)}) == 2
    assert torch.equal(by_hand("clip-cov", old_logp, step=1, clip_cov_share=1.0, clip_cov_low=1.3), by_hand("grpo"))
    assert torch.equal(by_hand("clip-cov", old_logp, step=1, clip_cov_share=1.0, clip_cov_high=1.1), by_hand("grpo"))


def test_psr_nsr_by_hand():
    torch.testing.assert_close(by_hand("psr-nsr"), torch.tensor([[0.2, 0.2, 0.2], [-1.0, -1.0, 0.0]]))


def test_dr_grpo_by_hand():
    """Rewards 1, 0, 0, 0: mean 0.25, so 0.75 and -0.25; 1, 1, 0: mean 2/3. The one that was not scored is in no mean."""
    from rlvr.advantage import grpo_advantages

    rewards, group = torch.tensor([1.0, 0, 0, 0, 1, 1, 0, NAN]), torch.tensor([0, 0, 0, 0, 5, 5, 5, 5])
    mask, logp = torch.ones(8, 1, dtype=torch.bool), torch.zeros(8, 1)
    shaped = shape("dr-grpo", grpo_advantages(rewards, group), logp, mask, group, rewards=rewards)[:, 0]
    torch.testing.assert_close(shaped, torch.tensor([0.75, -0.25, -0.25, -0.25, 1 / 3, 1 / 3, -2 / 3, 0.0]))


# -- shams ------------------------------------------------------------------------------------------------------------------------------


def test_the_sham_of_ppl_has_the_factors_of_ppl_dealt_out_anew_in_each_group():
    (advantages, old_logp, mask, group), more = batch(rows=16)
    advantages, more["rewards"] = torch.ones(16), torch.ones(16)
    factors = ppl_weights(old_logp, mask, group, 0.2)
    sham = shape("ppl-sham", advantages, old_logp, mask, group, **more)[:, 0]
    for g in (0, 1):
        assert torch.equal(sham[group == g].sort().values, factors[group == g].sort().values)
    assert not torch.equal(sham, factors)
    other = shape("ppl-sham", advantages, old_logp, mask, group, **more | dict(step=8))[:, 0]
    assert not torch.equal(sham, other), "another step, another deal"


def test_the_sham_of_pos_has_the_bonus_of_pos_dealt_out_anew_in_each_row():
    (advantages, old_logp, mask, group), more = batch()
    bonus = position_bonus(advantages, mask, 0.4)
    sham = shape("pos-sham", advantages, old_logp, mask, group, **more) - advantages[:, None] * mask
    torch.testing.assert_close(sham.sort(1).values, bonus.sort(1).values)
    assert not torch.allclose(sham[0], bonus[0])


def test_a_deal_is_fair():
    """Each value is as often at each place: of 3 values in 3,000 deals, 1,000 times (standard deviation 26)."""
    generator, counts = torch.Generator().manual_seed(0), torch.zeros(3, 3)
    for _ in range(3000):
        for place, value in enumerate(permuted(torch.arange(3), torch.zeros(3), generator).tolist()):
            counts[place, value] += 1
    assert ((counts - 1000).abs() < 130).all()


def test_shams_disturb_no_other_draws():
    rows, more = batch()
    torch.manual_seed(3)
    for name in ("ppl-sham", "pos-sham", "clip-cov"):
        shape(name, *rows, **more)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
