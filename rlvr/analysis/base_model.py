"""What a base model is like before training: how often it is right, how undecided it is, which defects its completions have.

python -m rlvr.analysis.base_model my_model tiny
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

if not __package__:  # run by its path, which works from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rlvr.common.text import say, table
from rlvr.config import base_of, refuse
from rlvr.data import encode_prompts, load_problems
from rlvr.entropy import entropy_by_correctness
from rlvr.evaluate import evaluate
from rlvr.loaders.models import check_model_name
from rlvr.policy import load_policy
from rlvr.run.cli import parse_command, run_program
from rlvr.run.defects import ERRORS, defect_shares, error_kind


@dataclass
class BaseModelConfig:
    """Measure models on the built-in test problems, side by side: 8 completions of each problem, at temperature 1 as in training.

    python -m rlvr.analysis.base_model my_model tiny  -- a model made by rlvr.tiny.pretrain, and the shipped one

    python -m rlvr.analysis.base_model tiny3 runs/grpo-seed0 --level 3  -- the base model of level 3, and a run from it
    """

    models: list[str]
    """Model folders, run folders, Hub ids, or 'tiny' (the built-in model; at --level 3 that is tiny3)."""
    level: Literal[1, 2, 3] = 1
    """Of the test problems."""
    temperature: float = 1.0
    """Sampling temperature."""
    top_p: float = 1.0
    """Nucleus sampling (1: off)."""


def describe(model: str, problems: int = 400, level: int = 1, temperature: float = 1.0, top_p: float = 1.0) -> dict[str, float]:
    """Name of a number -> its value for a model: accuracies, entropies in nats, mean length in tokens, the share of each defect, and the
    share of completions whose first error is of each kind."""
    policy = load_policy(model, device="cpu")
    stories, prompts, _ = encode_prompts(policy.tokenizer, load_problems("tiny", "test", problems, level=level), "", max_prompt_tokens=128)
    result = evaluate(policy, stories, prompts, temperature=temperature, top_p=top_p, max_new_tokens=120, progress=f"measuring {model}")
    rollouts = result.rollouts
    entropy_right, entropy_wrong = entropy_by_correctness(rollouts.entropy, rollouts.mask, torch.tensor(result.correct))
    shares = defect_shares(rollouts.text, rollouts.finished.tolist(), [stories[g].solution_steps for g in rollouts.group.tolist()])
    numbers = {name: result.metrics[name][0] for name in ("pass@1", "pass@8", "maj@8")}
    numbers |= {"entropy, right answers": entropy_right, "entropy, wrong answers": entropy_wrong}
    numbers["mean length"] = rollouts.lengths.float().mean().item()
    numbers |= {name.replace("_", " "): share for name, share in shares.items()}
    answers = zip(rollouts.group.tolist(), rollouts.text, result.correct)
    errors = Counter(error_kind(stories[g].problem, text) for g, text, right in answers if not right)
    return numbers | {f"error: {kind}": errors[kind] / len(result.correct) for kind in ERRORS}


def compare(models: list[str], problems: int = 400, level: int = 1, **options) -> None:
    """Print a table with a column for each model. Raises SettingError, for a model that cannot be found before the first is measured."""
    refuse(not models, "No model was named. Name one or more, as in: python -m rlvr.analysis.base_model my_model tiny")
    models = [base_of(level, model) for model in models]
    for model in models:
        check_model_name(model)
    columns = [describe(model, problems, level, **options) for model in models]
    rows = [[name, *(f"{numbers[name]:.3f}" for numbers in columns)] for name in columns[0]]
    say(table([f"on {problems} test problems", *models], rows))


if __name__ == "__main__":
    run_program(lambda: compare(**vars(parse_command(BaseModelConfig, "python -m rlvr.analysis.base_model"))))
