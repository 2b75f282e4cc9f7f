"""Weights of updates in the cohort's mean; one file each, listed in `weft.registry.WEIGHTINGS`."""
