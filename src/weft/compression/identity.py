"""No compression: updates travel in the precision that they were computed in."""

from __future__ import annotations

from dataclasses import dataclass

from weft.core.exchange import Codec


@dataclass(frozen=True)
class Identity(Codec):
    """Send updates unchanged."""
