"""What happens before the first step: every check that needs no model, the memory a run will need, and loading what the settings name."""

from collections.abc import Callable
from dataclasses import replace

import torch

from rlvr.common.text import say
from rlvr.config import BUILT_IN, TrainConfig, need, refuse
from rlvr.data import Problem, has_test_split, how_to_read, load_held_out, load_problems
from rlvr.engine.estimate import Estimate, advice, estimate, free_memory
from rlvr.engine.optimizer import make_adamw
from rlvr.engine.parallel import rank, team
from rlvr.loaders.adapters import add_lora
from rlvr.loaders.gym import is_gym
from rlvr.loaders.models import chain, check_length, check_model_name, check_reachable, choose_device
from rlvr.loaders.models import choose_dtype, load_config, most_positions, resolve_model, settle_dtype
from rlvr.loaders.rows import check_answers
from rlvr.policy import Policy, load_policy
from rlvr.run.branch import branch_point
from rlvr.run.folder import run_folder
from rlvr.run.held_out import HeldOut, encode
from rlvr.run.publish import check_hub
from rlvr.run.reward_function import fenced, load_reward
from rlvr.run.settings import check_train


def load(c: TrainConfig, reward: Callable | None) -> tuple[TrainConfig, Policy, list[Problem], list[list[int]], Callable | None, HeldOut]:
    """Check the settings and load what they name: policy, problems, their prompts, the reward function, held-out problems. Before these
    come the settings themselves, with the precision that was chosen, for the run folder to keep.

    reward: a function passed from Python; None: --reward, or is the answer right? Raises SettingError. A process that only helps (see
    parallel.py) gets the policy alone.
    """
    if not team(c):
        torch.set_num_threads(c.threads or torch.get_num_threads())
    if not rank():
        _check(c)
    dtype = "" if rank() else settle_dtype(c)
    c = replace(c, dtype=team(c).agree(dtype) if team(c) else dtype)
    if rank():
        return c, _policy(c), [], [], None, HeldOut([], [])
    refuse(c.reward and reward, f"There are two reward functions, --reward {c.reward} and the one passed to train(). Leave one out.")
    problems, held_out = _problems(c)
    reward = load_reward(c.reward, problems[0]) if c.reward else reward
    reward = fenced(reward) if reward else problems[0].reward
    if reward is None:
        check_answers([p.answer for p in problems], c.data)
    if c.model in BUILT_IN and is_gym(c.data):
        say("note: the built-in model knows its own stories alone, and its tokenizer spells other words in pieces of a letter or two")
    say_memory(c)
    policy = _policy(c)
    quantised = not c.lora_rank and not all(p.requires_grad for p in policy.model.parameters())
    refuse(quantised, f"The weights of {c.model} are quantised and cannot be trained. Choose the model that is not, or add --lora-rank 32.")
    problems, prompts = encode(c, policy, problems, "problems")
    measured = HeldOut(*encode(c, policy, held_out, "held-out problems")) if held_out else HeldOut([], [])
    check_length(policy.model, prompts + measured.prompts, c.max_new_tokens)
    return c, policy, problems, prompts, reward, measured


def _policy(c: TrainConfig) -> Policy:
    policy = load_policy(c.model, c.device, c.dtype, c.engine, c.cuda_graphs)
    if c.lora_rank:
        add_lora(policy.model, c.lora_rank, c.lora_alpha, c.seed, c.model if c.model in BUILT_IN else resolve_model(c.model))
    return policy


def _check(c: TrainConfig) -> None:
    """Refuse what cannot work, before anything is loaded. Raises SettingError."""
    check_train(c)
    check_model_name(c.model)
    choose_device(c.device, c.cuda_graphs)
    if c.report_to != "none":
        need(c.report_to, f"--report-to {c.report_to}")
    if c.lora_rank:
        need("peft", "LoRA")
    make_adamw(c, [torch.nn.Parameter(torch.zeros(1))])
    check_reachable(c.model)
    if c.push_to_hub:
        check_hub(c.push_to_hub, resolve_model(c.model) if c.lora_rank and not c.lora_merge else "", "add --lora-merge")
    if not c.resume:
        run_folder(c)
        if c.branch:
            branch_point(c)


def _problems(c: TrainConfig) -> tuple[list[Problem], list[Problem]]:
    """The problems to train on, and the held-out ones."""
    problems, held_out = load_problems(c.data, "train", seed=c.seed, **how_to_read(c)), []
    held_out_data = c.eval_data or (c.data if has_test_split(c.data) else "")
    if held_out_data and c.final_eval_problems:
        held_out = load_held_out(held_out_data, c.final_eval_problems, **how_to_read(c))
        known = {p.problem for p in problems}
        if both := sum(p.problem in known for p in held_out):
            say(f"note: {both} of {len(held_out)} held-out problems are among those of --data too, so they are not held out")
    return problems, held_out


def say_memory(c: TrainConfig) -> None:
    """Print what memory the run will need, before a model is loaded, and what to change if that is not free."""
    if c.model in BUILT_IN:
        return
    device = choose_device(c.device)
    *_, base = chain(resolve_model(c.model))

    def again(c: TrainConfig) -> Estimate:
        return estimate(c, shape, device, choose_dtype(c.dtype, device))

    try:
        shape = load_config(base)
        e = again(c)
    except Exception:  # a damaged folder, a model that is no language model: loading it says what is wrong
        return
    say(f"memory at most: {e}")
    if (free := free_memory(device)) is not None and (remedy := advice(c, free, again)):
        say(f"note: {remedy}")
    most, wanted = most_positions(shape), c.max_new_tokens  # with the prompts, it is checked again once they are known
    refuse(wanted >= most, f"--max-new-tokens is {wanted}, but the model has positions for {most} tokens. Lower it.")
