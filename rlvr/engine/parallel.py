"""Several processes share the work of a run: the first leads, the others follow.

The lead does all that a run of one process does: it draws the random numbers, rewards, shapes, updates, evaluates and saves. Two things are
dealt out: completions of whole prompts, and log-probs and gradients of whole groups, both with the weights of the lead. So a run says the
same for any number of processes, but for rounding. With one process nothing here does anything.

    python train.py --workers 2                                  on a CPU: starts the others itself
    torchrun --nproc_per_node 2 train.py --device cuda ...       one process for each GPU of a machine; the model must fit into one
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from rlvr.advantage import METHODS, method_parts
from rlvr.config import BUILT_IN, SettingError, TrainConfig, refuse
from rlvr.engine.estimate import free_memory
from rlvr.engine.memory import joined, out_of_memory
from rlvr.rollout import Rollouts, evaluation_mode

MEET = "RLVR_MEET"  # in the environment of a process that `workers` has started: where it meets the others
FOLLOW = "import sys; sys.path.insert(0, sys.argv[1]); from rlvr.engine import parallel as p; from rlvr.train import train; train(p.settings())"
LEAST_ROWS, LEAST_PROMPTS = 64, 4  # of a step, for each process: with fewer, dealing costs more than it brings (tutorials/speed.md)
LEAST_COMPLETIONS = 5000  # of a run: it takes seconds to start a process


def rank() -> int:
    """The number of this process: 0 leads."""
    return int(os.environ.get("RANK", 0)) if int(os.environ.get("WORLD_SIZE", 1)) > 1 else 0


def most_useful(c: TrainConfig, cores: int) -> int:
    """How many processes to start where --workers is 0: on a CPU one for each core, as long as each has enough to do and memory suffices.

    Each follower has weights and gradients of its own. They may take a quarter of the memory that is free.
    """
    if c.model in BUILT_IN:
        size = 0.0
    elif os.path.isdir(c.model):
        size = sum(file.stat().st_size for file in Path(c.model).rglob("*.safetensors")) * 4.0  # two bytes a weight become twice four
    else:
        return 1
    fit = (free_memory("cpu") or 0) / 4 / size if size else cores
    rows = c.prompts_per_step * c.completions_per_prompt
    if rows * c.steps < LEAST_COMPLETIONS:
        return 1
    return max(1, min(cores, c.prompts_per_step // LEAST_PROMPTS, rows // LEAST_ROWS, 1 + int(fit)))


@contextmanager
def workers(c: TrainConfig) -> Iterator["Team | None"]:
    """The processes of a run, for as long as it lasts: a Team, or None for one process alone. Raises SettingError."""
    on_gpu = c.device != "cpu" and (c.device != "auto" or torch.cuda.is_available() or torch.backends.mps.is_available())
    if (size := int(os.environ.get("WORLD_SIZE", 1))) > 1:  # torchrun has started this process, or `workers` has
        if on_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        yield Team(size, rank(), os.environ.get(MEET, "env://"))
        return
    cores = c.threads or torch.get_num_threads()
    refuse(c.workers > 1 and on_gpu, f"--workers is for a CPU. On GPUs: torchrun --nproc_per_node {c.workers} train.py and the rest.")
    size = c.workers or (1 if on_gpu or not dist.is_available() else most_useful(c, cores))
    if size == 1:
        yield None
        return
    before, each = torch.get_num_threads(), max(1, cores // size)
    with tempfile.TemporaryDirectory(prefix="rlvr-") as folder:
        meet = f"file://{folder}/meet"
        mine = dict(WORLD_SIZE=str(size), OMP_NUM_THREADS=str(each), **{MEET: meet})
        # A method that a notebook has declared is the lead's alone. All that the others ask of it is whether it reads old log-probs.
        reads = any("old_logp" in getattr(METHODS[part], "reads", "old_logp") for part in method_parts(c.method))
        line = json.dumps(asdict(replace(c, threads=each, method="ppl" if reads else "grpo"))).encode() + b"\n"
        children = [_start(os.environ | mine | {"RANK": str(number)}, line, Path(folder, f"{number}.txt")) for number in range(1, size)]
        torch.set_num_threads(each)
        try:
            yield Team(size, 0, meet, children, Path(folder))
        finally:
            torch.set_num_threads(before)
            for child in children:
                child.kill()
                child.communicate()


def _start(environment: dict, line: bytes, errors: Path) -> subprocess.Popen:
    """A follower. It reads its settings, and ends when the pipe closes: when we end, however that is."""
    command = [sys.executable, "-c", FOLLOW, str(Path(__file__).parents[2])]
    pipe = subprocess.PIPE
    with open(errors, "wb") as file:  # in a session of its own: Ctrl-C is for the lead
        child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=file, env=environment, start_new_session=True)
    with suppress(OSError):  # it is gone; `join` says so
        child.stdin.write(line)
        child.stdin.flush()
    return child


def settings() -> TrainConfig:
    """In a follower: the settings that the lead has written."""
    given = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(1)), daemon=True).start()
    sys.stdout = open(os.devnull, "w")
    return TrainConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if k in vars(TrainConfig())})


class Team:
    """This process, and how it reaches the others."""

    def __init__(self, size: int, rank: int, meet: str, children: list | tuple = (), folder: Path | None = None):
        self.size, self.rank, self.meet, self.children, self.folder = size, rank, meet, children, folder

    @contextmanager
    def helping(self, trainer):
        """The lead: meet the others, and let them help the trainer meanwhile."""
        for number, child in enumerate(self.children, 1):
            if child.stdout.readline() != b"ready\n":
                child.wait()
                said = Path(self.folder, f"{number}.txt").read_text(errors="replace").strip().splitlines()[-1:] or ["it says nothing"]
                raise SettingError(f"A process that was to help could not begin ({said[0][:300]}). Choose --workers 1.")
        self._meet(trainer)
        complete = trainer.policy.complete  # an InHalves, which halves what runs out of memory anywhere
        complete.complete, trainer.gradient, trainer.policy.score = self.complete, self.gradient, self.score
        trainer.processes = self.size  # for the checkpoint: rounding depends on it
        try:
            yield
            self._next([None] * self.size)  # the end
        finally:
            complete.complete = self.alone["complete"]
            for owner, name in ((trainer, "gradient"), (trainer.policy, "score")):
                vars(owner).pop(name, None)
            dist.destroy_process_group()

    def follow(self, trainer) -> "Follower":
        """All others: what session() yields to them."""
        return Follower(self, trainer)

    def _meet(self, trainer) -> None:
        self.trainer, policy = trainer, trainer.policy
        self.weights, self.masters = [p for p in policy.model.parameters() if p.requires_grad], trainer.optimizer.weights.parameters
        self.alone = {"complete": policy.complete.complete, "gradient": trainer.gradient, "score": policy.score}
        if self.meet != "env://":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")  # they are all on this machine
        kind = "cpu:gloo,cuda:nccl" if policy.model.device.type == "cuda" else "gloo"
        # An evaluation may take hours of the lead, in which the others wait.
        dist.init_process_group(kind, init_method=self.meet, rank=self.rank, world_size=self.size, timeout=timedelta(days=30))

    # -----------------------------------------------------------------------------------------------------------------------------------
    # What is dealt out

    def complete(self, model, prompts, repeats: int, stop_ids, temperature, top_p, u: Tensor, on_ended=lambda rows: None) -> tuple:
        """A `complete` (see rollout.py): the prompts, which come in order of length, are dealt like cards."""
        u = u.unflatten(0, (len(prompts), repeats))
        hands = [list(range(len(prompts)))[number :: self.size] for number in range(self.size)]
        shares = [([prompts[i] for i in hand], repeats, stop_ids, temperature, top_p, u[hand].flatten(0, 1).cpu()) for hand in hands]
        parts = self._ask("complete", shares)
        on_ended(len(prompts) * repeats)
        back = torch.tensor(sum(hands, [])).argsort()
        return tuple(x.unflatten(0, (-1, repeats))[back].flatten(0, 1) for x in joined([part for part in parts if part is not None]))

    def gradient(self, step, rows: Tensor, micro_batch_tokens: int) -> Counter:
        """As Trainer.gradient: each process adds up that of some groups; the sum is the lead's."""
        denominator = int(step.rollouts.mask[rows].sum())
        tokens = self._tokens(micro_batch_tokens)
        teach = (step.shaped != 0).any(1)
        shares = [(replace(step, rollouts=step.rollouts.select(hand), problem_ids=[], rewards=step.rewards[hand],
                           shaped=step.shaped[hand], mini_batches=[]), torch.arange(len(hand)), tokens, denominator)
                  for hand in self._hands(step.rollouts, rows, teach)]  # fmt: skip
        whole: Counter = Counter()
        for sums in self._ask("gradient", shares):
            whole.update(sums)  # not +, which leaves out what is below 0
        return whole

    def score(self, rollouts: Rollouts, rows: Tensor, temperature: float, micro_batch_tokens: int) -> tuple[Tensor, Tensor]:
        """As Policy.score."""
        hands, tokens = self._hands(rollouts, rows), self._tokens(micro_batch_tokens)
        parts = self._ask("score", [(rollouts.select(hand), torch.arange(len(hand)), temperature, tokens) for hand in hands])
        whole = torch.zeros(2, *rollouts.mask.shape)
        for hand, part in zip(hands, parts):
            for into, found in zip(whole, part):
                into[hand, : found.shape[1]] = found
        return whole.unbind(0)

    def _tokens(self, micro_batch_tokens: int) -> int:
        """On a CPU all processes share one memory; each GPU has its own."""
        return micro_batch_tokens if self.weights[0].device.type == "cuda" else max(1, micro_batch_tokens // self.size)

    def _hands(self, rollouts: Rollouts, rows: Tensor, teach: Tensor | None = None) -> list[Tensor]:
        """Whole groups for each process, such that tokens are shared evenly: the longest first, to whom has least so far."""
        tokens: Counter = Counter()
        for row, group in zip(rows.tolist(), rollouts.group[rows].tolist()):
            tokens[group] += int(rollouts.lengths[row]) * (teach is None or bool(teach[row]))
        hands, sums = [set() for _ in range(self.size)], [0] * self.size
        for group, n in sorted(tokens.items(), key=lambda item: (-item[1], item[0])):
            least = sums.index(min(sums))
            hands[least].add(group)
            sums[least] += n
        return [rows[torch.isin(rollouts.group[rows], torch.tensor(sorted(hand)))] for hand in hands]

    # -----------------------------------------------------------------------------------------------------------------------------------
    # How it gets there

    def _ask(self, work: str, shares: list[tuple]) -> list:
        """Every process works on its share, with the lead's weights -> what each found. Raises what went wrong in any."""
        return self._work(*self._next([(work, share) for share in shares]))

    def _next(self, tasks: list | None = None) -> tuple | None:
        """The next task of this process, as the lead deals them; None: there is no more."""
        mine = [None]
        self._collective(dist.scatter_object_list, mine, tasks)
        return mine[0]

    def _work(self, work: str, share: tuple) -> list:
        for weight in self.weights:
            self._collective(dist.broadcast, weight.data, 0)
        found, problem = None, None
        try:
            found = getattr(self, f"_{work}_alone")(*share)
        except Exception as error:
            problem = error
        said = problem and ("out of memory" if out_of_memory(problem) else f"{type(problem).__name__}: {problem}")
        with_gradient = [weight.grad is not None for weight in self.masters] if work == "gradient" else []
        everyone: list = [None] * self.size
        self._collective(dist.all_gather_object, everyone, (said, found, with_gradient))
        if problems := [(number, said) for number, (said, *_) in enumerate(everyone) if said]:
            self.trainer.optimizer.weights.zero_grad()
            if problem and not self.rank:
                raise problem
            raise RuntimeError(f"process {problems[0][0]}: {problems[0][1]}")
        for i, weight in enumerate(self.masters if work == "gradient" else ()):
            if any(has[i] for *_, has in everyone):
                weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
                self._collective(dist.reduce, weight.grad, 0)
        return [found for _, found, _ in everyone]

    def _complete_alone(self, prompts, repeats, stop_ids, temperature, top_p, u):
        model = self.trainer.policy.model
        if not prompts:
            return None
        with evaluation_mode(model):
            return tuple(x.cpu() for x in self.alone["complete"](model, prompts, repeats, stop_ids, temperature, top_p, u.to(model.device)))

    def _gradient_alone(self, *share):
        return self.alone["gradient"](*share)

    def _score_alone(self, *share):
        return self.alone["score"](*share)

    def _collective(self, function, *arguments) -> None:
        try:
            function(*arguments)
        except RuntimeError as error:  # the other end is gone
            ended = [f"process {number} ended (code {code})" for number, child in enumerate(self.children, 1) if (code := child.poll()) is not None]
            what = ", ".join(ended) or str(error).splitlines()[0]
            raise SettingError(f"A process that helped is lost: {what}. What was done is saved; go on with --resume.") from None


class Follower:
    """A run as all but the lead see it: no step of their own, until the lead ends."""

    summary = {"stopped_by": None}

    def __init__(self, team: Team, trainer):
        self.team, self.trainer = team, trainer

    def steps(self) -> list:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # the lead ends in good order, and says when
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        os.write(1, b"ready\n" if self.team.meet != "env://" else b"")
        self.team._meet(self.trainer)
        while task := self.team._next():
            with suppress(RuntimeError):  # the lead has been told
                self.team._work(*task)
            self.trainer.optimizer.weights.zero_grad()
        return []
