"""Three reward functions to try with --reward (see rewards.md): two that are hacked, and one that is not."""

from rlvr.reward import last_boxed, verify


def boxed(completions: list[str], answers: list[str]) -> list[float]:
    """Format: 1 if there is a box, whatever is in it, else -1."""
    return [1.0 if last_boxed(completion) is not None else -1.0 for completion in completions]


def brief(completions: list[str], answers: list[str]) -> list[float]:
    """Meant to save tokens: 1 for a right answer, up to 1 more the further it is below 100 characters; less 1, so that above 0 is good."""
    return [verify(c, answer) + max(0.0, 1 - len(c) / 100) - 1 for c, answer in zip(completions, answers, strict=True)]


def terse(completions: list[str], answers: list[str]) -> list[float]:
    """The same with a better price: up to 3 more, the further it is below 200 characters."""
    return [verify(c, answer) + 3 * max(0.0, 1 - len(c) / 200) - 1 for c, answer in zip(completions, answers, strict=True)]
