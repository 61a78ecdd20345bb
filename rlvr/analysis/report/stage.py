"""Stage level, S1 to S4: what falls and what rises in the rising stage (Deng et al. 2025). changes.py has the plateau, S5 to S7."""

from collections import defaultdict

import numpy as np

from rlvr.analysis.exchange import CATEGORIES, category, drop_shares, other_script, stage_slopes, token_shift
from rlvr.analysis.report.run import Run, mean
from rlvr.analysis.report.section import Panel, Verdict, bars, percent, section
from rlvr.run.defects import DEFECTS
from rlvr.run.figures import BLUE, COLOURS, GREEN, GREY, INK, ORANGE, smoothed

FEWEST = 5  # a token must occur so often in both samples to be ranked; ours


def over_steps(axis, run: Run, ylabel: str, xlabel: str = "step", top: float | None = None) -> None:
    """Name the axes of a curve over steps, and mark where the plateau begins."""
    if run.plateau:
        axis.axvline(run.plateau, color=INK, linestyle="--", linewidth=1)
    axis.set(ylim=(0, top), xlabel=xlabel, ylabel=ylabel)


@section("S1", "Two stages")
def two_stages(run: Run) -> Verdict:
    """Accuracy (training and held-out problems) and token entropy against the step. The dashed line is where the plateau begins, by the
    rule of rlvr/entropy.py. The slopes are least-squares lines on either side of it; we say that there are two stages if both slopes
    are at least three times steeper before the line.

    The paper found: Accuracy rises fast while entropy falls fast (rising stage); then both change slowly (plateau).
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
    if not run.plateau or run.last - run.plateau < 5:
        end = "has not begun" if not run.plateau else f"has only {run.last - run.plateau + 1} steps"
        return Verdict(None, f"The plateau {end}; a longer run would show it.", rows, panels)
    (a1, a2), (h1, h2) = (stage_slopes([row[name] for row in run.steps], run.plateau) for name in ("accuracy", "entropy"))
    text = f"Up to step {run.plateau} accuracy rose by {100 * a1:.2f} points a step and entropy fell by {-h1:.4f} nats; "
    text += f"after it by {100 * a2:.2f} points and {-h2:.4f} nats."
    return Verdict(a1 >= 3 * abs(a2) and -h1 >= 3 * abs(h2), text, rows, panels)


@section("S2", "The entropy drop comes from wrong answers")
def who_loses_entropy(run: Run) -> Verdict:
    """Entropy of right and of wrong answers against the step; and of a fixed text, completions that the first model wrote, under the later
    models. The mean entropy falls for three reasons, which add up exactly: right answers lose entropy, wrong ones do, and wrong
    answers, which have more of it, become fewer (the split is ours). The fixed text shows what the change of the policy does alone.

    The paper found: Wrong answers start higher, stay higher and lose most of the entropy in the rising stage.
    """
    def draw(axis):
        for kind, colour in (("right", GREEN), ("wrong", ORANGE)):
            x, y = run.series(f"entropy_{kind}")
            axis.plot(x, smoothed(y), color=colour, linewidth=1.6, label=f"{kind} answers")
        over_steps(axis, run, "entropy (nats)")

    kept = [row for row in run.steps if row["step"] <= run.rising_end and row["entropy_right"] and row["entropy_wrong"]]
    if len(kept) < 3:
        return Verdict(None, "Too few steps of the rising stage have both right and wrong answers.", panels=[Panel(draw)])
    right, wrong = ([row[f"entropy_{kind}"] for row in kept] for kind in ("right", "wrong"))
    tokens_right = [row["accuracy"] * row["length_right"] for row in kept]
    tokens_wrong = [(1 - row["accuracy"]) * row["length_wrong"] for row in kept]
    drop = drop_shares(right, wrong, tokens_right, tokens_wrong)
    text = f"From step {kept[0]['step']:.0f} to {kept[-1]['step']:.0f} the entropy of wrong answers went from {wrong[0]:.2f} to "
    text += f"{wrong[-1]:.2f} nats, that of right ones from {right[0]:.2f} to {right[-1]:.2f}. Of the fall of the mean, "
    text += f"{drop['total']:.2f} nats, {drop['wrong']:.2f} lie inside wrong answers, {drop['right']:.2f} inside right ones, and "
    text += f"{drop['mix']:.2f} are due to their numbers. Without the last, wrong answers make {percent(drop['wrong_share'])} of it."
    fixed_text, fixed_panels = _on_fixed_text(run) if run.fixed else ("", [])
    row = {"from_step": int(kept[0]["step"]), "to_step": int(kept[-1]["step"]), **drop}
    return Verdict(wrong[0] > right[0] and drop["wrong_share"] > 0.5, text + fixed_text, [row], [Panel(draw), *fixed_panels])


def _on_fixed_text(run: Run) -> tuple[str, list[Panel]]:
    """The sentence and the picture of S2 about completions of the first model, as later models see them."""
    steps = sorted({row["step"] for row in run.fixed})

    def means_of(kind: bool) -> list[float]:
        return [token_mean([row for row in run.fixed if row["step"] == step and row["correct"] == kind]) for step in steps]

    right, wrong = means_of(True), means_of(False)

    def draw(axis):
        for kind, colour, means in (("right", GREEN, right), ("wrong", ORANGE, wrong)):
            axis.plot(steps, means, "o-", color=colour, markersize=4, label=f"first model's {kind} answers")
        over_steps(axis, run, "entropy (nats)", "step of the model that reads")

    text = f" On the fixed text the policy's entropy went from {wrong[0]:.2f} to {wrong[-1]:.2f} at wrong answers, from "
    text += f"{right[0]:.2f} to {right[-1]:.2f} at right ones."
    return text, [Panel(draw, "fixed", "the same text under later models")]


def token_mean(rows: list[dict]) -> float:
    """Mean entropy over all tokens of some completions (rows with a list `entropy`), nats; NaN of none."""
    return mean([h for row in rows for h in row["entropy"]])


def sample_of(run: Run, first: int, last: int) -> list[tuple[int, float]]:
    """(token, entropy at its position) of the logged completions of steps first to last: what `token_shift` compares."""
    rows = [row for row in run.completions if first <= row["step"] <= last]
    return [(token, h) for row in rows for token, h in zip(row["token_ids"], row["entropy"])]


@section("S3", "From filler to mathematics", fewest=FEWEST)
def token_shifts(run: Run) -> Verdict:
    """Which tokens lost most entropy, and which became more or less frequent, between the first steps and the end of the rising stage:
    from the completions that the run logged, tokens that occur at least {fewest} times. Right: the change of each category's share of
    all tokens (the rules for the categories are ours).

    The paper found: The largest drops of entropy are at meaningless or unrelated tokens; the tokens of mathematics become more
    frequent.
    """
    width = max(1, run.rising_end // 5)
    before, after = sample_of(run, 1, width), sample_of(run, run.rising_end - width + 1, run.rising_end)
    if not before or not after or run.rising_end < 2 * width:
        return Verdict(None, "Too few steps, or none with completions in the log (--log-completions).")
    texts = {token: run.token(token) for token in sorted({token for token, _ in before + after})}
    shift = token_shift(before, after)
    rows = [{"token": text, "category": category(text), **shift[token]} for token, text in texts.items()]
    old, new = ([row for row in rows if row[f"count_{when}"] >= FEWEST] for when in ("before", "after"))
    both = [row for row in old if row["count_after"] >= FEWEST]
    falls = sorted(both, key=lambda row: row["entropy_after"] - row["entropy_before"])[:10]
    grown = sorted(new, key=lambda row: row["share_before"] - row["share_after"])[:8]
    shrunk = sorted(old, key=lambda row: row["share_after"] - row["share_before"])[:8]
    shares = {c: [sum(row[f"share_{when}"] for row in rows if row["category"] == c) for when in ("before", "after")] for c in CATEGORIES}
    formal = shares[CATEGORIES[0]]
    formal_falls = sum(row["category"] == CATEGORIES[0] for row in falls)
    text = f"Steps 1 to {width} against {run.rising_end - width + 1} to {run.rising_end}: the share of formal reasoning went from "
    text += f"{percent(formal[0], 1)} to {percent(formal[1], 1)} of all tokens. Most entropy was lost at {_quoted(falls)}; "
    text += f"{formal_falls} of the ten largest falls are formal reasoning. Most grown: {_quoted(grown)}."
    panels = _token_panels(falls, [*grown, *reversed(shrunk)], shares)
    return Verdict(formal[1] > formal[0] and formal_falls <= 5, text, rows, panels)


def _quoted(rows: list[dict]) -> str:
    return ", ".join(f"“{row['token'].strip() or '␣' * len(row['token'])}”" for row in rows[:5])


def _token_panels(falls: list[dict], moved: list[dict], shares: dict[str, list[float]]) -> list[Panel]:
    """The pictures of S3."""

    def names(rows: list[dict]) -> list[str]:
        return [repr(row["token"])[1:-1] for row in rows]

    def draw_falls(axis):
        xlabel = "mean entropy at the token (nats)"
        bars(axis, names(falls), [row["entropy_before"] for row in falls], xlabel, color=ORANGE, alpha=0.35, label="first steps")
        bars(axis, names(falls), [row["entropy_after"] for row in falls], xlabel, color=ORANGE, label="end of the rising stage")

    def draw_moves(axis):
        change = [100 * (row["share_after"] - row["share_before"]) for row in moved]
        bars(axis, names(moved), change, "change of frequency (percentage points)", color=[GREEN if c > 0 else ORANGE for c in change])

    def draw_categories(axis):
        before, after = ([100 * share for share in column] for column in zip(*shares.values()))
        bars(axis, list(shares), before, "share of tokens (%)", color=BLUE, alpha=0.35, label="first steps")
        bars(axis, list(shares), after, "share of tokens (%)", color=BLUE, height=0.4, label="end of the rising stage")

    first = Panel(draw_falls, "entropy", "the ten largest falls of entropy")
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
    """
    rates = _defect_rates(run)

    def draw(axis):
        for (kind, values), colour in zip(rates.items(), COLOURS):
            if any(values):
                style = dict(linewidth=2, linestyle="-") if kind in PAPERS_KINDS else dict(linewidth=1, linestyle="--")
                axis.plot([row["step"] for row in run.steps], smoothed(values), color=colour, label=kind, **style)
        over_steps(axis, run, "share of completions")

    rows = [{"step": int(row["step"])} | {kind: v[i] for kind, v in rates.items()} for i, row in enumerate(run.steps)]
    begin, end = slice(0, 3), slice(max(0, run.rising_end - 3), run.rising_end)
    moves = {kind: (float(np.mean(v[begin])), float(np.mean(v[end]))) for kind, v in rates.items()}
    present = {kind: moves[kind] for kind in PAPERS_KINDS if kind in moves and moves[kind][0] >= 0.01}
    absent = [kind for kind in PAPERS_KINDS if kind not in present]
    words = [f"{kind} {percent(a, 1)} → {percent(b, 1)}" for kind, (a, b) in moves.items()]
    text = f"First three steps → last three of the rising stage: {'; '.join(words)}."
    if absent:
        text += f" Hardly there from the start: {', '.join(absent)}."
    return Verdict(all(b < a / 2 for a, b in present.values()) if present else None, text, rows, [Panel(draw)])


def _defect_rates(run: Run) -> dict[str, list[float]]:
    """Share of completions with each kind of defect, at each step. On problems of others, kinds that only ours can tell are left out."""
    kinds = {kind: names for kind, names in KINDS.items() if run.config.data == "tiny" or kind not in BUILT_IN_ONLY}
    rates = {kind: [sum(row[f"defect_{name}"] for name in names) for row in run.steps] for kind, names in kinds.items()}
    mixed = defaultdict(list)
    for row in run.completions:
        mixed[row["step"]].append(other_script(row["prompt"], row["completion"]))
    return rates | {"language mixing": [float(np.mean(mixed.get(int(row["step"]), [0.0]))) for row in run.steps]}


SECTIONS = (two_stages, who_loses_entropy, token_shifts, defects_vanish)
