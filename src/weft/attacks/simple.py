"""Attacks that need no search: scaled, random, copied and empty updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from weft.attacks.vectors import deviation, mean, scaled, sent
from weft.core.attack import Attack, Scene
from weft.core.seeds import derive
from weft.core.types import Streams, Update
from weft.errors import ConfigError


@dataclass(frozen=True)
class Scaling(Attack):
    """Send the own update times `scale`: alone it outweighs the others."""

    changes_updates: ClassVar[bool] = True
    scale: float = 10.0

    def send(self, own: Sequence[Update], honest: Sequence[Update], scene: Scene) -> Sequence[Update]:
        """Multiply."""
        return [sent(one, scaled(one.streams, self.scale)) for one in own]


@dataclass(frozen=True)
class Gaussian(Attack):
    """Send mu plus normal noise of `scale` x the standard deviation of honest updates, in every number."""

    changes_updates: ClassVar[bool] = True
    scale: float = 10.0

    def send(self, own: Sequence[Update], honest: Sequence[Update], scene: Scene) -> Sequence[Update]:
        """Draw for every attacker anew."""
        seen = honest or own
        centre, spread = mean(seen), deviation(seen)
        return [sent(one, self._drawn(centre, spread, derive(scene.seed, "gaussian", one.client))) for one in own]

    def _drawn(self, centre: Streams, spread: Streams, seed: int) -> Streams:
        chance = torch.Generator().manual_seed(seed)
        return {
            stream: {
                name: value
                + self.scale
                * spread[stream][name]
                * torch.randn(value.shape, generator=chance).to(value.device, value.dtype)
                for name, value in values.items()
            }
            for stream, values in centre.items()
        }


@dataclass(frozen=True)
class Mimic(Attack):
    """Send what one honest client sends, so that it counts more than the others (arXiv 2006.09365).

    client: its place among the honest ones of the round, by name, from 0; in a round that has fewer of them, the last.
    """

    changes_updates: ClassVar[bool] = True
    client: int = 0

    def __post_init__(self) -> None:
        if self.client < 0:
            raise ConfigError(f"client is {self.client}, and places are counted from 0: write such as client=0.")

    def send(self, own: Sequence[Update], honest: Sequence[Update], scene: Scene) -> Sequence[Update]:
        """Copy."""
        if not honest:
            return own
        chosen = sorted(honest, key=lambda update: update.client)[min(self.client, len(honest) - 1)]
        return [sent(one, chosen.streams) for one in own]


@dataclass(frozen=True)
class FreeRider(Attack):
    """Send nothing that was trained: zeros, with normal noise of `noise` x the honest standard deviation."""

    changes_updates: ClassVar[bool] = True
    noise: float = 0.0

    def send(self, own: Sequence[Update], honest: Sequence[Update], scene: Scene) -> Sequence[Update]:
        """Replace by zeros and noise."""
        nothing = scaled(own[0].streams, 0.0)
        if not self.noise:
            return [sent(one, nothing) for one in own]
        draw, spread = Gaussian(self.noise)._drawn, deviation(honest or own)
        return [sent(one, draw(nothing, spread, derive(scene.seed, "free rider", one.client))) for one in own]
