"""Out of memory? Put less through the model at once and try again."""

from collections.abc import Callable
from typing import TypeVar

import torch

from rlvr.config import SettingError
from rlvr.common.text import say

Result = TypeVar("Result")


def out_of_memory(error: BaseException) -> bool:
    """CUDA has an exception for it; torch on the CPU and on Apple's GPUs says it in words."""
    said = str(error).lower()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in said or "out of memory" in said)
    )


class Budget:
    """How much goes through the model at once: what a flag says, halved whenever memory runs out, and remembered from then on."""

    def __init__(self, flag: str, size: int):
        self.flag = flag  # as in --sampling-rows
        self.asked = self.size = size

    def run(self, work: Callable[[int], Result]) -> Result:
        """work(size), tried anew with half the size while it runs out of memory. So it must be a function that can be called again: what
        it changes before it fails, it must change back. Raises SettingError when there is nothing left to halve."""
        while True:
            try:
                return work(self.size)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if self.size == 1:
                    raise SettingError(
                        f"Out of memory, even with {self.flag} 1. Lower --max-new-tokens, or choose a smaller model."
                    ) from None
            # Only here is the exception gone, and with it the tensors that its traceback held.
            self.size //= 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            say(f"out of memory: {self.flag} is {self.size} from here on")

    def state(self) -> list[int]:
        return [self.asked, self.size]

    def restore(self, state: list[int]) -> None:
        """The halved size of a checkpoint, unless the flag was changed since."""
        if state[0] == self.asked:
            self.size = state[1]
