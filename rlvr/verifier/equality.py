"""When two answers are equal: first what text and exact numbers can decide, then what math-verify must be asked."""

import re
from functools import lru_cache

from rlvr.verifier.exact import equal_numbers, number_in, rounds_to
from rlvr.verifier.process import TooSlow, ask, stats
from rlvr.verifier.spelling import compact, nesting, normalise, peel, split_at, without_name
from rlvr.verifier.words import same_words, split_unit, without_domain, words_in

MAX_CHARS = 8000  # a longer answer is right only if it equals the gold answer letter by letter
MAX_DEPTH = 40  # brackets inside brackets, not counting those around the whole answer
MAX_ITEMS = 50  # of a list whose items are compared one by one

_INTEGER = re.compile(r"-?\d{1,15}", re.ASCII)
_CHOICE = re.compile(r"(?:(?:option|choice|answer) ?)?\(?([A-Za-z])(?:$|\)|[.:](?=.))", re.IGNORECASE)  # "(D)", "D) 15", "D. 15", "Option D"
_BASE = re.compile(r"\(?(\d+)\)?_\{?(\w+)\}?")  # 101_2; math-verify drops the base
_BASES = {name: str(base) for base, name in enumerate("two three four five six seven eight nine ten eleven twelve".split(), 2)}
_HUGE = re.compile(r"\^[{(]*-?(?:\d{4}|\d+\^[{(]*\d)|\d{5}[)}]*!|\d{50}")  # x^{1000}, x^{2^{9}}, 10000!, 50 digits
_IN = re.compile(r"\\in(?![a-z])")
_SETS = re.compile(r"[<>]|\\(?:l|g|n)e(?![a-z])|\\(?:cup|cap|setminus)(?![a-z])|\\mathbb")
_LETTER = re.compile(r"(?<!\\)(?<![A-Za-z])[A-Za-z](?![A-Za-z])|\\(?!frac|sqrt|pi|cdot|times|text|left|right|log|ln|sin|cos|tan|binom|infty)[a-z]+")


def equal(answer: str | None, gold) -> bool:
    r"""Is this answer, the content of a box (None: without one), equal to the gold answer, a text or a number? tutorials/answers.md says when.

    Never hangs, and never raises because of what an answer says; what cannot be checked is wrong. Any thread may call it.
    Raises ImportError if math-verify is needed and not installed, RuntimeError if its process cannot start, NotChecked past a deadline.

    >>> equal(r"\dfrac{2}{4}", "0.5"), equal("0.33333333", "1/3"), equal("x = 5", "5"), equal("1 = 5", "5")
    (True, False, True, False)
    """
    stats["checks"] += 1
    if answer is None or gold is None:
        return False
    gold = str(gold)
    if max(len(answer), len(gold)) > MAX_CHARS:
        return answer.strip() == gold.strip()
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(gold):  # the usual case, and the fastest
        return int(answer) == int(gold)
    answer, gold = _normalised(answer), _normalised(gold)
    words = compact(answer)
    if not words or not compact(gold) or words.lower() == "nan":  # no answer, or one that is equal to nothing
        return False
    if max(nesting(answer), nesting(gold)) > MAX_DEPTH:
        return words == compact(gold)
    try:
        return _equal(answer, gold)
    except (ZeroDivisionError, RecursionError, TooSlow):
        return False


_normalised = lru_cache(maxsize=8192)(normalise)


def one_spelling(answer: str) -> str:
    r"""The same string for every spelling of a number, and for most spellings of everything else. Empty for an empty answer.

    >>> [one_spelling(s) for s in ("0.5", r"\dfrac{2}{4}", r"\sqrt{ 2 }")]
    ['1/2', '1/2', '\\sqrt{2}']
    """
    if len(answer) > MAX_CHARS:
        return answer.strip()
    answer = split_unit(without_name(normalise(answer)))[0]
    try:
        number = number_in(answer)
    except ZeroDivisionError:
        number = None
    return compact(answer) if number is None else str(number)


def _equal(answer: str, gold: str) -> bool:
    """One thing after the other, from what is certain to what must be asked. Both normalised."""
    words, gold_words = compact(answer), compact(gold)
    if same_words(words, gold_words):
        return True
    if re.fullmatch("[A-Z]", gold_words) and (choice := _CHOICE.match(words)):
        return choice[1].upper() == gold_words
    if _BASE.fullmatch(words) or _BASE.fullmatch(gold_words):
        return _in_base(words, gold_words)
    if bool(_IN.search(answer)) != bool(_IN.search(gold)):  # k \in {1, 2}
        answer, gold = without_name(answer), without_name(gold)
    (value, unit), (gold_value, gold_unit) = split_unit(answer), split_unit(gold)
    if unit and gold_unit and unit != gold_unit or r"\%" in (value[-2:], gold_value[-2:]) and (unit or gold_unit):
        return False  # 5 km is not 5 m, and is not 5000 m either: units are never converted
    if (verdict := equal_numbers(value, gold_value)) is not None:
        return verdict
    for decide in (_equal_lists, _equal_equations, _equal_around_words):
        if (verdict := decide(value, gold_value)) is not None:
            return verdict
    both_are_letters = words.isalpha() and gold_words.isalpha()
    if both_are_letters or any(map(_cannot_be_asked, (value, gold_value))):
        return False
    return ask(value, gold_value)


def _in_base(answer: str, gold: str) -> bool:
    (digits, base), (gold_digits, gold_base) = (
        (match[1], _BASES.get(match[2], match[2])) if (match := _BASE.fullmatch(text)) else (text, "") for text in (answer, gold)
    )
    return digits == gold_digits and gold_base != "" and base in ("", gold_base)  # the base may be left out, as the question names it


# -- lists ------------------------------------------------------------------------------------------------------------------------------


def _equal_lists(answer: str, gold: str) -> bool | None:
    """Two lists, sets or points, item by item; None if there is no list, or an interval or condition for sympy."""
    (brackets, items), (gold_brackets, gold_items) = _items(answer), _items(gold)
    if len(items) == len(gold_items) == 1 and brackets == gold_brackets:
        return None
    if len(items) != len(gold_items) and (_SETS.search(answer) or _SETS.search(gold) or "&" in answer + gold):
        return None
    if len(items) != len(gold_items) and ("=" in answer or "=" in gold) and 1 in (len(items), len(gold_items)):
        return None
    if len(items) != len(gold_items):
        grouped = re.compile(r"\d{1,3}(,\d{3})+")  # 10,100 may be the list of 10 and 100, if the other one is a list
        spaced = [grouped.sub(lambda match: match[0].replace(",", ", "), text) if grouped.fullmatch(text) else text for text in (answer, gold)]
        return spaced != [answer, gold] and max(len(items), len(gold_items)) > 1 and _equal_lists(*spaced) is True
    both = {brackets, gold_brackets}
    if len(both) > 1 and not both <= {"", "()"} and not both <= {"", r"\{\}"}:  # (1,2), [1,2] and {1,2} are three things
        return None if _SETS.search(answer + gold) else False
    if both & {"()", "[]", "(]", "[)"}:  # a point: its order counts, and its brackets may be missing
        return all(map(_equal, items, gold_items)) or (None if _SETS.search(answer + gold) else False)
    values, gold_values = [number_in(item) for item in items], [number_in(item) for item in gold_items]
    if None not in values + gold_values:
        return sorted(values) == sorted(gold_values)
    rest = list(gold_items)
    for item in items:
        found = next((i for i, gold_item in enumerate(rest) if _equal(item, gold_item)), None)
        if found is None:
            return None if _SETS.search(answer + gold) and len(items) > 1 else False
        del rest[found]
    return True


def _items(text: str) -> tuple[str, list[str]]:
    r"""Brackets and items of a list: ``1, 2`` -> "", ["1", "2"], and (1,2) -> "()", ["1", "2"]. \pm makes two items."""
    inside = re.fullmatch(r"(\\\{|[(\[])(.*)(\\\}|[)\]])", text, re.DOTALL)
    enclosed = inside and nesting(f"({inside[2]})") == nesting(inside[2]) + 1 and len(split_at(text + ",", ",")) == 1
    if enclosed and (items := split_at(inside[2], ",")) and (len(items) > 1 or inside[1] == r"\{"):
        return inside[1] + inside[3], items
    if number_in(split_unit(text)[0]) is not None:  # 1,234
        return "", [text]
    items = [item for part in split_at(text, ",") for item in split_at(part, r"\lor")]
    both_signs = re.compile(r"\\(?:pm|mp)(?![a-z])")
    return "", [new for item in items if item for new in ([both_signs.sub(sign, item) for sign in "+-"] if both_signs.search(item) else [item])]


# -- equations and chains ---------------------------------------------------------------------------------------------------------------


def _equal_equations(answer: str, gold: str) -> bool | None:
    """With = in one of them or both; None without, or if both are equations of which sympy must say whether they say the same."""
    sides, gold_sides = split_at(answer, "=", r"\approx"), split_at(gold, "=", r"\approx")
    if len(sides) > 1 and len(gold_sides) > 1:
        if compact(sides[0]) == compact(gold_sides[0]):
            values = _value(answer, sides[1:]), _value(gold, gold_sides[1:])
            return None not in values and _equal(*values)
        if len(sides) > 2 or len(gold_sides) > 2 or _is_name(sides[0], strict=True) and _is_name(gold_sides[0], strict=True):
            return False  # y = 5 does not answer x = 5
        return None
    if len(sides) > 1:
        value = _value(answer, sides)
        return value is not None and _equal(value, gold)
    if len(gold_sides) > 1:
        value = _value(gold, gold_sides, strict=True)
        return value is not None and _equal(answer, value)
    return None


def _value(text: str, sides: list[str], strict: bool = False) -> str | None:
    """What a chain such as ``x = 2 + 3 = 5`` says; None if it says nothing or something false.

    Names at its left are dropped. Formulas with letters in the middle are not checked; all numbers in it must be equal.
    """
    first = 0
    while first < len(sides) - 1 and (not sides[first] or _is_name(sides[first], strict)):
        first += 1
    if _LETTER.search(sides[first]) and first < len(sides) - 1 and not first or r"\approx" in text and not sides[0]:
        return None
    numbers = [side for side in sides[first:] if not _LETTER.search(side)]
    if r"\approx" in text and len(numbers) > 1:
        return numbers[-2] if rounds_to(*numbers[-2:]) and all(map(_equal, numbers[:-1], numbers[1:-1])) else None
    return peel(sides[-1]) if all(map(_equal, numbers, numbers[1:])) else None


def _is_name(side: str, strict: bool) -> bool:
    r"""Is this what a value is called: ``x``, ``f(2)``, ``\angle A``, ``\text{Area}``, ``m + n`` (not if strict), ``(x, y)``, ``\frac{dy}{dx}``?"""
    if re.fullmatch(r"\([A-Za-z](?:, ?[A-Za-z])+\)|[A-Z]'?", side):
        return True
    plain = re.sub(r"\\frac\{(?:d|\\partial )[^{}]*\}\{(?:d|\\partial )[^{}]*\}|\\text\{[^{}]*\}|\\[a-z]+dot\{\w\}|\\dot\{\w\}", "D", side)
    if re.search(r"\\(?:lim|int|sum|prod)(?![a-z])", plain):
        return True
    plain = re.sub(r"_(?:\w|\{[^{}]*\})|\([^()]*\)|\{[^{}]*\}|\^(?:-1|\{-1\}|\{?'\}?)|'", "", plain)
    if re.search(r"[\d^/]|\\(?:frac|sqrt|pi)(?![a-z])", plain) or not re.search("[A-Za-z]", plain):
        return False
    return not strict or not re.search(r"[-+*]|\\cdot|\\times|(?<![A-Za-z\\])[a-z]{2}", plain)


# -- words ------------------------------------------------------------------------------------------------------------------------------


def _equal_around_words(answer: str, gold: str) -> bool | None:
    """With words that change what is said, the words must be the same, and the mathematics between them equal. None without words."""
    of = re.compile(r"^(\\frac ?\{?\d+?\}? ?\{?\d+\}?|\d+/\d+)\\text\{of\} ?(?=[\d.]+$)")  # \frac12 of 6
    if of.match(answer) or of.match(gold):
        return _equal(of.sub(r"\1\\cdot ", answer), of.sub(r"\1\\cdot ", gold))
    if not words_in(answer) or not words_in(gold):
        bare = without_domain(answer), without_domain(gold)
        if bare != (answer, gold):
            return _equal(*bare)
    if words_in(answer) != words_in(gold):
        return False
    if not words_in(answer):
        return None
    parts, gold_parts = (re.split(r"\\text\{[^{}]*\}", text) for text in (answer, gold))
    return len(parts) == len(gold_parts) and all(a.strip() == g.strip() or _equal(a, g) for a, g in zip(parts, gold_parts, strict=True))


def _cannot_be_asked(text: str) -> bool:
    """Too heavy for sympy, or with something that the parser would drop without a word."""
    return _HUGE.search(compact(text)) is not None or re.search(r"\d ?'", text) is not None
