"""Several processes share the work of a run: the first leads, the others follow.

The lead does all that a run of one process does: it draws the random numbers, rewards, shapes, updates, evaluates and saves. Two things are
dealt out: completions of whole prompts, and log-probs and gradients of whole groups, both with the weights of the lead. So a run says the
same for any number of processes, but for rounding. With one process nothing here does anything.

    python train.py --workers 2                                  on a CPU: train.py starts the others
    torchrun --nproc_per_node 2 train.py --device cuda ...       one process for each GPU of a machine; the model must fit into one

In Python: with workers(config): train(config)
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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import Tensor

from rlvr.common.text import say
from rlvr.config import BUILT_IN, SettingError, TrainConfig, as_sentence, refuse
from rlvr.engine.memory import joined, out_of_memory
from rlvr.methods import reads
from rlvr.rollout import Rollouts, evaluation_mode

MEET = "RLVR_MEET"  # in the environment of a process that `workers` has started: where it meets the others
FOLLOW = """import sys
sys.path.insert(0, sys.argv[1])
from rlvr.engine.parallel import settings, workers
from rlvr.train import train
with workers(config := settings()):
    train(config)"""
ROWS_EACH, AT_MOST = 64, 4  # completions of a step for each process, and processes, that pay: see `helpful`
FOR_EVER = timedelta(days=30)  # the others wait while the lead evaluates or saves
_team: "Team | None" = None  # that of the run in progress
_go = threading.Event()  # in a follower: the lead is ready to meet


class Told(RuntimeError):
    """What went wrong in the share of one process, which all of them know."""


def team(config: TrainConfig) -> "Team | None":
    """The processes of the run, None for one alone. Raises SettingError if several are wanted and nobody has started them."""
    refuse(config.workers > 1 and not _team, "Nobody has started the workers. In Python write: with workers(config): train(config)")
    return _team


def rank() -> int:
    """The number of this process: 0 leads."""
    return _team.rank if _team else 0


def processes() -> int:
    """How many share the run."""
    return _team.size if _team else 1


def helpful(c: TrainConfig, cores: int) -> int:
    """How many processes `--workers 0` comes to on a CPU (measured on two cores, see tutorials/speed.md).

    The matrix products of the built-in models are so small that threads hardly help, but processes do. With larger models it is the other
    way round. Some cost does not fall with the rows, hence the bounds; and to start a process takes as long as a few steps.
    """
    worth = c.model in BUILT_IN and c.steps >= 20 and sys.platform == "linux"
    return max(1, min(cores, AT_MOST, c.prompts_per_step * c.completions_per_prompt // ROWS_EACH)) if worth else 1


@contextmanager
def workers(c: TrainConfig) -> Iterator[None]:
    """Starts the processes that share the work of one run, if several are wanted or help; ends them afterwards. Raises SettingError."""
    global _team
    on_gpu = c.device != "cpu" and (c.device != "auto" or torch.cuda.is_available() or torch.backends.mps.is_available())
    refuse(c.workers > 1 and on_gpu, f"--workers is for a CPU. On GPUs: torchrun --nproc_per_node {c.workers} train.py and the rest.")
    cores, before = c.threads or torch.get_num_threads(), torch.get_num_threads()
    with ExitStack() as stack:
        children: list[subprocess.Popen] = []
        try:
            if MEET in os.environ or "LOCAL_RANK" in os.environ:  # the lead has started this process, or torchrun has
                local, size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ["WORLD_SIZE"])
                if on_gpu:
                    there = torch.cuda.device_count()
                    refuse(local >= there, f"There are {there} CUDA GPUs for the processes of torchrun. Start no more than one for each.")
                    torch.cuda.set_device(local)
                _team = Team(size, int(os.environ["RANK"]), os.environ.get(MEET, "")) if size > 1 else None
                torch.set_num_threads(cores)
                sys.stdout = open(os.devnull, "w", encoding="utf-8") if rank() else sys.stdout  # the lead speaks for all
            elif not on_gpu and (size := c.workers or helpful(c, cores)) > 1:
                each, folder = max(1, cores // size), Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rlvr-")))
                torch.set_num_threads(each)
                _team = Team(size, 0, str(folder / "meet"), children, folder, asked_for=bool(c.workers))
                for number in range(1, size):
                    children.append(_start(replace(c, threads=each), number, size, folder))
            yield
        finally:
            _team = None
            torch.set_num_threads(before)
            for child in children:
                child.kill()
                child.communicate()


def _start(c: TrainConfig, number: int, size: int, folder: Path) -> subprocess.Popen:
    """A follower. It reads its settings, and ends when the pipe closes: when we end, however that is."""
    # A method that a notebook has declared is the lead's alone. All that the others ask of it is whether it reads old log-probs.
    method = "ppl" if "old_logp" in reads(c.method) else "grpo"
    own = {"WORLD_SIZE": str(size), "RANK": str(number), MEET: str(folder / "meet"), "OMP_NUM_THREADS": str(c.threads)}
    pipe, root = subprocess.PIPE, str(Path(__file__).parents[2])
    with open(folder / f"{number}.txt", "wb") as errors:  # in a session of its own, as Ctrl-C is for the lead
        how = dict(stdin=pipe, stdout=pipe, stderr=errors, env=os.environ | own, start_new_session=True)
        child = subprocess.Popen([sys.executable, "-c", FOLLOW, root], **how)
    with suppress(OSError):  # it has ended already; `helping` says so
        child.stdin.write(json.dumps(asdict(replace(c, method=method))).encode() + b"\n")
        child.stdin.flush()
    return child


def settings() -> TrainConfig:
    """In a follower: the settings that the lead has written."""
    given = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_watch_the_lead, daemon=True).start()
    return TrainConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if k in vars(TrainConfig())})


def _watch_the_lead() -> None:
    while os.read(0, 1):
        _go.set()
    os._exit(1)


class Team:
    """This process, and how it works with the others."""

    def __init__(self, size: int, rank: int, meet: str, children: list | tuple = (), folder: Path | None = None, asked_for: bool = True):
        self.size, self.rank, self.meet, self.children, self.folder, self.asked_for = size, rank, meet, children, folder, asked_for

    def agree(self, choice: str) -> str:
        """What the lead chooses, in every process: the others wait for it, at the place where they will meet."""
        self.store = dist.FileStore(self.meet, self.size) if self.meet else next(dist.rendezvous("env://", self.rank, self.size))[0]
        if not self.rank:
            self.store.set("choice", choice)
        return self.store.get("choice").decode()

    @contextmanager
    def helping(self, trainer):
        """The lead: the others help the trainer meanwhile. If they cannot, and nobody has asked for them, it goes on alone."""
        try:
            self._gather(trainer)
        except SettingError as error:
            if self.asked_for:
                raise
            say(f"note: {str(error).partition('. Choose')[0]}, so this process works alone")
            self._part()
            torch.set_num_threads(self.size * torch.get_num_threads())
        if not _team:  # not in the handler, which would keep the error and all that it refers to until the run ends
            yield
            return
        complete = trainer.policy.complete  # an InHalves, which halves what runs out of memory anywhere
        complete.complete, trainer.gradient, trainer.policy.score = self.complete, self.gradient, self.score
        try:
            yield
            with suppress(SettingError):  # all is done, whoever is still there
                self._next([None] * self.size)
        finally:
            complete.complete = self.alone["complete"]
            vars(trainer).pop("gradient", None)
            vars(trainer.policy).pop("score", None)
            self._part()

    def _part(self) -> None:
        global _team
        _team = None
        if dist.is_initialized():
            dist.destroy_process_group()
        for child in self.children:
            child.kill()

    def _gather(self, trainer) -> None:
        """Wait until the others are ready, and meet them."""
        for number, child in enumerate(self.children, 1):
            if b"ready\n" not in child.stdout:  # reads lines until it comes, or until the process ends
                child.wait()
                said = (self.folder / f"{number}.txt").read_text(encoding="utf-8", errors="replace").strip() or "it says nothing"
                raise SettingError(f"A process that was to help could not begin ({said.splitlines()[-1][:300]}). Choose --workers 1.")
        for child in self.children:
            with suppress(OSError):
                child.stdin.write(b"!")
                child.stdin.flush()
        self._meet(trainer)

    def follower(self, trainer):
        """A run as the others see it: no step of their own. They help until the lead ends."""
        return SimpleNamespace(steps=lambda: self._follow(trainer) or (), summary={"stopped_by": None})

    def _follow(self, trainer) -> None:
        if self.meet:
            os.write(1, b"ready\n")
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nobody reads on
            _go.wait()
        self._meet(trainer)
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # the lead ends in good order, and says when
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        while task := self._next():
            with suppress(Told):
                self._work(*task)
            trainer.optimizer.weights.zero_grad()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _meet(self, trainer) -> None:
        self.trainer, policy = trainer, trainer.policy
        self.weights, self.masters = [p for p in policy.model.parameters() if p.requires_grad], trainer.optimizer.weights.parameters
        self.alone, self.sent = {"complete": policy.complete.complete, "gradient": trainer.gradient, "score": policy.score}, []
        kind = "cpu:gloo,cuda:nccl" if policy.model.device.type == "cuda" else "gloo"
        loopback = {"linux": "lo", "darwin": "lo0"}.get(sys.platform)
        if self.meet and loopback:  # they are all on this machine
            os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        with as_sentence("The processes of this run cannot reach each other", "Choose --workers 1.", RuntimeError):
            # torchrun's may have to wait here until the lead has loaded all problems.
            dist.init_process_group(kind, None, timedelta(minutes=5 if self.meet else 120), self.size, self.rank, self.store)
            self.patient = dist.new_group(backend="gloo", timeout=FOR_EVER)
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", MEET, "GLOO_SOCKET_IFNAME"):  # not for the programs that a run starts
            os.environ.pop(name, None)

    # -----------------------------------------------------------------------------------------------------------------------------------
    # What is dealt out

    def complete(self, model, prompts, repeats: int, stop_ids, temperature, top_p, u: Tensor, on_ended=lambda rows: None) -> tuple:
        """A `complete` (see rollout.py): the prompts, which come in order of length, are dealt like cards."""
        u = u.cpu().unflatten(0, (len(prompts), repeats))
        hands = [list(range(len(prompts)))[number :: self.size] for number in range(self.size)]
        shares = [([prompts[i] for i in hand], repeats, stop_ids, temperature, top_p, u[hand].flatten(0, 1)) for hand in hands]
        whole = joined([part for part in self._ask("complete", shares) if part])
        on_ended(len(prompts) * repeats)
        back = torch.tensor(sum(hands, [])).argsort()
        return tuple(x.unflatten(0, (-1, repeats))[back].flatten(0, 1) for x in whole)

    def gradient(self, step, rows: Tensor, micro_batch_tokens: int) -> Counter:
        """As Trainer.gradient: each process adds up that of some groups; the sum is the lead's."""
        batch, whole = step.rollouts, Counter()
        shares, how = [], (self._tokens(micro_batch_tokens), int(batch.mask[rows].sum()))
        c = self.trainer.config
        teach = None if c.kl_coef or c.entropy_coef else (step.shaped != 0).any(1)  # with these, all rows have a gradient
        for hand in self._hands(batch, rows, teach):
            part = dict(rollouts=batch.select(hand), problem_ids=[], rewards=step.rewards[hand], shaped=step.shaped[hand], mini_batches=[])
            shares.append((replace(step, **part), torch.arange(len(hand)), *how))
        for sums in self._ask("gradient", shares):
            whole.update(sums)  # not +, which leaves out what is below 0
        return whole

    def score(self, rollouts: Rollouts, rows: Tensor, temperature: float, micro_batch_tokens: int) -> tuple[Tensor, Tensor]:
        """As Policy.score."""
        hands, tokens = self._hands(rollouts, rows), self._tokens(micro_batch_tokens)
        parts = self._ask("score", [(rollouts.select(hand), torch.arange(len(hand)), temperature, tokens) for hand in hands])
        whole = torch.zeros(2, *rollouts.mask.shape)
        for hand, part in zip(hands, parts):
            whole[:, hand, : part[0].shape[1]] = torch.stack(part)
        return whole.unbind(0)

    def _tokens(self, micro_batch_tokens: int) -> int:
        """On a CPU all processes share one memory; each GPU has its own."""
        return micro_batch_tokens if self.weights[0].device.type == "cuda" else max(1, micro_batch_tokens // self.size)

    def _hands(self, rollouts: Rollouts, rows: Tensor, teach: Tensor | None = None) -> list[Tensor]:
        """Whole groups for each process, such that tokens are shared evenly: the longest first, to whom has least so far."""
        tokens: Counter = Counter()
        for row, group in zip(rows.tolist(), rollouts.group[rows].tolist()):
            tokens[group] += int(rollouts.lengths[row]) * (teach is None or bool(teach[row]))
        hands, sums = [[] for _ in range(self.size)], [0] * self.size
        for group, n in sorted(tokens.items(), key=lambda item: (-item[1], item[0])):
            least = sums.index(min(sums))
            hands[least].append(group)
            sums[least] += n
        return [rows[torch.isin(rollouts.group[rows], torch.tensor(hand))] for hand in hands]

    # -----------------------------------------------------------------------------------------------------------------------------------
    # How it gets there

    def _ask(self, work: str, shares: list[tuple]) -> list:
        """Every process works on its share, with the lead's weights -> what each found. Raises what went wrong in any."""
        now = [weight._version for weight in self.weights]  # of torch: counts the changes in place
        moved, self.sent = now != self.sent, now
        return self._work(*self._next([(work, share, moved) for share in shares]))

    def _next(self, tasks: list | None = None) -> tuple | None:
        """The next task of this process, as the lead deals them; None: there is no more."""
        mine = [None]
        self._collective(dist.scatter_object_list, mine, tasks, 0, self.patient)
        return mine[0]

    def _work(self, work: str, share: tuple, moved: bool) -> list:
        self._all_at_once(dist.broadcast, [weight.data for weight in self.weights] if moved else [])
        found, problem, said, has, masters = None, None, "", [], self.masters if work == "gradient" else []
        try:
            found = self._complete(*share) if work == "complete" else self.alone[work](*share)
            has = [weight.grad is not None for weight in masters]
            for weight in masters:
                weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        except Exception as error:  # one that ran out of memory is not kept: it holds the tensors that are in the way
            said = "out of memory" if out_of_memory(error) else f"{type(error).__name__}: {error}"
            problem = None if out_of_memory(error) else error
        everyone: list = [None] * self.size
        self._collective(dist.all_gather_object, everyone, (said, found, has), self.patient)
        if wrong := [f"process {number}: {said}" for number, (said, *_) in enumerate(everyone) if said]:
            self.trainer.optimizer.weights.zero_grad()
            raise problem if problem and not self.rank else Told(wrong[0])
        for weight, column in zip(masters, zip(*(has for *_, has in everyone))):
            weight.grad = weight.grad if any(column) else None  # nobody has a gradient of this weight
        self._all_at_once(dist.reduce, [weight.grad for weight in masters if weight.grad is not None])
        return [found for _, found, _ in everyone]

    def _complete(self, prompts, repeats: int, stop_ids, temperature: float, top_p: float, u: Tensor) -> tuple | None:
        model = self.trainer.policy.model
        with evaluation_mode(model):
            how = (repeats, stop_ids, temperature, top_p, u.to(model.device))
            return tuple(x.cpu() for x in self.alone["complete"](model, prompts, *how)) if prompts else None

    def _all_at_once(self, function, tensors: list[Tensor]) -> None:
        """From or to the lead; each is on its way before the first has arrived."""
        for underway in [self._collective(function, tensor, 0, async_op=True) for tensor in tensors]:
            self._collective(underway.wait)

    def _collective(self, function, *arguments, **more):
        try:
            return function(*arguments, **more)
        except RuntimeError as error:  # the other end is gone, but its process may take a moment to end
            for child in self.children:
                with suppress(subprocess.TimeoutExpired):
                    child.wait(1)
            codes = [(number, child.returncode) for number, child in enumerate(self.children, 1)]
            ended = [f"process {number} ended (code {code})" for number, code in codes if code is not None] or str(error).splitlines()
            raise SettingError(f"A process that helped is lost: {ended[0]}. What was done is saved; go on with --resume.") from None
