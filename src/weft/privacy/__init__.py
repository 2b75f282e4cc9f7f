"""Differential privacy: parts listed in `weft.registry.PRIVACY`, and the accounting of what noise spends."""
