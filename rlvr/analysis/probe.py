"""Go back into a run: replay training steps from its checkpoints, replace tokens, and see what its models can still solve.

    python -m rlvr.analysis.probe runs/pos-seed0 runs/grpo-seed0

A run folder says what was sampled, not what became of it. Four questions need the weights, and are answered here once, for the report:

- changes: a training step is made again from a checkpoint, and every token is scored before and after it. How much did its probability
  change, and what was special about those that changed most? (S5, S6, S7, I1)
- fixed: completions of the first model are scored by the later ones. So the text stays the same and only the policy changes. (S2)
- replacements: at a token of high entropy the completion is made to go on with the likeliest other token instead, and both ways are
  finished afresh a few times. How often is the end still right? (I2, T2)
- exploration: many completions of each held-out problem, by the first and the last model. (pass@k, unsolvable problems, branching factor)

They are written to runs/pos-seed0/probe, as tensors (safetensors) and JSON. tutorials/glossary.md explains each number.
"""

import dataclasses
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from rlvr.run import checkpoint
from rlvr.advantage import shape
from rlvr.engine.attention import is_ours
from rlvr.run.checkpoint import fingerprint
from rlvr.config import SettingError, TrainConfig
from rlvr.run.cli import parse_command, run_program
from rlvr.run.settings import check_can_write, read_config
from rlvr.entropy import branching_factor, log_perplexity
from rlvr.analysis.exchange import logit_gradient_norm, relative_positions, spread
from rlvr.run.figures import read_metrics
from rlvr.common.files import replace_folder
from rlvr.common.text import say
from rlvr.loss import clipped_loss
from rlvr.policy import Policy, _logits, hidden_states, load_policy, logits_chunk, logp_and_entropy, micro_batches
from rlvr.reward import answer_key, verify_all
from rlvr.rollout import Rollouts, sample
from rlvr.train import Trainer, set_up

TOP = 5  # alternatives kept for each token that the microscope shows
EARLY, LATE = 0.2, 0.8  # relative positions below and above which a token is early or late; ours


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
    completions: int = 128
    """Completions in which tokens are replaced."""
    continuations: int = 8
    """Fresh continuations after a token, and after its replacement."""
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


@torch.no_grad()
def token_stats(model, rollouts: Rollouts, temperature: float, micro_batch_tokens: int, watch: Tensor | None = None) -> dict[str, Tensor]:
    """What the model thinks at every token of some completions: a dict of [N, T] float32, 0 outside the mask.

    logp: log-prob of the token; entropy; grad_norm: length of the gradient of logp in the logits; branching: how many tokens share 95 % of
    the probability; second: the most likely token other than the one that was drawn. Besides, [N, T, TOP]: top, the most likely tokens,
    and top_p, their probabilities; if `watch` [N, T, TOP] names tokens, top_p is theirs. Logits exist a chunk at a time.
    """
    size = rollouts.mask.shape
    out = {name: torch.zeros(size) for name in ("logp", "entropy", "grad_norm", "branching")}
    out["second"] = torch.zeros(size, dtype=torch.long)
    out["top"] = torch.zeros(*size, TOP, dtype=torch.long) if watch is None else watch
    out["top_p"] = torch.zeros(*size, TOP)
    for rows in micro_batches(rollouts, torch.arange(len(rollouts)), micro_batch_tokens, is_ours(model)):
        part = rollouts.select(rows)
        mask = part.mask.to(model.device)
        if not mask.any():
            continue
        hidden, targets = hidden_states(model, part.prompt_ids, part.completion_ids, mask)
        row, t = part.mask.nonzero(as_tuple=True)
        place = (rows[row], t)
        chunk = max(1, logits_chunk(model) // 4)  # sorting them takes several times their room
        for start in range(0, len(targets), chunk):
            here, y = tuple(x[start : start + chunk] for x in place), targets[start : start + chunk, None]
            z = _logits(model, hidden[start : start + chunk]).float() / temperature
            logp = torch.log_softmax(z, -1)
            p = logp.exp()
            mine = p.gather(-1, y)[:, 0]
            values = {
                "logp": logp.gather(-1, y)[:, 0],
                "entropy": -(p * logp.clamp(min=-1e4)).sum(-1),
                "grad_norm": logit_gradient_norm(mine, p.square().sum(-1)),
                "branching": branching_factor(z).float(),
                "second": z.scatter(-1, y, float("-inf")).argmax(-1),
            }
            if watch is None:
                values["top_p"], values["top"] = p.topk(min(TOP, p.shape[-1]), -1)
            else:
                values["top_p"] = p.gather(-1, watch[here].to(p.device))
            for name, value in values.items():
                out[name][here] = value.to("cpu", out[name].dtype)
    return out


def update_gradient(model, rollouts: Rollouts, advantages: Tensor, method: str, micro_batch_tokens: int = 4096, **strengths) -> Tensor:
    """The gradient of one update under a method, as one long vector [parameters]: how much does the method change it?

    advantages [N] float, of the rows; those of 0 are skipped and stay in the denominator. method and strengths: as in `advantage.shape`.
    It is the gradient that `train.py` would follow without group filtering, at temperature 1, on the batch's own policy. The model's
    own gradients are empty afterwards.
    """
    shaped = shape(method, advantages, rollouts.old_logp, rollouts.mask, rollouts.group, **strengths)  # [N, T]
    denominator = int(rollouts.mask.sum())  # of the whole update, whatever the micro-batches
    model.zero_grad()
    for rows in micro_batches(rollouts, advantages.nonzero()[:, 0], micro_batch_tokens, is_ours(model)):
        part = rollouts.select(rows)
        logp, _ = logp_and_entropy(model, part.prompt_ids, part.completion_ids, part.mask)  # [n, T]
        old_logp, mask, weights = (x.to(logp.device) for x in (part.old_logp, part.mask, shaped[rows][:, : part.mask.shape[1]]))
        loss, _ = clipped_loss(logp, old_logp, weights, mask, denominator=denominator)
        loss.backward()
    gradient = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters() if p.requires_grad])
    model.zero_grad()
    return gradient


# ---------------------------------------------------------------------------------------------------------------------------------------
# Changes: a training step, made again


def replay(trainer: Trainer) -> tuple[dict, Rollouts, Tensor, Tensor, dict, dict] | None:
    """The next training step of a trainer, with every token scored before and after.

    Returns its metrics, the completions that were learned from, whether each is right [N], the shaped advantages [N, T], and
    token_stats before and after (of the same alternatives). None if there was nothing to learn from in this step.
    """
    trainer.step(interrupted=lambda: True)  # up to the first update
    step = trainer.unfinished
    if step is None:
        return None
    model, c = trainer.policy.model, trainer.config
    rows = torch.isin(step.sampled.group, torch.tensor(step.groups)).nonzero()[:, 0]
    batch, correct = step.sampled.select(rows), step.correct[rows]
    before = token_stats(model, batch, c.temperature, c.micro_batch_tokens)
    shaped = step.shaped[rows][:, : batch.mask.shape[1]]
    metrics = trainer.step()[0]
    after = token_stats(model, batch, c.temperature, c.micro_batch_tokens, watch=before["top"])
    return metrics, batch, correct, shaped, before, after


def replayable(folder: Path, last: int, most: int) -> list[Path | None]:
    """Checkpoints of a run of `last` steps from which one can be made again, spread evenly; None stands for the start. In order."""
    found = [p for p in checkpoint.checkpoints(folder / "checkpoints") if "+" not in p.name and 0 < checkpoint.step_of(p) < last]
    return [None, *spread(list(reversed(found)), most - 1)]


def change_of_step(trainer: Trainer, shown: int) -> tuple[dict, dict[str, Tensor], list[dict]] | None:
    """Replay the next step of a trainer -> its metrics, what became of its tokens, and `shown` completions for the microscope.

    Tensors with a number for each token: row (which completion), r (relative position), token, advantage, logp and logp_after, entropy and
    entropy_after, grad_norm, branching, step; and with one for each completion: row_step, row_group, row_correct, row_log_ppl.
    """
    result = replay(trainer)
    if result is None:
        return None
    metrics, batch, correct, shaped, before, after = result
    step, mask, n = trainer.step_number, batch.mask, len(batch)
    tokens = {"row": torch.arange(n)[:, None].expand_as(mask), "token": batch.completion_ids, "advantage": shaped}
    tokens |= {name: before[name] for name in ("logp", "entropy", "grad_norm", "branching")}
    tokens |= {f"{name}_after": after[name] for name in ("logp", "entropy")} | {"step": torch.full(mask.shape, step)}
    flat = {name: value[mask] for name, value in tokens.items()}
    flat["r"] = torch.cat([torch.from_numpy(relative_positions(length)).float() for length in batch.lengths.tolist()])
    log_ppl = log_perplexity(before["logp"], mask)
    flat |= {"row_step": torch.full((n,), step), "row_group": batch.group, "row_correct": correct, "row_log_ppl": log_ppl}
    lines = [
        {"step": step, "group": int(batch.group[i])} | _completion(trainer.policy, batch, i, correct, before)
        | {"advantage": _numbers(shaped, batch, i), "logp_after": _numbers(after["logp"], batch, i)}
        | {"top_p_after": _numbers(after["top_p"], batch, i)}
        for i in _right_and_wrong(correct, shown)
    ]  # fmt: skip
    return metrics, flat, lines


def _joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Several steps as one; completions are numbered through."""
    rows = 0
    for part in parts:
        part["row"] = part["row"] + rows
        rows += len(part["row_step"])
    return {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]} if parts else {}


def _right_and_wrong(correct: Tensor, n: int) -> list[int]:
    """Indices of n completions, half of them right where there are enough, spread over the batch."""
    right, wrong = correct.nonzero()[:, 0].tolist(), (~correct).nonzero()[:, 0].tolist()
    from_right = max((n + 1) // 2, n - len(wrong))
    return sorted(spread(right, from_right) + spread(wrong, max(n // 2, n - len(right))))


def _numbers(x: Tensor, batch: Rollouts, i: int) -> list:
    n = int(batch.lengths[i])
    values = x[i, :n]
    return [[round(v, 4) for v in row] if isinstance(row, list) else round(row, 5) for row in values.tolist()]


def _completion(policy: Policy, batch: Rollouts, i: int, correct: Tensor, stats: dict[str, Tensor]) -> dict:
    """A completion with its tokens, for the microscope."""
    return {
        "prompt": policy.tokenizer.decode(batch.prompt_ids[i], skip_special_tokens=True),
        "completion": batch.text[i],
        "correct": bool(correct[i]),
        "finished": bool(batch.finished[i]),
        "token_ids": batch.completion_ids[i, : int(batch.lengths[i])].tolist(),
    } | {name: _numbers(stats[name], batch, i) for name in ("logp", "entropy", "grad_norm", "branching", "top", "top_p")}


# ---------------------------------------------------------------------------------------------------------------------------------------
# Fixed completions, replacements, exploration


def _sample(policy: Policy, c: TrainConfig, prompts: Sequence[Sequence[int]], n: int, generator: torch.Generator, **kw) -> Rollouts:
    return sample(
        policy.model, policy.tokenizer, prompts, completions_per_prompt=n, max_new_tokens=c.max_new_tokens, stop_ids=policy.stop_ids,
        temperature=c.temperature, generator=generator, sampling_rows=c.sampling_rows, **kw,
    )  # fmt: skip


def positions_to_replace(entropy: Tensor, length: int) -> dict[str, int]:
    """Where a completion is most undecided: anywhere, among its early tokens, among its late ones. entropy [T] -> index by name.

    The last token (which ends the text) is left alone: after it there is nothing to continue.
    """
    r = torch.from_numpy(relative_positions(length))
    out = {}
    for name, chosen in (("anywhere", r >= 0), ("early", r < EARLY), ("late", r > LATE)):
        chosen[-1] = False
        if chosen.any():
            out[name] = int(entropy[:length].masked_fill(~chosen, -1.0).argmax())
    return out


def replace_tokens(
    policy: Policy, c: TrainConfig, batch: Rollouts, answers: Sequence[str], continuations: int, generator: torch.Generator,
    progress: str = "",
) -> list[dict]:  # fmt: skip
    """At a token of high entropy, go on with the likeliest other token instead; finish both ways afresh. I2, T2; the rules are ours.

    One entry for each completion and place (anywhere, early, late): log_ppl, correct, the place r, entropy there, and the share of right
    ends among `continuations` after the token as it was (kept) and after the other one (replaced). The difference is the performance
    impact of the token.
    """
    stats = token_stats(policy.model, batch, c.temperature, c.micro_batch_tokens)
    log_ppl = log_perplexity(stats["logp"], batch.mask)
    entries, prefixes = [], []
    for i in range(len(batch)):
        n = int(batch.lengths[i])
        ids = batch.completion_ids[i, :n].tolist()
        for where, t in positions_to_replace(stats["entropy"][i], n).items():
            other = int(stats["second"][i, t])
            entropy = stats["entropy"][i, t].item()
            entries.append({"completion": i, "where": where, "r": t / n, "entropy": entropy, "log_ppl": log_ppl[i].item(),
                            "token": ids[t], "other": other})  # fmt: skip
            prefixes += [(i, ids[: t + 1]), (i, [*ids[:t], other])]
    # An end of text put in the middle ends the completion there: nothing is sampled after it.
    ended = [prefix[-1] in policy.stop_ids for _, prefix in prefixes]
    live = [k for k, end in enumerate(ended) if not end]
    asked = [batch.prompt_ids[prefixes[k][0]] + prefixes[k][1] for k in live]
    texts, golds, owners = [], [], []
    rollouts = _sample(policy, c, asked, continuations, generator, progress=progress) if live else None
    for j, g in enumerate(rollouts.group.tolist() if live else []):
        i, prefix = prefixes[live[g]]
        rest = rollouts.completion_ids[j, : int(rollouts.lengths[j])].tolist()
        whole = prefix + rest
        fits = len(whole) <= c.max_new_tokens  # one that is longer would have been cut off
        texts.append(policy.tokenizer.decode(whole, skip_special_tokens=True) if fits else "")
        golds.append(answers[i])
        owners.append(live[g])
    for k, end in enumerate(ended):
        if end:
            texts += [policy.tokenizer.decode(prefixes[k][1], skip_special_tokens=True)] * continuations
            golds += [answers[prefixes[k][0]]] * continuations
            owners += [k] * continuations
    right = torch.zeros(len(prefixes))
    right.index_add_(0, torch.tensor(owners), torch.tensor(verify_all(texts, golds), dtype=torch.float32))
    share = (right / continuations).view(-1, 2).tolist()
    return [e | {"kept": kept, "replaced": replaced} for e, (kept, replaced) in zip(entries, share)]


def explore(policy: Policy, c: TrainConfig, prompts, problems, samples: int, seed: int, progress: str) -> dict:
    """Many completions of each problem: how many are right, how long they are, how the policy branches. Sampled as in training."""
    rollouts = _sample(policy, c, prompts, samples, torch.Generator().manual_seed(seed), progress=progress)
    correct = torch.tensor(verify_all(rollouts.text, [problems[g].answer for g in rollouts.group.tolist()]))
    counts = torch.zeros(len(prompts), dtype=torch.long).index_add_(0, rollouts.group, correct.long())
    few = rollouts.select(torch.arange(0, len(rollouts), max(1, samples // 4)))  # enough for the branching factor
    stats = token_stats(policy.model, few, c.temperature, c.micro_batch_tokens)
    per_completion = (stats["branching"].sum(1) / few.lengths).tolist()
    answers = [len({answer_key(rollouts.text[j]) for j in range(g * samples, (g + 1) * samples)}) for g in range(len(prompts))]
    return {
        "samples": samples,
        "problems": fingerprint([(q.problem, q.answer) for q in problems]),
        "correct": counts.tolist(),
        "branching": sum(per_completion) / len(per_completion),
        "entropy": stats["entropy"][few.mask].mean().item(),
        "different_answers": sum(answers) / len(answers),
        "length": rollouts.lengths.float().mean().item(),
    }


# ---------------------------------------------------------------------------------------------------------------------------------------
# The command


def probe(folder: Path, p: ProbeConfig) -> Path:
    """Probe one run and write its folder `probe`. Raises SettingError."""
    config = read_config(folder)
    if config.reward:  # nor is its code run because a file names it
        raise SettingError(f"{folder} was trained with a reward function of yours, {config.reward}. Choose a run without one.")
    if not (folder / "metrics.csv").is_file() or not (folder / "model").is_dir():
        raise SettingError(f"The run {folder} is not finished. Continue it first: python train.py --resume {folder}")
    if p.threads:
        torch.set_num_threads(p.threads)
    as_if_it_were_to_go_on = dataclasses.replace(config, resume=str(folder), push_to_hub="", report_to="none")
    trainer, progress, _ = set_up(as_if_it_were_to_go_on)
    c, policy = trainer.config, trainer.policy
    logged = {int(row["step"]): row for row in read_metrics(folder) if row["accuracy"] is not None}
    plateau = next((step for step, row in logged.items() if row["stage"] == "plateau"), None)
    starts = replayable(folder, max(logged), p.steps)
    generator = torch.Generator().manual_seed(p.seed)
    problems, prompts = (progress.problems, progress.prompts) if progress.problems else (trainer.problems, trainer.prompts)
    most = max(p.problems, p.completions, p.fixed)
    chosen = random.Random(p.seed).sample(range(len(problems)), min(len(problems), most))
    problems, prompts = [problems[i] for i in chosen], [prompts[i] for i in chosen]
    parts, lines, fixed, replacements, explored = [], [], [], [], {}
    first = _sample(policy, c, prompts[: p.fixed], 1, generator)
    first_correct = torch.tensor(verify_all(first.text, [q.answer for q in problems[: p.fixed]]))
    watch = None

    def look(policy: Policy, step: int, name: str | None) -> None:
        """What is asked of a model as it is after `step` steps."""
        nonlocal watch, replacements
        stats = token_stats(policy.model, first, c.temperature, c.micro_batch_tokens, watch)
        watch = stats["top"]
        fixed.extend({"step": step, "number": i} | _completion(policy, first, i, first_correct, stats) for i in range(len(first)))
        if p.replacements and not replacements and (name == "last" or plateau is not None and step >= plateau):
            n = min(p.completions, len(prompts))
            answers, batch = [q.answer for q in problems[:n]], _sample(policy, c, prompts[:n], 1, generator)
            right = verify_all(batch.text, answers)
            found = replace_tokens(policy, c, batch, answers, p.continuations, generator, progress="replacements")
            replacements = [{"step": step, "correct": bool(right[entry["completion"]])} | entry for entry in found]
        if p.exploration and name:
            explored[name] = explore(policy, c, prompts[: p.problems], problems[: p.problems], p.samples, p.seed, f"{name} model")

    with tqdm(total=len(starts) + 1, desc=folder.name, unit="model") as bar:
        for start in starts:
            if start is not None:
                if reason := checkpoint.damage(start):
                    say(f"{start} is damaged ({reason}) and left out")
                    continue
                tensors, state = checkpoint.load(start)
                if state["reward"] != trainer.reward_name:
                    raise SettingError(
                        f"{folder} was trained with the reward function {state['reward']}, which only its program has. "
                        "Steps of such a run cannot be replayed; choose another run."
                    )
                checkpoint.restore_trainer(trainer, tensors, state)
            look(policy, trainer.steps_done, None if start else "first")
            if result := change_of_step(trainer, p.shown):
                metrics, flat, some = result
                parts.append(flat)
                lines += some
                log = logged[metrics["step"]]
                if abs(log["entropy"] - metrics["entropy"]) > 1e-4 * abs(log["entropy"]) or log["lr"] != metrics["lr"]:
                    why = "made longer later" if log["lr"] != metrics["lr"] else "on another machine?"
                    say(f"note: step {metrics['step']} of {folder} was not replayed as it was ({why})")
            bar.update()
        del trainer, policy
        look(load_policy(str(folder), c.device, c.dtype, c.sampler), max(logged), "last")
        bar.update()

    def write(beside: Path) -> None:
        save_file(_joined(parts), beside / "changes.safetensors")
        for name, rows in (("completions", lines), ("fixed", fixed), ("replacements", replacements)):
            (beside / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (beside / "exploration.json").write_text(json.dumps(explored) + "\n", encoding="utf-8")

    try:
        replace_folder(folder / "probe", write)
    except (OSError, SafetensorError) as error:
        raise SettingError(f"Nothing can be written to {folder / 'probe'} ({error}). Make room, then give the command again.") from None
    return folder / "probe"


def main() -> None:
    config = parse_command(ProbeConfig, "python -m rlvr.analysis.probe")
    for name in ("steps", "fixed", "completions", "continuations", "problems", "samples"):
        if getattr(config, name) < 1:
            raise SettingError(f"--{name} is {getattr(config, name)}. Choose 1 or more.")
    folders = [Path(name) for name in config.runs]
    for folder in folders:  # a mistake in the last one must not cost the work for the first
        read_config(folder)
        check_can_write(folder, "the run folder")
    for folder in folders:
        say(f"written to {probe(folder, config)}")


if __name__ == "__main__":
    run_program(main)
