"""Stage level, S5 to S7: which tokens the plateau changes (Deng et al. 2025), in training steps made again from checkpoints."""

import numpy as np

from rlvr.analysis.exchange import CATEGORIES, by_quantile, category, largest, log_odds, rank_correlation, share_over, within
from rlvr.analysis.report.run import Run, bootstrap, mean, of_problems, share_of_largest
from rlvr.analysis.report.section import CANNOT, Estimate, Panel, Verdict, bars, percent, points
from rlvr.analysis.report.section import resampled, section, sentence, share_of, verdict
from rlvr.run.figures import BLUE, GREEN, INK, ORANGE

LITTLE = 0.05  # a change of probability above this counts as one; ours
BINS = np.linspace(-0.5, 0.5, 81)  # of S5
TOP = 0.01  # the share of tokens that counts as "the largest changes"; ours
OFTEN = 10  # problems in which a category must occur to be compared: one token alone has no interval; ours
FEWEST = 1000  # tokens, so that the largest changes are ten or more
SURE = 0.001  # float32 cannot measure how the log-odds change of a token that is surer than 1 less this; ours
RISE_ALONE = "No step of the plateau could be replayed, so this is the rising stage."


def stages(run: Run) -> list[tuple[str, np.ndarray]]:
    """(name, which tokens of the replayed steps) of the stages that were replayed, the plateau last."""
    inside = run.changes["plateau"]
    return [(name, mask) for name, mask in (("rising", ~inside), ("plateau", inside)) if mask.any()]


def pooled(found: list[np.ndarray]) -> float:
    return mean(np.concatenate(found))


def rarity(found: list[np.ndarray]) -> float:
    """How far the share of tokens that moved stays below a hundredth, in points."""
    return 1 - 100 * pooled(found)


def fewer(rise: list[np.ndarray], plateau: list[np.ndarray]) -> float:
    return 100 * (pooled(rise) - pooled(plateau))


def too_few(run: Run) -> str:
    """Why nothing can be said about the largest changes of the plateau; empty if something can."""
    stage, mask = stages(run)[-1]
    return RISE_ALONE if stage != "plateau" else f"Fewer than {FEWEST} tokens were replayed." if mask.sum() < FEWEST else ""


@section("S5", "On the plateau very few tokens change", needs="changes", little=LITTLE)
def few_tokens_change(run: Run) -> Verdict:
    """Training steps made again from checkpoints: the change of every token's probability, by the sign of its advantage. “Little” is at
    most {little} (ours; the paper's threshold is not known). If it is a mark of the plateau, more tokens change in the rising stage:
    compared are steps of both stages whose learning rate is at least nine tenths of the run's highest.

    The paper found: More than 99 % of the tokens change very little; those that change go up in right answers and down in wrong ones.

    A no would be: one token in a hundred changes by more; or fewer do in the rising stage; or most that change go against their advantage.
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
        steps, along = sorted(set(run.changes["step"][chosen].tolist())), row["with_their_advantage"]
        said = f"{stage} (step{'s' * (len(steps) > 1)} {', '.join(map(str, steps))}): "
        said += f"{share_of(row['share_changed'], row['tokens'], 'its tokens')} changed by more than {LITTLE}; "
        ups, downs = row["mean_change_positive"], row["mean_change_negative"]
        words.append(f"{said}mean change {ups:+.4f} where A > 0, {downs:+.4f} where A < 0")
    if last != "plateau":
        return Verdict(CANNOT, f"{sentence(words)} {RISE_ALONE}", rows, [Panel(draw)])
    moved, problem = np.abs(change) > LITTLE, run.changes["problem"]
    estimates = [resampled("a hundredth less the share that changed (points)", rarity, of_problems(moved[mask], problem[mask]))]
    if moved[mask].any():
        estimates.append(Estimate("share with their advantage less a half (points)", *(x - 0.5 for x in (along, low, high)), points))
    rates = {int(step["step"]): step["lr"] for step in run.steps}
    alike = np.isin(run.changes["step"], [step for step, rate in rates.items() if rate >= 0.9 * max(rates.values())])
    if (alike & mask).any() and (alike & ~mask).any():
        both = [of_problems(moved[some], problem[some]) for some in (alike & ~mask, alike & mask)]
        estimates.append(resampled("share in the rising stage less that on the plateau (points)", fewer, *both))
        cannot = ""
    else:
        cannot = "The stages cannot be compared: no step of each was replayed at the same learning rate (--lr-schedule constant)."
    return verdict(estimates, sentence(words), rows, [Panel(draw)], cannot=cannot)


def _how_many_changed(run: Run, mask: np.ndarray) -> tuple[dict, float, float]:
    """The numbers of S5 for the tokens `mask`, and the interval, over problems, of the share that followed its advantage."""
    change, advantage = run.changes["change"], run.changes["advantage"]
    big = mask & (np.abs(change) > LITTLE)
    along = change[big] * advantage[big] > 0
    row = {"tokens": int(mask.sum()), "share_changed": share_over(change[mask], LITTLE), "with_their_advantage": mean(along)}
    for sign, label in ((1, "positive"), (-1, "negative")):
        side = mask & (np.sign(advantage) == sign)
        row[f"share_changed_{label}"] = share_over(change[side], LITTLE)
        row[f"mean_change_{label}"] = mean(change[side])
    return row, *(bootstrap(pooled, of_problems(along, run.changes["problem"][big])) if big.any() else (np.nan, np.nan))


@section("S6", "The few are tokens of high entropy and large gradient", needs="changes", top=percent(TOP), sure=SURE)
def changed_tokens_are_uncertain(run: Run) -> Verdict:
    """Plateau steps made again. The size of a change is that of the log-odds log(p / (1 − p)): the change of p itself is p (1 − p)
    times that, so it is small wherever the entropy is, whatever is learned. Left out are tokens surer than 1 − {sure}, whose log-odds float32
    does not hold. The {top} with the largest changes are taken within fifths of |A|, so that both sides have the same advantages. Of
    these and of the rest: entropy, and length of the gradient of the log-prob in the logits, √(1 − 2p + Σp²) (definition ours). The
    picture has ten groups of equal size by entropy.

    The paper found: The tokens that change most are tokens of high entropy and with large gradients: forks in the reasoning.

    A no would be: those that change most have the lower entropy, or the smaller gradient.
    """
    stage, mask = stages(run)[-1]
    before, after = (log_odds(run.changes[name]) for name in ("logp", "logp_after"))
    mask = mask & (run.changes["logp"] < np.log1p(-SURE))
    if mask.sum() < FEWEST:
        return Verdict(CANNOT, f"Fewer than {FEWEST} tokens of the replayed steps are less sure than that.")
    size, entropy, gradient = np.abs(after - before)[mask], run.changes["entropy"][mask], run.changes["grad_norm"][mask]
    strata, problem = np.abs(run.changes["advantage"][mask]), run.changes["problem"][mask]
    x, y = by_quantile(entropy, size)
    _, g = by_quantile(entropy, gradient)

    def draw(axis):
        tenths = np.arange(1, 11)
        axis.plot(tenths, y, "o-", color=BLUE, label="mean change of the log-odds")
        other = axis.twinx()
        other.plot(tenths, g, "s-", color=ORANGE, label="mean gradient length")
        axis.set(xlabel="tenth of the tokens, by entropy", ylabel="change of the log-odds", xticks=tenths, ylim=(0, None))
        other.set(ylabel="gradient length", ylim=(0, None))

    rank = within(strata, size)  # 0 to 1 among tokens of about the same advantage
    top, estimates = rank > 1 - TOP, []
    for name, values, unit in (("entropy", entropy, " (nats)"), ("gradient length", gradient, "")):
        pairs = of_problems(np.stack([values, top], 1), problem)

        def gap(found: list[np.ndarray]) -> float:
            values, top = np.concatenate(found).T
            return mean(values[top > 0]) - mean(values[top == 0])

        estimates.append(resampled(f"{name} of the largest changes less that of the rest{unit}", gap, pairs))
    ranks = [rank_correlation(within(strata, values), rank) for values in (entropy, gradient)]
    text = f"{stage.capitalize()}, {mask.sum()} tokens; rank correlation of the size of the change with entropy {ranks[0]:.2f}, with the "
    text += f"gradient {ranks[1]:.2f}."
    rows = [{"stage": stage, "entropy": a, "change": b, "gradient": c} for a, b, c in zip(x, y, g)]
    panels = [Panel(draw, legend={"loc": "upper left"})]
    return verdict(estimates, text, rows, panels, cannot=RISE_ALONE if stage != "plateau" else "")


@section("S7", "Formal reasoning changes most", needs="changes", top=percent(TOP), fewest=FEWEST, often=OFTEN)
def changed_tokens_are_formal(run: Run) -> Verdict:
    """Plateau steps made again. The share of each category among the {top} of tokens that changed most, beside its share of all tokens; and
    the mean change of its tokens. Categories are ours, by the text of the token.

    The paper found: Tokens of formal reasoning (digits, operators, symbols) get the strongest updates.

    A no would be: formal reasoning is rarer among the largest changes than among all tokens, or changes less than another category does
    on average. Not asked of fewer than {fewest} tokens; a category is compared if it occurs in {often} problems.
    """
    stage, mask = stages(run)[-1]
    size, tokens, problem = np.abs(run.changes["change"][mask]), run.changes["token"][mask], run.changes["problem"][mask]
    different, which = np.unique(tokens, return_inverse=True)
    kinds = np.array([category(run.token(int(token))) for token in different])[which]
    rows = []
    for kind in CATEGORIES:
        chosen, low, high, base = share_of_largest(size, kinds == kind, problem, TOP)
        rows.append({"stage": stage, "category": kind, "share_of_top": chosen, "low": low, "high": high, "base_rate": base,
                     "ratio": chosen / base if base else float("nan"), "mean_change": mean(size[kinds == kind])})  # fmt: skip

    def draw(axis):
        xlabel = "share among the largest changes / share of all tokens"
        bars(axis, [row["category"] for row in rows], [row["ratio"] for row in rows], xlabel, color=BLUE)
        axis.axvline(1, color=INK, linewidth=1, linestyle="--")

    formal, others = rows[0], [row for row in rows[1:] if row["base_rate"] > 0]
    words = [f"{row['category']} {share_of(row['share_of_top'], int(largest(size, TOP).sum()), 'the largest changes')}, "
             f"{share_of(row['base_rate'], len(size), 'all tokens')}, mean change {row['mean_change']:.4f}" for row in (formal, *others)]
    cannot = too_few(run)
    compared = [row for row in others if len(np.unique(problem[kinds == row["category"]])) >= OFTEN]
    if not formal["base_rate"] or not compared:
        return Verdict(CANNOT, sentence(words) + " Nearly all tokens are formal reasoning, or none is.", rows, [Panel(draw)])
    strongest = max(compared, key=lambda row: row["mean_change"])["category"]
    pairs = of_problems(np.stack([size, kinds == CATEGORIES[0], kinds == strongest], 1), problem)

    def more(found: list[np.ndarray]) -> float:
        size, formal, other = np.concatenate(found).T
        return mean(size[formal > 0]) - mean(size[other > 0])

    shares = (formal[name] - formal["base_rate"] for name in ("share_of_top", "low", "high"))
    estimates = [Estimate("formal reasoning among the largest changes less among all tokens (points)", *shares, points),
                 resampled(f"its mean change less that of {strongest}", more, pairs, form="+.4f")]  # fmt: skip
    return verdict(estimates, f"{stage.capitalize()}: {'; '.join(words)}.", rows, [Panel(draw)], cannot=cannot)


SECTIONS = (few_tokens_change, changed_tokens_are_uncertain, changed_tokens_are_formal)
