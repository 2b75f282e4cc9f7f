"""Base class of attacks: what malicious clients of a simulation send, and what they train on.

Attacks exist to measure defences. They are simulated only: a run of sites refuses them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from weft.core.types import Total, Update


@dataclass(frozen=True)
class Scene:
    """One round, as attackers see it who know everything but the server's secret."""

    round: int
    seed: int
    """Of the run and this round."""
    asked: int
    """Clients that were asked for an update."""
    rule: Callable[[Sequence[Update]], Total]
    """Combines updates as the server does."""


class Attack:
    """What malicious clients do. The defaults attack nothing."""

    changes_updates: ClassVar[bool] = False
    """It replaces what malicious clients send."""
    changes_model: ClassVar[bool] = False
    """It is the server's: it changes the model that is sent, and no client is malicious."""
    poisons: ClassVar[tuple[str, ...]] = ()
    """Kinds of rows that it changes before training: "conversations", "pairs", "judged"."""
    spreads: ClassVar[bool] = False
    """It changes some rows of every client, so that no client is malicious."""

    @property
    def sends(self) -> bool:
        """Whether malicious clients send something else, with these parameters."""
        return self.changes_updates

    def send(self, own: Sequence[Update], honest: Sequence[Update], scene: Scene) -> Sequence[Update]:
        """Return what malicious clients send.

        Args:
            own: what they would send if they were honest, in order.
            honest: the updates of the others; there may be none.
            scene: the round.
        """
        return own

    def poison(self, rows: Sequence[Any], choices: Sequence[str] | None, lots: random.Random) -> list[Any]:
        """Return the rows that a client trains on, as many as it has and in their order.

        Args:
            rows: its own: conversations or preferences, before they are tokenized.
            choices: the closed set of answers of the run, sorted; None where answers are open.
            lots: random numbers of this client.

        Raises:
            ConfigError: the rows cannot be changed in this way.
        """
        return list(rows)
