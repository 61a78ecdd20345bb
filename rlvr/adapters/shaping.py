"""What the adapters share: settings, checked as those of a run are, and shaping for rows that lie in any order."""

import tempfile

import torch
from torch import Tensor

from rlvr.advantage import keep_sign, shape
from rlvr.config import TrainConfig, refuse, train_config
from rlvr.methods import STRENGTHS
from rlvr.run.settings import check_train


def settings(**given) -> TrainConfig:
    """Method, strengths, learn_from, shape_start and shape_stop, with the defaults and ranges of `python train.py --help`.

    Raises SettingError.
    """
    known = {"method", "learn_from", "shape_start", "shape_stop", *STRENGTHS}
    unknown = " and ".join(sorted(given.keys() - known))
    refuse(unknown, f"{unknown} is no setting of shaping. Choose from {', '.join(sorted(known))}.")
    config = train_config()(**given, steps=10**12, out=tempfile.gettempdir())  # an engine counts its own steps and keeps its own folder
    check_train(config)
    return config


def shaped_by(config: TrainConfig, method: str, advantages: Tensor, old_logp: Tensor, mask: Tensor, group: Tensor, *, rewards, **more):
    """The advantage of every token, as `shape` and `keep_sign` make it with the strengths of the settings. -> [N, T]

    A row without a token (one that the engine masks, or puts in to fill a batch) takes no part in the statistics of its group.
    """
    if not mask.any():  # nor is there anything to shape
        return advantages[:, None] * mask
    rewards = rewards.float().where(mask.any(1), torch.nan)
    strengths = {name: getattr(config, name) for name in STRENGTHS}
    return keep_sign(shape(method, advantages, old_logp, mask, group, rewards=rewards, **more, **strengths), config.learn_from)
