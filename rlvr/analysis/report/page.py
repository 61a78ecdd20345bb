"""The page: sections, pictures and the microscope as one HTML file without a network. page.html is its template."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader  # torch depends on it

from rlvr.analysis.report.run import Run
from rlvr.analysis.report.section import Section

MARKS = {True: ("yes", "✓ agrees"), False: ("no", "✗ differs"), None: ("open", "– open")}


def scores(run: Run) -> dict[str, str]:
    """Name of a held-out pass@k -> its value before and after training."""
    out = {}
    for name in (k.removesuffix("_start") for k in run.summary if k.startswith("pass_at_") and k.endswith("_start")):
        start, end = run.summary[f"{name}_start"], run.summary[f"{name}_end"]
        out[name.replace("_at_", "@")] = "–" if None in (start, end) else f"{start:.3f} → {end:.3f}"
    return out


def page(title: str, runs: Sequence[Run], parts: Sequence[tuple[str, str, list[Section]]], data: list[dict]) -> str:
    """The whole page. parts: (heading, introduction, sections whose panels are drawn). data: the microscope's, a dict for each run."""
    here = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    here.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    return here.get_template("page.html").render(title=title, runs=runs, parts=parts, data=data, marks=MARKS, scores=scores)
