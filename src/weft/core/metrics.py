"""Metrics on the way to the server: counts and sums by name, which can be added up."""

from __future__ import annotations

from weft.core.types import Metrics


def plus(left: Metrics, right: Metrics) -> Metrics:
    """Return the sum of two counts; what one of them lacks is 0."""
    return {name: left.get(name, 0.0) + right.get(name, 0.0) for name in left | right}
