"""What a section of the report is made of: verdicts, rows, pictures.

A finding is a function of one run; the decorator `section` asks it of every run.

    @section("S1", "Two stages")
    def two_stages(run: Run) -> Verdict:
        '''What is measured.

        The paper found: what it found.

        A no would be: what would contradict it.
        '''
        return verdict([Estimate("the bend", 0.3, 0.1, 0.5)], "What this run shows.", rows, [Panel(draw)])

    two_stages([run, other])  # -> Section: the verdicts, rows and pictures of both, under the sentences of the docstring
    two_stages.__wrapped__(run)  # -> Verdict: one run alone

A finding is put into numbers that are above 0 if it holds and below 0 if its contrary does. It is answered *yes* if all their intervals lie
above 0, *no* if one lies below it, and left *open* otherwise; or it *cannot be asked here*, for a reason that is given.
"""

import functools
import io
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlvr.analysis.intervals import mean_interval
from rlvr.analysis.report.run import Run, bootstrap
from rlvr.common.text import interval, quoted
from rlvr.run.figures import INK, new_figure, save_figure

YES, NO, OPEN, CANNOT = "yes", "no", "open", "cannot be asked here"
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


class Estimate(NamedTuple):
    """A number that is above 0 if a finding holds and below 0 if its contrary does, with its 95 % interval."""

    says: str  # what it is of, as in "fall of wrong answers over that of right ones"
    value: float
    low: float
    high: float
    form: str | Callable[[float], str] = "+.3f"  # how it is written


def resampled(says: str, statistic: Callable[..., float], *samples: Sequence, form: str | Callable[[float], str] = "+.3f") -> Estimate:
    """An estimate whose interval comes from drawing the items of its samples again."""
    return Estimate(says, statistic(*samples), *bootstrap(statistic, *samples), form)


@dataclass
class Verdict:
    """What one run shows. agrees: YES, NO, OPEN or CANNOT. `rows` are the numbers that text and pictures are made of."""

    agrees: str
    text: str
    rows: list[dict] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)
    run: str = ""  # the name of the run, or what else was asked; `section` fills it in
    estimates: Sequence[Estimate] = ()
    barred: bool = False  # whether a yes would prove nothing, whatever was found


def judge(estimates: Sequence[Estimate]) -> str:
    """no if one is below 0 with its whole interval, yes if all are above it, else open.

    >>> judge([Estimate("a", 2, 1, 3), Estimate("b", 1, -1, 3)]), judge([Estimate("a", 2, 1, 3), Estimate("b", -2, -3, -1)])
    ('open', 'no')
    """
    return NO if any(e.high < 0 for e in estimates) else YES if estimates and all(e.low > 0 for e in estimates) else OPEN


def verdict(estimates: Sequence[Estimate], text: str, rows=(), panels=(), over: str = "problems of this run", cannot: str = "") -> Verdict:
    """The verdict that follows from estimates, which are added to the text. over: what their intervals resample. cannot: why a yes would
    prove nothing; a no stands even so."""
    agrees = judge(estimates)
    if cannot and agrees != NO:
        agrees = CANNOT
    text = " ".join(part for part in (text, _in_words(estimates, f"95 % intervals over {over}"), cannot) if part)
    return Verdict(agrees, text, list(rows), list(panels), estimates=estimates, barred=bool(cannot))


def _in_words(estimates: Sequence[Estimate], intervals: str) -> str:
    words = [f"{e.says} {interval(*e[1:4], e.form)}" for e in estimates]
    return f"{sentence(words)[:-1]} ({intervals})." if words else ""


def over_runs(runs: Sequence[Run], verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Of runs that differ in nothing but their seed: the estimates that all have, each as the mean over runs with Student's interval.

    Which runs take part must not depend on what they found: one is left out if a yes of it would prove nothing, also if it says no. An
    estimate that is the same number in all, as one of the first model alone, says nothing about runs.
    """
    alike: dict[str, list[Verdict]] = defaultdict(list)
    for run, found in zip(runs, verdicts):
        settings = {name: value for name, value in vars(run.config).items() if name not in ("seed", "name", "out", "resume")}
        if found.estimates and not found.barred:
            alike[repr(settings)].append(found)
    out = []
    for group in (group for group in alike.values() if len(group) > 1):
        tables = [{e.says: e for e in found.estimates} for found in group]
        values = {e: [table[e.says].value for table in tables] for e in group[0].estimates if all(e.says in table for table in tables)}
        means = [Estimate(e.says, *mean_interval(v), e.form) for e, v in values.items() if len(set(v)) > 1]
        text = _in_words(means, f"mean of {len(group)} runs, with Student's 95 % interval over runs")
        out.append(Verdict(judge(means), text, run=f"all of {', '.join(found.run for found in group)}"))
    return out


@dataclass
class Section:
    """A finding of the paper and what the runs say to it. `rows` become a CSV."""

    label: str
    title: str
    shows: str
    paper: str
    no: str  # what would contradict it
    panels: list[Panel] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    rows: list[dict] = field(default_factory=list)


def empty_section(label: str, title: str, finding: Callable, **numbers) -> Section:
    """A section with the text of a finding: the three parts of its docstring. numbers: what it has in braces."""
    parts = re.split("The paper found:|A no would be:", finding.__doc__)
    return Section(label, title, *(" ".join(part.split()).format(**numbers) for part in parts))


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
                found = ask(run) if not needs or getattr(run, needs) else Verdict(CANNOT, NO_PROBE.format(folder=quoted(run.folder)))
                out.verdicts.append(replace(found, run=run.name))
                out.rows += [{"run": run.name} | row for row in found.rows]
                for panel in found.panels:
                    name = f"{run.name}-{panel.name}" if panel.name else run.name
                    caption = f"{run.name}: {panel.caption}" if panel.caption else ""
                    out.panels.append(replace(panel, name=name, caption=caption))
            out.verdicts += over_runs(runs, out.verdicts)
            return out

        return ask_all

    return decorate


# ---------------------------------------------------------------------------------------------------------------------------------------
# Pictures: matplotlib, once as PNG and once as SVG that takes the colours of the page


def draw(panel: Panel, png: Path) -> str:
    """Draw a panel once, save it as PNG, and return it as SVG whose ink takes the colour of the page's text."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": png.stem}, STYLE):  # the salt keeps ids of different pictures apart
        figure = new_figure(4.7, 3.2)
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


def percent(x: float, digits: int = 0) -> str:
    """A share of 1 in hundredths. What is not 0 is not called 0.

    >>> percent(0.0), percent(0.0004, 1), percent(0.374)
    ('0 %', 'below 0.1 %', '37 %')
    """
    return f"below {10.0**-digits:g} %" if 0 < 200 * x <= 10.0**-digits else f"{100 * x:.{digits}f} %"


def share_of(share: float, total: int, what: str) -> str:
    """A share in words; of almost nothing, below one in a hundred, the count.

    >>> share_of(0.374, 40_000, "all tokens"), share_of(0.000075, 40_000, "all tokens")
    ('37 % of all tokens', '3 of 40,000 tokens')
    """
    return f"{round(share * total):,} of {total:,} {what.split(maxsplit=1)[1]}" if share < 0.01 else f"{percent(share)} of {what}"


def points(x: float) -> str:
    """A difference of shares, in hundredths of 1."""
    return f"{100 * x:+.1f}"


def factor(x: float) -> str:
    """A difference of logarithms, as the ratio that it is.

    >>> factor(0.0)
    'x1.00'
    """
    return f"x{np.exp(x):.2f}"


def sentence(words: Sequence[str]) -> str:
    """Parts joined by semicolons, with a capital letter and a full stop.

    >>> sentence(["rising: 3", "plateau: 4"])
    'Rising: 3; plateau: 4.'
    """
    text = "; ".join(words)
    return text[:1].upper() + text[1:] + "."
