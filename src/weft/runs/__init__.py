"""The run directory: its files, its checkpoints, its numbers, and what is shown of them.

Knows nothing of how a round is computed; it is handed values and gives them back bit for bit.
"""
