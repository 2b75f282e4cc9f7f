"""What the server checks of every update before it is averaged: a server does not trust its clients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from weft.algorithms.clustered import CHOICE
from weft.core import tensors
from weft.core.exchange import Party
from weft.core.metrics import fault, is_number
from weft.core.texts import printable, unfit
from weft.core.types import (
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
from weft.core.wire import Raw, unpack
from weft.errors import BadUpdate, ClientFailed, LateUpdate
from weft.federation.coding import decode
from weft.federation.plan import Plan
from weft.federation.record import RoundRecord
from weft.federation.state import expected_streams

LIGHTEST = 1e-6
"""Weight of an update, at the least: smaller ones would make a mean over few clients overflow."""
SHOWN = 200
"""Letters of a reason that are kept."""


def opened(raw: Raw, sender: str, round: int, *, run: str = "", most: int, tensors: int) -> Reply:
    """Return the reply that came from a client; what cannot be one is a failure of that client.

    Args:
        raw: what came.
        sender: who sent it, as the transport knows it.
        round: that it was asked in.
        run: that it must be of.
        most: bytes that it may have.
        tensors: tensors that it may have.
    """
    try:
        reply = unpack(raw, run=run, most=most, tensors=tensors)
        if not isinstance(reply, (Update, Score, Failure, ProtectionReply)):
            raise BadUpdate("sent no reply")
        if reply.client != sender:
            raise BadUpdate("sent a reply in the name of another")
    except BadUpdate as error:
        return Failure(sender, round, str(error), bad=True)
    except Exception as error:  # whatever a client sends is that client's failure, and nobody else's
        return Failure(sender, round, f"sent what cannot be read ({type(error).__name__})", bad=True)
    return replace(reply, reason=printable(reply.reason)) if isinstance(reply, Failure) else reply


def admit_score(reply: Reply) -> Score:
    """Return the scores of a client if they may be counted.

    Raises:
        BadUpdate: no scores, numbers that are not finite, or names that are not to be shown.
        ClientFailed: the client could not answer.
    """
    if isinstance(reply, Failure) and not reply.bad:
        raise ClientFailed(reply.reason)
    if not isinstance(reply, Score):
        raise BadUpdate(getattr(reply, "reason", "sent no scores"))
    check_metrics(reply.metrics)
    return reply


def check_metrics(metrics: Metrics) -> None:
    """Refuse metrics that cannot be counted or written down: raise BadUpdate."""
    for name in metrics:
        kind, _, number = name.partition("/")
        if unfit(name) or (kind == CHOICE and not is_number(number)):
            raise BadUpdate("sent metrics of names that cannot be")
    if (why := fault(metrics)) is not None:
        raise BadUpdate(f"sent {why}")


def admitted(
    plan: Plan,
    state: ServerState,
    tasks: Mapping[str, Task],
    most: Mapping[str, float],
    replies: Iterable[Reply],
    record: RoundRecord,
    server: Party,
) -> Iterator[Update]:
    """Decode and check what came back; yield what may be averaged, record the rest.

    Args:
        plan: the parts.
        state: before the round.
        tasks: what was sent, by client.
        most: the largest weight that a client may have: its rows, as far as they are known.
        replies: as the protection opened them.
        record: of the round.
        server: as its codec sees it.
    """
    expected = set(tasks)
    for reply in replies:
        try:
            like = expected_streams(plan, _known(plan, state, tasks.get(reply.client)), state.round)
            reply = decode(plan, reply, like, server)
            update = admit(reply, tasks, expected, like, most)
            plan.algorithm.check(update)
        except LateUpdate:
            record.late += 1
            continue
        except ClientFailed as failure:
            record.failures[reply.client] = str(failure)
            record.bad += [reply.client] * isinstance(failure, BadUpdate)
            continue
        record.add(update)
        yield update


def _known(plan: Plan, state: ServerState, task: Task | None) -> Tensors:
    """Return the parameters that a client has which was sent a task."""
    if task is None:
        return state.params
    return task.params if plan.sharing.layers else state.params | task.params


def admit(
    reply: Reply, tasks: Mapping[str, Task], expected: set[str], like: Streams, most: Mapping[str, float] | None = None
) -> Update:
    """Return the update if it may be averaged; its clients are no longer expected, whatever they sent.

    Args:
        reply: what came back.
        tasks: what was sent, by client.
        expected: the clients that have not answered yet.
        like: tensors of the names, shapes and dtypes that the client's streams must have.
        most: the largest weight that a client may have; None: any.

    Raises:
        BadUpdate: the update is of other names, shapes or number formats, not finite (its metrics too), of a version
            or a round that is still to come, or of a weight that cannot be.
        LateUpdate: nobody waits for it: it is of an earlier round or attempt, or repeated.
        ClientFailed: the client could not answer.
    """
    senders: tuple[str, ...] = (reply.client,)
    if isinstance(reply, Update) and reply.members:
        senders = reply.members
    if not set(senders) <= tasks.keys() and not any(reply.round < task.round for task in tasks.values()):
        raise ClientFailed("sent a reply that nobody waits for")
    if not set(senders) <= expected:
        raise LateUpdate("sent a reply that nobody waits for any more")
    task = tasks[senders[0]]
    if isinstance(reply, Update) and (reply.round, reply.attempt) < (task.round, task.attempt):
        raise LateUpdate(f"sent an update of round {reply.round} in round {task.round}, or of an earlier attempt")
    expected.difference_update(senders)
    if isinstance(reply, Failure) and not reply.bad:
        raise ClientFailed(reply.reason)
    if not isinstance(reply, Update):
        raise BadUpdate(getattr(reply, "reason", "sent no update"))
    if (reply.round, reply.base_version, reply.attempt) != (task.round, task.base_version, task.attempt):
        raise BadUpdate(f"sent an update of round {reply.round} and version {reply.base_version} in round {task.round}")
    heaviest = math.inf if most is None else sum(most[sender] for sender in senders)
    if not (math.isfinite(reply.weight) and LIGHTEST <= reply.weight <= heaviest):
        raise BadUpdate(f"gave its update the weight {reply.weight}")
    check_metrics(reply.metrics)
    _check_streams(reply.streams, like)
    return reply


def _check_streams(streams: Streams, like: Streams) -> None:
    """Refuse streams of other names, shapes or number formats, or that are not finite: raise BadUpdate."""
    if set(streams) != set(like):
        sent = printable(", ".join(sorted(streams)), SHOWN)
        raise BadUpdate(f"sent the streams {sent or 'of nothing'} instead of {', '.join(sorted(like))}")
    for stream, values in streams.items():
        if values.keys() != like[stream].keys():
            raise BadUpdate("sent other parameters than the task has")
        for name, value in values.items():
            expected = like[stream][name]
            if value.shape != expected.shape or value.dtype != expected.dtype:
                raise BadUpdate(f"sent '{name}' as {value.dtype} {tuple(value.shape)}")
        if not tensors.all_finite(values):
            raise BadUpdate("sent numbers that are not finite")
