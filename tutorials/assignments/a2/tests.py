"""Public tests of assignment 2: group advantages, masks, log-probs. The right answers are those of rlvr."""

import random

import torch

from rlvr.advantage import grpo_advantages
from tutorials.assignments.checks import Assignment, alike, exchanged, expect, need, on_random_inputs, same

tests = Assignment()
check = tests.check

# ---------------------------------------------------------------------------------------------------------------------------------------
tests.task("2.1", "group advantages")


@check("2.1", 2, hint="(reward - mean) / (std + 1e-6) within the group, with the standard deviation of a sample: divisor G - 1.")
def the_table_of_the_handout(student):
    rewards = torch.tensor([1.0, 1, -1, -1, -1, -1, -1, -1] + [1.0, -1, 0.5, -0.25])
    group = torch.tensor([0] * 8 + [1] * 4)
    expect(student.group_advantages(rewards, group), grpo_advantages(rewards, group), "2 right of 8, then rewards 1, -1, 0.5, -0.25")


@check("2.1", 2, hint="Group ids are any integers in any order; do not reshape to [groups, G] and do not normalise over the whole batch.")
def groups_may_be_mixed(student):
    got = student.group_advantages(torch.tensor([1.0, 10.0, -1.0, -10.0, 3.0, 5.0]), torch.tensor([7, 3, 7, 3, -2, -2]))
    need(tuple(got.shape) == (6,), f"the result has shape {tuple(got.shape)} instead of (6,)")
    expect(
        got / got[0],
        torch.tensor([1.0, 1, -1, -1, -1, 1]),
        "groups [7, 3, 7, 3, -2, -2], each with two rewards; advantages over the first",
        1e-4,
    )


@check(
    "2.1", 2, hint="A group that is all right or all wrong has std 0: its advantages are exactly 0, not NaN, not rounding noise times 10^6."
)
def a_group_of_equal_rewards_gets_zero(student):
    for r in (1.0, -1.0, 0.1, 3.3, 100.1, -7.7, 1e6 / 3):
        rewards = torch.tensor([r] * 7 + [1.0, -1.0, 1.0])
        got = student.group_advantages(rewards, torch.tensor([0] * 7 + [1] * 3))
        expect(got[:7], torch.zeros(7), f"seven rewards of {r}", tolerance=0)
        need(bool((got[7:] != 0).all()), f"the group beside it, with rewards 1, -1, 1: {got[7:].tolist()}")
    plain = torch.tensor([5.0, 0.0, 0.0, 0.0]), torch.zeros(4, dtype=torch.long)
    scaled = same(student.group_advantages(*plain), grpo_advantages(*plain), 1e-3)  # or it would cost twice
    for kind in (torch.float32, torch.float64):  # groups of 2 to 40, side by side
        equal = [(r, n) for r in (0.1, 3.3, 100.1, 1e6 / 3) for n in (2, 3, 5, 6, 7, 11, 13, 40)]
        rewards = torch.tensor([r for r, n in equal for _ in range(n)], dtype=kind)
        got = student.group_advantages(rewards, torch.tensor([i for i, (_, n) in enumerate(equal) for _ in range(n)]))
        expect(got, torch.zeros(len(rewards)), f"{len(equal)} groups, each of equal rewards, {str(kind)[6:]}", tolerance=0)
        # Nearly equal: three of x and one of x * (1 + 10^-k), as far as this kind of number can tell them apart.
        nearly = [(x, k) for x in (0.1, 1.0, -100.0) for k in range(2, 7 if kind == torch.float32 else 13)]
        rewards = torch.tensor([x * (1 + 10**-k * (i == 3)) for x, k in nearly for i in range(4)], dtype=kind)
        group = torch.arange(len(nearly)).repeat_interleave(4)
        got, right = (f(r, group).double().view(-1, 4) for f, r in ((student.group_advantages, rewards), (grpo_advantages, rewards.double())))
        for (x, k), a, b in zip(nearly, (got[:, 3] - got[:, 0]).tolist(), (right[:, 3] - right[:, 0]).tolist()):
            asked = f"rewards three times {x:g} and once {x:g} * (1 + 10^-{k}), {str(kind)[6:]}: the last advantage is {a:.3g} above the others"
            need(not scaled or abs(a / b - 1) < 0.3, f"{asked}, not {b:.3g}")
    got = student.group_advantages(torch.tensor([0.0, 1e-6, 0.0, 1.0]), torch.tensor([0, 0, 1, 1]))
    need(bool(got[0] != got[1]), "rewards 0 and 1e-6 are not equal, but have the same advantage")
    need(
        bool(got[1].abs() < 0.6 * got[3].abs()),
        f"rewards 0 and 1e-6, then 0 and 1: {got.tolist()}; the 1e-6 in the divisor must make the first two smaller",
    )


@check("2.1", 1, hint="The sample standard deviation of one number is NaN; a single completion has nobody to be compared with: 0.")
def a_group_of_one_gets_zero(student):
    got = student.group_advantages(torch.tensor([1.0, -1.0, -1.0]), torch.tensor([5, 5, 6]))
    expect(got[2:], torch.zeros(1), "groups [5, 5, 6]: the advantage of the last row", tolerance=0)
    need(bool(got[0] != 0), "groups [5, 5, 6], rewards 1, -1, -1: the advantage of the first row is 0")


def _random_rewards(dice: random.Random):
    for i in range(50):
        n = dice.choice([1, 2, 8, dice.randint(3, 24)])
        ids = dice.choice([[dice.randint(-(10**9), 10**9), *range(dice.randint(0, 5))], [4, -4], [2**24, 2**24 + 1], [2**53 + 1, 2**53, 1, 257]])
        group = torch.tensor([dice.choice(ids) for _ in range(n)])
        constant = dice.choice([0.1, 3.3, 100.1, 0.0, -1.0])
        rewards = dice.choice(
            [
                [dice.choice([1.0, -1.0]) for _ in range(n)],
                [dice.uniform(-2, 2) for _ in range(n)],
                [dice.choice([1.0, 0.5, 0.0, -1.0]) - dice.choice([0.0, 0.25]) for _ in range(n)],
                [constant] * n,
                [constant] * (n - 1) + [constant + 0.25],
                [-1.0] * (n - 1) + [-1.0 + 2**-10],
                [0.0] * (n - 1) + [1e-6],
                [1000.0 * dice.randint(0, 3) for _ in range(n)],
            ]
        )
        yield torch.tensor(rewards, dtype=dice.choice([torch.float32, torch.float32, torch.float64])), group
    for n in (64, 300):  # one right of many
        yield torch.tensor([10.0] + [-10.0] * (n - 1)), torch.zeros(n, dtype=torch.long)
        yield torch.tensor([dice.choice([1.0, 0.0]) for _ in range(n)]), torch.arange(n) % 7


@check("2.1", 1, follows="the table of the handout", hint="Take the group of the row that differs, and work it out by hand.")
def fifty_random_groups(student):
    questions = exchanged(_random_rewards(random.Random(21)), a0=lambda rewards: 1 - rewards, a1=torch.zeros_like)
    on_random_inputs(student, "group_advantages", questions, grpo_advantages, 1e-3, "float")


# ---------------------------------------------------------------------------------------------------------------------------------------
tests.task("2.2", "the mask of a completion")


@check("2.2", 1, hint="The stop token is an action of the policy and is trained: it is the last True.")
def the_stop_token_belongs_to_the_completion(student):
    got = student.completion_mask(torch.tensor([[5, 6, 2, 0, 0], [2, 0, 0, 0, 0]]), [2])
    expect(got, torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]).bool(), "ids [[5, 6, 2, 0, 0], [2, 0, 0, 0, 0]], stop 2")


@check("2.2", 1, hint="A completion without a stop token was cut off: all of it counts.")
def a_truncated_completion_counts_to_its_end(student):
    got = student.completion_mask(torch.tensor([[5, 6, 7, 8], [5, 2, 0, 0]]), [2])
    expect(got[:1], torch.ones(1, 4).bool(), "ids [[5, 6, 7, 8], [5, 2, 0, 0]], stop 2: the first row")
    need(not bool(got[1, 3]), "ids [[5, 6, 7, 8], [5, 2, 0, 0]], stop 2: the last place of the second row is padding")


@check("2.2", 1, hint="Do not compare with a pad token: 0 is an ordinary token here, and padding may be the stop token again.")
def padding_is_not_known_by_its_token(student):
    got = student.completion_mask(torch.tensor([[5, 0, 6, 7], [8, 9, 0, 4]]), [2])
    need(bool(got.all()), "ids [[5, 0, 6, 7], [8, 9, 0, 4]] without a stop token: token 0 is masked, but it is an ordinary token")
    got = student.completion_mask(torch.tensor([[5, 2, 2, 2]]), [2])
    need(not bool(got[0, 2:].any()), "ids [[5, 2, 2, 2]], stop 2: what follows the first stop token is padding, whatever token it is")


@check("2.2", 1, hint="Models may have several stop tokens; the first of any kind ends the completion.")
def several_stop_tokens(student):
    got = student.completion_mask(torch.tensor([[5, 3, 6, 2], [5, 6, 2, 3]]), [2, 3])
    need(not bool(got[0, 2:].any()) and bool(got[0, 0]), "ids [5, 3, 6, 2], stop 2 or 3: the completion ends at the 3")
    need(not bool(got[1, 3]) and bool(got[1, :2].all()), "ids [5, 6, 2, 3], stop 2 or 3: the completion ends at the 2")
    got = student.completion_mask(torch.tensor([[5, 4, 3, 2], [5, 3, 2, 4], [5, 2, 4, 3]]), [2, 4, 3])
    need(
        not bool(got[:, 2:].any()) and bool(got[:, 0].all()),
        "stop 2, 4 or 3: rows [5, 4, 3, 2], [5, 3, 2, 4] and [5, 2, 4, 3] end at their second token",
    )


def _mask(ids: torch.Tensor, stop_ids: list[int]) -> torch.Tensor:
    stops = set(stop_ids)
    ends = [next((t for t, x in enumerate(row) if x in stops), len(row)) for row in ids.tolist()]
    return torch.arange(ids.shape[1])[None] <= torch.tensor(ends)[:, None]


def _random_completions(dice: random.Random):
    for _ in range(50):
        n, width, words = dice.choice([1, dice.randint(1, 6)]), dice.choice([1, dice.randint(1, 9)]), dice.choice([3, 12])
        ids = torch.tensor([[dice.randrange(words) for _ in range(width)] for _ in range(n)])
        yield ids, dice.sample(range(words + 3), dice.choice([1, 2, 3, 4]))
    for near in ([5, 261, 65_541, 151_643], [2**24, 2**24 + 1, 2**24 + 2], [2**31 + 7, 7, 8]):  # alike in a byte, in float32, in 32 bits
        for stop in near:
            yield torch.tensor([dice.sample(near, 3) for _ in range(3)]), [stop]
    for stop_ids in ([2], list(range(2, 302)), [9], [1]):  # long rows, many stop tokens
        yield torch.tensor([[2] * 300, [1] * 299 + [2], [1] * 150 + [301] * 150, [1] * 300]), stop_ids


@check("2.2", 1, follows="the stop token belongs to the completion", hint="The result is bool, as wide as ids, and ids stays as it is.")
def fifty_random_completions(student):
    questions = exchanged(_random_completions(random.Random(22)), a1=lambda stop_ids: [s + 1 for s in stop_ids])
    on_random_inputs(student, "completion_mask", questions, _mask, kind="bool")


# ---------------------------------------------------------------------------------------------------------------------------------------
tests.task("2.3", "log-probs of given tokens")


def _logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@check("2.3", 1, hint="log_softmax over the vocabulary (the last dimension), then gather the token that was drawn.")
def the_log_prob_of_each_token(student):
    logits, ids = _logits(2, 3, 7), torch.tensor([[0, 6, 2], [5, 5, 1]])
    wanted = logits.double().log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    expect(student.token_logp(logits, ids, 1.0), wanted, "random logits [2, 3, 7]")


@check("2.3", 1, hint="The policy that sampled was softmax(logits / temperature), so its log-probs are too.")
def the_temperature_counts(student):
    logits, ids = _logits(1, 4, 5, seed=1), torch.tensor([[0, 1, 2, 4]])
    got = [student.token_logp(logits, ids, t) for t in (0.5, 2.0)]
    wanted = [(logits.double() / t).log_softmax(-1).gather(-1, ids[..., None])[..., 0] for t in (0.5, 2.0)]
    plain = student.token_logp(logits, ids, 1.0)
    need(not alike(got[0], plain), "temperatures 0.5 and 1 give the same log-probs")
    # Relative to temperature 1, so that a slip of the task above is not counted twice.
    base = logits.double().log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    for g, w, t in zip(got, wanted, (0.5, 2.0)):
        expect(g.double() - plain.double(), w - base, f"log-prob at temperature {t} minus that at 1", 1e-4)


@check("2.3", 1, hint="log(softmax(z)) is log(0) = -inf for an improbable token, and exp(1e4) is inf. log_softmax is neither.")
def improbable_tokens_and_large_logits_stay_finite(student):
    logits = torch.tensor([[[0.0, -200.0, -300.0], [1e4, 1e4 - 5.0, 0.0]]])
    got = student.token_logp(logits, torch.tensor([[1, 1]]), 1.0)
    need(
        bool(got.isfinite().all()),
        f"logits [0, -200, -300] and [10000, 9995, 0], token 1: {got.flatten().tolist()} instead of about -200 and -5",
    )
    expect(got, torch.tensor([[-200.0, -5.00672]]), "logits [0, -200, -300] and [10000, 9995, 0], token 1", 1e-2)


def _token_logp(logits, ids, temperature):
    return (logits.double() / temperature).log_softmax(-1).gather(-1, ids[..., None])[..., 0]


def _with_gradient(right):
    """What `right` says of logits and more, and the gradient of its sum in the logits."""

    def ask(logits, *more):
        leaf = logits.double().requires_grad_()
        value = right(leaf, *more)
        return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]

    return ask


def _random_logits(dice: random.Random):
    for seed in range(50):
        n, t, v = dice.randint(1, 4), dice.choice([1, dice.randint(1, 6)]), dice.choice([2, 7, 70])
        logits = _logits(n, t, v, seed=seed) * dice.choice([0.0, 0.3, 1.0, 3.0]) + dice.choice([0.0, 0.0, 100.0])
        ids = torch.tensor([[dice.randrange(v) for _ in range(t)] for _ in range(n)])
        yield logits.to(dice.choice([torch.float32, torch.float64])), ids, dice.choice([1.0, 0.5, 0.7, dice.uniform(0.3, 3.0)])
    for shape in ((1, 1, 2000), (1, 300, 3)):  # a large vocabulary, a long row
        yield _logits(*shape, seed=1), torch.full(shape[:2], shape[2] - 1), 1.0
    for scale in (10.0, 100.0, 1000.0):  # tokens so improbable that their probability is 0, even in float64
        yield scale * _logits(2, 3, 7, seed=2), torch.tensor([[0, 6, 2], [5, 5, 1]]), 1.0
    for temperature in (0.02, 0.1, 30.0):
        yield temperature * _logits(2, 3, 7, seed=3), torch.tensor([[0, 6, 2], [5, 5, 1]]), temperature


@check(
    "2.3",
    1,
    follows="the log prob of each token",
    hint="log_softmax of logits / temperature over the last dimension, then gather. The gradient goes through all of it: no detach, no .item().",
)
def fifty_random_logits(student):
    questions = exchanged(_random_logits(random.Random(23)), a1=torch.zeros_like, a2=lambda temperature: 1.5 * temperature)
    on_random_inputs(student, "token_logp", questions, _with_gradient(_token_logp), 5e-4, "float", of=0)


# ---------------------------------------------------------------------------------------------------------------------------------------
tests.task("2.4", "log-probs of completions behind their prompts")


@check(
    "2.4",
    1,
    hint="The logits at place i predict the token at place i + 1: the first completion token is predicted by the prompt's last. "
    "And the temperature counts here too.",
)
def logits_predict_the_next_token(student):
    logits, ids = _logits(1, 6, 9, seed=2), torch.tensor([[4, 8, 1, 7, 0, 3]])
    logp = logits.double().log_softmax(-1)
    got = student.completion_logp(logits, ids, torch.tensor([2]), torch.tensor([4]), 1.0)
    expect(got, torch.stack([logp[0, i - 1, ids[0, i]] for i in range(2, 6)])[None], "prompt of 2 tokens, completion of 4")
    if not alike(*(student.token_logp(logits, ids, t) for t in (1.0, 2.0))):  # or it would cost twice
        other = student.completion_logp(logits, ids, torch.tensor([2]), torch.tensor([4]), 2.0)
        need(not alike(got, other), "temperatures 1 and 2 give the same log-probs")
    known = student.token_logp(logits[:, 1:5], ids[:, 2:], 0.5)
    if same(known, _token_logp(logits[:, 1:5], ids[:, 2:], 0.5), 1e-4):
        other = student.completion_logp(logits, ids, torch.tensor([2]), torch.tensor([4]), 0.5)
        expect(other, known, "prompt of 2 tokens, completion of 4, temperature 0.5: the log-probs of your own token_logp", 1e-4)


@check(
    "2.4", 1, hint="Every row has its own prompt length; the result is lined up at the first completion token, and 0 where a row has ended."
)
def rows_of_unlike_length(student):
    logits, ids = _logits(2, 5, 4, seed=3), torch.tensor([[1, 2, 3, 0, 1], [2, 1, 0, 3, 3]])
    got = student.completion_logp(logits, ids, torch.tensor([1, 3]), torch.tensor([4, 1]), 1.0)
    need(tuple(got.shape) == (2, 4), f"lengths 4 and 1: the result has shape {tuple(got.shape)} instead of (2, 4)")
    need(
        bool((got[1, 1:] == 0).all()) and len(set(got[0].tolist()) - {0.0}) == 4,
        "lengths 4 and 1: the first row has four log-probs, the second one, and 0 in the other three places",
    )
    # Its first token is the first of the second row, whatever the rule of the shift.
    alone = student.completion_logp(logits[1:], ids[1:], torch.tensor([3]), torch.tensor([1]), 1.0)
    expect(got[1, :1], alone[0, :1], "the second row beside a longer one, and alone")


def _completion_logp(logits, ids, prompt_lengths, lengths, temperature):
    out = torch.zeros(len(ids), int(lengths.max()), dtype=torch.float64)
    for i, (p, n) in enumerate(zip(prompt_lengths.tolist(), lengths.tolist())):
        out[i, :n] = _token_logp(logits[i : i + 1, p - 1 : p - 1 + n], ids[i : i + 1, p : p + n], temperature)[0]
    return out


def _random_rows(dice: random.Random):
    for seed in range(50):
        n, width, v = dice.randint(1, 5), dice.randint(2, 10), dice.choice([3, 20])
        prompts = torch.tensor([dice.randint(1, width - 1) for _ in range(n)])
        lengths = torch.tensor([dice.choice([1, width - p, dice.randint(1, width - p)]) for p in prompts.tolist()])
        ids = torch.tensor([[dice.randrange(v) for _ in range(width)] for _ in range(n)])
        yield _logits(n, width, v, seed=seed), ids, prompts, lengths, dice.choice([1.0, 0.6, dice.uniform(0.4, 2.0)])
    ids = torch.tensor([[dice.randrange(3) for _ in range(300)] for _ in range(2)])  # long rows, improbable tokens
    yield 50 * _logits(2, 300, 3), ids, torch.tensor([1, 299]), torch.tensor([299, 1]), 5.0


@check(
    "2.4",
    1,
    follows="logits predict the next token",
    hint="Look at the first row that differs: its prompt, its length, its temperature. The gradient flows here too: no detach, no .item().",
)
def fifty_random_rows(student):
    questions = exchanged(_random_rows(random.Random(24)), a1=torch.zeros_like, a3=torch.ones_like, a4=lambda temperature: 1.5 * temperature)
    on_random_inputs(student, "completion_logp", questions, _with_gradient(_completion_logp), 5e-4, "float", of=0)
