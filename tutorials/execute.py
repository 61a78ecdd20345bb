"""Run the notebooks from top to bottom and put their new outputs in place: python -m tutorials.execute [NUMBER ...] [--solutions] [--check].

    python -m tutorials.execute                  all of them, one after the other
    python -m tutorials.execute 3 5              two of them
    python -m tutorials.execute 3 --solutions    the solutions to the exercises of chapter 3, instead
    python -m tutorials.execute --check          run, but write nothing

Needs nbclient and ipykernel (they come with: pip install notebook). Prints the seconds of each. Ends with 1 if a cell
of one raises, or one takes over four minutes.
"""

import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
MINUTES = 4  # what a notebook may take on 2 cores


def notebooks(numbers: list[int], solutions: bool = False) -> list[Path]:
    """The notebooks, or those of solutions, with these numbers, or all; in order. Raises SystemExit for a number that there is none of."""
    folder = HERE / "solutions" if solutions else HERE
    found = {int(path.name[:2]): path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    if missing := sorted(set(numbers) - set(found)):
        raise SystemExit(f"There is no notebook {missing[0]}. Choose from {min(found)} to {max(found)}.")
    return [found[n] for n in sorted(numbers or found)]


def execute(path: Path, check: bool) -> float:
    """Run one notebook in a fresh kernel, in its own folder; returns the seconds it took. Raises nbclient's CellExecutionError."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    started = time.perf_counter()
    # Without time stamps, two runs of a notebook differ only in what they print.
    settings = dict(timeout=900, record_timing=False, extra_arguments=["--IPKernelApp.log_level=ERROR"])
    NotebookClient(notebook, resources={"metadata": {"path": str(path.parent)}}, **settings).execute()
    seconds = time.perf_counter() - started
    if not check:
        notebook.metadata["language_info"] = {"name": "python"}
        nbformat.write(notebook, path)
    return seconds


def main(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    check, solutions = "--check" in arguments, "--solutions" in arguments
    numbers = [a for a in arguments if a not in ("--check", "--solutions")]
    if unknown := [a for a in numbers if not a.isdigit()]:
        print(f"{unknown[0]!r} is no number of a notebook. Try: python -m tutorials.execute --help", file=sys.stderr)
        return 2
    paths = notebooks([int(n) for n in numbers], solutions)
    try:
        import ipykernel  # noqa: F401
        from nbclient.exceptions import CellExecutionError
    except ImportError as error:
        print(f"The package {error.name} is not there. Install what notebooks need: pip install notebook", file=sys.stderr)
        return 2
    failed = []
    for path in paths:
        print(f"{path.name:<34}", end="", flush=True)
        try:
            seconds = execute(path, check)
            late = seconds > 60 * MINUTES
            print(f"{seconds:5.0f} s{f'   over {MINUTES} minutes' if late else ''}", flush=True)
            failed += [path.name] * late
        except CellExecutionError as error:
            failed.append(path.name)
            print(f"failed\n{error}", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
