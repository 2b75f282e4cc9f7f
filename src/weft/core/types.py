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
SCALARS = "scalars"
"""The stream of single numbers, each a tensor of shape ()."""
SEARCH = "search"
"""What a search without gradients has tried, or where it is to go on."""
SIDE = "adapter.side"
"""Frozen low-rank factors that every client adds beside its adapter: `MODULE.side_A`, `MODULE.side_B`."""
WEIGHTS = "weights"
"""What the server remembers of clients to weigh them, by names that begin as the weighting likes."""
BAD = "bad"
"""How many bad updates the server had of each client."""
PRIVACY, CODEC, PROTECTION = "privacy.", "codec.", "protection."
"""What the names begin with under which the memories of these parts are kept, at the server and at clients."""
FIXED = "adapter.fixed"
"""Factors that nobody trains, kept by the server to know the products and to write the result."""


@dataclass(frozen=True)
class Task:
    """What one client is sent to train on: server -> client."""

    client: str
    round: int
    base_version: int
    params: Tensors
    extra: Streams = field(default_factory=dict)
    attempt: int = 0
    """How often the round was begun before, with too few good replies."""


@dataclass(frozen=True)
class Update:
    """What one client sends back after training: client -> server."""

    client: str
    round: int
    base_version: int
    streams: Streams
    weight: float
    metrics: Metrics = field(default_factory=dict)
    attempt: int = 0
    """Of the task."""
    members: tuple[str, ...] = ()
    """The clients of a sum that a protection opened at the server, whose single updates nobody has seen; else none."""


@dataclass(frozen=True)
class Probe:
    """A request to evaluate parameters on a client's held-out rows: server -> client."""

    client: str
    round: int
    params: Tensors
    extra: Streams = field(default_factory=dict)
    own: bool = True
    """Whether a client that has a model of its own measures that one, not the shared one."""
    keep: bool = False
    """The run is over: the client writes that model down, instead of measuring it."""


@dataclass(frozen=True)
class Undo:
    """The client's update of a round was not used: it forgets what it remembered of it; server -> client."""

    client: str
    round: int


@dataclass(frozen=True)
class ProtectionRequest:
    """A message of the run's protection, which alone knows its phases: server -> client."""

    client: str
    round: int
    phase: str
    streams: Streams = field(default_factory=dict)
    attempt: int = 0


@dataclass(frozen=True)
class ProtectionReply:
    """The answer to a `ProtectionRequest`: client -> server."""

    client: str
    round: int
    phase: str
    streams: Streams = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """The counts and sums of one evaluation, or the empty answer to an Undo or an export: client -> server."""

    client: str
    round: int
    metrics: Metrics


@dataclass(frozen=True)
class Failure:
    """A client that could not answer, in words without any of its data: client -> server."""

    client: str
    round: int
    reason: str
    bad: bool = False
    """It did answer, with what no honest client sends."""


Message = Task | Probe | Undo | ProtectionRequest
Reply = Update | Score | Failure | ProtectionReply


@dataclass(frozen=True)
class Total:
    """A combined cohort: the weighted mean of every stream, and who it is made of."""

    streams: Streams
    clients: tuple[str, ...]
    weight: float
    whole: float = 0.0
    """What all clients together weigh, those that were not asked too; 0: not known, the cohort stands for them."""

    @property
    def weight_fraction(self) -> float:
        """The cohort's part of that weight: times a mean over the cohort, its part of a mean over all clients.

        A sum of such parts over rounds is what it would be had every client sent its part at once, whoever is in which
        cohort: that takes one divisor in all rounds. The mean of the cohort alone has another one in every round.
        """
        return self.weight / max(self.whole, self.weight)


@dataclass(frozen=True)
class ServerState:
    """All that the server remembers between rounds; `round` rounds are committed."""

    params: Tensors
    memory: Streams = field(default_factory=dict)
    round: int = 0
    attempts: int = 0
    """Rounds that were begun and repeated since the run began."""
    attempt: int = 0
    """How often the round under way was begun in vain."""


@dataclass(frozen=True)
class LocalWork:
    """What a client did in a round, as its rule is told."""

    start: Tensors
    """The shared parameters before the first step."""
    end: Tensors
    """The shared parameters after the last."""
    steps: int
    """Optimizer steps made."""
    lr: float
    """The sum of the learning rates of these steps."""
    moments: Streams = field(default_factory=dict)
    """AdamW's `exp_avg`, `exp_avg_sq` and `step` after the last step, where the rule asked for them; of a search,
    SEARCH: `solutions` (count, d), `fitness` (count,), `scale` (d,) of the last generation."""


@dataclass(frozen=True)
class Finished:
    """What a local rule makes of the training it has watched.

    `streams` travel, `memory` stays with the client.
    """

    streams: Streams
    memory: Streams = field(default_factory=dict)
