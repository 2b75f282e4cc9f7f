"""The round, and all that turns parts, sites and a runtime into a run."""
