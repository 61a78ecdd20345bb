"""The child's side of the process that can be killed: it reads pairs of answers, and says of each whether math-verify finds them equal.

It is run as a file, so that rlvr is not imported; sympy and math-verify are imported when it runs, not before.
"""

import json
import os
import re
import sys
from contextlib import suppress

# Computing time for one answer; then the system, or on Windows the parent, kills this process, and the answer is wrong.
ANSWER_SECONDS = 2.0
MEMORY_BYTES = 2**30  # address space of this process, where the system can limit it


def serve() -> None:
    """Answer questions until the parent closes the pipe."""
    import logging
    import signal

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # a signal to the whole job is for the parent, which may want to finish its step
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "SIGPROF"):
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # it ends this process when the time for an answer is used up
    replies, sys.stdout = sys.stdout, sys.stderr  # nothing that a library prints may pass for a reply
    logging.disable()
    _limit("RLIMIT_AS", MEMORY_BYTES)
    _limit("RLIMIT_CORE", 0)
    equal_by_math_verify(r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}")  # imports sympy and fills its caches
    print("true", file=replies, flush=True)
    for line in sys.stdin:
        answer, gold, seconds = json.loads(line)
        if hasattr(signal, "setitimer"):  # also when the parent is killed meanwhile, and nobody is left to kill us
            signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            reply = equal_by_math_verify(answer, gold)
        except MemoryError:
            os._exit(1)  # what is left of this process cannot be trusted
        except Exception:
            reply = False
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, 0)
        print("true" if reply else "false", file=replies, flush=True)


def equal_by_math_verify(answer: str, gold: str) -> bool:
    """Nothing here may print or hash what was parsed: the str() of a power tower does not end."""
    import math_verify
    import sympy

    if _EQUALS.search(answer) and _EQUALS.search(gold):
        return _same_equation(answer, gold)
    if _INEQUALITY.search(answer + gold) and re.search(r"\\lor|,", answer + gold):
        return _same_set(answer, gold)
    left, right = _parse(gold), _parse(answer)
    options = dict(numeric_precision=100, allow_set_relation_comp=True, timeout_seconds=None)
    if isinstance(left, sympy.core.relational.Relational) and isinstance(right, sympy.core.relational.Relational):
        if left.free_symbols != right.free_symbols or not left.free_symbols or (left.lhs - left.rhs).equals(0):  # x < x says nothing
            return False
    if not math_verify.verify(left, right, **options):
        left, right = _usual_symbols(left), _usual_symbols(right)
        if left is None or right is None or not math_verify.verify(left, right, **options):
            return False
    if isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr) and not left.free_symbols | right.free_symbols:
        # math-verify compares numbers by their absolute difference, which makes all tiny numbers equal.
        exact, left, right = left - right, sympy.N(left, 80), sympy.N(right, 80)
        return bool(left == right or abs(left - right) <= 10**-60 * abs(left) or exact.equals(0))
    return True


_EQUALS = re.compile(r"=(?![^{}]*\})")  # outside of the bounds of a sum
_INEQUALITY = re.compile(r"[<>]|\\(?:l|g|n)e(?![a-z])|\\in(?![a-z])")
_MIXED = re.compile(r"(?<![\w.}^])(\d+) ?\\frac ?\{?(\d+?)\}? ?\{?(\d+)\}?")
_PRODUCT = re.compile(r"((?<![\w.^])\d+|\\pi|\)) ?(?=\()|\) ?(?=\d|\\frac)")
_ARGUMENT = re.compile(
    r"(\\(?:sin|cos|tan|cot|sec|csc|ln|log)(?:_\{?\w+\}?)?(?: ?\^ ?\{?-?\d+\}?)?) ?"
    r"([A-Za-z]|[\d.]+[A-Za-z]?|\\[a-z]+) ?(?=\\cdot|\\times|\*)"
)
_PERCENT = re.compile(r"(\d+(?:\.\d+)?) ?\\%")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?) ?\^\\circ")


def _parse(text: str):
    """LaTeX -> sympy, by the parser of math-verify."""
    import sympy
    from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig

    text = _PERCENT.sub(r"(\\frac{\1}{100})", text)  # the parser would drop the sign
    # Decimals become fractions: math-verify rounds floats to 6 places, and 3.14159265 is not pi.
    text = re.sub(r"(\d*)\.(\d+)", lambda match: rf"(\frac{{{match[1]}{match[2]}}}{{1{'0' * len(match[2])}}})", text)
    text = _MIXED.sub(r"(\1+\\frac{\2}{\3})", text)
    text = _ARGUMENT.sub(r"\1(\2)", text)  # the parser would make sin(x x) of \sin x \cdot x
    text = _PRODUCT.sub(r"\g<0>\\cdot ", text)  # the parser would make 7 of 3(4)
    text = _DEGREES.sub(r"(\\frac{\1\\pi}{180})", text)
    text = normalize_latex(text, NormalizationConfig(basic_latex=True, malformed_operators=True, nits=True, boxed="none"))
    complex_numbers = re.search(r"(?<![A-Za-z\\])i(?![A-Za-z])", text)
    conversion = ConversionConfig(lowercase_symbols=False)
    parsed = latex2sympy(text, is_real=not complex_numbers, normalization_config=None, conversion_config=conversion)
    # dx/dt, or the limit of a_n: of letters alone sympy would make 0, or the letter. They are names.
    kinds = (sympy.Derivative, sympy.Limit, sympy.Integral, sympy.Sum)
    names = {x: sympy.Symbol(sympy.srepr(x)) for x in getattr(parsed, "atoms", lambda *_: ())(*kinds) if _of_letters_alone(x)}
    return parsed.xreplace(names) if names else parsed


def _of_letters_alone(x) -> bool:
    return x.args[1].args[0] not in x.args[0].free_symbols if x.func.__name__ != "Limit" else x.args[1] not in x.args[0].free_symbols


def _usual_symbols(parsed):
    """The same with i the imaginary unit and positive variables, for which sqrt(1/n) is 1/sqrt(n). None if that could be wrong."""
    import sympy

    if not isinstance(parsed, sympy.Expr) or parsed.has(sympy.Abs) or parsed.doit().has(sympy.Abs):  # |x| must not become x, nor sqrt(x^2)
        return None
    constants = {"i": sympy.I, "e": sympy.E}
    return parsed.subs({s: constants.get(s.name, sympy.Symbol(s.name, positive=True)) for s in parsed.free_symbols})


def _same_equation(answer: str, gold: str) -> bool:
    """Do two equations say the same? Their left minus right sides must differ by a constant factor, and must say something."""
    import sympy

    differences = []
    for text in (answer, gold):
        sides = _EQUALS.split(text)
        if len(sides) != 2:
            return False
        left, right = map(_parse, sides)
        if not (isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr)):
            return False
        differences.append(left - right)
    first, second = map(sympy.together, differences)
    if first.free_symbols != second.free_symbols or not first.free_symbols or first.equals(0) or second.equals(0):
        return False
    return not sympy.simplify(first / second).free_symbols


def _same_set(answer: str, gold: str) -> bool:
    (set_, letters), (gold_set, gold_letters) = _as_set(answer), _as_set(gold)
    if set_ is None or gold_set is None or len(letters | gold_letters) > 1:  # conditions for x and conditions for y are two things
        return False
    return set_.symmetric_difference(gold_set).is_empty is True


def _as_set(text: str) -> tuple:
    r"""The numbers for which conditions hold, and their letters: ``x < 1 \lor x > 2``, ``x > 2, x \ne 3``; (None, ...) if unknown."""
    import sympy

    union, letters = sympy.S.EmptySet, set()
    for alternative in text.split(r"\lor"):
        part = sympy.S.Reals
        for condition in re.split(r",(?![^(\[{]*[)\]}])", alternative):
            parsed = _parse(condition)
            letters |= getattr(parsed, "free_symbols", set())
            if isinstance(parsed, sympy.Eq):  # x \in [0, 1], as the parser reads it
                parsed = parsed.rhs
            if isinstance(parsed, (sympy.core.relational.Relational, sympy.And)) and len(parsed.free_symbols) == 1:
                parsed = parsed.as_set()
            if not isinstance(parsed, sympy.Set):
                return None, letters
            part = part.intersect(parsed)
        union = union.union(part)
    return union, letters


def _limit(what: str, amount: int) -> None:
    """Set a soft limit of this process, where the system has it (Windows has none, macOS not all)."""
    with suppress(ImportError, AttributeError, OSError, ValueError):
        import resource

        kind = getattr(resource, what)
        resource.setrlimit(kind, (amount, resource.getrlimit(kind)[1]))


if __name__ == "__main__":
    # Python puts the folder of this file first in sys.path. Its modules must not shadow those of other packages.
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != os.path.dirname(os.path.abspath(__file__))]
    serve()
