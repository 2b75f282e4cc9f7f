"""How much an audit asks, and the error of an audit that a run does not allow."""

from __future__ import annotations

from dataclasses import dataclass

from weft.errors import ConfigError

SMALLER = 20
"""By how much a first look is smaller."""


class CannotAudit(ConfigError):
    """An audit that a run does not allow, or whose control failed, with the reason and a remedy."""


@dataclass(frozen=True)
class Settings:
    """How much an audit asks."""

    seed: int = 0
    limit: int = 200
    """Most rows of each kind."""
    candidates: int = 255
    """Numbers that a canary's own is ranked among."""
    client: str | None = None
    """Whose model, where each client has its own."""
    batch_size: int = 16
    shadows: int = 4
    """Models that are trained for LiRA, an even number; 0: none."""
    small: bool = False
    """A first look: searches and repeated rounds are cut to a twentieth, and find less."""

    def few(self, count: int, least: int = 2) -> int:
        """Return how many of so many iterations, steps or samples are made."""
        return max(least, count // SMALLER) if self.small else count
