"""Runs each part of gpu.py in a process of its own with a time limit, and keeps what it has found so far, whatever becomes of it.

A part is a function that takes `Options` and yields rows (see `row`). Its process writes every row to a file as soon as it is known. So a
part that crashes, hangs or runs out of memory costs only what it had not yet measured. No torch here: the parts import it.
"""

import importlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1]
ROOT = BENCHMARKS.parents[1]
LEAST = 8.0  # seconds: with less left, no part begins


@dataclass
class Options:
    """What every part is told."""

    smoke: bool = False  # tiny shapes, on any machine
    skip_trl: bool = False
    bandwidth: float = 0.0  # bytes per second; 0: see cards.py
    flops: float = 0.0  # of bfloat16, per second
    attention: str = "blocks"  # for the whole steps: see attention.py
    folder: str = ""  # for files that several parts use


@dataclass
class Part:
    name: str
    work: str  # module:function
    limit: float  # seconds
    about: str


class Needs(Exception):
    """A part, or a row of one, cannot be had here. The message says what it needs."""


def row(what: str, value: float | None = None, unit: str = "", want: str = "", ok: bool | None = None, note: str = "", **more) -> dict:
    """One thing that was measured. ok: whether it is as wanted; None: nothing was demanded of it."""
    return dict(what=what, value=value, unit=unit, want=want, ok=ok, note=note) | more


def at_most(what: str, value: float, most: float, unit: str = "", **more) -> dict:
    return row(what, value, unit, f"at most {most:g}", bool(value <= most), **more)  # NaN is not


def at_least(what: str, value: float, least: float, unit: str = "", **more) -> dict:
    return row(what, value, unit, f"at least {least:g}", bool(value >= least), **more)


def tried(what: str, work: Callable[[], Iterator[dict]]) -> Iterator[dict]:
    """The rows of `work`. If it fails, a row that says so, so that it does not cost the part its other rows."""
    try:
        yield from work()
    except Needs as missing:
        yield row(what, note=f"needs {missing}")
    except Exception as error:
        traceback.print_exc()
        package = missing_package(error)
        yield row(what, note=f"needs the package {package}") if package else row(what, ok=False, note=f"failed: {in_one_line(error)}")


def missing_package(error: BaseException) -> str:
    """The package whose absence an error reports, in Python's words or in the library's; empty if it reports something else."""
    if isinstance(error, ModuleNotFoundError):
        return error.name
    said = re.search(r"needs the package ([\w-]+)", str(error))
    return said[1] if said else ""


def in_one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


# ---------------------------------------------------------------------------------------------------------------------------------------
# In the process of a part


def work(name: str, options: dict, results: str) -> None:
    """Import the part, wait until it is its turn, and write its rows, and how it ended, as lines of JSON."""
    with open(results, "w", buffering=1, encoding="utf-8") as file:

        def write(line: dict) -> None:
            file.write(json.dumps(line, allow_nan=False) + "\n")

        try:
            module, function = name.split(":")
            part = getattr(importlib.import_module(module), function)
            if not sys.stdin.readline():  # who started it has ended
                return
            for found in part(Options(**options)):
                write(finite(found))
            write({"end": "done", "machine": machine()})
        except Needs as missing:
            write({"end": "not here", "why": f"needs {missing}"})
        except BaseException as error:
            traceback.print_exc()
            if package := missing_package(error):
                return write({"end": "not here", "why": f"needs the package {package}"})
            full = "OutOfMemory" in type(error).__name__ or isinstance(error, MemoryError) or "out of memory" in str(error).lower()
            write({"end": "out of memory" if full else "failed", "why": in_one_line(error)})


def finite(found: dict) -> dict:
    """A row that JSON can hold. Raises TypeError for what is none."""
    if not isinstance(found, dict) or not isinstance(found.get("what"), str):
        raise TypeError(f"{found!r} is no row")
    if isinstance(found["value"], float) and not math.isfinite(found["value"]):
        return found | {"value": None, "ok": False, "note": f"{found['note']} not a finite number: {found['value']}".strip()}
    return found


def machine() -> dict:
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    cuda = torch.cuda.is_available()
    return {"device": torch.cuda.get_device_name() if cuda else "CPU", "torch": torch.__version__}


# ---------------------------------------------------------------------------------------------------------------------------------------
# In the process that starts them


class Process:
    """The process of a part. It imports what it needs at once, beside the part before it, and begins when `run` says so."""

    def __init__(self, part: Part, options: Options, folder: Path):
        self.results, self.log = folder / f"{part.name}.jsonl", folder / f"{part.name}.txt"
        path = os.pathsep.join([str(BENCHMARKS), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-m", "on_gpu.processes", part.work, json.dumps(asdict(options)), str(self.results)]
        with open(self.log, "wb") as log:
            how = dict(stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": path}, cwd=ROOT)
            self.process = subprocess.Popen(command, start_new_session=True, **how)
        self.ended = False

    def run(self, limit: float) -> dict:
        """How it ended (state, why), its rows, and how long it took."""
        started, late = time.monotonic(), False
        try:
            with suppress(OSError):  # it has ended already
                self.process.stdin.write(b"\n")
                self.process.stdin.close()
            self.process.wait(limit)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            self.end()
        rows, end = read(self.results)
        if late:
            end = {"end": "stopped", "why": f"it took longer than its limit of {limit:.0f} s"}
        elif not end:  # neither an error of Python's nor a good end
            code = self.process.returncode
            killed = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            end = {"end": "crashed", "why": killed + (", as when the machine's memory is full" if killed == "SIGKILL" else "")}
        out = {"state": end.pop("end"), "why": end.pop("why", ""), "seconds": round(time.monotonic() - started, 1), "rows": rows, **end}
        if out["state"] != "done" or any(found["ok"] is False for found in rows):
            out["said"] = self.log.read_text(encoding="utf-8", errors="replace")[-3000:]
        return out

    def end(self) -> None:
        """Kill it and all that it has started."""
        if self.ended:
            return
        self.ended = True
        family = [self.process.pid, *children(self.process.pid)]
        with suppress(OSError, AttributeError):  # there is none left; Windows has no groups
            os.killpg(self.process.pid, signal.SIGKILL)
        for pid in family[1:]:  # those in groups of their own
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()


def children(pid: int) -> list[int]:
    """All processes below one, on Linux."""
    parent = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            parent[int(status.parent.name)] = int(status.read_text(errors="replace").rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:  # grows
        found += [child for child, of in parent.items() if of == one]
    return found[1:]


def read(results: Path) -> tuple[list[dict], dict]:
    """The rows that were written, and the last line, which says how it ended; {} without one. What is no row of ours is left out."""
    rows, end = [], {}
    for line in results.read_text(encoding="utf-8", errors="replace").splitlines() if results.exists() else ():
        with suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict) and set(row("")) <= found.keys():
                rows.append(found)
            elif isinstance(found, dict) and isinstance(found.get("end"), str):
                end = found
    return rows, end


def run_all(parts: Sequence[Part], options: Options, file: Path, seconds: float, known: dict, say: Callable = print) -> dict:
    """Run the parts in order, none longer than its limit, all of them in `seconds`. `file` gets what is known after each.

    known: what an earlier call has found, which stays but for these parts.
    """
    started, found = time.monotonic(), known | {"smoke": options.smoke, "parts": dict(known.get("parts", {}))}
    with tempfile.TemporaryDirectory(prefix="rlvr-gpu-") as name:
        folder, waiting = Path(name), []
        options.folder = name
        try:
            waiting = [Process(parts[0], options, folder)]
            for i, part in enumerate(parts):
                process = waiting[-1]
                if i + 1 < len(parts):
                    waiting.append(Process(parts[i + 1], options, folder))
                left = seconds - (time.monotonic() - started)
                if left < LEAST:
                    done = {"state": "skipped", "why": "no time was left", "seconds": 0.0, "rows": []}
                else:
                    done = process.run(min(part.limit, left))
                found["parts"][part.name] = done
                write_whole(file, json.dumps(found, indent=1) + "\n")
                say(f"[{time.monotonic() - started:4.0f} s] {part.name}: {in_short(done)}")
        finally:
            for process in waiting:
                process.end()
    return found


def in_short(done: dict) -> str:
    """A part in a line."""
    judged = [found["ok"] for found in done["rows"] if found["ok"] is not None]
    said = f"{done['state']} in {done['seconds']:.0f} s, {len(done['rows'])} rows"
    said += f", {sum(judged)} of {len(judged)} as wanted" if judged else ""
    needs = sum(found["note"].startswith("needs") for found in done["rows"])
    return said + (f", {needs} not to be had here" if needs else "") + (f" ({done['why']})" if done["why"] else "")


def write_whole(file: Path, text: str) -> None:
    """All of it or nothing: a run that is killed leaves the file of the part before."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(file.name + ".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, file)


if __name__ == "__main__":
    from on_gpu import processes  # this file, under the name by which the parts import it: `Needs` must be one class

    processes.work(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3])
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(0)  # tidying up a GPU can hang
