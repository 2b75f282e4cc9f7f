"""Encoding of tasks, decoding of updates, and the count of bytes that travel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from weft.core.exchange import Coding, Exchange, Party
from weft.core.seeds import derive
from weft.core.tensors import num_bytes
from weft.core.types import Message, ProtectionReply, ProtectionRequest, Reply, Streams, Task, Update
from weft.errors import BadUpdate, ClientFailed
from weft.federation.plan import Plan
from weft.federation.record import RoundRecord


def coding_of(plan: Plan, client: str, round: int, version: int, like: Streams) -> Coding:
    """Return the context of a client's message that both ends compute alike; `like`: its streams when decoded."""
    return Coding(client, round, version, derive(plan.local.seed, "codec", round, client), like)


def encode_tasks(plan: Plan, tasks: Sequence[Task], server: Party) -> tuple[list[Task], Streams]:
    """Return the encoded tasks, and the codec's new memory at the server."""
    encoded = []
    for task in tasks:
        coding = coding_of(plan, task.client, task.round, task.base_version, {"params": task.params} | task.extra)
        task, memory = plan.codec.encode_task(task, coding, server)
        # The codec may keep memory per client: the next task is encoded with the memory of the one before.
        server = replace(server, memory=memory)
        encoded.append(task)
    return encoded, server.memory


def decode(plan: Plan, reply: Reply, like: Streams, server: Party) -> Reply:
    """Return a reply with its update decoded; raise BadUpdate where the codec cannot have encoded it."""
    if not isinstance(reply, Update):
        return reply
    try:
        coding = coding_of(plan, reply.client, reply.round, reply.base_version, like)
        return plan.codec.decode(reply, coding, server)
    except ClientFailed:
        raise
    except Exception as error:  # whatever a client sends is that client's failure, and nobody else's
        raise BadUpdate(f"sent an update that cannot be decoded ({type(error).__name__})") from None


def count_bytes(exchange: Exchange, record: RoundRecord) -> Exchange:
    """Return an exchange that adds the bytes of all tensors, in both directions, to the record."""

    def count(reply: Reply) -> Reply:
        if isinstance(reply, Update | ProtectionReply):
            record.bytes_up += num_bytes(reply.streams)
        return reply

    def carry(messages: Sequence[Message]) -> Iterable[Reply]:
        for message in messages:
            if isinstance(message, Task):
                record.bytes_down += num_bytes(message.params) + num_bytes(message.extra)
            elif isinstance(message, ProtectionRequest):
                record.bytes_down += num_bytes(message.streams)
        return map(count, exchange(messages))  # no generator: it would keep the last reply alive

    return carry
