"""The record of a round: participants, failures with reasons, counts and sums."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from weft.core.declarations import training
from weft.core.metrics import Totals
from weft.core.types import Reply, Total, Update
from weft.core.witness import reply_digest


@dataclass
class RoundRecord:
    """The outcome of a round, filled in while it runs."""

    round: int
    clients: tuple[str, ...] = ()
    failures: dict[str, str] = field(default_factory=dict)
    over_selected: tuple[str, ...] = ()
    """Clients of an over-selected cohort whose updates were not needed."""
    flagged: tuple[str, ...] = ()
    """Clients that the aggregator takes for attackers."""
    sums: dict[str, float] = field(default_factory=dict)
    totals: Totals = field(default_factory=lambda: Totals(training()))
    """What the metrics of training are derived from."""
    bad: list[str] = field(default_factory=list)
    """Clients that sent invalid updates, once for each."""
    left: list[str] = field(default_factory=list)
    """Clients that left the run."""
    late: int = 0
    """Replies that were dropped: of an earlier round, or second ones."""
    bytes_up: int = 0
    bytes_down: int = 0
    product_error: float | None = None
    quorum: int = 0
    """Admitted updates that the round needs; with fewer it is repeated."""
    opened: bool = False
    """A protection opened a sum of updates, or clients gave what opens one: the round is not begun again."""
    unusable: bool = False
    """The aggregator combines no so few updates: the parameters are as before."""
    repeated: bool = False
    """Too few admitted updates: the parameters are as before, and the round is repeated."""

    received: dict[str, list[str]] = field(default_factory=dict)
    """By client the digests of its replies, as they came: still masked, encoded and unchecked."""
    proofs: dict[str, str] = field(default_factory=dict)
    """By client the proof that its certificate signed the update, in hexadecimal digits."""

    def witness(self, reply: Reply) -> None:
        """Record the digest of a reply, and the proof that it carries."""
        self.received.setdefault(reply.client, []).append(reply_digest(reply))
        if isinstance(reply, Update) and reply.proof:
            self.proofs[reply.client] = reply.proof.hex()

    def add(self, update: Update) -> Update:
        """Count an admitted update's metrics; return the update."""
        self.totals.add(update.metrics)
        for name, value in update.metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        return update

    def close(self, total: Total, cohort: Collection[str], max_updates: int, quorum: int = 0) -> None:
        """Record whose updates were used; of the others, which were not needed and which sent no reply.

        After a sum was opened the round is not begun again: a second sum over other clients would show the difference.
        """
        self.clients, self.flagged, self.quorum = total.clients, total.flagged, quorum
        short = len(total.clients) < quorum
        self.repeated, self.unusable = short and not self.opened, short and not total.streams
        missing = sorted(set(cohort) - set(total.clients) - self.failures.keys())
        if max_updates and len(total.clients) == max_updates:
            self.over_selected = tuple(missing)
        else:
            self.failures |= dict.fromkeys(missing, total.reason or "sent no reply")
