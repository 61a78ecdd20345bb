"""The quantities of the entropy-performance exchange, as pure functions: where in training, in which completions and at which tokens.

Deng et al. 2025 describe these analyses; their formulas are not known to us. Where a definition below is our own, it says so. Arrays are
numpy; entropies are in nats, changes of probability are differences of probabilities.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np

Numbers = Sequence[float]
CATEGORIES = ("formal reasoning", "logical structuring", "metacognitive", "semantic support")
_LOGICAL = set("so then next now therefore thus hence because since but however if else first second third finally and or also as while "
               "when given implies consequently otherwise either both unless although instead suppose".split())  # fmt: skip
_META = set("let lets wait check verify recheck think hmm actually maybe perhaps recall notice note remember consider try see wonder sure "
            "mistake wrong correct double again anyway alternatively".split())  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------------------------
# Stages


def stage_slopes(values: Numbers, split: int) -> tuple[float, float]:
    """Change per step before and after a split: the least-squares slopes of values[:split] and values[split:]. NaN for fewer than two
    values. S1.

    >>> stage_slopes([0.0, 1.0, 2.0, 2.0, 2.5, 3.0], 3)
    (1.0, 0.5)
    """

    def slope(y: Numbers) -> float:
        return float(np.polyfit(np.arange(len(y)), y, 1)[0].round(12)) if len(y) > 1 else float("nan")

    return slope(values[:split]), slope(values[split:])


def slope_error(values: Numbers) -> float:
    """Standard error of the least-squares slope of values, as if their rests were independent. NaN of fewer than three.

    >>> slope_error([0.0, 2.0, 1.0, 3.0])
    0.424264
    """
    if len(values) < 3:
        return float("nan")
    x = np.arange(len(values)) - (len(values) - 1) / 2
    rest = values - np.mean(values) - x * (x @ values) / (x @ x)
    return float(np.sqrt(rest @ rest / (len(values) - 2) / (x @ x)).round(6))


def drop_shares(entropy_right: Numbers, entropy_wrong: Numbers, tokens_right: Numbers, tokens_wrong: Numbers) -> dict[str, float]:
    """How much of the fall of the mean entropy comes from right answers, from wrong ones, and from wrong answers becoming right. S2.

    Each argument has one value per step. The mean entropy of a step is w H_right + (1 - w) H_wrong, with w the share of right answers among
    the tokens. Its change from one step to the next is exactly

        mean(w) dH_right + mean(1 - w) dH_wrong + dw (mean(H_right) - mean(H_wrong)),

    with means over the two steps; the three parts are added up over all steps. Falls are positive. The split by terms is ours.

    Returns total, right, wrong, mix (nats; total = right + wrong + mix) and wrong_share = wrong / (right + wrong).

    >>> drop_shares([0.4, 0.4], [1.0, 0.6], [10, 10], [10, 10])["wrong"]
    0.2
    """
    right, wrong = np.asarray(entropy_right, float), np.asarray(entropy_wrong, float)
    w = np.asarray(tokens_right, float) / (np.asarray(tokens_right, float) + np.asarray(tokens_wrong, float))

    def between(x):
        return (x[1:] + x[:-1]) / 2

    parts = {"right": -(between(w) * np.diff(right)).sum(), "wrong": -(between(1 - w) * np.diff(wrong)).sum()}
    parts["mix"] = -(np.diff(w) * (between(right) - between(wrong))).sum()
    out = {"total": sum(parts.values())} | parts
    inside = parts["right"] + parts["wrong"]
    out["wrong_share"] = parts["wrong"] / inside if inside > 0 else float("nan")
    return {k: float(np.round(v, 12)) for k, v in out.items()}


def token_shift(before: Sequence[tuple[int, float]], after: Sequence[tuple[int, float]]) -> dict[int, dict[str, float]]:
    """What became of each token between two samples of (token id, entropy at its position). S3.

    Returns for each token id: count_before and count_after, share_before and share_after (of all tokens of the sample), entropy_before
    and entropy_after (means over its positions; NaN where it does not occur).
    """
    out: dict[int, dict[str, float]] = {token: {} for token, _ in [*before, *after]}
    for when, sample in (("before", before), ("after", after)):
        entropies = {token: [] for token in out}
        for token, entropy in sample:
            entropies[token].append(entropy)
        for token, values in entropies.items():
            mean = float(np.mean(values)) if values else float("nan")
            out[token] |= {f"count_{when}": len(values), f"share_{when}": len(values) / max(len(sample), 1), f"entropy_{when}": mean}
    return out


def other_script(prompt: str, completion: str) -> bool:
    """Whether a completion has letters of a script that is neither Latin nor Greek nor in the prompt: language mixing. S4; our rule.

    >>> other_script("How many?", "The answer is 五.")
    True
    """

    def scripts(text: str) -> set[str]:
        return {unicodedata.name(c, "?").split()[0] for c in set(text) if c.isalpha()}

    return bool(scripts(completion) - scripts(prompt) - {"LATIN", "GREEK", "MICRO", "MATHEMATICAL", "DOUBLE-STRUCK", "SCRIPT", "?"})


# ---------------------------------------------------------------------------------------------------------------------------------------
# Changes of probability


def logit_gradient_norm(p, sum_of_squares):
    """Length of the gradient of log p(token) in the logits: sqrt(1 - 2 p + sum_v p_v^2). Arrays or tensors. S6; the definition is ours.

    It is 0 where the policy is certain and chose so, about 1 for one of many improbable tokens, and at most sqrt(2), for an
    improbable token beside a certain one.

    >>> float(logit_gradient_norm(np.float64(0.5), np.float64(0.5)).round(4))
    0.7071
    """
    return (1 - 2 * p + sum_of_squares).clip(0) ** 0.5


def share_over(change: np.ndarray, threshold: float) -> float:
    """Share of tokens whose probability changed by more than `threshold`, up or down. S5. NaN of nothing."""
    return float((np.abs(change) > threshold).mean()) if len(change) else float("nan")


def by_quantile(x: np.ndarray, y: np.ndarray, bins: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Means of x and of y in groups of equal size, in order of x: two arrays of length `bins`. S6.

    >>> by_quantile(np.array([4.0, 1.0, 3.0, 2.0]), np.array([40.0, 10.0, 30.0, 20.0]), bins=2)
    (array([1.5, 3.5]), array([15., 35.]))
    """
    parts = np.array_split(np.argsort(x, kind="stable"), bins)
    return np.array([x[i].mean() for i in parts]), np.array([y[i].mean() for i in parts])


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's: the correlation of ranks, equal values sharing their mean rank. NaN if one does not vary. S6.

    >>> rank_correlation(np.array([1.0, 2.0, 3.0, 4.0]), np.array([10.0, 20.0, 40.0, 30.0]))
    0.8
    """
    from pandas import Series  # datasets depends on it

    return float(np.round(Series(x).rank().corr(Series(y).rank()), 12))


def log_odds(logp: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)) of log p. S6: its change is that of p, divided by p (1 - p) if it is small, and has no reason to be small where the
    policy is sure.

    >>> log_odds(np.log([0.5, 0.8])).round(4)
    array([0.    , 1.3863])
    """
    logp = np.asarray(logp, np.float64)
    return logp - np.log(np.maximum(-np.expm1(logp), 1e-7))


def within(strata: np.ndarray, values: np.ndarray, bins: int = 5) -> np.ndarray:
    """Ranks of values among those of about the same stratum, above 0 to 1: in up to `bins` groups by the quantiles of `strata`. S6.

    >>> within(np.array([1.0, 1.0, 9.0, 9.0]), np.array([5.0, 4.0, 30.0, 40.0]), bins=2)
    array([1. , 0.5, 0.5, 1. ])
    """
    from pandas import Series

    group = np.digitize(strata, np.quantile(strata, np.arange(1, bins) / bins))
    return Series(values).groupby(group).rank("first", pct=True).to_numpy()


def largest(change: np.ndarray, top: float = 0.01) -> np.ndarray:
    """Which tokens are among the share `top` with the largest change, up or down (at least one): bool, like `change`."""
    out = np.zeros(len(change), bool)
    out[np.argsort(-np.abs(change), kind="stable")[: max(1, round(top * len(change)))]] = True
    return out


def over_represented(chosen: np.ndarray, member: np.ndarray) -> tuple[float, float]:
    """The share of members among the chosen tokens, and among all tokens (the base rate). bool arrays. S7, I1.

    >>> over_represented(np.array([True, True, False, False]), np.array([True, True, True, False]))
    (1.0, 0.75)
    """
    return float(member[chosen].mean()), float(member.mean())


def category(token: str) -> str:
    """One of CATEGORIES, from the text of a token alone. S7; the paper names the four, these rules are ours.

    Tokens with a digit or a backslash, operators and other symbols without letters, and the names of LaTeX's commands are formal reasoning;
    connectives (so, then, because) logical structuring; words by which the
    author watches the own work (wait, check, let) metacognitive; everything else, stop token and punctuation included, semantic support.
    """
    text = token.strip()
    if re.search(r"[0-9\\]|^(frac|sqrt|boxed|cdot|times)$", text) or re.fullmatch(r"[^\w\s]*[+*/=<>^{}()\[\]$%|~-][^\w\s]*", text):
        return CATEGORIES[0]
    word = re.sub(r"[^a-z]", "", text.lower())
    return CATEGORIES[1] if word in _LOGICAL else CATEGORIES[2] if word in _META else CATEGORIES[3]


# ---------------------------------------------------------------------------------------------------------------------------------------
# Completions


def spread(items: Sequence, most: int) -> list:
    """At most so many items, evenly spread, the first and the last among them; of one, the last.

    >>> spread(range(11), 3)
    [0, 5, 10]
    """
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)] if most > 1 else list(items[len(items) - most :])


def right_and_wrong(correct: Sequence[bool], n: int) -> list[int]:
    """Indices of n completions, half of them right where there are enough, evenly spread.

    >>> right_and_wrong([True, True, True, False], 3)
    [0, 2, 3]
    """
    right, wrong = ([i for i, is_right in enumerate(correct) if is_right == kind] for kind in (True, False))
    return sorted(spread(right, max((n + 1) // 2, n - len(wrong))) + spread(wrong, max(n // 2, n - len(right))))


def low_half(log_ppl: np.ndarray) -> np.ndarray:
    """Which completions are in the low-perplexity half: those below the median (bool). I1, I2; where the paper cuts is not known.

    >>> low_half(np.array([0.1, 0.4, 0.2, 0.3]))
    array([ True, False,  True, False])
    """
    return log_ppl < np.median(log_ppl)


def dependence(first: Sequence, second: Sequence) -> float:
    """How much answers depend on which of two ways was gone: how often two of one way agree, less how often two of different ways do.

    Without bias it is half the sum of squared differences of the two distributions: 0 if they are the same, 1 if each way has one answer
    of its own, a quarter if one is certain and the other a toss-up. I2 and T2; ours.

    >>> dependence("7777", "8888"), round(dependence("7788", "7788"), 4)
    (1.0, -0.1667)
    """
    a, b = Counter(first), Counter(second)
    same = sum(k * (k - 1) / max(len(way) * (len(way) - 1), 1) for way, counts in ((first, a), (second, b)) for k in counts.values()) / 2
    return same - sum(a[answer] * b[answer] for answer in a) / (len(first) * len(second))


# ---------------------------------------------------------------------------------------------------------------------------------------
# Positions


def relative_positions(length: int) -> np.ndarray:
    """r_t = (t - 1) / L of the L tokens of a completion: from 0 to just below 1 (Deng et al. 2025, released code)."""
    return np.arange(length) / max(length, 1)


def with_positions(values: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Values of the tokens of completions, a list for each, end to end: (relative positions, values)."""
    return np.concatenate([relative_positions(len(row)) for row in values]), np.concatenate([np.asarray(row) for row in values])


def position_profile(r: np.ndarray, values: np.ndarray, bins: int = 20) -> np.ndarray:
    """Mean value in each of `bins` equal stretches of the relative position; NaN where there is no token. T1.

    >>> position_profile(np.array([0.0, 0.25, 0.5, 0.75]), np.array([4.0, 2.0, 1.0, 3.0]), bins=2)
    array([3., 2.])
    """
    index = np.minimum((r * bins).astype(int), bins - 1)
    sums, counts = np.bincount(index, values, bins), np.bincount(index, minlength=bins)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def ends_and_middle(r: np.ndarray, values: np.ndarray) -> tuple[float, float, float]:
    """Mean value in the first tenth, between 0.3 and 0.7, and in the last tenth. T1: a U is low in the middle. The cuts are ours."""
    parts = (r < 0.1, (r >= 0.3) & (r < 0.7), r >= 0.9)
    return tuple(float(values[p].mean()) if p.any() else float("nan") for p in parts)


# ---------------------------------------------------------------------------------------------------------------------------------------
# Exploration


def unsolved(correct: Sequence[int]) -> set[int]:
    """U_k: which problems (indices) have no right answer among their k. `correct`: right answers of each (Deng et al. 2025b)."""
    return {i for i, c in enumerate(correct) if c == 0}


def overlaps(sets: dict[str, set[int]]) -> dict[tuple[str, ...], int]:
    """How many elements lie in exactly these sets and no others, for each combination of names that has any.

    >>> overlaps({"a": {1, 2}, "b": {2, 3, 4}})
    {('a',): 1, ('b',): 2, ('a', 'b'): 1}
    """
    everything = set().union(*sets.values())
    counts = Counter(tuple(name for name, members in sets.items() if element in members) for element in everything)
    return dict(sorted(counts.items(), key=lambda item: (len(item[0]), item[0])))
