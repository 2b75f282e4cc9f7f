"""What the server checks of every update before it is averaged: a server does not trust its clients."""

from __future__ import annotations

import math

from weft.core import tensors
from weft.core.types import Reply, ServerState, Update
from weft.errors import ClientFailed


def admit(reply: Reply, state: ServerState, streams: tuple[str, ...], expected: set[str]) -> Update:
    """Return the update if it may be averaged; its client is then no longer expected.

    Raises:
        ClientFailed: the client failed, or its update is of another round, repeated, of other names, shapes or
            number formats, not finite (its metrics too), or of a weight that is no positive number.
    """
    if reply.client not in expected:
        raise ClientFailed("sent a reply that nobody waits for")
    if not isinstance(reply, Update):
        raise ClientFailed(getattr(reply, "reason", "sent no update"))
    if (reply.round, reply.base_version) != (state.round, state.round):
        raise ClientFailed(f"sent an update of round {reply.round} in round {state.round}")
    if not (math.isfinite(reply.weight) and reply.weight > 0):
        raise ClientFailed(f"gave its update the weight {reply.weight}")
    if not all(math.isfinite(value) for value in reply.metrics.values()):
        raise ClientFailed("sent metrics that are not finite")
    if set(reply.streams) != set(streams):
        raise ClientFailed(f"sent the streams {sorted(reply.streams)} instead of {sorted(streams)}")
    for values in reply.streams.values():
        if values.keys() != state.params.keys():
            raise ClientFailed("sent other parameters than the task has")
        for name, value in values.items():
            like = state.params[name]
            if value.shape != like.shape or value.dtype != like.dtype:
                raise ClientFailed(f"sent '{name}' as {value.dtype} {tuple(value.shape)}")
        if not tensors.all_finite(values):
            raise ClientFailed("sent numbers that are not finite")
    expected.discard(reply.client)
    return reply
