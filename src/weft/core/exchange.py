"""Base classes of the parts between client and server: weighting, aggregation, privacy, codec, protection, runtime.

A part may keep memory at the party where it works, and may draw from that party's secret: both come to it in a `Party`,
and the memory that it returns is saved with the checkpoint. Noise, masks and keys never follow from the run's seed,
which every party knows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import ClassVar, NamedTuple

from weft.core.party import Coding, Gathering, Party
from weft.core.tensors import num_bytes
from weft.core.types import (
    Failure,
    Message,
    Metrics,
    ProtectionRequest,
    Reply,
    Request,
    Streams,
    Task,
    Tensors,
    Total,
    Update,
)

Exchange = Callable[[Sequence[Message]], Iterable[Reply]]
"""Carries messages to the clients and yields their replies, in any order, failures included."""


class Aggregator:
    """How the updates of a cohort become one."""

    additive: ClassVar[bool] = False
    """It is a weighted mean, which can be streamed and computed by secure aggregation."""
    counts_clients: ClassVar[bool] = False
    """Every client counts once, whatever its weight."""
    wants_root: ClassVar[bool] = False
    """It compares updates with rows of the server's own."""
    wants_loss: ClassVar[bool] = False
    """It tries updates on them."""
    follows_clients: ClassVar[bool] = False
    """It remembers single clients from round to round."""

    def needs(self, cohort: int) -> int:
        """Return the number of updates without which a round of `cohort` clients is not combined.

        Raises:
            ConfigError: no number of updates is enough for what is asked.
        """
        return 0

    def for_round(self, gathering: Gathering) -> Aggregator:
        """Return the aggregator of one round, which may know what was remembered; by default this one."""
        return self

    def combine(self, updates: Iterable[Update]) -> Total:
        """Combine updates of positive weight with the same streams; without any update return an empty total.

        With fewer updates than the round needs the streams of the total are not used: the round is repeated.
        """
        raise TypeError(f"{type(self).__name__} must define combine")


class Weighting:
    """The weights of updates in the cohort's mean; this base class weighs by training rows."""

    by_rows: ClassVar[bool] = True
    """A client reports its number of rows as weight; otherwise it reports 1."""
    single_updates: ClassVar[bool] = False
    """The server reads each client's metrics, and keeps memory of each client."""

    def factor(self, client: str, metrics: Metrics, memory: Tensors) -> tuple[float, Tensors]:
        """Return the factor of the client's weight, above 0, and the entries of the memory that change."""
        return 1.0, {}


class Budget(NamedTuple):
    """A budget of differential privacy: (epsilon, delta)."""

    epsilon: float
    delta: float


class Privacy:
    """Differential privacy: clips updates and adds noise. The defaults protect nothing."""

    bounded: ClassVar[bool] = False
    """Every update is clipped to a fixed norm. The round then leaves out everything else that depends on one client:
    its weight is 1, its training metrics are not sent, and the product error is not computed."""

    private: ClassVar[bool] = False
    """There is a budget: every round spends of it, and clients report no numbers of their rows."""

    in_steps: ClassVar[bool] = False
    """The local steps bound and hide single units (`weft.training.private`); updates need nothing more."""

    draws_secrets: ClassVar[bool] = False
    """Clients draw from their secrets, not only the server."""

    noise_in_shares: ClassVar[bool] = False
    """The noise is the sum of what clients add, so that a round needs a quorum."""

    def told(self, memory: Streams) -> Streams:
        """Return what tasks hold for this part, given its memory at the server: the stream BOUND, or nothing."""
        return {}

    def like(self) -> Streams:
        """Return tensors of the names and shapes of what `on_client` adds to an update."""
        return {}

    def on_client(self, update: Update, party: Party) -> tuple[Update, Streams]:
        """Clip, and add local noise; return the update and the part's new memory at the client."""
        return update, party.memory

    def on_arrival(self, update: Update, memory: Streams) -> Update:
        """Return a client's update as the server uses it, given the part's memory at the server."""
        return update

    def on_server(self, total: Total, party: Party) -> tuple[Total, Streams]:
        """Add central noise; return the total and the part's new memory at the server."""
        return total, party.memory

    def budget(self, rounds: int) -> Budget | None:
        """Return the budget spent after a number of rounds; None: no guarantee."""
        return None


class Codec:
    """Compression of updates and tasks. The defaults change nothing.

    A run has two: one encodes updates (`encode`, `decode`), the other tasks (`encode_task`, `decode_task`, `settle`).
    Both may be of one class.
    """

    addable: ClassVar[bool] = True
    """Encoded updates can be added up without being decoded, so that a secure sum can hold them. Such a codec is linear
    and the same for all clients of a round: nothing in its bytes (a scale, indices) may depend on one client."""
    lossy: ClassVar[bool] = False
    """What is decoded differs from what was encoded: the server's sums are then not those of the clients."""
    remembers: ClassVar[bool] = False
    """Clients keep memory of it (error feedback, the parameters that they hold), which an unused update undoes."""

    def encode(self, update: Update, coding: Coding, party: Party) -> tuple[Update, Streams]:
        """Return the encoded update and the codec's new memory at the client (error feedback)."""
        return update, party.memory

    def decode(self, update: Update, coding: Coding, party: Party) -> Update:
        """Return the decoded update, with streams like `coding.like`, at the server.

        For input that `encode` cannot have produced any exception may be raised: it is a failure of that client.
        """
        return update

    def encode_task(self, task: Task, coding: Coding, party: Party) -> tuple[Task, Streams]:
        """Return the encoded task and the codec's new memory at the server; `coding.like` are the task's streams.

        `coding.client` is "": what all clients are sent can be encoded once.
        """
        return task, party.memory

    def decode_task(self, task: Task, coding: Coding, party: Party) -> tuple[Task, Streams]:
        """Return the decoded task, and the codec's new memory at the client.

        `coding.like["params"]` are the parameters that the client's model was loaded with, in its rank and layers.

        Raises:
            ClientFailed: the task cannot be decoded.
        """
        return task, party.memory

    def settle(self, memory: Streams, round: int, used: Sequence[str], lost: Sequence[str]) -> Streams:
        """Return the codec's memory at the server after a round.

        Args:
            memory: after the tasks were encoded; of a round that is repeated, that from before.
            round: the round.
            used: clients whose updates were used; the others forget what they kept of the round.
            lost: clients that could not decode their task for want of memory.
        """
        return memory

    def encoded(self, like: Streams) -> Streams:
        """Return streams with the shapes of an encoded update of such streams, for a codec that is addable."""
        return like

    def largest(self, like: Streams) -> tuple[int, int]:
        """Return upper bounds of an encoded update of such streams: bytes, and number of tensors."""
        return num_bytes(like), sum(len(values) for values in like.values())


class Protection:
    """Hides single updates from the server (secure aggregation). The defaults hide nothing."""

    sum_only: ClassVar[bool] = False
    """The server sees sums of updates only. `collect` then yields a sum as one update: the weighted mean of its
    `members`, the sum of their weights and the sums of their metrics."""

    seals_scores: ClassVar[bool] = False
    """Scores of held-out rows travel in sums too: `collect` takes probes, and marks its requests as of an evaluation.
    Otherwise the server sees each client's."""

    draws_secrets: ClassVar[bool] = False
    """Clients draw from their secrets."""

    shares_key: ClassVar[bool] = False
    """All clients hold one key, which the server must not have."""

    can_group: ClassVar[bool] = False
    """It knows group_size."""

    fewer_bytes: ClassVar[str] = ""
    """What to write for few bytes where no codec can go with it."""

    @property
    def remark(self) -> str:
        """What a run says at its start of what is hidden and what is not."""
        return ""

    @property
    def smallest_sum(self) -> int:
        """Fewest clients of a sum that it opens."""
        return 1

    @property
    def grouped(self) -> bool:
        """Whether `collect` yields several sums, each over a group of the cohort, which can be compared."""
        return False

    def check(self, names: Collection[str]) -> None:
        """Raise ConfigError where the protection cannot be of a run that shares tensors of these names."""

    def new_key(self) -> bytes:
        """Return a new key for all clients."""
        raise TypeError(f"{type(self).__name__} must define new_key")

    def fingerprint(self, key: bytes) -> str:
        """Return what tells whether two clients have one key, and nothing else of it; ConfigError for no key."""
        raise TypeError(f"{type(self).__name__} must define fingerprint")

    def seal(self, update: Update, task: Request, party: Party) -> Update:
        """Mask or encrypt an update, or scores, at the client; public values of its peers are in `task.extra`."""
        return update

    def answer(self, request: ProtectionRequest, party: Party) -> Reply:
        """Answer a message of the protection's own at the client (its public keys, its part of an unmasking)."""
        return Failure(request.client, request.round, f"has no protection with a message '{request.phase}'")

    def largest(self, update_bounds: tuple[int, int]) -> tuple[int, int]:
        """Return upper bounds of any reply (bytes, tensors), given those of an update before it is sealed."""
        return update_bounds

    def traffic(self, like: Streams, encoded: int, names: Sequence[str], round: int) -> tuple[float, float]:
        """Return the bytes that a client is sent beside its task, and those that it sends: the mean over a cohort.

        Args:
            like: the streams of its update.
            encoded: bytes of its update before it is sealed.
            names: of the clients of a round, none of which drops out.
            round: the round.
        """
        return 0.0, float(encoded)

    def work(self, like: Streams) -> str:
        """Return what sealing costs a client in a round, in words; "": nothing worth a word."""
        return ""

    def collect(self, exchange: Exchange, tasks: Sequence[Request], like: Streams, party: Party) -> Iterable[Reply]:
        """Exchange the tasks, in as many phases as the protection needs, and yield the unmasked replies.

        Args:
            exchange: carries tasks, and `ProtectionRequest`s, which clients answer by `answer`.
            tasks: of the cohort, or the probes of an evaluation, whose replies are updates of the stream SCALARS; the
                protection may send more in `extra`, under names of its own.
            like: the streams of an update of all shared parameters, before it is sealed.
            party: the server.
        """
        return exchange(list(tasks))


class Runtime:
    """Carries messages to clients, wherever they run. On a client it may call `answer` only."""

    def exchange(self, messages: Sequence[Message]) -> Iterable[Reply]:
        """Yield one reply per message, in any order; a message without a reply yields a Failure."""
        raise TypeError(f"{type(self).__name__} must define exchange")

    def pause(self, attempts: int) -> None:
        """Wait before a round is begun again that was begun in vain `attempts` times; a simulation does not wait."""

    def close(self) -> None:
        """Release processes and connections."""
