"""The child's side of the process that can be killed: it reads pairs of answers, and says of each whether math-verify finds them equal.

It is run as a file, so that rlvr is not imported; sympy and math-verify are imported when it runs, not before.
"""

import json
import os
import re
import sys
import time
from contextlib import suppress

ANSWER_SECONDS = 2.0  # wall clock for one answer; then the parent kills this process, and the answer is wrong
MEMORY_BYTES = 2**30  # address space of this process, where the system can limit it


def serve() -> None:
    """Answer questions until the parent closes the pipe."""
    import logging
    import signal

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # a signal to the whole job is for the parent, which may want to finish its step
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    replies, sys.stdout = sys.stdout, sys.stderr  # nothing that a library prints may pass for a reply
    logging.disable()
    _limit("RLIMIT_AS", MEMORY_BYTES)
    _limit("RLIMIT_CORE", 0)
    equal_by_math_verify(r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}")  # imports sympy and fills its caches
    print("true", file=replies, flush=True)
    for line in sys.stdin:
        # If the parent is killed while we compute, nobody is left to kill us: the system does it after this time.
        _limit("RLIMIT_CPU", int(time.process_time() + ANSWER_SECONDS) + 2)
        try:
            reply = equal_by_math_verify(*json.loads(line))
        except MemoryError:
            os._exit(1)  # what is left of this process cannot be trusted
        except Exception:
            reply = False
        print("true" if reply else "false", file=replies, flush=True)


def equal_by_math_verify(answer: str, gold: str) -> bool:
    """Nothing here may print or hash what was parsed: the str() of a power tower does not end."""
    import math_verify
    import sympy

    golds, answers = _parse(gold), _parse(answer)
    options = dict(numeric_precision=100, allow_set_relation_comp=True, timeout_seconds=None)
    if not math_verify.verify(golds, answers, **options):
        golds, answers = _usual_symbols(golds), _usual_symbols(answers)
        if not math_verify.verify(golds, answers, **options):
            return False
    left, right = golds[0], answers[0]
    if isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr) and not left.free_symbols | right.free_symbols:
        # math-verify compares numbers by their absolute difference, which makes all tiny numbers equal.
        left, right = sympy.N(left, 80), sympy.N(right, 80)
        return bool(left == right or abs(left - right) <= 10**-60 * abs(left))
    return True


def _parse(text: str) -> list:
    from math_verify import LatexExtractionConfig, parse

    # Decimals become fractions: math-verify rounds floats to 6 places, and 3.14159265 is not pi.
    text = re.sub(r"(\d*)\.(\d+)", lambda match: rf"(\frac{{{match[1]}{match[2]}}}{{1{'0' * len(match[2])}}})", text)
    return parse(rf"\boxed{{{text}}}", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)


def _usual_symbols(parsed: list) -> list:
    """The same with i the imaginary unit and the variables positive: sqrt(1/n) is 1/sqrt(n) only for positive n."""
    import sympy

    if any(not isinstance(x, sympy.Expr) or x.has(sympy.Abs) for x in parsed):  # |x| must not become x
        return []  # which math-verify finds equal to nothing
    symbols = {s for x in parsed for s in x.free_symbols}
    usual = {s: sympy.I if s.name == "i" else sympy.Symbol(s.name, positive=True) for s in symbols}
    return [x.subs(usual) for x in parsed]


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
