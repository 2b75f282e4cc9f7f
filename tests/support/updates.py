"""Updates of honest clients, and a round that gets them as bytes."""

from __future__ import annotations

from dataclasses import replace

import torch

from weft import config as configuration
from weft.core import wire
from weft.core.exchange import Runtime
from weft.core.types import ServerState, Update
from weft.federation.admission import open_reply
from weft.federation.state import Participant
from weft.launch import compose

PLAN = compose.plan(configuration.build({"dataset_name": "any"}))
SHAPES = {"layers.0.a": (4, 8), "layers.0.b": (8, 4), "norm": (8,)}
STATE = ServerState({name: torch.zeros(shape) for name, shape in SHAPES.items()}, round=4)
LIMITS = {"run": "r", "max_bytes": 20_000, "max_tensors": 8}


def update(client: str, seed: int = 0, **changes: object) -> Update:
    """What a client of round 4 returns, drawn from a seed."""
    chance = torch.Generator().manual_seed(seed)
    delta = {name: torch.randn(shape, generator=chance) for name, shape in SHAPES.items()}
    return replace(Update(client, 4, 4, {"delta": delta}, 10.0, {"loss_sum": 1.0, "tokens": 5.0}), **changes)


class Posted(Runtime):
    """Hands over what clients sent, as bytes."""

    def __init__(self, sent: list[tuple[str, bytes]]) -> None:
        self.sent = sent

    def exchange(self, messages):
        for sender, raw in self.sent:
            yield open_reply(raw, sender, 4, **LIMITS)


def honest() -> list[tuple[str, bytes]]:
    """What three honest clients send."""
    return [(f"good_{i}", wire.pack(update(f"good_{i}", seed=i), "r")) for i in range(3)]


def cohort(*more: str) -> list[Participant]:
    """The honest clients, and others, as a round asks them."""
    return [Participant(name, 4, rows=10.0) for name in ("good_0", "good_1", "good_2", *more)]
