"""Further ways to weight tokens, from other papers, so that the two methods of Deng et al. 2025 can be compared with their field; shams.

Each is one function with one declaration, as in advantage.py, and can be joined with others, as in ppl+forks. Rules that their papers
apply in the loss, at each update, are applied here once, to the policy that sampled. Tokens that get no advantage still count in the
denominator of the loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlvr.advantage import METHODS, STRENGTHS, Strength, method, method_parts, position_bonus, ppl_weights

if TYPE_CHECKING:  # `--help` reads the declarations, and must not wait for torch
    from torch import Generator, Tensor

__all__ = ["STRENGTHS"]  # of all methods, these included


def reads(method: str) -> set[str]:
    """What a method looks at beside advantages: of old_logp, entropy, rewards and step, those that its parts name."""
    return {name for part in method_parts(method) for name in getattr(METHODS[part], "reads", "old_logp").split()}


@method("forks", reads="entropy",
    forks_share=Strength(0.2, "Share of tokens to learn from, those of highest entropy (Wang et al. 2025: 0.2; 1: all)."))
def forks(shaped, advantages, old_logp, mask, group, *, entropy, forks_share):
    """Only the tokens at which the policy is most undecided get an advantage (Wang et al. 2025, arXiv 2506.01939).

    A token stays if its entropy is among the share `forks_share` of the highest in the batch of the step; equal entropies stay together.
    """
    highest = entropy[mask.bool()].sort(descending=True).values
    least = highest[: max(1, round(forks_share * len(highest)))].min()
    return shaped.where(entropy >= least, 0.0)


@method("entropy-adv", reads="entropy",
    entropy_adv_alpha=Strength(0.4, "Share of the entropy (nats) that is added to the advantage (Cheng et al. 2025: 0.4; 0: none)."),
    entropy_adv_kappa=Strength(2.0, "What is added is at most the size of the advantage, divided by this (Cheng et al. 2025: 2)."))
def entropy_adv(shaped, advantages, old_logp, mask, group, *, entropy, entropy_adv_alpha, entropy_adv_kappa):
    """The advantage plus a bounded share of the entropy: A + min(alpha * H, |A| / kappa) (Cheng et al. 2025, arXiv 2506.14758).

    No gradient passes through the entropy. With kappa above 1 no advantage changes its sign, and one of 0 stays 0: joined to another
    method, A is what that one made of it.
    """
    return shaped + (entropy_adv_alpha * entropy.detach()).minimum(shaped.abs() / max(entropy_adv_kappa, 1e-6)).where(mask.bool(), 0.0)


@method("clip-cov", reads="old_logp step",
    clip_cov_share=Strength(2e-4, "Share of all tokens that get no advantage, those of high covariance (Cui et al. 2025: 0.0002; 0: none)."),
    clip_cov_low=Strength(1.0, "Least covariance of such a token (Cui et al. 2025: 1)."),
    clip_cov_high=Strength(5.0, "Largest covariance of such a token (Cui et al. 2025: 5)."))
def clip_cov(shaped, advantages, old_logp, mask, group, *, step, clip_cov_share, clip_cov_low, clip_cov_high):
    """Some tokens whose log-prob and advantage are both far above (or below) the mean get none: they lower the entropy most.

    cov_t = (logp_t - mean logp) * (A_t - mean A), means over the tokens of the batch. Drawn are `clip_cov_share` of all tokens, of those
    with clip_cov_low <= cov <= clip_cov_high (Cui et al. 2025, arXiv 2505.22617).
    """
    import torch

    valid = mask.bool()
    logp, a = old_logp.masked_fill(~valid, 0), advantages[:, None] * valid
    cov = (logp - logp[valid].mean()) * (a - a[valid].mean())
    found = (valid & (cov >= clip_cov_low) & (cov <= clip_cov_high)).nonzero()
    dropped = found[torch.randperm(len(found), generator=_generator(step))[: round(clip_cov_share * int(valid.sum()))]]
    return shaped.index_put((dropped[:, 0], dropped[:, 1]), shaped.new_zeros(()))


@method("psr-nsr", reads="",
    psr_weight=Strength(0.1, "Weight of right answers beside that of wrong ones, which is 1 (Zhu et al. 2025: 0.1; 1: grpo)."))
def psr_nsr(shaped, advantages, old_logp, mask, group, *, psr_weight):
    """Right answers weigh less than wrong ones (Zhu et al. 2025, arXiv 2506.01347), which keeps entropy up.

    The paper weighs rewards of +1 and -1; here the group-normalised advantages are weighed, by their sign.
    """
    return shaped.where(shaped <= 0, psr_weight * shaped)


@method("dr-grpo", reads="rewards",
    dr_grpo_power=Strength(1.0, "The advantage is multiplied by the standard deviation of its group to this power (1: Dr. GRPO; 0: grpo)."))
def dr_grpo(shaped, advantages, old_logp, mask, group, *, rewards, dr_grpo_power):
    """No division by the standard deviation of the group: at power 1 the advantage is reward - mean (Liu et al. 2025, arXiv 2503.20783).

    So a group in which nearly all are right, or nearly all wrong, does not weigh as much as one that is half and half. The paper's other
    change, no division by the length of a completion, is how the loss is here anyway.
    """
    factor = shaped.new_ones(len(group))
    for g in group.unique():
        r = rewards[group == g]
        if len(r) > 1:
            factor[group == g] = (r.std() + 1e-6) ** dr_grpo_power
    return shaped * factor[:, None]


# ---------------------------------------------------------------------------------------------------------------------------------------
# Shams: re-weightings of the same size without the criterion. What a method does beyond its sham, its criterion does.


@method("ppl-sham", reads="old_logp step", ppl_sham_alpha=Strength(0.2, "Strength of the factors of ppl, dealt out anew in each group."))
def ppl_sham(shaped, advantages, old_logp, mask, group, *, step, ppl_sham_alpha):
    """The factors of perplexity shaping, permuted among the completions of each group. Ours."""
    return shaped * permuted(ppl_weights(old_logp, mask, group, ppl_sham_alpha), group, _generator(step))[:, None]


@method("pos-sham", reads="step", pos_sham_alpha=Strength(0.4, "Strength of the bonus of pos, dealt out anew in each completion."))
def pos_sham(shaped, advantages, old_logp, mask, group, *, step, pos_sham_alpha):
    """The bonus of position shaping, permuted among the tokens of each completion. Ours."""
    bonus, generator = position_bonus(advantages, mask, pos_sham_alpha), _generator(step)
    for row, valid in zip(bonus, mask.bool()):
        row[valid] = permuted(row[valid], valid.new_zeros(int(valid.sum())), generator)
    return shaped + bonus


def permuted(values: Tensor, group: Tensor, generator: Generator) -> Tensor:
    """values [N], dealt out anew inside each group. group [N]"""
    import torch

    out = values.clone()
    for g in group.unique():
        rows = (group == g).nonzero()[:, 0]
        out[rows] = values[rows[torch.randperm(len(rows), generator=generator)]]
    return out


def _generator(step: int) -> Generator:
    """One of their own, seeded by the step: so they disturb no other draws, and a resumed run draws the same."""
    import torch

    return torch.Generator().manual_seed(step)
