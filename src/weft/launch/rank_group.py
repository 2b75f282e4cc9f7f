"""A client in several processes: the leader runs the federation, the others make every step of the model with it.

The tensors of a message stay with the leader; the others receive names and shapes, and run the same code on tensors
without content (meta) until the model gathers or scatters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weft.config import RunConfig
from weft.core.promises import Promises
from weft.core.secret import Common, Secret
from weft.core.types import Message, Probe, Streams, Task
from weft.errors import ClientFailed
from weft.federation.clients import ClientData, InMemory
from weft.json_types import JsonObject
from weft.launch.client import ClientBuilder
from weft.models.group import RankGroup

Shapes = dict[str, list[Any]]


@dataclass(frozen=True)
class Announcer:
    """Announces to the other processes the message that the leader is about to answer."""

    group: RankGroup

    def __call__(self, message: Message, client: ClientData) -> None:
        """Announce a message that every process has a part in."""
        if isinstance(message, Task | Probe):
            memory = (
                client.memory.load(client.name, message.round) if isinstance(message, Task) or message.personal else {}
            )
            announcement = {
                "kind": type(message).__name__,
                "client": message.client,
                "round": message.round,
                "version": message.base_version if isinstance(message, Task) else 0,
                "own": message.personal if isinstance(message, Probe) else True,
                "step_fraction": client.step_fraction,
                "params": _shapes(message.params),
                "extra": {stream: _shapes(values) for stream, values in message.extra.items()},
                # Names and shapes only: the values of clients stay with the leader.
                "memory": {stream: _shapes(values) for stream, values in memory.items()},
            }
            self.group.broadcast_message(announcement)

    def end(self) -> None:
        """End the other processes' part in the run."""
        self.group.broadcast_message({"kind": "end"})


def begin(config: RunConfig, group: RankGroup) -> None:
    """Send the tokenizer and the template's date to the others, which wait for them."""
    group.broadcast_message({"tokenizer": config.tokenizer, "template_date": config.template_date})


def follow(builder: ClientBuilder) -> None:
    """Take part in the leader's run to its end."""
    group = builder.group
    assert group is not None
    # The leader has trained the tokenizer already; the others load its files.
    update = group.broadcast_message() | {"tokenizer_text": None, "federated_tokenizer": False}
    builder.config = builder.config.model_copy(update=update)
    builder.read(InMemory())
    host, _ = builder.host()
    while (announcement := group.broadcast_message())["kind"] != "end":
        message = _message(announcement)
        memory = _Shapes({stream: _empty(values) for stream, values in announcement["memory"].items()})
        host.reply(message, memory=memory, step_fraction=announcement["step_fraction"])  # the leader reports failures


@dataclass(frozen=True)
class _Shapes:
    """What a client remembers, in shapes."""

    streams: Streams

    def load(self, client: str, round: int) -> Streams:
        return self.streams

    def save(self, client: str, round: int, streams: Streams) -> None:
        pass

    def drop(self, client: str, round: int) -> None:
        pass

    def secret(self, client: str) -> Secret:
        return Secret.random()  # what is drawn here is noise of tensors without content

    def promises(self, client: str) -> Promises:
        return Promises()

    def common(self, make: Callable[[], bytes]) -> Common:
        raise ClientFailed("the leader seals what all have trained")


def _message(announcement: JsonObject) -> Task | Probe:
    params = _empty(announcement["params"])
    extra = {stream: _empty(values) for stream, values in announcement["extra"].items()}
    if announcement["kind"] == "Task":
        return Task(announcement["client"], announcement["round"], announcement["version"], params, extra)
    return Probe(announcement["client"], announcement["round"], params, extra, announcement["own"])


def _shapes(values: dict[str, Tensor]) -> Shapes:
    return {name: [list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in values.items()}


def _empty(shapes: Shapes) -> dict[str, Tensor]:
    return {n: torch.empty(shape, dtype=getattr(torch, kind), device="meta") for n, (shape, kind) in shapes.items()}
