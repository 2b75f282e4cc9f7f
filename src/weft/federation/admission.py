"""Checks of every reply before its update is averaged: the server does not trust its clients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from weft.algorithms.clustered import CHOICE
from weft.compression.held import LOST
from weft.core import tensors
from weft.core.declarations import is_number
from weft.core.metrics import fault
from weft.core.party import Party
from weft.core.texts import printable, quoted, unfit
from weft.core.types import (
    SEARCH,
    Failure,
    Metrics,
    ProtectionReply,
    Reply,
    Score,
    ServerState,
    Streams,
    Task,
    Tensors,
    Update,
)
from weft.core.wire import unpack
from weft.core.wire_format import Raw
from weft.errors import BadUpdate, ClientFailed, LateUpdate, LeftRun
from weft.federation.coding import decode
from weft.federation.plan import Plan
from weft.federation.record import RoundRecord
from weft.federation.state import expected_streams

MIN_WEIGHT = 1e-6
"""Smallest weight of an update: with smaller ones a division by the sum of the weights could overflow."""
MAX_VALUE = 1e9
"""Largest value of an update: servers multiply factors and square the product, and float32 ends at 3e38."""
MAX_REASON = 200
"""Longest reason in characters."""


def open_reply(raw: Raw, sender: str, round: int, *, run: str = "", max_bytes: int, max_tensors: int) -> Reply:
    """Decode a reply; bytes that are no valid reply become a Failure of their sender.

    Args:
        raw: the bytes that arrived.
        sender: the client, as the transport authenticated it.
        round: the round of the request.
        run: identifier that the reply must carry.
        max_bytes: largest size of a reply.
        max_tensors: largest number of tensors of a reply.
    """
    try:
        reply = unpack(raw, run=run, max_bytes=max_bytes, max_tensors=max_tensors)
        if not isinstance(reply, (Update, Score, Failure, ProtectionReply)):
            raise BadUpdate("sent a message that is no reply")
        # The name in a reply is only a claim: the transport has authenticated the sender.
        if reply.client != sender:
            raise BadUpdate("sent a reply under the name of another client")
    except BadUpdate as error:
        return Failure(sender, round, str(error), bad=True)
    except Exception as error:  # whatever a client sends is that client's failure, and nobody else's
        return Failure(sender, round, f"sent what cannot be read ({type(error).__name__})", bad=True)
    # In quotes: among the server's own sentences it could pass for one of these, or for one on another client.
    if isinstance(reply, Failure) and reply.reason != LOST:
        return replace(reply, reason=quoted(reply.reason))
    return reply


def admit_score(reply: Reply) -> Score:
    """Return the scores of a client after checking them.

    Raises:
        BadUpdate: no scores, numbers that are not finite, or names with unprintable characters.
        ClientFailed: the client reported a failure.
    """
    if isinstance(reply, Failure) and not reply.bad:
        raise ClientFailed(reply.reason)
    if not isinstance(reply, Score):
        raise BadUpdate(getattr(reply, "reason", "sent no scores"))
    check_metrics(reply.metrics)
    return reply


def check_metrics(metrics: Metrics) -> None:
    """Raise BadUpdate for metrics that are not finite, or whose names cannot be written to a log."""
    for name in metrics:
        kind, _, number = name.partition("/")
        if unfit(name) or (kind == CHOICE and not is_number(number)):
            raise BadUpdate("sent metrics with invalid names")
    if (reason := fault(metrics)) is not None:
        raise BadUpdate(f"sent {reason}")


def admit_all(
    plan: Plan,
    state: ServerState,
    tasks: Mapping[str, Task],
    max_weights: Mapping[str, float],
    replies: Iterable[Reply],
    record: RoundRecord,
    server: Party,
) -> Iterator[Update]:
    """Decode and check replies; yield the admitted updates, record the failures.

    Args:
        plan: the parts.
        state: before the round.
        tasks: the round's tasks by client.
        max_weights: upper bound of each client's weight: its rows, infinity where the server does not know them.
        replies: after the protection unmasked them.
        record: of the round; failures and counts are added to it.
        server: the server with its codec's memory.
    """
    waiting = set(tasks)
    for reply in replies:
        record.opened |= bool(reply.members) if isinstance(reply, Update) else getattr(reply, "final", False)
        try:
            # Of a client with a smaller rank or fewer layers, the shapes of its own task are expected.
            like = expected_streams(plan, _client_params(plan, state, tasks.get(reply.client)), state.round)
            reply = decode(plan, reply, like, server)
            update = admit(reply, tasks, waiting, like, max_weights)
            # The algorithm may read the content only after names, shapes and finiteness are checked.
            plan.algorithm.check(update)
        except LateUpdate:
            record.late += 1
            continue
        except ClientFailed as failure:
            # Which client of a sum is to blame, nobody knows.
            senders = reply.senders if isinstance(reply, Update) else (reply.client,)
            record.failures |= dict.fromkeys(senders, str(failure))
            record.bad += senders if isinstance(failure, BadUpdate) and len(senders) == 1 else ()
            record.left += senders if isinstance(failure, LeftRun) else ()
            continue
        yield update


def _client_params(plan: Plan, state: ServerState, task: Task | None) -> Tensors:
    """Return the shared parameters of a client that has a task; all of them where it is unknown."""
    if task is None:
        return state.params
    return task.params if plan.sharing.layers else state.params | task.params


def admit(
    reply: Reply,
    tasks: Mapping[str, Task],
    waiting: set[str],
    like: Streams,
    max_weights: Mapping[str, float] | None = None,
) -> Update:
    """Return an update after checking it against its task.

    Args:
        reply: the client's answer, or a sum over `reply.members`.
        tasks: the round's tasks by client.
        waiting: clients without a reply so far; the senders are removed from it, even if their reply is refused.
        like: tensors of the names, shapes and dtypes that the client's streams must have.
        max_weights: upper bound of each client's weight; None: no bound.

    Raises:
        BadUpdate: names, shapes or number formats differ from the task's, a number (a metric too) is not finite,
            or is too large, the version or round lies in the future, or the weight is out of bounds.
        LateUpdate: the reply belongs to an earlier round or attempt, or is a second one.
        ClientFailed: the client reported a failure.
    """
    senders = reply.senders if isinstance(reply, Update) else (reply.client,)
    # A reply from a client outside the cohort is late if it belongs to an earlier round, otherwise unsolicited.
    if not set(senders) <= tasks.keys() and not any(reply.round < task.round for task in tasks.values()):
        raise ClientFailed("sent a reply without a request")
    if not set(senders) <= waiting:
        raise LateUpdate("sent a reply after its request was closed")
    task = tasks[senders[0]]
    if isinstance(reply, Update) and (reply.round, reply.attempt) < (task.round, task.attempt):
        raise LateUpdate(f"sent an update of round {reply.round} in round {task.round}, or of an earlier attempt")
    # From here on a second reply of these clients is late, even if this one is refused.
    waiting.difference_update(senders)
    if isinstance(reply, Failure) and not reply.bad:
        raise (LeftRun if reply.left else ClientFailed)(reply.reason)
    if not isinstance(reply, Update):
        raise BadUpdate(getattr(reply, "reason", "sent no update"))
    if (reply.round, reply.base_version, reply.attempt) != (task.round, task.base_version, task.attempt):
        raise BadUpdate(f"sent an update of round {reply.round} and version {reply.base_version} in round {task.round}")
    # A masked sum of weights is rounded.
    heaviest = math.inf if max_weights is None else sum(max_weights[sender] for sender in senders) * (1 + 1e-9)
    if not (math.isfinite(reply.weight) and MIN_WEIGHT <= reply.weight <= heaviest):
        raise BadUpdate(f"sent an update of weight {reply.weight}")
    check_metrics(reply.metrics)
    _check_streams(reply.streams, like)
    return reply


def _check_streams(streams: Streams, like: Streams) -> None:
    """Raise BadUpdate where names, shapes or dtypes differ from those of `like`, or a number is not finite."""
    if set(streams) != set(like):
        names = printable(", ".join(sorted(streams)), MAX_REASON)
        raise BadUpdate(f"sent the streams {names or 'of nothing'} instead of {', '.join(sorted(like))}")
    for stream, values in streams.items():
        if values.keys() != like[stream].keys():
            raise BadUpdate("sent parameters that differ from the task's")
        for name, value in values.items():
            expected = like[stream][name]
            if value.shape != expected.shape or value.dtype != expected.dtype:
                raise BadUpdate(f"sent '{name}' as {value.dtype} {tuple(value.shape)}")
        largest = tensors.largest(values)
        if not math.isfinite(largest):
            raise BadUpdate("sent numbers that are not finite")
        # A search sends scores beside its candidates, among them 1e30 for what could not be scored.
        if stream != SEARCH and largest > MAX_VALUE:
            raise BadUpdate(f"sent a number of size {largest:.3g}, and the largest of an update is {MAX_VALUE:g}")
