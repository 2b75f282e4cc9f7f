"""What clients learn about updates that were not used: they forget the round."""

from __future__ import annotations

from collections.abc import Collection

from weft.core.exchange import Runtime
from weft.core.types import ServerState, Undo
from weft.federation.plan import Plan


def undo(plan: Plan, state: ServerState, clients: Collection[str], runtime: Runtime) -> None:
    """Have clients go back to the memory before the round: they saved the new one before they replied."""
    if plan.remembers:
        list(runtime.exchange([Undo(client, state.round) for client in sorted(clients)]))
