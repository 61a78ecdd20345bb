"""What a section of the report is made of: verdicts, rows, pictures.

A finding is a function of one run; the decorator `section` asks it of every run.

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
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rlvr.analysis.report.run import Run
from rlvr.common.text import quoted
from rlvr.run.figures import INK, save_figure

NO_PROBE = "Not measured: this needs the weights of the run. First: python -m rlvr.analysis.probe {folder}"
STYLE = Path(__file__).with_name("pictures.mplstyle")


@dataclass
class Panel:
    """One picture: `draw` is given matplotlib axes. What it labels appears in a legend, also what it draws against a second y axis."""

    draw: Callable
    name: str = ""  # of the file, without suffix; of the panels of one run: what comes after the run's name
    caption: str = ""  # empty: the name
    legend: dict = field(default_factory=dict)  # arguments of matplotlib's legend, such as loc
    svg: str = ""  # once it is drawn


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


def empty_section(label: str, title: str, finding: Callable, **numbers) -> Section:
    """A section with the text of a finding: its docstring, up to "The paper found:" and from there on. numbers: what it has in braces."""
    return Section(label, title, *(" ".join(part.split()).format(**numbers) for part in finding.__doc__.split("The paper found:")))


def section(label: str, title: str, needs: str = "", together: Callable[..., tuple[list, list]] | None = None, **numbers) -> Callable:
    """Decorator: from a function of one run to a function of many, which returns a Section. The docstring becomes the section's text.

    needs: an attribute of Run without which it is not asked, as in "changes", what the probe found. together (beside needs): what
    concerns all runs at once, a function of them that returns (rows, panels). numbers: what the docstring has in braces. Like every
    section of the page, it may be given an experiment too, which it does not need.
    """

    def decorate(ask: Callable[[Run], Verdict]) -> Callable[..., Section]:
        @functools.wraps(ask)
        def ask_all(runs: Sequence[Run], experiment=None) -> Section:
            out = empty_section(label, title, ask, **numbers)
            if together and any(getattr(run, needs) for run in runs):
                out.rows, out.panels = together(runs)
            for run in runs:
                verdict = ask(run) if not needs or getattr(run, needs) else Verdict(None, NO_PROBE.format(folder=quoted(run.folder)))
                out.verdicts.append(replace(verdict, run=run.name))
                out.rows += [{"run": run.name} | row for row in verdict.rows]
                for panel in verdict.panels:
                    name = f"{run.name}-{panel.name}" if panel.name else run.name
                    caption = f"{run.name}: {panel.caption}" if panel.caption else ""
                    out.panels.append(replace(panel, name=name, caption=caption))
            return out

        return ask_all

    return decorate


# ---------------------------------------------------------------------------------------------------------------------------------------
# Pictures: matplotlib, once as PNG and once as SVG that takes the colours of the page


def draw(panel: Panel, png: Path) -> str:
    """Draw a panel once, save it as PNG, and return it as SVG whose ink takes the colour of the page's text."""
    import matplotlib.figure

    with matplotlib.rc_context({"svg.hashsalt": png.stem}, STYLE):  # the salt keeps ids of different pictures apart
        figure = matplotlib.figure.Figure(figsize=(4.7, 3.2), layout="constrained")
        panel.draw(figure.subplots())
        if labelled := [pair for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels())]:
            figure.axes[0].legend(*zip(*labelled), **panel.legend)
        for axis in (a for axes in figure.axes for a in (axes.xaxis, axes.yaxis) if a.get_scale() == "log"):
            axis.set_major_formatter(lambda value, _: f"{value:g}")  # the usual one writes mathematics, which STYLE does not read, as
            axis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")  # tokens may hold dollar signs
        save_figure(figure, png, dpi=150, facecolor="white")
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = re.sub(r"^.*?(?=<svg)|<metadata>.*?</metadata>", "", text.getvalue(), flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"| height="[\d.]+pt"', r"\1", svg, count=2)

    def of_the_page(tag: re.Match) -> str:
        return re.sub(f"{INK}|#000000", "currentColor", re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", tag[0]))

    return re.sub(r"<[^>]*>", of_the_page, svg)  # tags alone: what a label says is its own affair


def bars(axis, names: Sequence[str], values: Sequence[float], xlabel: str, **style) -> None:
    """Horizontal bars with their names, the first at the top. Called again for the same names, it draws over the bars that it drew."""
    axis.barh(range(len(names)), values, **style)
    axis.set(xlabel=xlabel, yticks=range(len(names)), yticklabels=names)
    axis.yaxis.set_inverted(True)


# ---------------------------------------------------------------------------------------------------------------------------------------
# Words


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
