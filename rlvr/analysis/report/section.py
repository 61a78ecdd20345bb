"""What a section of the report is made of. A finding is a function of one run; the decorator `section` asks it of every run.

    @section("S1", "Two stages")
    def two_stages(run: Run) -> Verdict:
        '''What the pictures show.

        The paper found: what it found.
        '''
        return Verdict(True, "What this run shows.", rows, [Panel(draw)])

    two_stages([run, other])  # -> Section: the verdicts, rows and pictures of both, under the two sentences of the docstring
    two_stages.__wrapped__(run)  # -> Verdict: one run alone
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rlvr.analysis.report.picture import Panel
from rlvr.analysis.report.run import Run

NO_PROBE = "Not measured: this needs the weights of the run. First: python -m rlvr.analysis.probe {folder}"


@dataclass
class Verdict:
    """What one run shows. agrees: with the paper; None: it cannot be said. `rows` are the numbers that text and pictures are made of."""

    agrees: bool | None
    text: str
    rows: list[dict] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)
    run: str = ""  # the name of the run, or what else was asked; `section` fills it in


@dataclass
class Section:
    """A finding of the paper and what the runs say to it. `rows` become a CSV."""

    label: str
    title: str
    shows: str
    paper: str
    panels: list[Panel] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    rows: list[dict] = field(default_factory=list)

    def add(self, run: Run, verdict: Verdict) -> None:
        """Put what a run says beside what others said: its rows and pictures get its name."""
        verdict.run = run.name
        self.verdicts.append(verdict)
        self.rows += [{"run": run.name} | row for row in verdict.rows]
        for panel in verdict.panels:
            name, caption = f"{run.name}-{panel.name}" if panel.name else run.name, f"{run.name}: {panel.caption}" if panel.caption else ""
            self.panels.append(Panel(panel.draw, name, caption, panel.legend))


def section(
    label: str, title: str, needs: str = "", together: Callable[[Sequence[Run]], tuple[list, list]] | None = None, **numbers
) -> Callable[[Callable[[Run], Verdict]], Callable[[Sequence[Run]], Section]]:
    """Decorator: from a function of one run to a function of many, which returns a Section. The docstring becomes the section's text.

    needs: an attribute of Run without which it is not asked, as in "changes", what the probe found. together: what concerns all runs at
    once, a function of them that returns (rows, panels). numbers: what the docstring has in braces.
    """

    def decorate(ask: Callable[[Run], Verdict]) -> Callable[[Sequence[Run]], Section]:
        shows, paper = (" ".join(part.split()).format(**numbers) for part in ask.__doc__.split("The paper found:"))

        @functools.wraps(ask)
        def ask_all(runs: Sequence[Run]) -> Section:
            out = Section(label, title, shows, paper)
            if together:
                out.rows, out.panels = together(runs)
            for run in runs:
                out.add(run, ask(run) if not needs or getattr(run, needs) else missing(run))
            return out

        return ask_all

    return decorate


def missing(run: Run) -> Verdict:
    """What is said of a run that was not probed."""
    return Verdict(None, NO_PROBE.format(folder=run.folder))


def is_above(low: float, high: float, border: float = 0.0) -> bool | None:
    """Whether an interval is above a border; None if it holds it.

    >>> is_above(0.1, 0.3), is_above(-0.3, -0.1), is_above(-0.1, 0.3)
    (True, False, None)
    """
    return True if low > border else False if high < border else None


def percent(x: float, digits: int = 0) -> str:
    return f"{100 * x:.{digits}f} %"


def sentence(words: Sequence[str]) -> str:
    """Parts joined by semicolons, with a capital letter and a full stop.

    >>> sentence(["rising: 3", "plateau: 4"])
    'Rising: 3; plateau: 4.'
    """
    text = "; ".join(words)
    return text[:1].upper() + text[1:] + "."
