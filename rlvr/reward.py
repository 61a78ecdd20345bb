r"""Rewards: is the boxed answer right, and was the completion too long?

The answer is what stands in the last balanced ``\boxed{...}``. No box, no credit. It must be *equal* to the gold
answer: ``0.33333333`` is not ``1/3``. Two checkers decide, the cheap one first:

1. text and exact fractions, in this process, in microseconds (numbers, lists and points of numbers);
2. math-verify, which builds on sympy, for all other mathematics (roots, intervals, matrices, polynomials).

A model in training writes every string there is, and some of them keep sympy busy for years: ``9^{9^{9^9}}``.
A thread that is stuck in such a sum cannot be stopped, a process can. So math-verify lives in one child process
with a memory limit, and the parent kills it when an answer takes longer than ``ANSWER_SECONDS``.
"""

import atexit
import importlib
import importlib.util
import json
import math
import os
import queue
import re
import subprocess
import sys
import threading
import time
import unicodedata
from collections import Counter
from fractions import Fraction
from functools import lru_cache

ANSWER_SECONDS = 2.0  # wall clock for one answer in the child; then the child is killed and the answer is wrong
BATCH_SECONDS = 30.0  # wall clock after which verify_all asks the child nothing more: what it would have to decide is wrong
START_SECONDS = 120.0  # wall clock for the child to import sympy, which takes a second or two on an idle machine
MEMORY_BYTES = 2**30  # address space of the child, where the system can limit it
MAX_CHARS = 8000  # longer answers are right only if they equal the gold answer letter by letter
MAX_DEPTH = 40  # brackets inside brackets, after those around the whole answer are gone
MAX_DIGITS = 1000  # of a number that we compare ourselves; Python refuses to print one above 4300

# What a reward function is tried on before a run: a right completion, and one without an answer.
EXAMPLE = [r"2 + 2 = 4. The answer is \boxed{4}.", "I do not know."], ["4", "4"]

# What happened since the program started. A run that logs these sees how many answers were killed.
# checks: calls of verify. slow: answers that went to the child. timeouts: killed by the clock.
# crashes: the child died (usually of its memory limit). restarts: children started after the first.
# skipped: not asked, because the batch had used up its time.
stats = Counter(checks=0, slow=0, timeouts=0, crashes=0, restarts=0, skipped=0)


# --- finding the answer -------------------------------------------------------------------------------------------

_BRACE = re.compile(r"\\(?:boxed|fbox)(?:\s*\{|\s+(-?\d+(?:[.,/]\d+)*))|\\[{}]|\\\\(?!f?box)|[{}]")


def last_boxed(text: str) -> str | None:
    r"""The content of the last balanced ``\boxed{...}`` (or ``\fbox{...}``), or None if there is none.

    "Last" is the box that opens last. A box that never closes does not count and does not hide an earlier one.
    TeX also allows ``\boxed 5``; a plain number after a space is accepted. So is a box with its backslash doubled.
    The time is linear in the length.

    >>> last_boxed(r"First \boxed{3}. No: \boxed{\frac{1}{2}}. Or \boxed{4")
    '\\frac{1}{2}'
    """
    first = re.search(r"\\(?:boxed|fbox)", text)
    best, answer = -1, None
    opened = []  # for each open brace: where its content starts if it belongs to a box, else -1
    for match in _BRACE.finditer(text, first.start()) if first else ():
        token = match.group()
        if match[1] is not None:
            best, answer = match.start(1), match[1]
        elif token == "}" and opened:
            start = opened.pop()
            if start > best:
                best, answer = start, text[start : match.start()]
        elif token == "{":
            opened.append(-1)
        elif token[-1] == "{" and len(token) > 2:  # \boxed{, not the escaped brace \{
            opened.append(match.end())
    return answer


# --- one spelling for each thing ----------------------------------------------------------------------------------

_UNICODE = str.maketrans(
    {"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "π": r"\pi ", "∞": r"\infty ", "°": r"^\circ "}
    | {"≤": r"\le ", "≥": r"\ge ", "∪": r"\cup ", "∅": r"\emptyset ", "½": r"\frac12", "¼": r"\frac14", "¾": r"\frac34"}
    | {digit: f"^{i}" for i, digit in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
)
_SPELLINGS = [(re.compile(pattern), new) for pattern, new in (
    (r",\\!\s*|\{,\}", ","),                                        # 10,\!000 and 10{,}000
    (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle)(?![A-Za-z])|(?<!\\)\\[!$]|\$", ""),
    (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Za-z])|\s+", " "),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"√ ?(\d+|[a-z])", r"\\sqrt{\1}"),
    (r"\\(?:mbox|textbf|textit|textrm)(?=\s*\{)", r"\\text"),
    (r"\\mathrm ?\{ ?([ei]) ?\}", r" \1 "),                            # numbers, not units
    (r",? ?\\text ?\{ ?(?:and|or) ?\} ?", ", "),
    (r"\\text ?\{ ?percent ?\}|\\?%", r"\\%"),
    (r"\^ ?(?:\\circ|\{ ?\\circ ?\})|\\degree(?![A-Za-z])", ""),    # 90^\circ: the unit goes, as others do
    (r"_\{(\w)\}", r"_\1"),
    (r"\^(\d)(?=\d)", r"^{\1} "),                                   # TeX: 2^10 is 2^1 and then a 0
    (r" +", " "),
)]  # fmt: skip


def _normalise(text: str) -> str:
    """The answer in one spelling: plain characters, no layout commands, no brackets around the whole."""
    text = unicodedata.normalize("NFKC", text.translate(_UNICODE)).replace("\u2044", "/")
    text = "".join(c for c in text if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    for pattern, new in _SPELLINGS:
        text = pattern.sub(new, text)
    return _peel(text.strip().removesuffix(".").strip())[0]


def _peel(text: str) -> tuple[str, int]:
    """Remove the brackets around a whole answer, and say how deep the rest is nested: ({{5}}) gives 5 and 0.

    The pair (1,2) keeps its parentheses, and so does (1)+(2).
    """
    opened, partner, depth = [], {}, []
    for i, c in enumerate(text):
        if c in "({[":
            opened.append(i)
        elif c in ")}]" and opened:
            partner[opened.pop()] = i
        depth.append(len(opened))
    left, right = 0, len(text) - 1
    pairs = ("{}",) if "," in text else ("{}", "()")
    while left < right and partner.get(left) == right and text[left] + text[right] in pairs:
        left, right = left + 1, right - 1
    return text[left : right + 1].strip(), max(depth[left : right + 1], default=0) - left


_TEXT = re.compile(r"\\(?:text|mathrm|mathbf) ?\{([^{}]*)\}")


def _compact(text: str) -> str:
    """For comparing letter by letter: no text commands, and spaces only where they part two numbers or words."""
    text = _peel(_TEXT.sub(r"\1", text).strip())[0]
    return re.sub(r" (?!(?<=\d )\d|(?<=[A-Za-z] )[A-Za-z])", "", text)


# --- exact numbers ------------------------------------------------------------------------------------------------

# \text{ cm}^2, \mathrm{m}/\mathrm{s}, and also a sentence: \text{The answer is }
_UNIT = r"(?:\\(?:text|mathrm) ?\{[^{}]*\}(?:\^\{?\d\}?)? ?/?)+"
_UNIT_BEFORE, _UNIT_AFTER = re.compile("^" + _UNIT), re.compile(_UNIT + "$")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:[, ]\d{3})+(?![\d,])")
_DIGITS = r"(?:\d+\.?\d*|\.\d+)"
_POWER_OF_TEN = r"e([+-]?\d{1,3})|\\(?:times|cdot)10\^(?:(\d)|\{([+-]?\d{1,3})\})"
_DECIMAL = re.compile(rf"([+-]?{_DIGITS})(?:{_POWER_OF_TEN})?")
_FRACTION = re.compile(rf"([+-]?)(\d*)\\frac(\d|\{{[+-]?{_DIGITS}\}})(\d|\{{[+-]?{_DIGITS}\}})")
_SLASH = re.compile(rf"^([+-]?)({_DIGITS})/([+-]?{_DIGITS})$")


def _number(text: str) -> Fraction | None:
    r"""The exact value of 12, .5, 1.5e3, 1.5\times10^{3}, 3/4, \frac34 or 1\frac34, or None for all else.

    A unit and a percent sign are dropped. Raises ZeroDivisionError for 1/0.
    """
    text = _UNIT_AFTER.sub("", _UNIT_BEFORE.sub("", text)) or text
    text = text.strip().removesuffix(r"\%")
    if "(" not in text:  # in the point (1,234) the comma parts two numbers
        text = _THOUSANDS.sub(lambda match: re.sub("[, ]", "", match.group()), text)
    text = _compact(text)
    if len(text) > MAX_DIGITS:
        return None
    if match := _FRACTION.fullmatch(_SLASH.sub(r"\1\\frac{\2}{\3}", text)):
        sign, whole, top, bottom = match.groups()
        value = Fraction(whole or 0) + Fraction(top.strip("{}")) / Fraction(bottom.strip("{}"))
        return -value if sign == "-" else value  # 1\frac34 is a mixed number, not a product
    if match := _DECIMAL.fullmatch(text):
        return Fraction(match[1]) * Fraction(10) ** int(match[2] or match[3] or match[4] or 0)
    return None


_LIST = re.compile(r"(\\\{|\(|)(.*?)(\\\}|\)|)", re.DOTALL)


def _numbers(text: str) -> tuple[str, list[Fraction]]:
    r"""Brackets and values of one number or a list, such as ``1, 2``, ``\{1,2\}`` or the point ``(1,2)``.

    Raises ValueError for all else, and as _number.
    """
    number = _number(text)
    if number is not None:
        return "", [number]
    opening, inside, closing = _LIST.fullmatch(_compact(text)).groups()
    values = [_number(part) for part in inside.split(",")]
    if opening + closing not in ("", "()", r"\{\}") or None in values:
        raise ValueError("not a list of numbers")
    return opening + closing, values


# --- comparing ----------------------------------------------------------------------------------------------------

_INTEGER = re.compile(r"-?\d{1,15}", re.ASCII)
_NAME = re.compile(r"^[A-Za-z](?:_\w|\([A-Za-z]\))? ?(?:=|\\in(?![a-z])) ?(?=[^=]+$)")  # "x =", "f(x) =", "x \in"
_CHOICE = re.compile(r"\(?([A-Z])\)")  # "(D)", "D) 15"
_BASE = re.compile(r"(\d+)_\{?\d+\}?")  # 101_2; math-verify drops the base
_HUGE = re.compile(r"\^[{(]*-?(?:\d{4}|\d+\^[{(]*\d)|\d{5}[)}]*!|\d{50}")  # x^{1000}, x^{2^{9}}, 10000!, 50 digits


def _without_name(text: str) -> str:
    return _peel(_NAME.sub("", text))[0]


@lru_cache(maxsize=8192)
def _decide(answer: str, gold: str) -> bool | tuple[str, str]:
    """The verdict, or what math-verify must be asked: answer and gold in one spelling."""
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(gold):  # the usual case, and the fastest
        return int(answer) == int(gold)
    answer, gold = _normalise(answer), _normalise(gold)
    if "=" not in answer or "=" not in gold:  # x=5 answers 5, but y=5 does not answer x=5
        answer, gold = _without_name(answer), _without_name(gold)
    words, gold_words = _compact(answer), _compact(gold)
    if not words or not gold_words or words.lower() == "nan":  # nothing, and what equals nothing
        return False
    if words == gold_words:
        return True
    if re.fullmatch("[A-Z]", gold_words) and (choice := _CHOICE.match(words)):
        return choice[1] == gold_words
    if _BASE.fullmatch(words) or _BASE.fullmatch(gold_words):
        return words == _BASE.sub(r"\1", gold_words)
    try:
        return _equal_numbers(answer, gold)
    except ZeroDivisionError:
        return False
    except ValueError:
        return False if _too_heavy(answer) or _too_heavy(gold) else (answer, gold)


@lru_cache(maxsize=8192)
def _ask(answer: str, gold: str) -> bool:
    return _worker.ask(answer, gold)


def _equal_numbers(answer: str, gold: str) -> bool:
    """Compare numbers or lists of numbers exactly. Raises ValueError if one of the two is something else."""
    (brackets, values), (gold_brackets, gold_values) = _numbers(answer), _numbers(gold)
    if len(values) == 1 and answer.endswith("%") != gold.endswith("%"):
        # 50% is 0.5, but data sets also write it as 50: both are right
        percent, plain = (values, gold_values) if answer.endswith("%") else (gold_values, values)
        return plain in (percent, [percent[0] / 100])
    if "()" in (brackets, gold_brackets):  # a point, whose order counts; its brackets may be missing
        return values == gold_values and r"\{\}" not in (brackets, gold_brackets)
    return sorted(values) == sorted(gold_values)


def _too_heavy(text: str) -> bool:
    return _HUGE.search(_compact(text)) is not None or _peel(text)[1] > MAX_DEPTH


def verify(response: str, gold: str) -> bool:
    r"""Is the answer in the last balanced box of the response equal to the gold answer?

    Never hangs, and never raises because of what the response says; anything that cannot be checked is wrong.
    May be called from any thread. A gold answer may be a string or a plain number.

    Raises ImportError if math-verify is needed and not installed, RuntimeError if its process cannot start.

    >>> verify(r"... so it is \boxed{\frac{2}{4}}.", "0.5")
    True
    >>> verify("... so it is 0.5.", "0.5")
    False
    """
    return _verify(response, gold, may_ask=True)


def _verify(response: str, gold: str, may_ask: bool) -> bool:
    stats["checks"] += 1
    answer = last_boxed(response) if isinstance(response, str) else None
    if answer is None or gold is None:
        return False
    gold = str(gold)
    if max(len(answer), len(gold)) > MAX_CHARS:
        return answer.strip() == gold.strip()
    verdict = _decide(answer, gold)
    if isinstance(verdict, bool):
        return verdict
    if not may_ask:
        stats["skipped"] += 1
        return False
    return _ask(*verdict)


def verify_all(responses: list[str], golds: list[str]) -> list[bool]:
    r"""``verify`` for each pair. Each different pair of answer and gold is checked once, since they are cached.

    A batch of hostile answers costs BATCH_SECONDS at most: after that only the quick checks are made.
    Raises ValueError if the lists differ in length.

    >>> verify_all([r"\boxed{1}", r"\boxed{2}"], ["1", "1"])
    [True, False]
    """
    end = time.monotonic() + BATCH_SECONDS
    return [_verify(response, gold, may_ask=time.monotonic() < end) for response, gold in zip(responses, golds, strict=True)]


def rewards_from(function, responses: list[str], golds: list[str]) -> list[float]:
    """The rewards of a batch by any reward function; NaN for a completion that could not be scored.

    function(responses, golds) -> one number for each (above 0: right), or True for 1 and False for -1. If it raises, it is called anew for
    each completion alone, so that a bad one costs only itself. None, NaN, infinities and what is no number count as not scored.

    Raises ValueError if it returns another number of rewards, or fails for every completion.
    """
    name = getattr(function, "__name__", str(function))
    problem = None
    try:
        rewards = list(function(responses, golds))
    except Exception as error:
        rewards, problem = [], error
        for response, gold in zip(responses, golds, strict=True):
            try:
                (alone,) = function([response], [gold])
            except Exception:
                alone = None
            rewards.append(alone)
    if len(rewards) != len(responses):
        raise ValueError(
            f"The reward function {name} returned {len(rewards)} rewards for {len(responses)} completions. Return one for each, in order."
        )
    rewards = [_plain(r) for r in rewards]
    if all(map(math.isnan, rewards)):
        reason = f"{type(problem).__name__}: {problem}" if problem else "it returned no finite number"
        raise ValueError(f"The reward function {name} failed for all {len(responses)} completions ({reason}). Mend it, then --resume.")
    return rewards


def load_reward(name: str):
    """The reward function that `module:function` or `file.py:function` names, after a try on an example. Its code is run.

    Raises ValueError with cause and remedy: no such module or function, or no reward for the example.
    """
    where, _, function_name = name.rpartition(":")
    if not where or not function_name.isidentifier():
        raise ValueError(f"--reward {name!r} names no function. Write module:function or file.py:function.")
    try:
        if where.endswith(".py"):
            spec = importlib.util.spec_from_file_location("reward_of_" + os.path.basename(where).removesuffix(".py"), where)
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # dataclasses and pickle look there
            spec.loader.exec_module(module)
        else:
            if os.getcwd() not in sys.path:  # as python -m has it
                sys.path.insert(0, os.getcwd())
            module = importlib.import_module(where)
    except (Exception, SystemExit) as error:  # whatever the code of the module does
        raise ValueError(f"--reward: {where} cannot be imported ({type(error).__name__}: {error}). Check the name, and its code.") from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"--reward: {where} has no function {function_name}. Check the name.")
    try:
        rewards_from(function, *EXAMPLE)
    except ValueError as error:
        raise ValueError(f"--reward {name} fails on an example. {error}") from None
    return function


def _plain(reward) -> float:
    """True -> 1, False -> -1, a number as it is; NaN for everything else."""
    try:
        reward = reward.item() if hasattr(reward, "item") else reward  # a number of torch or NumPy
        if isinstance(reward, bool):
            return 1.0 if reward else -1.0
        return float(reward) if math.isfinite(reward) else math.nan
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return math.nan


def answer_key(response: str) -> str | None:
    r"""The boxed answer as a string for majority voting, or None if there is none. Equal numbers get one key.

    >>> [answer_key(r"\boxed{%s}" % s) for s in ("0.5", "1/2", r"\dfrac{2}{4}", r"\sqrt{ 2 }")]
    ['1/2', '1/2', '1/2', '\\sqrt{2}']
    """
    answer = last_boxed(response) if isinstance(response, str) else None
    if answer is None or not answer.strip():
        return None
    if len(answer) > MAX_CHARS:
        return answer.strip()
    answer = _without_name(_normalise(answer))
    try:
        number = _number(answer)
    except ZeroDivisionError:
        number = None
    return (_compact(answer) if number is None else str(number)) or None


def overlong_penalty(lengths, max_tokens: int, buffer: int, factor: float = 1.0):
    """Soft overlong penalty, a float tensor [N] from the completion lengths [N] (a tensor), in tokens.

    min(0, -factor * (L - (max_tokens - buffer)) / buffer): zero up to max_tokens - buffer, then falling
    linearly to -factor at max_tokens. It is added to right and wrong answers alike. A buffer of 0 switches it off.
    Source: the released code of Deng et al. 2025 (arXiv 2508.02260). With max_tokens=8192 and buffer=1024:

        L        7168   7680   8192
        penalty  0      -0.5   -1
    """
    lengths = lengths.float()
    if buffer == 0:
        return lengths * 0
    return (factor * (max_tokens - buffer - lengths) / buffer).clamp(max=0)


# --- math-verify in a process that can be killed: the parent's side -----------------------------------------------


class _Worker:
    """Asks the child process one question at a time: a line of JSON there, "true" or "false" back."""

    def __init__(self):
        self.lock = threading.Lock()
        self.process = self.replies = None

    def ask(self, answer: str, gold: str) -> bool:
        with self.lock:
            stats["slow"] += 1
            if self.process is None or self.process.poll() is not None:
                self.start()
            try:
                self.process.stdin.write(json.dumps([answer, gold]) + "\n")
                self.process.stdin.flush()
                reply = self.replies.get(timeout=ANSWER_SECONDS)
            except (queue.Empty, OSError) as error:
                stats["timeouts" if isinstance(error, queue.Empty) else "crashes"] += 1
                self.stop()
                return False
            except BaseException:  # Ctrl-C: a reply still under way must not answer the next question
                self.stop()
                raise
            if reply is None:  # the pipe is closed: the child died
                stats["crashes"] += 1
                self.stop()
            return bool(reply)

    def start(self) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise ImportError("math-verify is needed to check this answer. Install it with: pip install math-verify")
        stats["restarts"] += self.replies is not None
        self.stop()
        self.process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="ascii",
        )  # fmt: skip
        self.replies = queue.Queue()
        # A pipe has no portable read with a time limit, so a thread reads and a queue waits.
        threading.Thread(target=_read, args=(self.process.stdout, self.replies), daemon=True).start()
        try:
            if not self.replies.get(timeout=START_SECONDS):
                raise queue.Empty
        except BaseException as error:
            self.stop()
            if not isinstance(error, queue.Empty):
                raise
            raise RuntimeError(
                f"The answer checker did not start. To see why, run: {sys.executable} {__file__}"
            ) from None

    def stop(self) -> None:
        if self.process is not None:
            process, self.process = self.process, None
            process.kill()
            process.wait()
            try:
                process.stdin.close()
            except OSError:  # the rest of a question that the child did not live to read
                pass


def _read(pipe, replies: queue.Queue) -> None:
    with pipe:
        for line in pipe:
            replies.put(line == "true\n")
    replies.put(None)


_worker = _Worker()
atexit.register(_worker.stop)
if hasattr(os, "register_at_fork"):  # a fork must not share the pipes: the two would read each other's answers
    os.register_at_fork(after_in_child=_worker.__init__)


# --- math-verify in a process that can be killed: the child's side ------------------------------------------------


def _fraction_for_decimal(match: re.Match) -> str:
    whole, decimals = match.groups()
    return rf"(\frac{{{whole}{decimals}}}{{1{'0' * len(decimals)}}})"


def _parse(text: str) -> list:
    from math_verify import LatexExtractionConfig, parse

    # Decimals become fractions: math-verify rounds floats to 6 places, and 3.14159265 is not pi.
    text = re.sub(r"(\d*)\.(\d+)", _fraction_for_decimal, text)
    return parse(rf"\boxed{{{text}}}", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)


def _equal_by_math_verify(answer: str, gold: str) -> bool:
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
        # math-verify compares numbers by their absolute difference, so that all tiny ones are alike.
        left, right = sympy.N(left, 80), sympy.N(right, 80)
        return bool(left == right or abs(left - right) <= 10**-60 * abs(left))
    return True


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
    try:
        import resource

        kind = getattr(resource, what)
        resource.setrlimit(kind, (amount, resource.getrlimit(kind)[1]))
    except (ImportError, AttributeError, OSError, ValueError):
        pass


def _serve() -> None:
    """The child: answer questions until the parent closes the pipe."""
    import logging
    import signal

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # a signal to all of the job is for the parent, which may want to finish its step
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    replies, sys.stdout = sys.stdout, sys.stderr  # nothing that a library prints may pass for a reply
    logging.disable()
    _limit("RLIMIT_AS", MEMORY_BYTES)
    _limit("RLIMIT_CORE", 0)
    _equal_by_math_verify(r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}")  # imports sympy and fills its caches
    print("true", file=replies, flush=True)
    for line in sys.stdin:
        # If the parent is killed while we compute, nobody is left to kill us: the system does it after this time.
        _limit("RLIMIT_CPU", int(time.process_time() + ANSWER_SECONDS) + 2)
        try:
            reply = _equal_by_math_verify(*json.loads(line))
        except MemoryError:
            os._exit(1)  # what is left of this process cannot be trusted
        except Exception:
            reply = False
        print("true" if reply else "false", file=replies, flush=True)


if __name__ == "__main__":
    # Run as a file, so that rlvr/__init__.py is not imported; then rlvr/ must not shadow other packages' modules.
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != os.path.dirname(os.path.abspath(__file__))]
    _serve()
