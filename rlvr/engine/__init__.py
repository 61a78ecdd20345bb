"""The numbers that rollout.py and policy.py define, faster or with less memory: the decoder, packed attention, the output layer in chunks,
the optimiser, what to do when memory runs out, how much a run will need, and in which precision a CPU is faster.

`rlvr.policy` chooses from here; `rlvr.train` uses the optimiser.
"""
