"""What a student's process sees of this machine: Python and its packages, read-only, and a small folder of its own. By bubblewrap (bwrap(1)).

It has no network, sees no other process, and ends with the grader. This repository, with the tests and the reference, is not there.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUNNER, HANDED_IN, HOME = "/runner.py", "/handed-in", "/student"  # paths inside: all that can be written is HOME
WORK = HOME + "/submission"  # the runner copies there what was handed in
HOME_BYTES = 2**27  # in memory; the kernel limits the number of files there too
SYSTEM = (
    "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/nix/store", "/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime", "/usr/share/zoneinfo",
    "/sys/devices/system/cpu",
)  # fmt: skip
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


def environment(folder: str) -> dict[str, str]:
    """All variables of a student's process. Those of the grader may hold secrets."""
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH", "LANG", "LC_ALL") if name in os.environ}
    return kept | {"HOME": folder, "TMPDIR": folder, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


@functools.cache
def _visible() -> tuple[set[str], set[str]]:
    """What Python needs, and folders to be hidden although they are inside of that."""
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    needed = {os.path.join(prefix, name) for prefix in prefixes for name in ("lib", "lib64", "pyvenv.cfg")}
    # The path as Python itself makes it: ours holds this repository too, and perhaps a folder of hidden checks.
    path = "import json, sys; print(json.dumps(sys.path))"
    packages = json.loads(subprocess.run([sys.executable, "-I", "-c", path], capture_output=True, text=True, check=True).stdout)
    packages = {path for path in packages if not _inside(os.path.realpath(path), str(ROOT))}  # a virtual environment in here is in `needed`
    libraries = {path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if os.path.isabs(path)}
    needed = {path for path in needed | packages | libraries | {*SYSTEM} if os.path.exists(path)}
    needed |= {os.path.realpath(path) for path in needed} - {str(ROOT)} | {os.path.realpath(sys.executable)}
    installed = {os.path.join(path, name) for path in packages for name in ("rlvr", "tutorials")}
    hidden = {path for path in installed if os.path.isdir(path)} | {str(ROOT)}
    within = {path for path in needed if any(_inside(path, other) for other in needed - {path})}
    return needed - {path for path in within if not any(_inside(path, other) for other in hidden)}, hidden


@functools.cache
def _no_further_users() -> list[str]:
    """Inside, no new user namespace, in which the code could mount a bigger folder in memory. bwrap 0.8 and newer can forbid it."""
    flag = "--disable-userns"
    return [flag] if flag in subprocess.run(["bwrap", "--help"], capture_output=True, text=True).stdout else []


def command(folder: Path) -> list[str]:
    """The beginning of a command line that starts a program inside. folder: what was handed in. As root it may change its user, once."""
    bwrap = ["bwrap", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    bwrap += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if os.geteuid() == 0 else ["--unshare-user", *_no_further_users()]
    bwrap += ["--new-session", "--die-with-parent", "--proc", "/proc"]
    needed, hidden = _visible()
    made: set[str] = set()

    def parents(path: str) -> list[str]:  # bwrap makes them by itself, but for its own user alone
        new = [str(parent) for parent in reversed(Path(path).parents[:-1]) if str(parent) not in made]
        made.update(new)
        return [word for parent in new for word in ("--dir", parent)]

    for path in sorted(needed | hidden):  # a folder comes before what is inside of it
        bwrap += parents(path) + (["--tmpfs", path] if path in hidden else ["--ro-bind", path, path])
    if not any(_inside(sys.executable, path) for path in needed):
        bwrap += [*parents(sys.executable), "--symlink", os.path.realpath(sys.executable), sys.executable]
    for path in DEVICES:
        bwrap += [*parents(path), "--dev-bind", path, path]
    bwrap += ["--ro-bind", str(Path(__file__).with_name("runner.py")), RUNNER, "--ro-bind", str(folder), HANDED_IN]
    bwrap += ["--perms", "0777", "--size", str(HOME_BYTES), "--tmpfs", HOME, "--chdir", HOME]
    for path in ("/", *sorted(hidden)):  # last: the folders above had to be made
        bwrap += ["--remount-ro", path]
    return [*bwrap, "--"]


@functools.cache
def why_not() -> str | None:
    """Why a process cannot be fenced in here, as the middle of a sentence; None if it can."""
    if sys.platform != "linux":
        return "bubblewrap exists for Linux alone"
    if not shutil.which("bwrap"):
        return "bubblewrap is not installed (apt-get install bubblewrap)"
    tried = subprocess.run([*command(ROOT), sys.executable, "-I", "-c", ""], env=environment(HOME), capture_output=True, text=True)
    why = (tried.stderr.strip() or "it says nothing").splitlines()[-1]
    return None if tried.returncode == 0 else f"bubblewrap does not work here ({why})"
