"""Public tests of assignment 6: your functions train the built-in model. They ask for the loss of small batches, then take the weights of
the trained model and measure here what it can do.
"""

import hashlib
import random

import torch

from rlvr.advantage import grpo_advantages
from rlvr.loss import clipped_loss
from rlvr.reward import verify
from rlvr.rollout import completion_lengths
from rlvr.tiny.task import sample_stories
from tutorials.assignments.checks import Assignment, expect, need, show

tests = Assignment()
check = tests.check

SEED = 6  # of the training
PROBLEMS, COMPLETIONS = 200, 2  # of the measurement
BASE = 0.21  # pass@1 of the model as it is given
BETTER, GOOD = 0.33, 0.50  # what is asked for; instructor.md has the margins
REACH = 0.15  # farther than this from where it began, no weight can come in the given loop

# ---------------------------------------------------------------------------------------------------------------------------------------
tests.task("6.1", "the rewards")


@check("6.1", 4, hint="Your verify of assignment 1 for each completion: 1 if it is right, -1 if not. As many numbers as completions.")
def right_completions_earn_one(student):
    texts = [r" 8+4=12. The answer is \boxed{12}.", r" The answer is \boxed{13}.", " The answer is 12.", r" \boxed{1} No: \boxed{12}"]
    for golds, right in ((["12"] * 4, [1.0, -1.0, -1.0, 1.0]), (["13", "13", "12", "1"], [-1.0, 1.0, -1.0, -1.0])):
        expect(student.rewards(texts, golds), torch.tensor(right), f"completions {texts}, gold answers {golds}")


# ---------------------------------------------------------------------------------------------------------------------------------------
tests.task("6.2", "the loss")

BATCHES, STOP, PROMPT, WORDS = 24, 0, 3, 12  # small ones; the token that ends a completion; the longest prompt; tokens in the vocabulary


def _small_batches(rows: int = 6, longest: int = 6):
    """(logits, ids, prompt_lengths, completions, old_logp, group, rewards), as the loop has them; the policy has moved, but for every fourth.

    Groups are of unlike size and mixed up in the rows, some all right; completions end early, late, or are truncated. No ratio is on a
    bound of the clip, where the gradient is what the form of the maximum makes of it.
    """
    for seed in range(BATCHES):
        dice, g = random.Random(seed), torch.Generator().manual_seed(seed)
        prompts = torch.tensor([dice.randint(1, PROMPT) for _ in range(rows)])
        completions = torch.randint(0 if seed % 3 else 1, WORDS, (rows, longest), generator=g)
        ids = torch.randint(1, WORDS, (rows, PROMPT + longest), generator=g)
        for row, prompt, completion in zip(ids, prompts.tolist(), completions):
            row[prompt : prompt + longest] = completion
        logits = 2 * torch.randn(rows, PROMPT + longest, WORDS, generator=g)
        logp, mask = _logp_and_mask(logits, prompts, completions)
        old_logp = logp + (0 if seed % 4 == 0 else dice.choice([0.1, 0.5, 1.5])) * torch.randn(logp.shape, generator=g)
        group = torch.tensor([dice.randint(0, 2) for _ in range(rows)])
        rewards = torch.tensor([dice.choice([1.0, -1.0]) for _ in range(rows)])
        yield logits, ids, prompts, completions, old_logp.masked_fill(~mask, torch.nan), group, rewards


def _logp_and_mask(logits, prompts, completions):
    at = torch.arange(completions.shape[1])
    before = logits[torch.arange(len(prompts))[:, None], prompts[:, None] - 1 + at]  # [N, T, V]
    return before.log_softmax(-1).gather(-1, completions[..., None])[..., 0], at < completion_lengths(completions, {STOP})[0][:, None]


def _right_loss(logits, ids, prompts, completions, old_logp, group, rewards):
    leaf = logits.double().requires_grad_()
    logp, mask = _logp_and_mask(leaf, prompts, completions)
    loss, _ = clipped_loss(logp, old_logp.double(), grpo_advantages(rewards, group)[:, None].expand(mask.shape).double(), mask)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


@check(
    "6.2",
    6,
    hint="Its value or its gradient is another one. _small_batches() in tests.py makes the batches: print mask, log-probs, advantages and "
    "ratios of one, and look at each beside its own assignment.",
)
def its_value_and_its_gradient(student):
    for number, batch in enumerate(_small_batches(), 1):
        asked, answer, (wanted, gradient) = f"small batch {number} of {BATCHES}", student.whole("loss", *batch, of=0), _right_loss(*batch)
        expect(answer.value, wanted, asked, 2e-4)
        need(answer.gradient is not None or not gradient.any(), f"{asked}: no gradient flows into the logits")
        if answer.gradient is not None:
            expect(answer.gradient, gradient, f"{asked}, the gradient in the logits", 2e-4)
        need(not answer.changed, f"{asked}: the function has written to the batch, which belongs to the caller: work on a copy")


# ---------------------------------------------------------------------------------------------------------------------------------------
tests.task("6.3", "the model learns")

ALIKE = 0.1  # a loss whose gradient has a cosine with the right one above this may be what has taught the model


def pass_at_1(model) -> float:
    """Of stories made up here: test problems share no sequence of numbers with those that are given."""
    from tutorials.assignments.a6 import given  # not above: it imports a tokenizer, and the other assignments need none

    stories = sample_stories("test", PROBLEMS, 66)
    batch = given.sample(model, [{"question": s.problem, "answer": str(s.answer)} for s in stories], COMPLETIONS, 6)
    return sum(map(verify, batch.texts, batch.golds)) / len(batch.texts)


def _trained(student):
    from tutorials.assignments.a6 import given

    before, after = given.weights(given.Model()), student.weights("train", SEED)
    need(after.shape == before.shape, f"train: {show(after)}, but the model has {before.numel()} weights")
    farthest = (after - before).abs().max().item()
    need(farthest > 0, "after training every weight is what it was: has the loss a gradient, and is no advantage other than 0?")
    need(farthest < REACH, f"a weight has moved by {farthest:.3g}, farther than {REACH}, which the given loop cannot do")
    return given.with_weights(after)


@check("6.3", 2, hint="A NaN comes from what is behind the stop token, where old_logp is NaN: the mask must keep it out. See assignment 3.")
def every_weight_is_a_number_and_some_have_moved(student):
    _trained(student)


_measured: dict[bytes, float] = {}  # by the weights, so that two checks measure once


def _share(student) -> float:
    """pass@1, if it is the loss that has taught the model: it learns nothing from one that points elsewhere, however often it is right."""
    from tutorials.assignments.a6 import given

    batches = list(_small_batches())
    found = [student.whole("loss", *batch, of=0).gradient for batch in batches]
    need(all(x is not None and x.shape == batch[0].shape for x, batch in zip(found, batches)), "no gradient flows from the loss into the logits")
    alike = torch.cosine_similarity(*(torch.cat([x.flatten().double() for x in all]) for all in (found, [_right_loss(*b)[1] for b in batches])), 0)
    need(bool(alike > ALIKE), f"the loss of small batches points elsewhere than the right one (cosine of the gradients: {alike:.2f})")
    model = _trained(student)
    key = hashlib.sha256(given.weights(model).numpy().tobytes()).digest()
    if key not in _measured:
        _measured[key] = pass_at_1(model)
    return _measured[key]


@check(
    "6.3",
    4,
    hint="python given.py shows the curve. Falls to 0: the sign, or log-probs that are shifted by one. Does not move: rewards, or advantages. "
    "Try each function by its own assignment's tests.",
)
def it_is_right_more_often_than_before(student):
    got = _share(student)
    need(got > BETTER, f"pass@1 on {PROBLEMS} new problems: {got:.3f}, not above {BETTER} (before training: {BASE})")


@check("6.3", 4, hint="It learns, but slowly: max or min in the loss, the temperature, the clip (0.2 and 0.28).")
def it_learns_as_much_as_it_should(student):
    got = _share(student)
    need(got > GOOD, f"pass@1 on {PROBLEMS} new problems: {got:.3f}, not above {GOOD} (before training: {BASE})")
