"""Contracts only: the values that travel, the parts that a run is composed of, and tensor arithmetic."""
