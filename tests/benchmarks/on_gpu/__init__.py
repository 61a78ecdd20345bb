"""The parts of gpu.py. `processes` runs each in a process of its own; `checks`, `speed`, `attention` and `learning` do the work; `report`
writes it up. `shapes` and `cards` say what is measured and what the hardware allows."""
