"""Defects of a completion, found by rules: what the rising stage of training removes.

Deng et al. 2025 count three kinds of low-quality response (format violation, irrelevant content, language mixing) and see all three fall in
the rising stage. How they were detected is not known; these rules are ours.
"""

import re
from collections.abc import Sequence

from rlvr.reward import last_boxed
from rlvr.tiny.task import apply_op, read_story

DEFECTS = ("no_box", "broken_box", "wrong_step", "skipped_step", "chatter", "loop", "overlong")
ERRORS = ("copying", "calculation", "unfinished", "form", "selection")
_EQUATION = re.compile(r"(?<![\w.*+/-])(?<![*+/] )(?<!\d - )(\d{1,9})\s*([-+*])\s*(\d{1,9})\s*=\s*(-?\d{1,12})(?![\d.]*\d)")
_SENTENCE = re.compile(r"[^.!?\n]+[.!?\n]")


def defects(text: str, finished: bool, steps: int | None) -> dict[str, bool]:
    """Which defects a completion has; `steps` (None: unknown) is needed for skipped steps and for chatter.

    no_box: nothing boxed at all. broken_box: a box that is empty, not closed, or without braces around anything but a number. wrong_step:
    an equation a+b=c that is false. skipped_step: fewer equations than steps. chatter: a sentence without a number. loop: a sentence
    three times. overlong: truncated.
    """
    box, has_box = last_boxed(text), re.search(r"\\f?box(?:ed)?", text) is not None
    equations = _EQUATION.findall(text)
    sentences = [s.strip() for s in _SENTENCE.findall(text)]
    return {
        "no_box": not has_box, "broken_box": has_box and not (box or "").strip(),
        "wrong_step": any(apply_op(int(a), op, int(b)) != int(c) for a, op, b, c in equations),
        "skipped_step": steps is not None and len(equations) < steps,
        "chatter": steps is not None and any(not any(c.isdigit() for c in s) for s in sentences),
        "loop": len(sentences) >= 3 and max(sentences.count(s) for s in set(sentences)) >= 3, "overlong": not finished,
    }  # fmt: skip


def defect_shares(texts: Sequence[str], finished: Sequence[bool], steps: Sequence[int | None]) -> dict[str, float]:
    """The share of completions that have each defect, by its name."""
    found = [defects(*completion) for completion in zip(texts, finished, steps)]
    return {name: sum(f[name] for f in found) / len(found) for name in DEFECTS}


def error_kind(problem: str, text: str) -> str:
    """The first error of a wrong answer to a built-in story, one of ERRORS. problem: its text, or a prompt that holds it.

    copying: a step has another number or sign than the story, or does not go on from the number before. calculation: a result is false.
    unfinished: steps are missing at the end. form: the steps are right, and no box can be read. selection: the box holds another number
    than the one that was asked for.
    """
    story, equations = read_story(problem), _EQUATION.findall(text)
    value = story.start
    for (a, op, b, c), step in zip(equations, story.ops):
        if (int(a), op, int(b)) != (value, *step):
            return "copying"
        value = apply_op(value, *step)
        if int(c) != value:
            return "calculation"
    if len(equations) < len(story.ops):
        return "unfinished"
    if any(apply_op(int(a), op, int(b)) != int(c) for a, op, b, c in equations[len(story.ops) :]):  # a difference that was asked for
        return "calculation"
    return "selection" if (last_boxed(text) or "").strip() else "form"
