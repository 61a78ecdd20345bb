r"""Rewards: is the boxed answer right, and was the completion too long?

The answer is the content of the last balanced ``\boxed{...}``. Without a box it earns nothing. It must be *equal* to the gold answer:
``0.33333333`` is not ``1/3``. How equality is decided, and what holds against answers that would take years to check, is in rlvr/verifier/.
"""

import copy
import math
import re

from rlvr.verifier import deadline, each, equal

BATCH_SECONDS = 30.0  # wall clock for the verdicts of a training step; what needs more is not scored

# A box with its brace; a box with a plain number; an escaped brace; two backslashes that begin no box; a brace.
_BRACE = re.compile(r"\\(?:boxed|fbox)(?:\s*\{|\s+(-?\d+(?:[.,/]\d+)*))|\\[{}]|\\\\(?!f?box)|[{}]")


def last_boxed(text: str) -> str | None:
    r"""The content of the last balanced ``\boxed{...}`` (or ``\fbox{...}``), or None without one, also of what is no text.

    "Last" is the box that opens last. A box that never closes does not count and does not hide an earlier one.
    TeX also allows ``\boxed 5``; a plain number after a space is accepted. So is a box with its backslash doubled.
    The time is linear in the length.

    >>> last_boxed(r"First \boxed{3}. No: \boxed{\frac{1}{2}}. Or \boxed{4")
    '\\frac{1}{2}'
    """
    first = re.search(r"\\(?:boxed|fbox)", text) if isinstance(text, str) else None
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
    return equal(last_boxed(response), gold)


def verify_all(responses: list[str], golds: list[str], seconds: float = math.inf) -> list[bool | None]:
    r"""``verify`` for each pair. Each different pair of answer and gold is checked once.

    After so many seconds only the quick checks are made, and what needs more gets None: not scored.
    Raises ValueError if the lists differ in length.

    >>> verify_all([r"\boxed{1}", r"\boxed{2}"], ["1", "1"])
    [True, False]
    """
    with deadline(seconds):
        return each(equal, list(zip(map(last_boxed, responses), golds, strict=True)))


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


def rewards_from(function, responses: list[str], golds: list[str], *more: list) -> list[float]:
    """The rewards of a batch by any reward function (None: 1 for a right answer, -1 for a wrong one); NaN where it could not score.

    function(responses, golds) -> one number for each (above 0: right), or True for 1 and False for -1. If it raises, it is called again
    for each completion alone, so that a bad one costs only itself. None, NaN, what is no number, infinities and numbers of more than 15
    digits (the float32 of a standard deviation would be infinite) count as not scored.
    more: other lists that it takes, such as the rows of the data (see columns_for in data.py).

    Raises ValueError if it returns another number of rewards, or fails for every completion.

    >>> rewards_from(lambda responses, golds: [len(r) for r in responses], ["yes", ""], ["1", "2"])
    [3.0, 0.0]
    """
    if function is None:
        return [_plain(verdict) for verdict in verify_all(responses, golds, BATCH_SECONDS)]
    name = getattr(function, "__name__", str(function))
    rewards, problem = _ask(function, responses, golds, *more)
    if problem:
        alone = [_ask(function, *([x] for x in one))[0] for one in zip(responses, golds, *more, strict=True)]
        rewards = [found[0] if len(found) == 1 else None for found in alone]
    if len(rewards) != len(responses):
        counts = f"{len(rewards)} rewards for {len(responses)} completions"
        raise ValueError(f"The reward function {name} returned {counts}. Return one for each, in order.")
    rewards = [_plain(r) for r in rewards]
    if all(map(math.isnan, rewards)):
        reason = f"{type(problem).__name__}: {problem}" if problem else "it returned no finite number"
        raise ValueError(f"The reward function {name} failed for all {len(responses)} completions ({reason}). Mend it, then --resume.")
    return rewards


def _ask(function, *lists: list) -> tuple[list, BaseException | None]:
    """What a function makes of copies of the lists, which it may change; or nothing, and what it raised."""
    try:
        return list(function(*copy.deepcopy(lists))), None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit() too must not end a run
        return [], error


def _plain(reward) -> float:
    """True -> 1, False -> -1, a number as it is; NaN for everything else."""
    try:
        reward = reward.item() if hasattr(reward, "item") else reward  # a number of torch or NumPy
        if isinstance(reward, bool):
            return 1.0 if reward else -1.0
        return float(reward) if abs(reward) < 1e15 else math.nan
    except BaseException:  # what an object of the user's does when it is asked for its value must not end a run either
        return math.nan
