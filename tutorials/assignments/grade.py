"""python -m tutorials.assignments.grade SUBMISSION...: points for each task, a hint for each failure, and Gradescope's results.json.

A submission is a folder with an adapter.py and whatever it imports. The tests run here; the functions of the adapter run in a process
of their own (runner.py), which knows neither tests nor answers, has limits of time and memory, and sees nothing of this machine but Python
(fences.py). What students write neither crashes the grader nor changes a point of theirs; instructor.md says how, and where that ends.
"""

import os
import signal
import sys
from pathlib import Path

if __name__ == "__main__":  # Ctrl-C while the libraries are imported, which takes seconds
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
if not __package__:  # run by its path, which works from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import json
import math
import queue
import re
import shutil
import subprocess
import tempfile
import textwrap
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import torch
import tyro
from tqdm import tqdm

from rlvr.config import SettingError
from rlvr.run.cli import parse_command, run_program
from rlvr.common.files import first_free, write_atomically
from rlvr.common.limits import limited
from rlvr.common.text import csv_text, one_line, printable, say, table
from tutorials.assignments import fences
from tutorials.assignments.a1.tests import tests as a1
from tutorials.assignments.a2.tests import tests as a2
from tutorials.assignments.a3.tests import tests as a3
from tutorials.assignments.a4.tests import tests as a4
from tutorials.assignments.a5.tests import tests as a5
from tutorials.assignments.a6.tests import tests as a6
from tutorials.assignments.checks import NOT_ASKED, Answer, Assignment, Check, StudentError, Wrong, need, passed_over, show, show_call
from tutorials.assignments.runner import USER, fits, pack, unpack, unpack_weights

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
ASSIGNMENTS: dict[str, Assignment] = {"a1": a1, "a2": a2, "a3": a3, "a4": a4, "a5": a5, "a6": a6}
# Limits of time. What a process waits for a processor, on a busy machine, does not count, as long as the clock shows less than PATIENT
# times the limit. --seconds above SECONDS lengthens all but START_SECONDS.
SECONDS = 10.0  # for one call
TRAINING_SECONDS = 300.0  # for the training of A6, which takes 40 on one core
START_SECONDS = 120.0  # to import torch, on a slow machine
TOTAL_SECONDS = 180.0  # for all checks of a submission; the rest fails
CPU_SECONDS = 600  # that a student's process may use, and stay behind where nothing else ends it
PATIENT = 5
GRADING_SECONDS, GRADING_BYTES = 240.0, 3 * 2**30  # that the grader itself takes for one submission, beside what it has taken before
MAX_LINE = 2**22  # bytes of one reply
MAX_PARTS = 10**4  # lists and dicts in one reply: each takes twenty times the memory that it takes in JSON
MAX_REPLIES = 4  # that wait to be read. One is asked for at a time, so more are forged
MAX_FILES, MAX_BYTES, MAX_DEPTH = 500, 2**25, 20  # of a submission; folders count as files
MAX_TEXT = 10**5  # characters that are read of a file of it
MAX_SECONDS = 600  # that --seconds may be
MAX_NAME = 200  # bytes of a file's name; systems take 255, and something is added to it
PRINTED, PRINTED_LINES = 500, 8  # characters and lines of what the student's code prints during one check that are shown
PRINT_SECONDS = 0.5  # to wait for the end of what it prints; it is there with the reply, unless the code has closed its stderr
NOT_IMPORTED = "Your code cannot be imported, so no function was tested"
NOT_RUN = "not run"  # what a check says if the code cannot be imported; the reason is said once
UNFENCED = "Nothing held the code: it ran without fences. See instructor.md"
FORMULA = (*"=+-@\t\r\n\uff1d\uff0b\uff0d\uff20",)  # a cell that begins with one of these, four of them in full width, is a formula
PATIENCE = 2  # a function that took too long so often is not asked again


@dataclass
class GradeConfig:
    """Grade an assignment: points for each task, a hint for each failure.

    python -m tutorials.assignments.grade my_a1  -- one submission; writes results.json

    python -m tutorials.assignments.grade submissions/* --assignment a1  -- forty; writes grades/grades.csv and a file for each

    python -m tutorials.assignments.grade --solutions  -- the reference solutions: rlvr itself
    """

    submissions: tyro.conf.Positional[list[str]] = field(default_factory=list)
    """Folders with an adapter.py, copied from tutorials/assignments/a1 (or a2 to a6) and filled in."""
    assignment: str = ""
    """a1 to a6; empty: what adapter.py says (ASSIGNMENT = "a1")."""
    out: str = ""
    """File to write, in Gradescope's format; empty: results.json. For several submissions a folder; empty: grades, or one beside it."""
    seconds: float = SECONDS
    """Time limit for one call of a student's function; above 10 the others, as that for the training of A6, grow with it."""
    hidden: str = ""
    """Folder with your hidden_checks.py, which adds checks that students do not see. See instructor.md."""
    no_fences: tyro.conf.FlagCreatePairsOff[bool] = False
    """Run the student's code without bubblewrap: in a container that is thrown away, or if you trust the code."""
    solutions: tyro.conf.FlagCreatePairsOff[bool] = False
    """Grade the reference solutions of all assignments instead, without fences."""


# ---------------------------------------------------------------------------------------------------------------------------------------
# The student's process, seen from here


class Child:
    """A process that runs runner.py. It answers questions until it dies, or is killed because it took too long."""

    def __init__(self, folder: Path, trusted: list[str], fenced: bool, scale: float = 1.0):
        work = fences.WORK if fenced else str(folder)
        around, runner, handed_in = (fences.command(folder), fences.RUNNER, fences.HANDED_IN) if fenced else ([], str(HERE / "runner.py"), work)
        self.process = subprocess.Popen(
            [*around, sys.executable, "-I", "-B", runner, handed_in, work, str(round(CPU_SECONDS * scale)), *trusted],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder, env=fences.environment(work),
            start_new_session=True,
        )  # fmt: skip
        self.replies: queue.Queue = queue.Queue(MAX_REPLIES)
        self.fenced, self.alive, self.answers = fenced, True, 0
        self.pid, self.waited = self.process.pid, 0.0  # of Python inside, once it is there; seconds for a processor, in all questions
        self.printed, self.arrived = b"", threading.Condition()
        self.ends: float = 0  # zero bytes that came with what was printed: one for each answer
        self.reader = threading.Thread(target=self._read_printed, daemon=True)
        self.reader.start()
        threading.Thread(target=self._read_replies, daemon=True).start()

    def _read_replies(self) -> None:
        with self.process.stdout as pipe:
            try:
                while self.alive and (line := pipe.readline(MAX_LINE)):
                    self.replies.put_nowait(line)
                self.replies.put_nowait(b"")
            except queue.Full:
                self.kill()

    def _read_printed(self) -> None:
        """Read all of it, so that the child never waits, and keep the beginning of what belongs to each check."""
        with self.process.stderr as pipe:
            while self.alive and (part := pipe.read1(2**16)):
                with self.arrived:
                    self.printed += part.replace(b"\0", b"")[: 4 * PRINTED - len(self.printed) + 1]
                    self.ends += part.count(0)
                    self.arrived.notify()
        with self.arrived:
            self.ends = math.inf
            self.arrived.notify()

    def take_printed(self) -> bytes:
        """The beginning of what was printed since the last call, up to the last answer and a little more."""
        with self.arrived:
            if not self.arrived.wait_for(lambda: self.ends >= self.answers, PRINT_SECONDS):
                self.ends = math.inf  # it has another stderr: never wait again
            printed, self.printed = self.printed, b""
        return printed

    def _count(self) -> float:
        """Seconds for which the process has waited for a processor, by the count of the kernel (proc(5)); 0 where there is none."""
        try:
            while Path(f"/proc/{self.pid}/comm").read_text() == "bwrap\n":  # around it, twice
                self.pid = int(Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()[0])
            return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[1]) / 1e9
        except (OSError, ValueError, IndexError):
            return 0.0

    def _next(self, seconds: float) -> bytes:
        """The next line. Raises queue.Empty if the process takes longer without its waiting for a processor, or PATIENT times as long."""
        started, before, left = time.monotonic(), self._count(), seconds
        try:
            while left > 0:
                with suppress(queue.Empty):
                    return self.replies.get(timeout=max(left, 0.05))
                left = min(seconds + self._count() - before, PATIENT * seconds) - (time.monotonic() - started)
            raise queue.Empty
        finally:
            self.waited += max(0.0, self._count() - before)

    def reply(self, seconds: float) -> dict:
        """The next reply. Raises StudentError for none in time, or an ended process."""
        try:
            line = self._next(seconds)
        except queue.Empty:
            self.kill()
            raise StudentError("Timeout", f"took longer than {seconds:.0f} s (an endless loop?)") from None
        try:
            reply = json.loads(line) if line.count(b"[") + line.count(b"{") <= MAX_PARTS else None
            if isinstance(reply, dict):
                self.answers += 1
                return reply
        except (ValueError, RecursionError):
            pass
        self.kill()
        code = self.process.returncode or 0
        died_of = code - 128 if self.fenced and code > 128 else -code  # bubblewrap says it as a shell does
        why = f"signal {died_of}" if died_of > 0 else f"exit code {code}"
        raise StudentError("Died", f"ended its process ({why}): out of memory, a crash, or exit()")

    def ask(self, question: dict, seconds: float) -> dict:
        # From a thread: a process that does not read would hold us up. The time for the reply is the limit of both.
        threading.Thread(target=self._write, args=(json.dumps(question).encode() + b"\n",), daemon=True).start()
        reply = self.reply(seconds)
        if reply.get("id") != question["id"]:
            self.kill()
            raise StudentError("Died", "wrote into the grader's pipe")
        return reply

    def _write(self, line: bytes) -> None:
        try:
            self.process.stdin.write(line)
            self.process.stdin.flush()
        except (OSError, ValueError):
            pass  # it died; there will be no reply

    def kill(self) -> None:
        self.alive = False  # the readers stop too, even if something that it started holds its pipes open
        try:
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.kill()
        except OSError:
            pass
        self.process.wait()
        self.reader.join(1.0)  # what it has printed is all there


class Student:
    """The functions of an adapter, to be called as if they were here: student.pass_at_k(8, 1, 4). Raises StudentError.

    A process that died is started anew for the next call, unless it could not even import the adapter.
    """

    def __init__(self, folder: Path, trusted: list[str], seconds: float, fenced: bool = False):
        self._folder, self._trusted, self._seconds, self._fenced = folder, trusted, seconds, fenced
        self._scale = max(1.0, seconds / SECONDS)
        self._ends = time.monotonic() + TOTAL_SECONDS * self._scale
        self._child: Child | None = None
        self._broken: StudentError | None = None  # why the adapter cannot be imported
        self._imported = False  # whether it could be, once: then what fails later is no fault of the adapter
        self._asked, self._slow = 0, Counter()
        self._printed, self._printed_at_import = b"", b""
        self._trained: dict = {}  # what `weights` has asked for -> the weights, or the error
        # Read before the student's code runs, which could put something else in their place.
        self._texts = {path.name: _read(path) for path in folder.iterdir() if path.suffix in (".csv", ".md")}

    def __getattr__(self, function: str) -> Callable:
        if function.startswith("_"):
            raise AttributeError(function)

        def ask(*arguments, **named):
            return self._ask(function, arguments, named)["value"]

        ask.__name__ = function
        return ask

    def gradient(self, function: str, of: int, *arguments, **named):
        """Value and gradient of the function in its argument number `of` (from 0); the gradient is None if none flows."""
        reply = self._ask(function, arguments, named, of)
        return reply["value"], reply.get("gradient")

    def whole(self, function: str, *arguments, of: int | None = None) -> Answer:
        """All that comes of a question: value, gradient in argument number `of`, and the arguments that the function has written to."""
        reply = self._ask(function, arguments, {}, of)
        changed = reply["changed"]
        changed = [i for i in changed.tolist() if isinstance(i, int)][:9] if isinstance(changed, torch.Tensor) else []
        return Answer(reply["value"], reply["gradient"], changed, tensor=reply["tensor"] is not False)

    def weights(self, function: str, *arguments) -> torch.Tensor:
        """The weights of a model that the function has trained, [n] float32; it may take minutes, and is asked once."""
        asked = (function, *arguments)
        if asked not in self._trained:
            self._ends += TRAINING_SECONDS * self._scale
            try:
                self._trained[asked] = self._ask(function, arguments, {}, weights=True)["value"]
            except StudentError as error:
                self._trained[asked] = error
        if isinstance(found := self._trained[asked], StudentError):
            raise found
        need(isinstance(found, torch.Tensor), f"{show_call(function, arguments)}: {show(found)} instead of weights")
        return found

    def is_reference(self) -> bool:
        """Whether it is a reference solution, and no student's."""
        return bool(self._trusted)

    def read(self, name: str) -> str | None:
        """A .csv or .md file of the submission, or None if it is missing, no text, or too long."""
        return self._texts.get(name)

    def _ask(self, function: str, arguments: tuple, named: dict, gradient_of: int | None = None, weights: bool = False) -> dict:
        if self._broken:
            raise self._broken
        left = self._ends - time.monotonic()
        if left <= 0:
            raise StudentError("Timeout", f"not run: the submission has used up its {TOTAL_SECONDS * self._scale:.0f} s")
        if self._slow[function] >= PATIENCE:
            raise StudentError("Timeout", f"not run: {function} took longer than {self._seconds:.0f} s {PATIENCE} times")
        if self._child is None or self._child.process.poll() is not None:
            self._start()
        self._asked += 1
        question = {
            "id": self._asked, "function": function, "arguments": [pack(x) for x in arguments],
            "named": {k: pack(v) for k, v in named.items()}, "gradient_of": gradient_of,
            "weights": weights,
        }  # fmt: skip
        try:
            waited = self._child.waited
            try:
                reply = self._child.ask(question, min(TRAINING_SECONDS * self._scale if weights else self._seconds, left))
            finally:
                self._ends += self._child.waited - waited
            self._raise_error(reply)
        except StudentError as error:
            self._slow[function] += error.kind == "Timeout"
            error.asked = show_call(function, arguments)
            raise
        if weights:
            return {"value": unpack_weights(reply.get("value"))}
        return {name: _as_tensor(unpack(reply.get(name))) for name in ("value", "gradient", "changed", "tensor")}

    def _start(self) -> None:
        self.close()
        self._child = Child(self._folder, self._trusted, self._fenced, self._scale)
        try:
            self._child.reply(START_SECONDS)
        except StudentError:  # nothing of the student's has run yet
            self._child.kill()
            why = self._child.take_printed().decode("utf-8", "replace").strip().splitlines()[-1:] or ["it says nothing"]
            what = f"The process for the submission's code could not be started ({printable(why[0])[:200]})."
            raise SettingError(f"{what} Install the requirements into a virtual environment and grade with its Python.") from None
        try:
            self._raise_error(self._child.reply(3 * self._seconds), " at its import")
            self._imported = True
        except StudentError as error:
            if not self._imported:
                self._broken = error
            raise
        finally:
            printed = self._child.take_printed()
            self._printed_at_import = self._printed_at_import or printed

    @staticmethod
    def _raise_error(reply: dict, after: str = "") -> None:
        if error := reply.get("error"):
            kind, message, where = (
                printable(str(error.get(k, ""))[:1000]) if isinstance(error, dict) else "" for k in ("type", "message", "where")
            )
            kind = {"SystemExit": "SystemExit, from exit()"}.get(kind, kind)
            if kind in ("EOFError", "BdbQuit") and not after:
                kind, message = "Keyboard", "input() and breakpoint() cannot work here, nobody is at the keyboard: use print()"
            bases = error.get("bases", []) if isinstance(error, dict) else []
            raise StudentError(kind + after, message, where, [str(base) for base in bases[:20]] if isinstance(bases, list) else [])

    def take_printed(self) -> str:
        """The beginning of what the student's code has printed since the last call."""
        printed = self._printed + (self._child.take_printed() if self._child else b"")
        self._printed = b""
        return beginning(printed)

    def close(self) -> None:
        """End the process."""
        if self._child:
            self._child.kill()
            self._printed += self._child.take_printed()
            self._child = None


def beginning(printed: bytes) -> str:
    """What the student's code has printed, cut to a length that can be shown."""
    whole = printed.decode("utf-8", "replace").strip("\r\n")
    lines = printable(whole[:PRINTED]).splitlines()
    if len(whole) > PRINTED or len(lines) > PRINTED_LINES:
        lines = [*lines[:PRINTED_LINES], "... (the rest is not shown)"]
    return "\n".join(lines)


def _as_tensor(value):
    """A list of numbers of equal lengths counts as a tensor; anything else stays."""
    if isinstance(value, list) and value:
        try:
            tensor = torch.tensor(value)
            return tensor if fits(tensor.shape) else value
        except (TypeError, ValueError, RuntimeError, OverflowError):
            pass
    return value


def _read(path: Path) -> str | None:
    """A text file, or None if it is none, or too long."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read(MAX_TEXT + 1)
    except (OSError, ValueError):
        return None
    return text if len(text) <= MAX_TEXT else None


# ---------------------------------------------------------------------------------------------------------------------------------------
# Grading


@dataclass
class Result:
    check: Check
    passed: bool
    message: str = ""
    hint: str = ""
    printed: str = ""  # by the student's code, meanwhile; its beginning


def _whole(points: float) -> float:
    """4 for 4.0: halves add up to floats."""
    return int(points) if points == int(points) else points


@dataclass
class Report:
    """What a submission got."""

    name: str  # a1 to a6
    results: list[Result]
    broken: str = ""  # why the adapter cannot be imported, if so; no check has run then
    printed: str = ""  # while the adapter was imported
    seconds: float = 0.0  # without the hidden checks
    unfenced: bool = False  # the student's code ran without fences

    @property
    def score(self) -> float:
        return _whole(sum(r.check.points for r in self.results if r.passed))

    def part(self, hidden: bool) -> str:
        """The points of the hidden checks, or of the others: "18 of 20"."""
        results = [r for r in self.results if r.check.hidden == hidden]
        return f"{number(sum(r.check.points for r in results if r.passed))} of {number(sum(r.check.points for r in results))}"

    @property
    def has_hidden(self) -> bool:
        return any(r.check.hidden for r in self.results)

    def of_task(self, task: str) -> float:
        return _whole(sum(r.check.points for r in self.results if r.passed and r.check.task == task))

    def lost(self) -> dict[str, float]:
        """Name of each failed check -> its points."""
        return {r.check.name: r.check.points for r in self.results if not r.passed}


def handed_in(folder: Path) -> Iterator[Path]:
    """The files and folders of a submission. Links are not followed, and they, caches and what is hidden stay out. Raises SettingError."""
    seen, size, left = 0, 0, [folder]
    while left:
        found: list[os.DirEntry] = []
        with os.scandir(left.pop()) as entries:
            for entry in entries:
                seen, size = seen + 1, size + entry.stat(follow_symlinks=False).st_size * entry.is_file(follow_symlinks=False)
                if seen > MAX_FILES or size > MAX_BYTES:
                    limits = f"{MAX_FILES} files or {MAX_BYTES // 2**20} MiB"
                    raise SettingError(
                        f"The submission {folder} has more than {limits}. Hand in code and results alone, no models or runs."
                    )
                found.append(entry)
        for entry in sorted(found, key=lambda entry: entry.name):
            path = Path(entry.path)
            if entry.name.startswith(".") or entry.name == "__pycache__":
                continue
            if entry.is_dir(follow_symlinks=False):
                if len(path.relative_to(folder).parts) > MAX_DEPTH:
                    raise SettingError(f"The submission {folder} has folders more than {MAX_DEPTH} deep. Hand in code and results alone.")
                left.append(path)
                yield path
            elif entry.is_file(follow_symlinks=False):
                yield path


def copy_submission(folder: Path, to: Path) -> None:
    """Copy what was handed in, so that the student's code works on a copy. Raises SettingError for more than a submission may hold."""
    for path in handed_in(folder):
        copy = to / path.relative_to(folder)
        if path.is_dir():
            copy.mkdir(parents=True, exist_ok=True)
        else:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy, follow_symlinks=False)


def remove(folder: Path) -> None:
    """Delete what the student's code may have left: a thousand folders inside of each other are too much for Python's own functions."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except RecursionError:
        pass
    if folder.exists() and os.name == "posix":
        subprocess.run(["rm", "-rf", str(folder)], stderr=subprocess.DEVNULL)


def run_check(check: Check, student: Student) -> Result:
    result = _run_check(check, student)
    result.printed = student.take_printed()
    return result


def _run_check(check: Check, student: Student) -> Result:
    try:
        check.function(student)
        return Result(check, True)
    except SettingError:
        raise
    except StudentError as error:
        if student._broken:  # said once, for all
            message, hint = NOT_RUN, ""
        elif error.unwritten:  # a hint about content would not help yet
            message, hint = str(error), ""
        else:  # nor beside an answer that did not come
            message, hint = f"{error.asked}: {error}" if error.asked else str(error), "" if error.unanswered else check.hint
    except Wrong as error:
        message, hint = str(error), check.hint
    except Exception as error:  # an answer of a form that the check did not expect: a text where a number should be
        message, hint = f"the answer has not the form that adapter.py promises ({type(error).__name__}: {error})"[:500], ""
    return Result(check, False, printable(message)[:1000], hint)


def grade(folder: Path, name: str, seconds: float = 10.0, trusted: list[str] | None = None, fenced: bool = True) -> Report:
    """All checks of assignment `name` on a submission. trusted: paths to import from, without fences, for the reference solutions.

    Raises SettingError for a folder that cannot be graded at all, and where there are no fences.
    """
    fenced = fenced and not trusted
    if fenced and (why := fences.why_not()):
        raise SettingError(
            f"The student's code cannot be fenced in: {why}. Where a container that is thrown away is the fence, or none is needed "
            "because you trust the code, add --no-fences."
        )
    if not folder.is_dir():
        raise SettingError(f"There is no folder {folder}. Name the folder that holds your adapter.py.")
    started = time.monotonic()
    temporary = Path(tempfile.mkdtemp()).resolve()
    try:
        copy_submission(folder, temporary)
        _give_away(temporary)
        student = Student(temporary, trusted or [], seconds, fenced)
        try:
            checks = ASSIGNMENTS[name].checks
            visible = [check for check in checks if not check.hidden]
            results: list[Result] = []
            for check in tqdm(visible, desc=name, leave=False, disable=None):
                given = passed_over(check, results)
                results.append(run_check(check, student) if given is None else Result(check, given, f"{NOT_ASKED} {check.follows!r}"))
            # What students see before the grades are published is complete: what follows could tell what the hidden checks ask.
            took, broken, printed = time.monotonic() - started, student._broken, beginning(student._printed_at_import)
            results += [run_check(check, student) for check in checks if check.hidden]
            results.sort(key=lambda r: checks.index(r.check))
        finally:
            student.close()
    finally:
        remove(temporary)
    return Report(name, results, printable(str(broken))[:1000] if broken else "", printed, took, not (fenced or trusted))


def _give_away(folder: Path) -> None:
    """Where the grader is root, the copy belongs to the user that the student's process becomes."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            with suppress(OSError):
                os.chown(path, USER, USER)


def assignment_of(folder: Path) -> str | None:
    """Which assignment an adapter.py says it belongs to; None if it does not say. Nothing of it is run."""
    try:
        with open(folder / "adapter.py", encoding="utf-8", errors="replace") as file:
            text = file.read(MAX_TEXT)
    except OSError:
        return None
    found = re.search(r"^ASSIGNMENT *= *[\"'](\w+)[\"']", text, re.MULTILINE)
    return found[1] if found and found[1] in ASSIGNMENTS else None


def number(points: float) -> str:
    return f"{points:g}"


def text(report: Report) -> str:
    """A report for the terminal."""
    assignment = ASSIGNMENTS[report.name]
    lines = [f"{report.name}: {report.part(hidden=False)} points"]
    if report.has_hidden:
        lines.append(f"(for you alone: {report.part(hidden=True)} points in the hidden checks)")
    if report.unfenced:
        lines.append(f"({UNFENCED})")
    if report.broken:
        lines.append(f"\n{NOT_IMPORTED}:\n  {report.broken}")
    if report.printed:
        lines.append("\nWhile it was imported, your code printed:\n  " + report.printed.replace("\n", "\n  "))
    shown = [r for r in report.results if r.message != NOT_RUN]
    if not shown:
        return "\n".join(lines)
    for task, title in assignment.tasks.items():
        if task in assignment.by_hand:
            lines.append("\n" + _by_hand(assignment, task))
            continue
        lines.append(f"\n{task} {title}: {number(report.of_task(task))} of {number(assignment.points(task))}")
        for r in shown:
            if r.check.task == task and not (r.passed and r.check.hidden):
                lines.append(f"  {'+' if r.passed else '-'} {number(r.check.points)}  {r.check.name}{_why(r)}")
    return "\n".join(lines)


def _by_hand(assignment: Assignment, task: str) -> str:
    return f"{task} {assignment.tasks[task]}: {number(assignment.by_hand[task])} points, graded by a person"


def _why(r: Result) -> str:
    """Why a check failed, and what the student's code printed during any."""
    if r.check.hidden:
        return "" if r.passed else " (a hidden check)"
    why = [] if r.passed else [r.message, *([f"hint: {r.hint}"] if r.hint else [])]
    why += ["your code printed:", *("  " + line for line in r.printed.splitlines())] if r.printed else []
    return "".join("\n       " + line for line in why)


def gradescope(report: Report) -> dict:
    """The report in the format of Gradescope's results.json. Before publication nothing in it tells what the hidden checks gave."""
    assignment, tests = ASSIGNMENTS[report.name], []
    for r in report.results:
        tests.append(
            {
                "number": r.check.task,
                "name": f"{r.check.task} {assignment.tasks[r.check.task]}: {r.check.name}",
                "score": r.check.points if r.passed else 0,
                "max_score": r.check.points,
                "status": "passed" if r.passed else "failed",
                "output": r.message if r.check.hidden else textwrap.dedent(_why(r)).strip(),
                "visibility": "after_published" if r.check.hidden else "visible",
            }
        )
    seen = " in the tests that you can see" if report.has_hidden else ""
    said = [f"{report.part(hidden=False)} points{seen}"]
    said += [f"{NOT_IMPORTED}: {report.broken}"] if report.broken else []
    said += ["While it was imported, your code printed:", report.printed] if report.printed else []
    said += [_by_hand(assignment, task) for task in assignment.by_hand]
    # Without a score of the whole Gradescope adds up the tests itself, and knows which of them are hidden.
    whole = {} if report.has_hidden else {"score": report.score}
    return whole | {
        "execution_time": round(report.seconds, 1),
        "output": "\n".join(said),
        "stdout_visibility": "hidden",
        "tests": tests,
    }


def find_adapter(folder: Path) -> Path:
    """The folder with the adapter.py: this one, or the only one inside (zips often hold one folder more). Raises SettingError.

    No link is followed, to a folder or to a file: it could lead to a neighbour's submission.
    """
    if folder.is_symlink():
        raise SettingError(f"{folder} is a link, and links are not followed in what was handed in. Name the folder itself.")
    if folder.is_file():
        what = "unzip it first, and name the folder" if folder.suffix == ".zip" else f"name its folder, {folder.parent}"
        raise SettingError(f"{folder} is a file: {what}.")
    if not folder.is_dir():
        raise SettingError(f"There is no folder {folder}. Name the folder that holds your adapter.py.")
    if (folder / "adapter.py").is_file() and not (folder / "adapter.py").is_symlink():
        return folder
    found = [path.parent for path in handed_in(folder) if path.name == "adapter.py" and path.is_file()]
    inside = [path for path in found if len(parts := path.relative_to(folder).parts) <= 3 and not any(part[0] == "_" for part in parts)]
    if len(inside) > 1:
        raise SettingError(f"There are {len(inside)} folders with an adapter.py in {folder}. Name one, as in {min(inside)}")
    if not inside and any(os.path.islink(path) for path in (folder / "adapter.py", *folder.iterdir())):
        raise SettingError(f"There is no adapter.py in {folder}, and its links are not followed. Hand in the files themselves.")
    if not inside:
        files = ", ".join(sorted(path.name for path in folder.glob("*.py"))[:5])
        remedy = f"There are {files}: rename one?" if files else "Start from a copy of tutorials/assignments/a1 (or a2 to a6)."
        raise SettingError(f"There is no adapter.py in {folder}. {remedy}")
    return inside[0]


def _grade_one(folder: Path, c: GradeConfig) -> Report:
    try:
        folder = find_adapter(folder)
        said = assignment_of(folder)
    except OSError as error:
        raise SettingError(f"The submission {folder} cannot be read ({error}). Look at its permissions, and at the disk.") from None
    if c.assignment and said and said != c.assignment:
        raise SettingError(f"The adapter.py in {folder} is one of {said}, not of {c.assignment}. Name the right folder or --assignment.")
    if not (said or c.assignment):
        raise SettingError(f'{folder}/adapter.py does not say ASSIGNMENT = "a1" (or a2 to a6). Add the line, or --assignment a1.')
    return grade_apart(folder, said or c.assignment, c.seconds, fenced=not c.no_fences)


def grade_apart(folder: Path, name: str, seconds: float, fenced: bool) -> Report:
    """`grade` in a copy of this process, with limits of time and memory: what harms it costs one submission its points, and no class.

    Raises SettingError.
    """
    checks, place, own = ASSIGNMENTS[name].checks, tempfile.tempdir, Path(tempfile.mkdtemp())
    own.chmod(0o711)  # what is inside belongs to the student's process
    if fenced:
        fences.why_not()  # found out once, for all

    def work() -> dict:
        torch.set_num_threads(1)  # others were not copied
        tempfile.tempdir = str(own)
        try:
            report = grade(folder, name, seconds, fenced=fenced)
        except SettingError as error:
            return {"refused": str(error)}
        except OSError as error:
            return {"refused": f"The submission {folder} cannot be graded ({error}). Look at its permissions, and at the disk."}
        return vars(report) | {"results": [vars(r) | {"check": checks.index(r.check)} for r in report.results]}

    try:
        found = limited(work, GRADING_SECONDS * max(1.0, seconds / SECONDS), GRADING_BYTES)
    except RuntimeError as error:
        raise SettingError(f"The grading of {folder} was cut off: {error}. Look at what was handed in yourself.") from None
    finally:
        tempfile.tempdir = place  # where there are no copies of a process (Windows), it was changed here
        remove(own)
    if "refused" in found:
        raise SettingError(found["refused"])
    return Report(**found | {"results": [Result(**r | {"check": checks[r["check"]]}) for r in found["results"]]})


def main(c: GradeConfig) -> None:
    """Grade what the settings name, print, and write. Raises SettingError."""
    c.assignment = c.assignment.lower()
    if c.assignment and c.assignment not in ASSIGNMENTS:
        raise SettingError(f"There is no assignment {c.assignment!r}. Choose one of {', '.join(ASSIGNMENTS)}.")
    if not 0 < c.seconds <= MAX_SECONDS:
        raise SettingError(f"--seconds is {c.seconds}. Choose a number above 0, and at most {MAX_SECONDS}.")
    if c.hidden:
        c.hidden = c.hidden.removesuffix("hidden_checks.py") or "."
        if not Path(c.hidden, "hidden_checks.py").is_file():
            raise SettingError(f"There is no hidden_checks.py in {c.hidden}. See tutorials/assignments/instructor.md.")
        sys.path.insert(0, str(Path(c.hidden).resolve()))
        import hidden_checks

        hidden_checks.add(ASSIGNMENTS)
    if c.solutions:
        reports = [grade(HERE / "reference" / name, name, c.seconds, [str(ROOT)]) for name in ASSIGNMENTS if c.assignment in ("", name)]
        say("\n\n".join(text(report) for report in reports))
        return
    if not c.submissions:
        raise SettingError("No submission was named. Name its folder, as in: python -m tutorials.assignments.grade my_a1")
    one = len(c.submissions) == 1
    # A class graded earlier stays: its table is somebody's grades.
    out = Path(c.out) if c.out else Path("results.json") if one else first_free(Path("grades"), lambda p: (p / "grades.csv").exists())
    try_out(out, a_file=one)
    if one:
        try:
            report = _grade_one(Path(c.submissions[0]), c)
        except Exception as error:  # Gradescope wants its file, and the student the reason
            if c.out:
                write(out, json.dumps({"score": 0, "output": str(error)}))
            raise
        say(text(report))
        write(out, json.dumps(gradescope(report), indent=1))
        say(f"\nwritten to {out} (in the format of Gradescope)")
        return
    with alone_in(out):
        _grade_many([Path(s) for s in c.submissions], out, c)


def try_out(out: Path, a_file: bool) -> None:
    """Make sure, before anything runs, that the result can be written, a file, or files in a folder, and replaces nothing else.

    Raises SettingError.
    """
    if out.exists() and not out.is_dir() and not out.is_file() or a_file and out.is_symlink():
        raise SettingError(f"--out {out} is a device, a pipe or a link. Choose the name of a file or a folder.")
    if out.is_dir() if a_file else out.exists() and not out.is_dir():
        wanted = "a folder, but one submission needs a file" if a_file else "a file, but several submissions need a folder"
        raise SettingError(f"--out {out} is {wanted}. Choose another name.")
    if not a_file and os.path.lexists(out / "grades.csv"):
        raise SettingError(f"--out {out} has a grades.csv, which would be lost. Move it away, or choose another folder.")
    folder = out.parent if a_file else out
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise SettingError(f"Nothing can be written to {folder} ({one_line(error)}). Choose another place with --out.") from None


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other graders out of a folder, or raise SettingError if one is in there. The lock ends with the process, however it ends."""
    handle = None
    with suppress(ImportError, OSError):  # neither Windows nor some network drives have such locks
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise SettingError(f"Another grader writes to {folder}. Wait for its end, or choose another folder with --out.") from None
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all, though another grader may write one of this name at this moment. Raises OSError."""
    own = path.with_name(f"grader-{os.getpid()}")
    write_atomically(own, text + "\n")
    try:
        own.replace(path)
    except OSError:
        own.unlink()
        raise


def try_to_write(path: Path, text: str) -> str:
    """Write a file, or print and return why it cannot be written."""
    try:
        write(path, text)
    except OSError as error:
        why = one_line(error)
        say(f"{path} cannot be written ({why})")
        return why
    return ""


def flat(foreign: str) -> str:
    """A text that others wrote, in one line."""
    return printable(foreign).replace("\n", "\\n").replace("\t", "\\t")


def unlike(names: list[str]) -> list[str]:
    """The same names, the second of two that a file system may take for one with a -2 behind it."""
    new: dict[str, str] = {}
    for name in names:
        number, free = 1, name
        while unicodedata.normalize("NFKC", free).casefold() in new:
            number += 1
            free = f"{name}-{number}"
        new[unicodedata.normalize("NFKC", free).casefold()] = free
    return [*new.values()]


def names_of(folders: list[Path]) -> list[str]:
    """A name for each submission, no two alike: the last part of its path, and as many more as tell it from the others."""
    paths = [Path(os.path.abspath(folder)).parts for folder in folders]
    taken = [1] * len(paths)
    while True:
        names = [flat("/".join(parts[-n:])) for parts, n in zip(paths, taken)]
        times = Counter(names)
        alike = [i for i, name in enumerate(names) if times[name] > 1 and taken[i] < len(paths[i])]
        if not alike:
            return unlike(names)
        for i in alike:
            taken[i] += 1


def file_names(names: list[str]) -> list[str]:
    """Names of files for these, without a suffix, no two alike."""
    return unlike([name.replace("/", "-").encode("utf-8", "replace")[:MAX_NAME].decode("utf-8", "ignore") for name in names])


def cell(foreign: str) -> str:
    """A text that others wrote, for a table: a spreadsheet would run one that begins as a formula does, in some countries after a ; too."""
    start, *rest = re.split(r"(?<=;)", foreign)
    return "".join("'" + part if part[:1] in FORMULA or part.lstrip()[:1] in FORMULA else part for part in (start, *rest))


def _grade_many(folders: list[Path], out: Path, c: GradeConfig) -> None:
    """A file for each submission and a table of all. One that cannot be graded is a line of the table, not the end."""
    rows, graded, lost, names, failed = [], [], {}, names_of(folders), ""
    for name, file_name, folder in zip(names, file_names(names), folders):
        report = None
        try:
            report = _grade_one(folder, c)
            tasks = {task: report.of_task(task) for task in ASSIGNMENTS[report.name].tasks if task not in ASSIGNMENTS[report.name].by_hand}
            by_hand = {f"{task} (by hand)": "" for task in ASSIGNMENTS[report.name].by_hand}
            rows.append(
                {"submission": cell(name), "assignment": report.name, "points": report.score}
                | tasks
                | by_hand
                | {"error": cell(flat(report.broken))}
            )
            why = f"  (cannot be imported: {flat(report.broken)})" if report.broken else ""
            say(f"{name}: {number(report.score)} of {number(ASSIGNMENTS[report.name].total)}{why}")
            graded.append(report)
            for r in [] if report.broken else report.results:
                lost.setdefault((report.name, r.check.task, r.check.name), []).append(not r.passed)
        except Exception as error:  # whatever it is, the others are graded
            why = str(error) if isinstance(error, SettingError) else f"{type(error).__name__}: {error}"
            zero = {"assignment": c.assignment, "points": 0} if c.assignment else {}
            rows.append({"submission": cell(name), **zero, "error": cell(flat(why))})
            say(f"{name}: {flat(why)}")
        columns = [*dict.fromkeys(column for row in rows for column in row if column != "error"), "error"]
        # After each, so that an end in the middle loses nothing, and the table first: it has the points.
        failed = try_to_write(out / "grades.csv", csv_text(rows, columns).removesuffix("\n"))
        if report:
            try_to_write(out / f"{file_name}.json", json.dumps(gradescope(report), indent=1))
    if graded:
        points, broken = [report.score for report in graded], sum(bool(report.broken) for report in graded)
        say("")
        say(
            table(
                ["graded", "mean", "lowest", "highest"],
                [[str(len(graded)), *(f"{x:.1f}" for x in (sum(points) / len(points), min(points), max(points)))]],
            )
        )
        say(f"\nfailed most often{f' (without the {broken} that could not be imported)' if broken else ''}:")
        often = sorted((key for key, missed in lost.items() if any(missed)), key=lambda key: -sum(lost[key]))
        say("\n".join(f"  {sum(lost[key]):>3} of {len(lost[key])}  {' '.join(key)}" for key in often[:10]) or "  nothing")
        if len(often) > 10:
            say(f"  and {len(often) - 10} more")
    if len(graded) < len(rows):
        say(f"\n{len(rows) - len(graded)} of {len(rows)} could not be graded")
    if failed:
        raise SettingError(f"The table of points, {out}/grades.csv, is not complete ({failed}). Take those above, or grade again.")
    say(f"\nwritten to {out}/grades.csv")
    if c.no_fences:
        say(f"({UNFENCED})")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run_program(lambda: main(parse_command(GradeConfig, "python -m tutorials.assignments.grade")))
