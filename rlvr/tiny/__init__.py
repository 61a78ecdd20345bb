"""The built-in model: `task.py` (stories and the noisy web), `pretrain.py` (how the weights are made), `model/` (the weights)."""
