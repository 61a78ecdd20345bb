r"""Is this answer equal to that one? `equal(answer, gold)` decides, exactly: ``0.33333333`` is not ``1/3``. The cheap way comes first.
spelling.py gives each thing one spelling, exact.py compares numbers and lists of numbers as fractions: that takes microseconds, in this
process. All other mathematics (roots, intervals, matrices, polynomials) goes to math-verify, which builds on sympy. A model in training
writes every string, and some strings keep sympy busy for years: ``9^{9^{9^9}}``. A thread that computes such a number cannot be stopped,
but a process can. So math-verify runs in a child process with a memory limit (child.py), and the parent kills it when an answer takes
longer than ANSWER_SECONDS (process.py). equality.py puts the parts together. `rlvr.reward` calls this folder, and nothing here imports
anything else of rlvr.
"""

from rlvr.verifier.equality import MAX_CHARS, equal, one_spelling
from rlvr.verifier.process import ANSWER_SECONDS, deadline, stats

__all__ = ["ANSWER_SECONDS", "MAX_CHARS", "deadline", "equal", "one_spelling", "stats"]
