"""The files of a run folder that grow: metrics.csv and rollouts.jsonl. tutorials/glossary.md explains each number.

A disk that is full stops no step: what could not be written waits, and no checkpoint is written without it.
"""

import json
import os
import re
from pathlib import Path

from torch import Tensor

from rlvr.common.files import Appender, clear_leftovers, cut_back, first_free, write_atomically
from rlvr.common.text import say
from rlvr.config import TrainConfig
from rlvr.rollout import Rollouts
from rlvr.run.metrics import COLUMNS
from rlvr.run.trackers import Tracker


class Log:
    """Appends a row and some completions for each step. It begins after `last_step` (-1: from nothing): what the files hold of later steps
    is cut off. lines: those of metrics.csv up to there, as a checkpoint has them."""

    def __init__(self, folder: Path, config: TrainConfig, last_step: int, tokenizer, lines: list[str] | None = None):
        self.config, self.tokenizer = config, tokenizer
        self.lines = lines or [",".join(COLUMNS) + "\r\n"]
        self.path, rollouts = folder / "metrics.csv", folder / "rollouts.jsonl"
        self.mend()
        rollouts.touch()
        cut_back(rollouts, lambda line: 0 <= _step_of(line) <= last_step)
        for pattern in ("config.json", "summary.json", "model", "adapter"):
            clear_leftovers(folder, pattern)
        clear_leftovers(folder / "checkpoints", "step-*")
        self.metrics, self.rollouts = Appender(self.path), Appender(rollouts)
        self.tracker = Tracker(config, folder, max(last_step, 0))

    def mend(self) -> None:
        """Make metrics.csv what was written into it. If it was edited or deleted since, say so, and keep what is there as another file."""
        whole, kept = "".join(self.lines).encode(), ""
        if os.path.lexists(self.path) and (self.path.is_dir() or not self.path.read_bytes().startswith(whole)):
            kept = self.path.rename(first_free(self.path.with_stem("metrics-edited"))).name
        if kept or len(self.lines) > 1 and not self.path.exists():
            edited = f"edited (that file is {kept} now)" if kept else "deleted"
            say(f"note: {self.path} was {edited}; it is put back with the rows of all steps, and nothing else was lost")
        write_atomically(self.path, whole)

    def row(self, numbers: dict) -> None:
        """A row of metrics.csv, by column name. Each number reads back to the same one; what a step has no number for stays empty."""
        # NaN is what is not equal to itself.
        known = {name: value for name in COLUMNS if (value := numbers.get(name)) is not None and value == value}
        self.lines.append(",".join(str(known.get(name, "")) for name in COLUMNS) + "\r\n")
        self._write(self.metrics, self.lines[-1])
        self.tracker.log(numbers["step"], known)

    def completions(self, number: int, batch: Rollouts, correct: Tensor, shaped: Tensor) -> None:
        """Some completions of a step, evenly spread over the batch, as lines of rollouts.jsonl."""
        kept = min(self.config.log_completions, len(batch))
        rows = [len(batch) * i // kept for i in range(kept)]
        numbers = {"logp": batch.old_logp, "entropy": batch.entropy, "advantage": shaped}
        lines = [{"step": number, "group": int(batch.group[i])} | completion(self.tokenizer, batch, i, correct, numbers) for i in rows]
        self._write(self.rollouts, "".join(json.dumps(line) + "\n" for line in lines))

    def _write(self, file: Appender, text: str) -> None:
        try:
            file.write(text)
        except OSError as error:  # a full disk: the line waits, no checkpoint is written without it, and the run goes on
            say(f"{file.file.name} could not be written ({error.strerror}); trying again with the next step")

    def sync(self) -> None:
        """Return when all lines are safely on the disk. Raises OSError."""
        self.metrics.sync()
        self.rollouts.sync()

    def close(self) -> None:
        for file in (self.metrics, self.rollouts, self.tracker):
            file.close()


def completion(tokenizer, batch: Rollouts, i: int, correct: Tensor, numbers: dict[str, Tensor]) -> dict:
    """One completion as JSON, with a list for each of `numbers` ([N, T] or [N, T, K] each, cut to its length)."""
    n = int(batch.lengths[i])
    texts = {"prompt": tokenizer.decode(batch.prompt_ids[i], skip_special_tokens=True), "completion": batch.text[i]}
    texts |= {"correct": bool(correct[i]), "finished": bool(batch.finished[i]), "token_ids": batch.completion_ids[i, :n].tolist()}
    return texts | {name: _rounded(values[i, :n].tolist()) for name, values in numbers.items()}


def _rounded(values: list) -> list:
    return [[round(v, 4) for v in row] if isinstance(row, list) else round(row, 5) for row in values]


def _step_of(line: bytes) -> int:
    """The step of a line of rollouts.jsonl; -1 for a line that no run has written."""
    found = re.match(rb'{\s*"step":\s*(\d{1,15}),', line)
    return int(found[1]) if found else -1
