"""Stopping politely: Ctrl-C, a job scheduler's SIGTERM and a closed terminal let the step in progress end and be saved."""

import os
import signal
import threading
from contextlib import suppress

HANDLED = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP


class Stop:
    """Use as a context manager around a run, which looks at `count`: the first signal asks it to end after the step, the second between two
    updates. The third raises KeyboardInterrupt wherever the run is; so does the first, while there is nothing to save."""

    def __init__(self):
        self.count = 0  # of signals
        self.name: str | None = None  # of the last signal, as in "SIGTERM"
        self.exit_code = 0  # 128 + signal, as the shell has it
        self.nothing_to_save = True
        self.before: dict[int, object] = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread handle signals
            # What is ignored stays ignored: nohup says so of SIGHUP.
            wanted = [number for number in HANDLED if signal.getsignal(number) is not signal.SIG_IGN]
            self.before = {number: signal.signal(number, self._handle) for number in wanted}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _handle(self, number: int, frame) -> None:
        self.count += 1
        self.name, self.exit_code = signal.Signals(number).name, 128 + number
        if self.nothing_to_save or self.count > 2:
            raise KeyboardInterrupt
        then = ("the step, then saving (again: stop between two updates)", "the update, then saving (again: stop at once)")[self.count - 1]
        with suppress(OSError):  # if the terminal is gone
            os.write(2, f"\n{self.name}: finishing {then}\n".encode())  # not print(): the signal may have come in the middle of one
