r"""Is this answer equal to that one? `equal(answer, gold)` decides, exactly: ``0.33333333`` is not ``1/3``. The cheap way comes first.
spelling.py gives each thing one spelling, exact.py compares numbers and lists of numbers as fractions: that takes microseconds, in this
process. All other mathematics (roots, intervals, matrices, polynomials) goes to math-verify, which builds on sympy. A model in training
writes every string, and some strings keep sympy busy for years: ``9^{9^{9^9}}``. A thread that computes such a number cannot be stopped,
but a process can. So math-verify runs in child processes with limits on memory and time (child.py), as many as there are cores, four at
most (process.py). words.py knows units and the words that count, and equality.py puts the parts together. `rlvr.reward` calls this folder,
and nothing here imports anything else of rlvr but `common`.
"""

from rlvr.verifier.equality import MAX_CHARS, equal, one_spelling
from rlvr.verifier.process import ANSWER_SECONDS, deadline, each, stats

__all__ = ["ANSWER_SECONDS", "MAX_CHARS", "deadline", "each", "equal", "one_spelling", "stats"]
