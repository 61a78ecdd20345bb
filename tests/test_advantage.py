"""Advantages and the two shaping methods, against numbers worked out by hand."""

import math

import pytest
import torch

from rlvr.advantage import (
    METHODS,
    STRENGTHS,
    Strength,
    grpo_advantages,
    keep_sign,
    method,
    method_parts,
    position_bonus,
    ppl_weights,
    shape,
)

D = torch.float64
NAN = float("nan")


def ones(*lengths):
    """A mask from lengths: ones(2, 3) is [[1, 1, 0], [1, 1, 1]]."""
    return torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]


def close(a, b, tolerance=1e-6):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), rtol=0, atol=tolerance)


# -- group-normalised advantages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", range(1, 8))
def test_advantages_of_k_right_out_of_8(k):
    # k times +1 and 8 - k times -1: the squared differences from the mean add up to k * (8 - k) / 2, and the divisor is 7
    mean, std = (2 * k - 8) / 8, math.sqrt(k * (8 - k) / 14) + 1e-6
    rewards = torch.tensor([1.0] * k + [-1.0] * (8 - k), dtype=D)
    close(grpo_advantages(rewards, torch.zeros(8, dtype=torch.long)), [(1 - mean) / std] * k + [(-1 - mean) / std] * (8 - k), 1e-12)


# The same as the paper prints it: k, advantage of a right and of a wrong completion
TABLE = [
    (1, 2.475, -0.354), (2, 1.620, -0.540), (3, 1.208, -0.725), (4, 0.935, -0.935),
    (5, 0.725, -1.208), (6, 0.540, -1.620), (7, 0.354, -2.475),
]  # fmt: skip


@pytest.mark.parametrize("k, right, wrong", TABLE)
def test_the_printed_table_of_advantages(k, right, wrong):
    rewards = torch.tensor([1.0] * k + [-1.0] * (8 - k))
    close(grpo_advantages(rewards, torch.zeros(8, dtype=torch.long)), [right] * k + [wrong] * (8 - k), 6e-4)


def test_divides_by_the_sample_standard_deviation_plus_a_millionth():
    # rewards 0 and 1e-6: mean 0.5e-6, sample deviation sqrt(2 * 0.25e-12) = 0.7071e-6, so A = 0.5 / 1.7071. Without the 1e-6: 0.7071
    a = 0.5 / (math.sqrt(0.5) + 1)
    close(grpo_advantages(torch.tensor([0.0, 1e-6], dtype=D), torch.tensor([0, 0])), [-a, a], 1e-9)
    # rewards 0, 1, 5: mean 2, squared differences 4 + 1 + 9 = 14, divisor 2
    std = math.sqrt(7) + 1e-6
    close(grpo_advantages(torch.tensor([0.0, 1, 5], dtype=D), torch.tensor([0, 0, 0])), [-2 / std, -1 / std, 3 / std], 1e-12)


@pytest.mark.parametrize("reward", [0.0, 1.0, -1.0, 0.1, -0.7])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_a_group_of_equal_rewards_gets_exactly_zero(reward, size):
    """Three rewards of 0.1 have a float32 mean that is not 0.1: dividing what is left by 1e-6 would make an advantage out of nothing."""
    advantages = grpo_advantages(torch.full((size,), reward), torch.zeros(size, dtype=torch.long))
    assert torch.equal(advantages, torch.zeros(size))


def test_groups_are_any_integers_in_any_order():
    rewards = torch.tensor([1.0, -1, 1, -1, -1, 1, 0.5])
    group = torch.tensor([907, -3, -3, 907, -3, 12, 12])
    # by hand: group 907 has rows 0, 3 (+-1/sqrt 2); group -3 has rows 1, 2, 4 (two wrong, one right: mean -1/3, std sqrt(4/3)); group 12
    # has rows 5, 6 (1 and 0.5, +-1/sqrt 2)
    a, b, c = 1 / math.sqrt(2), (4 / 3) / math.sqrt(4 / 3), (2 / 3) / math.sqrt(4 / 3)
    close(grpo_advantages(rewards, group), [a, -c, b, -a, -c, a, -a], 5e-6)


def test_permuting_the_rows_permutes_the_advantages():
    g = torch.Generator().manual_seed(0)
    rewards, group = torch.randn(24, generator=g, dtype=D), torch.randint(0, 5, (24,), generator=g)
    order = torch.randperm(24, generator=g)
    close(grpo_advantages(rewards[order], group[order]), grpo_advantages(rewards, group)[order], 1e-12)


def test_two_groups_of_the_same_prompt_stay_apart():
    """A problem drawn twice in a step is two groups. Here the first is all right: nothing to learn from it, whatever the second did."""
    rewards = torch.tensor([1.0, 1, 1, -1])
    apart = grpo_advantages(rewards, torch.tensor([0, 0, 1, 1]))
    close(apart, [0, 0, 1 / math.sqrt(2), -1 / math.sqrt(2)], 2e-6)
    assert not torch.allclose(apart, grpo_advantages(rewards, torch.tensor([0, 0, 0, 0])), atol=0.1)


# -- perplexity weights -----------------------------------------------------------------------------------------------------------------


def weights_of(log_ppl, alpha=0.01, direction="low", group=None):
    """ppl_weights of one-token completions with these log-perplexities."""
    log_ppl = torch.tensor(log_ppl, dtype=D)
    group = torch.zeros(len(log_ppl), dtype=torch.long) if group is None else torch.tensor(group)
    return ppl_weights(-log_ppl[:, None], ones(*[1] * len(log_ppl)), group, alpha, direction)


@pytest.mark.parametrize("direction", ["low", "high"])
@pytest.mark.parametrize("value", [0.1, 2.3, 0.0])
def test_equal_perplexities_weigh_exactly_one(value, direction):
    old_logp = torch.full((3, 4), -value)
    weights = ppl_weights(old_logp, ones(4, 4, 4), torch.zeros(3, dtype=torch.long), 0.2, direction)
    assert torch.equal(weights, torch.ones(3))


def test_weights_use_the_population_standard_deviation():
    # log-perplexities 1, 2, 3: mean 2, population variance 2/3. (The sample deviation would give w = -1, 0, 1.)
    w = 1 / math.sqrt(2 / 3)
    close(weights_of([1.0, 2.0, 3.0], 0.1), [1 + 0.1 * w, 1, 1 - 0.1 * w], 1e-12)


def test_low_arm_favours_low_perplexity_and_the_high_arm_mirrors_it():
    low, high = weights_of([1.0, 2.0, 4.0], 0.05, "low"), weights_of([1.0, 2.0, 4.0], 0.05, "high")
    assert low[0] > 1 > low[2] and high[0] < 1 < high[2]
    close(low + high, [2.0, 2.0, 2.0], 1e-12)


def test_an_outlier_is_left_out_of_mean_and_deviation_but_gets_a_weight():
    # 1 2 3 4 100: quartiles 2 and 4, range 2, so beyond -1 and 7 is an outlier. Kept: 1 2 3 4, mean 2.5, population std sqrt(1.25).
    s = math.sqrt(1.25)
    w = [(x - 2.5) / s for x in (1, 2, 3, 4)]
    close(weights_of([1.0, 2, 3, 4, 100], 0.01), [*(1 - 0.01 * x for x in w), 0.8], 1e-12)  # w of 100 is 87: clamped
    # With alpha 0.001 the outlier's weight is not clamped: 1 - 0.001 * 97.5 / sqrt(1.25)
    close(weights_of([1.0, 2, 3, 4, 100], 0.001)[-1], 1 - 0.001 * 97.5 / s, 1e-12)
    # 8 is beyond it too, by less
    close(weights_of([1.0, 2, 3, 4, 8], 0.01)[-1], 1 - 0.01 * 5.5 / s, 1e-12)
    # 7 stands on the fence itself and stays: all five kept, mean 3.4, population variance (5.76 + 1.96 + .16 + .36 + 12.96) / 5
    close(weights_of([1.0, 2, 3, 4, 7], 0.01)[-1], 1 - 0.01 * 3.6 / math.sqrt(4.24), 1e-12)


def test_perplexities_that_are_equal_but_for_an_outlier_or_for_rounding_are_not_divided_by_their_deviation():
    # what is kept has deviation 0: the distance of the outlier counts as it is, 1 - 0.01 * 3
    close(weights_of([2.0] * 7 + [5.0], 0.01), [1.0] * 7 + [0.97], 1e-12)
    close(weights_of([2.0, 2.0, 2.0 + 1e-9, 2.0 - 1e-9], 0.01), [1.0] * 4, 1e-10)  # not one deviation apart


@pytest.mark.parametrize("distance, weight", [(19.0, 0.81), (20.0, 0.8), (21.0, 0.8), (-19.0, 1.19), (-21.0, 1.2)])
def test_the_weight_is_clamped_from_twenty_deviations_on(distance, weight):
    # -1 1 -1 1 -1 1 and an outlier: what is kept has mean 0 and population deviation 1, so w of the outlier is its distance
    close(weights_of([-1.0, 1, -1, 1, -1, 1, distance], 0.01)[-1], weight, 1e-12)


def test_log_perplexity_is_the_mean_over_the_rows_own_tokens_stop_token_included():
    old_logp = torch.tensor([[-1.0, -1, -4], [-1, -3, NAN], [-3, 1e9, -float("inf")]], dtype=D)  # means -2, -2, -3
    weights = ppl_weights(old_logp, ones(3, 2, 1), torch.zeros(3, dtype=torch.long), 0.1)
    # log-perplexities 2, 2, 3: mean 7/3, population std sqrt(2)/3. (Without the last token of each row: 1, 1, 0.)
    close(weights, [1 + 0.1 / math.sqrt(2), 1 + 0.1 / math.sqrt(2), 1 - 0.2 / math.sqrt(2)], 1e-12)


def test_perplexities_are_compared_within_the_group_alone():
    both = weights_of([1.0, 10, 2, 20, 3, 30], 0.01, group=[4, 8, 4, 8, 4, 8])
    close(both[0::2], weights_of([1.0, 2, 3], 0.01), 1e-12)
    close(both[1::2], weights_of([10.0, 20, 30], 0.01), 1e-12)


def test_a_row_without_tokens_gets_a_finite_weight():
    mask = torch.tensor([[True, True], [False, False]])
    assert ppl_weights(torch.full((2, 2), NAN).masked_fill(mask, -1.0), mask, torch.tensor([0, 0]), 0.1).isfinite().all()


def test_no_gradient_passes_through_the_weights():
    old_logp = torch.randn(3, 2, requires_grad=True)
    assert not ppl_weights(old_logp, ones(2, 2, 2), torch.tensor([0, 0, 0]), 0.1).requires_grad


# -- position bonus ---------------------------------------------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_bonus_follows_the_sigmoid_of_the_relative_position():
    # a completion of 4 tokens: r = 0, 1/4, 1/2, 3/4
    expected = [0.1 * sigmoid(15 * (r - 0.5)) for r in (0, 0.25, 0.5, 0.75)]
    bonus = position_bonus(torch.tensor([2.0], dtype=D), ones(4), 0.1)
    close(bonus, [expected], 1e-12)
    close(bonus[0, 2], 0.05, 1e-12)  # r = 1/2: half of alpha
    close(bonus[0] / 0.1, [0.0006, 0.023, 0.5, 0.977], 6e-4)  # the table of the paper's code


def test_each_row_counts_its_own_length_and_gets_nothing_outside_the_mask():
    bonus = position_bonus(torch.tensor([2.0, 2.0], dtype=D), ones(2, 4), 0.1)
    close(bonus[0], [0.1 * sigmoid(-7.5), 0.05, 0, 0], 1e-12)  # L = 2: r = 0, 1/2
    close(bonus[1, 2], 0.05, 1e-12)  # L = 4: r of the third token is 1/2


def test_bonus_has_the_sign_of_the_advantage_and_zero_stays_zero():
    bonus = position_bonus(torch.tensor([2.0, -2.0, 0.0], dtype=D), ones(4, 4, 4), 0.1)
    assert (bonus[0] > 0).all()
    close(bonus[1], (-bonus[0]).tolist(), 0)
    close(bonus[2], [0, 0, 0, 0], 0)


def test_bonus_is_capped_at_half_the_advantage():
    bonus = position_bonus(torch.tensor([0.354, 0.08, -0.08], dtype=D), ones(4, 4, 4), 0.1)
    close(bonus[0, 3], 0.1 * sigmoid(3.75), 1e-12)  # 0.0977 < 0.177: the cap does nothing
    close(bonus[1], [0.1 * sigmoid(-7.5), 0.1 * sigmoid(-3.75), 0.04, 0.04], 1e-12)
    close(bonus[2], (-bonus[1]).tolist(), 0)


def test_early_arm_mirrors_the_late_arm():
    late = position_bonus(torch.tensor([2.0], dtype=D), ones(4), 0.1)
    early = position_bonus(torch.tensor([2.0], dtype=D), ones(4), 0.1, "early")
    close(early, [[0.1 * sigmoid(15 * (0.5 - r)) for r in (0, 0.25, 0.5, 0.75)]], 1e-12)
    close(late + early, [[0.1] * 4], 1e-12)


def test_unknown_directions_raise():
    with pytest.raises(ValueError, match="sideways"):
        position_bonus(torch.ones(1), ones(1), 0.1, "sideways")
    with pytest.raises(ValueError, match="sideways"):
        ppl_weights(torch.ones(1, 1), ones(1), torch.zeros(1), 0.1, "sideways")


# -- the methods ------------------------------------------------------------------------------------------------------------------------

SHAPED = ["ppl", "pos", "ppl+pos", "pos+ppl"]


def example():
    """Two groups of three rows, one advantage exactly 0, unequal lengths, garbage at the padding."""
    g = torch.Generator().manual_seed(1)
    mask = ones(5, 2, 4, 1, 3, 5)
    old_logp = (-2 * torch.rand(6, 5, generator=g)).masked_fill(~mask, NAN)
    return torch.tensor([1.1, -0.6, -0.5, 0.9, -0.9, 0.0]), old_logp, mask, torch.tensor([0, 0, 0, 1, 1, 1])


def test_grpo_repeats_the_advantage_of_the_row_on_its_tokens():
    shaped = shape("grpo", torch.tensor([1.5, -0.5]), torch.zeros(2, 3), ones(2, 3), torch.tensor([0, 0]))
    assert torch.equal(shaped, torch.tensor([[1.5, 1.5, 0.0], [-0.5, -0.5, -0.5]]))


@pytest.mark.parametrize("method", SHAPED)
@pytest.mark.parametrize("arms", [("low", "late"), ("high", "early")])
def test_a_method_of_strength_zero_is_bit_for_bit_grpo(method, arms):
    zero = {name: 0.0 for name, strength in STRENGTHS.items() if isinstance(strength.default, float)}
    shaped = shape(method, *example(), **zero | {"ppl_direction": arms[0], "pos_direction": arms[1]})
    assert torch.equal(shaped, shape("grpo", *example()))


@pytest.mark.parametrize("method", SHAPED)
def test_a_method_at_its_default_strength_changes_values_and_keeps_signs(method):
    """The released code computes the perplexity weight and never applies it. This test would have told."""
    plain, shaped = shape("grpo", *example()), shape(method, *example())
    mask = example()[2]
    changed = (plain != shaped) & mask
    assert changed[:5].any(1).all(), "every row with an advantage changes somewhere"
    assert torch.equal(plain.sign(), shaped.sign())
    assert torch.equal(shaped[~mask], torch.zeros_like(shaped[~mask]))


@pytest.mark.parametrize("direction", ["low", "high"])
def test_a_factor_that_is_computed_and_dropped_is_bit_for_bit_grpo(direction):
    dropped = shape("ppl", *example(), ppl_alpha=0.5, ppl_direction=direction, ppl_apply=False)
    assert torch.equal(dropped, shape("grpo", *example()))
    both = shape("ppl+pos", *example(), ppl_alpha=0.5, ppl_apply=False)
    assert torch.equal(both, shape("pos", *example()))


def test_one_sign_is_kept():
    shaped = torch.tensor([[1.5, 0.0], [-0.5, -2.0]])
    assert torch.equal(keep_sign(shaped, "all"), shaped)
    assert keep_sign(shaped, "positive").tolist() == [[1.5, 0.0], [0.0, 0.0]]
    assert keep_sign(shaped, "negative").tolist() == [[0.0, 0.0], [-0.5, -2.0]]
    with pytest.raises(ValueError, match="sideways"):
        keep_sign(shaped, "sideways")


def test_methods_are_the_advantage_times_the_weight_and_plus_the_bonus():
    advantages, old_logp, mask, group = example()
    weight, bonus = ppl_weights(old_logp, mask, group, 0.2)[:, None], position_bonus(advantages, mask, 0.1)
    a = advantages[:, None] * mask
    close(shape("ppl", *example(), ppl_alpha=0.2), a * weight)
    close(shape("pos", *example()), a + bonus)
    close(shape("ppl+pos", *example(), ppl_alpha=0.2), a * weight + bonus)
    close(shape("pos+ppl", *example(), ppl_alpha=0.2), (a + bonus) * weight)


def test_strengths_and_directions_reach_the_methods():
    advantages, old_logp, mask, group = example()
    a = advantages[:, None] * mask
    close(shape("ppl", *example(), ppl_alpha=0.3, ppl_direction="high"), a * ppl_weights(old_logp, mask, group, 0.3, "high")[:, None])
    close(shape("pos", *example(), pos_alpha=0.3, pos_direction="early"), a + position_bonus(advantages, mask, 0.3, "early"))


@pytest.mark.parametrize("method", ["gspo", "", "ppl+", "ppl+ppl", "grpo+pos", "PPL"])
def test_an_unknown_method_raises_and_names_the_choices(method):
    with pytest.raises(ValueError, match="grpo, ppl, pos"):
        shape(method, *example())


def test_method_names_split_at_the_plus():
    assert method_parts("ppl+pos") == ["ppl", "pos"] and method_parts("grpo") == ["grpo"]


# -- a declaration ----------------------------------------------------------------------------------------------------------------------


def half_of_some(shaped, advantages, old_logp, mask, group, *, mine_alpha, mine_kind):
    return shaped * (1 - mine_alpha) if mine_kind == "all" else shaped


@pytest.fixture
def mine(monkeypatch):
    monkeypatch.setattr("rlvr.advantage.METHODS", dict(METHODS))
    monkeypatch.setattr("rlvr.advantage.STRENGTHS", dict(STRENGTHS))
    return method("mine", mine_alpha=Strength(0.5, "How much."), mine_kind=Strength("all", "Of what.", ("all", "none")))(half_of_some)


def test_a_declared_method_is_given_its_own_strengths_or_their_defaults(mine):
    plain = shape("grpo", *example())
    assert torch.equal(shape("mine", *example()), plain * 0.5)
    assert torch.equal(shape("mine", *example(), mine_alpha=0.25, pos_alpha=3.0), plain * 0.75)
    assert torch.equal(shape("mine", *example(), mine_kind="none"), plain)
    assert torch.equal(shape("pos+mine", *example()), shape("pos", *example()) * 0.5)


def test_a_strength_that_nobody_declares_is_refused():
    with pytest.raises(ValueError, match="declares the strength mine_alpha. Choose from ppl_alpha, "):
        shape("pos", *example(), mine_alpha=0.5)


def test_a_method_without_a_declaration_is_given_no_strengths(monkeypatch):
    monkeypatch.setitem(METHODS, "half", lambda shaped, advantages, old_logp, mask, group: shaped / 2)
    assert torch.equal(shape("half", *example(), pos_alpha=0.3), shape("grpo", *example()) / 2)


def test_a_method_is_given_what_it_reads_and_nothing_else(monkeypatch):
    monkeypatch.setattr("rlvr.advantage.METHODS", dict(METHODS))

    @method("curious", reads="entropy step")
    def curious(shaped, advantages, old_logp, mask, group, *, entropy, step):
        return shaped * entropy * step

    entropy = torch.rand(6, 5)
    assert torch.equal(shape("curious", *example(), entropy=entropy, step=3), shape("grpo", *example()) * entropy * 3)
    for given, missing in (dict(entropy=entropy), "step"), (dict(step=3), "entropy"):
        with pytest.raises(ValueError, match=f"The method curious needs {missing}"):
            shape("curious", *example(), **given)


def test_what_was_not_scored_takes_no_part_in_the_perplexities_of_its_group():
    """A rambler whose answer could not be checked must not move the factors of the others."""
    mask = ones(3, 3, 3, 3)
    rest, unscored = torch.tensor([[-0.1], [-0.2], [-0.4]]).expand(3, 3), torch.full((1, 3), -0.5)
    rewards, group = torch.tensor([1.0, -1.0, -1.0, NAN]), torch.zeros(4, dtype=torch.long)
    shaped = shape("ppl", grpo_advantages(rewards, group), torch.cat([rest, unscored]), mask, group, rewards=rewards, ppl_alpha=0.1)
    alone = shape("ppl", grpo_advantages(rewards[:3], group[:3]), rest, mask[:3], group[:3], ppl_alpha=0.1)
    assert torch.equal(shaped[:3], alone) and (shaped[3] == 0).all()


@pytest.mark.parametrize("n, dropped", [(2, 0), (3, 0), (4, 1), (5, 1)])
def test_tukeys_rule_in_small_groups(n, dropped):
    """Of two or three values none can be an outlier. Of four or five one far away is left out of mean and standard deviation."""
    old_logp = -torch.tensor([*torch.linspace(1.0, 1.1, n - 1).tolist(), 50.0])[:, None]
    weights = ppl_weights(old_logp, ones(*[1] * n), torch.zeros(n, dtype=torch.long), 0.01)
    near = -old_logp[: n - dropped, 0]
    w = (-old_logp[:, 0] - near.mean()) / near.std(correction=0)
    close(weights, (1 - 0.01 * w).clamp(0.8, 1.2))


def test_a_strength_has_one_method():
    """Two methods with one flag would overwrite each other's default. A method that is declared again may keep its own."""
    from rlvr import advantage

    with pytest.raises(ValueError, match="pos_alpha belongs to the method pos"):
        advantage.method("mine", pos_alpha=advantage.Strength(0.9, "mine"))
    assert advantage.STRENGTHS["pos_alpha"].default == 0.1
    advantage.method("pos", pos_alpha=advantage.STRENGTHS["pos_alpha"])  # declares nothing yet: it decorates


def test_methods_say_whether_they_read_the_old_log_probs():
    from rlvr.advantage import METHODS

    assert {name: METHODS[name].reads for name in ("grpo", "ppl", "pos")} == {"grpo": "", "ppl": "old_logp", "pos": ""}
    logp, changed = -torch.rand(4, 3), -5 * torch.rand(4, 3)
    rest = torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.ones(4, 3, dtype=torch.bool), torch.tensor([0, 0, 1, 1])
    for name in ("grpo", "pos"):
        assert torch.equal(shape(name, rest[0], logp, *rest[1:]), shape(name, rest[0], changed, *rest[1:]))
