"""Evaluation: Acc@N, Maj@N and Pass@k with bootstrap intervals over problems."""

import contextlib
import dataclasses
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path

import torch

from rlvr.config import EvalConfig, SettingError, check_can_write, check_size, read_config
from rlvr.data import Problem, encode_prompts, load_held_out
from rlvr.common.files import first_free, write_atomically
from rlvr.common.text import table
from rlvr.engine.memory import Budget
from rlvr.policy import Policy, check_length, check_model_name, choose_device, load_policy, positions
from rlvr.reward import answer_key, verify_all
from rlvr.rollout import Rollouts, sample


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that at least one of k completions is right, unbiased, from n completions of which c are right.

    1 - C(n-c, k) / C(n, k)  (Chen et al. 2021; Deng et al. 2025b). Raises ValueError unless 0 <= c <= n and 1 <= k <= n.

    >>> pass_at_k(n=4, c=1, k=2)
    0.5
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, not n={n}, c={c}, k={k}")
    return 1.0 - comb(n - c, k) / comb(n, k)


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
    low, high = torch.quantile(means, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return low, high


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
    cuda_graphs: bool = False,
) -> Evaluation:  # fmt: skip
    """Sample N completions of each problem and measure.

    acc@N: share of right completions (the estimate of pass@1). maj@N: share of problems whose majority answer is right.
    pass@k, for k = 1, 2, 4, ... N. Every metric is a mean over problems, with a 95 % interval from resampling problems.
    The sampling draws from a generator of its own, so an evaluation does not disturb a training run.
    """
    generator = torch.Generator().manual_seed(seed)
    rollouts = sample(
        policy.model, policy.tokenizer, prompts, completions_per_prompt=completions, max_new_tokens=max_new_tokens,
        stop_ids=policy.stop_ids, temperature=temperature, top_p=top_p, generator=generator, sampling_rows=sampling_rows, progress=progress,
        cuda_graphs=cuda_graphs,
    )  # fmt: skip
    group = rollouts.group.tolist()
    correct = verify_all(rollouts.text, [problems[g].answer for g in group])
    rows = []
    for i, problem in enumerate(problems):
        mine = range(i * completions, (i + 1) * completions)  # sample() returns the groups in order
        chosen = majority([answer_key(rollouts.text[j]) for j in mine])
        rows.append(
            {
                "problem": problem.problem,
                "answer": problem.answer,
                "correct": sum(correct[j] for j in mine),
                "majority_correct": chosen is not None and correct[mine[chosen]],
                "mean_length": rollouts.lengths[list(mine)].float().mean().item(),
                "truncated": int((~rollouts.finished[list(mine)]).sum()),
            }
        )
    ks = [k for k in (2**i for i in range(20)) if k < completions] + [completions]
    per_problem = {
        f"acc@{completions}": [r["correct"] / completions for r in rows],
        f"maj@{completions}": [float(r["majority_correct"]) for r in rows],
    }
    per_problem |= {f"pass@{k}": [pass_at_k(completions, r["correct"], k) for r in rows] for k in ks}
    metrics = {name: (sum(v) / len(v), *bootstrap_interval(v)) for name, v in per_problem.items()}
    return Evaluation(metrics, rows, rollouts, correct)


def compare(config: EvalConfig) -> dict:
    """Evaluate models on sets of problems, print a table with intervals for each set, and write it with every problem's counts as JSON.

    With several sets there is a last table in the layout of the paper's: a row per model, a column per set, and the mean over the sets.
    Returns what it wrote. Raises SettingError before the first model runs: for names, files, models and --out that cannot work.
    """
    c = config
    models, sets = list(dict.fromkeys(c.models)), list(dict.fromkeys(part.strip() for part in c.data.split(",")))  # each once
    for name in models:
        check_model_name(name)
    c = prompts_of_the_run(c)
    path = Path(c.out) if c.out else first_free(Path("runs") / f"eval-{'-'.join(Path(data).name.split('.')[0] for data in sets)}.json")
    if os.path.lexists(path):
        raise SettingError(f"There is a file or folder {path} already. Choose another --out, or delete it.")
    check_can_write(path.parent, "the folder of --out")
    if c.threads:
        torch.set_num_threads(c.threads)
    choose_device(c.device, c.cuda_graphs)
    problems = {}
    for data in sets:
        most = c.problems or (400 if data == "tiny" else 0)
        problems[data] = load_held_out(data, most, level=c.level, problem_column=c.problem_column, answer_column=c.answer_column)
        check_size(len(problems[data]) * c.completions, c.max_new_tokens or _usual_length(data), "--problems and --completions")

    def prepare(name: str) -> tuple[Policy, dict[str, tuple]]:
        """A model; and for each set, the problems, as prompts for it, how many were too long, and how long a completion may be."""
        policy, prepared = load_policy(name, c.device, c.dtype, c.sampler), {}
        for data in sets:
            fitting, prompts, too_long = encode_prompts(
                policy.tokenizer, problems[data], c.instruction, c.max_prompt_tokens, c.system, c.template
            )
            room = positions(policy) - max(map(len, prompts))
            max_new_tokens = c.max_new_tokens or max(1, int(min(_usual_length(data), room)))
            check_length(policy, prompts, max_new_tokens)
            prepared[data] = fitting, prompts, too_long, max_new_tokens
        return policy, prepared

    for name in models[1:]:  # a mistake in the last one must not cost the evaluation of the first
        prepare(name)
    results = {data: {} for data in sets}
    policy, sampling_rows = None, Budget("--sampling-rows", c.sampling_rows)
    for name in models:
        del policy  # one model in memory at a time
        policy, prepared = prepare(name)
        for data, (fitting, prompts, too_long, max_new_tokens) in prepared.items():
            started = time.perf_counter()
            result = sampling_rows.run(
                lambda rows: evaluate(
                    policy, fitting, prompts, completions=c.completions, temperature=c.temperature, top_p=c.top_p, seed=c.seed,
                    max_new_tokens=max_new_tokens, sampling_rows=rows, progress=name if len(sets) == 1 else f"{name} on {data}",
                    cuda_graphs=c.cuda_graphs,
                )
            )  # fmt: skip
            results[data][name] = {
                "metrics": {k: dict(zip(("mean", "low", "high"), v)) for k, v in result.metrics.items()},
                "mean_length": result.rollouts.lengths.float().mean().item(),
                "truncated": 1 - result.rollouts.finished.float().mean().item(),
                "max_new_tokens": max_new_tokens,
                "prompts_left_out": too_long,
                "seconds": time.perf_counter() - started,
                "problems": result.rows,
            }
            if too_long:
                print(f"{name}: {too_long} of {len(problems[data])} problems of {data} left out, prompt over {c.max_prompt_tokens} tokens")
    for data in sets:
        _print_set(c, data, results[data])
    if len(sets) > 1:
        _print_paper_layout(c, results)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = {"settings": dataclasses.asdict(c), "results": results}
    write_atomically(path, json.dumps(written, indent=1) + "\n")
    print(f"\nwritten to {path}")
    return written


def prompts_of_the_run(c: EvalConfig) -> EvalConfig:
    """The settings, with prompts and length as a run among the models was trained with, unless the command line says how prompts look.

    All models get the same. Of several runs that differ, none decides, and a line says so.
    """
    names = ("instruction", "system", "template")
    if any(getattr(c, name) != getattr(EvalConfig(models=[]), name) for name in names):
        return c
    runs = []
    for name in c.models:
        if Path(name, "metrics.csv").is_file():
            with contextlib.suppress(SettingError):  # a run of another version: its model will do
                runs.append(read_config(Path(name)))
    found = {tuple(getattr(run, name) for name in names) for run in runs}
    if len(found) > 1:
        print("note: these runs were trained with different prompts; all are measured with the usual ones. --template says which to take")
    if len(found) != 1 or (prompts := dict(zip(names, found.pop()))) == {name: getattr(c, name) for name in names}:
        return c
    longest = c.max_new_tokens or max(run.max_new_tokens for run in runs)
    shown = ", ".join(f"--{name} {value!r}" for name, value in prompts.items())
    print(f"as in training: {shown}, --max-new-tokens {longest}")
    return dataclasses.replace(c, **prompts, max_new_tokens=longest)


def _usual_length(data: str) -> int:
    return 120 if data == "tiny" else 1024


def _print_set(c: EvalConfig, data: str, results: dict[str, dict]) -> None:
    """The table of one set: a row per model, with intervals."""
    shown, rows = [f"{metric}@{c.completions}" for metric in ("acc", "maj", "pass")], []  # the other pass@k are in the file
    for name, result in results.items():
        numbers = ["{mean:.3f} [{low:.3f}, {high:.3f}]".format(**result["metrics"][k]) for k in shown]
        rows.append([name, str(len(result["problems"])), *numbers, f"{result['mean_length']:.0f}", f"{result['truncated']:.1%}"])
    longest = max(result["max_new_tokens"] for result in results.values())
    print(
        f"\n{data}: {c.completions} completions each, temperature {c.temperature}, top-p {c.top_p}, at most {longest} tokens; "
        "in brackets 95 % intervals over problems\n"
    )
    print(table(["model", "problems", *shown, "length", "truncated"], rows))


def _print_paper_layout(c: EvalConfig, results: dict[str, dict[str, dict]]) -> None:
    """Several sets side by side, in percent, and their mean."""
    n = c.completions
    rows = []
    for name in next(iter(results.values())):
        cells = [[results[data][name]["metrics"][f"{metric}@{n}"]["mean"] for metric in ("acc", "maj", "pass")] for data in results]
        cells.append([sum(column) / len(column) for column in zip(*cells)])
        rows.append([name, *(" / ".join(f"{100 * x:.1f}" for x in cell) for cell in cells)])
    print(f"\nacc@{n} / maj@{n} / pass@{n}, in percent\n")
    print(table(["model", *results, "mean"], rows))
