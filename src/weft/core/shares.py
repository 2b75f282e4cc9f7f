"""Shares of whole numbers, as people mean them: 0.29 of 100 is 29, though the product of floats is a little less."""

from __future__ import annotations

import math

DIGITS = 6
"""Decimals of a product that count: beyond them are errors of rounding, and shares such as 0.333333."""


def at_most(count: int, share: float) -> int:
    """Return the largest whole number that is not above a share of a count."""
    return math.floor(round(count * share, DIGITS))


def at_least(count: int, share: float) -> int:
    """Return the smallest whole number that is not below a share of a count."""
    return math.ceil(round(count * share, DIGITS))
