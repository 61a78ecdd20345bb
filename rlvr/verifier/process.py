"""The parent's side of the process that can be killed: `ask` math-verify whether two answers are equal, with limits on its time."""

import atexit
import importlib.util
import json
import math
import os
import queue
import signal
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from functools import lru_cache

from rlvr.common.child import Child
from rlvr.verifier import child
from rlvr.verifier.child import ANSWER_SECONDS

CHILDREN = min(4, os.cpu_count() or 1)
# An answer has ANSWER_SECONDS of computing time, and so many times that on the clock: a busy machine must cost no verdict. Windows has only
# the clock.
WAITING = 10 if hasattr(signal, "setitimer") else 1
START_SECONDS = 120.0  # wall clock for the child to import sympy, which takes a second or two on an idle machine

# What happened since the program started. A run logs how many answers were killed, and how many were not scored.
# checks: calls of verify. slow: answers that went to the child. timeouts: killed by the clock.
# crashes: the child died (usually of its memory limit). restarts: children started after the first.
# skipped: not asked, because the deadline had passed.
stats = Counter(checks=0, slow=0, timeouts=0, crashes=0, restarts=0, skipped=0)

_end: ContextVar[float] = ContextVar("deadline", default=math.inf)  # of this thread alone


class NotChecked(Exception):
    """The deadline passed before this answer could be checked. That says nothing about the answer."""


class TooSlow(Exception):
    """The child was killed over a question, or died. What asked it is wrong, whatever else it may ask."""


@contextmanager
def deadline(seconds: float):
    """After so many seconds, ``with deadline(seconds):`` asks math-verify nothing more: what needs it raises NotChecked, and is counted."""
    token = _end.set(min(_end.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _end.reset(token)


def ask(answer: str, gold: str) -> bool:
    """Does math-verify find the two equal? Both normalised. Raises TooSlow, or NotChecked past the deadline, which is not remembered."""
    if time.monotonic() >= _end.get():
        stats["skipped"] += 1
        raise NotChecked
    if (verdict := _ask(answer, gold)) is None:
        raise TooSlow
    return verdict


@lru_cache(maxsize=8192)
def _ask(answer: str, gold: str) -> bool | None:
    try:
        checker = free.get(timeout=None if _end.get() == math.inf else max(0.0, _end.get() - time.monotonic()))
    except queue.Empty:
        stats["skipped"] += 1
        raise NotChecked from None
    try:
        return checker.ask(answer, gold)
    finally:
        free.put(checker)


def each(function, arguments: list[tuple]) -> list:
    """function(*a) for each a, once for equal ones. None where the deadline passed.

    As many threads as children work on them: while one waits for its child, the others go on.
    """
    results = dict.fromkeys(arguments)
    todo = iter(list(results))

    def work():
        for a in todo:
            with suppress(NotChecked):
                results[a] = function(*a)

    with ThreadPoolExecutor(CHILDREN) as threads:  # each with a copy of our context, in which the deadline stands
        try:
            for future in [threads.submit(copy_context().run, work) for _ in range(CHILDREN)]:
                future.result()
        finally:
            list(todo)  # takes what is left: after Ctrl-C, or an error in one of them, the others need not go on
    return [results[a] for a in arguments]


class Checker(Child):
    """The child that math-verify runs in: a line of JSON goes out, "true" or "false" comes back."""

    def __init__(self):
        super().__init__(child.__file__)

    def ask(self, answer: str, gold: str) -> bool | None:
        """None if it died over the question, or took too long."""
        stats["slow"] += 1
        if not self.alive():
            self.start()
        left = max(0.0, _end.get() - time.monotonic()) + ANSWER_SECONDS
        reply = self.reply_to(json.dumps([answer, gold, ANSWER_SECONDS]) + "\n", min(left, WAITING * ANSWER_SECONDS))
        if reply is None and left < WAITING * ANSWER_SECONDS and time.monotonic() > _end.get() + ANSWER_SECONDS:
            stats["skipped"] += 1
            raise NotChecked  # the deadline ended it, not its own limit
        return reply

    def reply_to(self, question: str, seconds: float) -> bool | None:
        """What the child says to a question; None if it died or took too long, which is counted."""
        try:
            return self.answer(question, seconds) == "true\n"
        except TimeoutError:
            stats["timeouts"] += 1
        except EOFError as end:  # of the signal for its time, or of its memory limit
            stats["timeouts" if end.args[0] == -getattr(signal, "SIGPROF", 0) else "crashes"] += 1

    def start(self) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise ImportError("math-verify is needed to check this answer. Install it with: pip install math-verify")
        stats["restarts"] += self.replies is not None
        super().start()
        if not self.reply_to("", START_SECONDS):  # it says so once, without a question
            raise RuntimeError(f"The answer checker did not start. To see why, run: {sys.executable} {child.__file__}")


checkers: list[Checker] = []
free: queue.LifoQueue = queue.LifoQueue()  # the one that was used last comes first, so that children start only when they are needed


def _new_checkers() -> None:
    checkers[:] = [Checker() for _ in range(CHILDREN)]
    free.__init__()
    for checker in checkers:
        free.put(checker)


@atexit.register
def stop_all() -> None:
    for checker in checkers:
        checker.stop()


_new_checkers()
if hasattr(os, "register_at_fork"):  # a fork must not share the pipes: the two would read each other's answers
    os.register_at_fork(after_in_child=_new_checkers)
