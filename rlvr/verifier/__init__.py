"""Is this answer that one? One spelling for each thing, exact numbers, and a process that can be killed for all other mathematics.

`rlvr.reward` asks it; it imports nothing of rlvr.
"""
