"""The process in which a student's code runs: python -I runner.py HANDED_IN FOLDER CPU_SECONDS [TRUSTED_PATH]. grade.py starts it.

It knows neither the tests nor the answers. It copies what was handed in to FOLDER, imports its `adapter`, then answers questions, each a
line of JSON: a function of the adapter and its arguments, for the value that it returns. stdout is for answers. What the student's code
prints goes to stderr, and a zero byte after each answer ends what belongs to it.

What it sees of the machine is bubblewrap's business (fences.py). Here are only limits, and root becomes a user who owns nothing. With
TRUSTED_PATH (the reference solutions) there is neither, and the path is one to import from.
"""

import base64
import json
import math
import numbers
import os
import pathlib
import shutil
import sys
import threading
import traceback

MEMORY_BYTES = 2 * 2**30  # beyond what Python and torch take
FILE_BYTES = 2**25
PROCESSES, MANY_PROCESSES = 16, 1000  # and threads
USER = 64_999  # stands for nobody: nothing belongs to it, and no other program runs as it
MAX_NUMBERS = 2000  # of one returned value: two of them, combined by broadcasting, must not fill the grader's memory
MAX_DIMENSIONS = 8  # of a tensor
MAX_CHARS = 10**5
MAX_WEIGHTS = 500_000  # of a model that was trained
MAX_DEPTH = 20


def fits(shape) -> bool:
    """Whether a tensor of this shape may travel. A length of 0 counts as 1: a million rows of no columns are a million lists."""
    return len(shape) <= MAX_DIMENSIONS and math.prod(max(1, length) for length in shape) <= MAX_NUMBERS


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
        if not fits(value.shape):
            raise TypeError(f"the returned tensor has the shape {tuple(value.shape[: MAX_DIMENSIONS + 1])}, which is too big")
        value = value.detach().cpu()
        return {"tensor": value.flatten().tolist(), "shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    raise TypeError(f"the returned value is a {kind.__module__}.{kind.__qualname__}; return numbers, texts, lists, dicts or tensors")


def pack_weights(value) -> str:
    """A long row of numbers in five bytes each. Raises TypeError for anything else."""
    import torch

    if not isinstance(value, torch.Tensor) or value.dim() != 1 or value.numel() > MAX_WEIGHTS or value.is_complex():
        raise TypeError(f"the returned value is no row of at most {MAX_WEIGHTS} weights")
    return base64.b64encode(value.detach().cpu().float().contiguous().numpy().tobytes()).decode()


def unpack(value):
    """The reverse of pack. Raises ValueError for JSON that pack does not write."""
    if isinstance(value, list):
        return [unpack(x) for x in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"dict"}:
        return {k if isinstance(k, (str, int, float, bool)) else None: unpack(v) for k, v in value["dict"]}
    try:
        numbers, shape = value["tensor"], value["shape"]
        if not fits(shape) or len(numbers) > MAX_NUMBERS:
            raise ValueError
        if not ({*map(type, numbers)} <= {int, float, bool} and {*map(type, shape)} <= {int}):  # a list has a length that hides its own
            raise ValueError
        import torch

        kind = {name: getattr(torch, name) for name in ("float32", "float64", "int64", "int32", "bool", "float16", "bfloat16")}
        return torch.tensor(numbers, dtype=kind.get(value["dtype"], torch.float64)).view(shape)
    except Exception:
        raise ValueError("not a value") from None


def unpack_weights(text):
    """The reverse of pack_weights: a float32 tensor [n]. Raises ValueError for what it does not write."""
    try:
        if len(text) > MAX_WEIGHTS * 4 * 4 // 3 + 4:
            raise ValueError
        import torch

        return torch.frombuffer(bytearray(base64.b64decode(text, validate=True)), dtype=torch.float32)
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


def leave_root() -> None:
    """As root, become a user who owns nothing, unless that user could not read Python's own files. It cannot be undone."""
    if os.geteuid() != 0:
        return
    folders = [path for path in sys.path if os.path.isdir(path)]
    try:
        os.seteuid(USER)
        readable = all(os.access(path, os.R_OK | os.X_OK, effective_ids=True) for path in folders)
        os.seteuid(0)
        if readable:
            os.setgroups([])
            os.setgid(USER)
            os.setuid(USER)
    except OSError:
        pass  # a container in which root may not do so


def end_with_parent() -> None:
    """Without fences too this process ends with the one that has started it, on Linux."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
    except (ImportError, OSError, AttributeError):
        pass


def set_limits(fenced: bool, cpu_seconds: int) -> None:
    """Of memory, processor time, size of a file, processes and threads."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            taken = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        limits = (("AS", taken + MEMORY_BYTES), ("CPU", cpu_seconds), ("FSIZE", FILE_BYTES), ("CORE", 0))
        # Without fences, what else the user runs is counted too, unless it is the user who owns nothing.
        for what, amount in (*limits, ("NPROC", PROCESSES if fenced or os.getuid() == USER else MANY_PROCESSES)):
            hard = resource.getrlimit(getattr(resource, "RLIMIT_" + what))[1]
            amount = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
            resource.setrlimit(getattr(resource, "RLIMIT_" + what), (amount, amount))
    except (ImportError, OSError, ValueError):  # not Linux: the parent's clock is the limit
        pass


def names_torch(folder: pathlib.Path) -> bool:
    """Whether a file of the submission has the word in it."""
    try:
        return any(b"torch" in path.read_bytes() for path in folder.rglob("*.py"))
    except (OSError, RecursionError):  # what the code itself has made of its folder
        return True


def changed(arguments: list, before: list) -> list[int]:
    """The numbers of the arguments that are no longer what was asked."""
    return [i for i, (now, packed) in enumerate(zip(arguments, before)) if json.dumps(pack(now)) != json.dumps(packed)]


def call(adapter, question: dict, folder: str) -> dict:
    """One question: {"function", "arguments", "named", "gradient_of": number of an argument or None, "weights": is a model returned?}."""
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
        packed = pack_weights(value) if question.get("weights") else pack(value)
        reply = {"value": packed, "changed": changed(positional, question["arguments"])}
        if leaf is not None:
            import torch

            reply["tensor"] = isinstance(value, torch.Tensor)
            if reply["tensor"] and value.requires_grad:
                (gradient,) = torch.autograd.grad(value.sum(), [leaf], allow_unused=True)
                reply["gradient"] = pack(torch.zeros_like(leaf) if gradient is None else gradient)
            else:
                reply["gradient"] = None
        return reply
    except BaseException as error:  # exit() is one
        return {"error": explain(error, folder)}


def main() -> None:
    handed_in, folder, cpu_seconds, trusted = sys.argv[1], os.path.realpath(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    questions, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # what is printed before a crash is not lost

    def say(reply: dict) -> None:
        for end in (sys.stdout.flush, lambda: os.write(2, b"\0")):
            try:
                end()
            except BaseException:  # closed or replaced by the student's code
                pass
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()

    if not trusted and os.name == "posix":
        if os.path.exists("/proc/self/oom_score_adj"):  # where memory runs out, this process ends first
            pathlib.Path("/proc/self/oom_score_adj").write_text("1000")
        leave_root()
        if handed_in == folder:
            end_with_parent()
    if handed_in != folder:
        shutil.copytree(handed_in, folder)
    if trusted or names_torch(pathlib.Path(folder)):  # before the limit of memory is set; without it, a process is there at once
        import torch

        torch.set_num_threads(1)
        pack(torch.tensor(math.pi))  # whatever is imported late is imported now
    say({"started": True})
    try:
        os.chdir(folder)
        sys.path[:0] = [folder, *trusted]
        if not trusted:
            set_limits(handed_in != folder, cpu_seconds)
        import adapter

        say({"ready": True})
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
