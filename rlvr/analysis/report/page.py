"""The page: sections, pictures and the microscope as one HTML file without a network. page.html is its template."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader  # torch depends on it

from rlvr.analysis.report.arms import Experiment
from rlvr.analysis.report.microscope import microscope_data
from rlvr.analysis.report.run import Run
from rlvr.analysis.report.section import CANNOT, NO, OPEN, YES, Section

MARKS = {YES: "✓ agrees", NO: "✗ differs", OPEN: "– open", CANNOT: "∅ cannot be asked here"}


def scores(run: Run) -> dict[str, str]:
    """Name of a held-out pass@k -> its value before and after training."""
    out = {}
    for name in (k.removesuffix("_start") for k in run.summary if k.startswith("pass_at_") and k.endswith("_start")):
        start, end = run.summary[f"{name}_start"], run.summary[f"{name}_end"]
        out[name.replace("_at_", "@")] = "–" if None in (start, end) else f"{start:.3f} → {end:.3f}"
    return out


def page(runs: Sequence[Run], experiment: Experiment | None, sections: Sequence[Section]) -> str:
    """The whole page, from sections whose panels are drawn."""
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    templates.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    data = [found for found in map(microscope_data, runs) if found["steps"]]
    template = templates.get_template("page.html")
    return template.render(runs=runs, experiment=experiment, sections=sections, data=data, marks=MARKS, scores=scores)
