"""Federated averaging (McMahan et al. 2017, arXiv 1602.05629)."""

from __future__ import annotations

from dataclasses import dataclass

from weft.core.parts import Algorithm


@dataclass(frozen=True)
class FedAvg(Algorithm):
    """w <- w + sum_i p_i (w_i - w), p_i by the number of rows: what the base class does."""
