"""Work that somebody else's text decides, in a copy of this process that may take so much time and memory and no more."""

import json
import os
import signal
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rlvr.common.text import one_line


def limited(work: Callable[[], object], seconds: float, room: int):
    """What `work` returns, as JSON gives it back, from a copy of this process: at most `seconds` of processor time, `room` bytes more.

    Raises RuntimeError, which says what went wrong: a limit, or what `work` raised. Without os.fork (Windows) there are no limits.
    """
    if not hasattr(os, "fork"):
        return work()
    ours, its = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads are not copied; `work` may need none of them
        child = os.fork()
    if child == 0:
        _answer(work, seconds, room, its)
    os.close(its)
    watch = threading.Timer(60 + 20 * seconds, os.kill, (child, signal.SIGKILL))  # by the clock, should it wait for something
    watch.start()
    try:
        with open(ours, "rb") as pipe:
            answer = pipe.read(room)
    finally:
        watch.cancel()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    try:
        done, value = json.loads(answer)
    except ValueError:  # it was ended half way
        done, value = False, f"more than {seconds:g} seconds, or more memory than there is"
    if not done:
        raise RuntimeError(value)
    return value


def _answer(work: Callable[[], object], seconds: float, room: int, pipe: int) -> None:
    """In the copy: do the work, write [True, result] or [False, reason], and end, whatever happens."""
    try:
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # it ends the process, even inside an operation of C
        with suppress(OSError, ValueError, ImportError):  # where there is no /proc, time alone is limited
            import resource

            taken = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (taken + room, taken + room))
        answer = True, work()
    except MemoryError:
        answer = False, f"more than {room >> 20} MiB of memory"
    except BaseException as error:
        answer = False, one_line(error)
    try:
        with open(pipe, "wb") as file:
            file.write(json.dumps(answer).encode())
    finally:
        os._exit(0)
