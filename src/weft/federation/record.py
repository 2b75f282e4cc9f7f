"""What is known of a round afterwards: who took part, who did not and why, counts and sums."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from weft.core.declarations import training
from weft.core.metrics import Totals
from weft.core.types import Update


@dataclass
class RoundRecord:
    """The record of a round."""

    round: int
    clients: tuple[str, ...] = ()
    failures: dict[str, str] = field(default_factory=dict)
    over_selected: tuple[str, ...] = ()
    """Clients that were asked and not needed."""
    sums: dict[str, float] = field(default_factory=dict)
    totals: Totals = field(default_factory=lambda: Totals(training()))
    """What the metrics of training are derived from."""
    bad: list[str] = field(default_factory=list)
    """Clients that sent what no honest client sends."""
    late: int = 0
    """Replies that nobody waited for: too late, or repeated."""
    bytes_up: int = 0
    bytes_down: int = 0
    product_error: float | None = None
    needed: int = 0
    """Good replies without which the round does not count."""
    repeated: bool = False
    """Too few good replies: nothing was averaged, and the round is begun again."""

    def add(self, update: Update) -> None:
        """Count an admitted update's metrics."""
        self.totals.add(update.metrics)
        for name, value in update.metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def close(self, clients: tuple[str, ...], asked: Collection[str], max_updates: int) -> None:
        """Record whose updates were used; of the others, who was not needed and who was not heard."""
        self.clients = clients
        left = sorted(set(asked) - set(clients) - self.failures.keys())
        if max_updates and len(clients) == max_updates:
            self.over_selected = tuple(left)
        else:
            self.failures |= dict.fromkeys(left, "sent no reply")
