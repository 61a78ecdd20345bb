"""python -m tutorials.assignments.pdf a1 [a2 ...]: the handouts as PDF, to print or to hand out; a1-handout.pdf in the folder you are in.

It needs pandoc, which makes HTML with formulas out of the handout, and Chromium or Chrome, which prints it
(on Debian: apt-get install pandoc chromium).
"""

import sys
from pathlib import Path

if not __package__:  # run by its path, which works from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import shutil
import subprocess
import tempfile

from rlvr.config import refuse
from rlvr.run.cli import run_program

HERE = Path(__file__).parent
STYLE = """<style>
@page { size: A4; margin: 20mm 18mm }
body { font: 10.5pt/1.45 "DejaVu Serif", Georgia, serif; max-width: none; padding: 0; color: black }
h1 { font-size: 17pt } h2 { font-size: 12.5pt; margin-top: 1.4em; break-after: avoid }
code, pre { font: 9pt "DejaVu Sans Mono", monospace } pre { background: #f3f3f3; padding: 6px; white-space: pre-wrap; break-inside: avoid }
table { border-collapse: collapse; margin: 0.8em 0; break-inside: avoid } td, th { border: 1px solid #999; padding: 2px 7px }
math[display=block] { margin: 0.7em 0; break-inside: avoid }
</style>"""


def program(names: list[str], what: str) -> str:
    """The path of the first of these programs that is installed. Raises SettingError."""
    found = next(filter(None, map(shutil.which, names)), None)
    refuse(not found, f"There is no {' or '.join(names)}, which {what}. On Debian: apt-get install pandoc chromium")
    return found


def make_pdf(handout: Path, out: Path) -> None:
    """Write a handout as PDF. Raises SettingError if a program is missing or fails."""
    pandoc = program(["pandoc"], "makes HTML out of a handout")
    chromium = program(["chromium", "google-chrome", "chromium-browser", "chrome"], "prints the HTML")
    with tempfile.TemporaryDirectory() as folder:
        style, page = Path(folder, "style.html"), Path(folder, "page.html")
        style.write_text(STYLE, encoding="utf-8")
        title = handout.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        reads = "markdown_strict+intraword_underscores+pipe_tables+tex_math_dollars+backtick_code_blocks"
        for command in (
            [pandoc, str(handout), "-f", reads, "-t", "html5", "--mathml", "-s", "-H", str(style), "-M", f"pagetitle={title}", "-o",
             str(page)],
            [chromium, "--headless", "--no-sandbox", "--no-pdf-header-footer", f"--user-data-dir={folder}/profile",
             f"--print-to-pdf={out.resolve()}", page.as_uri()],
        ):  # fmt: skip
            done = subprocess.run([*command], capture_output=True, text=True, timeout=120)
            refuse(done.returncode, f"{Path(command[0]).name} could not make {out} ({done.stderr.strip()[-150:]}). Look at {handout}.")


def main(names: list[str]) -> None:
    known = sorted(path.parent.name for path in HERE.glob("a*/handout.md"))
    refuse(not names or set(names) - set(known), f"Name one or more of {', '.join(known)}, as in: python -m tutorials.assignments.pdf a1")
    for name in names:
        make_pdf(HERE / name / "handout.md", Path(f"{name}-handout.pdf"))
        print(f"written to {name}-handout.pdf")


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]))
