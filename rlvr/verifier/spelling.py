r"""One spelling for each thing, so that ``\dfrac12`` and ``\frac{1}{2}.`` need no mathematics to be compared.

To accept one more spelling, add a character to _CHARACTERS or a rule to _RULES, and its verdict to tests/data/answers.jsonl.
"""

import re
import unicodedata
from itertools import accumulate, groupby

from rlvr.verifier.words import as_text

_CHARACTERS = str.maketrans(
    {"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "π": r"\pi ", "∞": r"\infty ", "°": r"^\circ ", "√": r"\sqrt "}
    | {"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset "}
    | {letter: rf"\{name} " for letter, name in zip("αβγθλμφω", "alpha beta gamma theta lambda mu phi omega".split())}
    | {"ℝ": r"\mathbb{R}", "±": r"\pm ", "∨": r"\lor ", "′": "'", "’": "'", "“": '"', "”": '"', "…": r"\ldots ", "∛": r"\sqrt[3]"}
)
_FUNCTIONS = "sqrt|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|ln|exp|pi|theta|alpha|beta|gamma|lambda|omega|phi"
_RULES = [(re.compile(pattern), new) for pattern, new in (
    (r"\^\{(\d)\} ?\\sqrt", r"\\sqrt[\1]"),                         # ³√2
    # layout
    (r",\\!\s*|\{,\}", ","),                                        # 10,\!000 and 10{,}000
    (r"\\(?:left|right|[bB]igg?[lr]?|middle)(?![A-Za-z])", ""),
    (r"\\(?:displaystyle|textstyle|tiny|small|large|Large|huge|bf|rm|it|limits)(?![A-Za-z])|(?<!\\)\\[!()\[\]]|(?<!\\)\$|`", ""),
    (r"\\[hv]space\*? ?\{[^{}]*\}|\\overset ?\{[^{}]*\}|\\(?:begin|end) ?\{(?:aligned|align\*?|gathered|equation\*?)\}(?!.*&)", ""),
    (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Za-z])|\s+", " "),
    (r"^ ?\\color ?\{\w+\}|\\(?:color|textcolor) ?\{\w+\}(?= ?\{)", ""),
    (r"\\colorbox ?\{\w+\}(?= ?\{)", ""), (r"\{ ?\\color ?\{\w+\}", "{"),
    (r"\\(?:boldsymbol|bm|num|mathsf|mathtt|boxed|fbox|underline|ensuremath|mathop|emph)(?= ?\{)", ""),
    (r"\\(?:SI|qty) ?\{([^{}]*)\} ?\{([^{}]*)\}", lambda match: rf"{match[1]}\text{{{match[2].replace(chr(92), ' ')}}}"),
    (r"\\ang ?\{([^{}]*)\}", r"\1^\\circ "),
    (r"\\mathbf(?= ?\{ ?[-+\d])", ""), (r"^ ?(\*\*|\*|__|[\"'])(.*)\1 ?$|^ ?\[\"(.*)\"\] ?$", r"\2\3"),
    (r"\\begin ?\{(?:[bB]|small)matrix\}|\\begin ?\{array\} ?\{[a-z|]*\}", r"\\begin{pmatrix}"),
    (r"\\end ?\{(?:[bB]matrix|smallmatrix|array)\}", r"\\end{pmatrix}"),
    # names of things
    (r"\\(?:[dtcs]|nice)frac(?![A-Za-z])", r"\\frac"),
    (r"\\frac ?(\d) ?(\d)(?!\d)", r"\\frac{\1}{\2}"), (r"\\frac ?(\\pi) ?(\d)(?!\d)", r"\\frac{\1}{\2}"),
    (r"\\(?:varnothing|emptyset)(?![A-Za-z])|\\\{ ?\\\}", r"\\emptyset "),
    (r"\\lbrace(?![A-Za-z])", r"\\{"), (r"\\rbrace(?![A-Za-z])", r"\\}"), (r"\\colon(?![A-Za-z])|\\mid(?![A-Za-z])", ":"),
    (r"\\lg(?![A-Za-z])", r"\\log_{10}"), (r"\\(?:lor|vee)(?![A-Za-z])", r"\\lor "), (r"\\neq(?![A-Za-z])|(?<![\d)])!=", r"\\ne "),
    (r"\\(l|g)(?:eqslant|eqq|eq)(?![A-Za-z])", r"\\\1e "),
    (r"<=", r"\\le "), (r">=", r"\\ge "),
    (r"\\not ?=", r"\\ne "), (r"\\gt(?![a-z])", ">"), (r"\\lt(?![a-z])", "<"),
    (r"\\(?:[cl]?dots|dotsc)(?![A-Za-z])|\.\.\.+", r"\\ldots "),
    (r"\\land(?![a-z])", r"\\wedge "), (r"\\ast(?![a-z])", "*"), (r"\\tg(?![a-z])", r"\\tan "),
    (r"\\(?:operatorname|mathrm|text) ?\{ ?((?:arc)?(?:sin|cos|tan|cot)|log|ln|exp) ?\}", r"\\\1 "), (r"\^ ?-(\d+)", r"^{-\1}"),
    (r"\\d?binom", r"\\binom"),
    (r"\*\*(\d+)", r"^{\1}"), (r"\*\*", "^"),
    (r"(?<=\d) ?[xX] ?(?=10 ?\^)", r"\\times "), (r"(?<![A-Za-z\\])(?:infinity|inf)(?![A-Za-z])", r"\\infty "),
    (rf"(?<![A-Za-z\\])({_FUNCTIONS})(?![A-Za-z])", r"\\\1 "),
    (r"\\sqrt ?\(([^()]*)\)", r"\\sqrt{\1}"), (r"(\\sqrt(?:\[\w+\])?) ?(\d+|[a-z])", r"\1{\2}"),
    (r"\{([^{}]*|[^{}]*\{[^{}]*\}[^{}]*)\\over(?![A-Za-z])((?:[^{}]|\{[^{}]*\})*)\}", r"\\frac{\1}{\2}"),
    (r"\{([^{}]*)\\choose(?![A-Za-z])([^{}]*)\}", r"\\binom{\1}{\2}"),
    (r"\\frac (\w) ?(\w)(?!\w)", r"\\frac{\1}{\2}"), (r"\^ ?(\\frac ?\{[^{}]*\} ?\{[^{}]*\})", r"^{\1}"),
    (r"\^ ?(?:\\circ(?![A-Za-z])|\{ ?\\circ ?\}|o|\{ ?(?:o|\\(?:text|mathrm) ?\{ ?o ?\}) ?\})|\\degree(?![A-Za-z])", r"^\\circ "),
    (r"\\mathrm ?\{ ?([ei]) ?\}", r" \1 "),                            # numbers, not units
    (r"_\{(\w)\}", r"_\1"),
    (r"\^(\d)(?=\d)", r"^{\1} "),                                   # TeX reads 2^10 as 2^1 and then a 0
    # sets
    (r"\\\{ ?[a-z](?: ?\\in ?\\mathbb ?\{?R\}?)? ?(?::|\|) ?(.*) ?\\\}$", r"\1"),                    # {x | x > 2} is x > 2
    (r"^ ?\] ?([^,;\[\]]+[,;][^,;\[\]]+) ?\[ ?$", r"(\1)"),            # ]1, 2[ is (1, 2)
    (r"(?<=[)\]}]) ?U ?(?=[(\[\\])", r"\\cup "),                        # (0,1) U (2,3)
    (r"\\mathbb ?\{?R\}? ?(?:-|\\backslash) ?(?=\\\{)", r"\\mathbb{R}\\setminus "),
    (r"(?<![(\[{]) ?; ?(?=.)", ", "), (r"(?<=\d) ?\(([A-Za-z]{2,})\) ?$", r" \1"),
    (r" ?(?:\\text ?\{ ?)?(?<![A-Za-z])(?:percent(?:age)?|per cent|pct)(?: ?\})?(?![A-Za-z])|\\?%", r"\\%"),
    (r"= ?-?\d{1,3}(?:,\d{3})+$", lambda match: match[0].replace(",", "")),  # x = 58,500
    (r"^ ?[=:] ?", ""), (r"^-?(.*?) ?\\?(?:text)? ?\{? ?below zero ?\}?$", r"-\1"),
    (r" +", " "), (r"(?<=[{(\[]) | (?=[})\]])(?<!\\ )", ""),
)]  # fmt: skip
_TEXT = re.compile(r"\\text ?\{([^{}]*)\}")
_NAME = re.compile(r"^[A-Za-z](?:_\w|\([A-Za-z]\))? ?(?:=|\\in(?![a-z])) ?(?=[^=]+$)")  # "x =", "f(x) =", "x \in"


def normalise(text: str) -> str:
    r"""The answer in plain characters, without layout commands, its words in \text{}, and without brackets around the whole.

    >>> normalise(r"$\left( \dfrac{1}{2} \right)$."), normalise("5 apples")
    ('\\frac{1}{2}', '5\\text{apples}')
    """
    text = "".join(_flat(kind, list(run)) for kind, run in groupby(text.translate(_CHARACTERS), _kind)).replace("\u2212", "-")
    text = "".join(c for c in text if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    for pattern, new in _RULES:
        text = pattern.sub(new, text)
    return peel(as_text(text.rstrip(" ;,.")).rstrip(" ."))


def _kind(c: str) -> str:
    return unicodedata.decomposition(c).partition(" ")[0] if c > "\x7f" else ""


def _flat(kind: str, run: list[str]) -> str:
    """Characters of one kind in plain ones: raised and lowered digits, fractions such as the sign for a third, and all others."""
    plain = [unicodedata.normalize("NFKC", c) for c in run]
    if kind == "<fraction>":
        return "".join(r"\frac{%s}{%s}" % tuple(c.split("\u2044")) if c[-1] != "\u2044" else c for c in plain)
    sign = {"<super>": "^", "<sub>": "_"}.get(kind)
    return f"{sign}{{{''.join(plain)}}}" if sign else "".join(plain).replace("\u2044", "/")


def compact(text: str) -> str:
    r"""For a comparison letter by letter: no text commands, and spaces only between two numbers or two words.

    >>> compact(r"\text{two apples} + 1 2")
    'two apples+1 2'
    """
    text = peel(_TEXT.sub(r"\1", text).strip())
    return re.sub(r" (?!(?<=\d )\d|(?<=[A-Za-z] )[A-Za-z])", "", text)


def split_at(text: str, *separators: str) -> list[str]:
    r"""The parts of a text between separators that stand in no bracket.

    >>> split_at("(1,2), 3", ","), split_at(r"x = 1 \approx 2", "=", r"\approx")
    (['(1,2)', '3'], ['x', '1', '2'])
    """
    depth, start, parts = 0, 0, []
    for match in re.finditer(r"[({[]|[)}\]]|" + "|".join(re.escape(s) + ("(?![a-z])" if s[0] == "\\" else "") for s in separators), text):
        if match[0] in separators:
            if depth == 0:
                parts.append(text[start : match.start()].strip())
                start = match.end()
        else:
            depth = max(0, depth + (1 if match[0] in "({[" else -1))
    return [part for part in [*parts, text[start:].strip()] if part or len(separators) > 1 or not parts]


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
