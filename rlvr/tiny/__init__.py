"""The built-in models: `task.py` (stories and the noisy web), `pretrain.py` (how the weights are made), `model/` and `model3/` (the weights
for levels 1 and 2, and for level 3).

`rlvr.data` takes its problems from here. This folder imports nothing of the library but its lowest layers, common and config.
"""
