"""Whose part of a memory a stream is: parts never see each other's, and their names begin with what they are."""

from __future__ import annotations

from weft.core.types import Streams

RULE, OWN = "rule.", "own"
"""The algorithm's rule; OWN is the stream of trained parameters that do not travel."""


def part_of(memory: Streams, prefix: str) -> Streams:
    """Return what one part remembers, under the names that it gave."""
    return {name.removeprefix(prefix): values for name, values in memory.items() if name.startswith(prefix)}


def kept_as(streams: Streams, prefix: str) -> Streams:
    """Return what one part remembers, under the names by which it is kept."""
    return {prefix + name: values for name, values in streams.items()}
