"""Evaluation: Acc@N, Maj@N and Pass@k with bootstrap intervals over problems."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import torch

from rlvr.data import Problem, columns_for
from rlvr.policy import Policy
from rlvr.reward import last_boxed, rewards_from, verify_all
from rlvr.rollout import Rollouts, sample
from rlvr.verifier import one_spelling


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that at least one of k completions is right, unbiased, from n completions of which c are right.

    1 - C(n-c, k) / C(n, k)  (Chen et al. 2021; Deng et al. 2025b). Raises ValueError unless 0 <= c <= n and 1 <= k <= n.

    >>> pass_at_k(n=4, c=1, k=2)
    0.5
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, not n={n}, c={c}, k={k}")
    return 1.0 - comb(n - c, k) / comb(n, k)


def powers_up_to(n: int) -> list[int]:
    """The k of the pass@k that are shown: 1, 2, 4, ... and n."""
    return [k for k in (2**i for i in range(20)) if k < n] + [n]


def answer_key(response: str) -> str | None:
    r"""The boxed answer as a string for majority voting, or None without one. Equal numbers get one key.

    >>> [answer_key(r"\boxed{%s}" % s) for s in ("0.5", "1/2", r"\dfrac{2}{4}", r"\sqrt{ 2 }")]
    ['1/2', '1/2', '1/2', '\\sqrt{2}']
    """
    answer = last_boxed(response)
    return None if answer is None else one_spelling(answer) or None


def majority(keys: Sequence[str | None]) -> int | None:
    """Index of the first completion that gives the most frequent answer; the answer seen first wins a tie. None: nobody answered.

    `keys` are normalised answers; None (no box) is no vote.
    """
    votes = Counter(key for key in keys if key is not None)  # counts in order of first appearance
    return keys.index(max(votes, key=votes.get)) if votes else None


def bootstrap_interval(values: Sequence[float], draws: int = 1000, level: float = 0.95, seed: int = 42) -> tuple[float, float]:
    """Percentile interval of the mean over problems: resample the problems with replacement `draws` times."""
    x = torch.tensor(values, dtype=torch.float64)
    picks = torch.randint(len(x), (draws, len(x)), generator=torch.Generator().manual_seed(seed))
    means = x[picks].mean(1)
    return tuple(torch.quantile(means, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist())


def right(completions: list[str], problems: Sequence[Problem]) -> list[bool]:
    """Is each completion right? The problems' own reward function decides, if they have one; else whether the answer is."""
    own = problems[0].reward if problems else None
    if own is None:
        return verify_all(completions, [p.answer for p in problems])
    return [reward > 0 for reward in rewards_from(own, completions, *columns_for(own, problems))]


@dataclass
class Evaluation:
    """What an evaluation measured. `rows` has one entry per problem; `metrics` maps a name to (mean, low, high)."""

    metrics: dict[str, tuple[float, float, float]]
    rows: list[dict]
    rollouts: Rollouts
    correct: list[bool]


def evaluate(
    policy: Policy, problems: Sequence[Problem], prompts: Sequence[list[int]], *, completions: int = 8, temperature: float = 0.6,
    top_p: float = 0.95, max_new_tokens: int = 1024, seed: int = 0, sampling_rows: int = 512, progress: str = "",
) -> Evaluation:  # fmt: skip
    """Sample N completions of each problem and measure.

    acc@N: share of right completions (the estimate of pass@1). maj@N: share of problems whose majority answer is right.
    pass@k, for k = 1, 2, 4, ... N. Every metric is a mean over problems, with a 95 % interval from resampling problems.
    The sampling draws from a generator of its own, so an evaluation does not disturb a training run.
    """
    how = dict(temperature=temperature, top_p=top_p, sampling_rows=sampling_rows, progress=progress, complete=policy.complete)
    size = dict(completions_per_prompt=completions, max_new_tokens=max_new_tokens, stop_ids=policy.stop_ids)
    rollouts = sample(policy.model, policy.tokenizer, prompts, **size, **how, generator=torch.Generator().manual_seed(seed))
    group = rollouts.group.tolist()
    correct = right(rollouts.text, [problems[g] for g in group])
    rows = []
    for i, problem in enumerate(problems):
        mine = range(i * completions, (i + 1) * completions)  # sample() returns the groups in order
        chosen = majority([answer_key(rollouts.text[j]) for j in mine])
        row = {"problem": problem.problem, "answer": problem.answer, "correct": sum(correct[j] for j in mine)}
        row["majority_correct"] = chosen is not None and correct[mine[chosen]]
        row["mean_length"] = rollouts.lengths[list(mine)].float().mean().item()
        row["truncated"] = int((~rollouts.finished[list(mine)]).sum())
        rows.append(row)
    per_problem = {f"acc@{completions}": [r["correct"] / completions for r in rows]}
    per_problem[f"maj@{completions}"] = [float(r["majority_correct"]) for r in rows]
    per_problem |= {f"pass@{k}": [pass_at_k(completions, r["correct"], k) for r in rows] for k in powers_up_to(completions)}
    metrics = {name: (sum(v) / len(v), *bootstrap_interval(v)) for name, v in per_problem.items()}
    return Evaluation(metrics, rows, rollouts, correct)
