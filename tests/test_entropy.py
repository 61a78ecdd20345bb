"""Entropy, perplexity and branching factor told apart, and the stage detector on made-up curves."""

import math
import random

import pytest
import torch

from rlvr.entropy import branching_factor, entropy_by_correctness, log_perplexity, perplexity, plateau_step, token_entropy

D = torch.float64


# -- entropy ----------------------------------------------------------------------------------------------------------------------------


def entropy_by_definition(logits, temperature):
    """-sum p log p in plain Python floats."""
    top = max(logits)
    weights = [math.exp((z - top) / temperature) for z in logits]
    p = [w / sum(weights) for w in weights]
    return -sum(x * math.log(x) for x in p if x > 0)


@pytest.mark.parametrize("size", [2, 7, 1000])
def test_uniform_logits_have_entropy_log_v(size):
    assert token_entropy(torch.full((size,), 3.7)).item() == pytest.approx(math.log(size), rel=1e-6)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.0])
def test_entropy_by_definition_at_any_temperature(temperature):
    logits = 4 * torch.randn(5, 3, 11, generator=torch.Generator().manual_seed(0))
    expected = [[entropy_by_definition(row, temperature) for row in block] for block in logits.double().tolist()]
    torch.testing.assert_close(token_entropy(logits, temperature).double(), torch.tensor(expected, dtype=D), rtol=0, atol=2e-6)


def test_a_logit_of_minus_infinity_is_probability_zero():
    assert token_entropy(torch.tensor([1.0, -math.inf, 1.0])).item() == pytest.approx(math.log(2), abs=1e-6)
    assert token_entropy(torch.tensor([1.0, -math.inf, -math.inf])).item() == 0


def test_a_masked_logit_leaves_the_gradient_finite():
    logits = torch.tensor([0.5, -math.inf, 1.0], requires_grad=True)
    token_entropy(logits).backward()
    assert logits.grad.isfinite().all() and logits.grad[0] != 0


def test_huge_and_bfloat16_logits_stay_finite():
    assert token_entropy(torch.tensor([1e4, -1e4, 0.0])).item() == 0
    assert token_entropy(torch.zeros(8, dtype=torch.bfloat16)).dtype == torch.float32


def test_entropy_of_right_and_wrong_answers_is_a_mean_over_their_tokens():
    entropy = torch.tensor([[1.0, 2.0, 3.0], [4.0, math.nan, math.nan], [5.0, 7.0, math.nan]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]]).bool()
    right, wrong = entropy_by_correctness(entropy, mask, torch.tensor([True, True, False]))
    assert (right, wrong) == (2.5, 6.0)  # of tokens, not of completions: (1 + 2 + 3 + 4) / 4
    assert math.isnan(entropy_by_correctness(entropy, mask, torch.tensor([True] * 3))[1])


# -- perplexity -------------------------------------------------------------------------------------------------------------------------


def test_perplexity_is_the_exponential_of_the_mean_negative_log_prob():
    logp = torch.tensor([[0.5, 0.125, 0.25], [0.1, 0.2, 7.0]], dtype=D).log()
    logp[1, 2] = math.nan  # outside the mask
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    expected = [(1 / (0.5 * 0.125 * 0.25)) ** (1 / 3), (1 / (0.1 * 0.2)) ** (1 / 2)]  # inverse geometric means
    torch.testing.assert_close(perplexity(logp, mask), torch.tensor(expected, dtype=D), rtol=0, atol=1e-12)
    torch.testing.assert_close(log_perplexity(logp, mask), torch.tensor(expected, dtype=D).log(), rtol=0, atol=1e-12)


def test_a_row_without_tokens_has_perplexity_one():
    assert perplexity(torch.tensor([[math.nan]]), torch.tensor([[0]])).item() == 1


def test_entropy_is_not_the_negative_log_prob_of_the_drawn_token():
    """A sure policy that drew an unlikely token: low entropy, high surprise."""
    logits = torch.tensor([0.99, 0.01]).log()
    assert token_entropy(logits).item() == pytest.approx(0.0560, abs=1e-4)
    assert log_perplexity(logits[1].reshape(1, 1), torch.ones(1, 1)).item() == pytest.approx(4.6052, abs=1e-4)


# -- branching factor -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_p, size", [(0.4, 1), (0.5, 1), (0.51, 2), (0.8, 2), (0.81, 3), (0.95, 3), (0.96, 4), (1.0, 4)])
def test_branching_factor_counts_the_smallest_set(top_p, size):
    shuffled = torch.tensor([0.05, 0.5, 0.15, 0.3]).log()
    assert branching_factor(shuffled, top_p).item() == size


def test_branching_factor_of_sure_and_of_undecided_positions():
    logits = torch.zeros(3, 20)
    logits[0, 4] = 50.0  # sure
    logits[1, 10:] = -50.0  # ten equals
    assert branching_factor(logits).tolist() == [1, 10, 19]  # 95 % of twenty equals: nineteen


# -- the stage detector -----------------------------------------------------------------------------------------------------------------


def curve(steps, tau=15.0, start=1.5, end=0.3):
    """An entropy that falls exponentially from start to end."""
    return [end + (start - end) * math.exp(-s / tau) for s in range(steps)]


def test_the_plateau_is_found_near_the_knee():
    # The slope falls to a tenth of the steepest after about tau * log 10 = 35 steps; smoothing and the window see it a few steps later.
    step = plateau_step(curve(120))
    assert 40 <= step <= 55
    slower = plateau_step(curve(300, tau=40.0))
    assert 90 <= slower <= 115


def test_a_sudden_stop_is_found_within_a_window():
    falling = [2.0 - 0.02 * s for s in range(40)]
    step = plateau_step(falling + [falling[-1]] * 60)
    assert 40 < step <= 60


@pytest.mark.parametrize("steps", [10, 30, 100, 400])
def test_an_entropy_that_still_falls_has_no_plateau(steps):
    assert plateau_step([5.0 - 0.01 * s for s in range(steps)]) is None


def test_noise_moves_the_answer_by_few_steps():
    for seed in range(10):
        noise = random.Random(seed)
        noisy = [h + noise.gauss(0, 0.05) for h in curve(150)]
        assert 35 <= plateau_step(noisy) <= 60


def test_an_entropy_that_never_falls_has_no_plateau():
    assert plateau_step([1.0] * 200) is None
    assert plateau_step([1.0 + 0.01 * s for s in range(200)]) is None


def test_short_histories_have_no_plateau():
    assert plateau_step([]) is None
    assert all(plateau_step(curve(15, tau=1.0)[:n]) is None for n in range(16))


def test_the_detector_uses_the_past_alone():
    """A run asks after every step. Once it got an answer, no later entropy takes it back, and before there was none."""
    noise = random.Random(3)
    entropies = [h + noise.gauss(0, 0.01) for h in curve(100)] + [noise.uniform(0, 3) for _ in range(50)]
    step = plateau_step(entropies)
    for n in range(len(entropies) + 1):
        assert plateau_step(entropies[:n]) == (step if n >= step else None)


def test_a_missing_entropy_does_not_break_the_detector():
    entropies = curve(120)
    with_gap = entropies[:20] + [math.nan] + entropies[21:]
    assert abs(plateau_step(with_gap) - plateau_step(entropies)) <= 3


@pytest.mark.parametrize("seed", range(10))
def test_there_is_no_plateau_before_the_entropy_has_fallen(seed):
    torch.manual_seed(seed)
    flat = (1.0 + 0.01 * torch.randn(60)).tolist()
    assert plateau_step(flat) is None
    late = flat[:20] + [0.1 + 0.9 * math.exp(-t / 6) + 0.01 * flat[t % 60] for t in range(40)]
    assert 30 <= plateau_step(late) <= 50


def test_steps_without_a_number_are_passed_over():
    falling = [0.1 + 0.9 * math.exp(-t / 6) for t in range(60)]
    assert plateau_step([math.nan] * 3 + falling) == 3 + plateau_step(falling)
