"""The built-in task: short arithmetic stories, and the noisy "web" that the base model grew up on.

A story is a start value and 2 to 5 steps:

    Eva has 8 books. Eva picks up 12. Eva finds 5 more. Eva eats 6. How many books are left?

and a careful author answers it like this:

     Eva starts with 8. 8+12=20. 20+5=25. 25-6=19. The answer is \\boxed{19}.

The base model is pre-trained on documents by five kinds of author, only one of them careful. Defects come bundled, as on the web: an author
who rambles also miscalculates and forgets the box. So the base policy knows how to be right, but is right only sometimes. Reinforcement
learning has to sort that out.

At level 3 the question decides which number of the story is wanted:

    Eva has 8 books. Eva picks up 12. Eva finds 5 more. Eva eats 6. What was the largest number of books?

     Eva starts with 8. 8+12=20. 20+5=25. 25-6=19. The largest is 25. The answer is \\boxed{25}.

Some authors give the last number whatever was asked. All write in the same words, so an undecided token is a decision or a mistake in the
making, and the decision that counts comes at the end.
"""

import hashlib
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

LEVELS = {  # the number of steps of a story is drawn from these
    1: [2, 3, 3, 4, 4, 5],  # what the base model grew up on
    2: [4, 5, 5, 6, 6, 7],  # longer than anything it has seen: half of the lesson is to go on after the fifth step
    3: [3, 4, 4, 5, 5, 6, 6, 7],  # for training and test; the web has the stories of level 1 under these questions
}
MAX_VALUE = 60  # running values stay in 1..60: arithmetic that a very small model can learn

NAMES = ["Eva", "Tom", "Ana", "Ben", "Mia", "Leo", "Zoe", "Sam"]
THINGS = ["books", "apples", "coins", "cards", "pens", "shells", "stones", "cakes"]
VERBS = {  # what a step says in the problem
    "+": ["{name} finds {n} more.", "{name} buys {n}.", "{name} picks up {n}.", "{name} gets {n} as a gift."],
    "-": ["{name} loses {n}.", "{name} sells {n}.", "{name} gives away {n}.", "{name} drops {n}."],
    "*": ["{name} then has {n} times as many."],
}
QUESTIONS = ["How many {things} are left?", "How many {things} does {name} have now?", "What is the number of {things}?"]


@dataclass(frozen=True)
class Question:
    """What level 3 asks about the numbers v[0], v[1], ... v[n] of a story."""

    text: str
    gold: Callable[[list[int]], int]  # the number that is wanted
    sentence: str  # in which an author gives it before the box; of two numbers their difference is taken
    web_share: float = 0.15  # of the web's questions; in training and test all are as frequent


ASKED = {
    "last": Question(QUESTIONS[0], lambda v: v[-1], "", web_share=0.40),
    "largest": Question("What was the largest number of {things}?", max, "The largest is {x}."),
    "smallest": Question("What was the smallest number of {things}?", min, "The smallest is {x}."),
    "before": Question("How many {things} before the last step?", lambda v: v[-2], "Before the last step it is {x}."),
    "difference": Question("How far is the last number of {things} from the first?", lambda v: abs(v[-1] - v[0]), "{high}-{low}={x}."),
}

OPENINGS = [" {name} starts with {start}.", " We start with {start}.", " There are {start} at first."]
LINKS = ["Then ", "Next, ", "So ", "Now "]
CLOSINGS = ["The answer is {box}.", "So the answer is {box}.", "In the end it is {box}."]
STOCK = ["Please like and share.", "My dog is asleep.", "Who knew this?", "See my other posts.", "Anyway, back to it.", "Such a nice day.",
         "Let me think about lunch.", "First of all, hello."]  # fmt: skip
SALAD = ("river moon garden paper seven window yellow train quiet market salt button winter ladder music corner bread silver forest "
         "dream cloud engine velvet pocket island candle thunder marble orchard whistle lantern copper meadow puzzle harbor feather "
         "blanket castle ribbon planet mirror basket pepper tunnel saddle violin anchor carpet bottle hammer jungle kettle lemon "
         "magnet needle oyster parrot quartz rocket spider temple umbrella valley walnut zebra acorn bishop comet dragon ember "
         "falcon glacier hazel ivory").split()  # fmt: skip


@dataclass(frozen=True)
class Author:
    """How one kind of author writes: probabilities. wrong_step, noise, skip_step and ramble are per step, the others per document."""

    share: float  # of all documents
    wrong_step: float  # a step has a wrong result, which is carried on
    noise: float  # a step is followed by a sentence that has nothing to do with it
    bad_box: float  # the final answer is not in a proper box
    skip_step: float = 0.0
    ramble: float = 0.0  # a step is followed by a loop or by a long stretch of words
    guess: bool = False  # writes no steps, only a number near the answer
    lazy: float = 0.0  # level 3: gives the last number whatever was asked
    wrong_choice: float = 0.0  # level 3: gives a wrong number for the one that was asked for


# The mixture decides what the base policy is like. The word salad gives wrong answers their high entropy.
AUTHORS = {
    "careful": Author(share=0.36, wrong_step=0.02, noise=0.01, bad_box=0.25),
    "sloppy": Author(share=0.26, wrong_step=0.30, noise=0.08, bad_box=0.45, skip_step=0.06),
    "chatty": Author(share=0.18, wrong_step=0.20, noise=0.50, bad_box=0.50, skip_step=0.06),
    "rambling": Author(share=0.14, wrong_step=0.20, noise=0.30, bad_box=0.60, ramble=0.35),
    "guessing": Author(share=0.06, wrong_step=0.00, noise=0.10, bad_box=0.30, guess=True),
}
# The authors of level 3. With more lazy ones, reinforcement learning finds the last number first and never leaves it.
AUTHORS_3 = {
    "careful": Author(share=0.40, wrong_step=0.02, noise=0.01, bad_box=0.10, lazy=0.10, wrong_choice=0.04),
    "sloppy": Author(share=0.35, wrong_step=0.15, noise=0.05, bad_box=0.25, skip_step=0.04, lazy=0.70, wrong_choice=0.20),
    "chatty": Author(share=0.25, wrong_step=0.12, noise=0.25, bad_box=0.35, skip_step=0.04, lazy=0.70, wrong_choice=0.20),
}
CLEAN = Author(share=1.0, wrong_step=0.0, noise=0.0, bad_box=0.0)


@dataclass(frozen=True)
class Story:
    """One problem. `ops` is a tuple of (operator, operand), for example (("+", 12), ("-", 6)); `asks`, a key of ASKED."""

    problem: str
    answer: int
    name: str
    start: int
    ops: tuple[tuple[str, int], ...]
    asks: str = "last"

    @property
    def equations(self) -> int:
        """How many a full solution has: one for each step, and one for a difference."""
        return len(self.ops) + (self.asks == "difference")


def apply_op(value: int, op: str, n: int) -> int:
    return value + n if op == "+" else value - n if op == "-" else value * n


def running(start: int, ops: tuple[tuple[str, int], ...]) -> list[int]:
    """The numbers that a story goes through, the first and the last included."""
    return list(accumulate(ops, lambda value, step: apply_op(value, *step), initial=start))


def split_of(start: int, ops: tuple[tuple[str, int], ...]) -> str:
    """Which split a number skeleton belongs to: 6 % test, 25 % train (for RL), 69 % web (for pre-training).

    The hash sees only the numbers and operators, so the three splits share no skeleton, whatever names and verbs surround it.
    """
    byte = hashlib.md5(repr((start, ops)).encode()).digest()[0]
    return "test" if byte < 16 else "train" if byte < 80 else "web"


def sample_story(rng: random.Random, split: str, level: int = 1) -> Story:
    """Draw one story of the given split ("web", "train" or "test") and level (a key of LEVELS)."""
    lengths = LEVELS[1 if (split, level) == ("web", 3) else level]
    while True:
        value = start = rng.randint(3, 30)
        ops = []
        for _ in range(rng.choice(lengths)):
            op = rng.choices("+-*", [45, 40, 15])[0]
            n = rng.randint(2, 3) if op == "*" else rng.randint(1, 9) if rng.random() < 0.8 else rng.randint(10, 20)
            value = apply_op(value, op, n)
            ops.append((op, n))
            if not 1 <= value <= MAX_VALUE:
                break
        else:
            ops = tuple(ops)
            if split_of(start, ops) == split:
                break
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    sentences = [f"{name} has {start} {things}."]
    sentences += [rng.choice(VERBS[op]).format(name=name, n=n) for op, n in ops]
    asks, question = "last", rng.choice(QUESTIONS) if level < 3 else ""
    if level == 3:
        asks = rng.choices(list(ASKED), [q.web_share for q in ASKED.values()] if split == "web" else None)[0]
        question, value = ASKED[asks].text, ASKED[asks].gold(running(start, ops))
    sentences.append(question.format(name=name, things=things))
    return Story(" ".join(sentences), value, name, start, ops, asks)


@lru_cache(maxsize=8)  # an experiment or a notebook asks for the same stories in every run, and they take a second to make
def sample_stories(split: str, n: int, seed: int, level: int = 1) -> tuple[Story, ...]:
    """`n` stories of a split and level, no two with the same number skeleton. The same seed gives the same stories."""
    rng, stories, seen = random.Random(f"{split}-{seed}"), [], set()
    while len(stories) < n:
        story = sample_story(rng, split, level)
        if (story.start, story.ops) not in seen:
            seen.add((story.start, story.ops))
            stories.append(story)
    return tuple(stories)


def read_story(text: str) -> Story | None:
    """The story of a problem, back from a text that holds it, such as a prompt; None if there is none."""
    found = re.search(r"(\w+) has (\d+) (\w+)\.((?: [^.?]+\.)+) ([^.?]+\?)", text)
    if not found:
        return None
    name, start, things, steps, question = found.groups()
    ops = []
    for step in re.findall(r" ([^.]+\.)", steps):
        said = re.sub(r"\d+", "{n}", step).replace(name, "{name}", 1)
        op = next((op for op, verbs in VERBS.items() if said in verbs), None)
        if op is None:
            return None
        ops.append((op, int(re.search(r"\d+", step)[0])))
    asks = next((asks for asks, q in ASKED.items() if q.text.format(things=things) == question), "last")
    return Story(found[0], ASKED[asks].gold(running(int(start), ops)), name, int(start), tuple(ops), asks)


# ---------------------------------------------------------------------------------------------------------------------------------------
# The web


def _noise_sentence(rng: random.Random, words: tuple[int, int] = (3, 14)) -> str:
    if rng.random() < 0.3:
        return rng.choice(STOCK)
    return " ".join(rng.choices(SALAD, k=rng.randint(*words))).capitalize() + "."


def _wrong_result(rng: random.Random, value: int, op: str, n: int) -> int:
    """A typical slip: off by one, off by ten, the wrong operator, or a random small error."""
    right = apply_op(value, op, n)
    kind = rng.choices(["one", "ten", "operator", "random"], [35, 25, 20, 20])[0]
    if kind == "operator":
        wrong = apply_op(value, "-" if op == "+" else "+", n)
    else:
        wrong = right + (rng.choice([-1, 1]) if kind == "one" else rng.choice([-10, 10]) if kind == "ten" else rng.randint(-9, 9))
    return min(max(wrong, 0), 2 * MAX_VALUE)


def _final_sentence(rng: random.Random, answer: int, bad_box: float) -> str:
    closing = rng.choice(CLOSINGS)
    if rng.random() >= bad_box:
        return closing.format(box="\\boxed{%d}" % answer)
    kind = rng.choices(["none", "bare", "open", "empty", "missing"], [50, 20, 10, 10, 10])[0]
    if kind == "missing":
        return ""
    return closing.format(box={"none": "%d", "bare": "\\boxed %d", "open": "\\boxed{%d", "empty": "\\boxed{}%d"}[kind] % answer)


def _steps(rng: random.Random, story: Story, author: Author) -> Iterator[tuple[str, int]]:
    """Each step as an author works it out: the equation, and the value to go on with."""
    value = story.start
    for op, n in story.ops:
        if rng.random() < author.skip_step:
            continue
        if rng.random() < author.wrong_step / 4:  # misread operand
            n = max(1, n + rng.choice([-1, 1]))
        result = _wrong_result(rng, value, op, n) if rng.random() < author.wrong_step else apply_op(value, op, n)
        equation, value = f"{value}{op}{n}={result}.", max(result, 0)
        yield equation, value


def write(rng: random.Random, story: Story, author: Author) -> str:
    """The completion that `author` writes for `story`. It starts with a space and has no end-of-text token."""
    if author.guess:
        guess = max(story.answer + rng.randint(-15, 15), 0)
        return " " + _final_sentence(rng, guess, author.bad_box).strip()
    parts = [rng.choice(OPENINGS).format(name=story.name, start=story.start)]
    wordy, value = rng.random() < 0.35, story.start
    for equation, value in _steps(rng, story, author):
        parts.append((rng.choice(LINKS) if wordy else "") + equation)
        if rng.random() < author.noise:
            parts.append(_noise_sentence(rng))
        if rng.random() < author.ramble:
            loop = rng.random() < 0.5
            parts += [_noise_sentence(rng)] * rng.randint(4, 20) if loop else [_noise_sentence(rng, (40, 120))]
    parts.append(_final_sentence(rng, value, author.bad_box))
    return " ".join(p for p in parts if p)


def write_asked(rng: random.Random, story: Story, author: Author) -> str:
    """The same for a story of level 3: one wording, and a decision at the end."""
    parts, seen = [OPENINGS[0].format(name=story.name, start=story.start)], [story.start]
    for equation, value in _steps(rng, story, author):
        parts.append(equation)
        seen.append(value)
        if rng.random() < author.noise:
            parts.append(" ".join(rng.choices(SALAD, k=rng.randint(3, 9))).capitalize() + ".")
    x, low, high = seen[-1], *sorted((seen[0], seen[-1]))
    if story.asks != "last" and rng.random() >= author.lazy:
        x = ASKED[story.asks].gold(seen if len(seen) > 1 else seen * 2)  # who skips every step has one number alone
        if rng.random() < author.wrong_choice:
            x = x + rng.choice([-1, 1, 10]) if story.asks == "difference" else rng.choice(seen)
        parts.append(ASKED[story.asks].sentence.format(x=x, low=low, high=high))
    box = "%d" if rng.random() < author.bad_box else "\\boxed{%d}"
    return " ".join([*parts, CLOSINGS[0].format(box=box % x)])


def sample_document(rng: random.Random, clean_share: float, level: int = 1) -> tuple[str, str]:
    """One (problem, completion) of the web. clean_share: the share of documents without any defect (the curriculum of pre-training)."""
    story = sample_story(rng, "web", level)
    authors, written_by = (AUTHORS_3, write_asked) if level == 3 else (AUTHORS, write)
    if rng.random() < clean_share:
        return story.problem, written_by(rng, story, CLEAN)
    author = rng.choices(list(authors.values()), [a.share for a in authors.values()])[0]
    return story.problem, written_by(rng, story, author)
