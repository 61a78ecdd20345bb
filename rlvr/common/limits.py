"""Work that somebody else's text decides, in a copy of this process that may take so much time and memory and no more."""

import json
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from rlvr.common.text import one_line


def limited(work: Callable[[], object], seconds: float, room: int):
    """What `work` returns, as JSON gives it back, from a copy of this process: at most `seconds` of processor time, `room` bytes more.

    Raises RuntimeError, which says what went wrong: a limit, or what `work` raised. Without os.fork (Windows) there are no limits.
    """
    if not hasattr(os, "fork"):
        return work()
    ours, its = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_answer, args=(work, seconds, room, its))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads are not copied; `work` may need none of them
        child.start()
    its.close()
    done, value = False, f"more than {seconds:g} seconds, or more memory than there is"
    try:
        with suppress(EOFError, OSError):  # it was ended half way, or says more than there is room for
            if ours.poll(60 + 20 * seconds):  # by the clock, should it wait for something
                done, value = json.loads(ours.recv_bytes(room))
    finally:
        child.kill()
        child.join()
    if not done:
        raise RuntimeError(value)
    return value


def _answer(work: Callable[[], object], seconds: float, room: int, pipe: Connection) -> None:
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
        pipe.send_bytes(json.dumps(answer).encode())
    finally:
        os._exit(0)
