"""The page: sections, pictures and the microscope as one HTML file without a network."""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from string import Template

from rlvr.analysis.report.run import Run
from rlvr.analysis.report.section import Section

HERE = Path(__file__).parent
MARKS = {True: ("yes", "✓ agrees"), False: ("no", "✗ differs"), None: ("open", "– open")}


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table from cells that are HTML already."""
    lines = ["".join(f"<th>{head}</th>" for head in heads), *("".join(f"<td>{cell}</td>" for cell in row) for row in rows)]
    return '<div class="scroll"><table>' + "".join(f"<tr>{line}</tr>" for line in lines) + "</table></div>"


def _overview(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        c, s = run.config, run.summary
        names = [k.removesuffix("_start") for k in s if k.startswith("pass_at_") and k.endswith("_start")]
        pairs = [(s[f"{name}_start"], s[f"{name}_end"]) for name in names]
        scores = ["–" if None in (start, end) else f"{start:.3f} → {end:.3f}" for start, end in pairs]
        level = f", level {c.level}" if c.data == "tiny" else ""
        cells = [run.name, c.method, f"{c.model}, {c.data}{level}", str(run.last), str(run.plateau or "not reached"), *scores]
        rows.append(map(html.escape, cells))
    return _table(["run", "method", "model, problems", "steps", "plateau at", *(name.replace("_at_", "@") for name in names)], rows)


def _scoreboard(sections: Sequence[Section]) -> str:
    rows = []
    for section in sections:
        marks = [(*MARKS[v.agrees], html.escape(v.run)) for v in section.verdicts]
        symbols = " ".join(f'<span class="mark {kind}" title="{run}">{mark[0]}</span>' for kind, mark, run in marks)
        rows.append([f'<a href="#{section.label}">{section.label}</a>', html.escape(section.title), symbols])
    return _table(["", "finding", "runs, or arms, in order"], rows)


def _section(section: Section) -> str:
    figures = "".join(f"<figure>{p.svg}<figcaption>{html.escape(p.caption or p.name)}</figcaption></figure>" for p in section.panels)
    verdicts = ""
    for v in section.verdicts:
        kind, mark = MARKS[v.agrees]
        verdicts += f'<li class="{kind}"><span class="mark {kind}">{mark}</span> · <b>{html.escape(v.run)}</b>: {html.escape(v.text)}</li>'
    head = f'<h3 id="{section.label}"><span class="label">{section.label}</span> {html.escape(section.title)}</h3>'
    head += f"<p>{html.escape(section.shows)}</p><p><b>The paper found:</b> {html.escape(section.paper)}</p>"
    return f'{head}<div class="panels">{figures}</div><ul class="verdicts">{verdicts}</ul>'


def _json(data) -> str:
    """JSON that no text in it can end the script element with."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def page(title: str, runs: Sequence[Run], parts: Sequence[tuple[str, str, list[Section]]], data: list[dict]) -> str:
    """The whole page. parts: (heading, introduction, sections whose panels are drawn). data: the microscope's, a dict for each run."""
    body = ""
    for heading, introduction, sections in parts:
        body += f"<h2>{html.escape(heading)}</h2><p>{html.escape(introduction)}</p>" + "".join(map(_section, sections))
    css, js, skeleton = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js", "page.html"))
    scoreboard = _scoreboard([section for _, _, sections in parts for section in sections])
    return Template(skeleton).substitute(
        title=html.escape(title), css=css, js=js, data=_json(data), overview=_overview(runs), scoreboard=scoreboard, sections=body
    )
