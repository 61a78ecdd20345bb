"""The benchmark programs run, and what they say about memory holds. Their timings are not tested: machines differ."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(program: str, *argv: str) -> str:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests" / "benchmarks" / program), *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_side_by_side_runs():
    """With TRL where it is installed, else with our side alone."""
    out = run("side_by_side.py", "--prompts", "4", "--mini-batch", "2", "--completions", "2", "--max-new-tokens", "12", "--pairs", "1")
    named = {line.split()[0] for line in out.splitlines() if line}
    assert {"cpu", "sampling", "update", "tokens", "peak"} <= named and "ours  step 2" in out


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_the_scaling_program_runs(tmp_path):
    out = run("scale.py", "--quick", "--threads", "1", "--json", str(tmp_path / "s.json"), "--figure", str(tmp_path / "s.png"))
    assert out.count("microseconds per token") == 3 and (tmp_path / "s.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_an_update_does_not_grow_with_vocabulary_times_length():
    short, long, whole = (
        float(run("memory.py", "152000", *more)) for more in (("512", "chunked"), ("1536", "chunked"), ("1536", "whole"))
    )
    assert long < 1.25 * short and whole > 2.5 * long, (short, long, whole)


@pytest.mark.slow
def test_the_memory_of_the_preset_for_smollm2_is_at_most_the_estimate():
    """Measured on random weights of its shape, shorter and with smaller batches: never above the estimate, and not far below, though AdamW's moments
    are only there when the update of the first step is over."""
    out = run("presets.py", "--small", "--preset", "smollm2-135m", "--steps", "1", "--one", "1")
    cells = [cell.strip() for cell in out.split("|")]
    estimated, measured = float(cells[5]), float(cells[6])
    assert 0.6 * estimated < measured < 1.1 * estimated, out
