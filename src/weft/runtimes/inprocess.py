"""The embedded runtime: every client is answered in this process, one after the other, by one resident model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from weft.core.exchange import Runtime
from weft.core.objective import Evaluator
from weft.core.types import Failure, Message, Probe, Reply, Task
from weft.errors import ClientFailed
from weft.federation.conditions import Conditions
from weft.federation.plan import Plan
from weft.federation.round import answer
from weft.federation.site import Site, Sites
from weft.models.resident import Resident


def silent(message: Message, site: Site) -> None:
    """Tell nobody what is about to be answered."""


@dataclass(frozen=True)
class InProcess(Runtime):
    """Train at `trained` sites and evaluate at `evaluated` ones (which differ where all rows are pooled)."""

    plan: Plan
    model: Resident
    evaluator: Evaluator
    trained: Sites
    evaluated: Sites
    conditions: Conditions = field(default_factory=Conditions)
    announce: Callable[[Message, Site], None] = silent
    """Told every message before it is answered, and where."""

    def exchange(self, messages: Sequence[Message]) -> Iterator[Reply]:
        """Answer the messages, those to faster clients first; a client's failure becomes a reply here, nowhere else."""
        for message in sorted(messages, key=self._lateness):
            try:
                site = self._site(message)
                self.announce(message, site)
                yield answer(message, self.plan, site, self.model, self.evaluator)
            except ClientFailed as failure:
                yield Failure(message.client, message.round, str(failure))

    def _lateness(self, message: Message) -> float:
        if not isinstance(message, Task):
            return 0.0
        return -self.conditions.speed(self.trained.find(message.client).index)

    def _site(self, message: Message) -> Site:
        """Return the site that answers, as the simulated conditions leave it."""
        if not isinstance(message, Task):
            return (self.evaluated if isinstance(message, Probe) else self.trained).find(message.client)
        if self.conditions.fails(message.round, message.attempt, message.client):
            raise ClientFailed("dropped out (client_failure_rate)")
        site = self.trained.find(message.client)
        waits = self.plan.algorithm.asynchronous
        return site if waits else replace(site, share=self.conditions.share(site.index))
