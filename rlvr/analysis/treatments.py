"""Is each arm of a plan a treatment? How far its gradient points away from that of the baseline, on batches of the trunks.

    python -m rlvr.analysis.treatments runs/study

From each trunk that is there one batch is sampled, as a branch would begin. An arm whose gradient has nearly the direction and the length
of the baseline's would change next to nothing. Compared are methods with their strengths: what another flag does, as --lr or --learn-from,
is not seen here, and the table says so.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch

if not __package__:  # run by its path, which works from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rlvr.advantage import grpo_advantages
from rlvr.analysis.experiment import ExperimentConfig, Run, chosen_plan, planned
from rlvr.analysis.replay import rows_that_teach, update_gradient
from rlvr.common.files import write_atomically
from rlvr.common.text import csv_text, progress_bar, say, table
from rlvr.config import STRENGTHS, refuse
from rlvr.reward import overlong_penalty
from rlvr.run.branch import start_branch
from rlvr.run.cli import parse_command, run_program
from rlvr.train import set_up

SAME = 0.999  # an arm whose gradient has a cosine above this is no treatment


@dataclass
class TreatmentsConfig:
    """Compare the gradient of each arm with the baseline's, on one batch of each trunk: cosine, and length as a multiple.

    python -m rlvr.analysis.treatments runs/study
    """

    out: str
    """Folder of the experiment, with trunks that are done (--out of python -m rlvr.analysis.experiment)."""
    plan: str = ""
    """Its plan; empty: the plan.yaml that the experiment put there."""


def gradients(branch: Run, arms: dict[str, Run]) -> Iterator[tuple[str, torch.Tensor]]:
    """The gradient of each arm on the batch with which a branch begins."""
    trainer, _ = set_up(replace(branch.wanted, final_eval_problems=0, name=f"{branch.folder.name}-treatments"))  # never made
    start_branch(trainer)
    step, c = trainer.begin(), trainer.config
    rows = rows_that_teach(step)
    refuse(not len(rows), f"A batch of {branch.trunk} has no group with right and wrong answers. Choose more --prompts-per-step.")
    batch = step.rollouts.select(rows)
    rewards = step.rewards[rows] + overlong_penalty(batch.lengths, c.max_new_tokens, c.overlong_buffer, c.overlong_factor)
    advantages = grpo_advantages(rewards, batch.group)
    more = dict(entropy=batch.entropy, rewards=rewards, step=trainer.step_number)
    for name, run in arms.items():
        strengths = {key: getattr(run.wanted, key) for key in STRENGTHS}
        gradient = update_gradient(trainer.policy, batch, advantages, run.wanted.method, c.micro_batch_tokens, **more, **strengths)
        yield name, gradient.double()  # sums over all weights in float32 would be wrong in the fourth digit


def treatments(config: TreatmentsConfig) -> list[dict]:
    """Print the table, write treatments.csv, and return its rows: one for each arm and trunk. Raises SettingError."""
    out = Path(config.out)
    plan = chosen_plan(ExperimentConfig(plan=config.plan or str(out / "plan.yaml")))
    runs = [run for run in planned(plan, out) if run.needs and run.seed == plan.seeds[0]]
    of_trunk = {run.trunk: {r.arm: r for r in runs if r.trunk == run.trunk} for run in runs if run.needs.done}
    first = f"python -m rlvr.analysis.experiment --plan {plan.path} --out {out}"
    refuse(not of_trunk, f"{out} has no trunk of {plan.path} that is done. First: {first}")
    baseline, rows = next(iter(plan.arms)), []
    for trunk, arms in progress_bar(of_trunk.items(), "trunks", unit="trunk"):
        found = dict(gradients(arms[baseline], arms))
        for arm, g in found.items():
            cosine = torch.cosine_similarity(g, found[baseline], dim=0).item()
            rows.append({"trunk": trunk, "arm": arm, "cosine": cosine, "length": (g.norm() / found[baseline].norm()).item()})
    write_atomically(out / "treatments.csv", csv_text(rows))
    shown = []
    for arm in plan.arms:
        cosines, lengths = ([row[name] for row in rows if row["arm"] == arm] for name in ("cosine", "length"))
        apart = {n for n, _ in vars(arms[arm].wanted).items() - vars(arms[baseline].wanted).items()} - {"method", "name", *STRENGTHS}
        seen = f"not seen: --{min(apart).replace('_', '-')}" if apart else "no treatment" if fmean(cosines) > SAME else "a treatment"
        numbers = f"{fmean(cosines):.4f}", f"{min(cosines):.4f} to {max(cosines):.4f}", f"{fmean(lengths):.3f}"
        shown.append([arm, *numbers, "the baseline" if arm == baseline else seen])
    say(table(["arm", "cosine", "over trunks", "length", ""], shown))
    say(f"\none batch of each of {len(of_trunk)} trunks; a cosine above {SAME} is no treatment; written to {out / 'treatments.csv'}")
    return rows


if __name__ == "__main__":
    run_program(lambda: treatments(parse_command(TreatmentsConfig, "python -m rlvr.analysis.treatments")))
