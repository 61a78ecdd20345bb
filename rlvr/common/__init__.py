"""What every other folder may use: files that are written whole or not at all, and text that a terminal can show.

It imports nothing of rlvr.
"""
