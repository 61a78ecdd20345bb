"""What comes from outside: model folders, adapters, tables and data sets. It is read and checked, and nothing of it is run.

`rlvr.data` and `rlvr.policy` load through it.
"""
