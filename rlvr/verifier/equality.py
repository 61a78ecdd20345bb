"""When two answers are equal: first what text and exact numbers can decide, then what math-verify must be asked."""

import re
from functools import lru_cache

from rlvr.verifier.exact import equal_numbers, number_in
from rlvr.verifier.process import ask
from rlvr.verifier.spelling import compact, nesting, normalise, peel, without_name

MAX_CHARS = 8000  # a longer answer is right only if it equals the gold answer letter by letter
MAX_DEPTH = 40  # brackets inside brackets, not counting those around the whole answer

_INTEGER = re.compile(r"-?\d{1,15}", re.ASCII)
_CHOICE = re.compile(r"\(?([A-Z])\)")  # "(D)", "D) 15"
_BASE = re.compile(r"(\d+)_\{?\d+\}?")  # 101_2; math-verify drops the base
_HUGE = re.compile(r"\^[{(]*-?(?:\d{4}|\d+\^[{(]*\d)|\d{5}[)}]*!|\d{50}")  # x^{1000}, x^{2^{9}}, 10000!, 50 digits


def equal(answer: str, gold: str) -> bool:
    r"""Is this answer, the content of a box, equal to the gold answer?

    Never hangs, and never raises because of what an answer says; what cannot be checked is wrong. Any thread may call it.
    Raises ImportError if math-verify is needed and not installed, RuntimeError if its process cannot start.

    >>> equal(r"\dfrac{2}{4}", "0.5"), equal("0.33333333", "1/3"), equal("x = 5", "5")
    (True, False, True)
    """
    if max(len(answer), len(gold)) > MAX_CHARS:
        return answer.strip() == gold.strip()
    verdict = _decide(answer, gold)
    return verdict if isinstance(verdict, bool) else ask(*verdict)


def one_spelling(answer: str) -> str:
    r"""The same string for every spelling of a number, and for most spellings of everything else. Empty for an empty answer.

    >>> [one_spelling(s) for s in ("0.5", r"\dfrac{2}{4}", r"\sqrt{ 2 }")]
    ['1/2', '1/2', '\\sqrt{2}']
    """
    if len(answer) > MAX_CHARS:
        return answer.strip()
    answer = without_name(normalise(answer))
    try:
        number = number_in(answer)
    except ZeroDivisionError:
        number = None
    return compact(answer) if number is None else str(number)


@lru_cache(maxsize=8192)
def _decide(answer: str, gold: str) -> bool | tuple[str, str]:
    """The verdict, or what math-verify must be asked: answer and gold, normalised."""
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(gold):  # the usual case, and the fastest
        return int(answer) == int(gold)
    answer, gold = normalise(answer), normalise(gold)
    if "=" not in answer or "=" not in gold:  # x=5 answers 5, but y=5 does not answer x=5
        answer, gold = without_name(answer), without_name(gold)
    words, gold_words = compact(answer), compact(gold)
    if not words or not gold_words or words.lower() == "nan":  # no answer, or one that is equal to nothing
        return False
    if words == gold_words:
        return True
    if re.fullmatch("[A-Z]", gold_words) and (choice := _CHOICE.match(words)):
        return choice[1] == gold_words
    if _BASE.fullmatch(words) or _BASE.fullmatch(gold_words):
        return words == _BASE.sub(r"\1", gold_words)
    try:
        return equal_numbers(answer, gold)
    except ZeroDivisionError:
        return False
    except ValueError:  # not numbers
        return False if _too_heavy(answer) or _too_heavy(gold) else (answer, gold)


def _too_heavy(text: str) -> bool:
    return _HUGE.search(compact(text)) is not None or nesting(peel(text)) > MAX_DEPTH
