"""The child's side of reasoning-gym: it makes problems of a family and scores answers to them, one question for each line of JSON.

It is run as a file, so that rlvr is not imported. Some families evaluate an answer as Python: this process has limits on its memory, and may
only read files and compute. It always starts with PYTHONHASHSEED=0, on which the problems of a few families depend.
"""

import contextlib
import json
import os
import sys
from functools import lru_cache

MEMORY_BYTES = 4 * 2**30  # address space of this process, where the system can limit it
READING = ("os.listdir", "os.scandir", "os.walk")


def serve() -> None:
    """Answer questions until the parent closes the pipe. A reply is {"is": ...}, or {"error": what the library says}."""
    import signal

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # a signal to the whole job is for the parent, which may want to finish its step
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    replies, sys.stdout = sys.stdout, sys.stderr  # nothing that a library prints may pass for a reply
    questions, sys.stdin = sys.stdin, None  # exit() closes sys.stdin
    import reasoning_gym.factory  # noqa: F401

    with contextlib.suppress(ImportError, OSError, ValueError):  # not on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    sys.addaudithook(_refuse)
    for line in questions:
        question = {"do": "families"} | json.loads(line)
        try:
            reply = {"is": globals()[question.pop("do")](**question)}
        except BaseException as error:  # an answer that is evaluated may call exit()
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply, default=str), file=replies, flush=True)


def _refuse(event: str, arguments: tuple) -> None:
    """An audit hook: nothing is written, started, sent or deleted. It cannot be taken off."""
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    acts = event.startswith(("os.", "shutil.", "socket.", "subprocess.", "ctypes.", "pty.", "signal.")) and event not in READING
    if writes or acts:
        raise PermissionError(event)


def families() -> list[str]:
    from reasoning_gym.factory import DATASETS

    return sorted(DATASETS)


def settings_of(family: str) -> list[str]:
    """The names of its settings."""
    from dataclasses import fields

    from reasoning_gym.factory import DATASETS

    return [f.name for f in fields(DATASETS[family][1]) if f.name not in ("seed", "size")]


@lru_cache(maxsize=16)
def _dataset(family: str, settings: str, seed: int, size: int):
    from reasoning_gym.factory import create_dataset

    return create_dataset(family, **json.loads(settings), seed=seed, size=size)


@lru_cache(maxsize=4096)
def problem(family: str, settings: str, seed: int, size: int, index: int) -> dict:
    """One problem: question, answer and metadata. settings: JSON."""
    return _dataset(family, settings, seed, size)[index]


def score(answer: str | None, **place) -> float:
    """What the family's own function gives for an answer to the problem at this place: 1 if it is right."""
    dataset = _dataset(**{name: value for name, value in place.items() if name != "index"})
    return float(dataset.score_answer(answer, problem(**place)))


if __name__ == "__main__":
    # Python puts the folder of this file first in sys.path. Its modules must not shadow those of other packages.
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != os.path.dirname(os.path.abspath(__file__))]
    sys.dont_write_bytecode = True
    serve()
