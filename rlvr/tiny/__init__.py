"""The built-in model: `task.py` (stories and the noisy web), `pretrain.py` (how the weights are made), `model/` (the weights).

`rlvr.data` takes its problems from here. This folder imports nothing of the library but its lowest layers, common and config.
"""
