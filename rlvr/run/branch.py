"""A branch: a new run that begins where another one was after some step, so that several ways to go on from there can be compared.

It has the weights, the optimiser, the step number and the entropies of the run that it comes from. What is drawn follows its own --seed.
"""

from pathlib import Path

from rlvr.common.text import quoted
from rlvr.config import TrainConfig, flag, refuse
from rlvr.run import checkpoint
from rlvr.run.settings import branch_parts, read_config
from rlvr.run.sound import edits_as_sentence
from rlvr.run.state import counters, model_fingerprint, random_states, restore_trainer


def branch_point(c: TrainConfig) -> Path:
    """The checkpoint at which a branch begins. Raises SettingError, also if the branch cannot go on from it."""
    folder, step = branch_parts(c.branch)
    if c.resume and not folder.exists():  # from another folder, or both were moved
        folder = Path(c.resume).parent / folder.name
    parent, paths = read_config(folder), checkpoint.checkpoints(folder / "checkpoints")
    found = {checkpoint.step_of(path): path for path in paths if "+" not in path.name}
    there = ", ".join(map(str, sorted(found))) or "none"
    refuse(step not in found, f"{folder} has no checkpoint of step {step}; it has: {there}. Choose one of them; --keep-every keeps more.")
    refuse(c.steps <= step, f"--steps {c.steps} counts from the first step of {folder}, which has made {step}. Choose more.")
    fixed = [flag(name) for name in ("lora_rank", "lora_alpha", "optimizer") if getattr(c, name) != getattr(parent, name)]
    refuse(fixed, f"{' and '.join(fixed)} cannot differ in a branch, which goes on with the optimiser of {folder}. Leave it out.")
    refuse(parent.reward and not c.reward,  # no code is run because the file of a run folder says so
           f"{folder} was trained with a reward function of yours. Name it again: add --reward {quoted(parent.reward)}")  # fmt: skip
    reason = checkpoint.damage(found[step])
    refuse(reason, f"The checkpoint {found[step]} is damaged ({reason}). Put it back from a copy, or branch from another step.")
    return found[step]


def start_branch(trainer) -> None:
    """Put a new Trainer into the state at which its branch begins, with its own order of problems and its own draws.

    The model it was made with must be that of the other run. Raises SettingError.
    """
    path = branch_point(trainer.config)
    tensors, state = checkpoint.load(path)
    with edits_as_sentence(path):
        began = f"what {quoted(path.parents[1])} began with, in weights or precision"
        other = state["model"] != model_fingerprint(trainer.policy.model)
        refuse(other, f"The model {trainer.config.model} is not {began}. Name that one.")
        own = {name: value for name, value in counters(trainer).items() if name in ("queue", "shuffle", "generator")}
        restore_trainer(trainer, tensors, state | own | {"random": random_states(), "unfinished": None}, type(None))
        if trainer.step_number != checkpoint.step_of(path):
            raise ValueError("its name")
