"""A place where messages are answered: some sites, and the one resident model that they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from weft.core.objective import Evaluator
from weft.core.seeds import derive
from weft.core.types import Failure, Message, Probe, Reply, Task
from weft.errors import ClientFailed
from weft.federation.clients import ClientData, Clients, MemoryStore
from weft.federation.conditions import Conditions
from weft.federation.plan import Plan
from weft.federation.round import answer
from weft.models.resident import Resident


def silent(message: Message, client: ClientData) -> None:
    """Tell nobody what is about to be answered."""


@dataclass(frozen=True)
class ClientHost:
    """Trains at `trained` sites and evaluates at `evaluated` ones (which differ where all rows are pooled)."""

    plan: Plan
    model: Resident
    evaluator: Evaluator
    trained: Clients
    evaluated: Clients
    conditions: Conditions = field(default_factory=Conditions)

    def ordered(self, messages: Sequence[Message]) -> list[Message]:
        """Return the messages in the order in which their answers count: those to faster clients first.

        Where only the first answers count, it is drawn by lot who of equally fast clients comes first; otherwise those
        at the end of the list would never be heard.
        """
        return sorted(messages, key=self._lateness)

    def client_of(self, message: Message) -> ClientData:
        """Return the site that answers, as the simulated conditions leave it; ClientFailed where it drops out."""
        if not isinstance(message, Task):
            return (self.evaluated if isinstance(message, Probe) else self.trained).find(message.client)
        if self.conditions.fails(message.round, message.attempt, message.client):
            raise ClientFailed("dropped out (client_failure_rate)")
        client = self.trained.find(message.client)
        alone = self.plan.algorithm.buffer is not None  # nobody waits for it
        return client if alone else replace(client, step_fraction=self.conditions.step_fraction(client.index))

    def reply(
        self,
        message: Message,
        announce: Callable[[Message, ClientData], None] = silent,
        memory: MemoryStore | None = None,
        step_fraction: float | None = None,
    ) -> Reply:
        """Answer a message; what a client fails by becomes a reply here, nowhere else.

        Args:
            message: to one of the sites.
            announce: told the message and its site before it is answered.
            memory: the client's, where it came with the message.
            step_fraction: of its steps, where somebody else knows its conditions.
        """
        try:
            client = self.client_of(message)
            if memory is not None:
                client = replace(client, memory=memory)
            if step_fraction is not None:
                client = replace(client, step_fraction=step_fraction)
            announce(message, client)
            return answer(message, self.plan, client, self.model, self.evaluator)
        except ClientFailed as failure:
            return Failure(message.client, message.round, str(failure))

    def _lateness(self, message: Message) -> tuple[float, int]:
        if not isinstance(message, Task):
            return 0.0, 0
        words = ("arrives", message.round, message.attempt, message.client)
        lot = derive(self.conditions.seed, *words) if self.plan.over_selected else 0
        return -self.conditions.speed(self.trained.find(message.client).index), lot
