"""Problems made by reasoning-gym: over a hundred families of tasks, offline, from a seed, each with a scoring function of its own.

The library works in a child process (gym_child.py), because some of its scoring functions evaluate what the model wrote.
"""

import ast
import atexit
import difflib
import json
import os
import sys
import threading

from tqdm import tqdm

from rlvr.common.child import Child
from rlvr.common.text import one_line
from rlvr.config import GYM, SettingError, need, refuse
from rlvr.loaders import gym_child
from rlvr.reward import last_boxed
from rlvr.verifier import MAX_CHARS

HELD_OUT = 400  # problems of a family that are held out
TRAINING = 1000  # problems of a family to train on, unless --data-config has another size
START_SECONDS = 120.0  # wall clock for the child to import the library, which takes two seconds on an idle machine
ANSWER_SECONDS = 10.0  # for one answer; then the child is killed, and the answer is wrong
MOST_KILLED = 12  # in a batch; what is left after so many is not scored


def is_gym(data: str) -> bool:
    """Whether a name is that of a family of reasoning-gym."""
    return data.startswith(GYM)


def read_gym(data: str, split: str, settings: tuple[str, ...] = (), seed: int = 0, others_too: bool = False) -> list[dict]:
    """Problems of a family, each once: rows with question, answer and metadata, and the `place` from which they can be made again.

    split: "test" are always the same HELD_OUT ones; "train" come from other seeds, without those. others_too: settings that this family
    does not have are passed over. Raises SettingError.
    """
    need("reasoning-gym", f"--data {data}")
    family, wanted = data.removeprefix(GYM), parse_settings(settings)
    known = child.ask("families")
    if family not in known:
        near = " or ".join(GYM + name for name in difflib.get_close_matches(family, known, n=2, cutoff=0.4))
        remedy = f"Did you mean {near}?" if near else f"Choose one of its {len(known)}, such as {GYM}leg_counting."
        raise SettingError(f"reasoning-gym has no family {family!r}. {remedy} See tutorials/reasoning_gym.md.")
    size, has = wanted.pop("size", TRAINING), child.ask("settings_of", family=family)
    possible = isinstance(size, int) and 1 <= size <= 10**6
    refuse(not possible, f"--data-config size={size} is no number of problems. Choose a whole number from 1 to 1000000.")
    if others_too:
        wanted = {name: value for name, value in wanted.items() if name in has}
    for name in wanted:
        refuse(name not in has, f"{data} has no setting {name!r}. Choose among: size, {', '.join(has)}.")
    # A problem depends on the sum of seed and index, so the seeds of two runs, and of the two splits, are far apart.
    place = dict(family=family, settings=json.dumps(wanted), seed=2**31, size=HELD_OUT)
    rows = _problems(data, place)
    if split == "test":
        return list(rows.values())
    found = _problems(data, place | dict(seed=seed % 2000 * 10**6, size=size))
    new = [row for question, row in found.items() if question not in rows]
    refuse(not new, f"{data} has too few different problems: none is left to train on. Choose other settings with --data-config.")
    return new


def parse_settings(settings: tuple[str, ...]) -> dict:
    """key=value -> {key: value}: a number, a list, true or false where it reads as one, else text. Raises SettingError."""
    found = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.isidentifier() or name == "seed" or name in found:
            remedy = "Leave it out: --seed seeds the problems" if name == "seed" else "Write each key=value once, as in max_terms=3"
            raise SettingError(f"--data-config {setting[:40]!r} is no setting of a family. {remedy}.")
        try:
            found[name] = ast.literal_eval({"true": "True", "false": "False"}.get(text.lower(), text))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            found[name] = text
    return found


def _problems(data: str, place: dict) -> dict[str, dict]:
    """The problems of a data set of the library, by question."""
    rows: dict[str, dict] = {}
    for index in tqdm(range(place["size"]), desc=f"making {data}", unit="problem", leave=False, delay=2):
        here = place | {"index": index}
        row = child.ask("problem", **here)
        rows.setdefault(row["question"].strip(), row | {"place": here})
    return rows


def reasoning_gym(completions: list[str], answers: list[str], rows: list[dict]) -> list[float | None]:
    """A reward function: what the family says of the content of the last box, 1 if it is right. Parts of a point are made negative (less
    1), so that they order wrong answers. None, not scored, for those after MOST_KILLED hostile ones."""
    most, known = child.killed + MOST_KILLED, {}
    keys = [(json.dumps(row["place"]), (last_boxed(completion) or "").strip()) for completion, row in zip(completions, rows, strict=True)]
    for key, row in zip(keys, rows):
        if key not in known and child.killed < most:
            known[key] = child.score(key[1], row["place"]) if key[1] else 0.0
    points = [known.get(key) for key in keys]
    return [p if p is None or p >= 1 else p - 1 for p in points]


class Library(Child):
    """The child that the library runs in. Several threads may ask it: one question goes out at a time, as a line of JSON."""

    def __init__(self):
        super().__init__(gym_child.__file__, **{"PYTHONHASHSEED": "0"})
        self.lock = threading.Lock()
        self.killed = 0  # answers that took too long, or ended the process

    def ask(self, do: str, **question):
        """What the library gives. Raises SettingError for what it raises."""
        reply = self._reply_to(question | {"do": do})
        if reply is None or "error" in reply:
            said = one_line(reply["error"]) if reply else "its process died"
            raise SettingError(f"reasoning-gym cannot make these problems ({said}). Choose other settings with --data-config.")
        return reply["is"]

    def score(self, answer: str, place: dict) -> float:
        """The points for an answer: 0 for one that is too long, takes too long or breaks something."""
        if len(answer) > MAX_CHARS:
            return 0.0
        reply = self._reply_to(place | {"do": "score", "answer": answer}, ANSWER_SECONDS)
        self.killed += reply is None
        points = (reply or {}).get("is")
        return points if isinstance(points, float) and 0 <= points <= 1 else 0.0

    def _reply_to(self, question: dict, seconds: float | None = None) -> dict | None:
        """None if the child died or took too long, and is stopped."""
        with self.lock:
            if not self.alive():
                self.start()
            return self._line(question, seconds)

    def _line(self, question: dict, seconds: float | None) -> dict | None:
        try:
            return json.loads(self.answer(json.dumps(question) + "\n", seconds))
        except (TimeoutError, EOFError):
            return None
        except ValueError:  # no line of JSON: what it says next cannot be trusted
            self.stop()

    def start(self) -> None:
        super().start()
        if self._line({}, START_SECONDS) is None:
            raise SettingError(f"The package reasoning-gym cannot be used. To see why, run: {sys.executable} -c 'import reasoning_gym'")


child = Library()
atexit.register(child.stop)
if hasattr(os, "register_at_fork"):  # a fork must not share the pipes: the two would read each other's answers
    os.register_at_fork(after_in_child=child.__init__)
