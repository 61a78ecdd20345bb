"""python -m rlvr.analysis.report RUN...: the paper's analysis of one or more runs, as one page, with its pictures and numbers."""

import re
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from rlvr.config import SettingError
from rlvr.run.cli import parse_command, run_program
from rlvr.run.settings import check_can_write
from rlvr.common.files import write_atomically
from rlvr.common.text import say, unique_names
from rlvr.analysis.report import exploration, instance, position, stage
from rlvr.analysis.report.arms import SHIPPED, load_experiment
from rlvr.analysis.report.microscope import microscope_data
from rlvr.analysis.report.page import draw, page, write_csv
from rlvr.analysis.report.run import Run, Section


@dataclass
class ReportConfig:
    """Where entropy buys performance: by stage, completion and token, for finished runs, as one HTML page with its PNG and CSV files.

    python -m rlvr.analysis.report runs/pos-seed0 runs/grpo-seed0  -- two runs beside each other

    python -m rlvr.analysis.probe runs/pos-seed0 runs/grpo-seed0  -- before it: what needs the weights (changes of probability, replacements, pass@k)
    """

    runs: list[str]
    """Run folders."""
    out: str = ""
    """Folder to write; empty: report in the run folder, or runs/report for several runs."""
    experiment: str = ""
    """Folder of an experiment (python -m rlvr.analysis.experiment), for I3 and T3; empty: runs/experiment if it is there, else the shipped one."""


def report(config: ReportConfig) -> Path:
    """Write the page and its files. Returns the path of the page. Raises SettingError."""
    folders = [Path(name) for name in dict.fromkeys(config.runs)]
    if not folders:
        raise SettingError("No run was named. Name one or more, as in: python -m rlvr.analysis.report runs/pos-seed0")
    out = Path(config.out) if config.out else folders[0] / "report" if len(folders) == 1 else Path("runs") / "report"
    check_can_write(out, "--out")
    if config.experiment and load_experiment(Path(config.experiment)) is None:
        raise SettingError(f"There is no experiment in {config.experiment} (no results.csv). First: python -m rlvr.analysis.experiment")
    started = time.perf_counter()
    runs = [Run(folder, name) for folder, name in zip(folders, unique_names(folders))]
    experiment = load_experiment(Path(config.experiment or "runs/experiment")) or load_experiment(SHIPPED)
    out.mkdir(parents=True, exist_ok=True)

    work = [(kind, function, runs) for kind, module in (("stage", stage),) for function in module.SECTIONS]
    work += [("instance", f, runs) for f in instance.RUN_SECTIONS] + [("instance", instance.weights_by_perplexity, experiment)]
    work += [("token", f, runs) for f in position.RUN_SECTIONS] + [("token", position.bonus_by_position, experiment)]
    work += [("exploration", f, runs) for f in exploration.SECTIONS]
    made: dict[str, list[tuple[Section, list[tuple[str, str]]]]] = {kind: [] for kind, *_ in work}
    findings = []
    with tqdm(total=len(work) + 1, desc="report", unit="section") as bar:
        for kind, function, source in work:
            section = function(source)
            svgs = []
            for panel in section.panels:
                name = re.sub(r"[^\w.-]+", "-", f"{section.label}-{panel.name}")
                svgs.append((panel.caption or panel.name, draw(panel, out / f"{name}.png")))
            if section.rows:
                write_csv(out / f"{section.label}.csv", section.rows)
            for v in section.verdicts:
                agrees = {True: "yes", False: "no", None: "open"}[v.agrees]
                findings.append({"label": section.label, "finding": section.title, "run": v.run, "agrees": agrees, "text": v.text})
            made[kind].append((section, svgs))
            bar.update()
        data = [found for found in map(microscope_data, runs) if found["steps"]]
        bar.update()
    write_csv(out / "findings.csv", findings)
    arms = f"I3 and T3 compare arms of an experiment: {experiment.folder}." if experiment else ""
    parts = [
        ("Stage", "When: the rising stage and the plateau.", made["stage"]),
        ("Instance", f"In which completions of the plateau. {arms}", made["instance"]),
        ("Token", "Where in a completion.", made["token"]),
        (
            "Exploration",
            "What training leaves to be explored (Deng et al. 2025b, arXiv 2508.07534). Sampled at the temperature of training.",
            made["exploration"],
        ),
    ]
    path = out / "index.html"
    write_atomically(path, page("Entropy and performance: " + ", ".join(run.name for run in runs), runs, parts, data))
    say(
        f"\n{len(findings)} findings of {len(runs)} run{'s' * (len(runs) > 1)} in {time.perf_counter() - started:.0f} s; open {path} "
        "in a browser"
    )
    return path


if __name__ == "__main__":
    run_program(lambda: report(parse_command(ReportConfig, "python -m rlvr.analysis.report")))
