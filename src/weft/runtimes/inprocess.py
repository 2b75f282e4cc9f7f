"""The embedded runtime: every client is answered in this process, one after the other, by one resident model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from weft.core.parts import Evaluator, Runtime
from weft.core.types import Failure, Message, Probe, Reply
from weft.errors import ClientFailed
from weft.federation.plan import Plan
from weft.federation.round import answer
from weft.federation.site import Sites
from weft.models.resident import Resident


@dataclass(frozen=True)
class InProcess(Runtime):
    """Train at `trained` sites and evaluate at `evaluated` ones (which differ where all rows are pooled)."""

    plan: Plan
    model: Resident
    evaluator: Evaluator
    trained: Sites
    evaluated: Sites

    def exchange(self, messages: Sequence[Message]) -> Iterator[Reply]:
        """Answer the messages in their order. A client's failure becomes a reply here and nowhere else."""
        for message in messages:
            sites = self.evaluated if isinstance(message, Probe) else self.trained
            try:
                yield answer(message, self.plan, sites.find(message.client), self.model, self.evaluator)
            except ClientFailed as failure:
                yield Failure(message.client, message.round, str(failure))
