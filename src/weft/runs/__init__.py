"""The run directory: its files, its checkpoints, its numbers, and how they are shown.

Knows nothing of how a round is computed; it stores values and returns them bit for bit.
"""
