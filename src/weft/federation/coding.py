"""Encoding of tasks, decoding of updates, and the count of bytes that travel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from weft.compression.held import LOST
from weft.core.exchange import Exchange
from weft.core.party import Coding, Party
from weft.core.seeds import derive
from weft.core.tensors import num_bytes
from weft.core.types import (
    CODEC,
    CODEC_DOWN,
    Message,
    ProtectionReply,
    ProtectionRequest,
    Reply,
    ServerState,
    Streams,
    Task,
    Tensors,
    Update,
)
from weft.errors import BadUpdate, ClientFailed
from weft.federation.clients import ClientData
from weft.federation.part_memory import part_of, with_prefix
from weft.federation.plan import Plan
from weft.federation.record import RoundRecord
from weft.federation.sharing import crop_rank


def coding_of(plan: Plan, client: str, round: int, version: int, like: Streams, attempt: int = 0) -> Coding:
    """Return the context of a client's message that both ends compute alike; `like`: its streams when decoded.

    Numbers that are drawn from its seeds protect nobody. They are others in every attempt, so that a round that is
    repeated does not repeat its errors.
    """
    seed = plan.local.seed
    of_client = derive(seed, "codec", round, client, attempt)
    return Coding(client, round, version, of_client, like, derive(seed, "codec", round, attempt))


def encode_tasks(plan: Plan, tasks: Sequence[Task], server: Party) -> tuple[list[Task], Streams]:
    """Return the encoded tasks, and the codec's new memory at the server."""
    encoded = []
    for task in tasks:
        like = {"params": task.params} | task.extra
        coding = coding_of(plan, "", task.round, task.base_version, like, task.attempt)
        task, memory = plan.codec_down.encode_task(task, coding, server)
        # The codec may keep memory per client: the next task is encoded with the memory of the one before.
        server = replace(server, memory=memory)
        encoded.append(task)
    return encoded, server.memory


def decode_task(plan: Plan, task: Task, shared: Tensors, client: ClientData, memory: Streams) -> tuple[Task, Streams]:
    """Return a task decoded at its client, and the codec's part of the client's new memory.

    Args:
        plan: the parts.
        task: as it came.
        shared: the client's shared parameters at the start of the run, in the resident model's shapes.
        client: the client.
        memory: all of the client's memory.
    """
    like = {"params": crop_rank(shared, plan.sharing.rank_of(client.index))}
    coding = coding_of(plan, client.name, task.round, task.base_version, like, task.attempt)
    party = client.party(CODEC_DOWN, memory, task.round, task.attempt)
    decoded, new_memory = plan.codec_down.decode_task(task, coding, party)
    return decoded, with_prefix(new_memory, CODEC_DOWN)


def encode(plan: Plan, update: Update, like: Streams, client: ClientData, memory: Streams) -> tuple[Update, Streams]:
    """Return an encoded update, and the codec's part of the client's new memory; arguments as of `decode_task`."""
    coding = coding_of(plan, client.name, update.round, update.base_version, like, update.attempt)
    party = client.party(CODEC, memory, update.round, update.attempt)
    encoded, new_memory = plan.codec.encode(update, coding, party)
    return encoded, with_prefix(new_memory, CODEC)


def settle(plan: Plan, state: ServerState, memory: Streams, record: RoundRecord) -> tuple[ServerState, Streams]:
    """Return the state that a round leaves that is repeated or had no update, and the codec's memory after any other.

    Args:
        plan: the parts.
        state: before the round.
        memory: of the codec, after the tasks were encoded.
        record: of the round.
    """
    lost = [client for client, reason in record.failures.items() if reason == LOST]
    if lost and (record.repeated or not record.clients):
        before = plan.codec_down.settle(part_of(state.memory, CODEC_DOWN), state.round, (), lost)
        others = {name: values for name, values in state.memory.items() if not name.startswith(CODEC_DOWN)}
        state = replace(state, memory=others | with_prefix(before, CODEC_DOWN))
    return state, plan.codec_down.settle(memory, state.round, record.clients, lost)


def decode(plan: Plan, reply: Reply, like: Streams, server: Party) -> Reply:
    """Return a reply with its update decoded; raise BadUpdate where the codec cannot have encoded it."""
    if not isinstance(reply, Update):
        return reply
    try:
        coding = coding_of(plan, reply.client, reply.round, reply.base_version, like, reply.attempt)
        return plan.codec.decode(reply, coding, server)
    except ClientFailed:
        raise
    except Exception as error:  # whatever a client sends is that client's failure, and nobody else's
        raise BadUpdate(f"sent an update that cannot be decoded ({type(error).__name__})") from None


def watched(exchange: Exchange, record: RoundRecord, *, counted: bool) -> Exchange:
    """Return an exchange that records what comes back; `counted`: and the bytes of all tensors, in both directions."""

    def watch(reply: Reply) -> Reply:
        record.witness(reply)
        if counted and isinstance(reply, Update | ProtectionReply):
            record.bytes_up += num_bytes(reply.streams)
        return reply

    def carry(messages: Sequence[Message]) -> Iterable[Reply]:
        for message in messages if counted else ():
            if isinstance(message, Task):
                record.bytes_down += num_bytes(message.params) + num_bytes(message.extra)
            elif isinstance(message, ProtectionRequest):
                record.bytes_down += num_bytes(message.streams)
        return map(watch, exchange(messages))  # no generator: it would keep the last reply alive

    return carry
