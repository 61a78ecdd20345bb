"""Exact numbers, and lists of them: two answers are equal if their fractions are. Texts come normalised, as spelling.py does it."""

import re
from fractions import Fraction

from rlvr.verifier.spelling import compact, without_unit

MAX_DIGITS = 1000  # of a number that we compare ourselves; Python refuses to print one above 4300

_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:[, ]\d{3})+(?![\d,])")
_DIGITS = r"(?:\d+\.?\d*|\.\d+)"
_POWER_OF_TEN = r"e([+-]?\d{1,3})|\\(?:times|cdot)10\^(?:(\d)|\{([+-]?\d{1,3})\})"
_DECIMAL = re.compile(rf"([+-]?{_DIGITS})(?:{_POWER_OF_TEN})?")
_FRACTION = re.compile(rf"([+-]?)(\d*)\\frac(\d|\{{[+-]?{_DIGITS}\}})(\d|\{{[+-]?{_DIGITS}\}})")
_SLASH = re.compile(rf"^([+-]?)({_DIGITS})/([+-]?{_DIGITS})$")
_LIST = re.compile(r"(\\\{|\(|)(.*?)(\\\}|\)|)", re.DOTALL)


def number_in(text: str) -> Fraction | None:
    r"""The exact value of 12, .5, 1.5e3, 1.5\times10^{3}, 3/4, \frac34 or 1\frac34, or None for all else.

    A unit and a percent sign are dropped. Raises ZeroDivisionError for 1/0.

    >>> number_in(r"1\frac34\text{ cm}"), number_in("1,234.5"), number_in(r"\sqrt{2}")
    (Fraction(7, 4), Fraction(2469, 2), None)
    """
    text = without_unit(text).strip().removesuffix(r"\%")
    if "(" not in text:  # in the point (1,234) the comma separates two numbers
        text = _THOUSANDS.sub(lambda match: re.sub("[, ]", "", match.group()), text)
    text = compact(text)
    if len(text) > MAX_DIGITS:
        return None
    if match := _FRACTION.fullmatch(_SLASH.sub(r"\1\\frac{\2}{\3}", text)):
        sign, whole, top, bottom = match.groups()
        value = Fraction(whole or 0) + Fraction(top.strip("{}")) / Fraction(bottom.strip("{}"))
        return -value if sign == "-" else value  # 1\frac34 is a mixed number, not a product
    if match := _DECIMAL.fullmatch(text):
        return Fraction(match[1]) * Fraction(10) ** int(match[2] or match[3] or match[4] or 0)
    return None


def number_list(text: str) -> tuple[str, list[Fraction]]:
    r"""Brackets and values of one number or a list, such as ``1, 2``, ``\{1,2\}`` or the point ``(1,2)``.

    Raises ValueError for all else, and ZeroDivisionError as number_in does.
    """
    number = number_in(text)
    if number is not None:
        return "", [number]
    opening, inside, closing = _LIST.fullmatch(compact(text)).groups()
    values = [number_in(part) for part in inside.split(",")]
    if opening + closing not in ("", "()", r"\{\}") or None in values:
        raise ValueError("not a list of numbers")
    return opening + closing, values


def equal_numbers(answer: str, gold: str) -> bool:
    r"""Are these two numbers, or lists of numbers, equal? Raises as number_list if one of them is something else.

    >>> equal_numbers("2, 1", "1, 2"), equal_numbers("(2, 1)", "(1, 2)"), equal_numbers(r"50\%", "0.5")
    (True, False, True)
    """
    (brackets, values), (gold_brackets, gold_values) = number_list(answer), number_list(gold)
    if len(values) == 1 and answer.endswith("%") != gold.endswith("%"):
        # 50% is 0.5, but data sets also write it as 50: both are right
        percent, plain = (values, gold_values) if answer.endswith("%") else (gold_values, values)
        return plain in (percent, [percent[0] / 100])
    if "()" in (brackets, gold_brackets):  # a point: its order counts, and its brackets may be missing
        return values == gold_values and r"\{\}" not in (brackets, gold_brackets)
    return sorted(values) == sorted(gold_values)
