"""Stage level, S5 to S7: which tokens the plateau changes (Deng et al. 2025), in training steps made again from checkpoints."""

import numpy as np

from rlvr.analysis.exchange import CATEGORIES, by_quantile, category, largest, rank_correlation, share_over
from rlvr.analysis.report.run import Run, bootstrap, mean, share_of_largest
from rlvr.analysis.report.section import Panel, Verdict, bars, is_above, percent, section, sentence
from rlvr.common.text import interval
from rlvr.run.figures import BLUE, GREEN, INK, ORANGE

LITTLE = 0.05  # a change of probability above this counts as one; ours
BINS = np.linspace(-0.5, 0.5, 81)  # of S5
TOP = 0.01  # the share of tokens that counts as "the largest changes"; ours


def stages(run: Run) -> list[tuple[str, np.ndarray]]:
    """(name, which tokens of the replayed steps) of the stages that were replayed, the plateau last."""
    inside = run.changes["plateau"]
    return [(name, mask) for name, mask in (("rising", ~inside), ("plateau", inside)) if mask.any()]


@section("S5", "On the plateau very few tokens change", needs="changes", little=LITTLE)
def few_tokens_change(run: Run) -> Verdict:
    """Training steps made again from checkpoints: the change of every token's probability, by the sign of its advantage. “Little” is at
    most {little} (ours; the paper's threshold is not known).

    The paper found: More than 99 % of the tokens change very little; those that change go up in right answers and down in wrong ones.
    """
    change, advantage = run.changes["change"], run.changes["advantage"]
    last, mask = stages(run)[-1]

    def draw(axis):
        for sign, colour, label in ((1, GREEN, "A > 0"), (-1, ORANGE, "A < 0")):
            x = np.clip(change[mask & (np.sign(advantage) == sign)], -0.5, 0.5)
            if len(x):
                weights = np.full(len(x), 1 / len(x))
                axis.hist(x, BINS, weights=weights, histtype="step", color=colour, linewidth=1.4, label=f"{label} ({last})")
        axis.set(yscale="log", xlabel="change of probability in one step", ylabel="share of tokens")

    rows, words = [], []
    for stage, chosen in stages(run):
        row, low, high = _how_many_changed(run, chosen)
        rows.append({"stage": stage} | row)
        steps = sorted(set(run.changes["step"][chosen].tolist()))
        along = row["with_their_advantage"]
        in_direction = "none" if np.isnan(along) else interval(along, low, high, percent)
        said = f"{stage} (step{'s' * (len(steps) > 1)} {', '.join(map(str, steps))}): {percent(row['share_changed'], 1)} of "
        said += f"{row['tokens']} tokens changed by more than {LITTLE}; {in_direction} of those in the direction of their advantage; "
        ups, downs = row["mean_change_positive"], row["mean_change_negative"]
        words.append(f"{said}mean change {ups:+.4f} where A > 0, {downs:+.4f} where A < 0")
    agrees = False if row["share_changed"] >= 0.01 else is_above(low, high, 0.5)  # of the last stage
    return Verdict(agrees if last == "plateau" else None, sentence(words), rows, [Panel(draw)])


def _how_many_changed(run: Run, mask: np.ndarray) -> tuple[dict, float, float]:
    """The numbers of S5 for the tokens `mask`, and the interval, over completions, of the share that followed its advantage."""
    change, advantage = run.changes["change"], run.changes["advantage"]
    big = mask & (np.abs(change) > LITTLE)
    along, completion = change[big] * advantage[big] > 0, run.changes["row"][big]
    row = {"tokens": int(mask.sum()), "share_changed": share_over(change[mask], LITTLE), "with_their_advantage": mean(along)}
    for sign, label in ((1, "positive"), (-1, "negative")):
        side = mask & (np.sign(advantage) == sign)
        row[f"share_changed_{label}"] = share_over(change[side], LITTLE)
        row[f"mean_change_{label}"] = mean(change[side])
    by_completion = [along[completion == i] for i in np.unique(completion)]
    return row, *bootstrap(lambda found: mean(np.concatenate(found)), by_completion)


@section("S6", "The few are tokens of high entropy and large gradient", needs="changes")
def changed_tokens_are_uncertain(run: Run) -> Verdict:
    """Plateau steps made again (all steps if none is of the plateau). Tokens in ten groups of equal size by entropy: mean size of the
    change, and mean length of the gradient of the log-prob in the logits, √(1 − 2p + Σp²) (definition ours).

    The paper found: The tokens that change most are tokens of high entropy and with large gradients: forks in the reasoning.
    """
    stage, mask = stages(run)[-1]
    size, entropy, gradient = np.abs(run.changes["change"][mask]), run.changes["entropy"][mask], run.changes["grad_norm"][mask]
    x, y = by_quantile(entropy, size)
    _, g = by_quantile(entropy, gradient)

    def draw(axis):
        tenths = np.arange(1, 11)
        axis.plot(tenths, y, "o-", color=BLUE, label="mean change of probability")
        other = axis.twinx()
        other.plot(tenths, g, "s-", color=ORANGE, label="mean gradient length")
        axis.set(yscale="log", xlabel="tenth of the tokens, by entropy", ylabel="change of probability", xticks=tenths)
        other.set(yscale="log", ylabel="gradient length")

    rows = [{"stage": stage, "entropy": a, "change": b, "gradient": c} for a, b, c in zip(x, y, g)]
    top = largest(size, TOP)
    (h_top, h_rest), (g_top, g_rest) = ((values[top].mean(), values[~top].mean()) for values in (entropy, gradient))
    rank_h, rank_g = rank_correlation(entropy, size), rank_correlation(gradient, size)
    text = f"{stage.capitalize()}: the {percent(TOP)} of tokens that changed most have a mean entropy of {h_top:.2f} nats, the rest "
    text += f"{h_rest:.3f} ({h_top / max(h_rest, 1e-9):.0f} times less), and a gradient of {g_top:.2f} against {g_rest:.3f}. Rank "
    text += f"correlation of the size of the change with entropy {rank_h:.2f}, with the gradient {rank_g:.2f}."
    agrees = bool(h_top > h_rest and g_top > g_rest and rank_h > 0 and rank_g > 0)
    return Verdict(agrees if stage == "plateau" else None, text, rows, [Panel(draw, legend={"loc": "upper left"})])


@section("S7", "Formal reasoning changes most", needs="changes", top=percent(TOP))
def changed_tokens_are_formal(run: Run) -> Verdict:
    """Plateau steps made again (all steps if none is of the plateau). The share of each category among the {top} of tokens that changed
    most, divided by its share of all tokens: above 1 it is over-represented. In the text, with 95 % intervals over problems, and the
    mean change. Categories are ours, by the text of the token.

    The paper found: Tokens of formal reasoning (digits, operators, symbols) get the strongest updates.
    """
    stage, mask = stages(run)[-1]
    size, tokens = np.abs(run.changes["change"][mask]), run.changes["token"][mask]
    different, which = np.unique(tokens, return_inverse=True)
    kinds = np.array([category(run.token(int(token))) for token in different])[which]
    rows = []
    for kind in CATEGORIES:
        chosen, low, high, base = share_of_largest(size, kinds == kind, run.changes["problem"][mask], TOP)
        rows.append({"stage": stage, "category": kind, "share_of_top": chosen, "low": low, "high": high, "base_rate": base,
                     "ratio": chosen / base if base else float("nan"), "mean_change": mean(size[kinds == kind])})  # fmt: skip

    def draw(axis):
        xlabel = "share among the largest changes / share of all tokens"
        bars(axis, [row["category"] for row in rows], [row["ratio"] for row in rows], xlabel, color=BLUE)
        axis.axvline(1, color=INK, linewidth=1, linestyle="--")

    found = [row for row in rows if row["base_rate"] > 0]
    words = []
    for row in found:
        share = interval(row["share_of_top"], row["low"], row["high"], percent)
        rest = f"{percent(row['base_rate'])} of all tokens, mean change {row['mean_change']:.4f}"
        words.append(f"{row['category']} {share} of the largest changes, {rest}")
    formal = rows[0]
    agrees = is_above(formal["low"], formal["high"], formal["base_rate"])
    if agrees and formal["ratio"] != max(row["ratio"] for row in found):
        agrees = None
    return Verdict(agrees if stage == "plateau" else None, f"{stage.capitalize()}: {'; '.join(words)}.", rows, [Panel(draw)])


SECTIONS = (few_tokens_change, changed_tokens_are_uncertain, changed_tokens_are_formal)
