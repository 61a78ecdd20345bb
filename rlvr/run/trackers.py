"""Trackers: send the numbers of metrics.csv to TensorBoard, Weights & Biases or trackio too (--report-to).

The run folder stays the record. A tracker's package is imported only if the flag names it. A tracker that fails during the run is
dropped, and the run goes on.
"""

import dataclasses
import uuid
from pathlib import Path

from rlvr.common.files import write_atomically
from rlvr.common.text import one_line, say
from rlvr.config import TrainConfig


class Tracker:
    """Sends the numbers of each step. Make one before the first step; close it after the last.

    steps_done: how many steps the run had done when it was resumed; 0 for a new run.
    """

    def __init__(self, config: TrainConfig, folder: Path, steps_done: int):
        self.kind, self.failed = config.report_to, False
        self._guarded(self._open, config, folder, steps_done)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Send a row of metrics.csv, as {column: value}. Columns without a number in this step are left out."""
        self._guarded(self._log, step, {k: v for k, v in numbers.items() if isinstance(v, (int, float)) and k != "step"})

    def close(self) -> None:
        self._guarded(self._close)

    def _guarded(self, work, *args) -> None:
        if self.kind == "none" or self.failed:
            return
        try:
            work(*args)
        except Exception as error:  # a network that is gone, a full disk: metrics.csv has everything
            self.failed = True
            reason = f"{type(error).__name__}: {one_line(error)}"
            say(f"note: {self.kind} failed ({reason}); the run goes on without it, metrics.csv has all numbers")

    def _open(self, config: TrainConfig, folder: Path, steps_done: int) -> None:
        if self.kind == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            # purge_step: a run that is resumed from a checkpoint repeats the steps after it; drop what was sent of them before.
            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=steps_done + 1 if steps_done else None)
            return
        # An id beside the name: two runs may have folders of one name, and a run that is resumed must find its own curves again.
        path = folder / "tracker-id"
        if not path.is_file():
            write_atomically(path, uuid.uuid4().hex[:8])
        name = f"{folder.name}-{path.read_text(encoding='utf-8')}"
        settings = dict(project="rlvr", name=name, config=dataclasses.asdict(config), resume="allow")
        if self.kind == "wandb":
            import wandb

            self.writer = wandb.init(**settings, id=name, dir=str(folder))
        else:
            import trackio

            self.writer = trackio.init(**settings, embed=False, auto_log_gpu=False, auto_log_cpu=False)

    def _log(self, step: int, numbers: dict[str, float]) -> None:
        if self.kind == "tensorboard":
            for name, value in numbers.items():
                self.writer.add_scalar(name, value, step)
            self.writer.flush()
        else:
            self.writer.log(numbers, step=step)

    def _close(self) -> None:
        self.writer.close() if self.kind == "tensorboard" else self.writer.finish()
