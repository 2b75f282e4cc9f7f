"""No attack."""

from __future__ import annotations

from weft.core.attack import Attack


class NoAttack(Attack):
    """All clients are honest."""
