"""Shares of whole numbers without errors of rounding: 0.29 of 100 is 29, though 100 * 0.29 is less in floats."""

from __future__ import annotations

import math

DIGITS = 6
"""Significant decimals of a product; further ones are errors of rounding, or of shares such as 0.333333."""


def at_most(count: int, share: float) -> int:
    """Return the largest whole number that is not above a share of a count."""
    return math.floor(round(count * share, DIGITS))


def at_least(count: int, share: float) -> int:
    """Return the smallest whole number that is not below a share of a count."""
    return math.ceil(round(count * share, DIGITS))
