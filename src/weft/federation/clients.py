"""What a client owns and nobody else sees: its rows, its memory, its secret."""

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


class Shown(NamedTuple):
    """Examples of a client's own, as tokens that stand before its rows, and what puts them there."""

    words: Words
    tokens: np.ndarray


@dataclass(frozen=True)
class View:
    """Some rows of a table, which is not copied: ten thousand clients share one."""

    table: RowTable
    index: Sequence[int] | np.ndarray
    shown: Shown | None = None
    """What stands before each of them."""

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> Any:
        found = self.table[int(self.index[row])]
        return found if self.shown is None else self.shown.words.row(found, self.shown.tokens)


class MemoryStore(Protocol):
    """Where clients keep what they remember between rounds."""

    def load(self, client: str, round: int) -> Streams:
        """Return what the client remembers before `round`: the newest of earlier rounds, or nothing."""
        ...

    def save(self, client: str, round: int, streams: Streams) -> None:
        """Keep what the client remembers after `round`."""
        ...

    def drop(self, client: str, round: int) -> None:
        """Forget what was kept after `round`, if anything was."""
        ...

    def secret(self, client: str) -> Secret:
        """Return the client's secret, the same for the whole run."""
        ...


@dataclass
class InMemory:
    """Client memories in this process, for runs without a directory."""

    kept: dict[str, dict[int, Streams]] = field(default_factory=dict)
    secrets: dict[str, Secret] = field(default_factory=dict)

    def load(self, client: str, round: int) -> Streams:
        """Return the newest memory of `round` or before."""
        memories = {written: memory for written, memory in self.kept.get(client, {}).items() if written <= round}
        return memories[max(memories)] if memories else {}

    def save(self, client: str, round: int, streams: Streams) -> None:
        """Keep the memory beside the one before, which an Undo may ask for."""
        former = self.kept.get(client, {})
        newest = max((r for r in former if r < round), default=None)
        self.kept[client] = ({} if newest is None else {newest: former[newest]}) | {round: streams}

    def drop(self, client: str, round: int) -> None:
        """Forget the memory of `round`."""
        self.kept.get(client, {}).pop(round, None)

    def secret(self, client: str) -> Secret:
        """Return the client's secret, drawn when it is first asked for."""
        return self.secrets.setdefault(client, Secret.random())


def everything(metrics: Metrics) -> Metrics:
    """Return all metrics: nothing is kept back."""
    return metrics


@dataclass(frozen=True)
class ClientData:
    """A client with its rows."""

    name: str
    index: int
    train: View
    held: View
    memory: MemoryStore
    step_fraction: float = 1.0
    """Of its steps, how many it makes in the time that it is given (a simulation's slow client)."""
    public: View | None = None
    """Rows that everybody has, for a share of every batch."""
    reportable: Callable[[Metrics], Metrics] = everything
    """Returns what of its metrics may be sent."""
    export: Callable[[Resident, Tensors], None] | None = None
    """Writes down the model in place at the end of the run, with the side adapter that came with it."""

    def party(self, prefix: str, memory: Streams, round: int, attempt: int = 0) -> Party:
        """Return the client as one part of the exchange sees it.

        Args:
            prefix: of the part's memory.
            memory: all that the client remembers.
            round: that is under way.
            attempt: how often rounds were begun in vain.
        """
        secret = partial(self.memory.secret, self.name)
        return Party(self.name, round, attempt, part_of(memory, prefix), secret)


@dataclass(frozen=True)
class Clients:
    """The population: sites are made when asked for, so that clients which never take part cost an index only."""

    names: list[str]
    train: Sequence[Sequence[int] | np.ndarray]
    held: Sequence[Sequence[int] | np.ndarray]
    table: RowTable
    memory: MemoryStore
    public: Sequence[int] | np.ndarray | None = None
    """Rows that everybody has."""
    shown: dict[int, Shown] = field(default_factory=dict)
    """Examples that a client, by its number, puts before its rows."""
    first: int = 0
    """The number that the first of them has in the federation."""
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
            View(self.table, self.train[index], self.shown.get(self.first + index)),
            View(self.table, self.held[index], self.shown.get(self.first + index)),
            self.memory,
            public=None if self.public is None else View(self.table, self.public),
            reportable=self.reportable,
            export=self.export,
        )

    def __iter__(self) -> Iterator[ClientData]:
        return (self[index] for index in range(len(self)))

    def find(self, name: str) -> ClientData:
        """Return the site of a name; KeyError if there is none."""
        return self[self._places[name]]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    def sizes(self) -> np.ndarray:
        """Return (clients,): the training rows of each."""
        return np.array([len(rows) for rows in self.train], dtype=np.int64)
