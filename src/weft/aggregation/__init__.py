"""How a cohort's updates become one; one file each, listed in `weft.registry.AGGREGATORS`."""
