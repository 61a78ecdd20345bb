"""Programs that tests start, without the seconds in which each of them imports torch and transformers.

Under the fixture `forked`, on Linux, a Python program is a fork of a server, which has imported what others wrote (nothing of rlvr) and has
computed nothing. It has arguments, folder, environment, streams, session and signals of its own; to who starts it, it is a child like any
other. So are the programs that it starts. What is about imports, limits or the first moment of a program does without the fixture.
"""

import ctypes
import gc
import inspect
import os
import pickle
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import types

IMPORTED = ("torch", "transformers.models.qwen2.modeling_qwen2", "transformers.models.auto", "tyro")
# What Python or a package reads when it starts or is imported: a program that differs in one of these has a server of its own.
READ_ONCE = tuple("ATEN CUDA HF_ HOME KMP LANG LC_ LD_ MKL MPL OMP PYTHON TMP TQDM TRANSFORMERS XDG".split())
SUBREAPER = 36  # prctl(2): while it is set, orphans among those below us become our children, and not those of process 1

Popen = subprocess.Popen  # whoever takes its place
servers: dict[tuple, socket.socket] = {}  # by the variables that are read once: the connection to each
one_at_a_time = threading.Lock()


class Forked(Popen):
    """As subprocess.Popen. What cannot be forked is started."""

    def _execute_child(self, *arguments):
        how = inspect.signature(super()._execute_child).bind(*arguments).arguments
        words = [os.fspath(word) for word in how["args"]] if isinstance(how["args"], (list, tuple)) else []
        special = ("preexec_fn", "pass_fds", "shell", "gid", "gids", "uid")
        if words[:1] != [sys.executable] or not is_program(words[1:]) or any(how[name] for name in special) or how["umask"] != -1:
            return super()._execute_child(*arguments)
        environment = dict(os.environ if how["env"] is None else how["env"])
        ask = dict(words=words[1:], folder=os.fspath(how["cwd"] or os.getcwd()), environment=environment, session=how["start_new_session"])
        streams = [pipe if pipe != -1 else own for own, pipe in enumerate((how["p2cread"], how["c2pwrite"], how["errwrite"]))]
        with one_at_a_time:
            connection = servers.get(read_once(environment)) or start(environment)
            prctl = ctypes.CDLL(None).prctl
            prctl(SUBREAPER, 1, 0, 0, 0)
            try:
                socket.send_fds(connection, [pickle.dumps(ask)], streams)
                self.pid = int(connection.recv(20))
            finally:
                prctl(SUBREAPER, 0, 0, 0, 0)
        self._child_created = True
        self._close_pipe_fds(*(how[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")))


if sys.platform != "linux":
    Forked = Popen


def is_program(words: list[str]) -> bool:
    """-m MODULE, -c CODE or a file, perhaps after -u; no other option of Python, and no child.py, which has limits of its own."""
    word = (words[1:] if words[:1] == ["-u"] else words)[:1]
    return word in (["-m"], ["-c"]) or bool(word) and word[0].endswith(".py") and not word[0].endswith("child.py")


def read_once(environment: dict[str, str]) -> tuple:
    return tuple(sorted(item for item in environment.items() if item[0].startswith(READ_ONCE)))


def start(environment: dict[str, str]) -> socket.socket:
    """A server. It ends when the connection does, which is when we end."""
    servers[read_once(environment)], its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        Popen([sys.executable, __file__], stdin=its, stdout=subprocess.DEVNULL, env=environment).returncode = 0  # nobody waits for it
    return servers[read_once(environment)]


def serve() -> tuple[dict, list[int]]:
    """In a server: forks for every program. Returns in the forks, with what is asked of them and their streams."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the programs
    connection = socket.socket(fileno=os.dup(0))
    while True:
        asked, streams, *_ = socket.recv_fds(connection, 2**20, 3)
        if not asked:
            os._exit(0)
        answer, say = os.pipe()
        if os.fork():
            os.wait()
            connection.send(os.read(answer, 20))
        else:  # a process that ends at once: its child is an orphan, and so the child of who asked
            between = os.getpid()
            if os.fork():
                os._exit(0)
            while os.getppid() == between:
                time.sleep(0.001)
            ask = pickle.loads(asked)
            if ask["session"]:  # before anybody can send a signal to our group
                os.setsid()
            os.write(say, str(os.getpid()).encode())
            above, below = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            if os.fork():
                servers[read_once(ask["environment"])] = above
                return ask, [*streams, answer, say]
            above.close()
            connection = below  # a server for the programs that this program starts
        for number in (answer, say, *streams):
            os.close(number)


def become(ask: dict, files: list[int]) -> None:
    """In the fork: what Python does when it starts a program. files: its three streams, and what else is to be closed."""
    for number, stream in enumerate(files[:3]):
        os.dup2(stream, number)
    for number in files:
        os.close(number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(ask["folder"])
    os.environ.clear()
    os.environ.update(ask["environment"])
    kind, *rest = ask["words"]
    if kind == "-u":
        sys.stdout.reconfigure(write_through=True)
        kind, *rest = rest
    sys.argv[:] = [kind, *(rest[1:] if kind in ("-m", "-c") else rest)]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if kind == "-m":
        sys.path[0] = os.getcwd()
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.path[0] = ""
        exec(compile(rest[0], "<string>", "exec"), vars(main))
    else:
        sys.path[0], main.__file__ = os.path.dirname(os.path.realpath(kind)), os.path.abspath(kind)
        with open(kind, "rb") as file:
            exec(compile(file.read(), main.__file__, "exec"), vars(main))


if __name__ == "__main__":
    subprocess.Popen = Forked  # for all that is imported from here on
    for name in IMPORTED:
        __import__(name)
    gc.freeze()  # what ends need not walk through all of this
    become(*serve())
