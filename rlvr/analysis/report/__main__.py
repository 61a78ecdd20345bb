"""python -m rlvr.analysis.report RUN...: the paper's analysis of one or more runs, as one page, with its pictures and numbers."""

import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run by its path, which works from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from rlvr.analysis.report import changes, exploration, instance, position, stage
from rlvr.analysis.report.arms import SHIPPED, load_experiment
from rlvr.analysis.report.page import page
from rlvr.analysis.report.run import Run
from rlvr.analysis.report.section import Section, draw
from rlvr.common.files import write_atomically
from rlvr.common.text import csv_text, one_line, progress_bar, say, unique_names
from rlvr.config import SettingError, refuse
from rlvr.run.cli import parse_command, run_program
from rlvr.run.settings import check_can_write

SECTIONS = stage.SECTIONS + changes.SECTIONS + instance.SECTIONS + position.SECTIONS + exploration.SECTIONS


@dataclass
class ReportConfig:
    """Where entropy buys performance: by stage, completion and token, for finished runs, as one HTML page with its PNG and CSV files.

    python -m rlvr.analysis.report runs/pos-seed0 runs/grpo-seed0  -- two runs beside each other

    python -m rlvr.analysis.probe runs/pos-seed0 runs/grpo-seed0  -- before it: what needs the weights (changed tokens, pass@k, ...)
    """

    runs: list[str]
    """Run folders."""
    out: str = ""
    """Folder to write; empty: report in the run folder, or runs/report for several runs."""
    experiment: str = ""
    """Folder of an experiment (python -m rlvr.analysis.experiment), for I3 and T3; empty: runs/experiment, or else the shipped one."""


def report(config: ReportConfig) -> Path:
    """Write the page and its files. Returns the path of the page. Raises SettingError."""
    folders = [Path(name) for name in dict.fromkeys(config.runs)]
    refuse(not folders, "No run was named. Name one or more, as in: python -m rlvr.analysis.report runs/pos-seed0")
    out = Path(config.out) if config.out else folders[0] / "report" if len(folders) == 1 else Path("runs") / "report"
    refuse(not config.out and out.is_symlink(), f"{out} is a link, so the report would go elsewhere. Say with --out where it shall go.")
    check_can_write(out, "--out")
    started, path = time.perf_counter(), out / "index.html"
    try:
        if config.experiment and load_experiment(Path(config.experiment)) is None:
            raise SettingError(f"There is no experiment in {config.experiment} (no results.csv). First: python -m rlvr.analysis.experiment")
        runs = [Run(folder, name) for folder, name in zip(folders, unique_names(folders))]
        experiment = load_experiment(Path(config.experiment or "runs/experiment")) or load_experiment(SHIPPED)
        out.mkdir(parents=True, exist_ok=True)
        sections = [write_section(ask(runs, experiment), out) for ask in progress_bar(SECTIONS, "report", unit="section")]
        columns = ("label", "finding", "run", "agrees", "text")
        findings = [dict(zip(columns, (s.label, s.title, v.run, v.agrees, v.text))) for s in sections for v in s.verdicts]
        write_atomically(out / "findings.csv", csv_text(findings))
        write_atomically(path, page(runs, experiment, sections))
    except SettingError:
        raise
    except Exception as error:  # a run folder may come from somebody else: anything may stand in its files
        cause = f"{type(error).__name__}: {one_line(error)}"
        remedy = "Put back the files that run and probe wrote, or make room on the disk"
        raise SettingError(f"There can be no report of {', '.join(map(str, folders))} ({cause}). {remedy}.") from error
    seconds = time.perf_counter() - started
    say(f"\n{len(findings)} findings of {len(runs)} run{'s' * (len(runs) > 1)} in {seconds:.0f} s; open {path} in a browser")
    return path


def write_section(section: Section, out: Path) -> Section:
    """Draw the pictures of a section, as files and for the page, and write its numbers. Returns the section."""
    for panel in section.panels:
        name = re.sub(r"[^\w.-]+", "-", f"{section.label}-{panel.name}")
        panel.svg = draw(panel, out / f"{name}.png")
    if section.rows:
        write_atomically(out / f"{section.label}.csv", csv_text(section.rows))
    return section


if __name__ == "__main__":
    run_program(lambda: report(parse_command(ReportConfig, "python -m rlvr.analysis.report")))
