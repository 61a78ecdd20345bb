"""Defects of a completion, found by rules: what the rising stage of training removes.

Deng et al. 2025 count three kinds of low-quality response (format violation, irrelevant content, language mixing) and see all three fall in
the rising stage. How they were detected is not known; these rules are ours.
"""

import re
from collections.abc import Sequence

from rlvr.reward import last_boxed

DEFECTS = ("no_box", "broken_box", "wrong_step", "skipped_step", "chatter", "loop", "overlong")
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
    right = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
    return {
        "no_box": not has_box,
        "broken_box": has_box and not (box or "").strip(),
        "wrong_step": any(right[op](int(a), int(b)) != int(c) for a, op, b, c in equations),
        "skipped_step": steps is not None and len(equations) < steps,
        "chatter": steps is not None and any(not any(c.isdigit() for c in s) for s in sentences),
        "loop": len(sentences) >= 3 and max(sentences.count(s) for s in set(sentences)) >= 3,
        "overlong": not finished,
    }


def defect_shares(texts: Sequence[str], finished: Sequence[bool], steps: Sequence[int | None]) -> dict[str, float]:
    """The share of completions that have each defect, by its name."""
    found = [defects(*completion) for completion in zip(texts, finished, steps)]
    return {name: sum(f[name] for f in found) / len(found) for name in DEFECTS}
