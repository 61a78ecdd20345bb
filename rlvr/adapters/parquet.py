"""Problems as a parquet file, in the columns that verl and engines like it read.

    python -m rlvr.adapters.parquet gsm8k train.parquet
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

if not __package__:  # run by its path, which works from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rlvr.config import INSTRUCTION, refuse
from rlvr.data import load_problems
from rlvr.run.cli import parse_command, run_program
from rlvr.run.settings import check_can_write


@dataclass
class ParquetConfig:
    """Problems as a parquet file for verl, a row each: the name of their set, the messages of the prompt, and the gold answer.

    python -m rlvr.adapters.parquet gsm8k train.parquet

    python -m rlvr.adapters.parquet gsm8k val.parquet --split test
    """

    data: str
    """'tiny' (built in), a short name (gsm8k, math, dapo-math-17k, ...), a file, or a Hub id: what --data of train.py takes."""
    out: str
    """The file to write."""
    split: Literal["train", "test"] = "train"
    """Which part of a set; a file is the same for both."""
    instruction: str = INSTRUCTION
    """Put on a new line after each problem; empty: none."""
    problem_column: str = ""
    """Where the data has the problem, as --problem-column of train.py; empty: the usual names."""
    answer_column: str = ""
    """Where it has the answer, likewise."""


def write(c: ParquetConfig) -> None:
    """Raises SettingError for problems that cannot be read, and a file that cannot be written."""
    from datasets import Dataset

    refuse(Path(c.out).resolve() == Path(c.data).resolve() or Path(c.out).is_dir(), f"{c.out!r} is a folder or the data. Name a new file.")
    check_can_write(Path(c.out).parent, "the folder of the file")
    rows = [
        {"data_source": c.data, "prompt": [{"role": "user", "content": f"{problem.problem}\n{c.instruction}".strip()}], "ability": "math",
         "reward_model": {"style": "rule", "ground_truth": problem.answer}, "extra_info": {"split": c.split, "index": number}}
        for number, problem in enumerate(load_problems(c.data, c.split, problem_column=c.problem_column, answer_column=c.answer_column))
    ]  # fmt: skip
    Path(c.out).parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows).to_parquet(c.out)
    print(f"{len(rows)} problems in {c.out}")


if __name__ == "__main__":
    run_program(lambda: write(parse_command(ParquetConfig, "python -m rlvr.adapters.parquet")))
