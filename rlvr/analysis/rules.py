"""What a registered study asks, and the rules by which it is judged: contrasts in blocks, Holm, equivalence, and a verdict for each.

A branch is a run from a common checkpoint, its trunk. The branches of all arms from one trunk with one seed are a block.
Values are arrays [..., trunks, seeds, arms]. NaN is a branch that is missing; it makes every contrast of its block NaN, so a block counts
only if it is whole. Leading dimensions are studies: those that are simulated are judged by the same code.
"""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlvr.analysis.intervals import holm, outside, p_value, t_quantile
from rlvr.analysis.plan import loaded

VERDICTS = ("works", "re-weighting works, the criterion does not", "hurts", "no effect worth having", "undecided")
LEVEL = 0.05


class Study(NamedTuple):
    """A plan, checked."""

    arms: list[str]
    trunks: list[str]
    seeds: list[int]
    metric: str
    co_metric: str
    weights: dict[str, np.ndarray]  # contrast -> the weight of each arm
    primary: dict[str, str]  # contrast -> the contrast with its sham
    secondary: dict[str, dict]  # family -> its metrics and contrasts
    ratios: list[str]  # metrics that are compared on a log scale
    margin: float  # effects closer to 0 are not worth having
    dip: float  # a branch dips if its metric ends this far below the median of its trunk


def read_study(path: Path) -> Study:
    """The parts of a plan that the analysis needs. Raises SettingError."""
    with loaded(path, "a study", "plan-study.yaml") as plan:
        s, arms = plan["study"], list(plan["arms"])
        weights = {name: contrast(spec, arms) for name, spec in s["contrasts"].items()}
        asked = [*s["primary"], *s["primary"].values(), *(name for family in s["secondary"].values() for name in family["contrasts"])]
        if unknown := [name for name in asked if name not in weights]:
            raise ValueError(f"it asks for the contrast {unknown[0]!r} and does not say what that is")
        metrics = s["metrics"]["primary"], s["metrics"]["co_primary"]
        rules = s["primary"], s["secondary"], s["ratios"], float(s["margin"]), float(s["dip"])
        return Study(arms, list(plan["trunks"]), plan["seeds"], *metrics, weights, *rules)


def contrast(spec: dict, arms: list[str]) -> np.ndarray:
    """{arm: weight}, or {plus: some arms, minus: others}, the mean of some less the mean of others. Raises ValueError.

    >>> contrast({"plus": ["a", "b"], "minus": ["c"]}, ["a", "b", "c", "d"]).tolist()
    [0.5, 0.5, -1.0, 0.0]
    """
    if spec.keys() == {"plus", "minus"}:
        spec = {arm: sign / len(spec[side]) for side, sign in (("plus", 1), ("minus", -1)) for arm in spec[side]}
    if unknown := spec.keys() - set(arms):
        raise ValueError(f"a contrast has the arm {min(unknown)!r}, which is none of its arms")
    if abs(sum(spec.values())) > 1e-9 or not any(spec.values()):
        raise ValueError(f"weights of a contrast must sum to 0, some of them not 0, unlike {spec}")
    return np.array([float(spec.get(arm, 0)) for arm in arms])


def by_trunk(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A contrast in each whole block, averaged inside each trunk: [..., trunks, seeds, arms] -> [..., trunks]. NaN without a whole block.

    >>> by_trunk(np.array([[[0.5, 0.6], [0.5, 0.8]], [[0.5, np.nan], [0.5, 0.4]]]), np.array([-1, 1])).round(3).tolist()
    [0.2, -0.1]
    """
    blocks = (values * weights).sum(-1)  # not @: a library may skip a weight of 0, and with it the NaN
    whole = ~np.isnan(blocks)
    with np.errstate(invalid="ignore"):
        return np.where(whole, blocks, 0).sum(-1) / whole.sum(-1)


class Estimate(NamedTuple):
    """Student's t over trunks. Each a number, or an array with one for each study."""

    n: int
    mean: np.ndarray
    half: np.ndarray  # of the 95 % interval
    half90: np.ndarray
    p: np.ndarray

    @property
    def ends(self) -> tuple:
        return self.mean, self.mean - self.half, self.mean + self.half

    @property
    def ends90(self) -> tuple:
        return self.mean, self.mean - self.half90, self.mean + self.half90


def estimate(gaps: np.ndarray) -> Estimate:
    """[..., trunks] -> mean, intervals and p over trunks. Of one study, trunks without a whole block are left out."""
    gaps = gaps[~np.isnan(gaps)] if gaps.ndim == 1 else gaps
    n = gaps.shape[-1]
    if n < 2:  # one trunk says nothing about others
        return Estimate(n, gaps.mean() if n else np.nan, np.inf, np.inf, np.nan)
    mean, error = gaps.mean(-1), gaps.std(-1, ddof=1) / n**0.5
    p = p_value(gaps.tolist()) if gaps.ndim == 1 else np.interp(abs(mean / error), *_p_values(n - 1))
    return Estimate(n, mean, t_quantile(n - 1, 1 - LEVEL) * error, t_quantile(n - 1, 1 - 2 * LEVEL) * error, p)


@lru_cache
def _p_values(df: int) -> tuple[np.ndarray, list[float]]:
    """Some t with their p. Thousands of exact ones would take minutes; a straight line between these is right to 0.001."""
    t = np.linspace(0, 15, 301)
    return t, [outside(x, df) for x in t]


def verdict(gap: Estimate, co_gap: Estimate, sham: Estimate, p: np.ndarray, margin: float) -> np.ndarray:
    """The first of VERDICTS whose rule holds. gap: the contrast; co_gap: the same in the other metric; sham: the treatment less its sham;
    p: that of gap, by Holm over the primary contrasts."""
    beats = (p < LEVEL) & (gap.mean > 0) & (co_gap.mean > 0)
    hurts = (p < LEVEL) & (gap.mean < 0)
    small = (gap.ends90[1] > -margin) & (gap.ends90[2] < margin)  # two one-sided tests
    return np.select([beats & (sham.ends[1] > 0), beats, hurts, small], VERDICTS[:4], VERDICTS[4])


def judge(study: Study, values: dict[str, np.ndarray]) -> dict[str, tuple]:
    """Primary contrast -> its estimate, that in the other metric, that against its sham, p by Holm, and the verdict."""
    found = {}
    for name, sham in study.primary.items():
        asked = ((study.metric, name), (study.co_metric, name), (study.metric, sham))
        found[name] = [estimate(by_trunk(values[metric], study.weights[contrast])) for metric, contrast in asked]
    adjusted = np.apply_along_axis(holm, 0, np.array([gap.p for gap, _, _ in found.values()]))
    return {name: (*three, p, verdict(*three, p, study.margin)) for (name, three), p in zip(found.items(), adjusted)}
