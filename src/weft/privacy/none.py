"""No differential privacy: updates are averaged as they are."""

from __future__ import annotations

from dataclasses import dataclass

from weft.core.exchange import Privacy


@dataclass(frozen=True)
class NoPrivacy(Privacy):
    """No guarantee, no budget."""
