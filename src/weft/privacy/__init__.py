"""Differential privacy; one file each, listed in `weft.registry.PRIVACY`."""
