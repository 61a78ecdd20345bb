"""Write the first cell of code, the same in every notebook: python -m tutorials.first_cell [ADDRESS].

The cell finds the project around the folder in which Python was started: in that folder, above it, or below it. In Colab there is
nothing to be found; then it fetches the project from ADDRESS, any address that `git clone` takes.

    python -m tutorials.first_cell https://example.org/project.git     sets the address in this file and in every notebook
    python -m tutorials.first_cell                                     writes the cell again, after a change of this file
"""

import json
import sys
from pathlib import Path

ADDRESS = ""  # where the project can be fetched; empty: nowhere yet

HERE = Path(__file__).parent
ID = "first-cell"
CELL = '''\
# Every notebook begins with this cell. It goes to the folder of the notebooks, wherever near it
# Python was started. Where the project is missing, as in Colab, it is fetched.
import os, subprocess, sys, warnings
from pathlib import Path

ADDRESS = "{address}"
AROUND = ("", "../", "tutorials/", "../tutorials/", "*/tutorials/")
places = lambda: [p.parent for a in AROUND for p in Path().glob(a + "glossary.md")]
if not places():
    if not ADDRESS:
        raise FileNotFoundError("The project is not here, and ADDRESS is empty. Put the address "
                                "of its git repository there, or start Jupyter in its folder.")
    subprocess.run(["git", "clone", "-q", "--depth", "1", ADDRESS, "rlvr-course"], check=True)
    needed = [sys.executable, "-m", "pip", "install", "-q", "-r", "rlvr-course/requirements.txt"]
    subprocess.run([*needed], check=True)
os.chdir(places()[0])
sys.path.insert(0, "..")  # the repository
os.environ["TQDM_DISABLE"] = "1"  # no progress bars in a notebook
warnings.filterwarnings("ignore", "IProgress")  # a hint of tqdm's that does not matter here'''


def cell(address: str) -> str:
    """The first cell, with this address in it."""
    return CELL.replace("{address}", address)


def write(path: Path, address: str) -> None:
    """Put the cell into the notebook `path`, in the place of the one that it has. Outputs and all other cells stay as they are."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    (found,) = [c for c in notebook["cells"] if c.get("id") == ID]
    found["source"] = cell(address).splitlines(keepends=True)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    if len(arguments) > 1 or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    address = arguments[0] if arguments else ADDRESS
    if any(c in address for c in '"\\\n'):
        print(f"{address!r} is no address. Give one that git clone takes.", file=sys.stderr)
        return 2
    this = HERE / "first_cell.py"
    text = this.read_text(encoding="utf-8")
    this.write_text(text.replace(f'ADDRESS = "{ADDRESS}"  #', f'ADDRESS = "{address}"  #'), encoding="utf-8")
    for path in sorted(HERE.rglob("[0-9][0-9]_*.ipynb")):
        write(path, address)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
