"""What keeps a run alive and on record: the session around the training loop, its state and checkpoints, the log and its metrics, the
checks before a start, the command line, trackers, publishing.

`rlvr.train` uses it; nothing here imports `rlvr.train`.
"""
