"""What the server checks of every update before it is averaged: a server does not trust its clients."""

from __future__ import annotations

import math
from collections.abc import Mapping

from weft.core import tensors
from weft.core.types import Reply, Streams, Task, Update
from weft.errors import ClientFailed


def admit(reply: Reply, tasks: Mapping[str, Task], expected: set[str], like: Streams) -> Update:
    """Return the update if it may be averaged; its client is then no longer expected.

    Args:
        reply: what came back.
        tasks: what was sent, by client.
        expected: the clients that have not answered yet.
        like: tensors of the names, shapes and dtypes that the client's streams must have.

    Raises:
        ClientFailed: the client failed, or its update is of another round, repeated, of other names, shapes or
            number formats, not finite (its metrics too), or of a weight that is no positive number.
    """
    if reply.client not in expected:
        raise ClientFailed("sent a reply that nobody waits for")
    if not isinstance(reply, Update):
        raise ClientFailed(getattr(reply, "reason", "sent no update"))
    task = tasks[reply.client]
    if (reply.round, reply.base_version) != (task.round, task.base_version):
        raise ClientFailed(f"sent an update of round {reply.round} in round {task.round}")
    if not (math.isfinite(reply.weight) and reply.weight > 0):
        raise ClientFailed(f"gave its update the weight {reply.weight}")
    if not all(math.isfinite(value) for value in reply.metrics.values()):
        raise ClientFailed("sent metrics that are not finite")
    if set(reply.streams) != set(like):
        raise ClientFailed(f"sent the streams {sorted(reply.streams)} instead of {sorted(like)}")
    for stream, values in reply.streams.items():
        if values.keys() != like[stream].keys():
            raise ClientFailed("sent other parameters than the task has")
        for name, value in values.items():
            wanted = like[stream][name]
            if value.shape != wanted.shape or value.dtype != wanted.dtype:
                raise ClientFailed(f"sent '{name}' as {value.dtype} {tuple(value.shape)}")
        if not tensors.all_finite(values):
            raise ClientFailed("sent numbers that are not finite")
    expected.discard(reply.client)
    return reply
