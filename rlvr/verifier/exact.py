"""Exact numbers: two of them are equal if their fractions are. Texts come normalised, as spelling.py does it."""

import re
from fractions import Fraction

from rlvr.verifier.spelling import compact
from rlvr.verifier.words import SCALES

MAX_DIGITS = 1000  # of a number that we compare ourselves; Python refuses to print one above 4300

_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:[, ]\d{3})+(?![\d,])")
_DIGITS = r"(?:\d+\.?\d*|\.\d+)"
_POWER_OF_TEN = r"[eE]([+-]?\d{1,3})|(?:\\times|\\cdot|\*)10\^(?:(\d)|\{([+-]?\d{1,3})\})"
_DECIMAL = re.compile(rf"([+-]?{_DIGITS})(?:{_POWER_OF_TEN})?")
_FRACTION = re.compile(rf"([+-]?)(\d*)\\frac(\d|\{{[+-]?{_DIGITS}\}})(\d|\{{[+-]?{_DIGITS}\}})")
_SLASH = re.compile(rf"^([+-]?)({_DIGITS})/([+-]?{_DIGITS})$")
_MIXED = re.compile(r"^([+-]?\d+) (\d+)/(\d+)$")
_REPEATING = re.compile(
    r"(?<!\d)([+-]?\d*)\.(\d*)(?:\\(?:overline|bar)(?:\{(\d+)\}|(\d))|\\dot(?:\{(\d)\}|(\d))(?:(\d*)\\dot(?:\{(\d)\}|(\d)))?)"
)
_SCALE = re.compile(rf"\\text\{{({'|'.join(SCALES)})s?\}}$")


def number_in(text: str) -> Fraction | None:
    r"""The exact value of 12, .5, 1.5e3, 1.5\times10^{3}, \frac34, 1\frac34, 1 3/4, 0.\overline{3}, 5\text{million}; None for all else.

    A percent sign is dropped. Raises ZeroDivisionError for 1/0.

    >>> number_in(r"1\frac34"), number_in("1,234.5"), number_in(r"0.1\overline{6}"), number_in(r"\sqrt{2}")
    (Fraction(7, 4), Fraction(2469, 2), Fraction(1, 6), None)
    """
    if scale := _SCALE.search(text):
        value = number_in(text[: scale.start()])
        return None if value is None else value * SCALES[scale[1]]
    text = text.strip().removesuffix(r"\%")
    if "(" not in text:  # in the point (1,234) the comma separates two numbers
        text = _THOUSANDS.sub(lambda match: re.sub("[, ]", "", match.group()), text)
    text = compact(_MIXED.sub(r"\1\\frac{\2}{\3}", text.strip()))
    if len(text) > MAX_DIGITS:
        return None
    if match := _FRACTION.fullmatch(_SLASH.sub(r"\1\\frac{\2}{\3}", text)):
        sign, whole, top, bottom = match.groups()
        value = Fraction(whole or 0) + Fraction(top.strip("{}")) / Fraction(bottom.strip("{}"))
        return -value if sign == "-" else value  # 1\frac34 is a mixed number, not a product
    if match := _DECIMAL.fullmatch(text):
        return Fraction(match[1]) * Fraction(10) ** int(match[2] or match[3] or match[4] or 0)
    return _repeating(match) if (match := _REPEATING.fullmatch(text)) else None


def _repeating(match: re.Match) -> Fraction:
    whole, start, *parts = match.groups("")
    again = "".join(parts)
    digits = Fraction(int(start + again) - int(start or 0), (10 ** len(again) - 1) * 10 ** len(start))
    return Fraction(whole or "0") + (-digits if whole.startswith("-") else digits)


def repeating_as_fractions(text: str) -> str:
    r"""For sympy, which cannot read them: ``1-0.\overline{3}`` becomes ``1-(\frac{1}{3})``."""
    fraction = r"{}(\frac{{{}}}{{{}}})".format
    return _REPEATING.sub(lambda match: fraction("+" * match[0].startswith("+"), *_repeating(match).as_integer_ratio()), text)


def equal_numbers(answer: str, gold: str) -> bool | None:
    r"""Are these two numbers equal? None if one of them is something else.

    >>> equal_numbers(r"50\%", "0.5"), equal_numbers(r"50\%", "50"), equal_numbers("1/3", "0.33"), equal_numbers("x", "1")
    (True, True, False, None)
    """
    value, gold_value = number_in(answer), number_in(gold)
    if value is None or gold_value is None:
        return None
    if answer.endswith("%") != gold.endswith("%"):  # 50% is 0.5, but data sets also write it as 50: both are right
        percent, plain = (value, gold_value) if answer.endswith("%") else (gold_value, value)
        return plain in (percent, percent / 100)
    return value == gold_value


def rounds_to(value: str, rounded: str) -> bool:
    r"""Is the second number the first one, rounded to as many places as it has? ``1/3`` rounds to ``0.33``, and not to ``0.34``."""
    exact, decimal = number_in(value), number_in(rounded)
    if exact is None or decimal is None:
        return False
    places = len(rounded.strip().partition(".")[2])
    return re.fullmatch(r"-?\d*\.?\d+", rounded.strip()) is not None and abs(exact - decimal) <= Fraction(1, 2 * 10**places)
