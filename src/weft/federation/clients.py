"""Clients as data: rows, memory and secret of each, which no other party sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from weft.core.exchange import Party
from weft.core.secret import Secret
from weft.core.types import Metrics, Streams, Tensors
from weft.data.words import Words
from weft.federation.part_memory import part_of
from weft.models.resident import Resident


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


@dataclass
class InMemory:
    """Client memories in this process, for runs without a directory."""

    memories: dict[str, dict[int, Streams]] = field(default_factory=dict)
    secrets: dict[str, Secret] = field(default_factory=dict)

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
    reportable: Callable[[Metrics], Metrics] = everything
    """Returns the metrics that the site policy lets the client send."""
    export: Callable[[Resident, Tensors], None] | None = None
    """Writes the resident model to disk at the end of the run, with the run's side adapter."""

    def party(self, prefix: str, memory: Streams, round: int, attempt: int = 0) -> Party:
        """Return the client as one part of the exchange (codec, privacy, protection) sees it.

        Args:
            prefix: of the part's streams in the client's memory.
            memory: all of the client's memory.
            round: the current round.
            attempt: number of repeated rounds of the run so far.
        """
        secret = partial(self.memory.secret, self.name)
        return Party(self.name, round, attempt, part_of(memory, prefix), secret)


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
    reportable: Callable[[Metrics], Metrics] = everything
    export: Callable[[Resident, Tensors], None] | None = None

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
            reportable=self.reportable,
            export=self.export,
        )

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
