"""Out of memory? Put less through the model at once and try again."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlvr.common.text import say
from rlvr.config import SettingError, as_sentence


def out_of_memory(error: BaseException) -> bool:
    """CUDA has an exception for it; torch on the CPU and on Apple's GPUs says it in words."""
    said = str(error).lower()
    in_words = "can't allocate memory" in said or "out of memory" in said
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (isinstance(error, RuntimeError) and in_words)


def memory_error_as_sentence():
    """Turns running out of memory where nothing can be halved into one sentence."""
    cause = "Out of memory for the weights, their gradients and the optimiser"
    return as_sentence(cause, "Choose a smaller model.", RuntimeError, MemoryError, unless=lambda error: not out_of_memory(error))


def _check_halving_helps(error: Exception, flag: str, size: int) -> None:
    """Raise `error` if memory is not its cause, and SettingError if nothing is left to halve."""
    if not out_of_memory(error):
        raise error
    if size == 1:
        raise SettingError(f"Out of memory, even with {flag} 1. Lower --max-new-tokens, or choose a smaller model.") from None


def _half(flag: str, size: int) -> int:
    """Half the size, which it says. Call it when the exception is gone, and with it the tensors that its traceback held."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    say(f"out of memory: {flag} is {size // 2} from here on")
    return size // 2


class Budget:
    """A batch size that halves itself when memory runs out, and stays halved."""

    def __init__(self, flag: str, size: int):
        self.flag = flag  # as in --micro-batch-tokens
        self.wanted = self.size = size

    def run(self, work: Callable):
        """work(size), tried again with half the size while it runs out of memory. Work must be a function that can be called again: what
        it changes before it fails, it must change back. Raises SettingError when nothing is left to halve."""
        while True:
            try:
                return work(self.size)
            except (RuntimeError, MemoryError) as error:
                _check_halving_helps(error, self.flag, self.size)
            self.size = _half(self.flag, self.size)


class InHalves:
    """A `complete` (see rollout.py) that never runs more rows at once than fit, and remembers how many that were.

    The draws are fixed by u, so the two halves of a batch give what the whole would have given, but for rounding.
    """

    def __init__(self, complete: Callable):
        self.complete = complete
        self.rows: int | None = None  # the most that may run side by side; None: never too many so far

    def __call__(self, model, prompts, repeats: int, stop_ids, temperature, top_p, u: Tensor, on_ended=lambda rows: None) -> tuple:
        n = len(u)
        if self.rows is None or n <= self.rows:
            try:
                return self.complete(model, prompts, repeats, stop_ids, temperature, top_p, u, on_ended)
            except (RuntimeError, MemoryError) as error:
                _check_halving_helps(error, "--sampling-rows", n)
            self.rows = _half("--sampling-rows", n)
        cut = len(prompts) // 2 * repeats or repeats // 2  # between two prompts, or among the completions of the only one
        halves = (prompts[: len(prompts) // 2] or prompts, u[:cut]), (prompts[len(prompts) // 2 :], u[cut:])
        return joined([self(model, some, len(v) // len(some), stop_ids, temperature, top_p, v, on_ended) for some, v in halves])


def joined(parts: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Results of `complete` for several batches, [n, T] each, as those of one, padded to the longest."""
    width = max(part[0].shape[1] for part in parts)
    return tuple(torch.cat([pad(x, (0, width - x.shape[1])) for x in same]) for same in zip(*parts))
