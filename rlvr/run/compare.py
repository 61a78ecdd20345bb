"""`eval.py`: several models on several sets of problems, side by side."""

import contextlib
import dataclasses
import json
import os
import time
from pathlib import Path

import torch

from rlvr.common.files import first_free, write_atomically
from rlvr.common.text import interval, table
from rlvr.config import EvalConfig, SettingError, flag, refuse
from rlvr.data import Problem, encode_prompts, how_to_read, load_held_out
from rlvr.evaluate import evaluate
from rlvr.loaders.models import check_length, check_model_name, check_reachable, choose_device, most_positions
from rlvr.policy import Policy, load_policy
from rlvr.run.settings import check_can_write, check_size, read_config


def compare(config: EvalConfig) -> dict:
    """Evaluate models on sets of problems, print a table with intervals for each set, and write it with every problem's counts as JSON.

    With several sets a last table has the layout of the paper's: a row per model, a column per set, and the mean over the sets.
    Returns what it wrote. Raises SettingError before the first model runs: for names, files, models and --out that cannot work.
    """
    models, sets = list(dict.fromkeys(config.models)), list(dict.fromkeys(part.strip() for part in config.data.split(",")))  # each once
    for name in models:
        check_model_name(name)
    c = prompts_of_the_run(config)
    path = Path(c.out) if c.out else first_free(Path("runs") / f"eval-{'-'.join(Path(data).name.split('.')[0] for data in sets).replace(':', '-')}.json")
    refuse(os.path.lexists(path), f"There is a file or folder {path} already. Choose another --out, or delete it.")
    check_can_write(path.parent, "the folder of --out")
    torch.set_num_threads(c.threads or torch.get_num_threads())
    choose_device(c.device, c.cuda_graphs)
    for name in models:
        check_reachable(name)
    problems = {}
    for data in sets:
        problems[data] = load_held_out(data, c.problems or (400 if data == "tiny" else 0), **how_to_read(c))
        check_size(len(problems[data]) * c.completions, c.max_new_tokens or _usual_length(data), "--problems and --completions")
    results: dict[str, dict[str, dict]] = {data: {} for data in sets}
    for name in models[1:]:  # a mistake in the last one must not cost the evaluation of the first, and one model fits into memory
        _prepare(c, name, problems)
    for name in models:
        _measure(c, name, problems, results)
    for data in sets:
        _print_set(c, data, results[data])
    if len(sets) > 1:
        _print_paper_layout(c, results)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = {"settings": dataclasses.asdict(c) | {"data_config": list(c.data_config)}, "results": results}
    write_atomically(path, json.dumps(written, indent=1) + "\n")
    print(f"\nwritten to {path}")
    return written


def _prepare(c: EvalConfig, name: str, problems: dict[str, list[Problem]]) -> tuple[Policy, dict[str, tuple]]:
    """A model; and for each set the problems that fit it, as prompts, how many were too long, and how long a completion may be."""
    policy, prepared, prompt = load_policy(name, c.device, c.dtype, c.engine, c.cuda_graphs), {}, (c.system, c.template, c.template_args)
    for data, all_of_it in problems.items():
        fitting, prompts, too_long = encode_prompts(policy.tokenizer, all_of_it, c.instruction, c.max_prompt_tokens, *prompt)
        room = most_positions(policy.model.config) - max(map(len, prompts))
        max_new_tokens = c.max_new_tokens or max(1, int(min(_usual_length(data), room)))
        check_length(policy.model, prompts, max_new_tokens)
        prepared[data] = fitting, prompts, too_long, max_new_tokens
    return policy, prepared


def _measure(c: EvalConfig, name: str, problems: dict[str, list[Problem]], results: dict[str, dict[str, dict]]) -> None:
    """Evaluate one model on every set, and put what was measured into results[set][model]."""
    policy, prepared = _prepare(c, name, problems)
    for data, (fitting, prompts, too_long, max_new_tokens) in prepared.items():
        started = time.perf_counter()
        how = {key: getattr(c, key) for key in ("completions", "temperature", "top_p", "seed", "sampling_rows")}
        progress = name if len(problems) == 1 else f"{name} on {data}"
        result = evaluate(policy, fitting, prompts, **how, max_new_tokens=max_new_tokens, progress=progress)
        if too_long:
            print(f"{name}: {too_long} of {len(problems[data])} problems of {data} left out, prompt over {c.max_prompt_tokens} tokens")
        metrics = {metric: dict(zip(("mean", "low", "high"), numbers)) for metric, numbers in result.metrics.items()}
        length, finished = (x.float().mean().item() for x in (result.rollouts.lengths, result.rollouts.finished))
        results[data][name] = {"metrics": metrics, "mean_length": length, "truncated": 1 - finished, "max_new_tokens": max_new_tokens,
                               "prompts_left_out": too_long, "seconds": time.perf_counter() - started, "problems": result.rows}  # fmt: skip


def prompts_of_the_run(c: EvalConfig) -> EvalConfig:
    """The settings, with prompts and length as a run among the models was trained with, unless the command line says how prompts look.

    All models get the same. Of several runs that differ, none decides, and a line says so.
    """
    names = ("instruction", "system", "template", "template_args")
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
    shown = ", ".join(f"{flag(name)} {value!r}" for name, value in prompts.items())
    print(f"as in training: {shown}, --max-new-tokens {longest}")
    return dataclasses.replace(c, **prompts, max_new_tokens=longest)


def _usual_length(data: str) -> int:
    return 120 if data == "tiny" else 1024


def _print_set(c: EvalConfig, data: str, results: dict[str, dict]) -> None:
    """The table of one set: a row per model, with intervals."""
    shown, rows = [f"{metric}@{c.completions}" for metric in ("acc", "maj", "pass")], []  # the other pass@k are in the file
    for name, result in results.items():
        numbers = [interval(**result["metrics"][k], form=".3f") for k in shown]
        rows.append([name, str(len(result["problems"])), *numbers, f"{result['mean_length']:.0f}", f"{result['truncated']:.1%}"])
    longest = max(result["max_new_tokens"] for result in results.values())
    sampled = f"{c.completions} completions each, temperature {c.temperature}, top-p {c.top_p}, at most {longest} tokens"
    print(f"\n{data}: {sampled}; in brackets 95 % intervals over problems\n")
    print(table(["model", "problems", *shown, "length", "truncated"], rows))


def _print_paper_layout(c: EvalConfig, results: dict[str, dict[str, dict]]) -> None:
    """Several sets side by side, in percent, and their mean."""
    n, rows = c.completions, []
    for name in next(iter(results.values())):
        cells = [[results[data][name]["metrics"][f"{metric}@{n}"]["mean"] for metric in ("acc", "maj", "pass")] for data in results]
        cells.append([sum(column) / len(column) for column in zip(*cells)])
        rows.append([name, *(" / ".join(f"{100 * x:.1f}" for x in cell) for cell in cells)])
    print(f"\nacc@{n} / maj@{n} / pass@{n}, in percent\n")
    print(table(["model", *results, "mean"], rows))
