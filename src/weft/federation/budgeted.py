"""What a round does for a budget of privacy: it keeps updates within their bound, and pays before it releases."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from weft.core.party import Party
from weft.core.tensors import zeros
from weft.core.types import PRIVACY, PROTECTION, Probe, ProtectionRequest, Request, ServerState, Streams, Total, Update
from weft.federation.clients import ClientData
from weft.federation.part_memory import part_of
from weft.federation.plan import Plan

Spend = Callable[[ServerState, Total], None]


def bounded(plan: Plan, state: ServerState, updates: Iterable[Update]) -> Iterable[Update]:
    """Return the updates, each within the bound of the run's privacy."""
    memory = part_of(state.memory, PRIVACY)
    return (plan.privacy.on_arrival(update, memory) for update in updates)


def paid(plan: Plan, state: ServerState, total: Total, like: Streams, spend: Spend) -> Total:
    """Count what a round spends, and return its total; `like` has the streams of an update."""
    if not plan.privacy.private:
        return total
    if not total.clients:
        # Noise is added to nothing, too: without it everybody would see that nobody took part.
        total = replace(total, streams={name: zeros(values) for name, values in like.items()})
    spend(state, total)
    return total


def joins(plan: Plan, client: ClientData, message: Request | ProtectionRequest) -> Party:
    """Return the client as it takes part in a protected sum: in none of fewer than the noise has shares."""
    party = client.party(PROTECTION, {}, message.round, message.attempt, least=plan.shares_of_noise)
    party = replace(party, alike=plan.sends_alike)
    scored = message.evaluation if isinstance(message, ProtectionRequest) else isinstance(message, Probe)
    return party.evaluating() if scored else party
