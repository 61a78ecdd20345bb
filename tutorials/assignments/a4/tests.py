"""Public tests of assignment 4: entropy, perplexity, stages. The right answers are those of rlvr."""

import math
import random

import torch

from rlvr.entropy import branching_factor, plateau_step
from tutorials.assignments.checks import Assignment, alike, exchanged, expect, need, on_random_inputs, show

tests = Assignment()
check = tests.check

# ---------------------------------------------------------------------------------------------------------------------------------------
tests.task("4.1", "token entropy")


def _entropy(logits):
    logp = logits.double().log_softmax(-1)
    return -(logp.exp() * logp.clamp(min=-1e9)).sum(-1)


@check("4.1", 1, hint="H = -sum_v p_v log p_v over the whole vocabulary, natural logarithm; log V if all tokens are alike.")
def the_entropy_of_each_position(student):
    logits = 2 * torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
    logits[0, 0] = 0.0
    expect(student.token_entropy(logits, 1.0), _entropy(logits), "random logits [2, 3, 6]")
    many = torch.stack([torch.zeros(200), torch.arange(200) / 100])[None]
    expect(student.token_entropy(many, 1.0), _entropy(many), "200 tokens: all alike, then logits 0, 0.01, ... 1.99", 1e-4)


@check("4.1", 1, hint="Divide the logits by the temperature before the softmax.")
def the_temperature_counts(student):
    logits = torch.tensor([[[3.0, 1.0, 0.0, -2.0]]])
    got = [student.token_entropy(logits, t) for t in (0.5, 1.0, 4.0)]
    need(
        bool(got[0] < got[1]) and bool(got[1] < got[2]),
        f"temperatures 0.5, 1 and 4: entropies {[x.item() for x in got]}, which do not rise",
    )
    # A ratio of differences, so that a slip of the check above is not counted twice.
    h = [_entropy(logits / t).item() for t in (0.5, 1.0, 4.0)]
    ratio = (got[2] - got[1]).item() / (got[1] - got[0]).item()
    expect(ratio, (h[2] - h[1]) / (h[1] - h[0]), "(H at 4 - H at 1) / (H at 1 - H at 0.5)", 1e-3)


@check("4.1", 1, hint="0 * log 0 is 0 by its limit, but 0 * -inf is NaN: clamp the log-probs, or leave such tokens out.")
def a_forbidden_token_has_probability_zero(student):
    got = student.token_entropy(torch.tensor([[[0.0, 0.0, float("-inf")], [5.0, float("-inf"), float("-inf")]]]), 1.0)
    need(bool(got.isfinite().all()), f"logits [0, 0, -inf] and [5, -inf, -inf]: {got.flatten().tolist()}")
    need(abs(got[0, 1].item()) < 1e-5, f"logits [5, -inf, -inf]: {got[0, 1].item()} instead of 0")
    need(abs(got[0, 0].item()) > 0.1, f"logits [0, 0, -inf]: {got[0, 0].item()}, but two tokens are possible")


@check("4.1", 1, hint="exp(1e4) is inf: log_softmax, or subtract the largest logit first.")
def large_logits_stay_finite(student):
    got = student.token_entropy(torch.tensor([[[1e4, 1e4, 0.0], [1e4, 0.0, 0.0]]]), 1.0)
    need(bool(got.isfinite().all()), f"logits [10000, 10000, 0] and [10000, 0, 0]: {got.flatten().tolist()}")
    need(abs(got[0, 1].item()) < 1e-5, f"logits [10000, 0, 0]: {got[0, 1].item()} instead of 0")
    need(abs(got[0, 0].item()) > 0.1, f"logits [10000, 10000, 0]: {got[0, 0].item()}, but two tokens are possible")


def _random_logits(dice: random.Random):
    for seed in range(50):
        g = torch.Generator().manual_seed(seed)
        n, t, v = dice.randint(1, 3), dice.randint(1, 3), dice.choice([1, 2, 6, 200])
        logits = torch.randn(n, t, v, generator=g) * dice.choice([0.0, 0.5, 3.0, 100.0]) + dice.choice([0.0, 0.0, 1000.0])
        forbidden = torch.rand(n, t, v, generator=g) < dice.choice([0.0, 0.0, 0.4])
        forbidden[..., dice.randrange(v)] = False
        yield logits.masked_fill(forbidden, float("-inf")), dice.choice([1.0, 0.6, dice.uniform(0.3, 4.0)])
    for shape in ((1, 1, 2000), (1, 300, 3)):  # a large vocabulary, a long row
        yield torch.randn(shape, generator=torch.Generator().manual_seed(50)), 1.0
    for temperature in (0.02, 30.0):
        yield temperature * torch.tensor([[[1.0, 0.0, float("-inf")], [float("-inf"), 0.0, 2.0]]], dtype=torch.float64), temperature


@check("4.1", 1, follows="the entropy of each position", hint="Any size of vocabulary, any temperature, forbidden tokens among the others.")
def fifty_random_logits(student):
    def right(logits, temperature):
        return _entropy(logits / temperature)

    questions = exchanged(_random_logits(random.Random(41)), a1=lambda temperature: 1.5 * temperature)
    on_random_inputs(student, "token_entropy", questions, right, 1e-3, "float")


# ---------------------------------------------------------------------------------------------------------------------------------------
tests.task("4.2", "perplexity of a completion")


@check("4.2", 1, hint="exp of the mean negative log-prob of the tokens that were drawn; the mean is over the valid tokens of the row.")
def the_mean_is_over_valid_tokens(student):
    logp = torch.tensor([[-0.5, -1.5, -0.1, 0.0], [-2.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]).bool()
    expect(
        student.perplexity(logp, mask),
        torch.tensor([math.exp(0.7), math.exp(2.0)]),
        "log-probs -0.5, -1.5, -0.1 in one row and -2 in the other",
    )


@check("4.2", 1, hint="A completion without a token must not make the batch NaN: divide by at least 1.")
def an_empty_row_has_perplexity_one(student):
    got = student.perplexity(torch.tensor([[0.0, 0.0], [-0.7, -0.7]]), torch.tensor([[False, False], [True, True]]))
    need(bool(got[0] == 1), f"an empty row: {got[0].item()} instead of 1")
    need(bool(got[1] > 1.1), f"the row beside it, of log-probs -0.7: {got[1].item()}")


@check("4.2", 1, hint="NaN * 0 is NaN. Replace what stands outside the mask (torch.where) before you add up.")
def garbage_outside_the_mask_changes_nothing(student):
    mask = torch.tensor([[True, False]])
    clean = student.perplexity(torch.tensor([[-1.0, 0.0]]), mask)
    for garbage in (float("nan"), float("-inf"), -50.0):
        got = student.perplexity(torch.tensor([[-1.0, garbage]]), mask)
        expect(got, clean, f"{garbage} outside the mask, and 0 there")
    other = student.perplexity(torch.tensor([[-2.0, 0.0]]), mask)
    need(not alike(clean, other), "a token of log-prob -1, and one of -2: the perplexity is the same")


def _random_rows(dice: random.Random, low: float, high: float):
    """Numbers [N, T] from low to high, with garbage outside of the mask [N, T], and the mask: prefixes, or with holes."""
    g = torch.Generator().manual_seed(dice.randrange(1000))
    n, t = dice.randint(1, 5), dice.randint(1, 7)
    mask = torch.arange(t)[None] < torch.randint(0, t + 1, (n, 1), generator=g)
    if dice.random() < 0.3:
        mask = torch.rand(n, t, generator=g) < 0.6
    garbage = dice.choice([0.0, -50.0, float("nan"), float("-inf"), float("inf")])
    return torch.where(mask, low + (high - low) * torch.rand(n, t, generator=g), garbage), mask


@check(
    "4.2",
    1,
    follows="the mean is over valid tokens",
    hint="Each row by itself: exp(-sum of its valid log-probs / their number); 1 without any.",
)
def fifty_random_rows(student):
    dice = random.Random(42)

    def right(logp, mask):
        return (-torch.where(mask, logp.double(), 0.0).sum(1) / mask.sum(1).clamp(min=1)).exp()

    questions = [_random_rows(dice, dice.choice([-3.0, -3.0, -3.0, -30.0]), 0.0) for _ in range(50)]
    questions += [(torch.full((2, 300), -0.5), torch.arange(300)[None] < torch.tensor([[300], [0]]))]
    questions = exchanged(questions, a1=lambda mask: mask & (torch.arange(mask.shape[1]) < 1))
    on_random_inputs(student, "perplexity", questions, right, 1e-3, "float", relative=1e-4)


# ---------------------------------------------------------------------------------------------------------------------------------------
tests.task("4.3", "branching factor")


@check("4.3", 1, hint="Sort the probabilities, largest first; count how many are needed until their sum reaches top_p.")
def the_smallest_set_that_holds_top_p(student):
    p = torch.tensor([[0.1, 0.6, 0.05, 0.25], [0.97, 0.01, 0.01, 0.01]])
    for top_p in (0.9, 0.7):
        expect(student.branching_factor(p.log(), top_p), branching_factor(p.log(), top_p), f"probabilities {p.tolist()}, top_p {top_p}")
    expect(student.branching_factor(torch.zeros(1, 50), 0.91), torch.tensor([46]), "50 tokens alike, top_p 0.91")


@check("4.3", 1, hint="0.5 + 0.3 holds 0.8 exactly: two tokens, not three. Sums of floats need a little tolerance.")
def a_sum_that_is_just_reached(student):
    expect(
        student.branching_factor(torch.tensor([[0.5, 0.3, 0.2]]).log(), 0.8), torch.tensor([2]), "probabilities 0.5, 0.3, 0.2, top_p 0.8"
    )
    expect(student.branching_factor(torch.zeros(1, 10), 0.5), torch.tensor([5]), "ten tokens alike, top_p 0.5")
    got = student.branching_factor(torch.zeros(1, 1000), 0.9505)
    expect(got, torch.tensor([951]), "a thousand tokens alike, top_p 0.9505")


def _random_distributions(dice: random.Random):
    """No sum is within 1e-4 of top_p, or 5e-6 where few are added, so that rounding decides nothing."""
    for seed in range(50):
        g = torch.Generator().manual_seed(seed)
        logits = torch.randn(dice.randint(1, 4), dice.choice([2, 8, 100]), generator=g) * dice.choice([0.0, 0.1, 1.0, 5.0])
        sums = logits.double().softmax(-1).sort(-1, descending=True).values.cumsum(-1)
        for top_p in (dice.choice([0.95, 0.9, dice.uniform(0.02, 0.98)]) for _ in range(9)):
            if bool(((sums - top_p).abs() > 1e-4).all()):
                yield logits, top_p
                break
        few = torch.randn(1, 6, generator=g)
        sums = few.double().softmax(-1).sort(-1, descending=True).values.cumsum(-1)[0]
        yield few, 1.0
        yield few, sums[seed % 5].item() + 5e-6 * (1 + seed % 3) * (-1) ** seed  # just not reached, or just reached
    many = torch.randn(1, 2000, generator=torch.Generator().manual_seed(50))
    yield 0.01 * many, 0.9503
    yield many, 0.987


@check("4.3", 1, follows="the smallest set that holds top p", hint="Each row by itself; the result is int, 1 or more.")
def fifty_random_distributions(student):
    on_random_inputs(student, "branching_factor", _random_distributions(random.Random(43)), branching_factor, kind="int")


# ---------------------------------------------------------------------------------------------------------------------------------------
tests.task("4.4", "entropy of right and wrong answers")


@check("4.4", 1, hint="Pool the tokens of all right completions, then take their mean; a mean of row means overrates short rows.")
def means_are_over_tokens(student):
    entropy = torch.tensor([[1.0, 1.0, 1.0, 1.0], [2.0, 9.0, 9.0, 9.0], [0.5, 0.5, 9.0, 9.0], [3.0, 9.0, 9.0, 9.0]])
    mask = torch.arange(4)[None] < torch.tensor([4, 1, 2, 1])[:, None]
    got = student.entropy_by_correctness(entropy, mask, torch.tensor([True, True, False, False]))
    expect(got, [6 / 5, 4 / 3], "right rows of 4 tokens (entropy 1) and 1 token (2), wrong rows of 2 (0.5) and 1 (3)")


@check(
    "4.4",
    1,
    nan=True,
    hint="Early in training a batch may have no right answer: that mean is unknown, NaN, and the other one is still a number.",
)
def nothing_to_average_is_nan(student):
    entropy, mask = torch.tensor([[1.0, 1.0]]), torch.ones(1, 2).bool()
    for factor, right, asked in ((1, False, "one wrong row of entropy 1"), (3, True, "one right row of entropy 3")):
        got = student.entropy_by_correctness(factor * entropy, mask, torch.tensor([right]))
        need(isinstance(got, torch.Tensor) and got.shape == (2,), f"{asked}: {show(got)} instead of two numbers")
        there, missing = (0, 1) if right else (1, 0)
        expect(got[there].item(), float(factor), f"{asked}: its mean")
        need(math.isnan(got[missing]), f"{asked}: the other mean is {got[missing].item():g} instead of NaN")
        two, only_one = torch.tensor([[factor * 1.0] * 2, [float("nan")] * 2]), torch.tensor([[True, False], [False, False]])
        got = student.entropy_by_correctness(two, only_one, torch.tensor([right, not right]))
        asked += ", and one row of the other kind without a token"
        need(isinstance(got, torch.Tensor) and got.shape == (2,), f"{asked}: {show(got)} instead of two numbers")
        expect(got[there].item(), float(factor), f"{asked}: its mean")
        need(math.isnan(got[missing]), f"{asked}: the other mean is {got[missing].item():g} instead of NaN")


@check("4.4", 1, follows="means are over tokens", hint="Two pools of tokens, right and wrong; what is outside the mask belongs to neither.")
def fifty_random_pools(student):
    dice, questions = random.Random(44), []
    while len(questions) < 50:
        entropy, mask = _random_rows(dice, 0.0, dice.choice([3.0, 3.0, 30.0]))
        correct = torch.tensor([dice.random() < 0.5 for _ in mask])
        if mask[correct].any() and mask[~correct].any():
            questions.append((entropy, mask, correct))

    def right(entropy, mask, correct):
        return [entropy[rows][mask[rows]].double().mean().item() for rows in (correct, ~correct)]

    on_random_inputs(student, "entropy_by_correctness", exchanged(questions, a2=torch.logical_not), right, 1e-4)


# ---------------------------------------------------------------------------------------------------------------------------------------
tests.task("4.5", "where the rising stage ends")


def _falling(steps: int = 60, speed: float = 8.0, floor: float = 0.2) -> list[float]:
    return [floor + (1 - floor) * math.exp(-i / speed) for i in range(steps)]


def _finds_a_plateau(student) -> None:
    step = student.plateau_step(_falling())
    need(
        isinstance(step, int) and not isinstance(step, bool),
        f"an entropy that falls from 1 to 0.2 and stays there: {step} instead of a step",
    )


@check("4.5", 1, hint="Smooth, slope over 8 steps, compare with a tenth of the steepest fall so far; steps count from 1.")
def the_step_of_the_rule(student):
    for speed, floor in ((8.0, 0.2), (4.0, 0.3), (12.0, 0.05)):
        values = _falling(80, speed, floor)
        expect(student.plateau_step(values), plateau_step(values), f"an entropy that falls from 1 to {floor} at a rate of 1/{speed:g}")
    values = _falling(60)
    values[20] = 0.8
    expect(
        student.plateau_step(values), plateau_step(values), "the first of these, but step 21 is 0.8: the rule looks at the smoothed curve"
    )


@check("4.5", 1, hint="While the entropy falls steadily, the rising stage lasts: None.")
def no_plateau_while_it_falls(student):
    expect(student.plateau_step([1.0 - 0.012 * i for i in range(60)]), None, "a straight fall")
    _finds_a_plateau(student)


@check(
    "4.5", 1, hint="At the very start the entropy is flat too. A plateau needs a fall of a quarter before it, from the largest s so far."
)
def a_flat_beginning_is_no_plateau(student):
    values = [1.0 + 0.01 * (-1) ** i for i in range(25)]
    expect(student.plateau_step(values), None, "25 steps around 1")
    got = student.plateau_step(values + [0.97 - 0.001 * i for i in range(30)])
    need(got is None, f"a fall of less than a tenth: step {got} instead of None")
    got = student.plateau_step(_falling(80, 5.0, 0.8))
    need(got is None, f"a fall by a fifth, then flat: step {got} instead of None")
    values = [1.0, 1.2, 1.35, 1.45, 1.5, 1.5] + [1 + 0.5 * math.exp(-i / 4) for i in range(50)]
    got = student.plateau_step(values)
    need(
        isinstance(got, int) and 20 <= got <= 45, f"an entropy that rises from 1 to 1.5 and falls to 1, a third below: {got}, not about 30"
    )
    _finds_a_plateau(student)


@check("4.5", 1, hint="A run must be able to act on it: the step must not depend on what comes later.")
def the_future_does_not_matter(student):
    values = _falling()
    step = student.plateau_step(values)
    need(isinstance(step, int), f"the whole curve: {step} is no step")
    expect(student.plateau_step(values[:step]), step, f"the curve cut off after step {step}")
    expect(student.plateau_step(values + [9.0] * 3 + [0.0] * 9), step, "the curve and twelve wild steps more")
    need(student.plateau_step(_falling(80, 12.0, 0.05)) != step, f"a curve that falls more slowly: step {step} too")


def _random_curves(dice: random.Random):
    """Noisy ones: flat, falling, rising first, with wild steps; some too short for a slope."""
    for _ in range(60):
        noise, steps = dice.choice([0.0, 0.03, 0.15]), dice.choice([1, 8, 9, 30, 60, 90])
        values = _falling(steps, dice.uniform(3, 15), dice.choice([0.05, 0.3, 0.6, 0.8]))
        values = dice.choice([[], [0.6, 0.8, 0.95, 1.1, 1.05], [0.1, 2.5, 2.5]]) + values
        values = [abs(h + noise * dice.gauss(0, 1)) for h in values]
        if dice.random() < 0.3:
            values[dice.randrange(len(values))] = dice.choice([0.0, 2.5])
        yield (values,)
        if steps == 60:  # the same in other units
            yield ([dice.choice([0.01, 10.0]) * h for h in values],)
    for speed in (20.0, 40.0, 80.0):  # slow, so that the largest s is long ago
        yield (_falling(400, speed, 0.3),)
        yield ([1.2, 1.9, 2.0, 1.2] + _falling(400, speed, 0.9),)


@check("4.5", 1, follows="the step of the rule", hint="Print s, slope and steepest fall for the curve of the message, step by step.")
def sixty_noisy_curves(student):
    on_random_inputs(student, "plateau_step", _random_curves(random.Random(45)), plateau_step)
