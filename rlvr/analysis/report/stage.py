"""Stage level, S1 to S7: what happens in the rising stage, and what on the plateau (Deng et al. 2025)."""

import numpy as np

from rlvr.run.defects import DEFECTS
from rlvr.analysis.exchange import (
    CATEGORIES,
    by_quantile,
    category,
    drop_shares,
    largest,
    other_script,
    rank_correlation,
    share_over,
    stage_slopes,
    token_shift,
)
from rlvr.run.figures import BLUE, COLOURS, GREEN, GREY, INK, ORANGE, smoothed
from rlvr.analysis.report.run import Panel, Run, Section, Verdict, bootstrap, missing, percent, share_of_largest

LITTLE = 0.05  # a change of probability above this counts as one; ours
TOP = 0.01  # the share of tokens that counts as "the largest changes"; ours
FEWEST = 5  # a token must occur so often in both samples to be ranked; ours


def split_line(axis, run: Run) -> None:
    if run.plateau:
        axis.axvline(run.plateau, color=INK, linestyle="--", linewidth=1)


def two_stages(runs: list[Run]) -> Section:
    section = Section(
        "S1",
        "Two stages",
        "Accuracy (training and held-out problems) and token entropy against the step. The dashed line is where the plateau begins, by the "
        "rule of rlvr/entropy.py. The slopes are least-squares lines on either side of it; we say that there are two stages if both slopes "
        "are at least three times steeper before the line.",
        "Accuracy rises fast while entropy falls fast (rising stage); then both change slowly (plateau).",
    )
    for run in runs:

        def draw(axis, run=run):
            x, y = run.series("accuracy")
            axis.plot(x, y, color=GREY, alpha=0.35, linewidth=0.8)
            axis.plot(x, smoothed(y), color=BLUE, linewidth=1.6, label="accuracy, training")
            axis.plot(*run.series("eval_pass_at_1"), "o", color=BLUE, markersize=4, label="accuracy, held-out")
            axis.set(ylim=(0, 1.02), xlabel="step", ylabel="accuracy")
            split_line(axis, run)
            other = axis.twinx()
            x, y = run.series("entropy")
            other.plot(x, y, color=ORANGE, linewidth=1.6, label="entropy")
            other.set(ylim=(0, None), ylabel="entropy (nats)")
            lines = axis.get_legend_handles_labels()[0] + other.get_legend_handles_labels()[0]
            axis.legend(lines, [line.get_label() for line in lines], loc="center right")

        section.panels.append(Panel(run.name, draw))
        section.rows += [{"run": run.name, "step": int(r["step"]), "accuracy": r["accuracy"], "entropy": r["entropy"],
                          "held_out_pass_at_1": r["eval_pass_at_1"]} for r in run.metrics]  # fmt: skip
        if not run.plateau or run.last - run.plateau < 5:
            end = "has not begun" if not run.plateau else f"has only {run.last - run.plateau + 1} steps"
            section.verdicts.append(Verdict(run.name, None, f"The plateau {end}; a longer run would show it."))
            continue
        accuracy, entropy = ([row[name] for row in run.steps] for name in ("accuracy", "entropy"))
        (a1, a2), (h1, h2) = stage_slopes(accuracy, run.plateau), stage_slopes(entropy, run.plateau)
        text = (
            f"Up to step {run.plateau} accuracy rose by {100 * a1:.2f} points a step and entropy fell by {-h1:.4f} nats; "
            f"after it by {100 * a2:.2f} points and {-h2:.4f} nats."
        )
        section.verdicts.append(Verdict(run.name, a1 >= 3 * abs(a2) and -h1 >= 3 * abs(h2), text))
    return section


def who_loses_entropy(runs: list[Run]) -> Section:
    section = Section(
        "S2",
        "The entropy drop comes from wrong answers",
        "Entropy of right and of wrong answers against the step; and of a fixed text, completions that the first model wrote, under the "
        "later models. The mean entropy falls for three reasons, which add up exactly: right answers lose entropy, wrong ones do, "
        "and wrong "
        "answers, which have more of it, become fewer (the split is ours). The fixed text shows what the change of the policy does alone.",
        "Wrong answers start higher, stay higher and lose most of the entropy in the rising stage.",
    )
    for run in runs:
        right, wrong = ([row[f"entropy_{kind}"] for row in run.steps] for kind in ("right", "wrong"))

        def draw(axis, run=run):
            for kind, colour in (("right", GREEN), ("wrong", ORANGE)):
                x, y = run.series(f"entropy_{kind}")
                axis.plot(x, smoothed(y), color=colour, linewidth=1.6, label=f"{kind} answers")
            split_line(axis, run)
            axis.set(ylim=(0, None), xlabel="step", ylabel="entropy (nats)")
            axis.legend()

        section.panels.append(Panel(run.name, draw))
        kept = [row for row in run.steps if row["step"] <= run.rising_end and row["entropy_right"] and row["entropy_wrong"]]
        if len(kept) < 3:
            section.verdicts.append(Verdict(run.name, None, "Too few steps of the rising stage have both right and wrong answers."))
            continue
        right, wrong = ([row[f"entropy_{kind}"] for row in kept] for kind in ("right", "wrong"))
        tokens_right = [row["accuracy"] * row["length_right"] for row in kept]
        tokens_wrong = [(1 - row["accuracy"]) * row["length_wrong"] for row in kept]
        drop = drop_shares(right, wrong, tokens_right, tokens_wrong)
        section.rows.append({"run": run.name, "from_step": int(kept[0]["step"]), "to_step": int(kept[-1]["step"]), **drop})
        text = (
            f"From step {kept[0]['step']:.0f} to {kept[-1]['step']:.0f} the entropy of wrong answers went from {wrong[0]:.2f} to "
            f"{wrong[-1]:.2f} nats, that of right ones from {right[0]:.2f} to {right[-1]:.2f}. Of the fall of the mean, "
            f"{drop['total']:.2f} "
            f"nats, {drop['wrong']:.2f} lie inside wrong answers, {drop['right']:.2f} inside right ones, and {drop['mix']:.2f} are due to "
            f"their numbers. Without the last, wrong answers make {percent(drop['wrong_share'])} of it."
        )
        if run.fixed:
            steps = sorted({row["step"] for row in run.fixed})
            means = {
                kind: [token_mean([r for r in run.fixed if r["step"] == step and r["correct"] == kind]) for step in steps]
                for kind in (True, False)
            }

            def draw_fixed(axis, run=run, steps=steps, means=means):
                for kind, colour in ((True, GREEN), (False, ORANGE)):
                    axis.plot(
                        steps, means[kind], "o-", color=colour, markersize=4, label=f"first model's {'right' if kind else 'wrong'} answers"
                    )
                split_line(axis, run)
                axis.set(ylim=(0, None), xlabel="step of the model that reads", ylabel="entropy (nats)")
                axis.legend()

            section.panels.append(Panel(f"{run.name}-fixed", draw_fixed, f"{run.name}: the same text under later models"))
            text += (
                f" On the fixed text the policy's entropy went from {means[False][0]:.2f} to {means[False][-1]:.2f} at wrong answers, from "
                f"{means[True][0]:.2f} to {means[True][-1]:.2f} at right ones."
            )
        agrees = wrong[0] > right[0] and drop["wrong_share"] > 0.5
        section.verdicts.append(Verdict(run.name, agrees, text))
    return section


def token_mean(rows: list[dict]) -> float:
    """Mean entropy over all tokens of some completions (rows with a list `entropy`), nats; NaN of none."""
    values = [h for row in rows for h in row["entropy"]]
    return sum(values) / len(values) if values else float("nan")


def sample_of(run: Run, first: int, last: int) -> list[tuple[int, float]]:
    """(token, entropy at its position) of the logged completions of steps first to last: what `token_shift` compares."""
    rows = [row for row in run.completions if first <= row["step"] <= last]
    return [(token, h) for row in rows for token, h in zip(row["token_ids"], row["entropy"])]


def token_shifts(runs: list[Run]) -> Section:
    section = Section(
        "S3",
        "From filler to mathematics",
        "Which tokens lost most entropy, and which became more or less frequent, between the first steps and the end of the rising stage: "
        f"from the completions that the run logged, tokens that occur at least {FEWEST} times. Right: the change of each category's "
        "share of all "
        "tokens (the rules for the categories are ours).",
        "The largest drops of entropy are at meaningless or unrelated tokens; the tokens of mathematics become more frequent.",
    )
    for run in runs:
        width = max(1, run.rising_end // 5)
        before, after = sample_of(run, 1, width), sample_of(run, run.rising_end - width + 1, run.rising_end)
        if not before or not after or run.rising_end < 2 * width:
            section.verdicts.append(Verdict(run.name, None, "Too few steps, or none with completions in the log (--log-completions)."))
            continue
        shift = token_shift(before, after)
        kinds = {token: category(run.token(token)) for token in shift}
        rows = [{"run": run.name, "token": run.token(t), "category": kinds[t], **numbers} for t, numbers in sorted(shift.items())]
        section.rows += rows
        ranked = [r for r in rows if min(r["count_before"], r["count_after"]) >= FEWEST]
        falls = sorted(ranked, key=lambda r: r["entropy_after"] - r["entropy_before"])[:10]
        grown = sorted((r for r in rows if r["count_after"] >= FEWEST), key=lambda r: r["share_before"] - r["share_after"])[:8]
        shrunk = sorted((r for r in rows if r["count_before"] >= FEWEST), key=lambda r: r["share_after"] - r["share_before"])[:8]
        shares = {c: [sum(r[f"share_{w}"] for r in rows if r["category"] == c) for w in ("before", "after")] for c in CATEGORIES}

        def draw_falls(axis, falls=falls):
            places = range(len(falls))
            axis.barh(places, [r["entropy_before"] for r in falls], color=ORANGE, alpha=0.35, label="first steps")
            axis.barh(places, [r["entropy_after"] for r in falls], color=ORANGE, label="end of the rising stage")
            axis.set_yticks(places, [repr(r["token"])[1:-1] for r in falls])
            axis.invert_yaxis()
            axis.set(xlabel="mean entropy at the token (nats)")
            axis.legend()

        def draw_shares(axis, both=[*grown, *reversed(shrunk)]):
            change = [100 * (r["share_after"] - r["share_before"]) for r in both]
            axis.barh(range(len(both)), change, color=[GREEN if c > 0 else ORANGE for c in change])
            axis.set_yticks(range(len(both)), [repr(r["token"])[1:-1] for r in both])
            axis.invert_yaxis()
            axis.set(xlabel="change of frequency (percentage points)")

        def draw_categories(axis, shares=shares):
            axis.barh(list(shares), [100 * b for b, _ in shares.values()], color=BLUE, alpha=0.35, label="first steps")
            axis.barh(list(shares), [100 * a for _, a in shares.values()], height=0.4, color=BLUE, label="end of the rising stage")
            axis.invert_yaxis()
            axis.set(xlabel="share of tokens (%)")
            axis.legend()

        for name, draw, caption in (
            ("entropy", draw_falls, "the ten largest falls of entropy"),
            ("frequency", draw_shares, "tokens that became more and less frequent"),
            ("categories", draw_categories, "categories of tokens"),
        ):
            section.panels.append(Panel(f"{run.name}-{name}", draw, f"{run.name}: {caption}"))
        formal = shares[CATEGORIES[0]]
        formal_falls = sum(r["category"] == CATEGORIES[0] for r in falls)
        text = (
            f"Steps 1 to {width} against {run.rising_end - width + 1} to {run.rising_end}: the share of formal reasoning went from "
            f"{percent(formal[0], 1)} to "
            f"{percent(formal[1], 1)} of all tokens. Most entropy was lost at {_quoted(falls)}; {formal_falls} of the ten largest "
            "falls are formal "
            f"reasoning. Most grown: {_quoted(grown)}."
        )
        section.verdicts.append(Verdict(run.name, formal[1] > formal[0] and formal_falls <= 5, text))
    return section


def _quoted(rows: list[dict]) -> str:
    return ", ".join(f"“{r['token'].strip() or '␣' * len(r['token'])}”" for r in rows[:5])


KINDS = {"format violation": ("no_box", "broken_box"), "irrelevant content": ("chatter",), "loop": ("loop",),
         "wrong step": ("wrong_step",), "skipped step": ("skipped_step",), "overlong": ("overlong",)}  # fmt: skip
PAPERS_KINDS = ("format violation", "irrelevant content", "language mixing")


def defects_vanish(runs: list[Run]) -> Section:
    section = Section(
        "S4",
        "Defective outputs vanish",
        "Share of completions with a defect, by kind and step. The detectors are rules of ours (rlvr/run/defects.py): format violation is a "
        "missing or broken box, irrelevant content a sentence without a number (built-in problems only), language mixing a script that the "
        "prompt does not have, in the logged completions.",
        "Three kinds of low-quality output (format violation, irrelevant content, language mixing) fall clearly in the rising stage.",
    )
    for run in runs:
        steps = [row["step"] for row in run.steps]
        rates = {kind: [sum(row[f"defect_{d}"] for d in names) for row in run.steps] for kind, names in KINDS.items()}
        by_step: dict[int, list[bool]] = {}
        for row in run.completions:
            by_step.setdefault(row["step"], []).append(other_script(row["prompt"], row["completion"]))
        rates["language mixing"] = [float(np.mean(by_step.get(int(step), [0.0]))) for step in steps]
        if run.config.data != "tiny":
            rates.pop("irrelevant content")
            rates.pop("skipped step")

        def draw(axis, run=run, rates=rates, steps=steps):
            for (kind, values), colour in zip(rates.items(), COLOURS):
                if any(values):
                    axis.plot(steps, smoothed(values), color=colour, linewidth=2 if kind in PAPERS_KINDS else 1, label=kind,
                              linestyle="-" if kind in PAPERS_KINDS else "--")  # fmt: skip
            split_line(axis, run)
            axis.set(ylim=(0, None), xlabel="step", ylabel="share of completions")
            axis.legend()

        section.panels.append(Panel(run.name, draw))
        section.rows += [{"run": run.name, "step": int(s), **{k: v[i] for k, v in rates.items()}} for i, s in enumerate(steps)]
        begin, end = slice(0, 3), slice(max(0, run.rising_end - 3), run.rising_end)
        moves = {kind: (float(np.mean(v[begin])), float(np.mean(v[end]))) for kind, v in rates.items()}
        present = {kind: moves[kind] for kind in PAPERS_KINDS if kind in moves and moves[kind][0] >= 0.01}
        text = "; ".join(f"{kind} {percent(a, 1)} → {percent(b, 1)}" for kind, (a, b) in moves.items())
        absent = [kind for kind in PAPERS_KINDS if kind not in present]
        text = f"First three steps → last three of the rising stage: {text}." + (
            f" Hardly there from the start: {', '.join(absent)}." if absent else ""
        )
        section.verdicts.append(Verdict(run.name, all(b < a / 2 for a, b in present.values()) if present else None, text))
    return section


def _stages(run: Run):
    """(name, which tokens of the replayed steps) of the stages that were replayed."""
    inside = run.changes["plateau"]
    return [(name, mask) for name, mask in (("rising", ~inside), ("plateau", inside)) if mask.any()]


def few_tokens_change(runs: list[Run]) -> Section:
    section = Section(
        "S5",
        "On the plateau very few tokens change",
        "Training steps made again from checkpoints: the change of every token's probability, by the sign of its advantage. "
        "“Little” is at most "
        f"{LITTLE} (ours; the paper's threshold is not known).",
        "More than 99 % of the tokens change very little; those that change go up in right answers and down in wrong ones.",
    )
    for run in runs:
        if run.changes is None:
            section.verdicts.append(missing(run))
            continue
        change, advantage, where = run.changes["change"], run.changes["advantage"], _stages(run)

        def draw(axis, change=change, advantage=advantage, where=where):
            mask = where[-1][1]
            bins = np.linspace(-0.5, 0.5, 81)
            for sign, colour, label in ((1, GREEN, "A > 0"), (-1, ORANGE, "A < 0")):
                x = np.clip(change[mask & (np.sign(advantage) == sign)], -0.5, 0.5)
                if len(x):
                    axis.hist(
                        x,
                        bins,
                        weights=np.full(len(x), 1 / len(x)),
                        histtype="step",
                        color=colour,
                        linewidth=1.4,
                        label=f"{label} ({where[-1][0]})",
                    )
            axis.set(yscale="log", xlabel="change of probability in one step", ylabel="share of tokens")
            axis.legend()

        section.panels.append(Panel(run.name, draw))
        words = []
        for name, mask in where:
            big = mask & (np.abs(change) > LITTLE)
            along, rows = change[big] * advantage[big] > 0, run.changes["row"][big]
            by_row = [along[rows == r] for r in np.unique(rows)]
            up = float(along.mean()) if big.any() else float("nan")
            low, high = bootstrap(by_row, lambda found: float(np.concatenate(found).mean())) if big.any() else (float("nan"), float("nan"))
            numbers = {
                "run": run.name,
                "stage": name,
                "tokens": int(mask.sum()),
                "share_changed": share_over(change[mask], LITTLE),
                "with_their_advantage": up,
            }
            for sign, label in ((1, "positive"), (-1, "negative")):
                side = mask & (np.sign(advantage) == sign)
                numbers[f"share_changed_{label}"] = share_over(change[side], LITTLE)
                numbers[f"mean_change_{label}"] = float(change[side].mean()) if side.any() else float("nan")
            section.rows.append(numbers)
            steps = sorted(set(run.changes["step"][mask].tolist()))
            in_direction = f"{percent(up)} [{percent(low)}, {percent(high)}]" if big.any() else "none"
            words.append(
                f"{name} (step{'s' * (len(steps) > 1)} {', '.join(map(str, steps))}): {percent(numbers['share_changed'], 1)} of "
                f"{mask.sum()} tokens changed by "
                f"more than {LITTLE}; {in_direction} of those in the direction of their advantage; mean change "
                f"{numbers['mean_change_positive']:+.4f} "
                f"where A > 0, {numbers['mean_change_negative']:+.4f} where A < 0"
            )
        last = section.rows[-1]
        agrees = None
        if where[-1][0] == "plateau":
            agrees = True if last["share_changed"] < 0.01 and low > 0.5 else None
            agrees = False if last["share_changed"] >= 0.01 or high < 0.5 else agrees
        section.verdicts.append(Verdict(run.name, agrees, sentence(words)))
    return section


def sentence(words: list[str]) -> str:
    text = "; ".join(words)
    return text[:1].upper() + text[1:] + "."


def changed_tokens_are_uncertain(runs: list[Run]) -> Section:
    section = Section(
        "S6",
        "The few are tokens of high entropy and large gradient",
        "Plateau steps made again (all steps if none is of the plateau). Tokens in ten groups of equal size by entropy: mean size of "
        "the change, and mean length of "
        "the gradient of the log-prob in the logits, √(1 − 2p + Σp²) (definition ours).",
        "The tokens that change most are tokens of high entropy and with large gradients: forks in the reasoning.",
    )
    for run in runs:
        if run.changes is None:
            section.verdicts.append(missing(run))
            continue
        stage, mask = _stages(run)[-1]
        size, entropy, gradient = np.abs(run.changes["change"][mask]), run.changes["entropy"][mask], run.changes["grad_norm"][mask]
        x, y = by_quantile(entropy, size)
        _, g = by_quantile(entropy, gradient)
        section.rows += [{"run": run.name, "stage": stage, "entropy": a, "change": b, "gradient": c} for a, b, c in zip(x, y, g)]

        def draw(axis, y=y, g=g):
            tenths = np.arange(1, 11)
            axis.plot(tenths, y, "o-", color=BLUE, label="mean change of probability")
            other = axis.twinx()
            other.plot(tenths, g, "s-", color=ORANGE, label="mean gradient length")
            axis.set_yscale("log")
            other.set_yscale("log")
            axis.set(xlabel="tenth of the tokens, by entropy", ylabel="change of probability", xticks=tenths)
            other.set_ylabel("gradient length")
            handles = axis.get_legend_handles_labels()[0] + other.get_legend_handles_labels()[0]
            axis.legend(handles, [h.get_label() for h in handles], loc="upper left")

        section.panels.append(Panel(run.name, draw))
        top = largest(size, TOP)
        rank_h, rank_g = rank_correlation(entropy, size), rank_correlation(gradient, size)
        ratio = entropy[top].mean() / max(entropy[~top].mean(), 1e-9)
        text = (
            f"{stage.capitalize()}: the {percent(TOP)} of tokens that changed most have a mean entropy of {entropy[top].mean():.2f} "
            f"nats, the rest {entropy[~top].mean():.3f} "
            f"({ratio:.0f} times less), and a gradient of {gradient[top].mean():.2f} against {gradient[~top].mean():.3f}. Rank "
            "correlation of the size of "
            f"the change with entropy {rank_h:.2f}, with the gradient {rank_g:.2f}."
        )
        agrees = bool(
            entropy[top].mean() > entropy[~top].mean() and gradient[top].mean() > gradient[~top].mean() and rank_h > 0 and rank_g > 0
        )
        section.verdicts.append(Verdict(run.name, agrees if stage == "plateau" else None, text))
    return section


def changed_tokens_are_formal(runs: list[Run]) -> Section:
    section = Section(
        "S7",
        "Formal reasoning changes most",
        f"Plateau steps made again (all steps if none is of the plateau). The share of each category among the {percent(TOP)} of "
        "tokens that changed most, divided by its share of all "
        "tokens: above 1 it is over-represented. In the text, with 95 % intervals over problems, and the mean change. Categories "
        "are ours, by the text of the token.",
        "Tokens of formal reasoning (digits, operators, symbols) get the strongest updates.",
    )
    for run in runs:
        if run.changes is None:
            section.verdicts.append(missing(run))
            continue
        stage, mask = _stages(run)[-1]
        size, tokens = np.abs(run.changes["change"][mask]), run.changes["token"][mask]
        of_token = {int(t): category(run.token(int(t))) for t in np.unique(tokens)}
        kinds = np.array([of_token[int(t)] for t in tokens])
        rows = []
        for kind in CATEGORIES:
            chosen, low, high, base = share_of_largest(size, kinds == kind, run.changes["problem"][mask], TOP)
            numbers = {"share_of_top": chosen, "low": low, "high": high, "base_rate": base}
            numbers |= {
                "ratio": chosen / base if base else float("nan"),
                "mean_change": float(size[kinds == kind].mean()) if base else float("nan"),
            }
            rows.append({"run": run.name, "stage": stage, "category": kind} | numbers)
        section.rows += rows

        def draw(axis, rows=rows):
            axis.barh([r["category"] for r in rows], [r["ratio"] for r in rows], color=BLUE)
            axis.axvline(1, color=INK, linewidth=1, linestyle="--")
            axis.invert_yaxis()
            axis.set(xlabel="share among the largest changes / share of all tokens")

        section.panels.append(Panel(run.name, draw))
        text = "; ".join(
            f"{r['category']} {percent(r['share_of_top'])} [{percent(r['low'])}, {percent(r['high'])}] of the largest changes, "
            f"{percent(r['base_rate'])} of all tokens, mean change {r['mean_change']:.4f}"
            for r in rows
            if r["base_rate"] > 0
        )
        formal, ratios = rows[0], [r["ratio"] for r in rows if r["base_rate"] > 0]
        agrees = True if formal["low"] > formal["base_rate"] and formal["ratio"] == max(ratios) else None
        agrees = False if formal["high"] < formal["base_rate"] else agrees
        section.verdicts.append(Verdict(run.name, agrees if stage == "plateau" else None, f"{stage.capitalize()}: {text}."))
    return section


SECTIONS = (
    two_stages,
    who_loses_entropy,
    token_shifts,
    defects_vanish,
    few_tokens_change,
    changed_tokens_are_uncertain,
    changed_tokens_are_formal,
)
assert set(sum(KINDS.values(), ())) == set(DEFECTS)
