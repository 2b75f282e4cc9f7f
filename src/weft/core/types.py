"""The messages between server and clients, and the state of either.

Everything here is plain data: tensors by name, numbers and strings. No part has state outside these values, so they are
the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

Tensors = dict[str, Tensor]
"""Tensors by parameter name: the trainable, shared parameters, or values of the same shapes."""

Streams = dict[str, Tensors]
"""Named sets of tensors: "delta", and those of an algorithm ("control", ...)."""

Metrics = dict[str, float]
"""Numbers by name. On the way to the server they are counts and sums, never rows."""

DELTA = "delta"
SCALARS = "scalars"
"""The stream of single numbers, each a tensor of shape ()."""
SEARCH = "search"
"""The stream of a search without gradients: its candidates, or its distribution."""
BOUND = "bound"
"""The stream of an adaptive bound under differential privacy: one number in tasks and one in updates."""
SIDE = "adapter.side"
"""Frozen low-rank factors that every client adds beside its adapter: `MODULE.side_A`, `MODULE.side_B`."""
WEIGHTS = "weights"
"""The memory of the weighting at the server."""
BAD = "bad"
"""Number of bad updates by client, shape () each."""
LEFT = "left"
"""Of clients that left the run the round, counted from 1, in which they did; shape () each."""
PRIVACY, CODEC, CODEC_DOWN, PROTECTION = "privacy.", "codec.", "codec_down.", "protection."
AGGREGATOR = "aggregator."
"""Prefixes of the memory streams of these parts, at the server and at clients."""
FIXED = "adapter.fixed"
"""Frozen LoRA factors, which the server needs for the products and for the saved result."""


@dataclass(frozen=True)
class Task:
    """A request to train: server -> client."""

    client: str
    round: int
    base_version: int
    params: Tensors
    extra: Streams = field(default_factory=dict)
    attempt: int = 0
    """Number of repeated rounds of the run so far (`ServerState.attempts`)."""


@dataclass(frozen=True)
class Update:
    """The result of training: client -> server."""

    client: str
    round: int
    base_version: int
    streams: Streams
    weight: float
    metrics: Metrics = field(default_factory=dict)
    attempt: int = 0
    """Of the task."""
    members: tuple[str, ...] = ()
    """The clients of a sum that a protection unmasked at the server; empty for the update of one client."""
    proof: bytes = b""
    """The site's certificate, and its signature of the digest of this update; empty: it has none."""

    @property
    def senders(self) -> tuple[str, ...]:
        """The clients whose updates are in it."""
        return self.members or (self.client,)


@dataclass(frozen=True)
class Probe:
    """A request to evaluate parameters on a client's held-out rows: server -> client."""

    client: str
    round: int
    params: Tensors
    extra: Streams = field(default_factory=dict)
    personal: bool = True
    """Evaluate the client's personal model, where it has one, instead of the shared one."""
    export: bool = False
    """The run is over: the client saves that model, instead of evaluating it."""
    attempt: int = 0
    """Number of repeated rounds of the run so far (`ServerState.attempts`)."""

    @property
    def base_version(self) -> int:
        """The version of the parameters: after so many rounds."""
        return self.round


@dataclass(frozen=True)
class Undo:
    """The client's update of a round was not used, so it drops the memory of that round: server -> client."""

    client: str
    round: int


@dataclass(frozen=True)
class ProtectionRequest:
    """A message of one phase of the run's protection: server -> client."""

    client: str
    round: int
    phase: str
    streams: Streams = field(default_factory=dict)
    attempt: int = 0
    evaluation: bool = False
    """The sum is of scores after so many rounds, and not of the updates of the round."""


@dataclass(frozen=True)
class ProtectionReply:
    """The answer to a `ProtectionRequest`: client -> server."""

    client: str
    round: int
    phase: str
    streams: Streams = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """Counts and sums of an evaluation; empty as the answer to an Undo or an export: client -> server."""

    client: str
    round: int
    metrics: Metrics


@dataclass(frozen=True)
class Failure:
    """The reason why a client could not answer, without any of its data: client -> server."""

    client: str
    round: int
    reason: str
    bad: bool = False
    """The client did answer, with an invalid reply."""
    final: bool = False
    """The round must not be begun again: set by a protection at the server."""
    opened: bool = False
    """The client has opened a sum of the round, and joins no other."""
    left: bool = False
    """The client has left the run: it is asked no more."""


Request = Task | Probe
"""What asks a client for numbers, which a protection seals."""
Message = Request | Undo | ProtectionRequest
Reply = Update | Score | Failure | ProtectionReply


@dataclass(frozen=True)
class Total:
    """A combined cohort: the weighted mean of every stream, the clients, and the sum of their weights."""

    streams: Streams
    clients: tuple[str, ...]
    weight: float
    population_weight: float = 0.0
    """Sum of the weights of all clients, sampled or not; 0: unknown, the cohort's weight is used."""
    flagged: tuple[str, ...] = ()
    """Clients whose updates counted for less than half of what an equal share is, by the aggregator's judgement."""
    memory: Streams = field(default_factory=dict)
    """The aggregator's memory at the server after the round."""
    reason: str = ""
    """Why the aggregator uses no update, of none of which anything else is known to be wrong."""

    @property
    def weight_fraction(self) -> float:
        """The cohort's share of the population's weight.

        A mean over the cohort times this share is the cohort's part of a mean over all clients. Such parts add up over
        rounds to the same sum for any sequence of cohorts, since all have one divisor; means over cohorts do not.
        """
        return self.weight / max(self.population_weight, self.weight)


@dataclass(frozen=True)
class ServerState:
    """The server's state between rounds, after `round` committed rounds."""

    params: Tensors
    memory: Streams = field(default_factory=dict)
    round: int = 0
    attempts: int = 0
    """Number of repeated rounds since the run began."""
    attempt: int = 0
    """Number of repetitions of the current round."""


@dataclass(frozen=True)
class LocalWork:
    """A client's local training in one round, as its rule receives it."""

    start: Tensors
    """The shared parameters before the first step."""
    end: Tensors
    """The shared parameters after the last."""
    steps: int
    """Optimizer steps made."""
    lr: float
    """The sum of the learning rates of these steps."""
    moments: Streams = field(default_factory=dict)
    """AdamW's `exp_avg`, `exp_avg_sq` and `step` after the last step, if the rule sets `wants_moments`; of a search,
    SEARCH: `solutions` (count, d), `fitness` (count,), `scale` (d,) of the last generation."""


@dataclass(frozen=True)
class RuleResult:
    """The result of a local rule: `streams` are sent, `memory` stays at the client."""

    streams: Streams
    memory: Streams = field(default_factory=dict)
