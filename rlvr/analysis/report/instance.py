"""Instance level, I1 to I3: in which completions the plateau learns (Deng et al. 2025)."""

import numpy as np

from rlvr.analysis.exchange import low_half
from rlvr.run.figures import BLUE, GREEN, GREY, INK, ORANGE
from rlvr.analysis.report.arms import Experiment, compare_arms
from rlvr.analysis.report.run import Panel, Run, Section, Verdict, bootstrap, missing, percent, share_of_largest
from rlvr.analysis.report.stage import TOP


def low_tokens(run: Run, stage: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the tokens `stage`: the size of the change, and whether the completion is in the low-perplexity half of its step."""
    found = run.changes
    low = np.zeros(len(found["row_step"]), bool)
    for step in np.unique(found["row_step"]):
        rows = found["row_step"] == step
        low[rows] = low_half(found["row_log_ppl"][rows])
    return np.abs(found["change"][stage]), low[found["row"][stage]]


def learning_in_low_perplexity(runs: list[Run]) -> Section:
    section = Section(
        "I1",
        "Where learning concentrates",
        "Plateau steps made again. The completions of a step are cut at their median log-perplexity (the paper's cut is not known); "
        "shown is the share of the "
        f"{percent(TOP)} of tokens that changed most that lies in each half, beside the half's share of all tokens.",
        "The great majority of the largest updates lie in completions of low perplexity.",
    )
    for run in runs:
        if run.changes is None:
            section.verdicts.append(missing(run))
            continue
        stage = run.changes["plateau"] if run.changes["plateau"].any() else np.ones(len(run.changes["change"]), bool)
        size, low = low_tokens(run, stage)
        share, a, b, base = share_of_largest(size, low, run.changes["problem"][stage], TOP)
        section.rows.append({"run": run.name, "half": "low", "share_of_top": share, "low": a, "high": b, "base_rate": base})
        section.rows.append(
            {"run": run.name, "half": "high", "share_of_top": 1 - share, "low": 1 - b, "high": 1 - a, "base_rate": 1 - base}
        )

        def draw(axis, share=share, base=base, a=a, b=b):
            axis.bar([0, 1], [100 * share, 100 * (1 - share)], 0.5, color=[GREEN, ORANGE])
            axis.errorbar([0], [100 * share], [[100 * (share - a)], [100 * (b - share)]], color=INK, capsize=4)
            axis.hlines([100 * base, 100 * (1 - base)], [-0.32, 0.68], [0.32, 1.32], color=INK, linestyle="--", label="share of all tokens")
            axis.set_xticks([0, 1], ["low perplexity", "high perplexity"])
            axis.set(ylabel="share of the largest changes (%)", ylim=(0, 100))
            axis.legend()

        section.panels.append(Panel(run.name, draw))
        text = f"{percent(share)} of the largest changes [{percent(a)}, {percent(b)}] lie in the low-perplexity half, which holds "
        text += f"{percent(base)} of the tokens."
        verdict = None
        if run.changes["plateau"].any():
            verdict = True if a > max(base, 0.5) else False if b < base else None
        else:
            text += " No step of the plateau could be replayed, so this is the rising stage."
        section.verdicts.append(Verdict(run.name, verdict, text))
    return section


def drop(rows: list[dict]) -> float:
    """Mean loss of accuracy by a replacement: right ends after the token as it was, less right ends after the other one."""
    return float(np.mean([r["kept"] - r["replaced"] for r in rows])) if rows else float("nan")


def replacement_panel(groups: list[tuple[str, list[dict]]], title: str):
    """Accuracy after the token as it was, and after its replacement, for each group; bars are 95 % intervals over completions."""

    def draw(axis):
        for i, (name, rows) in enumerate(groups):
            for shift, key, colour in ((-0.18, "kept", BLUE), (0.18, "replaced", ORANGE)):
                values = [r[key] for r in rows]
                mean = float(np.mean(values)) if values else float("nan")
                low, high = bootstrap(values, lambda v: float(np.mean(v))) if values else (mean, mean)
                label = {"kept": "token as it was", "replaced": "likeliest other token"}[key] if i == 0 else None
                axis.bar([i + shift], [mean], 0.32, color=colour, label=label)
                axis.errorbar([i + shift], [mean], [[max(0, mean - low)], [max(0, high - mean)]], color=GREY, capsize=3)
        axis.set_xticks(range(len(groups)), [f"{name}\n(n = {len(rows)})" for name, rows in groups])
        axis.set(ylabel="right ends", ylim=(0, 1.02), xlabel=title)
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)

    return draw


def compare_drops(
    run: Run, section: Section, groups: list[tuple[str, list[dict]]], smaller: str, larger: str, paired: bool = False
) -> Verdict:  # fmt: skip
    """The drops of two groups and their difference, with intervals; the paper says that that of `smaller` is the smaller one."""
    if not all(rows for _, rows in groups):
        return Verdict(run.name, None, "One of the two groups is empty.")
    values = {}
    for name, rows in groups:
        low, high = bootstrap(rows, drop)
        values[name] = (drop(rows), low, high)
        section.rows.append({"run": run.name, "group": name, "n": len(rows), "kept": float(np.mean([r["kept"] for r in rows])),
                             "replaced": float(np.mean([r["replaced"] for r in rows])), "drop": values[name][0], "low": low, "high": high,
                             "entropy": float(np.mean([r["entropy"] for r in rows]))})  # fmt: skip
    both = dict(groups)
    if paired:  # entries of one completion are drawn together
        by_id = {name: {r["completion"]: r for r in rows} for name, rows in groups}
        ids = sorted(by_id[smaller].keys() & by_id[larger].keys())
        both = {name: [found[i] for i in ids] for name, found in by_id.items()}
    rng = np.random.default_rng(42)
    gaps = []
    for _ in range(500):
        picks = {k: rng.integers(len(rows), size=len(rows)) for k, rows in both.items()}
        if paired:
            picks = dict.fromkeys(both, picks[smaller])
        a, b = ([both[k][i] for i in picks[k]] for k in (larger, smaller))
        gaps.append(drop(a) - drop(b))
    low, high = np.quantile(gaps, [0.025, 0.975])
    gap = drop(both[larger]) - drop(both[smaller])
    words = "; ".join(f"{name} {100 * m:+.1f} points [{100 * a:+.1f}, {100 * b:+.1f}]" for name, (m, a, b) in values.items())
    text = f"Model of step {groups[0][1][0]['step']}. Accuracy lost by the replacement: {words}. "
    text += f"Difference {100 * gap:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]."
    return Verdict(run.name, True if low > 0 else False if high < 0 else None, text)


def low_perplexity_is_robust(runs: list[Run]) -> Section:
    section = Section(
        "I2",
        "Completions of low perplexity are more robust",
        "In completions of held-out problems the token of highest entropy is replaced by the likeliest other one (the first choice, where another was drawn), and both ways "
        "are finished afresh several times. "
        "Completions are cut at their median log-perplexity. Which and how many tokens the paper replaced is not known; one token, "
        "and this rule, are ours.",
        "Replacing tokens of high entropy costs less accuracy in completions of low perplexity.",
    )
    for run in runs:
        rows = [r for r in run.replacements if r["where"] == "anywhere"]
        if len(rows) < 4:
            section.verdicts.append(missing(run))
            continue
        low = low_half(np.array([r["log_ppl"] for r in rows]))
        groups = [("low perplexity", [r for r, k in zip(rows, low) if k]), ("high perplexity", [r for r, k in zip(rows, low) if not k])]
        section.panels.append(Panel(run.name, replacement_panel(groups, "completion")))
        section.verdicts.append(compare_drops(run, section, groups, "low perplexity", "high perplexity"))
    return section


def weights_by_perplexity(experiment: Experiment | None) -> Section:
    section = Section(
        "I3",
        "Weighting completions by perplexity",
        "Runs in which completions of low perplexity weigh more (ppl-strong, the paper's method at a strength that shows), none "
        "(grpo), or those of high "
        "perplexity (ppl-high): mean and range over seeds, and the difference of final accuracy on equal seeds.",
        "Low perplexity first: better accuracy and lower entropy. High perplexity first: worse accuracy and a sharp rise of entropy.",
    )
    claims = {("ppl-strong", "grpo", "pass_at_1"): 1, ("ppl-strong", "grpo", "entropy_late"): -1}
    claims |= {("ppl-high", "grpo", "pass_at_1"): -1, ("ppl-high", "grpo", "entropy_late"): 1}
    claims |= {("ppl-strong", "ppl-high", "pass_at_1"): 1, ("ppl-strong", "ppl-high", "entropy_late"): -1}
    return compare_arms(section, experiment, ["grpo", "ppl-strong", "ppl-high"], claims)


RUN_SECTIONS = (learning_in_low_perplexity, low_perplexity_is_robust)
