"""No protection: the server sees every client's update."""

from __future__ import annotations

from dataclasses import dataclass

from weft.core.exchange import Protection


@dataclass(frozen=True)
class Plain(Protection):
    """Send updates as they are, in one phase."""
