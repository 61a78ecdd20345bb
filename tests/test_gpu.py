"""The program for a GPU, rehearsed without one: whatever a part does, the others run; the report reads what they leave; and all parts
run once with a tiny shape."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu
from on_gpu import processes
from on_gpu.processes import Options, Part, finite, row, run_all
from on_gpu.report import load, report

# What parts may do, each in a few lines. The first row is always there.
PARTS = '''
import ctypes, os, subprocess, sys, time
from on_gpu.processes import Needs, at_least, at_most, row, tried

def whole(options):
    yield row("first", 1.0, "s")
    yield at_most("small", 0.1, 1)
    yield at_least("large", 0.1, 1)

def fails(options):
    yield row("first")
    raise ValueError("a b\\nc")

def crashes(options):
    yield row("first")
    os.kill(os.getpid(), 11)

def leaves(options):
    yield row("first")
    os._exit(0)

def hangs(options):
    yield row("first")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    open(os.path.join(options.folder, "child"), "w").write(str(child.pid))
    yield row("child", float(child.pid))
    time.sleep(60)

def full(options):
    yield row("first")
    raise MemoryError

def full_gpu(options):
    yield row("first")
    raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")

def garbage(options):
    print("no JSON")
    sys.stdout.flush()
    os.write(1, bytes(range(256)))
    with open(os.path.join(options.folder, "garbage.jsonl"), "ab") as file:
        file.write(b'\\xff\\xfe{"what": \\n[1]\\n{"what": 3}\\n7\\n')
    yield row("first")
    yield row("not a number", float("nan"))
    yield {"something": "else"}

def missing(options):
    yield row("first")
    import no_such_package

def no_card(options):
    yield row("first")
    raise Needs("CUDA")

def some_rows(options):
    def bad():
        yield row("first")
        raise ValueError("no luck")
    def needs():
        raise ValueError("LoRA needs the package peft. Install it with: pip install peft")
        yield
    yield from tried("bad", bad)
    yield from tried("needs", needs)
    yield row("last")
'''
ENDS = {  # state, a word of the reason, rows
    "whole": ("done", "", 3), "fails": ("failed", "ValueError: a b c", 1), "crashes": ("crashed", "SIGSEGV", 1),
    "leaves": ("crashed", "exit code 0", 1), "hangs": ("stopped", "limit of 1 s", 2),
    "full": ("out of memory", "MemoryError", 1), "full_gpu": ("out of memory", "2.00 GiB", 1),
    "garbage": ("failed", "is no row", 2), "missing": ("not here", "needs the package no_such_package", 1),
    "no_card": ("not here", "needs CUDA", 1), "some_rows": ("done", "", 4), "no_part": ("failed", "has no attribute", 0),
}  # fmt: skip


@pytest.fixture
def part(tmp_path, monkeypatch):
    """part(name): one of the above."""
    (tmp_path / "some_parts.py").write_text(PARTS, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda name, limit=20.0: Part(name, f"some_parts:{name}", limit, "")


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_whatever_a_part_does_the_others_run_and_its_rows_are_kept(part, tmp_path):
    said, seen, file = [], [], tmp_path / "gpu.json"

    def say(line):
        said.append(line)
        seen.append(list(json.loads(file.read_text())["parts"]))

    found = run_all([part(name, 1.0 if name == "hangs" else 20.0) for name in ENDS], Options(smoke=True), file, 100, {}, say)
    for name, (state, why, rows) in ENDS.items():
        done = found["parts"][name]
        assert (done["state"], len(done["rows"])) == (state, rows) and why in done["why"], (name, done)
        assert not rows or done["rows"][0]["what"] == "first"
        assert state == "done" or "said" in done
    assert seen == [list(ENDS)[: i + 1] for i in range(len(ENDS))]  # written after each part
    assert "[" in said[0] and "whole: done in" in said[0] and "3 rows, 1 of 2 as wanted" in said[0]
    assert not is_there(int(found["parts"]["hangs"]["rows"][1]["value"]))  # though it was in a session of its own
    assert found["parts"]["garbage"]["rows"][1]["value"] is None and "no JSON" in found["parts"]["garbage"]["said"]
    rows = found["parts"]["some_rows"]["rows"]
    assert [r["note"] for r in rows] == ["", "failed: ValueError: no luck", "needs the package peft", ""]
    text = report(load(tmp_path))
    assert "- hangs: stopped after 1 s" in text and "some_rows: bad: failed: ValueError: no luck" in text and "nan" not in text


def test_a_part_for_which_no_time_is_left_is_skipped(part, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "LEAST", 1.0)
    found = run_all([part("hangs"), part("whole")], Options(), tmp_path / "gpu.json", 1.2, {}, print)
    assert found["parts"]["hangs"]["why"] == "it took longer than its limit of 1 s"
    assert found["parts"]["whole"] == {"state": "skipped", "why": "no time was left", "seconds": 0.0, "rows": []}


def test_a_row_is_checked():
    assert finite(row("x", float("inf"), ok=True)) == row("x", None, ok=False, note="not a finite number: inf")
    with pytest.raises(TypeError, match="7 is no row"):
        finite(7)


# ---------------------------------------------------------------------------------------------------------------------------------------
# The program


@pytest.fixture
def program(part, tmp_path, monkeypatch, capsys):
    """program(*argv): what it prints, with three of the parts above in the place of its own."""
    monkeypatch.setattr(gpu, "PARTS", [part("whole"), part("fails"), part("no_card")])
    monkeypatch.setattr(gpu.signal, "signal", lambda *_: None)

    def run(*argv):
        gpu.main([*argv, "--out", str(tmp_path / "out")])
        return capsys.readouterr().out

    return run


def test_all_parts_or_one_and_what_was_known_of_the_others_stays(program, part, tmp_path):
    assert "whole: done" in program("--all") and list(load(tmp_path / "out")["parts"]) == ["whole", "fails", "no_card"]
    out = program("--only", "whole")
    assert "fails: failed after" in out and out.count("] ") == 1  # one line of progress; the report has all
    assert (tmp_path / "out" / "report.md").read_text() in out
    assert "fails: failed" in program("--report", str(tmp_path / "out" / "gpu.json"))
    with pytest.raises(SystemExit, match="is of a call without --smoke. Choose another --out."):
        program("--only", "whole", "--smoke")


def test_without_results_the_report_is_one_sentence(program, tmp_path):
    for text in ("", "[]", '{"parts": 3}'):
        (tmp_path / "gpu.json").write_text(text)
        with pytest.raises(SystemExit, match="holds no results of gpu.py .* Name the folder that --out had."):
            program("--report", str(tmp_path))


def test_the_parts_are_there_and_leave_nothing_out():
    for one in gpu.PARTS:
        module, function = one.work.split(":")
        assert f"def {function}(options: Options)" in (BENCHMARKS / (module.replace(".", "/") + ".py")).read_text()
    assert len({one.name for one in gpu.PARTS}) == len(gpu.PARTS)


# ---------------------------------------------------------------------------------------------------------------------------------------
# The report


def made_up(rates: dict, checks: bool = True, wrong: str = "") -> dict:
    """Results as a GPU might give them."""

    def part(*rows):
        return {"state": "done", "why": "", "seconds": 1.0, "rows": list(rows), "machine": {"device": "NVIDIA X", "torch": "2.11"}}

    ways = ("blocks", "varlen", "flex")
    changes = {"prompts_per_step": 8, "device": "cuda"}
    found = {"changes": changes, "trained": 37e6, "dtype": "bfloat16", "estimate": 16.7, "seconds": 12.3}
    return {"smoke": False, "parts": {
        "graphs": part(row("completions", 1.0, ok=checks)),
        "attention": part(*(row(f"{way}: error", 0.01, ok=way != wrong) for way in ways)),
        "update": part(*(row(way, rates[way], "tokens/s", way=way) for way in ways)),
        "sampling": part(*(row(way, rates[way], "tokens/s", way=way) for way in ("ours", "ours, CUDA graphs"))),
        "memory": part(row("qwen2.5-math-1.5b-lora", 14.2, "GiB", ok=True, **found), row("large", note="needs 55 GiB")),
        "learning": part(row("seconds of a step, the median", 0.5, "s")),
        "learning-graphs": part(row("seconds of a step, the median", 0.25, "s")),
    }}  # fmt: skip


RATES = {"blocks": 100.0, "varlen": 150.0, "flex": 200.0, "ours": 1000.0, "ours, CUDA graphs": 4000.0}


def test_the_report_has_the_rows_of_both_tutorials():
    text = report(made_up(RATES))
    assert "On NVIDIA X, torch 2.11 (`python tests/benchmarks/gpu.py --all`)." in text
    assert "| sampling, ours, CUDA graphs | 4,000 tokens/s |  |" in text
    assert "| seconds of a step, the median | 0.5 s | 0.25 s |  |" in text
    tutorial = (BENCHMARKS.parents[1] / "tutorials" / "real_models.md").read_text(encoding="utf-8")
    assert next(line for line in tutorial.splitlines() if "| shape and changes" in line) in text  # the columns are those of its table
    assert "| `qwen2.5-math-1.5b-lora`, prompts per step 8 | 37 M | bfloat16 | 16.7 | 14.2 | 12.3 |" in text
    assert "| `large` |  |  |  | needs 55 GiB |  |" in text and "What is missing" not in text


@pytest.mark.parametrize("changes, wrong, checks, words", [
    ({}, "", True, ["go: `flex` makes the update 2.00 times as fast", "4.00 times as fast. They become the default."]),
    ({}, "flex", True, ["go: `varlen` makes the update 1.50 times"]),
    ({"varlen": 105.0, "flex": 50.0}, "", True, ["the blocks stay: nothing else is 10 % faster."]),
    ({}, "", False, ["NOT right, or not checked; sampling 4.00 times as fast. They stay off."]),
    ({"ours, CUDA graphs": 1010.0}, "", True, ["right; sampling 1.01 times as fast. They stay off."]),
])  # fmt: skip
def test_the_report_says_what_follows(changes, wrong, checks, words):
    text = report(made_up(RATES | changes, checks, wrong))
    assert all(word in text for word in words), text


def test_no_attention_is_chosen_that_was_not_shown_to_be_right():
    found = made_up(RATES)
    del found["parts"]["attention"]
    assert "Attention of packed rows" not in report(found) and "Recorded steps" in report(found)


def test_a_card_is_known_by_the_name_that_cuda_gives_it():
    from on_gpu.cards import known_card

    names = {
        "NVIDIA H100 80GB HBM3": (3350, 989), "NVIDIA H100 PCIe": (2000, 756), "NVIDIA H200": (4800, 989),
        "NVIDIA A100-SXM4-80GB": (2039, 312), "NVIDIA A100-SXM4-40GB": (1555, 312), "NVIDIA A100 80GB PCIe": (1935, 312),
        "NVIDIA L4": (300, 121), "Tesla T4": (320, 65),
        "NVIDIA L40S": (864, 362), "NVIDIA GH200 480GB": (4000, 990), "NVIDIA GeForce RTX 4090": (1008, 165), "NVIDIA A10G": (600, 70),
    }  # fmt: skip
    for name, (bandwidth, tera) in names.items():
        assert known_card(name) == (bandwidth * 1e9, tera * 1e12), name
    assert known_card("NVIDIA H20") is known_card("AMD Instinct MI300X") is None


# ---------------------------------------------------------------------------------------------------------------------------------------
# Attention of packed rows, the ways that only a GPU runs fast


def one_by_one(q, k, v, starts_q, starts_k, window: int | None, scale: float):
    """What varlen_attn computes, in a loop over rows; the last query is aligned with the last key."""
    import torch

    parts = []
    for i in range(len(starts_q) - 1):
        some, keys, values = q[starts_q[i] : starts_q[i + 1]], k[starts_k[i] : starts_k[i + 1]], v[starts_k[i] : starts_k[i + 1]]
        keys, values = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (keys, values))
        column = torch.arange(len(keys))
        place = column[len(keys) - len(some) :, None]
        seen = (column <= place) & (column > place - (window or len(keys)))
        scores = torch.einsum("qhd,khd->hqk", some, keys).mul(scale).masked_fill(~seen, float("-inf"))
        parts.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), values))
    return torch.cat(parts)


def of_2_10(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    assert is_causal and max_q == cu_seq_q.diff().max() and max_k == cu_seq_k.diff().max()
    return one_by_one(q, k, v, cu_seq_q, cu_seq_k, None, q.shape[-1] ** -0.5)


def of_2_11(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)):
    left, right = window_size
    assert right == 0
    return one_by_one(q, k, v, cu_seq_q, cu_seq_k, left + 1, scale)


def of_2_12(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
    assert enable_gqa == (q.shape[1] != k.shape[1])
    return of_2_11(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("way, version, window", [
    ("varlen", of_2_10, None), ("varlen", of_2_11, None), ("varlen", of_2_12, None), ("varlen", of_2_12, 5),
    ("varlen, keys repeated", of_2_12, None), ("flex", None, None),
])  # fmt: skip
def test_other_attention_of_packed_rows_gives_what_the_blocks_give(way, version, window, monkeypatch):
    import torch
    from on_gpu.attention import WAYS, Packed, batch
    from torch.nn.attention import varlen

    if version:
        monkeypatch.setattr(varlen, "varlen_attn", version)
    prompts, completions = batch(150, 9, 20, 50)
    completions[3], completions[5] = [], [7]  # rows without queries
    blocks, other = Packed(prompts, completions, "cpu"), WAYS[way](prompts, completions, "cpu")
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, blocks.ids.shape[1], 16, requires_grad=way != "flex") for heads in (4, 2, 2))
    layer = torch.nn.Module()
    layer.num_key_value_groups, layer.is_causal = 2, True
    expected, found = (x.attend(layer, q, k, v, window, scaling=0.25) for x in (blocks, other))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    if way != "flex":  # it has no backward pass on a CPU
        weights = torch.randn_like(expected)
        for x, y in zip(*(torch.autograd.grad(out, (q, k, v), weights) for out in (found, expected))):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_inside_packed_by_the_scorer_attends_in_that_way(monkeypatch):
    import torch
    from helpers import shared_model
    from on_gpu.attention import packed_by

    from rlvr.engine import scorer

    model, ids = shared_model("qwen"), torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])
    rows = model, [[5, 6, 7]] * 2, ids, torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        expected = scorer.logp_and_entropy(*rows)[0]
        before = scorer.Packed
        with packed_by("flex"):
            assert scorer.Packed is not before
            torch.testing.assert_close(scorer.logp_and_entropy(*rows)[0], expected, rtol=0, atol=1e-4)
    assert scorer.Packed is before


# ---------------------------------------------------------------------------------------------------------------------------------------
# All parts, once

SMOKE = """
import sys
for name in ("datasets", "tyro", "trl", "peft", "math_verify", "matplotlib"):
    sys.modules[name] = None  # as if it were not installed
import gpu
from dataclasses import asdict
from on_gpu import processes
if __name__ == "__main__":
    for part in gpu.PARTS:
        if part.name != "tests":  # would run the tests in the tests
            processes.work(part.work, asdict(processes.Options(smoke=True, folder=sys.argv[1])), f"{sys.argv[1]}/{part.name}.jsonl")
"""


@pytest.mark.slow
def test_every_part_runs_on_a_tiny_shape_without_packages_that_it_does_not_need(tmp_path):
    """In one process, which saves a dozen imports of torch."""
    from on_gpu.processes import read

    (tmp_path / "smoke.py").write_text(SMOKE, encoding="utf-8")
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(BENCHMARKS), str(BENCHMARKS.parents[1])])}
    command = [sys.executable, str(tmp_path / "smoke.py"), str(tmp_path)]
    done = subprocess.run(command, input="\n" * 20, capture_output=True, text=True, timeout=500, env=env)
    ends, cuda = {}, 0
    for part in gpu.PARTS:
        if part.name == "tests":
            continue
        rows, end = read(tmp_path / f"{part.name}.jsonl")
        ends[part.name] = end["end"], end.get("why", "")
        assert not [r for r in rows if r["ok"] is False], (part.name, rows, done.stderr[-2000:])
        notes = [r["note"] for r in rows if r["value"] is None]
        assert set(notes) <= {"needs CUDA", "needs the package peft"}, (part.name, notes)
        cuda += notes.count("needs CUDA")
        assert rows or end["end"] == "not here"
    others = {name: end for name, end in ends.items() if end[0] != "done"}
    assert others == {"trl": ("not here", "needs the package trl"), "learning-graphs": ("not here", "needs CUDA")}, done.stderr[-3000:]
    assert cuda >= 8


def test_the_tests_that_ask_for_cuda_are_read_from_pytest(monkeypatch):
    from types import SimpleNamespace

    from on_gpu import checks

    def said(text):
        monkeypatch.setattr(checks.subprocess, "run", lambda *a, **k: SimpleNamespace(stdout=text, stderr=""))
        return list(checks.tests(Options(smoke=True)))

    rows = said("PASSED tests/test_rollout.py::test_a\nFAILED tests/test_train.py::test_b - assert\n1 failed, 1 passed, 1 skipped in 2 s\n")
    assert [(r["what"], r["ok"]) for r in rows] == [("test_a", True), ("test_b", False), ("1 tests", None)]
    with pytest.raises(RuntimeError, match="pytest said: no such option"):
        said("no such option")
