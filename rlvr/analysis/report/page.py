"""The page: sections, pictures and the microscope as one HTML file without a network."""

import csv
import html
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from string import Template

from rlvr.run.figures import INK
from rlvr.analysis.report.run import Panel, Run, Section

HERE = Path(__file__).parent
STYLE = {
    "font.size": 9, "axes.titlesize": 9, "legend.fontsize": 7.5, "legend.frameon": False, "axes.spines.top": False, "axes.grid": True,
    "grid.color": "#888888", "grid.alpha": 0.25, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": "#888888", "xtick.color": INK,
    "ytick.color": INK, "svg.fonttype": "none", "axes.axisbelow": True,
    "text.parse_math": False, "figure.facecolor": "none", "axes.facecolor": "none",
}  # fmt: skip
MARKS = {True: ("yes", "✓ agrees"), False: ("no", "✗ differs"), None: ("open", "– open")}


def draw(panel: Panel, png: Path) -> str:
    """Draw a panel once, save it as PNG, and return it as SVG whose ink takes the colour of the page's text."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE | {"svg.hashsalt": png.stem}):  # the salt keeps ids of different pictures apart
        figure = Figure(figsize=(4.7, 3.2), layout="constrained")
        panel.draw(figure.subplots())
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


def write_csv(path: Path, rows: Sequence[dict]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def _overview(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        c, s = run.config, run.summary
        names = [k for k in s if k.startswith("pass_at_") and k.endswith("_start")]
        scores = [
            f"{s[k]:.3f} → {s[k.replace('_start', '_end')]:.3f}" if s[k] is not None and s[k.replace("_start", "_end")] is not None else "–"
            for k in names
        ]
        level = f", level {c.level}" if c.data == "tiny" else ""
        cells = [run.name, c.method, f"{c.model}, {c.data}{level}", str(run.last), str(run.plateau or "not reached"), *scores]
        rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    heads = ["run", "method", "model, problems", "steps", "plateau at", *(k.removesuffix("_start").replace("_at_", "@") for k in names)]
    return f'<div class="scroll"><table><tr>{"".join(f"<th>{h}</th>" for h in heads)}</tr>{"".join(rows)}</table></div>'


def _scoreboard(sections: Sequence[Section]) -> str:
    lines = []
    for section in sections:
        marks = " ".join(
            f'<span class="mark {MARKS[v.agrees][0]}" title="{html.escape(v.run)}">{MARKS[v.agrees][1][0]}</span>' for v in section.verdicts
        )
        lines.append(
            f'<tr><td><a href="#{section.label}">{section.label}</a></td><td>{html.escape(section.title)}</td><td>{marks}</td></tr>'
        )
    return f'<div class="scroll"><table><tr><th></th><th>finding</th><th>runs, or arms, in order</th></tr>{"".join(lines)}</table></div>'


def _section(section: Section, svgs: list[tuple[str, str]]) -> str:
    figures = "".join(f"<figure>{svg}<figcaption>{html.escape(name)}</figcaption></figure>" for name, svg in svgs)
    verdicts = ""
    for v in section.verdicts:
        kind, mark = MARKS[v.agrees]
        said = f"<b>{html.escape(v.run)}</b>: {html.escape(v.text)}"
        verdicts += f'<li class="{kind}"><span class="mark {kind}">{mark}</span> · {said}</li>'
    return (
        f'<h3 id="{section.label}"><span class="label">{section.label}</span> {html.escape(section.title)}</h3>'
        f"<p>{html.escape(section.shows)}</p><p><b>The paper found:</b> {html.escape(section.paper)}</p>"
        f'<div class="panels">{figures}</div><ul class="verdicts">{verdicts}</ul>'
    )


def _json(data) -> str:
    """JSON that no text in it can end the script element with."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def page(
    title: str, runs: Sequence[Run], parts: Sequence[tuple[str, str, list[tuple[Section, list[tuple[str, str]]]]]], data: list[dict]
) -> str:
    """The whole page. parts: (heading, introduction, [(section, its pictures as (caption, SVG))])."""
    body = "".join(
        f"<h2>{html.escape(heading)}</h2><p>{html.escape(intro)}</p>" + "".join(_section(s, svgs) for s, svgs in found)
        for heading, intro, found in parts
    )
    sections = [s for _, _, found in parts for s, _ in found]
    css, js, skeleton = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js", "page.html"))
    return Template(skeleton).substitute(
        title=html.escape(title),
        css=css,
        js=js,
        data=_json(data),
        overview=_overview(runs),
        scoreboard=_scoreboard(sections),
        sections=body,
    )
