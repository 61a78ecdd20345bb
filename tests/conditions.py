"""Run the tests under the conditions of other machines and print a table:  python tests/conditions.py [word in a name ...] [-option ...]

A test that passes here and fails elsewhere depends on something that it does not mean: rounding, a signal that is ignored, the number of
threads, the locale, the working directory, speed. Options go to pytest, as in `-m slow`; without any, the quick tests run. Exit code 1 if a
test fails under any of the conditions.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass
class Condition:
    env: dict[str, str] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)  # of pytest
    folder: str = "repository"  # name of the copy that is tested
    elsewhere: bool = False  # started in another folder
    signals: bool = False  # started as `nohup ... &` in a script does: some signals are ignored
    busy: int = 0  # programs beside it that keep a core busy, for each core
    user: str = ""
    oldest: bool = False  # with the oldest packages that requirements.txt admits


PLUGIN = ["-p", "other_machine"]
CONDITIONS = {
    "as it is": Condition(),
    "no vector instructions": Condition({"ATEN_CPU_CAPABILITY": "default"}),
    "AVX2": Condition({"ATEN_CPU_CAPABILITY": "avx2"}),
    "MKL with SSE4.2": Condition({"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}),
    "MKL with AVX2": Condition({"MKL_ENABLE_INSTRUCTIONS": "AVX2"}),
    "sums in another order": Condition({"RLVR_ROUNDING": "1"}, PLUGIN),
    "one thread": Condition({"OMP_NUM_THREADS": "1"}),
    "four threads": Condition({"OMP_NUM_THREADS": "4"}),
    "in the background": Condition(signals=True),
    "no vector instructions, in the background": Condition({"ATEN_CPU_CAPABILITY": "default"}, signals=True),
    "a path with spaces": Condition(folder="a path with spaces"),
    "another working directory": Condition(elsewhere=True),
    "plain ASCII": Condition({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    "no home": Condition({"HOME": os.devnull}),
    "an ordinary user": Condition(user="nobody"),
    "another order": Condition({"RLVR_ORDER": str(int(time.time()) % 1000)}, PLUGIN),
    "a busy machine": Condition(busy=2),
    "the oldest packages": Condition(oldest=True),
}


def copy_repository(to: Path) -> None:
    skip = shutil.ignore_patterns("__pycache__", ".pytest_cache")
    for folder in ("rlvr", "tests", "tutorials"):
        shutil.copytree(ROOT / folder, to / folder, ignore=skip)
    for file in (".pytest.ini", "README.md", "train.py", "eval.py"):
        if (ROOT / file).exists():
            shutil.copy(ROOT / file, to / file)


def ignore_signals() -> None:
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)


def oldest_python(folder: Path) -> str:
    """A virtual environment with the lower bounds of requirements.txt, but for torch, which is fetched as it is here."""
    import torch

    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    wanted = [re.sub(r">=([\d.]+).*", r"==\1", line) for line in lines if not line.startswith("torch")]
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", f"torch=={torch.__version__.partition('+')[0]}", *wanted], check=True)
    return python


BUSY = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"


def run(c: Condition, options: list[str]) -> tuple[dict[str, int], float, list[str]]:
    """Counts of passed, failed and so on, seconds, and what is wrong: the tests that failed, with the reason in a line."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, other = Path(temporary) / c.folder, Path(temporary) / "other"
        copy_repository(folder)
        other.mkdir()
        python = oldest_python(other / "venv") if c.oldest else sys.executable
        env, extra, user = os.environ | c.env, [], {}
        if c.arguments == PLUGIN:
            env["PYTHONPATH"] = str(folder / "tests")
        if c.elsewhere:
            extra = ["-c", str(folder / ".pytest.ini"), f"--rootdir={folder}", str(folder / "tests")]
        if c.user:
            import pwd

            user = dict(user=c.user, group=pwd.getpwnam(c.user).pw_gid, extra_groups=[])
            env |= {"HOME": "/nonexistent", "USER": c.user, "LOGNAME": c.user}
            for path in (temporary, folder, *folder.rglob("*")):
                shutil.chown(path, c.user)
        busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(c.busy * (os.cpu_count() or 1))]
        started = time.monotonic()
        try:
            done = subprocess.run(
                [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, *c.arguments, *extra], cwd=other if c.elsewhere else folder,
                env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                preexec_fn=ignore_signals if c.signals else None, **user,
            )  # fmt: skip
        finally:
            for process in busy:
                process.kill()
    summary = next((line for line in reversed(done.stdout.splitlines()) if re.search(r"\d+ (passed|failed|error).* in [\d.]+s", line)), "")
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|errors?|skipped)", summary)}
    failed = re.findall(r"^(?:FAILED|ERROR) (\S.*)$", done.stdout, re.MULTILINE)
    if (done.returncode or not counts.get("passed")) and not failed:
        failed = [done.stdout[-1000:]]
    return counts, time.monotonic() - started, failed


def main(arguments: list[str]) -> int:
    sys.path.insert(0, str(ROOT))
    from rlvr.common.text import table  # not above: mutants.py takes copy_repository from here, and must not have imported rlvr

    first = next((i for i, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    words, options = arguments[:first], arguments[first:]
    chosen = [name for name in CONDITIONS if not words or any(word in name for word in words)]
    if not chosen:
        print(f"There is no such condition. Choose from: {', '.join(CONDITIONS)}.")
        return 2
    rows, bad = [], 0
    for name in chosen:
        if CONDITIONS[name].user and os.geteuid():
            print(f"{name}: left out, because only root can be another user")
            continue
        print(f"{name} {CONDITIONS[name].env or ''} ...", flush=True)
        try:
            counts, seconds, failed = run(CONDITIONS[name], options)
        except (OSError, subprocess.SubprocessError) as error:  # no such user, no network, a Python that another user may not read
            counts, seconds, failed = {}, 0.0, [f"could not be tried: {error}"]
        bad += bool(failed)
        print("".join(f"    {line}\n" for line in failed), end="", flush=True)
        number_failed = counts.get("failed", 0) + counts.get("error", 0) + counts.get("errors", 0)
        rows.append([name, str(counts.get("passed", 0)), str(number_failed), str(counts.get("skipped", 0)), f"{seconds:.0f}"])
    print(table(["condition", "passed", "failed", "skipped", "seconds"], rows))
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
