"""A program that is forked differs in nothing from one that is started, but in what it has imported already."""

import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")]

CODE = [
    "import sys; print(sys.argv, sys.stdin.read(), __name__, sys.path[0])",
    "import os; print(os.getcwd(), os.environ['MINE'])",
    "import os, time; time.sleep(0.1); print(os.getppid(), os.getpgrp() == os.getsid(0) == os.getpid())",
    "import signal; print([signal.getsignal(number) for number in (1, 2, 15)])",
    "import threading as t; print(t.active_count(), t.current_thread() is t.main_thread(), [n for n in globals() if n[0] != '_'])",
    "import sys; print('said', file=sys.stderr); sys.exit(3)",
    "raise SystemExit('a sentence')",
    "1 / 0",
    # With some of the packages of the longer checks this import alone changes the exit code of a Ctrl-C that nobody catches.
    "import transformers.models.qwen2.modeling_qwen2; raise KeyboardInterrupt",
    "import atexit; atexit.register(print, 'end')",
    "import os; os.kill(os.getpid(), 9)",
    "import subprocess as s, sys; print(s.run([sys.executable, '-u', '-c', 'import os; print(os.getcwd()); os.abort()'], stdout=s.PIPE))",
]


def outcomes(folder) -> list[tuple]:
    """Exit code, what was printed, and the last line of what was said of each."""
    (folder / "mine.py").write_text("import sys; print(sys.argv, sys.path[0], __file__, __name__)")
    (folder / "other").symlink_to(folder)
    commands = [*(["-c", code, "word"] for code in CODE), ["mine.py", "word"], ["-m", "mine", "word"]]
    commands += [["other/mine.py"]]
    how = dict(cwd=folder, env=os.environ | {"MINE": "1"}, input="asked", capture_output=True, text=True, start_new_session=True)
    done = [subprocess.run([sys.executable, *command], **how) for command in commands]
    return [(one.returncode, one.stdout, one.stderr.splitlines()[-1:]) for one in done]


def test_a_fork_is_like_a_program_of_its_own(tmp_path, request):
    started = outcomes(tmp_path)
    (tmp_path / "other").unlink()
    request.getfixturevalue("forked")
    assert outcomes(tmp_path) == started
    asked = [sys.executable, "-c", "import sys; print('torch' in sys.modules, any('rlvr' in n for n in sys.modules))"]
    assert subprocess.run(asked, capture_output=True, text=True).stdout == "True False\n"
    late = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    late.terminate()
    assert late.wait(timeout=20) == -15
