"""The numbers that rollout.py and policy.py define, faster or with less memory: the decoder, packed attention, the output layer in chunks,
the optimiser, what to do when memory runs out, and how much a run will need.

`rlvr.policy` chooses from here; `rlvr.train` uses the optimiser.
"""
