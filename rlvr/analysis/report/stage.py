"""Stage level, S1 to S4: what falls and what rises in the rising stage (Deng et al. 2025). changes.py has the plateau, S5 to S7."""

from collections import defaultdict

import numpy as np

from rlvr.analysis.exchange import CATEGORIES, category, drop_shares, other_script, slope_error, stage_slopes, token_shift
from rlvr.analysis.intervals import gap_interval, mean_interval, t_quantile
from rlvr.analysis.report.run import Run, mean, share_of_largest
from rlvr.analysis.report.section import CANNOT, OPEN, YES, Estimate, Panel, Verdict, bars, factor
from rlvr.analysis.report.section import percent, points, resampled, section, share_of, verdict
from rlvr.run.defects import DEFECTS
from rlvr.run.figures import BLUE, COLOURS, GREEN, GREY, INK, ORANGE, smoothed

FEWEST = 5  # a token must occur so often in a text to be ranked; ours
FALLS = 0.1  # the share of places that counts as "the largest falls of entropy"; ours
STEPS = "steps of this run"  # what intervals resample where only the means of steps are logged


def ends(rows: list) -> tuple[list, list]:
    """The first and the last fifth of the steps of a stage, three or more of each. ([], []) if there are not so many."""
    width = max(3, len(rows) // 5)
    return (rows[:width], rows[-width:]) if len(rows) >= 2 * width else ([], [])


def rising(run: Run) -> list[dict]:
    """The rows of the rising stage: none of a branch that begins on the plateau."""
    return [row for row in run.steps if row["step"] <= run.rising_end]


def over_steps(axis, run: Run, ylabel: str, xlabel: str = "step", top: float | None = None) -> None:
    """Name the axes of a curve over steps, and mark where the plateau begins."""
    if run.plateau:
        axis.axvline(run.plateau, color=INK, linestyle="--", linewidth=1)
    axis.set(ylim=(0, top), xlabel=xlabel, ylabel=ylabel)


@section("S1", "Two stages")
def two_stages(run: Run) -> Verdict:
    """Accuracy (training and held-out problems) and token entropy against the step. The dashed line is where the plateau begins, by the
    rule of rlvr/entropy.py. The slopes are least-squares lines on either side of it; we say that there are two stages if both slopes
    are at least three times steeper before the line. That rule puts the line where the entropy falls slowly, so half of it is true by
    construction: what can fail is the accuracy, and the entropy long after the line. Steps count as independent.

    The paper found: Accuracy rises fast while entropy falls fast (rising stage); then both change slowly (plateau).

    A no would be: one of the slopes after the line is more than a third of that before it. A yes needs a constant learning rate.
    """
    def draw(axis):
        x, y = run.series("accuracy")
        axis.plot(x, y, color=GREY, alpha=0.35, linewidth=0.8)
        axis.plot(x, smoothed(y), color=BLUE, linewidth=1.6, label="accuracy, training")
        axis.plot(*run.series("eval_pass_at_1"), "o", color=BLUE, markersize=4, label="accuracy, held-out")
        over_steps(axis, run, "accuracy", top=1.02)
        other = axis.twinx()
        other.plot(*run.series("entropy"), color=ORANGE, linewidth=1.6, label="entropy")
        other.set(ylim=(0, None), ylabel="entropy (nats)")

    columns = {"accuracy": "accuracy", "entropy": "entropy", "held_out_pass_at_1": "eval_pass_at_1"}
    rows = [{"step": int(row["step"])} | {name: row[column] for name, column in columns.items()} for row in run.metrics]
    panels = [Panel(draw, legend={"loc": "center right"})]
    before, after = len(rising(run)), run.last - run.rising_end
    if min(before, after) < 5:
        return Verdict(CANNOT, f"There are {before} steps before the plateau and {after} after it began: too few.", rows, panels)
    split, slopes, estimates = before, {}, []
    for name, sign, unit in (("accuracy", 100, "points"), ("entropy", -1, "nats")):
        values = [sign * row[name] for row in run.steps]
        slopes[name] = before, after = stage_slopes(values, split)
        error = np.hypot(slope_error(values[:split]), 3 * slope_error(values[split:]))
        bend, half = before - 3 * abs(after), error * t_quantile(len(values) - 4)
        estimates.append(Estimate(f"{name}, slope before less three times that after ({unit})", bend, bend - half, bend + half, "+.4f"))
    (a1, a2), (h1, h2) = slopes.values()
    text = f"Up to step {run.plateau} accuracy rose by {a1:.2f} points a step and entropy fell by {h1:.4f} nats; "
    text += f"after it by {a2:.2f} points and {h2:.4f} nats."
    return verdict(estimates, text, rows, panels, over=STEPS, cannot=run.slowed)


@section("S2", "The entropy drop comes from wrong answers")
def who_loses_entropy(run: Run) -> Verdict:
    """Entropy of right and of wrong answers in the first and the last steps of the rising stage; and of a fixed text, completions that the
    first model wrote, under the model nearest to the end of that stage. "Faster" means by a larger factor: in nats, whatever starts
    higher falls more when all goes to 0. The mean entropy falls for three reasons, which add up exactly: right answers lose entropy,
    wrong ones do, and wrong answers, which have more of it, become fewer (the split is ours).

    The paper found: Wrong answers start higher, stay higher, fall faster and lose most of the entropy in the rising stage.

    A no would be: wrong answers below right ones at either end; right answers fall by the larger factor; most of the fall lies elsewhere.
    All of this on what is sampled and on the fixed text, where only the policy changes and not what it writes.
    """
    def draw(axis):
        for kind, colour in (("right", GREEN), ("wrong", ORANGE)):
            x, y = run.series(f"entropy_{kind}")
            axis.plot(x, smoothed(y), color=colour, linewidth=1.6, label=f"{kind} answers")
        over_steps(axis, run, "entropy (nats)")

    kept = [row for row in rising(run) if row["entropy_right"] and row["entropy_wrong"]]
    begin, end = ends(kept)
    if not begin:
        return Verdict(CANNOT, "Too few steps of the rising stage have both right and wrong answers.", panels=[Panel(draw)])

    def drop_between(begin: list[dict], end: list[dict]) -> dict[str, float]:
        means = [[mean([row[name] for row in rows]) for rows in (begin, end)] for name in ("entropy_right", "entropy_wrong")]
        tokens_right = [mean([row["accuracy"] * row["length_right"] for row in rows]) for rows in (begin, end)]
        tokens_wrong = [mean([(1 - row["accuracy"]) * row["length_wrong"] for row in rows]) for rows in (begin, end)]
        return drop_shares(*means, tokens_right, tokens_wrong)

    def excess(*samples: list[dict]) -> float:
        drop = drop_between(*samples)
        return drop["wrong"] / drop["total"] - 0.5 if drop["total"] > 0 else float("nan")

    gaps = [[float(np.log(row["entropy_wrong"] / row["entropy_right"])) for row in rows] for rows in (begin, end)]
    estimates = [Estimate("sampled: wrong over right at the start", *mean_interval(gaps[0]), factor),
                 Estimate("at the end", *mean_interval(gaps[1]), factor),
                 Estimate("fall of wrong over fall of right", *gap_interval(*gaps), factor),
                 resampled("share of the fall inside wrong answers, less a half (points)", excess, begin, end, form=points)]  # fmt: skip
    drop, steps = drop_between(begin, end), [int(rows[i]["step"]) for rows in (begin, end) for i in (0, -1)]
    text = "Steps {} to {} against {} to {}. ".format(*steps)
    text += f"Of the fall of the mean, {drop['total']:.2f} nats, {drop['wrong']:.2f} lie inside wrong "
    text += f"answers, {drop['right']:.2f} inside right ones, and {drop['mix']:.2f} are due to their numbers."
    fixed_text, panels = _on_fixed_text(run)
    found = verdict([*estimates, *fixed_text], text, [{"from_step": steps[0], "to_step": steps[-1], **drop}],
                    [Panel(draw), *panels], over=f"{STEPS}; on the fixed text over its completions")  # fmt: skip
    if not fixed_text and found.agrees == YES:
        found.agrees, found.text = OPEN, f"{found.text} The fixed text is missing, or has no right or no wrong answers."
    return found


def near_the_end(run: Run) -> tuple[list[dict], list[dict]]:
    """The fixed completions as the first model reads them, and as the one nearest to the end of the rising stage does."""
    steps = sorted({row["step"] for row in run.fixed})
    later = min(steps[1:] or steps, key=lambda step: abs(step - run.rising_end))
    return tuple([row for row in run.fixed if row["step"] == step] for step in (steps[0], later))


def _on_fixed_text(run: Run) -> tuple[list[Estimate], list[Panel]]:
    """The estimates and the picture of S2 about completions of the first model, as later models see them."""
    if not run.fixed:
        return [], []
    steps = sorted({row["step"] for row in run.fixed})

    def draw(axis):
        for kind, colour in ((True, GREEN), (False, ORANGE)):
            means = [token_mean([row for row in run.fixed if row["step"] == step and row["correct"] == kind]) for step in steps]
            axis.plot(steps, means, "o-", color=colour, markersize=4, label=f"first model's {'right' if kind else 'wrong'} answers")
        over_steps(axis, run, "entropy (nats)", "step of the model that reads")

    first, later = near_the_end(run)
    pairs = list(zip(first, later))  # of the same completions

    def gap(pairs: list[tuple[dict, dict]], which: int) -> float:
        right, wrong = ([pair[which] for pair in pairs if pair[0]["correct"] == kind] for kind in (True, False))
        return float(np.log(token_mean(wrong) / token_mean(right))) if right and wrong else float("nan")

    asked = {"on the fixed text: at the start": lambda some: gap(some, 0),
             f"on the fixed text, to the model of step {later[0]['step']}": lambda some: gap(some, 1),
             "fall of wrong over fall of right there": lambda some: gap(some, 0) - gap(some, 1)}  # fmt: skip
    estimates = [resampled(says, value, pairs, form=factor) for says, value in asked.items()]
    return [e for e in estimates if e.value == e.value], [Panel(draw, "fixed", "the same text under later models")]


def tokens_of(rows: list[dict]) -> list[tuple[int, float]]:
    """(token, entropy at its position) of some completions: what `token_shift` compares two of."""
    return [pair for row in rows for pair in zip(row["token_ids"], row["entropy"])]


def token_mean(rows: list[dict]) -> float:
    """Mean entropy over all tokens of some completions (rows with a list `entropy`), nats; NaN of none."""
    return mean([h for row in rows for h in row["entropy"]])


@section("S3", "From filler to mathematics", needs="fixed", fewest=FEWEST, falls=percent(FALLS))
def token_shifts(run: Run) -> Verdict:
    """Completions of the first model, as it reads them itself and as the model nearest to the end of the rising stage does: so a word
    that is never written again can be measured too. Among the {falls} of places whose entropy fell most, the share of unrelated ones
    less their share of all places: those with letters, of no category but semantic support, that no right answer of the last steps
    uses (the rule is ours). Besides, the change of each category's share of the tokens that were sampled. Pictured are tokens that
    occur at least {fewest} times.

    The paper found: The largest drops of entropy are at meaningless or unrelated tokens; the tokens of mathematics become more
    frequent.

    A no would be: unrelated places are fewer among the largest falls than elsewhere, or formal reasoning becomes rarer.
    """
    samples = ends(sorted({row["step"] for row in run.completions if row["step"] <= run.rising_end}))
    logged = [[row for row in run.completions if row["step"] in steps] for steps in samples]
    if not all(logged):
        return Verdict(CANNOT, "Too few steps, or none with completions in the log (--log-completions).")
    first, later = near_the_end(run)
    texts = {token: run.token(token) for token in sorted({t for rows in (*logged, first) for row in rows for t in row["token_ids"]})}
    kinds = {token: category(text) for token, text in texts.items()}
    used = {t for row in logged[1] if row["correct"] for t in row["token_ids"]}
    junk = {t for t, text in texts.items() if t not in used and kinds[t] == CATEGORIES[-1] and any(map(str.isalpha, text))}
    read = token_shift(tokens_of(first), tokens_of(later))
    kept = ("count_before", "entropy_before", "entropy_after")
    rows = [{"token": texts[t], "category": kinds[t], "unrelated": t in junk}
            | {name: n for name, n in numbers.items() if "entropy" not in name}
            | {"count_fixed": 0} | {"count_fixed" if name == "count_before" else name: n for name, n in read.get(t, {}).items() if name in kept}
            for t, numbers in token_shift(*map(tokens_of, logged)).items()]  # fmt: skip
    fall = np.concatenate([np.subtract(a["entropy"], b["entropy"]) for a, b in zip(first, later)])
    unrelated = np.array([t in junk for row in first for t in row["token_ids"]])
    whose = np.repeat(np.arange(len(first)), [len(row["token_ids"]) for row in first])
    share, low, high, base = share_of_largest(np.maximum(fall, 0), unrelated, whose, FALLS)
    more = Estimate("unrelated places among the largest falls less among all (points)", *(x - base for x in (share, low, high)), points)

    def grown(before: list[dict], after: list[dict]) -> float:
        a, b = (mean([kinds[t] == CATEGORIES[0] for row in rows for t in row["token_ids"]]) for rows in (before, after))
        return b - a

    estimates = [more, resampled("growth of formal reasoning (points of all tokens)", grown, *logged, form=points)]
    often = [row for row in rows if row["count_fixed"] >= FEWEST]
    falls = sorted(often, key=lambda row: row["entropy_after"] - row["entropy_before"])[:10]
    most = ", ".join(f"“{row['token'].strip() or '␣' * len(row['token'])}”" for row in falls[:5])
    text = f"Read by the model of step {later[0]['step']}, unrelated places ({share_of(base, len(fall), 'all places')}) lost "
    text += f"{mean(fall[unrelated]):.2f} nats, the others {mean(fall[~unrelated]):.2f}. Most was lost at {most}."
    cannot = "" if 0 < base < 1 else "The first model wrote nothing unrelated, or nothing else."
    return verdict(estimates, text, rows, _token_panels(falls, rows), over="completions of this run", cannot=cannot)


def _token_panels(falls: list[dict], rows: list[dict]) -> list[Panel]:
    """The pictures of S3."""
    frequent = sorted((row for row in rows if row["count_before"] + row["count_after"] >= 2 * FEWEST),
                      key=lambda row: row["share_before"] - row["share_after"])  # fmt: skip
    moved = [*frequent[:8], *frequent[8:][-8:]]
    shares = {c: [sum(row[f"share_{when}"] for row in rows if row["category"] == c) for when in ("before", "after")] for c in CATEGORIES}

    def names(rows: list[dict]) -> list[str]:
        return [repr(row["token"])[1:-1] for row in rows]

    def draw_falls(axis):
        for when, label, style in (("before", "first model", dict(alpha=0.35)), ("after", "end of the rising stage", {})):
            values = [row[f"entropy_{when}"] for row in falls]
            bars(axis, names(falls), values, "mean entropy at the token (nats)", color=ORANGE, label=label, **style)

    def draw_moves(axis):
        change = [100 * (row["share_after"] - row["share_before"]) for row in moved]
        bars(axis, names(moved), change, "change of frequency (percentage points)", color=[GREEN if c > 0 else ORANGE for c in change])

    def draw_categories(axis):
        before, after = ([100 * share for share in column] for column in zip(*shares.values()))
        bars(axis, list(shares), before, "share of tokens (%)", color=BLUE, alpha=0.35, label="first steps")
        bars(axis, list(shares), after, "share of tokens (%)", color=BLUE, height=0.4, label="end of the rising stage")

    first = Panel(draw_falls, "entropy", "the ten largest falls of entropy, on the fixed text")
    second = Panel(draw_moves, "frequency", "tokens that became more and less frequent")
    return [first, second, Panel(draw_categories, "categories", "categories of tokens")]


KINDS = {"format violation": ("no_box", "broken_box"), "irrelevant content": ("chatter",), "loop": ("loop",),
         "wrong step": ("wrong_step",), "skipped step": ("skipped_step",), "overlong": ("overlong",)}  # fmt: skip
assert set(sum(KINDS.values(), ())) == set(DEFECTS)
BUILT_IN_ONLY = ("irrelevant content", "skipped step")
PAPERS_KINDS = ("format violation", "irrelevant content", "language mixing")


@section("S4", "Defective outputs vanish")
def defects_vanish(run: Run) -> Verdict:
    """Share of completions with a defect, by kind and step. The detectors are rules of ours (rlvr/run/defects.py): format violation is a
    missing or broken box, irrelevant content a sentence without a number (built-in problems only), language mixing a script that the
    prompt does not have, in the logged completions.

    The paper found: Three kinds of low-quality output (format violation, irrelevant content, language mixing) fall clearly in the
    rising stage.

    A no would be: one of the three that is there at the start keeps more than half of its share.
    """
    rates = _defect_rates(run)

    def draw(axis):
        for (kind, values), colour in zip(rates.items(), COLOURS):
            if any(values):
                style = dict(linewidth=2, linestyle="-") if kind in PAPERS_KINDS else dict(linewidth=1, linestyle="--")
                axis.plot([row["step"] for row in run.steps], smoothed(values), color=colour, label=kind, **style)
        over_steps(axis, run, "share of completions")

    rows = [{"step": int(row["step"])} | {kind: v[i] for kind, v in rates.items()} for i, row in enumerate(run.steps)]
    moves = {kind: ends(values[: len(rising(run))]) for kind, values in rates.items()}
    if not all(begin for begin, _ in moves.values()):
        return Verdict(CANNOT, "The rising stage has too few steps.", rows, [Panel(draw)])
    present = [kind for kind in PAPERS_KINDS if kind in moves and mean(moves[kind][0]) >= 0.01]
    kept = {kind: gap_interval([x / 2 for x in moves[kind][0]], moves[kind][1]) for kind in present}
    estimates = [Estimate(f"{kind}, half of its first share less its last (points)", *numbers, points) for kind, numbers in kept.items()]
    words = [f"{kind} {percent(mean(a), 1)} → {percent(mean(b), 1)}" for kind, (a, b) in moves.items()]
    text = f"First → last {len(moves[PAPERS_KINDS[0]][0])} steps of the rising stage: {'; '.join(words)}."
    if absent := [kind for kind in PAPERS_KINDS if kind not in present]:
        text += f" Hardly there from the start: {', '.join(absent)}."
    return verdict(estimates, text, rows, [Panel(draw)], over=STEPS, cannot="" if present else "No kind has a share of a hundredth.")


def _defect_rates(run: Run) -> dict[str, list[float]]:
    """Share of completions with each kind of defect, at each step. On problems of others, kinds that only ours can tell are left out."""
    kinds = {kind: names for kind, names in KINDS.items() if run.config.data == "tiny" or kind not in BUILT_IN_ONLY}
    rates = {kind: [sum(row[f"defect_{name}"] for name in names) for row in run.steps] for kind, names in kinds.items()}
    mixed = defaultdict(list)
    for row in run.completions:
        mixed[row["step"]].append(other_script(row["prompt"], row["completion"]))
    return rates | {"language mixing": [float(np.mean(mixed.get(int(row["step"]), [0.0]))) for row in run.steps]}


SECTIONS = (two_stages, who_loses_entropy, token_shifts, defects_vanish)
