"""Public tests of assignment 5: the two shaping methods and a small study. The right answers are those of rlvr."""

import csv
import functools
import io
import itertools
import random
import re
from contextlib import suppress
from pathlib import Path

import torch

from rlvr.advantage import position_bonus, ppl_weights
from rlvr.analysis.compare_arms import differences
from rlvr.analysis.intervals import mean_interval
from tutorials.assignments.checks import Assignment, Wrong, alike, exchanged, expect, need, on_random_inputs

tests = Assignment()
check = tests.check

# ---------------------------------------------------------------------------------------------------------------------------------------
tests.task("5.1", "the factor of perplexity shaping")


def _completions(log_ppl: list[float]):
    """old_logp and mask of completions with these log-perplexities; lengths 1 to 3, garbage behind them."""
    n = len(log_ppl)
    lengths = torch.tensor([1 + i % 3 for i in range(n)])
    mask = torch.arange(3)[None] < lengths[:, None]
    steps = torch.tensor([[-0.3, 0.3, 0.0]]) * (lengths > 2)[:, None]  # uneven tokens, the same mean
    return torch.where(mask, -torch.tensor(log_ppl)[:, None] + steps, -9.0), mask


PLAIN = [0.2, 0.5, 0.9, 0.6, 1.4, 1.1, 1.0, 1.9]


@check("5.1", 1, hint="w = (logPPL - mean) / population standard deviation (divisor G) within the group; factor = 1 - alpha * w.")
def the_factor_of_each_completion(student):
    old_logp, mask = _completions(PLAIN)
    group = torch.tensor([0, 1] * 4)
    expect(
        student.ppl_weights(old_logp, mask, group, 0.05, "low"),
        ppl_weights(old_logp, mask, group, 0.05),
        f"log-perplexities {PLAIN}, groups 0, 1, 0, 1, ...",
    )


@check("5.1", 1, hint="'low': completions of low perplexity weigh more than 1. 'high' is the opposite arm: 1 + alpha * w.")
def low_perplexity_weighs_more(student):
    old_logp, mask = _completions(PLAIN[:4])
    group = torch.zeros(4, dtype=torch.long)
    low, high = (student.ppl_weights(old_logp, mask, group, 0.05, d) for d in ("low", "high"))
    need(low.shape == high.shape == (4,), f"the factors have the shapes {tuple(low.shape)} and {tuple(high.shape)} instead of (4,)")
    need(bool(low[0] > 1) and bool(low[2] < 1), f"log-perplexities {PLAIN[:4]}, direction low: {low.tolist()}")
    expect(low + high, torch.full((4,), 2.0), "the factors of 'low' and 'high' together")


@check(
    "5.1",
    1.5,
    hint="Tukey's rule: mean and std leave out values beyond 1.5 interquartile ranges from the quartiles. The outlier gets a w too.",
)
def an_outlier_moves_neither_mean_nor_std(student):
    group = torch.zeros(8, dtype=torch.long)
    for log_ppl, kept in (
        ([0.50, 0.52, 0.54, 0.56, 0.58, 0.60, 0.68, 6.0], [0, 1, 2, 3, 4, 5, 6]),
        ([0.50, 0.15, 0.54, 0.58, 0.60, 0.64, 0.70, 0.90], [0, 2, 3, 4, 5, 6]),  # quartiles 0.53, 0.655: beyond 0.3425 and 0.8425
    ):
        old_logp, mask = _completions(log_ppl)
        got, right = (f(old_logp, mask, group, 0.05, "low") - 1 for f in (student.ppl_weights, ppl_weights))
        need(bool(got[0].abs() > 1e-6), f"log-perplexities {log_ppl}: the first factor is 1")
        # Relative to the first, so that the divisor of the standard deviation is not asked for again.
        expect((got / got[0])[kept], (right / right[0])[kept], f"log-perplexities {log_ppl}: (factor - 1) over that of the first", 1e-3)
        need(bool(got[7] < got[6]), f"log-perplexities {log_ppl}: the factor of the last is {1 + got[7].item():.4f}, not below the others")


@check("5.1", 1, hint="clamp(1 - alpha * w, 0.8, 1.2): no completion is silenced or doubled.")
def the_factor_stays_between_0_8_and_1_2(student):
    old_logp, mask = _completions(PLAIN[:4])
    got = student.ppl_weights(old_logp, mask, torch.zeros(4, dtype=torch.long), 5.0, "low")
    expect(got, torch.tensor([1.2, 1.2, 0.8, 0.8]), f"log-perplexities {PLAIN[:4]}, alpha 5")


@check(
    "5.1", 1, hint="Equal perplexities have std 0. Compare them; a quotient of two roundings can be anything. No spread left: divide by 1."
)
def equal_perplexities_weigh_the_same(student):
    old_logp = torch.tensor([[-0.1, -0.1, -0.1]] * 3 + [[-0.7, -0.2, -0.4]] * 2 + [[-0.9, -0.9, -0.9]])
    got = student.ppl_weights(old_logp, torch.ones(6, 3).bool(), torch.tensor([4, 4, 4, 9, 2, 2]), 0.2, "low")
    expect(got[:4], torch.ones(4), "three equal completions, and one alone in its group", tolerance=0)
    need(bool(got[4] != got[5]), f"two unlike completions in a group of their own: their factors are {got[4:].tolist()}")
    old_logp, mask = _completions([0.5] * 7 + [6.0])
    got = student.ppl_weights(old_logp, mask, torch.zeros(8, dtype=torch.long), 0.05, "low")
    asked = f"log-perplexities seven times 0.5, and 6: the factors are {[round(x, 4) for x in got.tolist()]}"
    need(bool(got.isfinite().all()) and bool((got[7] - 1).abs() > 0.01), asked)
    old_logp, mask = _completions([0.5] * 7 + [0.9])
    got = student.ppl_weights(old_logp, mask, torch.zeros(8, dtype=torch.long), 0.05, "low")
    asked = f"log-perplexities seven times 0.5, and 0.9: the factors are {[round(x, 4) for x in got.tolist()]}"
    need(0.005 < (got[7] - 1).abs().item() < 0.19, f"{asked}; the seven have no spread, so the last one's w is 0.4 / 1")


@check(
    "5.1",
    0.5,
    hint="NaN * 0 is NaN, and it would spread to the whole group. Replace what is outside the mask (torch.where) before the sum.",
)
def garbage_outside_the_mask_changes_nothing(student):
    old_logp, mask = _completions(PLAIN)
    group = torch.tensor([0, 1] * 4)
    clean = student.ppl_weights(torch.where(mask, old_logp, 0.0), mask, group, 0.05, "low")
    need(len(set(clean.tolist())) > 2, f"log-perplexities {PLAIN}: the factors are {clean.tolist()}")
    for garbage in (-9.0, float("nan"), float("-inf")):
        got = student.ppl_weights(torch.where(mask, old_logp, garbage), mask, group, 0.05, "low")
        expect(got, clean, f"{garbage} outside the mask, and 0 there")


def _random_groups(dice: random.Random, plain: bool = False):
    """old_logp, mask, group, alpha, direction. No value is on the limit of Tukey's rule, and none is an outlier by rounding.

    plain: without equal perplexities and without garbage, which are asked for elsewhere.
    """
    made = 0
    while made < (30 if plain else 50):
        n = dice.choice([1, 2, 8, dice.randint(3, 16)])
        base = dice.choice([0.5, 0.25, 0.3])
        log_ppl = dice.choice(
            [
                [dice.uniform(0.05, 2.0) for _ in range(n)],
                [dice.gauss(1.0, 0.02) for _ in range(n - 1)] + [dice.choice([0.2, 5.0])],
                [base] * n,
                [base] * (n - 1) + [base + dice.choice([0.125, 0.5])],
                [dice.choice([0.25, 0.75]) for _ in range(n)],
            ]
        )
        if dice.random() < 0.1:
            log_ppl = [10 * x for x in log_ppl]
        ids = dice.choice([[3, 3, -8], [4, -4], [2**24, 2**24 + 1]])
        group = torch.tensor([dice.choice(ids) for _ in range(n)])
        values = torch.tensor(log_ppl, dtype=torch.float64)
        parts = [values[group == g] for g in group.unique()]
        if any(_at_the_limit(x) or plain and (len(x) < 2 or len(x.unique()) < len(x)) for x in parts):
            continue
        made += 1
        length = dice.randint(1, 3)
        mask = torch.arange(3)[None] < torch.full((n, 1), length)
        old_logp = torch.where(mask, -values[:, None], -9.0 if plain else dice.choice([0.0, -9.0, float("nan"), float("-inf")]))
        alpha, direction = dice.choice([0.0, 0.0005, 0.005, 0.01, 0.05, 0.2, 3.0]), dice.choice(["low", "high"])
        yield old_logp.to(dice.choice([torch.float32, torch.float64])), mask, group, alpha, direction


def _nearly_equal_groups():
    """Four evenly spaced values, none of them an outlier: x, and 1 to 3 times x * 10^-k more, down to a spread of 1e-5."""
    for kind, most in ((torch.float32, 4), (torch.float64, 5)):
        nearly = [(x, k) for x in (0.1, 1.0, 10.0) for k in range(2, most + 1) if x * 10**-k >= 9e-6]
        values = torch.tensor([x * (1 + i * 10**-k) for x, k in nearly for i in range(4)], dtype=torch.float64)
        yield (-values[:, None]).to(kind), torch.ones(len(values), 1).bool(), torch.arange(len(nearly)).repeat_interleave(4), 0.1, "low"
    g = torch.Generator().manual_seed(50)
    yield -torch.rand(3, 300, generator=g), torch.arange(300)[None] < torch.tensor([[300], [40], [7]]), torch.zeros(3).long(), 0.1, "low"


def _at_the_limit(x: torch.Tensor) -> bool:
    q1, q3 = x.quantile(0.25), x.quantile(0.75)
    limits = torch.stack([q1 - 1.5 * (q3 - q1), q3 + 1.5 * (q3 - q1)])
    distance = (x[:, None] - limits).abs()
    return bool(((distance < 1e-3) & (distance > 0)).any()) or bool(((distance == 0).any() and q1 < q3))


@check(
    "5.1",
    1,
    follows="the factor of each completion",
    hint="Work out one group of the message by hand: quartiles, what is left, mean, std, w.",
)
def fifty_random_groups(student):
    def right(old_logp, mask, group, alpha, direction):
        return ppl_weights(old_logp.double(), mask, group, alpha, direction)

    other = {"low": "high", "high": "low"}
    questions = [*_random_groups(random.Random(51)), *_nearly_equal_groups()]
    on_random_inputs(student, "ppl_weights", exchanged(questions, a3=lambda alpha: alpha + 0.03, a4=other.get), right, 1e-3, "float")


# ---------------------------------------------------------------------------------------------------------------------------------------
tests.task("5.2", "the bonus of position shaping")

TEN = torch.ones(1, 10).bool()


@check("5.2", 1, hint="alpha * sigmoid(15 * (r - 1/2)) with r = (t - 1) / L for t = 1..L: the first token has r = 0, the last one 1 - 1/L.")
def the_bonus_of_ten_tokens(student):
    got = student.position_bonus(torch.tensor([1.6]), TEN, 0.1, "late")
    expect(got.abs(), position_bonus(torch.tensor([1.6]), TEN, 0.1), "advantage 1.6, 10 tokens, alpha 0.1 (without sign)")


@check("5.2", 1, hint="sign(A) * bonus: late tokens of wrong completions are pushed further down.")
def it_has_the_sign_of_the_advantage(student):
    got = student.position_bonus(torch.tensor([1.6, -1.6]), TEN.expand(2, 10), 0.1, "late")
    need(bool((got[0] >= 0).all()) and bool((got[1] <= 0).all()), f"advantages 1.6 and -1.6: the last bonuses are {got[:, -1].tolist()}")
    need(bool(got[0].max() > 0.05) and bool(got[1].min() < -0.05), "advantages 1.6 and -1.6: the bonuses are all about 0")


@check("5.2", 1, hint="At most half of |A|, so that a strong bonus cannot drown a small advantage. Where A is 0 the bonus is 0.")
def it_is_at_most_half_the_advantage(student):
    got = student.position_bonus(torch.tensor([0.1, -0.06, 0.0]), TEN.expand(3, 10), 0.4, "late").abs()
    need(
        bool((got <= torch.tensor([[0.05], [0.03], [0.0]]) + 1e-6).all()),
        f"advantages 0.1, -0.06, 0, alpha 0.4: the largest bonuses are {got.amax(1).tolist()}",
    )
    need(bool(got[0].max() > 0.04), f"advantage 0.1, alpha 0.4: the largest bonus is {got[0].max().item()} instead of 0.05")
    small, large = (student.position_bonus(torch.tensor([a]), TEN, 0.1, "late").abs() for a in (0.15, 1.6))
    asked = "alpha 0.1: the bonus at advantage 0.15, beside that at 1.6 where it is below 0.075, and 0.075 elsewhere"
    expect(small, large.clamp(max=0.075), asked)


@check("5.2", 1, hint="'early' turns the slope round: sigmoid(-15 * (r - 1/2)).")
def early_is_the_mirror_image(student):
    late, early = (student.position_bonus(torch.tensor([1.6]), TEN, 0.1, d) for d in ("late", "early"))
    need(
        late.shape == early.shape == TEN.shape,
        f"the bonuses have the shapes {tuple(late.shape)} and {tuple(early.shape)} instead of (1, 10)",
    )
    expect(late + early, torch.full((1, 10), late.sign()[0, -1].item() * 0.1), "late and early bonus together")
    need(not alike(late[:, [0, -1]], early[:, [0, -1]]), "late and early bonus are the same")


@check("5.2", 1, hint="L is the length of the row itself, not the width of the batch; outside the mask the bonus is 0.")
def each_row_has_its_own_length(student):
    mask = torch.arange(10)[None] < torch.tensor([[4], [10]])
    got = student.position_bonus(torch.tensor([1.6, 1.6]), mask, 0.1, "late")
    alone = student.position_bonus(torch.tensor([1.6]), torch.ones(1, 4).bool(), 0.1, "late")
    expect(got[0], torch.cat([alone[0], torch.zeros(6)]), "a row of 4 tokens beside one of 10, and alone")
    need(not alike(alone[0, 0], alone[0, 3]), "a row of 4 tokens: the bonus of the first and of the last are the same")


def _random_rows(dice: random.Random):
    for _ in range(50):
        n, t = dice.randint(1, 5), dice.choice([1, dice.randint(2, 30)])
        advantages = torch.tensor([dice.choice([0.0, 1e-3, -0.15, dice.uniform(-2.5, 2.5)]) for _ in range(n)])
        mask = torch.arange(t)[None] < torch.tensor([dice.choice([t, dice.randint(0, t)]) for _ in range(n)])[:, None]
        alpha = dice.choice([0.0, 0.001, 0.1, 0.4, 2.0])
        if dice.random() < 0.1:
            advantages, alpha = 10 * advantages.double(), 10 * alpha
        yield advantages, mask, alpha, dice.choice(["late", "early"])
    yield torch.tensor([1.0, -30.0]), torch.arange(300)[None] < torch.tensor([[300], [170]]), 20.0, "late"


@check("5.2", 1, follows="the bonus of ten tokens", hint="Take the first token that differs: its r, the sigmoid, the cap, the sign.")
def fifty_random_rows(student):
    other = {"late": "early", "early": "late"}
    questions = exchanged(_random_rows(random.Random(52)), a0=lambda a: 1 - a, a2=lambda alpha: alpha + 0.05, a3=other.get)
    on_random_inputs(student, "position_bonus", questions, position_bonus, kind="float")


# ---------------------------------------------------------------------------------------------------------------------------------------
tests.task("5.3", "shaped advantages")


def _batch():
    old_logp, mask = _completions(PLAIN)
    return torch.tensor([1.2, -1.2, 0.8, 0.5, -0.9, 0.7, -1.1, 0.0]), old_logp, mask, torch.tensor([0, 1] * 4)


@check("5.3", 0.75, hint="Multiply the advantage by the factor; do not compute it and drop it.")
def the_factor_is_applied(student):
    advantages, old_logp, mask, group = _batch()
    weights = student.ppl_weights(old_logp, mask, group, 0.2, "low")
    got = student.shaped_advantages("ppl", advantages, old_logp, mask, group, 0.2)
    need(not alike(weights, torch.ones(8)), "your factors are all 1")
    expect(got, advantages[:, None] * weights[:, None] * mask, "method ppl: A * your own factor, on the tokens of each row")


@check("5.3", 0.75, hint="Add the bonus to the advantage.")
def the_bonus_is_added(student):
    advantages, old_logp, mask, group = _batch()
    bonus = student.position_bonus(advantages, mask, 0.2, "late")
    need(bool(bonus.abs().max() > 1e-3), "your bonuses are all 0")
    got = student.shaped_advantages("pos", advantages, old_logp, mask, group, 0.2)
    expect(got, (advantages[:, None] + bonus) * mask, "method pos: A + your own bonus, on the tokens of each row")


@check("5.3", 1, hint="'grpo' gives every token of a row its advantage, 0 outside the mask. Strength 0 must give the same, bit for bit.")
def strength_zero_is_grpo(student):
    advantages, old_logp, mask, group = _batch()
    plain = advantages[:, None] * mask
    expect(student.shaped_advantages("grpo", advantages, old_logp, mask, group, 0.2), plain, "method grpo", tolerance=0)
    for method in ("ppl", "pos"):
        expect(
            student.shaped_advantages(method, advantages, old_logp, mask, group, 0.0), plain, f"method {method} at strength 0", tolerance=0
        )


@check("5.3", 1, hint="The factor is a weight, not something to be optimised: detach it.")
def no_gradient_passes_through_the_factor(student):
    advantages, old_logp, mask, group = _batch()
    value, gradient = student.gradient("shaped_advantages", 2, "ppl", advantages, old_logp, mask, group, 0.2)
    need(isinstance(value, torch.Tensor) and value.shape == mask.shape, "method ppl: the result has the wrong shape")
    other = student.shaped_advantages("ppl", -advantages, old_logp, mask, group, 0.2)
    need(not alike(value, other), "method ppl: the shaped advantages do not depend on the advantages")
    need(gradient is None or bool((gradient == 0).all()), "a gradient flows from the shaped advantages into old_logp")


@check(
    "5.3",
    0.5,
    follows="the bonus is added",
    hint="Your own factor or bonus, on the tokens of each row, 0 elsewhere, for advantages of any size, and no gradient into old_logp.",
)
def thirty_random_batches(student):
    dice, questions = random.Random(53), []
    for old_logp, mask, group, alpha, _ in _random_groups(dice, plain=True):
        mask[dice.randrange(len(mask))] &= torch.arange(3) < dice.randint(1, 3)
        advantages = torch.tensor([dice.choice([0.0, dice.uniform(-2, 2), dice.uniform(-20, 20)]) for _ in group])
        questions.append((dice.choice(["grpo", "ppl", "pos"]), advantages, old_logp.float(), mask, group, alpha))
    _, _, old_logp, mask, group, _ = questions[0]
    with suppress(Wrong):  # or it has cost its points above
        student.ppl_weights(torch.where(mask, old_logp, float("nan")), mask, group, 0.2, "low")
        questions = [(m, a, torch.where(mask, old, dice.choice([-9.0, float("nan")])), mask, *more) for m, a, old, mask, *more in questions]

    def right(method, advantages, old_logp, mask, group, alpha):
        plain = advantages[:, None] * mask
        if method == "ppl":
            plain = plain * student.ppl_weights(torch.where(mask, old_logp, 0.0), mask, group, alpha, "low")[:, None]
        if method == "pos":
            plain = plain + student.position_bonus(advantages, mask, alpha, "late") * mask
        return plain, torch.zeros_like(old_logp)  # no gradient passes into old_logp

    other = {"grpo": "ppl", "ppl": "pos", "pos": "ppl"}
    questions = exchanged(questions, a0=other.get, a5=lambda alpha: alpha + 0.03)
    on_random_inputs(student, "shaped_advantages", questions, right, kind="float", of=2)


# ---------------------------------------------------------------------------------------------------------------------------------------
tests.task("5.4", "mean and interval over seeds")


@check(
    "5.4",
    1,
    hint="mean -+ t * s / sqrt(n), s with divisor n - 1, t the 97.5 % quantile of Student's distribution with n - 1 degrees of freedom.",
)
def students_interval(student):
    for values in ([0.01, 0.03, -0.02], [0.5, 0.4, 0.7, 0.6, 0.1]):
        expect(student.mean_interval(values), list(mean_interval(values)), f"differences {values}", 1e-3)


@check("5.4", 1, hint="One seed says nothing about the spread: the interval is (-inf, inf).")
def of_one_seed_nothing_is_known(student):
    for one in (0.02, -0.5):
        expect(student.mean_interval([one]), [one, float("-inf"), float("inf")], f"one difference, {one}")


@check(
    "5.4", 1, follows="students interval", hint="Any number of seeds from 1 to 10; differences of any size, and some that are all equal."
)
def fifty_random_differences(student):
    dice = random.Random(54)
    questions = [
        ([dice.gauss(dice.choice([0, 0.3]), dice.choice([0.0, 0.003, 0.03, 0.3, 3.0])) for _ in range(dice.randint(1, 10))],)
        for _ in range(50)
    ]
    for (values,) in questions:
        low, high = mean_interval(values)[1:]
        rounding = 3e-4 * (high - low) / 2 if len(values) > 1 else 0.0  # that of a table of t with three decimals
        on_random_inputs(student, "mean_interval", [(values,)], lambda values: list(mean_interval(values)), 1e-7 + rounding)


# ---------------------------------------------------------------------------------------------------------------------------------------
tests.task("5.5", "the study: numbers and verdict")


MAX_COLUMNS, MAX_ROWS, MAX_ANSWER = 50, 500, 200  # of results.csv; characters of a line of answer.md
MEASURED = ("pass_at_1", "area", "pass_at_max", "entropy_late", "length_late")  # columns of results.csv
SHIPPED = sorted(Path(__file__).parents[2].rglob("results.csv"))  # also the study of the reference solution


@functools.cache
def _shipped() -> list[dict]:
    """The rows of all studies that come with the tutorials."""
    return [row | {"file": path} for path in SHIPPED for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))]


def _numbers(row: dict) -> list[float] | None:
    """What was measured in a run, or None if a column is missing."""
    try:
        return [float(row[column]) for column in MEASURED]
    except (KeyError, TypeError, ValueError):
        return None


def _pairs(rows: list[dict], arms: tuple[str, ...] = ()) -> dict[tuple, list[tuple[float, float]]]:
    """Two arms of one file -> the two values of pass_at_1 for each seed that they share. arms: none but these."""
    by_arm: dict = {}
    for row in rows:
        if not arms or row["arm"] in arms:
            by_arm.setdefault((row.get("file"), row.get("trunk"), row["arm"]), {})[row["seed"]] = float(row["pass_at_1"])
    return {
        (a, b): [(by_arm[a][seed], by_arm[b][seed]) for seed in by_arm[a].keys() & by_arm[b].keys()]
        for a in by_arm
        for b in by_arm
        if a != b and a[:2] == b[:2]
    }


def _table(results: str) -> list[dict]:
    """The rows of a student's table. Raises Wrong for one that is no table, or far bigger than a study's."""
    try:
        header, *rows = itertools.islice(csv.reader(io.StringIO(results)), MAX_ROWS + 2)
    except (ValueError, csv.Error):
        raise Wrong("results.csv has no rows with the columns arm, seed and pass_at_1") from None
    need(len(rows) <= MAX_ROWS, f"results.csv has more than {MAX_ROWS} rows; hand in the runs of your study alone")
    need(len(header) <= MAX_COLUMNS, f"results.csv has {len(header)} columns; at most {MAX_COLUMNS} are read")
    return [dict(itertools.zip_longest(header, row[: len(header)])) for row in rows if row]


@functools.lru_cache(8)
def _is_copied(results: str, arms: tuple[str, ...]) -> bool:
    """Whether runs of the file are among the shipped ones, whatever their arms and seeds are called now and in whatever order they are.

    A run with all its columns is known by itself; of a file with pass_at_1 alone two seeds of the two arms that are compared must agree,
    for one would do so by chance.
    """
    rows = _table(results)
    shipped = [numbers for row in _shipped() if (numbers := _numbers(row))]
    if any(max(abs(x - y) for x, y in zip(mine, theirs)) < 1e-3 for mine in map(_numbers, rows) if mine for theirs in shipped):
        return True
    theirs = _pairs(_shipped()).values()
    for mine in _pairs(rows, arms).values():
        for pairs in theirs:
            if sum(any(abs(x - a) < 1e-4 and abs(y - b) < 1e-4 for a, b in pairs) for x, y in mine) >= 2:
                return True
    return False


def _results(student) -> list[dict]:
    """The rows of results.csv. Raises Wrong for a file that cannot be the outcome of a study."""
    text = student.read("results.csv")
    if text is None:
        raise Wrong("there is no results.csv in the submission")
    rows = _table(text)
    if not rows or not {"arm", "seed", "pass_at_1"} <= set(rows[0]):
        raise Wrong("results.csv has no rows with the columns arm, seed and pass_at_1")
    try:
        rows = [row | {"seed": int(row["seed"]), "pass_at_1": float(row["pass_at_1"])} for row in rows]
    except (TypeError, ValueError):
        raise Wrong("a seed or a pass_at_1 of results.csv is no number") from None
    seen: set = set()
    for row in rows:
        run = f"arm {row['arm']!r}, seed {row['seed']}"
        need(0 <= row["pass_at_1"] <= 1, f"results.csv, {run}: pass_at_1 is {row['pass_at_1']}; a share is from 0 to 1")
        need((row.get("trunk"), row["arm"], row["seed"]) not in seen, f"results.csv has two rows of {run}; a run counts once")
        seen.add((row.get("trunk"), row["arm"], row["seed"]))
    copied = not student.is_reference() and _is_copied(text, tuple(_answer(student, name) for name in ("arm", "baseline")))
    need(not copied, "results.csv has runs that come with the tutorials; make your own (40 steps, or other seeds)")
    return rows


def _answer(student, name: str) -> str:
    lines = [line.partition(":") for line in (student.read("answer.md") or "").split("\n")]
    found = next((value.strip() for key, _, value in lines if key.lower() == name and value.strip()), None)
    if found is None:
        raise Wrong(f"answer.md has no line '{name}: ...'")
    need(len(found) <= MAX_ANSWER, f"answer.md: the line '{name}: ...' has more than {MAX_ANSWER} characters")
    return found.replace("\N{MINUS SIGN}", "-").replace("\N{EN DASH}", "-")


def _difference(student) -> tuple[float, float, float, int]:
    rows, (arm, baseline) = _results(student), (_answer(student, name) for name in ("arm", "baseline"))
    values = differences(rows, arm, "pass_at_1", baseline)
    if not values or arm == baseline:
        raise Wrong(f"results.csv has no seed that {arm!r} and {baseline!r} share")
    if len(values) > 1 and max(values) - min(values) < 1e-9:
        raise Wrong(f"the difference of {arm!r} and {baseline!r} is {values[0]:.6g} at every seed; runs with different seeds differ")
    return *mean_interval(values), len(values)


@check("5.5", 2, hint="Two arms, three seeds or more, the same seeds for both: python -m rlvr.analysis.experiment makes such a file.")
def two_arms_on_equal_seeds(student):
    seeds: dict[str, list[int]] = {}
    for row in _results(student):
        seeds.setdefault(row["arm"], []).append(row["seed"])
    need(len(seeds) >= 2, f"results.csv has the arms {sorted(seeds)}; two are needed")
    for arm in (_answer(student, "arm"), _answer(student, "baseline")):
        found = seeds.get(arm, [])
        need(len(set(found)) == len(found) >= 3, f"arm {arm!r} has the seeds {found}; three different ones or more are needed")
    need(_difference(student)[3] >= 3, "the arms of answer.md share fewer than three seeds")


@check("5.5", 2, hint="The mean of the differences in pairs (equal seeds), and its interval, to three decimals, as results.csv gives them.")
def the_numbers_are_those_of_the_file(student):
    mean, low, high, _ = _difference(student)
    numbers = (
        re.findall(r"[-+]?\d*\.?\d+", _answer(student, "difference"))[:1] + re.findall(r"[-+]?\d*\.?\d+", _answer(student, "interval"))[:2]
    )
    need(len(numbers) == 3, "answer.md: difference must be a number, interval two, as in [-0.031, 0.008]")
    expect([float(x) for x in numbers], [mean, low, high], "difference and interval in answer.md, against results.csv", 0.0011)


@check("5.5", 1, hint="better if the whole interval is above 0, worse if it is below, open if it holds 0. No effect is a result.")
def the_verdict_follows_from_the_interval(student):
    _, low, high, _ = _difference(student)
    wanted = "better" if low > 0 else "worse" if high < 0 else "open"
    verdict = _answer(student, "verdict").lower().strip(" .")
    need(verdict == wanted, f"the interval is [{low:.3f}, {high:.3f}], but the verdict is {verdict!r}")


tests.task("5.6", "the study: what it means, in words", by_hand=5)
