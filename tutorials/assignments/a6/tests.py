"""Public tests of assignment 6: your functions train the built-in model. They take its weights, and measure here what it can do."""

import hashlib

import torch

from rlvr.reward import verify
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
tests.task("6.2", "the model learns")


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


@check("6.2", 4, hint="A NaN comes from what is behind the stop token, where old_logp is NaN: the mask must keep it out. See assignment 3.")
def every_weight_is_a_number_and_some_have_moved(student):
    _trained(student)


_measured: dict[bytes, float] = {}  # by the weights, so that two checks measure once


def _share(student) -> float:
    from tutorials.assignments.a6 import given

    model = _trained(student)
    key = hashlib.sha256(given.weights(model).numpy().tobytes()).digest()
    if key not in _measured:
        _measured[key] = pass_at_1(model)
    return _measured[key]


@check(
    "6.2",
    6,
    hint="python given.py shows the curve. Falls to 0: the sign, or log-probs that are shifted by one. Does not move: rewards, or advantages. "
    "Try each function by its own assignment's tests.",
)
def it_is_right_more_often_than_before(student):
    got = _share(student)
    need(got > BETTER, f"pass@1 on {PROBLEMS} new problems: {got:.3f}, not above {BETTER} (before training: {BASE})")


@check("6.2", 6, hint="It learns, but slowly: max or min in the loss, the temperature, the clip (0.2 and 0.28).")
def it_learns_as_much_as_it_should(student):
    got = _share(student)
    need(got > GOOD, f"pass@1 on {PROBLEMS} new problems: {got:.3f}, not above {GOOD} (before training: {BASE})")
