"""Token level, T1 to T3: where in a completion (Deng et al. 2025)."""

from dataclasses import replace

import numpy as np

from rlvr.analysis.exchange import ends_and_middle, position_profile, with_positions
from rlvr.analysis.report.arms import Experiment, arms_section
from rlvr.analysis.report.instance import FEW, compare_drops, matters
from rlvr.analysis.report.run import Run
from rlvr.analysis.report.section import CANNOT, NO_PROBE, Panel, Section, Verdict, resampled, section, sentence, verdict
from rlvr.common.text import quoted
from rlvr.run.figures import GREEN, ORANGE

BINS = 20


def _flat(rows: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    return with_positions([row["entropy"] for row in rows])


def _least_end_above_middle(rows: list[dict]) -> float:
    first, middle, last = ends_and_middle(*_flat(rows))
    return min(first, last) - middle


def _by_stage_and_answer(run: Run) -> dict[tuple[str, str], list[dict]]:
    """The logged completions by (rising or plateau, right or wrong), where they are at least five."""
    found, plateau = {}, run.plateau or float("inf")
    for stage, first, end in (("rising", 0, run.rising_end), ("plateau", plateau, float("inf"))):
        for answer in ("right", "wrong"):
            rows = [r for r in run.completions if r["correct"] == (answer == "right") and r["entropy"] and first <= r["step"] < end]
            if len(rows) >= 5:
                found[stage, answer] = rows
    return found


@section("T1", "Entropy by position", bins=BINS)
def entropy_by_position(run: Run) -> Verdict:
    """Mean token entropy in {bins} stretches of the relative position, for right and wrong answers, in the rising stage (dashed) and on
    the plateau. A curve is called a U if the first tenth and the last tenth of the plateau's both lie above the middle (0.3 to 0.7); the
    cuts are ours.

    The paper found: Entropy is high at the beginning, where there are many ways to start, and at the end, where the conclusion is
    uncertain, low in between.

    A no would be: the lower end lies below the middle. It cannot be asked where the answer depends on hardly any undecided token (I2):
    then entropy is a choice of words, and says nothing about a conclusion. Nor can it without a probe.
    """
    found = _by_stage_and_answer(run)
    if not found:
        return Verdict(CANNOT, "The run logged too few completions (--log-completions).")
    centres = (np.arange(BINS) + 0.5) / BINS
    profiles = {key: position_profile(*_flat(rows), BINS) for key, rows in found.items()}

    def draw(axis):
        for (stage, answer), profile in profiles.items():
            style = dict(linestyle="-", linewidth=1.8) if stage == "plateau" else dict(linestyle="--", linewidth=1.2)
            axis.plot(centres, profile, label=f"{answer}, {stage}", color=GREEN if answer == "right" else ORANGE, **style)
        axis.set(xlabel="relative position", ylabel="entropy (nats)", ylim=(0, None))

    rows, words = [], []
    for (stage, answer), chosen in found.items():
        profile = zip(centres.tolist(), profiles[stage, answer])
        rows += [{"stage": stage, "answers": answer, "position": x, "entropy": h} for x, h in profile]
        first, middle, last = (f"{h:.3f}" for h in ends_and_middle(*_flat(chosen)))
        words.append(f"{stage}, {answer} (n = {len(chosen)}): {first} at the beginning, {middle} in the middle, {last} at the end")
    last_stage = list(found)[-1][0]
    everything = [row for (stage, _), chosen in found.items() if stage == last_stage for row in chosen]
    estimate = resampled(f"the lower end less the middle ({last_stage}, all answers; nats)", _least_end_above_middle, everything)
    cannot = "" if last_stage == "plateau" else "This is not the plateau."
    matter = sum(matters(entry) for entry in run.replacements)
    if not run.replacements:
        cannot = f"Whether an answer depends on what is undecided is not known. {NO_PROBE.format(folder=quoted(run.folder))}"
    elif matter <= FEW * len(run.replacements):
        cannot = f"Of {len(run.replacements):,} replaced tokens {matter:,} matter to the answer, half perhaps by chance: a choice of words."
    found = verdict([estimate], sentence(words), rows, [Panel(draw)], over="completions of this run", cannot=cannot)
    return replace(found, agrees=CANNOT) if cannot else found


@section("T2", "Early tokens decide, late ones do not", needs="replacements")
def early_tokens_decide(run: Run) -> Verdict:
    """The replacements of I2, in the first fifth of the completion and in the last (cuts ours).

    The paper found: Replacing early tokens changes the accuracy a lot, replacing late ones much less.

    A no would be: the late ones cost more.
    """
    groups = {name: [row for row in run.replacements if row["where"] == name] for name in ("early", "late")}
    return compare_drops(groups, "late", "early", "where a token is replaced")


def bonus_by_position(runs: list[Run], experiment: Experiment | None) -> Section:
    """Runs in which late tokens get a bonus (pos-strong, and pos-plateau: only on the plateau), none (grpo), or early ones (pos-early):
    mean and range over seeds, and differences on equal seeds, of entropy and length as ratios. A claim is answered as in I3.

    The paper found: A bonus toward the end trains best and lengthens answers; both bonuses raise entropy.

    A no would be: a difference of the other sign that holds after the adjustment.
    """
    return arms_section("T3", "Rewarding late tokens", bonus_by_position, experiment)


SECTIONS = (entropy_by_position, early_tokens_decide, bonus_by_position)
