"""The rules for defects, and that each kind of author of the built-in web has the defects it is there for."""

import math
import random
from collections import Counter
from dataclasses import replace

import pytest

from rlvr.analysis.errors import entropy_by_tenth, right_by_question, stretches
from rlvr.analysis.errors import shares as shares_of_errors
from rlvr.run.defects import DEFECTS, ERRORS, defects, error_kind
from rlvr.reward import last_boxed
from rlvr.tiny.task import AUTHORS, CLEAN, STOCK, Author, read_story, sample_document, sample_story, write


def found(text: str, finished: bool = True, steps: int | None = None) -> set[str]:
    result = defects(text, finished, steps)
    assert tuple(result) == DEFECTS and all(type(value) is bool for value in result.values())
    return {name for name, value in result.items() if value}


GOOD = " Eva starts with 8. 8+12=20. Then 20-6=14. So the answer is \\boxed{14}."


@pytest.mark.parametrize(
    "text, steps",
    [
        (GOOD, 2),
        (GOOD, None),
        (GOOD.replace(". ", ".\n"), 2),  # a step on each line
        (" We start with 8. 8 * 2 = 16. 16 - 20 = -4. The answer is \\boxed{-4}.", 2),  # a negative result is no wrong step
        ("So \\boxed{3}. No: \\boxed{\\frac{1}{2}}", None),
        ("8+12=20. 8+12=20. \\boxed{20}", 1),  # twice is not a loop
        ("\\boxed{} or \\boxed{5}", None),  # the last box counts
    ],
)
def test_no_defect(text, steps):
    assert found(text, steps=steps) == set()


@pytest.mark.parametrize(
    "text, steps, expected",
    [
        (GOOD.replace("\\boxed{14}", "14"), 2, {"no_box"}),
        ("", None, {"no_box"}),
        (GOOD.replace("{14}", "{14"), 2, {"broken_box"}),
        (GOOD.replace("{14}", "{}14"), 2, {"broken_box"}),
        (GOOD.replace("{14}", "{ }14"), 2, {"broken_box"}),
        ("The answer is \\boxed", None, {"broken_box"}),
        (GOOD.replace("8+12=20", "8+12=21"), 2, {"wrong_step"}),
        (GOOD.replace("20-6=14", "20-6=26"), 2, {"wrong_step"}),
        ("3*4=7. \\boxed{7}", 1, {"wrong_step"}),
        (GOOD, 3, {"skipped_step"}),
        ("The answer is \\boxed{14}.", 1, {"skipped_step"}),
        (GOOD.replace("Then", "My dog is asleep."), 2, {"chatter"}),
        (GOOD + " Who knew this?", 2, {"chatter"}),
        (GOOD + " 7 moons." * 3, 2, {"loop"}),
        (GOOD + " Moon river." * 4, 2, {"loop", "chatter"}),
        ("Moon river. " * 3 + GOOD, None, {"loop"}),  # words are no defect where the steps are not known
    ],
)
def test_one_defect(text, steps, expected):
    assert found(text, steps=steps) == expected


def test_a_truncated_completion_is_overlong():
    assert found(GOOD, finished=False, steps=2) == {"overlong"}


@pytest.mark.parametrize(
    "text",
    ["2*3-4=2.", "2 * 3 - 4 = 2.", "10 - 3 - 4 = 3.", "12/4-1=2.", "-5+3=-2.", "1+2+3=6.", "3.5+1=4.5.", "10-2.5=7.5", "2*(3+1)-4=4."],
)
def test_an_equation_of_another_form_is_not_judged(text):
    """Only a+b=c with plain whole numbers is checked. A part of a longer or a decimal expression is not taken for one."""
    assert "wrong_step" not in found(text)


@pytest.mark.parametrize("text", ["So $8+12=21$.", "- 8+12=21", "x = 8 + 12 = 21.", "8+12=20, 20+1=22."])
def test_a_wrong_step_is_seen_wherever_it_stands(text):
    assert "wrong_step" in found(text)


# ---------------------------------------------------------------------------------------------------------------------------------------
# The first error of a wrong answer

STORY = "Q: Eva has 8 books. Eva picks up 12. Eva finds 5 more. Eva loses 6. "
LARGEST, FAR = STORY + "What was the largest number of books?\nA:", STORY + "How far is the last number of books from the first?\nA:"
STEPS = " Eva starts with 8. 8+12=20. 20+5=25. 25-6=19."


@pytest.mark.parametrize(
    "prompt, text, kind",
    [
        (LARGEST, STEPS + " The answer is \\boxed{19}.", "selection"),  # the last number, whatever was asked
        (LARGEST, STEPS + " The largest is 20. The answer is \\boxed{20}.", "selection"),
        (FAR, STEPS + " 25-8=17. The answer is \\boxed{17}.", "selection"),  # a true difference of other numbers
        (LARGEST, STEPS + " The largest is 25. The answer is 25.", "form"),
        (LARGEST, STEPS + " The largest is 25. The answer is \\boxed{}25.", "form"),
        (LARGEST, STEPS.replace("8+12", "8+13").replace("20", "21") + " \\boxed{25}", "copying"),  # another number than the story's
        (LARGEST, STEPS.replace("8+12=20", "8-12=-4") + " \\boxed{25}", "copying"),  # another sign
        (LARGEST, STEPS.replace("20+5", "21+5") + " \\boxed{26}", "copying"),  # another number than that of the step before
        (LARGEST, STEPS.replace(" 20+5=25.", "") + " \\boxed{20}", "copying"),  # a step was left out
        (LARGEST, STEPS.replace("20+5=25", "20+5=26") + " 26-6=20. \\boxed{26}", "calculation"),
        (FAR, STEPS + " 19-8=12. The answer is \\boxed{12}.", "calculation"),
        (LARGEST, STEPS.replace(" 25-6=19.", "") + " The answer is \\boxed{20}.", "unfinished"),
        (LARGEST, "", "unfinished"),
        (LARGEST, "25", "unfinished"),
        (LARGEST, STEPS.replace("=20. 20+5=25", "=21. 20+5=24"), "calculation"),  # the first of several
    ],
)
def test_the_first_error_of_a_wrong_answer(prompt, text, kind):
    assert error_kind(prompt, text) == kind and kind in ERRORS


def test_every_kind_of_error_is_on_the_web():
    rng, kinds = random.Random(0), Counter()
    for _ in range(2000):
        problem, text = sample_document(rng, 0.0, level=3)
        if last_boxed(text) != str(read_story(problem).answer):
            kinds[error_kind(problem, text)] += 1
    assert set(kinds) == set(ERRORS) and min(kinds.values()) > 20 and kinds["selection"] > 200


def test_errors_are_counted_over_stretches_of_a_run():
    good, lazy = STEPS + " The largest is 25. The answer is \\boxed{25}.", STEPS + " The answer is \\boxed{19}."

    def row(step, text, entropy):
        return {"step": step, "prompt": LARGEST, "completion": text, "correct": text == good, "entropy": entropy}

    rows = [row(1, good, [0.0] * 9 + [1.0]), row(2, lazy, [0.5] * 20), row(2, lazy, [1.0] * 10), row(3, "", []), row(5, lazy, [0.2])]
    first, second, third = map(shares_of_errors, stretches(rows, 2))
    assert (first["step"], first["completions"], first["right"], first["selection"], first["form"]) == (2, 3, 1 / 3, 2 / 3, 0)
    assert (second["step"], second["unfinished"]) == (3, 1)
    assert (third["step"], third["completions"], third["selection"]) == (5, 1, 1)
    asked = right_by_question([*rows, {"prompt": FAR, "correct": True}])
    assert (asked["largest"], asked["difference"]) == (1 / 5, 1) and math.isnan(asked["last"])
    profile = entropy_by_tenth(rows[:4])
    assert profile["right"] == [0.0] * 9 + [1.0]
    assert profile["wrong"] == pytest.approx([(2 * 0.5 + 1) / 3] * 10)  # two tokens of the longer answer, one of the other
    assert all(map(math.isnan, entropy_by_tenth(rows[3:])["right"]))


# ---------------------------------------------------------------------------------------------------------------------------------------
# The authors


def documents(author: Author, n: int = 1500, seed: int = 0):
    """(story, text, defects) of n documents by one author."""
    rng = random.Random(seed)
    for _ in range(n):
        story = sample_story(rng, "web")
        text = write(rng, story, author)
        yield story, text, found(text, steps=len(story.ops))


def shares(author: Author) -> Counter:
    n = 1500
    return Counter({name: count / n for name, count in Counter(name for _, _, names in documents(author, n) for name in names).items()})


def test_a_clean_document_has_no_defect_and_the_right_answer():
    for story, text, names in documents(CLEAN):
        assert names == set() and last_boxed(text) == str(story.answer)


def test_a_careful_author_without_slips_only_forgets_the_box():
    careful = shares(replace(AUTHORS["careful"], wrong_step=0, noise=0))
    assert set(careful) == {"no_box", "broken_box"} and 0.1 < careful["no_box"] < 0.3


def test_a_wrong_step_is_seen_and_carried_on():
    author = replace(CLEAN, wrong_step=1.0)
    for story, text, names in list(documents(author, 200)):
        assert names <= {"wrong_step"}
    assert shares(author)["wrong_step"] > 0.9  # a slip can hit the right number by chance
    wrong = [last_boxed(text) != str(story.answer) for story, text, _ in documents(author, 200)]
    assert sum(wrong) > 160


def test_a_guesser_skips_every_step():
    for _, text, names in documents(AUTHORS["guessing"], 300):
        assert "skipped_step" in names and "=" not in text and "wrong_step" not in names


def test_a_rambler_loops_or_chatters():
    rambling = replace(CLEAN, ramble=1.0)
    seen = Counter()
    for _, _, names in documents(rambling, 300):
        assert "chatter" in names and names <= {"chatter", "loop"}
        seen[frozenset(names)] += 1
    assert len(seen) == 2  # some loop, some write one long stretch of words


def test_noise_is_chatter():
    assert all(names == {"chatter"} for _, _, names in documents(replace(CLEAN, noise=1.0), 200))
    assert not any(c.isdigit() for sentence in STOCK for c in sentence)


def test_one_who_skips_a_step_is_seen():
    author = replace(CLEAN, skip_step=0.5)
    for story, text, names in documents(author, 300):
        assert names == ({"skipped_step"} if text.count("=") < len(story.ops) else set())


def test_defects_come_bundled():
    """Each kind of author stands out by what it is there for, and the careful one is the best in everything."""
    share = {name: shares(author) for name, author in AUTHORS.items()}
    assert max(share, key=lambda name: share[name]["wrong_step"]) == "sloppy"
    assert max(share, key=lambda name: share[name]["loop"]) == "rambling" and share["rambling"]["loop"] > 0.2
    assert max(share, key=lambda name: share[name]["skipped_step"]) == "guessing"
    assert share["chatty"]["chatter"] > 0.5
    for name in set(share) - {"careful"}:
        assert sum(share[name].values()) > sum(share["careful"].values())
    assert sum(author.share for author in AUTHORS.values()) == pytest.approx(1)
