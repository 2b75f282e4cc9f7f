"""The Ray runtime: actors answer for the clients in parallel, each a process with a model of its own.

The memory of clients stays in this process: it is sent to the actor with the message, and comes back with the answer.
So any actor can answer for any client; one that dies is replaced, and another answers its message.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from weft.core.exchange import Runtime
from weft.core.promises import Promises
from weft.core.secret import Common, Secret
from weft.core.types import Failure, Message, Probe, Reply, Streams, Task, Tensors
from weft.core.wire import pack
from weft.errors import BadUpdate, ClientFailed
from weft.federation.admission import open_reply
from weft.federation.client_host import ClientHost
from weft.federation.clients import ClientData

TRIES = 3
"""Actors that may die during a message before its client fails."""


@dataclass
class MessageMemory:
    """The memory of one client at an actor: it came with a message, and a new one goes back with the answer."""

    memory: Streams
    message_secret: Secret | None = None
    message_common: Common | None = None
    saved_state: tuple[int, Streams] | None = None

    def load(self, client: str, round: int) -> Streams:
        """Return the memory that came with the message."""
        return self.memory

    def save(self, client: str, round: int, streams: Streams) -> None:
        """Set the memory that goes back with the answer."""
        self.saved_state = (round, streams)

    def drop(self, client: str, round: int) -> None:
        """Send no new memory back."""
        self.saved_state = None

    def secret(self, client: str) -> Secret:
        """Return the secret that came with the message: one user runs all simulated clients and their actors."""
        assert self.message_secret is not None, "a part that draws secrets at clients sets draws_secrets"
        return self.message_secret

    def promises(self, client: str) -> Promises:
        """Return none: one user runs all simulated clients and their server."""
        return Promises()

    def common(self, make: Callable[[], bytes]) -> Common:
        """Return what came with the message."""
        assert self.message_common is not None, "a protection of clients that share a key sets shares_key"
        return self.message_common


class RemoteMethod(Protocol):
    """A method of an actor, as Ray wraps it."""

    def remote(self, *values: object) -> Hashable:
        """Call it in the actor's process, and return the reference of its result."""
        ...


class Actor(Protocol):
    """An actor of Ray's that answers messages: `weft.launch.ray_actor.RayActor` behind its handle."""

    answer: RemoteMethod


@dataclass
class _InFlight:
    """A message that an actor works on."""

    place: int
    """Of the message in its exchange."""
    message: Message
    client: ClientData
    actor: Actor


@dataclass
class Actors(Runtime):
    """Gives messages to free actors, and yields the replies in the order of the in-process runtime."""

    client_host: ClientHost
    """The clients; its own model is not used."""
    start: Callable[[], Actor]
    """Starts an actor."""
    count: int
    note: Callable[[str], None]
    goes_on: bool = False
    """Actors begin the next round when they have answered."""
    running: dict[Hashable, _InFlight] = field(default_factory=dict)
    free: list[Actor] = field(default_factory=list)
    trained_by: dict[str, Actor] = field(default_factory=dict)
    """The actor that trained a client last: with a delay it has begun the client's next round."""

    def exchange(self, messages: Sequence[Message]) -> Iterator[Reply]:
        """Answer the messages, in the order of the in-process runtime, so that sums are the same to the last bit."""
        messages_in_order = self.client_host.by_speed(messages)
        self._drain()
        while len(self.free) < self.count:
            self.free.append(self.start())
        parameter_refs: dict[int, object] = {}
        replies: dict[int, Reply] = {}
        deaths: dict[int, int] = {}
        # An actor of several clients would begin the next round of one while it is asked for another.
        clients = sum(isinstance(message, Task) for message in messages)
        self.goes_on = self.client_host.plan.algorithm.early is not None and clients <= self.count
        waiting = list(range(len(messages_in_order)))
        for place in range(len(messages_in_order)):
            while place not in replies:
                while waiting and self.free:
                    self._hand_out(waiting.pop(0), messages_in_order, parameter_refs, replies)
                    if place in replies:
                        break
                if place not in replies:
                    self._take_in(replies, deaths, waiting)
            yield replies.pop(place)

    def _hand_out(
        self, place: int, messages: list[Message], parameter_refs: dict[int, object], replies: dict[int, Reply]
    ) -> None:
        """Give a message to a free actor; messages that need no model are answered here."""
        import ray

        message = messages[place]
        try:
            client = self.client_host.client_of(message)
        except ClientFailed as failure:
            replies[place] = Failure(message.client, message.round, str(failure))
            return
        if not isinstance(message, Task | Probe):
            replies[place] = self.client_host.reply(message)
            return
        # Most clients of a round are sent the same parameters: they enter Ray's store once.
        params = message.params
        if id(params) not in parameter_refs:
            parameter_refs[id(params)] = ray.put(_array(pack(Task("all", 0, 0, params))))
        uses_memory = isinstance(message, Task) or message.personal
        memory = client.memory.load(client.name, message.round) if uses_memory else {}
        # Packed without parameters, which travel by reference.
        bare = _array(pack(replace(message, params=Tensors())))
        actor = self._actor_for(client.name)
        plan = self.client_host.plan
        secret = client.memory.secret(client.name) if plan.draws_secrets else None
        common = client.memory.common(plan.protection.new_key) if plan.protection.shares_key else None
        if isinstance(message, Task):
            self.trained_by[client.name] = actor
        own = (secret, common, self.goes_on)
        ref = actor.answer.remote(bare, parameter_refs[id(params)], memory, client.step_fraction, *own)
        self.running[ref] = _InFlight(place, message, client, actor)

    def _actor_for(self, client: str) -> Actor:
        """Take a free actor: the one that trained the client last, else one that trained nobody else."""
        own, trainers = self.trained_by.get(client), {id(actor) for actor in self.trained_by.values()}
        best = max(range(len(self.free)), key=lambda at: (self.free[at] is own, id(self.free[at]) not in trainers, at))
        return self.free.pop(best)

    def _take_in(self, replies: dict[int, Reply], deaths: dict[int, int], waiting: list[int]) -> None:
        """Wait for an answer; an actor that died is replaced, and its message is queued again."""
        import ray

        (ref,), _ = ray.wait(list(self.running), num_returns=1)
        flight = self.running.pop(ref)
        client, message = flight.client, flight.message
        try:
            raw, saved_state = ray.get(ref)
        except ray.exceptions.RayActorError:
            deaths[flight.place] = deaths.get(flight.place, 0) + 1
            self.note(f"an actor died while it answered for '{client.name}'; a new one is started.")
            self.trained_by = {name: actor for name, actor in self.trained_by.items() if actor is not flight.actor}
            self.free.append(self.start())
            if deaths[flight.place] < TRIES:
                waiting.insert(0, flight.place)
            else:
                replies[flight.place] = Failure(message.client, message.round, f"{TRIES} actors died of it")
            return
        self.free.append(flight.actor)
        reply = open_reply(raw.data, client.name, message.round, max_bytes=1 << 62, max_tensors=1 << 20)
        # An actor runs our own code: an invalid reply is a bug, not a dishonest client.
        if isinstance(reply, Failure) and reply.bad:
            raise BadUpdate(reply.reason)
        if saved_state is not None:
            client.memory.save(client.name, *saved_state)
        replies[flight.place] = reply

    def _drain(self) -> None:
        """Wait for the answers of an exchange that was not read to its end; they are dropped."""
        import ray

        for ref, flight in list(self.running.items()):
            try:
                ray.get(ref)
                self.free.append(flight.actor)
            except ray.exceptions.RayActorError:
                pass
            del self.running[ref]


def answer_at_actor(
    client_host: ClientHost,
    raw: NDArray[np.uint8],
    packed_params: NDArray[np.uint8],
    memory: Streams,
    step_fraction: float,
    secret: Secret | None,
    common: Common | None = None,
    goes_on: bool = False,
) -> tuple[NDArray[np.uint8], tuple[int, Streams] | None]:
    """Answer a message in an actor's process.

    Returns:
        The packed reply, and the client's new memory with its round, if there is one.
    """
    from weft.core.wire import unpack

    message, params_task = unpack(raw.data, max_tensors=1 << 20), unpack(packed_params.data, max_tensors=1 << 20)
    assert isinstance(message, (Task, Probe))
    assert isinstance(params_task, Task)
    client_memory = MessageMemory(memory, secret, common)
    reply = client_host.reply(
        replace(message, params=params_task.params), memory=client_memory, step_fraction=step_fraction
    )
    if goes_on and isinstance(message, Task) and client_memory.saved_state is not None:
        client_host.go_on(message, MessageMemory(client_memory.saved_state[1], secret, common), step_fraction)
    return _array(pack(reply)), client_memory.saved_state


def _array(raw: memoryview) -> NDArray[np.uint8]:
    """Return a packed message as an array, which Ray shares between processes without a copy."""
    return np.frombuffer(raw, dtype=np.uint8)
