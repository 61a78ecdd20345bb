"""The built-in model: `task.py` (stories and the noisy web), `pretrain.py` (how the weights are made), `model/` (the weights).

`rlvr.data` takes its problems from here; nothing in here needs the library around it.
"""
