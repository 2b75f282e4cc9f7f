"""Clients as data: rows, memory and secret of each, which no other party sees."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from weft.core import tensors
from weft.core.local_rule import LocalRule
from weft.core.party import Identity, Party
from weft.core.promises import Promises
from weft.core.secret import BYTES, Common, Secret
from weft.core.types import Metrics, Streams, Task, Tensors
from weft.data.words import Words
from weft.federation.part_memory import part_of
from weft.models.resident import Resident
from weft.training.job import Job, LocalResult


class RowTable(Protocol):
    """Tokenized rows, by number: whatever the objective collates."""

    def __len__(self) -> int: ...
    def __getitem__(self, row: int) -> Any: ...


class Examples(NamedTuple):
    """Few-shot examples from a client's own rows: token ids (n,) that precede each of its rows."""

    words: Words
    tokens: np.ndarray


@dataclass(frozen=True)
class View:
    """Some rows of a table. Nothing is copied: ten thousand simulated clients share one table."""

    table: RowTable
    index: Sequence[int] | np.ndarray
    examples: Examples | None = None
    """Few-shot examples before each row."""

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> Any:
        tokens = self.table[int(self.index[row])]
        return tokens if self.examples is None else self.examples.words.row(tokens, self.examples.tokens)


class MemoryStore(Protocol):
    """Where clients keep what they remember between rounds."""

    def load(self, client: str, round: int) -> Streams:
        """Return the client's memory before `round`: the newest of earlier rounds, or an empty one."""
        ...

    def save(self, client: str, round: int, streams: Streams) -> None:
        """Save the client's memory after `round`."""
        ...

    def drop(self, client: str, round: int) -> None:
        """Delete the memory after `round`, if there is one."""
        ...

    def secret(self, client: str) -> Secret:
        """Return the client's secret, the same for the whole run."""
        ...

    def promises(self, client: str) -> Promises:
        """Return what the client has bound itself to in this run."""
        ...

    def common(self, make: Callable[[], bytes]) -> Common:
        """Return what all clients have in common, and the server must not have; `make` makes the key at first use."""
        ...


@dataclass
class InMemory:
    """Client memories in this process, for runs without a directory."""

    memories: dict[str, dict[int, Streams]] = field(default_factory=dict)
    secrets: dict[str, Secret] = field(default_factory=dict)
    words: dict[str, Promises] = field(default_factory=dict)
    shared: list[Common] = field(default_factory=list)

    def load(self, client: str, round: int) -> Streams:
        """Return the newest memory of `round` or before."""
        memories = {
            saved_round: memory for saved_round, memory in self.memories.get(client, {}).items() if saved_round <= round
        }
        return memories[max(memories)] if memories else {}

    def save(self, client: str, round: int, streams: Streams) -> None:
        """Save the memory, and keep the one before it: an Undo of the round goes back to it."""
        memories = self.memories.get(client, {})
        # Of older memories only the newest can still be asked for.
        newest = max((r for r in memories if r < round), default=None)
        self.memories[client] = ({} if newest is None else {newest: memories[newest]}) | {round: streams}

    def drop(self, client: str, round: int) -> None:
        """Forget the memory of `round`."""
        self.memories.get(client, {}).pop(round, None)

    def secret(self, client: str) -> Secret:
        """Return the client's secret, drawn at its first use."""
        return self.secrets.setdefault(client, Secret.random())

    def promises(self, client: str) -> Promises:
        """Return the client's promises."""
        return self.words.setdefault(client, Promises())

    def common(self, make: Callable[[], bytes]) -> Common:
        """Return what all clients have in common, made at its first use."""
        if not self.shared:
            self.shared.append(Common(make()))
        return self.shared[0]


def everything(metrics: Metrics) -> Metrics:
    """Return all metrics: the client reports everything."""
    return metrics


@dataclass(frozen=True)
class ClientData:
    """A client with its rows."""

    name: str
    index: int
    train: View
    held_out: View
    memory: MemoryStore
    step_fraction: float = 1.0
    """Share of its steps that a simulated slow client makes in a round."""
    public: View | None = None
    """Public rows, for a share of every batch."""
    domains: Mapping[int, View] | None = None
    """Its training rows by number of their domain, where a mixture draws from them."""
    reportable: Callable[[Metrics], Metrics] = everything
    """Returns the metrics that the site policy lets the client send."""
    units: np.ndarray | None = None
    """(rows,): the number of the unit of privacy of each training row; None: each row is one."""
    identity: Identity | None = None
    """Its certificate, where the parties have any."""
    least: int = 0
    """Fewest clients whose updates its site policy lets be averaged."""
    export: Callable[[Resident, Tensors], None] | None = None
    """Writes the resident model to disk at the end of the run, with the run's side adapter."""
    inspect: Callable[[Resident, int], None] | None = None
    """Tests the shared model of a round, which is loaded, and raises LeftRun where it fails."""
    begun: Callable[[LocalRule, Task], LocalResult | None] = lambda rule, task: None
    """Returns the result of a task's training that was begun before the task came; None: it was not."""

    def job(
        self,
        personal: Tensors,
        shared: Tensors,
        trained: Collection[str] | None,
        round: int,
        attempt: int = 0,
        inputs: Streams | None = None,
    ) -> Job:
        """Return the client's training of these parameters in a round (`weft.training.job.Job` says what they are).

        Args:
            personal, shared, trained, round, attempt: of the job.
            inputs: what else the training computes from, of the task and of the client's memory. The secret's numbers
                are drawn for these inputs alone: a server that asks once more, from others, gets other noise.
        """

        @cache
        def secret() -> Secret:
            of_run = self.memory.secret(self.name)
            if inputs is None:
                return of_run
            everything = {"shared": shared, "personal": personal, **inputs}
            return Secret(of_run.bytes(BYTES, "inputs", tensors.digest(everything)))

        share, public = self.step_fraction, self.public
        job = Job(personal, shared, trained, self.index, round, share, public, attempt, secret)
        return job._replace(domains=self.domains, units=self.units)

    def party(
        self,
        prefix: str,
        memory: Streams,
        round: int,
        attempt: int = 0,
        told: Tensors | None = None,
        least: int = 0,
    ) -> Party:
        """Return the client as one part of the exchange (codec, privacy, protection) sees it.

        Args:
            prefix: of the part's streams in the client's memory.
            memory: all of the client's memory.
            round: the current round.
            attempt: number of repeated rounds of the run so far.
            told: what the server told the part.
            least: fewest clients of a sum that the run allows; the site policy may ask for more.
        """
        return Party(
            self.name,
            round,
            attempt,
            part_of(memory, prefix),
            partial(self.memory.secret, self.name),
            told or {},
            self.memory.promises(self.name),
            self.identity,
            self.memory.common,
            max(self.least, least),
        )


@dataclass(frozen=True)
class Clients:
    """The population. A ClientData is built on access, so a client that never takes part costs an index only."""

    names: list[str]
    train: Sequence[Sequence[int] | np.ndarray]
    held_out: Sequence[Sequence[int] | np.ndarray]
    table: RowTable
    memory: MemoryStore
    public: Sequence[int] | np.ndarray | None = None
    """Public rows."""
    examples: dict[int, Examples] = field(default_factory=dict)
    """Few-shot examples by the number of the client."""
    first: int = 0
    """Number of the first of these clients in the federation."""
    units: Sequence[np.ndarray] | None = None
    """Of each client (rows,): the number of the unit of privacy of each training row; None: each row is one."""
    num_units: Sequence[int] | None = None
    """The number of units of each client, where its rows are elsewhere; None: `units` says it."""
    domains: Sequence[Mapping[int, Sequence[int]]] | None = None
    """Of each client its training rows by number of their domain; None: no mixture draws from them."""
    reportable: Callable[[Metrics], Metrics] = everything
    export: Callable[[Resident, Tensors], None] | None = None
    identity: Identity | None = None
    least: int = 0
    inspect: Callable[[Resident, int], None] | None = None

    def __len__(self) -> int:
        return len(self.train)

    def __getitem__(self, index: int) -> ClientData:
        if not 0 <= index < len(self.train):
            raise IndexError(index)
        return ClientData(
            self.names[index],
            self.first + index,
            View(self.table, self.train[index], self.examples.get(self.first + index)),
            View(self.table, self.held_out[index], self.examples.get(self.first + index)),
            self.memory,
            public=None if self.public is None else View(self.table, self.public),
            units=None if self.units is None else self.units[index],
            domains=self._domains(index),
            reportable=self.reportable,
            export=self.export,
            identity=self.identity,
            least=self.least,
            inspect=self.inspect,
        )

    def _domains(self, index: int) -> Mapping[int, View] | None:
        if self.domains is None:
            return None
        return {number: View(self.table, rows) for number, rows in self.domains[index].items()}

    def __iter__(self) -> Iterator[ClientData]:
        return (self[index] for index in range(len(self)))

    def has(self, name: str) -> bool:
        """Say whether there is a client of a name."""
        return name in self._places

    def find(self, name: str) -> ClientData:
        """Return the client of a name; KeyError if there is none."""
        return self[self._places[name]]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    def sizes(self) -> np.ndarray:
        """Return the number of training rows of each client, shape (clients,)."""
        return np.array([len(rows) for rows in self.train], dtype=np.int64)
