"""Go back into a run: replay training steps from its checkpoints, replace tokens, and see what its models can still solve.

    python -m rlvr.analysis.probe runs/pos-seed0 runs/grpo-seed0

A run folder says what was sampled, not what became of it. Four questions need the weights, and are answered here once, for the report:

- changes: a training step is made again from a checkpoint, and every token is scored before and after it. How much did its probability
  change, and what was special about those that changed most? (S5, S6, S7, I1)
- fixed: completions of the first model are scored by the later ones. So the text stays the same and only the policy changes. (S2, S3)
- replacements: where a right completion is most undecided, another token is drawn from the policy, and both ways are finished afresh
  several times. Do the answers depend on the token, and how often is the end still right? (I2, T2)
- exploration: many completions of each held-out problem, by the first and the last model. (pass@k, unsolvable problems, branching factor)

They are written to runs/pos-seed0/probe, as tensors (safetensors) and JSON. tutorials/glossary.md explains each number.
"""

import dataclasses
import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
if not __package__:  # run by its path, which works from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rlvr.analysis.exchange import dependence, relative_positions
from rlvr.analysis.replay import SHOWN, change_of_step, replayable, token_stats
from rlvr.common.files import replaced_folder
from rlvr.common.text import progress_bar, say
from rlvr.config import TrainConfig, as_sentence, refuse
from rlvr.data import Problem
from rlvr.entropy import log_perplexity
from rlvr.evaluate import answer_key, right
from rlvr.policy import Policy, load_policy
from rlvr.rollout import Rollouts
from rlvr.run import checkpoint
from rlvr.run.branch import start_branch
from rlvr.run.cli import parse_command, resume_command, run_program
from rlvr.run.figures import read_metrics
from rlvr.run.held_out import HeldOut
from rlvr.run.log import completion
from rlvr.run.settings import check_can_write, read_config
from rlvr.run.sound import edits_as_sentence
from rlvr.run.state import reward_name, restore_trainer
from rlvr.train import Step, Trainer, set_up

EARLY, LATE = 0.2, 0.8  # relative positions below and above which a token is early or late; ours
LIKELY = 0.05  # another token must have this probability to be put in place of one: below it a sure policy has only noise; ours
FORK = 0.2  # `dependence` from which a token matters; where it does not, one place in twenty or fewer reaches it by chance; ours
WAYS = 4  # completions of a problem from which the right ones are taken, so that some are more and some less perplexed than others


@dataclass
class ProbeConfig:
    """Replay steps of finished runs from their checkpoints, replace tokens, sample many completions; for python -m rlvr.analysis.report.

    python -m rlvr.analysis.probe runs/pos-seed0 runs/grpo-seed0  -- all of it, a minute or two for each run of the built-in model

    python -m rlvr.analysis.probe runs/pos-seed0 --no-replacements --no-exploration  -- only what became of the tokens
    """

    runs: list[str]
    """Run folders. Their checkpoints decide which steps can be replayed (--keep-every of train.py)."""
    steps: int = 6
    """At most so many training steps are replayed, spread evenly over the checkpoints."""
    shown: int = 12
    """Completions of each replayed step that the microscope shows."""
    fixed: int = 64
    """Completions of the first model that every later model scores."""
    replacements: bool = True
    """Replace tokens of high entropy and see how often the end is still right."""
    completions: int = 256
    """Completions, four of each problem, in the right ones of which tokens are replaced."""
    continuations: int = 8
    """Fresh continuations after a token and after its replacement; as many again where the token matters."""
    exploration: bool = True
    """Sample many completions of held-out problems."""
    problems: int = 100
    """Held-out problems for that."""
    samples: int = 64
    """Completions of each: k of the largest pass@k, and of the unsolvable problems."""
    seed: int = 0
    """Seeds the sampling."""
    threads: int = 0
    """CPU threads; 0: torch's own choice."""


def positions_to_replace(entropy: Tensor, possible: Tensor, length: int) -> dict[str, int]:
    """Where a completion is most undecided early, in the middle and late, among the possible places. [T] each -> index by name.

    The last token (which ends the text) is left alone: after it there is nothing to continue.
    """
    r = torch.from_numpy(relative_positions(length))
    out = {}
    for name, chosen in (("early", r < EARLY), ("middle", (r >= EARLY) & (r <= LATE)), ("late", r > LATE)):
        chosen = chosen & possible[:length]
        chosen[length - 1 :] = False
        if chosen.any():
            out[name] = int(entropy[:length].masked_fill(~chosen, -1.0).argmax())
    return out


def finish(
    policy: Policy, c: TrainConfig, batch: Rollouts, starts: list[tuple[int, list[int]]], n: int, generator: torch.Generator
) -> list[list[str]]:
    """n texts of the completions that begin with each start (row of the batch, token ids). One that would have been cut off is empty."""
    # An end of text put in the middle ends the completion there: nothing is sampled after it.
    live = [batch.prompt_ids[i] + ids for i, ids in starts if ids[-1] not in policy.stop_ids]
    rest = iter(())
    if live:
        rollouts = policy.sample(live, n, c, generator, "replacements")
        rest = iter([row[:k] for row, k in zip(rollouts.completion_ids.tolist(), rollouts.lengths.tolist())])
    ways = [[ids if ids[-1] in policy.stop_ids else ids + next(rest) for _ in range(n)] for _, ids in starts]
    decode = policy.tokenizer.decode
    return [[decode(ids, skip_special_tokens=True) if len(ids) <= c.max_new_tokens else "" for ids in way] for way in ways]


def replace_tokens(
    policy: Policy, c: TrainConfig, batch: Rollouts, problems: Sequence[Problem], continuations: int, generator: torch.Generator
) -> list[dict]:
    """Where a right completion is most undecided, put another token; finish both ways afresh. problems: of each row. I2, T2; rules ours.

    The other token is drawn from the policy as it is there without the token that stands there, among the TOP likeliest and those with a
    probability of LIKELY or more: the same for every completion and place, whether the token that stands there is the first choice or a
    rare one. One entry for each completion and place (early, middle, late) that has such a token: problem, log_ppl, the place r, entropy
    there, and `dependence`, of the answers on the token. Where that is FORK or more, kept and replaced: the share of right ends after the
    token as it was and after the other one, of continuations other than those that `dependence` was found with.
    """
    stats = token_stats(policy, batch, c.temperature, c.micro_batch_tokens)
    log_ppl = log_perplexity(stats["logp"], batch.mask)
    others = stats["top_p"].masked_fill(stats["top"] == batch.completion_ids[..., None], 0)
    others = others.masked_fill(others < LIKELY, 0)  # [N, T, TOP]
    entries, starts = [], []
    for i, n in enumerate(batch.lengths.tolist()):
        ids = batch.completion_ids[i, :n].tolist()
        for where, t in positions_to_replace(stats["entropy"][i], others[i].any(-1), n).items():
            pick = torch.multinomial(others[i, t], 1, generator=generator).item()
            entries.append({"completion": i, "problem": int(batch.group[i]), "where": where, "r": t / n,
                            "entropy": stats["entropy"][i, t].item(), "log_ppl": log_ppl[i].item(), "token": ids[t],
                            "other": int(stats["top"][i, t, pick]), "kept": None, "replaced": None})  # fmt: skip
            starts.append([(i, ids[: t + 1]), (i, [*ids[:t], entries[-1]["other"]])])

    def both_ways(chosen: list[int]) -> list[list[str]]:
        return finish(policy, c, batch, [start for j in chosen for start in starts[j]], continuations, generator)

    texts = both_ways(list(range(len(entries))))
    for entry, kept, replaced in zip(entries, texts[::2], texts[1::2]):
        entry["dependence"] = dependence(*([answer_key(text) for text in way] for way in (kept, replaced)))
    forks = [j for j, entry in enumerate(entries) if entry["dependence"] >= FORK]
    asked = [(j, way) for j in forks for way in ("kept", "replaced")]
    for (j, way), found in zip(asked, both_ways(forks)):
        entries[j][way] = sum(right(found, [problems[entries[j]["completion"]]] * continuations)) / continuations
    return entries


def explore(policy: Policy, c: TrainConfig, prompts, problems, samples: int, seed: int, progress: str) -> dict:
    """Many completions of each problem: how many are right, how long they are, how the policy branches. Sampled as in training."""
    rollouts = policy.sample(prompts, samples, c, torch.Generator().manual_seed(seed), progress)
    counts = torch.tensor(right(rollouts.text, [problems[g] for g in rollouts.group.tolist()])).view(-1, samples).sum(1)
    few = rollouts.select(torch.arange(0, len(rollouts), max(1, samples // 4)))  # enough for the branching factor
    stats = token_stats(policy, few, c.temperature, c.micro_batch_tokens)
    per_completion = (stats["branching"].sum(1) / few.lengths).tolist()
    answers = [len({answer_key(rollouts.text[j]) for j in range(g * samples, (g + 1) * samples)}) for g in range(len(prompts))]
    return {"samples": samples, "problems": checkpoint.fingerprint([(q.problem, q.answer) for q in problems]), "correct": counts.tolist(),
            "branching": sum(per_completion) / len(per_completion), "entropy": stats["entropy"][few.mask].mean().item(),
            "different_answers": sum(answers) / len(answers), "length": rollouts.lengths.float().mean().item()}  # fmt: skip


class Probe:
    """What is asked of one run: `look` at each of its models in turn, `replay` the step that follows, then `write`."""

    def __init__(self, folder: Path, p: ProbeConfig, trainer: Trainer, held_out: HeldOut):
        self.folder, self.p, self.c = folder, p, trainer.config
        self.logged = {int(row["step"]): row for row in read_metrics(folder) if row["accuracy"] is not None}
        self.plateau = next((step for step, row in self.logged.items() if row["stage"] == "plateau"), None)
        self.generator = torch.Generator().manual_seed(p.seed)
        source = held_out if held_out.problems else trainer
        most = min(len(source.problems), max(p.problems, -(-p.completions // WAYS), p.fixed))
        chosen = random.Random(p.seed).sample(range(len(source.problems)), most)
        self.problems, self.prompts = [source.problems[i] for i in chosen], [source.prompts[i] for i in chosen]
        self.first = trainer.policy.sample(self.prompts[: p.fixed], 1, self.c, self.generator)
        self.first_correct = torch.tensor(right(self.first.text, self.problems[: p.fixed]))
        self.watch = None  # the likeliest tokens of the first model, whose probabilities are followed
        self.changes, self.completions, self.fixed, self.replacements, self.explored = [], [], [], [], {}

    def look(self, policy: Policy, step: int, name: str | None) -> None:
        """What is asked of a model as it is after `step` steps. name: first, last, or None for those between."""
        p, c = self.p, self.c
        stats = token_stats(policy, self.first, c.temperature, c.micro_batch_tokens, self.watch)
        self.watch = stats["top"]
        numbers = {name: stats[name] for name in SHOWN}
        lines = [completion(policy.tokenizer, self.first, i, self.first_correct, numbers) for i in range(len(self.first))]
        self.fixed += [{"step": step, "number": i} | line for i, line in enumerate(lines)]
        if p.replacements and not self.replacements and (name == "last" or self.plateau is not None and step >= self.plateau):
            batch = policy.sample(self.prompts[: -(-p.completions // WAYS)], WAYS, c, self.generator)
            problems = [self.problems[g] for g in batch.group.tolist()]
            rows = torch.tensor(right(batch.text, problems)).nonzero()[:, 0]  # only these have a right end to lose
            found = replace_tokens(policy, c, batch.select(rows), [problems[i] for i in rows], p.continuations, self.generator)
            self.replacements = [{"step": step} | entry for entry in found]
        if p.exploration and name:
            few = slice(p.problems)
            self.explored[name] = explore(policy, c, self.prompts[few], self.problems[few], p.samples, p.seed, f"{name} model")

    def replay(self, trainer: Trainer) -> None:
        """The step that follows, made again."""
        if result := change_of_step(trainer, self.p.shown):
            flat, lines = result
            flat["row"] += sum(len(part["row_step"]) for part in self.changes)  # completions are numbered through
            self.changes.append(flat)
            self.completions += lines
            log, lr = self.logged[trainer.step_number], trainer.optimizer.learning_rate(trainer.step_number)
            if abs(log["entropy"] - trainer.entropies[-1]) > 1e-4 * abs(log["entropy"]) or log["lr"] != lr:
                why = "made longer later" if log["lr"] != lr else "on another machine?"
                say(f"note: step {trainer.step_number} of {self.folder} was not replayed as it was ({why})")

    def write(self) -> Path:
        """The folder `probe` of the run. Raises SettingError."""
        path, remedy = self.folder / "probe", "Make room, then give the command again."
        with as_sentence(f"Nothing can be written to {path}", remedy, OSError, SafetensorError), replaced_folder(path) as beside:
            names = self.changes[0] if self.changes else ()
            save_file({name: torch.cat([part[name] for part in self.changes]) for name in names}, beside / "changes.safetensors")
            for name, rows in (("completions", self.completions), ("fixed", self.fixed), ("replacements", self.replacements)):
                (beside / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            (beside / "exploration.json").write_text(json.dumps(self.explored) + "\n", encoding="utf-8")
        return path


def probe(folder: Path, p: ProbeConfig) -> Path:
    """Probe one run and write its folder `probe`. Raises SettingError."""
    config = read_config(folder)
    own = config.reward  # nor is its code run because a file names it
    refuse(own, f"{folder} was trained with a reward function of yours, {own}. Choose a run without one.")
    finished = (folder / "metrics.csv").is_file() and (folder / "model").is_dir()
    refuse(not finished, f"The run {folder} is not finished. Continue it first: {resume_command(folder)}")
    torch.set_num_threads(p.threads or torch.get_num_threads())
    trainer, held_out = set_up(dataclasses.replace(config, resume=str(folder), push_to_hub="", report_to="none"))
    if config.branch:
        start_branch(trainer)
    c, found = trainer.config, Probe(folder, p, trainer, held_out)
    last = max(found.logged)
    starts = replayable(folder, last, p.steps)
    with progress_bar(total=len(starts) + 1, desc=folder.name, unit="model") as bar:
        for start in _restored(folder, trainer, starts):
            found.look(trainer.policy, trainer.step_number, None if start else "first")
            found.replay(trainer)
            bar.update()
        del trainer
        found.look(load_policy(str(folder), c.device, c.dtype, c.engine, c.cuda_graphs), last, "last")
        bar.update()
    return found.write()


def _restored(folder: Path, trainer: Trainer, starts: Sequence[Path | None]) -> Iterator[Path | None]:
    """Puts a trainer into the state of each checkpoint (None: as it is) that is whole. Raises SettingError."""
    for start in starts:
        if start is not None:
            if reason := checkpoint.damage(start):
                say(f"{start} is damaged ({reason}) and left out")
                continue
            tensors, state = checkpoint.load(start)
            with edits_as_sentence(start):
                cause = f"{folder} was trained with the reward function {state['reward']}, which only its program has"
                refuse(state["reward"] != reward_name(trainer), f"{cause}. Its steps cannot be replayed; choose another run.")
                restore_trainer(trainer, tensors, state, Step)
        yield start


def main() -> None:
    config = parse_command(ProbeConfig, "python -m rlvr.analysis.probe")
    for name in ("steps", "fixed", "completions", "continuations", "problems", "samples"):
        refuse(getattr(config, name) < 1, f"--{name} is {getattr(config, name)}. Choose 1 or more.")
    folders = [Path(name) for name in config.runs]
    refuse(not folders, "No run was named. Name one or more, as in: python -m rlvr.analysis.probe runs/pos-seed0")
    for folder in folders:  # a mistake in the last one must not cost the work for the first
        read_config(folder)
        check_can_write(folder, "the run folder")
    for folder in folders:
        say(f"written to {probe(folder, config)}")


if __name__ == "__main__":
    run_program(main)
