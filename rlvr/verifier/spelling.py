r"""One spelling for each thing, so that ``\dfrac12`` and ``\frac{1}{2}.`` need no mathematics to be compared.

To accept one more spelling, add a character to _CHARACTERS or a rule to _RULES, and its verdict to tests/data/answers.jsonl.
"""

import re
import unicodedata
from itertools import accumulate

_CHARACTERS = str.maketrans(
    {"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "π": r"\pi ", "∞": r"\infty ", "°": r"^\circ "}
    | {"≤": r"\le ", "≥": r"\ge ", "∪": r"\cup ", "∅": r"\emptyset ", "½": r"\frac12", "¼": r"\frac14", "¾": r"\frac34"}
    | {digit: f"^{i}" for i, digit in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
)
_RULES = [(re.compile(pattern), new) for pattern, new in (
    (r",\\!\s*|\{,\}", ","),                                        # 10,\!000 and 10{,}000
    (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle)(?![A-Za-z])|(?<!\\)\\[!$]|\$", ""),
    (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Za-z])|\s+", " "),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"√ ?(\d+|[a-z])", r"\\sqrt{\1}"),
    (r"\\(?:mbox|textbf|textit|textrm)(?=\s*\{)", r"\\text"),
    (r"\\mathrm ?\{ ?([ei]) ?\}", r" \1 "),                            # numbers, not units
    (r",? ?\\text ?\{ ?(?:and|or) ?\} ?", ", "),
    (r"\\text ?\{ ?percent ?\}|\\?%", r"\\%"),
    (r"\^ ?(?:\\circ|\{ ?\\circ ?\})|\\degree(?![A-Za-z])", ""),    # 90^\circ loses its unit, as other numbers do
    (r"_\{(\w)\}", r"_\1"),
    (r"\^(\d)(?=\d)", r"^{\1} "),                                   # TeX reads 2^10 as 2^1 and then a 0
    (r" +", " "),
)]  # fmt: skip
_TEXT = re.compile(r"\\(?:text|mathrm|mathbf) ?\{([^{}]*)\}")
_NAME = re.compile(r"^[A-Za-z](?:_\w|\([A-Za-z]\))? ?(?:=|\\in(?![a-z])) ?(?=[^=]+$)")  # "x =", "f(x) =", "x \in"
# \text{ cm}^2, \mathrm{m}/\mathrm{s}, and also a sentence: \text{The answer is }
_UNIT = r"(?:\\(?:text|mathrm) ?\{[^{}]*\}(?:\^\{?\d\}?)? ?/?)+"
_UNIT_BEFORE, _UNIT_AFTER = re.compile("^" + _UNIT), re.compile(_UNIT + "$")


def normalise(text: str) -> str:
    r"""The answer in plain characters, without layout commands, and without brackets around the whole.

    >>> normalise(r"$\left( \dfrac{1}{2} \right)$.")
    '\\frac{1}{2}'
    """
    text = unicodedata.normalize("NFKC", text.translate(_CHARACTERS)).replace("\u2044", "/")
    text = "".join(c for c in text if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    for pattern, new in _RULES:
        text = pattern.sub(new, text)
    return peel(text.strip().removesuffix(".").strip())


def compact(text: str) -> str:
    r"""For a comparison letter by letter: no text commands, and spaces only between two numbers or two words.

    >>> compact(r"\text{two apples} + 1 2")
    'two apples+1 2'
    """
    text = peel(_TEXT.sub(r"\1", text).strip())
    return re.sub(r" (?!(?<=\d )\d|(?<=[A-Za-z] )[A-Za-z])", "", text)


def peel(text: str) -> str:
    """Remove the brackets around a whole answer: ({{5}}) becomes 5. The pair (1,2) keeps its parentheses, and so does (1)+(2)."""
    opened, partner = [], {}  # partner: where each bracket closes
    for i, c in enumerate(text):
        if c in "({[":
            opened.append(i)
        elif c in ")}]" and opened:
            partner[opened.pop()] = i
    left, right = 0, len(text) - 1
    pairs = ("{}",) if "," in text else ("{}", "()")
    while left < right and partner.get(left) == right and text[left] + text[right] in pairs:
        left, right = left + 1, right - 1
    return text[left : right + 1].strip()


def nesting(text: str) -> int:
    """How many brackets are open at most at one place of the text: 2 for ``(1+(2))``, 1 for ``(1)+(2)``."""
    steps = ((c in "({[") - (c in ")}]") for c in text)
    return max(accumulate(steps, lambda depth, step: max(0, depth + step), initial=0))


def without_name(text: str) -> str:
    r"""Drop the name of what was asked for: ``x = 5`` and ``x \in \{5\}`` become ``5`` and ``\{5\}``."""
    return peel(_NAME.sub("", text))


def without_unit(text: str) -> str:
    r"""Drop text before and after a number: ``10\text{ cm}^2`` becomes ``10``. Text alone stays."""
    return _UNIT_AFTER.sub("", _UNIT_BEFORE.sub("", text)) or text
