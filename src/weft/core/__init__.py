"""Contracts: the messages, the base classes of the parts of a run, and tensor arithmetic."""
