"""When two answers are equal: first what text and exact numbers can decide, then what math-verify must be asked."""

import re
from decimal import Decimal
from functools import lru_cache

from rlvr.verifier.exact import equal_numbers, number_in, repeating_as_fractions, rounds_to
from rlvr.verifier.process import TooSlow, ask, stats
from rlvr.verifier.spelling import compact, nesting, normalise, peel, split_at, without_name
from rlvr.verifier.words import MEANING, same_words, split_unit, without_domain, words_in

MAX_CHARS = 8000  # a longer answer is right only if it equals the gold answer letter by letter
MAX_DEPTH = 40  # brackets inside brackets, not counting those around the whole answer
MAX_ITEMS = 12  # of a list or a chain that is compared by sympy, which may have to be asked for each pair

_INTEGER = re.compile(r"-?\d{1,15}", re.ASCII)
# "(D)", "D) 15", "D. 15", "Option D"
_CHOICE = re.compile(r"(?:(?:option|choice|answer) ?)?(?:\(?([A-Za-z])\)?$|\(?([A-Z])[).:] ?([\w\\$-].*))", re.IGNORECASE)
_DIGITS = r"\(?(\d+|[0-9A-Fa-f]+(?=[^0-9A-Fa-f]+(?:16|sixteen)))\)?"
_BASE = re.compile(_DIGITS + r"(?:_[({]*(?:\\text\{)?(\w+)[)}]*| ?\(?base ?(\w+)\)?)")  # 101_2; math-verify drops the base
_BASES = {name: str(base) for base, name in enumerate("two three four five six seven eight nine ten eleven twelve".split(), 2)}
_BASES["sixteen"] = "16"
_HUGE = re.compile(r"\^[{(]*-?(?:\d{4}|\d+\^[{(]*\d)|\d{5}[)}]*!|\d{50}")  # x^{1000}, x^{2^{9}}, 10000!, 50 digits
_SETS = re.compile(r"[<>]|\\(?:l|g|n)e(?![a-z])|\\(?:cup|cap|setminus)(?![a-z])|\\mathbb")
# What the parser would drop or misread without a word: such texts are compared letter by letter alone.
_UNREADABLE = re.compile("|".join((
    r"""['":]|!!|\\(?:ldots|equiv|pmod|bmod|mid|nabla|angle|triangle|overline|neg|parallel|perp|to|implies|Rightarrow|star)(?![a-z])""",
    r"\\(?:vec|mathbf|overrightarrow).*\\(?:cdot|times)",
    r"[^\x00-\x7f]", r"\[[^]]*=",
    r"\^ ?\{?T\}?(?![a-z])", r"(?<![A-Za-z])[A-Za-z] ?\^ ?\{?-1\}? ?\(", r"\^ ?\{ ?\(\w+\) ?\}",  # A^T, f^{-1}(x), y^{(4)}
    r"(?<![\d_^])\d+ \d", r"(?<![\d_^{])\d+_", r"\.\d+ ?\(", r"[^\d. ] ?\^ ?\\circ", r"\^ ?\{\d\} ?\d", r"\\frac ?\d ?\d\d",
    r"[\d}] ?\\infty", r"\\infty ?[-+*/^\d]", r"/ ?\\infty", r"\}\{\\infty\}",
)))  # fmt: skip
_NUMERIC = re.compile(  # what is a number, or may stand in one
    r"\\(?:frac|sqrt|pi|cdot|times|text|log|ln|exp|sin|cos|tan|cot|arcsin|arccos|arctan|binom|infty"
    r"|overline|bar|dot|lfloor|rfloor|lceil|rceil|circ"
    r"|max|min|gcd|pm|mp|ldots|left|right|div|sum|prod|int|lim|to)(?![a-z])"
)
_OVER = re.compile(r"\\(?:sum|prod|int|lim)(?![a-z])")
_BOUND = re.compile(r"_\{? ?([a-z]) ?(?:=|\\to)|(?<![a-z\\])d ?([a-z])(?![a-z])")  # the k of a sum, the n of a limit, the x of an integral


def equal(answer: str | None, gold) -> bool:
    r"""Is this answer (the content of a box, None without one) equal to the gold answer, a text or a number?

    tutorials/answers.md says when, with examples.

    Never hangs, and never raises because of what an answer says; what cannot be checked is wrong. Any thread may call it.
    Raises ImportError if math-verify is needed and not installed, RuntimeError if its process cannot start, NotChecked past a deadline.

    >>> equal(r"\dfrac{2}{4}", "0.5"), equal("0.33333333", "1/3"), equal("x = 5", "5"), equal("1 = 5", "5")
    (True, False, True, False)
    """
    stats["checks"] += 1
    if answer is None or gold is None:
        return False
    gold = f"{Decimal(gold):f}" if type(gold) is int else str(gold)  # str() refuses an integer of more than 4,300 digits
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
    if re.fullmatch("[A-Z]", gold_words) and (choice := _CHOICE.fullmatch(words)):
        return _chooses(gold_words, choice[1] or choice[2], choice[3] or "", by_bracket=")" in words)
    if _BASE.fullmatch(words) or _BASE.fullmatch(gold_words):
        return _in_base(words, gold_words)
    bare, bare_gold = without_domain(answer), without_domain(gold)
    if (bare == answer) != (bare_gold == gold):  # one of them says what its letters are
        answer, gold = bare, bare_gold
    (value, unit), (gold_value, gold_unit) = split_unit(answer), split_unit(gold)
    if unit and gold_unit and unit != gold_unit or r"\%" in (value[-2:], gold_value[-2:]) and (unit or gold_unit):
        return False  # 5 km is not 5 m, and is not 5000 m either: units are never converted
    if compact(value) == compact(gold_value):
        return True
    if (verdict := equal_numbers(value, gold_value)) is not None:
        return verdict
    for decide in (_equal_lists, _equal_equations, _equal_around_words):
        if (verdict := decide(value, gold_value)) is not None:
            return verdict
    both_are_letters = words.isalpha() and gold_words.isalpha()
    letters, gold_letters = (set(re.findall(r"\\?[A-Za-z]+", text)) for text in (value, gold_value))
    if letters != gold_letters and {x.lower() for x in letters} == {x.lower() for x in gold_letters}:
        return False  # V_0 is not v_0, and \Delta is not \delta
    value, gold_value = map(repeating_as_fractions, (value, gold_value))
    if both_are_letters or any(map(_cannot_be_asked, (value, gold_value))):
        return False
    return ask(value, gold_value)


def _chooses(gold: str, letter: str, rest: str, by_bracket: bool) -> bool:
    """Does "C", "(c)", "C. 15" or "(C) 15" choose C? Not if what follows says more, or names another choice."""
    says_more = MEANING & set(re.findall("[a-z]+", rest.lower())) or re.search(r"(?<![A-Za-z])[A-Z](?![A-Za-z])", rest)
    return letter.upper() == gold and not says_more and (not rest or by_bracket or letter.isupper())


def _in_base(answer: str, gold: str) -> bool:
    """The answer may leave out the base, as the question names it."""
    matches = _BASE.fullmatch(answer), _BASE.fullmatch(gold)
    digits = [match[1] if match else text for match, text in zip(matches, (answer, gold))]
    bases = {_BASES.get(name, name) for match in matches if match and (name := match[2] or match[3])}
    return digits[0].upper() == digits[1].upper() and matches[1] is not None and len(bases) == 1


# -- lists ------------------------------------------------------------------------------------------------------------------------------


def _equal_lists(answer: str, gold: str) -> bool | None:
    """Two lists, sets or points, item by item; None if there is no list, or an interval or condition for sympy."""
    (brackets, items), (gold_brackets, gold_items) = _items(answer), _items(gold)
    if len(items) == len(gold_items) == 1 and not brackets + gold_brackets:
        return None
    sets = _SETS.search(answer + gold)
    if len(items) != len(gold_items):
        if sets or "&" in answer + gold:
            return None
        if any(re.match(r"[^=]*?(?:=|\\in) ?(?:\\\{|[(\[])", text) for text in (answer, gold)):  # (x, y) = (1, 2), k \in \{1, 2\}
            return None
        grouped = re.compile(r"\d{1,3}(,[1-9]\d\d)+")  # 10,100 may be the list of 10 and 100, if the other one is a list
        spaced = [text.replace(",", ", ") if grouped.fullmatch(text) else text for text in (answer, gold)]
        return spaced != [answer, gold] and max(len(items), len(gold_items)) > 1 and _equal_lists(*spaced) is True
    both = {brackets, gold_brackets}
    if len(both) > 1 and (not both <= {"", "()"} and not both <= {"", r"\{\}"} or r"\emptyset" in map(compact, items)):
        # (1,2), [1,2] and {1,2} are three things, and a set with the empty set in it is not empty
        return None if sets else False
    if both & {"()", "[]", "(]", "[)"}:  # a point: its order counts, and its brackets may be missing
        if any("=" in item for item in items) and items != sorted(items):  # y = 1, x = 2 is (2, 1)
            return False
        return all(map(_equal_items, items, gold_items)) or (None if sets else False)
    values, gold_values = [number_in(item) for item in items], [number_in(item) for item in gold_items]
    if None not in values + gold_values:
        return sorted(values) == sorted(gold_values)
    if len(items) > MAX_ITEMS:
        return False
    rest = list(gold_items)
    for item in items:
        found = next((i for i, gold_item in enumerate(rest) if _equal_items(item, gold_item)), None)
        if found is None:
            return None if sets else False
        del rest[found]
    return True


def _equal_items(item: str, gold: str) -> bool:
    """Inside a list brackets count: {{1}, {2}} is not {1, 2}."""
    enclosed = [re.fullmatch(r"(\\\{|[(\[]).*(\\\}|[)\]])", text) for text in (item, gold)]
    return (not enclosed[0] and not enclosed[1] or None not in enclosed and enclosed[0][1] == enclosed[1][1]) and _equal(item, gold)


def _items(text: str) -> tuple[str, list[str]]:
    r"""Brackets and items of a list: ``1, 2`` -> "", ["1", "2"], and (1,2) -> "()", ["1", "2"]. \pm makes two items."""
    inside = re.fullmatch(r"(\\\{|[(\[])(.*)(\\\}|[)\]])", text, re.DOTALL)
    enclosed = inside and nesting(f"({inside[2]})") == nesting(inside[2]) + 1 and len(split_at(text + ",", ",")) == 1
    if enclosed and (items := split_at(inside[2], ",")) and (len(items) > 1 or inside[1] == r"\{"):
        return inside[1] + inside[3], items
    if number_in(split_unit(text)[0]) is not None:  # 1,234
        return "", [text]
    if all(re.fullmatch(r"\d{1,3}(,\d{3})*|\d+", part) for part in text.split(", ")) and ", " in text:  # 1,000, 2,000
        return "", text.split(", ")
    items = [item for part in split_at(text, ",") for item in split_at(part, r"\lor")]
    both_signs = re.compile(r"\\(?:pm|mp)(?![a-z])")
    signs = [["+", "-"] if both_signs.search(item) else [""] for item in items]
    return "", [both_signs.sub(sign, item) for item, both in zip(items, signs) for sign in both if item]


# -- equations and chains ---------------------------------------------------------------------------------------------------------------


def _equal_equations(answer: str, gold: str) -> bool | None:
    """With = in one of them or both; None without, or if both are equations of which sympy must say whether they say the same."""
    separators = ("=", r"\approx", r"\in")
    sides, gold_sides = split_at(answer, *separators), split_at(gold, *separators)
    if len(sides) == len(gold_sides) == 1:
        return None
    if any(len(split_at(text, ",", r"\lor")) > 1 for text, its in ((answer, sides), (gold, gold_sides)) if len(its) > 1):
        return None if _SETS.search(answer + gold) else False
    if len(sides) > 1 and len(gold_sides) > 1:
        if compact(sides[0]) == compact(gold_sides[0]):
            values = _value(answer, sides[1:]), _value(gold, gold_sides[1:])
            return None not in values and _equal(*values)
        if len(sides) > 2 or len(gold_sides) > 2 or _is_name(sides[0], strict=True) and _is_name(gold_sides[0], strict=True):
            names = re.fullmatch("[a-z]", sides[1] or "") or re.fullmatch("[a-z]", gold_sides[1] or "")
            return None if names and len(sides) == len(gold_sides) == 2 else False  # y = 5 does not answer x = 5; y = x says x = y
        letters = [re.fullmatch("[a-z]", s[0]) for s in (sides, gold_sides)]
        return False if None not in letters and not _has_letter(sides[1] + gold_sides[1]) else None
    if len(sides) > 1:
        value = _value(answer, sides)
        return value is not None and _equal(value, gold)
    value = _value(gold, gold_sides, strict=True)
    return value is not None and _equal(answer, value)


def _value(text: str, sides: list[str], strict: bool = False) -> str | None:
    """What a chain such as ``x = 2 + 3 = 5`` says; None if it says nothing or something false.

    Names at its left are dropped. Formulas with letters in the middle are not checked; all numbers in it must be equal.
    """
    if len(sides) == 2 and sides[0] and not _has_letter(sides[0]) and _is_name(sides[1], strict=True):  # 5 = x
        sides = sides[::-1]
    first = 0
    while first < len(sides) - 1 and (not sides[first] or _is_name(sides[first], strict)):
        first += 1
    if any(re.search(r"(?:[ &/]|\\wedge ?)[a-z]$", side) for side in sides[1:-1]):  # x = 3 and y = 4, in some spelling
        return None
    if first == 0 and len(sides) > 1 and (_has_letter(sides[0]) or _has_letter(sides[-1])):
        return None
    numbers = [side for side in sides[first:] if not _has_letter(side) and r"\ldots" not in side]
    if numbers and _has_letter(sides[-1]) or r"\in " in text and len(sides) > 2:
        return None
    if len(numbers) > MAX_ITEMS:
        return None
    if r"\approx" in text:
        rounded = len(numbers) > 1 and rounds_to(*numbers[-2:]) and all(map(_equal, numbers[:-1], numbers[1:-1]))
        return numbers[-2] if rounded else None
    return peel(sides[-1]) if all(map(_equal, numbers, numbers[1:])) else None


def _has_letter(side: str) -> bool:
    """Does it have a variable? Not the k of a sum, not e and i, not words."""
    bound = "".join(map("".join, _BOUND.findall(side))) if _OVER.search(side) else ""
    plain = _NUMERIC.sub(" ", re.sub(r"\\text\{[^{}]*\}", "", side))
    return re.search("[A-Za-z]", re.sub(rf"(?<![A-Za-z\\])d ?[{bound or '0'}]|[{bound}ei]", "", plain)) is not None


def _is_name(side: str, strict: bool) -> bool:
    r"""Is this a name: ``x``, ``f(2)``, ``\angle A``, ``\text{Area}``, ``(x, y)``, ``\frac{dy}{dx}``, or ``m + n`` if not strict"""
    if letters := re.fullmatch(r"\(([A-Za-z](?:, ?[A-Za-z])+)\)", side):
        names = re.split(", ?", letters[1])
        return names == sorted(names)
    if text := re.fullmatch(r"\\text\{([^{}]*)\}", side):
        return not MEANING - {"of", "from", "to", "max", "min", "maximum", "minimum"} & set(text[1].lower().split())
    if re.search(r"[<>]|\\(?:[lgn]e|neg|infty|Rightarrow|to|text)(?![a-z])|^-", re.sub(r"_\{[^{}]*\}", "", side)) or not _has_letter(side):
        return False
    if _OVER.search(side):
        return True
    plain = re.sub(r"\\frac\{(?:d|\\partial )[^{}]*\}\{(?:d|\\partial )[^{}]*\}|\\[a-z]+dot\{\w\}|\\dot\{\w\}", "D", side)
    plain = re.sub(r"(?<=[a-z])\^(?:-1|\{-1\})(?=\()", "", plain)
    plain = re.sub(r"_(?:\w|\{[^{}]*\})|\([^()]*\)|\{[^{}]*\}|'", "", plain)
    if re.search(r"[\d^/]|\\(?:frac|sqrt|pi)(?![a-z])", plain):
        return False
    return not strict or not re.search(r"[-+*]|\\cdot|\\times|(?<![A-Za-z\\])[a-z]{2}", plain)


# -- words ------------------------------------------------------------------------------------------------------------------------------


def _equal_around_words(answer: str, gold: str) -> bool | None:
    """With words that change what is said, the words must be the same, and the mathematics between them equal. None without words."""
    of = re.compile(r"^(\\frac ?\{?\d+?\}? ?\{?\d+\}?|\d+/\d+|[\d.]+\\%)\\text\{of\} ?(?=[\d.]+$)")  # \frac12 of 6, 50\% of 6
    if of.match(answer) or of.match(gold):
        return _equal(of.sub(r"\1\\cdot ", answer), of.sub(r"\1\\cdot ", gold))
    if words_in(answer) != words_in(gold):
        return False
    if not words_in(answer):
        return None
    parts, gold_parts = (re.split(r"\\text\{[^{}]*\}", text) for text in (answer, gold))
    return len(parts) == len(gold_parts) and all(a.strip() == g.strip() or _equal(a, g) for a, g in zip(parts, gold_parts, strict=True))


def _cannot_be_asked(text: str) -> bool:
    """Too heavy for sympy, or with something that the parser would drop without a word."""
    return _HUGE.search(compact(text)) is not None or _UNREADABLE.search(text) is not None
