"""Memories of the parts within one memory: each has a prefix, so that no part sees the streams of another."""

from __future__ import annotations

from collections.abc import Mapping

from weft.core.types import Streams

RULE, OWN = "rule.", "own"
"""RULE: prefix of the algorithm's local rule. OWN: the stream of trained parameters that do not travel."""


def part_of(memory: Streams, prefix: str) -> Streams:
    """Return the streams of one part, without its prefix."""
    return {name.removeprefix(prefix): values for name, values in memory.items() if name.startswith(prefix)}


def with_prefix(streams: Streams, prefix: str) -> Streams:
    """Return the streams of one part, with its prefix."""
    return {prefix + name: values for name, values in streams.items()}


def with_prefixes(memories: Mapping[str, Streams]) -> Streams:
    """Return the memories of several parts, by their prefixes, as one."""
    return {name: values for part, memory in memories.items() for name, values in with_prefix(memory, part).items()}
