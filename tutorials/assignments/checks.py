"""What a test of an assignment is made of. A file of tests declares tasks, then checks with their points:

    tests = Assignment()
    tests.task("1.1", "the last box")

    @tests.check("1.1", 1, hint="Search from the end, or keep the last match.")
    def the_last_of_two_boxes_counts(student):
        expect(student.last_boxed(r"\\boxed{1} or \\boxed{2}"), "2")

The checks run in the grader, with its own answers; only the functions of the adapter run in the student's process.
"""

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor


class StudentError(Exception):
    """The student's code raised something; `kind` is the name of its class, or one of our own, whose message is the whole sentence.

    bases: the names of its class and of those above it. unwritten: there is nothing to test yet. unanswered: the function is not there, not
    written yet, or did not come back, so it has not raised anything of its own.
    """

    OWN = ("Missing", "Keyboard", "Timeout", "Died")  # no such function; asked for input; took too long; its process ended

    def __init__(self, kind: str, message: str, where: str = "", bases: list[str] | tuple = ()):
        self.kind, self.bases = kind, (kind, *bases)
        self.asked = ""  # the call, for the message
        self.unwritten = kind in ("NotImplementedError", "Missing", "Keyboard")
        self.unanswered = self.unwritten or kind in self.OWN or kind.endswith(" at its import")
        what = "not written yet" if kind == "NotImplementedError" else message if kind in self.OWN else ""
        what = what or f"raised {kind}: {message}".removesuffix(": ")
        super().__init__(f"{what} ({where})" if where else what)


class Wrong(AssertionError):
    """The student's answer is not the right one; the message says what was asked, what came and what should have come."""


@dataclass
class Check:
    """One test: all its points or none."""

    task: str
    points: float
    hint: str
    function: Callable
    hidden: bool = False  # students see only that it failed
    follows: str = ""  # a check on random inputs: the name of the check with which its points go where it is not asked (`passed_over`)
    tasks: tuple[str, ...] = ()  # those about the same function, if there are others than `task`

    @property
    def name(self) -> str:
        return self.function.__name__.replace("_", " ")


@dataclass
class Assignment:
    """The tasks and checks that a file of tests declares."""

    tasks: dict[str, str] = field(default_factory=dict)  # number -> title
    checks: list[Check] = field(default_factory=list)
    by_hand: dict[str, float] = field(default_factory=dict)  # tasks that a person grades -> points

    def task(self, number: str, title: str, by_hand: float = 0) -> None:
        """Declare a task. by_hand: its points if a person grades it, and no check does."""
        self.tasks[number] = title
        if by_hand:
            self.by_hand[number] = by_hand

    def check(
        self, task: str, points: float, hint: str = "", hidden: bool = False, nan: bool = False, follows: str = "", tasks: tuple = ()
    ) -> Callable:
        """Declare the function below as a test of a task. Raises ValueError for a task that was not declared.

        nan: answers may have NaN in them; without it a NaN is wrong wherever it stands. follows, tasks: see Check.
        """
        if task not in self.tasks:
            raise ValueError(f"There is no task {task}. Declare it first: task({task!r}, 'its title')")

        def register(function: Callable) -> Callable:
            @functools.wraps(function)
            def ask(student):
                return function(student if nan else WithoutNaN(student))

            self.checks.append(Check(task, points, hint, ask, hidden, follows, tasks or (task,)))
            return function

        return register

    def points(self, task: str) -> float:
        """What a task is worth, without what a person grades."""
        return sum(c.points for c in self.checks if c.task == task)

    @property
    def total(self) -> float:
        return sum(c.points for c in self.checks)


def show(value, most: int = 300) -> str:
    """A value in one or a few short lines."""
    if isinstance(value, Tensor):
        text = str([round(x, 5) if isinstance(x, float) else x for x in value.flatten().tolist()[:24]])
        text = text[:-1] + (", ...]" if value.numel() > 24 else "]")
        text = f"{text} of shape {tuple(value.shape)}" if value.dim() != 1 else text
    else:
        text = repr(value)
    return text if len(text) <= most else text[:most] + " ..."


def show_call(function: str, arguments: tuple, most: int = 160) -> str:
    """A call in one short line: pass_at_k(8, 2, 9)."""
    return f"{function}({', '.join(show(a, most // 3 + 7) for a in arguments)})"[:most]


def same(got, wanted, tolerance: float, relative: float = 0.0) -> bool:
    """Whether an answer is the right one. Numbers: within the tolerance (and `relative` times the right one); tensors: shape too; NaN equals
    nothing; True is not 1."""
    if isinstance(wanted, Tensor):
        if isinstance(got, list):
            try:
                got = torch.tensor(got)
            except (TypeError, ValueError, RuntimeError):
                return False
        if not isinstance(got, Tensor) or got.shape != wanted.shape:
            return False
        if wanted.dtype == torch.bool and got.dtype != torch.bool:
            return bool(((got == 0) | (got == 1)).all()) and torch.equal(got.bool(), wanted)
        return torch.allclose(got.double(), wanted.double(), rtol=relative, atol=tolerance)
    if isinstance(got, Tensor) and got.numel() == 1 and isinstance(wanted, (int, float)):
        got = got.item()
    if isinstance(wanted, bool) or wanted is None or isinstance(wanted, str):
        return type(got) is type(wanted) and got == wanted
    if isinstance(wanted, (int, float)):
        if isinstance(got, bool) or not isinstance(got, (int, float)):
            return False
        return got == wanted or abs(got - wanted) <= tolerance + relative * abs(wanted)
    if isinstance(wanted, (list, tuple)):
        if isinstance(got, Tensor):
            got = got.tolist()
        return isinstance(got, list) and len(got) == len(wanted) and all(same(g, w, tolerance, relative) for g, w in zip(got, wanted))
    raise TypeError(f"expect() cannot compare with a {type(wanted).__name__}")


def _first_difference(got: Tensor, wanted: Tensor, tolerance: float, relative: float) -> str:
    """Where two tensors of one shape differ, in one line; all their numbers would be too many to read."""
    differs = ~torch.isclose(got.double(), wanted.double(), rtol=relative, atol=tolerance)
    place = tuple(differs.nonzero()[0].tolist())
    found = f"{got[place].item():.6g} instead of {wanted[place].item():.6g}"
    return f"{int(differs.sum())} of {wanted.numel()} numbers differ, the first at [{', '.join(map(str, place))}]: {found}"


def expect(got, wanted, asked: str = "", tolerance: float = 1e-5, relative: float = 0.0) -> None:
    """Raise Wrong unless `got` is `wanted`. `asked` says in the message what the answer belongs to."""
    if not same(got, wanted, tolerance, relative):
        if isinstance(wanted, Tensor) and isinstance(got, Tensor) and got.shape != wanted.shape:
            raise Wrong(f"{asked + ': ' if asked else ''}the result has shape {tuple(got.shape)} instead of {tuple(wanted.shape)}")
        if isinstance(wanted, Tensor) and isinstance(got, Tensor) and wanted.numel() > 6:
            raise Wrong(f"{asked + ': ' if asked else ''}{_first_difference(got, wanted, tolerance, relative)}")
        said, right = show(got), show(wanted)
        if got is None:
            said += " (is a return missing?)"
        elif type(got) is not type(wanted) and (said.strip("'") == right.strip("'") or got == wanted):
            said, right = f"{said} ({type(got).__name__})", f"{right} ({type(wanted).__name__})"
        raise Wrong(f"{asked + ': ' if asked else ''}{said} instead of {right}")


def alike(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have one shape and, up to rounding, the same numbers, in whatever precision."""
    return a.shape == b.shape and torch.allclose(a.double(), b.double())


def need(condition: bool, message: str) -> None:
    """Raise Wrong with the message unless the condition holds."""
    if not condition:
        raise Wrong(message)


def expect_error(kind: str, function: Callable, *arguments) -> None:
    """Raise Wrong unless the student's function raises an error of this kind."""
    asked = show_call(function.__name__, arguments)
    try:
        got = function(*arguments)
    except StudentError as error:
        if error.unanswered:
            raise
        if kind not in error.bases:
            raise Wrong(f"{asked}: {error}, instead of {kind}") from None
    else:
        raise Wrong(f"{asked}: {show(got)} instead of raising {kind}")


# ---------------------------------------------------------------------------------------------------------------------------------------
# NaN


def has_nan(value) -> bool:
    """Whether there is a NaN anywhere in an answer."""
    if isinstance(value, Tensor):
        return bool(value.isnan().any())
    if isinstance(value, (list, tuple)):
        return any(map(has_nan, value))
    return isinstance(value, float) and math.isnan(value)


class WithoutNaN:
    """A student whose NaNs are wrong. A comparison with NaN is never true, so half of all checks of the form "not equal" would pass."""

    def __init__(self, student):
        self._student = student

    def __getattr__(self, name: str) -> Callable:
        function = getattr(self._student, name)

        @functools.wraps(function)
        def ask(*arguments, **named):
            answer = function(*arguments, **named)
            parts = [answer.value, answer.gradient] if isinstance(answer, Answer) else answer if isinstance(answer, tuple) else [answer]
            if any(map(has_nan, parts)):
                called = arguments[0] if name in ("gradient", "whole", "weights") else name
                given = arguments[{"gradient": 2, "whole": 1, "weights": 1}.get(name, 0) :]
                raise Wrong(f"{show_call(called, given)}: there is a NaN in {'the answer' if has_nan(parts[0]) else 'its gradient'}")
            return answer

        return ask


# ---------------------------------------------------------------------------------------------------------------------------------------
# Random inputs


def exchanged(questions: Iterable[tuple], **others: Callable) -> Iterable[tuple]:
    """The questions, and after every tenth the same once more with one argument exchanged, for each of `others`.

    A function that remembers its answers by some of its arguments is wrong then. others: a2=f exchanges argument 2 (from 0) for f(it).
    """
    for i, arguments in enumerate(questions):
        yield arguments
        for name, other in others.items() if i % 10 == 0 else ():
            place = int(name[1:])
            yield *arguments[:place], other(arguments[place]), *arguments[place + 1 :]


@dataclass
class Answer:
    """All that came of one question (Student.whole)."""

    value: object
    gradient: Tensor | None = None  # in one argument, if it was asked for
    changed: list[int] = field(default_factory=list)  # the arguments that the function has written to, counted from 0
    tensor: bool = True  # False: a gradient was asked for, and this is a list or an array, through which none can flow


KINDS = {"bool": (torch.bool,), "int": (torch.int64, torch.int32), "float": (torch.float32, torch.float64)}


def on_random_inputs(
    student, function: str, questions: Iterable[tuple], right: Callable, tolerance: float = 1e-5, kind: str = "", of: int | None = None,
    relative: float = 1e-5,
) -> None:  # fmt: skip
    """Raise Wrong at the first question whose answer is not that of the reference: value, kind of numbers, gradient, arguments unchanged.

    right(*arguments) -> the right answer, or ValueError if the student's function should raise it. of: the argument in which a gradient
    is asked for, and `right` gives (value, gradient) then; an answer that is no tensor is judged by its values alone. kind: a key of
    KINDS, where the handout promises one.
    """
    for arguments in questions:
        asked = show_call(function, arguments, 600)
        try:
            wanted = right(*arguments)
        except ValueError:
            expect_error("ValueError", getattr(student, function), *arguments)
            continue
        answer = student.whole(function, *arguments, of=of)
        gradient = None
        if of is not None:
            wanted, gradient = wanted
        expect(answer.value, wanted, asked, tolerance, relative)
        if kind and isinstance(answer.value, Tensor) and answer.value.dtype not in KINDS[kind]:
            raise Wrong(f"{asked}: the numbers are {str(answer.value.dtype).removeprefix('torch.')} instead of {kind}")
        # No gradient at all is as good as 0.
        if gradient is not None and answer.tensor and (answer.gradient is not None or bool(gradient.any())):
            need(answer.gradient is not None, f"{asked}: no gradient flows")
            expect(answer.gradient, gradient, f"{asked}, its gradient in argument {of + 1}", tolerance, relative)
        if answer.changed:
            which = " and ".join(str(i + 1) for i in answer.changed)
            raise Wrong(f"{asked}: the function has written to its argument {which}, which belongs to the caller: work on a copy")


NOT_ASKED = "random inputs are not asked for yet, as another test of this function failed: these points go with those of"


def passed_over(check: Check, results: list) -> bool | None:
    """Whether a check on random inputs that need not be asked gets its points; None: ask it.

    results: those of the checks so far. Where another check of the same function failed, the mistake is known, and has cost its points.
    Those of the random inputs then go with the check that they follow, so that a slip costs once.
    """
    before = [r for r in results if r.check.task in check.tasks and not r.check.hidden]
    if not check.follows or all(r.passed for r in before) or not any(r.passed for r in before):  # none: is it written at all?
        return None
    return all(r.passed for r in before if r.check.name == check.follows)
