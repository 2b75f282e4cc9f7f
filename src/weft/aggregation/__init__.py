"""Aggregators of a cohort's updates; one file each, listed in `weft.registry.AGGREGATORS`."""
