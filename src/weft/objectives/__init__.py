"""Training losses; one file each, listed in `weft.registry.OBJECTIVES`."""
