"""The process in which a student's code runs: python -I runner.py FOLDER [TRUSTED_PATH]. grade.py starts it and asks it.

It knows neither the tests nor the answers. It imports the `adapter` of FOLDER, then answers questions, each a line of JSON: a function
of the adapter and its arguments, for the value that it returns. What the student's code prints goes to stderr; stdout is for answers.

The fences: no network, no other programs, reading in FOLDER and in Python's own folders only, writing in FOLDER only, limits of memory,
processor time and file size. An audit hook refuses with a sentence what Python asks for. It is a courtesy: who wants to get around it can,
and compiled code (torch.save, say) does not feel it. What stops those is the kernel (Landlock: files from Linux 5.13 on, TCP from 6.7,
signals from 6.12). With TRUSTED_PATH (the reference solutions) there are no fences, and the path is one to import from.
"""

import ctypes
import json
import math
import numbers
import os
import pathlib
import signal
import sys
import threading
import traceback

MEMORY_BYTES = 2 * 2**30  # beyond what Python and torch take
CPU_SECONDS = 600
FILE_BYTES = 2**25
MAX_NUMBERS = 2000  # of one returned value: two of them, combined by broadcasting, must not fill the grader's memory
MAX_CHARS = 10**5
MAX_DEPTH = 20


def pack(value, depth: int = 0):
    """A returned value as JSON: None, bool, any number, str, list, tuple, dict, tensor, numpy array. Raises TypeError for others."""
    if depth > MAX_DEPTH:
        raise TypeError(f"the returned value has lists inside lists, {MAX_DEPTH} deep")
    kind = type(value)
    if value is None or kind is bool:
        return value
    if isinstance(value, int):
        if value.bit_length() > 4000:
            raise TypeError("the returned integer has more than a thousand digits")
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        if len(value) > MAX_CHARS:
            raise TypeError(f"the returned text has {len(value)} characters")
        return str(value)
    if isinstance(value, (list, tuple)):
        if len(value) > MAX_NUMBERS:
            raise TypeError(f"the returned list has {len(value)} elements")
        return [pack(x, depth + 1) for x in value]
    if isinstance(value, dict):
        return {"dict": [[pack(k, depth + 1), pack(v, depth + 1)] for k, v in value.items()]}
    if type(value).__module__ == "numpy":
        if getattr(value, "ndim", None) == 0:
            return pack(value.item(), depth + 1)
        import torch

        value = torch.as_tensor(value)
    if isinstance(value, numbers.Real) or kind.__name__ == "Decimal":  # a Fraction, say
        return float(value)
    torch = sys.modules.get("torch")  # whoever has a tensor has imported it
    if torch and isinstance(value, torch.Tensor):
        if value.is_complex():
            raise TypeError("the returned tensor is complex; return real numbers")
        if value.numel() > MAX_NUMBERS:
            raise TypeError(f"the returned tensor has {value.numel()} elements")
        value = value.detach().cpu()
        return {"tensor": value.flatten().tolist(), "shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    raise TypeError(f"the returned value is a {kind.__module__}.{kind.__qualname__}; return numbers, texts, lists, dicts or tensors")


def unpack(value):
    """The reverse of pack. Raises ValueError for JSON that pack does not write."""
    if isinstance(value, list):
        return [unpack(x) for x in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"dict"}:
        return {k if isinstance(k, (str, int, float, bool)) else None: unpack(v) for k, v in value["dict"]}
    try:
        if len(value["tensor"]) > MAX_NUMBERS:
            raise ValueError
        import torch

        kind = {name: getattr(torch, name) for name in ("float32", "float64", "int64", "int32", "bool", "float16", "bfloat16")}
        return torch.tensor(value["tensor"], dtype=kind.get(value["dtype"], torch.float64)).reshape(value["shape"])
    except Exception:
        raise ValueError("not a value") from None


def explain(error: BaseException, folder: str) -> dict:
    """What went wrong in the student's code, and where. Nothing of it may fail, whatever the exception is."""
    out = {"type": type(error).__name__[:100], "message": "", "where": "", "bases": []}
    try:
        out["bases"] = [kind.__name__[:100] for kind in type(error).__mro__[:20]]
        out["message"] = str(error)[:400]
        if isinstance(error, ModuleNotFoundError) and str(error.name).split(".")[0] == "rlvr":
            out["message"] += ". A submission may not import rlvr: write it yourself"
        places = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(folder)]
        if isinstance(error, AttributeError) and str(getattr(error.obj, "__file__", None)).startswith(folder):  # one of its own modules
            out |= {"type": "Missing", "message": f"{error.obj.__name__[:50]}.py has no function {str(error.name)[:50]} (renamed?)"}
        if isinstance(error, SyntaxError) and error.filename:
            out["message"] = str(error.msg)[:200] + (f", at: {error.text.strip()[:80]}" if error.text else "")
            out["where"] = f"{os.path.basename(error.filename)}, line {error.lineno}"
        elif places:
            out["where"] = f"{os.path.basename(places[-1].filename)}, line {places[-1].lineno}"
    except BaseException:
        pass
    return out


# Rights over files that Landlock knows, in the order of their bits (linux/landlock.h), and the version that first had them.
FILE_RIGHTS = {
    "execute": 1, "write_file": 1, "read_file": 1, "read_dir": 1, "remove_dir": 1, "remove_file": 1, "make_char": 1, "make_dir": 1,
    "make_reg": 1, "make_sock": 1, "make_fifo": 1, "make_block": 1, "make_sym": 1, "refer": 2, "truncate": 3, "ioctl_dev": 5,
}  # fmt: skip
READ = ("read_file", "read_dir")
WRITE = (*READ, "write_file", "remove_dir", "remove_file", "make_dir", "make_reg", "refer", "truncate")
SYSTEM = (
    "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache", "/etc/localtime", "/proc/self", "/proc/cpuinfo",
    "/proc/meminfo", "/sys/devices/system",
)  # fmt: skip
DEVICES = ("/dev/null", "/dev/urandom", "/dev/zero")
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_ENFORCE = 444, 445, 446  # system calls, the same numbers on every machine


def landlock_version() -> int:
    """Of the kernel's interface, from 1; below 1 where there is none."""
    return ctypes.CDLL(None).syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1) if sys.platform == "linux" else 0


def restrict(folder: str, readable: tuple[str, ...]) -> int:
    """Let the kernel forbid this thread and those it starts all files but these, all programs, TCP, and signals to others (landlock(7)).

    It cannot be undone, and holds for compiled code. Returns the version of Landlock: TCP from 4 on, signals from 6 on; 0: there is none.
    """
    version = landlock_version()
    if version < 1:
        return 0
    libc = ctypes.CDLL(None)
    rights = {name: 1 << bit for bit, (name, since) in enumerate(FILE_RIGHTS.items()) if since <= version}
    tcp, scoped = 3 if version >= 4 else 0, 3 if version >= 6 else 0  # bind and connect; abstract sockets and signals
    attributes = (ctypes.c_uint64 * 3)(sum(rights.values()), tcp, scoped)
    rules = libc.syscall(LANDLOCK_CREATE, attributes, ctypes.c_size_t(8 if version < 4 else 16 if version < 6 else 24), 0)
    if rules < 0:
        return 0
    grants = [(folder, WRITE), *((path, READ) for path in (*readable, *SYSTEM)), *((path, ("read_file", "write_file")) for path in DEVICES)]
    for path, names in grants:
        if not os.path.exists(path):
            continue
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        allowed = sum(rights.get(name, 0) for name in names if os.path.isdir(path) or name in ("read_file", "write_file", "truncate"))
        rule = ctypes.create_string_buffer(allowed.to_bytes(8, sys.byteorder) + opened.to_bytes(4, sys.byteorder), 12)
        libc.syscall(LANDLOCK_ADD, rules, 1, rule, 0)
        os.close(opened)
    done = libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS, which the next call demands
    done = done and libc.syscall(LANDLOCK_ENFORCE, rules, 0) == 0
    os.close(rules)
    return version if done else 0


def leave_network() -> None:
    """Into a namespace without a network, where the system lets us: as root, or as our own user in it. Before any thread is made."""
    if sys.platform == "linux":
        new_network, new_user = 0x40000000, 0x10000000
        try:
            libc = ctypes.CDLL(None)
            if libc.unshare(new_network) != 0:
                libc.unshare(new_user | new_network)
        except (OSError, AttributeError):
            pass


def build_fences(folder: str) -> int:
    """No network, no other programs, no files outside. Returns the version of Landlock that holds, 0 for none."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            taken = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        limits = (("AS", taken + MEMORY_BYTES), ("CPU", CPU_SECONDS), ("FSIZE", FILE_BYTES), ("CORE", 0))
        for what, amount in limits:
            resource.setrlimit(getattr(resource, "RLIMIT_" + what), (amount, amount))
    except (ImportError, OSError, ValueError):  # not Linux: the parent's clock is the limit
        pass
    for module in (os, sys.modules.get("posix"), signal, sys.modules.get("_signal")):  # they raise no audit event
        for name in ("pidfd_open", "pidfd_send_signal"):
            vars(module).pop(name, None) if module else None

    # Names of its own for all that the hook uses: the student's code may give len another meaning.
    real, kind, length, whole, string, octets, refusal = os.path.realpath, type, len, int, str, bytes, PermissionError
    path_types = (type(pathlib.Path("x")), type(pathlib.PurePath("x")))
    write_flags = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    mine = real(folder)
    readable = tuple({real(p) for p in (folder, sys.prefix, sys.base_prefix, sys.exec_prefix, *filter(os.path.isabs, sys.path))})
    devices = (*DEVICES, "/proc/cpuinfo", "/proc/self/statm", "/proc/self/status", "/proc/meminfo")
    separator = os.sep
    writes = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate", "os.chmod", "os.chown", "os.utime")
    forbidden = (
        "subprocess.", "sqlite3.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile", "os.kill", "os.symlink",
        "pty.", "socket.", "urllib.", "http.", "ftplib.", "smtplib.", "ctypes.", "gc.get", "signal.pthread_kill", "resource.setrlimit",
        "resource.prlimit",
    )  # fmt: skip

    def inside(path, folders) -> bool:
        if kind(path) is octets:
            path = path.decode("utf-8", "replace")
        elif kind(path) in path_types:
            path = string(path)
        if kind(path) is not string:
            return False
        path = real(path)
        for folder in folders:
            if path == folder or path[: length(folder) + 1] == folder + separator:
                return True
        return False

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            path, mode, flags = arguments
            if kind(path) is whole:
                return
            writing = kind(flags) is not whole or flags & write_flags != 0
            if inside(path, (mine,)) or path in devices or not writing and inside(path, readable):
                return
            raise refusal(f"your code may not {'write' if writing else 'read'} files outside its own folder")
        if event == "os.listdir" or event == "os.scandir":
            if not (arguments[0] is None or kind(arguments[0]) is whole or inside(arguments[0] or ".", readable)):
                raise refusal("your code may not read folders outside its own")
        for name in writes:
            if event == name:
                for path in arguments[: 2 if name in ("os.rename", "os.link") else 1]:
                    if not inside(path, (mine,)):
                        raise refusal("your code may not change files outside its own folder")
        for name in forbidden:
            if event[: length(name)] == name:
                raise refusal(f"your code may not use the network, other programs or this process from outside ({event})")

    landlock = restrict(mine, readable)
    sys.addaudithook(hook)  # last: it would refuse ctypes above. It cannot be removed again (PEP 578)
    return landlock


def names_torch(folder: pathlib.Path) -> bool:
    """Whether a file of the submission has the word in it."""
    try:
        return any(b"torch" in path.read_bytes() for path in folder.rglob("*.py"))
    except (OSError, RecursionError):  # what the code itself has made of its folder
        return True


def call(adapter, question: dict, folder: str) -> dict:
    """One question: {"function", "arguments", "named", "gradient_of": number of an argument or None}."""
    try:
        function = getattr(adapter, question["function"], None)
        if function is None:
            return {"error": {"type": "Missing", "message": f"the adapter has no function {question['function']}", "where": ""}}
        positional = [unpack(x) for x in question["arguments"]]
        named = {name: unpack(x) for name, x in question["named"].items()}
        leaf = None
        if (wanted := question["gradient_of"]) is not None:
            leaf = positional[wanted].requires_grad_()
        value = function(*positional, **named)
        reply = {"value": pack(value)}
        if leaf is not None:
            import torch

            if isinstance(value, torch.Tensor) and value.requires_grad:
                (gradient,) = torch.autograd.grad(value.sum(), [leaf], allow_unused=True)
                reply["gradient"] = pack(torch.zeros_like(leaf) if gradient is None else gradient)
            else:
                reply["gradient"] = None
        return reply
    except BaseException as error:  # exit() is one
        return {"error": explain(error, folder)}


def main() -> None:
    folder, trusted = os.path.realpath(sys.argv[1]), sys.argv[2:]
    questions, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)

    def say(reply: dict) -> None:
        try:
            sys.stdout.flush()
        except BaseException:
            pass
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()

    if not trusted:
        leave_network()
    if trusted or names_torch(pathlib.Path(folder)):  # before the limit of memory is set; without it, a process is there at once
        import torch

        torch.set_num_threads(1)
        pack(torch.tensor(math.pi))  # whatever is imported late is imported now
    say({"started": True})
    try:
        os.chdir(folder)
        sys.path[:0] = [folder, *trusted]
        landlock = None if trusted else build_fences(folder)
        import adapter

        say({"ready": True, "landlock": landlock})
    except BaseException as error:
        say({"error": explain(error, folder)})
        os._exit(0)
    for line in questions:
        question = json.loads(line)
        say({"id": question["id"]} | call(adapter, question, folder))
    os._exit(0)  # no student's thread or atexit function keeps us


if __name__ == "__main__":
    threading.stack_size(2**24)
    main()
