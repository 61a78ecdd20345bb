"""The built-in task: short arithmetic stories, and the noisy "web" that the base model grew up on.

A story is a start value and 2 to 5 steps:

    Eva has 8 books. Eva picks up 12. Eva finds 5 more. Eva eats 6. How many books are left?

and a careful author answers it like this:

     Eva starts with 8. 8+12=20. 20+5=25. 25-6=19. The answer is \\boxed{19}.

The base model is pre-trained on documents by five kinds of author, only one of them careful. Defects come bundled, as on the web: an author
who rambles also miscalculates and forgets the box. So the base policy knows how to be right, but is right only sometimes. Reinforcement
learning has to sort that out.
"""

import hashlib
import random
from dataclasses import dataclass
from functools import lru_cache

LEVELS = {  # the number of steps of a story is drawn from these
    1: [2, 3, 3, 4, 4, 5],  # what the base model grew up on
    2: [4, 5, 5, 6, 6, 7],  # longer than anything it has seen: half of the lesson is to go on after the fifth step
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
    """How one kind of author writes: probabilities. `bad_box` is per document, the others but `share` are per step."""

    share: float  # of all documents
    wrong_step: float  # a step has a wrong result, which is carried on
    noise: float  # a step is followed by a sentence that has nothing to do with it
    bad_box: float  # the final answer is not in a proper box
    skip_step: float = 0.0
    ramble: float = 0.0  # a step is followed by a loop or by a long stretch of words
    guess: bool = False  # writes no steps, only a number near the answer


# The mixture decides what the base policy is like. The word salad gives wrong answers their high entropy.
AUTHORS = {
    "careful": Author(share=0.36, wrong_step=0.02, noise=0.01, bad_box=0.25),
    "sloppy": Author(share=0.26, wrong_step=0.30, noise=0.08, bad_box=0.45, skip_step=0.06),
    "chatty": Author(share=0.18, wrong_step=0.20, noise=0.50, bad_box=0.50, skip_step=0.06),
    "rambling": Author(share=0.14, wrong_step=0.20, noise=0.30, bad_box=0.60, ramble=0.35),
    "guessing": Author(share=0.06, wrong_step=0.00, noise=0.10, bad_box=0.30, guess=True),
}
CLEAN = Author(share=1.0, wrong_step=0.0, noise=0.0, bad_box=0.0)


@dataclass(frozen=True)
class Story:
    """One problem. `ops` is a tuple of (operator, operand), for example (("+", 12), ("-", 6))."""

    problem: str
    answer: int
    name: str
    start: int
    ops: tuple[tuple[str, int], ...]


def apply_op(value: int, op: str, n: int) -> int:
    return value + n if op == "+" else value - n if op == "-" else value * n


def split_of(start: int, ops: tuple[tuple[str, int], ...]) -> str:
    """Which split a number skeleton belongs to: 6 % test, 25 % train (for RL), 69 % web (for pre-training).

    The hash sees only the numbers and operators, so the three splits share no skeleton, whatever names and verbs surround it.
    """
    byte = hashlib.md5(repr((start, ops)).encode()).digest()[0]
    return "test" if byte < 16 else "train" if byte < 80 else "web"


def sample_story(rng: random.Random, split: str, level: int = 1) -> Story:
    """Draw one story of the given split ("web", "train" or "test") and level (a key of LEVELS)."""
    while True:
        value = start = rng.randint(3, 30)
        ops = []
        for _ in range(rng.choice(LEVELS[level])):
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
    sentences.append(rng.choice(QUESTIONS).format(name=name, things=things))
    return Story(" ".join(sentences), value, name, start, ops)


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


def write(rng: random.Random, story: Story, author: Author) -> str:
    """The completion that `author` writes for `story`. It starts with a space and has no end-of-text token."""
    if author.guess:
        guess = max(story.answer + rng.randint(-15, 15), 0)
        return " " + _final_sentence(rng, guess, author.bad_box).strip()
    parts = [rng.choice(OPENINGS).format(name=story.name, start=story.start)]
    wordy, value = rng.random() < 0.35, story.start
    for op, n in story.ops:
        if rng.random() < author.skip_step:
            continue
        if rng.random() < author.wrong_step / 4:  # misread operand
            n = max(1, n + rng.choice([-1, 1]))
        result = _wrong_result(rng, value, op, n) if rng.random() < author.wrong_step else apply_op(value, op, n)
        parts.append((rng.choice(LINKS) if wordy else "") + f"{value}{op}{n}={result}.")
        value = max(result, 0)
        if rng.random() < author.noise:
            parts.append(_noise_sentence(rng))
        if rng.random() < author.ramble:
            loop = rng.random() < 0.5
            parts += [_noise_sentence(rng)] * rng.randint(4, 20) if loop else [_noise_sentence(rng, (40, 120))]
    parts.append(_final_sentence(rng, value, author.bad_box))
    return " ".join(p for p in parts if p)


def sample_document(rng: random.Random, clean_share: float) -> tuple[str, str]:
    """One (problem, completion) of the web. clean_share: the share of documents without any defect (the curriculum of pre-training)."""
    story = sample_story(rng, "web")
    if rng.random() < clean_share:
        return story.problem, write(rng, story, CLEAN)
    author = rng.choices(list(AUTHORS.values()), [a.share for a in AUTHORS.values()])[0]
    return story.problem, write(rng, story, author)
