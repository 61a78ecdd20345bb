"""A program in a process of its own that answers one question at a time, and that can be killed over one."""

import os
import queue
import subprocess
import sys
import threading
from contextlib import suppress


class Child:
    """A line goes out, and a line comes back. file: the program, run as a file, so that rlvr is not imported. Not for several threads."""

    def __init__(self, file: str, **environment: str):
        self.file, self.environment = os.path.abspath(file), environment
        self.process: subprocess.Popen | None = None
        self.replies: queue.Queue | None = None  # None: it was never started

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        self.stop()
        streams = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8")
        self.process = subprocess.Popen([sys.executable, self.file], env=os.environ | self.environment, **streams)
        self.replies = queue.Queue()
        # A pipe has no portable read with a time limit, so a thread reads and a queue waits.
        threading.Thread(target=_read, args=(self.process.stdout, self.replies), daemon=True).start()

    def answer(self, question: str, seconds: float | None) -> str:
        """What it says to a question (empty: without one). Raises TimeoutError, or EOFError with its exit code; then it is stopped."""
        reply = None
        try:
            self.process.stdin.write(question)
            self.process.stdin.flush()
            reply = self.replies.get(timeout=seconds)
            if reply is None:  # its pipe is closed: it is ending, and its own exit code says why
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(timeout=5)
        except queue.Empty:
            raise TimeoutError from None
        except OSError:  # it died before it was asked
            pass
        finally:  # also after Ctrl-C: a reply still under way must not answer the next question
            if reply is None:
                ended = self.stop()
        if reply is None:
            raise EOFError(ended)
        return reply

    def stop(self) -> int | None:
        """Its exit code, None if it did not run."""
        if self.process is None:
            return None
        process, self.process = self.process, None
        process.kill()
        code = process.wait()
        with suppress(OSError):  # the rest of a question that the child did not live to read
            process.stdin.close()
        return code


def _read(pipe, replies: queue.Queue) -> None:
    with pipe:
        for line in pipe:
            replies.put(line)
    replies.put(None)
