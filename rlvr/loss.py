"""The clipped objective of GRPO, as a sum over tokens divided by one denominator for the whole update."""

import torch
from torch import Tensor


def clipped_loss(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, *, clip_low: float = 0.2, clip_high: float = 0.28,
    denominator: float | None = None, ref_logp: Tensor | None = None, kl_coef: float = 0.0,
    entropy: Tensor | None = None, entropy_coef: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """PPO's clipped objective with "clip-higher", negated to be minimised (Deng et al. 2025, released code; DAPO).

        loss = sum over valid tokens of  max(-ratio * A, -clip(ratio, 1 - clip_low, 1 + clip_high) * A)  / denominator

    logp, old_logp, advantages, mask: [N, T]. `denominator` is the number of valid tokens of the *whole update*, so that micro-batches of
    any size add up to the same gradient: an exact token mean. Default: the valid tokens given here (1 if there are none).
    Values outside the mask, NaN included, change neither loss nor gradient.

    The value of the loss says little: with ratio 1 and centred advantages it is near 0, and its gradient is not.

    Returns the loss and counts for the log, as sums over tokens (tensors): clipped_low and clipped_high count the tokens whose gradient
    the clip removed, kl is the sum of the estimated KL to the reference.
    """
    mask = mask.bool()
    if denominator is None:
        denominator = max(int(mask.sum()), 1)
    # Clean up before exp: inf * 0 at a padded position would be NaN, and stay NaN in the gradient. For the same reason exp must not
    # overflow; e^20 is far outside any clip.
    log_ratio = torch.where(mask, logp - old_logp, 0.0).clamp(-20, 20)
    advantages = torch.where(mask, advantages, 0.0)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = torch.maximum(-ratio * advantages, -clipped * advantages).sum() / denominator
    stats = {
        "clipped_low": ((ratio < 1 - clip_low) & (advantages < 0)).sum(),
        "clipped_high": ((ratio > 1 + clip_high) & (advantages > 0)).sum(),
    }
    if kl_coef:  # the "k3" estimator of KL(policy || reference), never negative (Schulman 2020, Approximating KL Divergence)
        log_ref = torch.where(mask, ref_logp - logp, 0.0).clamp(-20, 20)
        kl = torch.where(mask, log_ref.expm1() - log_ref, 0.0).sum()
        loss = loss + kl_coef * kl / denominator
        stats["kl"] = kl.detach()
    if entropy_coef:
        loss = loss - entropy_coef * torch.where(mask, entropy, 0.0).sum() / denominator
    return loss, stats
