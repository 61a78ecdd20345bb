"""Token level, T1 to T3: where in a completion (Deng et al. 2025)."""

import numpy as np

from rlvr.analysis.exchange import ends_and_middle, position_profile, relative_positions
from rlvr.run.figures import GREEN, ORANGE
from rlvr.analysis.report.arms import Experiment, compare_arms
from rlvr.analysis.report.instance import compare_drops, replacement_panel
from rlvr.analysis.report.run import Panel, Run, Section, Verdict, bootstrap, missing
from rlvr.analysis.report.stage import sentence

BINS = 20


def _flat(rows: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    r = [relative_positions(len(row["entropy"])) for row in rows]
    return np.concatenate(r), np.concatenate([np.asarray(row["entropy"]) for row in rows])


def _least_end_above_middle(rows: list[dict]) -> float:
    first, middle, last = ends_and_middle(*_flat(rows))
    return min(first, last) - middle


def entropy_by_position(runs: list[Run]) -> Section:
    section = Section(
        "T1",
        "Entropy by position",
        f"Mean token entropy in {BINS} stretches of the relative position, for right and wrong answers, in the rising stage (dashed) "
        "and on the plateau. A curve is called a U if the "
        "first tenth and the last tenth both lie above the middle (0.3 to 0.7), on the plateau if there is one; the cuts are ours.",
        "Entropy is high at the beginning, where there are many ways to start, and at the end, low in between.",
    )
    for run in runs:
        rows = {}
        for stage, inside in (
            ("rising", lambda s, run=run: s < run.rising_end),
            ("plateau", lambda s, run=run: bool(run.plateau) and s >= run.plateau),
        ):
            for kind in (True, False):
                chosen = [r for r in run.completions if r["correct"] == kind and r["entropy"] and inside(r["step"])]
                if len(chosen) >= 5:
                    rows[stage, kind] = chosen
        if not rows:
            section.verdicts.append(Verdict(run.name, None, "The run logged too few completions (--log-completions)."))
            continue
        profiles = {key: position_profile(*_flat(chosen), BINS) for key, chosen in rows.items()}

        def draw(axis, profiles=profiles):
            x = (np.arange(BINS) + 0.5) / BINS
            for (stage, kind), y in profiles.items():
                style = dict(
                    color=GREEN if kind else ORANGE,
                    linestyle="-" if stage == "plateau" else "--",
                    linewidth=1.8 if stage == "plateau" else 1.2,
                )
                axis.plot(x, y, label=f"{'right' if kind else 'wrong'}, {stage}", **style)
            axis.set(xlabel="relative position", ylabel="entropy (nats)", ylim=(0, None))
            axis.legend()

        section.panels.append(Panel(run.name, draw))
        for (stage, kind), y in profiles.items():
            section.rows += [
                {"run": run.name, "stage": stage, "answers": "right" if kind else "wrong", "position": (i + 0.5) / BINS, "entropy": v}
                for i, v in enumerate(y)
            ]
        stage = "plateau" if any(s == "plateau" for s, _ in rows) else "rising"
        words = []
        for (s, kind), chosen in rows.items():
            first, middle, last = ends_and_middle(*_flat(chosen))
            words.append(
                f"{s}, {'right' if kind else 'wrong'} (n = {len(chosen)}): {first:.3f} at the beginning, {middle:.3f} in the middle, "
                f"{last:.3f} at the end"
            )
        everything = [r for (s, _), chosen in rows.items() if s == stage for r in chosen]
        low, high = bootstrap(everything, _least_end_above_middle, draws=200)
        agrees = True if low > 0 else False if high < 0 else None
        words.append(
            f"the lower end lies {_least_end_above_middle(everything):+.3f} [{low:+.3f}, {high:+.3f}] above the middle ({stage}, all "
            "answers)"
        )
        section.verdicts.append(Verdict(run.name, agrees, sentence(words)))
    return section


def early_tokens_decide(runs: list[Run]) -> Section:
    section = Section(
        "T2",
        "Early tokens decide, late ones do not",
        "As I2, but the token of highest entropy is sought among the first fifth of the completion, or the last fifth (cuts ours).",
        "Replacing early tokens changes the accuracy a lot, replacing late ones much less.",
    )
    for run in runs:
        groups = [(name, [r for r in run.replacements if r["where"] == name]) for name in ("early", "late")]
        if any(len(rows) < 4 for _, rows in groups):
            section.verdicts.append(missing(run))
            continue
        section.panels.append(Panel(run.name, replacement_panel(groups, "where a token is replaced")))
        section.verdicts.append(compare_drops(run, section, groups, "late", "early", paired=True))
    return section


def bonus_by_position(experiment: Experiment | None) -> Section:
    section = Section(
        "T3",
        "Rewarding late tokens",
        "Runs in which late tokens get a bonus (pos-strong, and pos-plateau: only on the plateau), none (grpo), or early ones "
        "(pos-early): mean and range over seeds, and the "
        "difference of final accuracy on equal seeds.",
        "A bonus toward the end trains best and lengthens answers; both bonuses raise entropy.",
    )
    claims = {(arm, "grpo", "entropy_late"): 1 for arm in ("pos-strong", "pos-early")}
    claims |= {("pos-strong", "grpo", "pass_at_1"): 1, ("pos-strong", "grpo", "length_late"): 1, ("pos-plateau", "grpo", "pass_at_1"): 1}
    claims |= {("pos-strong", "pos-early", "pass_at_1"): 1}
    return compare_arms(section, experiment, ["grpo", "pos-strong", "pos-early", "pos-plateau"], claims)


RUN_SECTIONS = (entropy_by_position, early_tokens_decide)
