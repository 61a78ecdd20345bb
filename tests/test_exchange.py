"""Every quantity of the analysis against an example worked by hand."""

import doctest
import math

import numpy as np
import pytest
import torch

from rlvr.analysis import exchange
from rlvr.analysis.exchange import (
    CATEGORIES,
    by_quantile,
    category,
    dependence,
    drop_shares,
    ends_and_middle,
    largest,
    log_odds,
    logit_gradient_norm,
    low_half,
    other_script,
    over_represented,
    overlaps,
    position_profile,
    rank_correlation,
    relative_positions,
    share_over,
    slope_error,
    stage_slopes,
    token_shift,
    unsolved,
    within,
)


def test_the_examples_in_the_docstrings():
    result = doctest.testmod(exchange)
    assert result.failed == 0 and result.attempted > 8


def test_slopes_on_either_side():
    assert stage_slopes([0.0, 1.0, 2.0, 2.0, 2.5, 3.0], 3) == (1.0, 0.5)
    before, after = stage_slopes([5.0, 4.0], 1)
    assert math.isnan(before) and math.isnan(after)


def test_the_error_of_a_slope_by_hand():
    """0, 2, 1, 3: slope 0.8, rests -0.3, 0.9, -0.9, 0.3: squares 1.8 over 2 degrees of freedom, over 5 squares of x."""
    assert slope_error([0.0, 2.0, 1.0, 3.0]) == pytest.approx(math.sqrt(1.8 / 2 / 5), abs=1e-6)
    assert slope_error([0.0, 1.0, 2.0]) == 0 and math.isnan(slope_error([0.0, 1.0]))


def test_the_drop_by_hand():
    """Two steps. Right: 1.0 -> 0.8 nats, 10 -> 30 tokens; wrong: 3.0 -> 2.0 nats, 30 -> 10 tokens.

    Mean entropy: (10 + 90) / 40 = 2.5, then (24 + 20) / 40 = 1.1: a fall of 1.4. Share of right tokens: 1/4 -> 3/4, mean 1/2. So right
    gives 0.5 * 0.2 = 0.1, wrong 0.5 * 1.0 = 0.5, and the mix (3/4 - 1/4) * (2.5 - 0.9) = 0.8.
    """
    drop = drop_shares([1.0, 0.8], [3.0, 2.0], [10, 30], [30, 10])
    assert drop == pytest.approx({"total": 1.4, "right": 0.1, "wrong": 0.5, "mix": 0.8, "wrong_share": 0.5 / 0.6})


def test_the_parts_of_the_drop_add_up_over_many_steps():
    rng = np.random.default_rng(0)
    right, wrong, a, b = rng.random(30), rng.random(30) + 1, rng.integers(1, 50, 30), rng.integers(1, 50, 30)
    mean = (a * right + b * wrong) / (a + b)
    drop = drop_shares(right, wrong, a, b)
    assert drop["total"] == pytest.approx(mean[0] - mean[-1])
    assert drop["total"] == pytest.approx(drop["right"] + drop["wrong"] + drop["mix"])


def test_no_drop_has_no_share():
    assert math.isnan(drop_shares([1.0, 1.0], [1.0, 2.0], [1, 1], [1, 1])["wrong_share"])


def test_token_shift_by_hand():
    shift = token_shift([(7, 1.0), (7, 3.0), (8, 0.5), (9, 0.5)], [(7, 0.5), (10, 0.1)])
    assert shift[7] == {"count_before": 2, "share_before": 0.5, "entropy_before": 2.0, "count_after": 1, "share_after": 0.5,
                        "entropy_after": 0.5}  # fmt: skip
    assert shift[8]["share_after"] == 0 and math.isnan(shift[8]["entropy_after"])
    assert shift[10]["share_before"] == 0 and math.isnan(shift[10]["entropy_before"])


@pytest.mark.parametrize(
    "prompt, completion, mixed",
    [
        ("How many?", "It is 5, α = 3, é.", False),
        ("How many?", "Итак 5", True),
        ("Сколько?", "Итак 5", False),
        ("How many?", "五", True),
        ("How many?", "ℝ, ℓ, µ", False),
        ("How many?", "", False),
    ],
)
def test_language_mixing(prompt, completion, mixed):
    assert other_script(prompt, completion) is mixed


def test_gradient_length_is_that_of_autograd():
    z = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    z.log_softmax(0)[2].backward()
    p = z.detach().softmax(0)
    assert logit_gradient_norm(p[2], p.square().sum()).item() == pytest.approx(z.grad.norm().item(), rel=1e-12)
    assert logit_gradient_norm(np.float64(1.0), np.float64(1.0)) == 0
    assert logit_gradient_norm(np.float64(0.0), np.float64(1.0)) == pytest.approx(math.sqrt(2))


def test_the_change_of_log_odds_is_that_of_the_probability_over_its_slope():
    p = np.array([0.5, 0.9, 0.999])
    change = log_odds(np.log(p + 1e-6 * p * (1 - p))) - log_odds(np.log(p))
    assert change == pytest.approx([1e-6] * 3, rel=1e-3)
    assert np.isfinite(log_odds(np.array([0.0], np.float32))).all()


def test_ranks_inside_strata():
    """Ties of the stratum stay together, however many."""
    assert within(np.array([1.0, 1.0, 9.0, 9.0]), np.array([5.0, 4.0, 30.0, 40.0]), bins=2).tolist() == [1, 0.5, 0.5, 1]
    assert within(np.ones(4), np.array([3.0, 1.0, 2.0, 4.0])).tolist() == [0.75, 0.25, 0.5, 1]


def test_dependence_has_no_bias():
    """The same distribution for both ways: 0 on average, though half the answers differ; a certain one and a toss-up: a quarter."""
    rng = np.random.default_rng(0)
    alike, other = (np.mean([dependence(rng.random(8) < p, rng.random(8) < 0.5) for _ in range(4000)]) for p in (0.5, 1.1))
    assert alike == pytest.approx(0, abs=0.006) and other == pytest.approx(0.25, abs=0.012)
    assert dependence("7777", "8888") == 1 and dependence([None] * 4, [None] * 4) == 0


def test_share_over():
    assert share_over(np.array([0.06, -0.06, 0.05, 0.0]), 0.05) == 0.5
    assert math.isnan(share_over(np.array([]), 0.05))


def test_quantile_groups():
    x, y = by_quantile(np.array([4.0, 1.0, 3.0, 2.0]), np.array([40.0, 10.0, 30.0, 20.0]), bins=2)
    assert x.tolist() == [1.5, 3.5] and y.tolist() == [15, 35]


def test_rank_correlation_with_ties():
    """Ranks 1.5, 1.5, 3 and 1, 2, 3: covariance 0.75 of sqrt(0.75) * 1 (sample): 0.866."""
    assert rank_correlation(np.array([5.0, 5.0, 9.0]), np.array([1.0, 2.0, 30.0])) == pytest.approx(math.sqrt(0.75))
    assert rank_correlation(np.arange(9.0), -(np.arange(9.0) ** 3)) == -1
    assert math.isnan(rank_correlation(np.ones(4), np.arange(4.0)))


def test_the_largest_changes():
    change = np.array([0.1, -0.5, 0.2, 0.0])
    assert largest(change, 0.5).tolist() == [False, True, True, False]
    assert largest(change, 0.01).tolist() == [False, True, False, False]  # at least one


def test_over_representation():
    chosen, member = np.array([True, True, False, False]), np.array([True, False, False, False])
    assert over_represented(chosen, member) == (0.5, 0.25)


@pytest.mark.parametrize(
    "token, kind",
    [("12", 0), ("+", 0), (" = ", 0), ("\\boxed{", 0), ("\\frac", 0), ("frac", 0), ("}", 0), ("-", 0), (" Then", 1), ("Next,", 1), ("because", 1),
     (" think", 2), ("Wait", 2), ("Let", 2), (".", 3), ("", 3), (" starts", 3), ("well-known", 3), ("refraction", 3)],
)  # fmt: skip
def test_categories(token, kind):
    assert category(token) == CATEGORIES[kind]


def test_the_low_half():
    assert low_half(np.array([0.3, 0.1, 0.2])).tolist() == [False, True, False]


def test_relative_positions():
    assert relative_positions(4).tolist() == [0, 0.25, 0.5, 0.75]
    assert relative_positions(0).tolist() == []


def test_position_profile():
    profile = position_profile(np.array([0.0, 0.1, 0.99]), np.array([1.0, 3.0, 5.0]), bins=3)
    assert profile[0] == 2 and math.isnan(profile[1]) and profile[2] == 5


def test_ends_and_middle():
    r, h = np.array([0.0, 0.05, 0.2, 0.3, 0.69, 0.7, 0.9]), np.array([1.0, 3.0, 99.0, 4.0, 6.0, 99.0, 7.0])
    assert ends_and_middle(r, h) == (2.0, 5.0, 7.0)


def test_unsolved_sets():
    sets = {"base": unsolved([0, 0, 3, 1]), "run": unsolved([0, 2, 0, 1]), "other": unsolved([0, 1, 1, 1])}
    assert sets == {"base": {0, 1}, "run": {0, 2}, "other": {0}}
    assert overlaps(sets) == {("base",): 1, ("run",): 1, ("base", "run", "other"): 1}
