"""Assignment 1: rewards and pass@k. Write the functions; the handout says what they must do. Plain Python, no packages needed."""


def last_boxed(text: str) -> str | None:
    """The content of the last \\boxed{...} whose braces are balanced, or None if there is none."""
    raise NotImplementedError


def verify(completion: str, gold: str) -> bool:
    """Whether the last box of the completion holds exactly the value of the gold answer (a whole number, decimal or fraction)."""
    raise NotImplementedError


def overlong_penalty(length: int, max_tokens: int, buffer: int, factor: float) -> float:
    """What a completion of `length` tokens loses for coming close to max_tokens: from 0 down to -factor."""
    raise NotImplementedError


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that at least one of k completions is right, estimated from n completions of which c are right."""
    raise NotImplementedError


def majority(keys: list[str | None]) -> int | None:
    """Index of the first completion that gives the most frequent answer; keys are answers, None where there is none."""
    raise NotImplementedError
