"""Student's t for a handful of runs: how far from 0 their mean could be by chance, and how many such questions may be asked at once."""

from collections.abc import Sequence
from functools import lru_cache
from statistics import fmean, stdev


def outside(t: float, df: float) -> float:
    """The share of Student's distribution with df degrees of freedom that lies outside -t to t: a two-sided p-value.

    >>> round(outside(2.776, 4), 3)
    0.05
    """
    return _outside(df / (df + t * t), df)


def _outside(x: float, df: float) -> float:
    """I_x(df / 2, 1 / 2), the regularised incomplete beta function, for x = df / (df + t^2)."""
    import mpmath  # torch depends on it

    return float(mpmath.betainc(df / 2, 0.5, 0, x, regularized=True))


@lru_cache
def t_quantile(df: float, level: float = 0.95) -> float:
    """Student's t: a share `level` of the distribution with df degrees of freedom lies between -t and t.

    >>> round(t_quantile(4), 3)
    2.776
    """
    import mpmath

    x = mpmath.findroot(lambda x: _outside(x, df) - (1 - level), (0, 1), solver="bisect")
    return float(mpmath.sqrt(df * (1 - x) / x))


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean and Student's interval (mean, low, high). Of a single value the interval is all numbers.

    >>> [round(x, 3) for x in mean_interval([1.0, 2.0, 3.0])]
    [2.0, -0.484, 4.484]
    """
    mean, n = fmean(values), len(values)
    half = t_quantile(n - 1, level) * stdev(values) / n**0.5 if n > 1 else float("inf")
    return mean, mean - half, mean + half


def gap_interval(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Mean of a minus mean of b, and Welch's 95 % interval, of values that are no pairs: two of each or more.

    >>> [round(x, 3) for x in gap_interval([3.0, 4.0, 5.0], [1.0, 2.0, 3.0])]
    [2.0, -0.267, 4.267]
    """
    gap, (s, t) = fmean(a) - fmean(b), (stdev(x) ** 2 / len(x) for x in (a, b))
    df = (s + t) ** 2 / (s**2 / (len(a) - 1) + t**2 / (len(b) - 1)) if s + t else 1
    half = t_quantile(df) * (s + t) ** 0.5
    return gap, gap - half, gap + half


def p_value(values: Sequence[float]) -> float:
    """Student's two-sided p for a mean of 0. NaN of a single value; of equal values 0, or 1 if they are 0.

    >>> round(p_value([1.0, 2.0, 3.0]), 3)
    0.074
    """
    if len(values) < 2:
        return float("nan")
    mean, spread = fmean(values), stdev(values)
    return outside(mean / (spread / len(values) ** 0.5), len(values) - 1) if spread else float(mean == 0)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order of p: below 0.05 for those that hold when all of them are asked at once. NaN stays NaN.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    out, largest = list(p), 0.0
    asked = sorted((i for i, x in enumerate(p) if x == x), key=lambda i: p[i])
    for rank, i in enumerate(asked):
        largest = max(largest, (len(asked) - rank) * p[i])  # never below that of a smaller one
        out[i] = min(1.0, largest)
    return out
