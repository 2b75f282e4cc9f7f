"""Weights by size."""

from __future__ import annotations

from dataclasses import dataclass

from weft.core.exchange import Weighting


@dataclass(frozen=True)
class Size(Weighting):
    """A client's weight is its number of training rows (McMahan et al. 2017, arXiv 1602.05629)."""
