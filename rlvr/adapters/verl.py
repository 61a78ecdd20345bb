"""The methods inside verl, the framework of the paper: Ray, FSDP or Megatron, vLLM or SGLang.

    VERL_USE_EXTERNAL_MODULES=rlvr.adapters.verl python -m verl.trainer.main_ppo algorithm.adv_estimator=rlvr_ppl_pos \\
        +algorithm.rlvr.ppl_alpha=0.2 ...

registers an advantage estimator for each method, rlvr_ppl, rlvr_pos, rlvr_ppl_pos and so on, and `rlvr`, whose method is that of
+algorithm.rlvr.method. tutorials/with_verl.sh is a whole recipe. rlvr/adapters/parquet.py writes problems as verl reads them, and
`compute_score` is our verifier as its reward. `shape_rows` imports no engine, and serves others that are built like verl.
"""

import sys
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps

import torch
from torch import Tensor

from rlvr.adapters import need, need_method
from rlvr.adapters.shaping import settings, shaped_by
from rlvr.advantage import METHODS, grpo_advantages
from rlvr.config import TrainConfig, refuse
from rlvr.methods import reads
from rlvr.reward import verify

_SEEN: ContextVar[dict] = ContextVar("rlvr", default={})  # what verl knows of a batch and does not hand to an estimator, while it calls one


def shape_rows(
    token_level_rewards: Tensor, response_mask: Tensor, index, old_log_probs: Tensor | None = None, method: str = "ppl+pos", *,
    entropy: Tensor | None = None, step: int | None = None, **given,
) -> Tensor:  # fmt: skip
    """Rewards of the tokens -> their advantages, [N, T] each: GRPO's, changed by a method of `rlvr.advantage`.

    index: N names; rows of one name are a group, in any order. entropy [N, T] and step are needed by some methods alone. given: strengths,
    learn_from, shape_start and shape_stop, as in `python train.py --help`. Raises ValueError.
    """
    config = _settings(method, given)
    if step is None and (config.shape_start, config.shape_stop) != (1, 0):
        raise ValueError("There is no step, so nothing is known of the window. Leave out --shape-start and --shape-stop, or give a step.")
    if old_log_probs is None and "old_logp" in reads(method):
        raise ValueError(f"The method {method} needs the old log-probs, and none reached it. Choose another method, or verl's v1 trainer.")
    index = index.tolist() if isinstance(index, Tensor) else index  # its elements have no equals
    numbers = {name: number for number, name in enumerate(dict.fromkeys(index))}
    group = torch.tensor([numbers[name] for name in index], device=response_mask.device)
    rewards = token_level_rewards.float().sum(-1)
    old_logp = torch.zeros_like(token_level_rewards) if old_log_probs is None else old_log_probs
    rows = (grpo_advantages(rewards, group), old_logp.float(), response_mask.bool(), group)
    return shaped_by(config, config.method_at(step or 1, None), *rows, rewards=rewards, entropy=entropy, step=step)


def _settings(method: str, given: dict) -> TrainConfig:
    config = settings(method=method, **given)
    if config.shape_start == "plateau":
        raise ValueError("verl keeps no entropy of earlier steps, so it cannot tell the plateau. Give shape_start the number of a step.")
    return config


def compute_score(data_source, solution_str: str, ground_truth: str, extra_info=None, **_) -> dict:
    """A reward function for verl: 1 for a right answer, -1 for a wrong one (the paper), and which it was, for the filter of groups."""
    right = verify(solution_str, ground_truth)
    return {"score": 1.0 if right else -1.0, "acc": right}


def method_of(algorithm) -> str | None:
    """The method that verl's settings name, or None if their estimator is none of ours."""
    estimator = str(algorithm.adv_estimator)
    return (algorithm.get("rlvr") or {}).get("method", "ppl+pos") if estimator == "rlvr" else _estimators().get(estimator)


def _estimators() -> dict[str, str]:
    return {"rlvr_" + method.replace("+", "_").replace("-", "_"): method for method in (*METHODS, "ppl+pos")}


def _given(algorithm) -> dict:
    return {key: value for key, value in (algorithm.get("rlvr") or {}).items() if key != "method"}


def check(algorithm) -> None:
    """Raise ValueError for settings with which a run would fail at its first advantage, hours after it was started perhaps."""
    name, known = str(algorithm.adv_estimator), ["rlvr", *_estimators()]
    refuse(name.lower().startswith("rlvr") and name not in known, f"There is no estimator {name}. Choose one of {', '.join(known)}.")
    if name not in known:
        return
    refuse(name != "rlvr" and "method" in (algorithm.get("rlvr") or {}), f"{name} names its method. Leave out algorithm.rlvr.method.")
    _settings(method := method_of(algorithm), _given(algorithm))
    for reading, setting, what in (("entropy", "bypass_mode", "computes no entropies"), ("rewards", "rollout_rs", "drops rewards")):
        if reading in reads(method) and (value := (algorithm.get("rollout_correction") or {}).get(setting)):
            raise ValueError(f"verl {what} with rollout_correction.{setting}={value}, and {method} needs them. Leave out one of the two.")


def _estimate(token_level_rewards, response_mask, config, index=None, batch=None, **_):
    """What verl calls: settings and rows -> (advantages, returns). batch: what newer versions of verl may hand over."""
    seen = {**_SEEN.get(), **(batch or {})}
    more = dict(entropy=seen.get("entropy"), step=seen.get("step"), **_given(config))
    shaped = shape_rows(token_level_rewards, response_mask, index, seen.get("old_log_probs"), method_of(config), **more)
    return shaped, shaped


@contextmanager
def _seeing(**more):
    token = _SEEN.set({**_SEEN.get(), **more})
    try:
        yield
    finally:
        _SEEN.reset(token)


def register() -> None:
    """Make the estimators known to verl, let its trainers check their settings, and let the estimators see log-probs, entropies and step."""
    need("verl", ">=0.9,<0.10")
    from verl import DataProto
    from verl.trainer.ppo import core_algos, ray_trainer
    from verl.trainer.ppo.v1 import trainer_base as base
    from verl.trainer.ppo.v1 import utils as v1

    for name in ("rlvr", *_estimators()):
        core_algos.register_adv_est(name)(_estimate)

    def with_log_probs(compute_advantage):
        @wraps(compute_advantage)
        def seeing(data, *args, **kwargs):
            with _seeing(**{name: data.batch[name] for name in ("old_log_probs",) if name in data.batch.keys()}):
                return compute_advantage(data, *args, **kwargs)

        return seeing

    def with_step(compute_advantage):
        @wraps(compute_advantage)
        def seeing(trainer, batch, metrics):
            more = {"step": trainer.global_steps}
            if "entropy" in reads(method_of(trainer.config.algorithm) or "grpo"):
                stored = base.tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["entropy", "response_mask"])
                more["entropy"] = DataProto(batch=stored.to_padded_tensor()).batch["entropy"]
            with _seeing(**more):
                return compute_advantage(trainer, batch, metrics)

        return seeing

    def checked(init):
        @wraps(init)
        def checking(trainer, config, *args, **kwargs):
            check(config.algorithm)
            init(trainer, config, *args, **kwargs)

        return checking

    for trainer in (base.PPOTrainer, ray_trainer.RayPPOTrainer):
        need_method(trainer, "__init__", "self config", "verl==0.9.1")
        trainer.__init__ = checked(trainer.__init__)
    need_method(base.PPOTrainer, "_compute_advantage", "self batch metrics", "verl==0.9.1")
    v1.compute_advantage = ray_trainer.compute_advantage = with_log_probs(ray_trainer.compute_advantage)
    base.PPOTrainer._compute_advantage = with_step(base.PPOTrainer._compute_advantage)


if "verl" in sys.modules:  # verl itself imports this file, by VERL_USE_EXTERNAL_MODULES
    register()
