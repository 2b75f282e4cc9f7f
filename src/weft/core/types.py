"""The values that cross between server and clients, and the values that are remembered.

Everything here is plain data: tensors by name, numbers and strings. What an object remembers is one of these
values, and these values are the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

Tensors = dict[str, Tensor]
"""Tensors by parameter name: the trainable, shared parameters or something of the same shape."""

Streams = dict[str, Tensors]
"""Named sets of tensors: "delta", and what an algorithm adds ("control", ...)."""

Metrics = dict[str, float]
"""Numbers by name. On the way to the server they are counts and sums, never rows."""

DELTA = "delta"


@dataclass(frozen=True)
class Task:
    """What one client is sent to train on: server -> client."""

    client: str
    round: int
    base_version: int
    params: Tensors
    extra: Streams = field(default_factory=dict)


@dataclass(frozen=True)
class Update:
    """What one client sends back after training: client -> server."""

    client: str
    round: int
    base_version: int
    streams: Streams
    weight: float
    metrics: Metrics = field(default_factory=dict)


@dataclass(frozen=True)
class Probe:
    """A request to evaluate parameters on a client's held-out rows: server -> client."""

    client: str
    round: int
    params: Tensors


@dataclass(frozen=True)
class Score:
    """The counts and sums of one evaluation: client -> server."""

    client: str
    round: int
    metrics: Metrics


@dataclass(frozen=True)
class Failure:
    """A client that could not answer, in words without any of its data: client -> server."""

    client: str
    round: int
    reason: str


Message = Task | Probe
Reply = Update | Score | Failure


@dataclass(frozen=True)
class Total:
    """A combined cohort: the weighted mean of every stream, and who it is made of."""

    streams: Streams
    clients: tuple[str, ...]
    weight: float


@dataclass(frozen=True)
class ServerState:
    """All that the server remembers between rounds; `round` rounds are committed."""

    params: Tensors
    memory: Streams = field(default_factory=dict)
    round: int = 0


@dataclass(frozen=True)
class Finished:
    """What a local rule makes of the training it has watched.

    `streams` travel, `memory` stays with the client.
    """

    streams: Streams
    memory: Streams = field(default_factory=dict)
