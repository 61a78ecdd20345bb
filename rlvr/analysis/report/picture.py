"""Pictures of the report: matplotlib, once as PNG and once as SVG that takes the colours of the page."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlvr.run.figures import INK

STYLE = {
    "font.size": 9, "axes.titlesize": 9, "legend.fontsize": 7.5, "legend.frameon": False, "axes.spines.top": False, "axes.grid": True,
    "grid.color": "#888888", "grid.alpha": 0.25, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": "#888888", "xtick.color": INK,
    "ytick.color": INK, "svg.fonttype": "none", "axes.axisbelow": True,
    "text.parse_math": False, "figure.facecolor": "none", "axes.facecolor": "none",
}  # fmt: skip


@dataclass
class Panel:
    """One picture: `draw` is given matplotlib axes. What it labels appears in a legend, also what it draws against a second y axis."""

    draw: Callable
    name: str = ""  # of the file, without suffix; of the panels of one run: what comes after the run's name
    caption: str = ""  # empty: the name
    legend: dict = field(default_factory=dict)  # arguments of matplotlib's legend, such as loc
    svg: str = ""  # once it is drawn


def draw(panel: Panel, png: Path) -> str:
    """Draw a panel once, save it as PNG, and return it as SVG whose ink takes the colour of the page's text."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE | {"svg.hashsalt": png.stem}):  # the salt keeps ids of different pictures apart
        figure = Figure(figsize=(4.7, 3.2), layout="constrained")
        panel.draw(figure.subplots())
        labelled = [pair for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels())]
        if labelled:
            figure.axes[0].legend(*zip(*labelled), **panel.legend)
        for axis in (a for axes in figure.axes for a in (axes.xaxis, axes.yaxis) if a.get_scale() == "log"):
            axis.set_major_formatter(lambda value, _: f"{value:g}")  # the usual one writes mathematics, which STYLE does not read, as
            axis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")  # tokens may hold dollar signs
        figure.savefig(png, dpi=150, facecolor="white")
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = re.sub(r"^.*?(?=<svg)", "", text.getvalue(), count=1, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"| height="[\d.]+pt"', r"\1", svg, count=2)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    return re.sub(f"{INK}|#000000", "currentColor", svg)


def bars(axis, names: Sequence[str], values: Sequence[float], xlabel: str, **style) -> None:
    """Horizontal bars with their names, the first at the top. Called again for the same names, it draws over the bars that it drew."""
    axis.barh(range(len(names)), values, **style)
    axis.set_yticks(range(len(names)), names)
    axis.yaxis.set_inverted(True)
    axis.set(xlabel=xlabel)
