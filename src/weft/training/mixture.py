"""Mixtures: how many of the rows that a client trains on in a round are of which domain, and which rows these are.

Shares are given, or follow from the sizes of a client's domains, or from how much a domain has yet to give: the loss
beyond that of a small model that was trained on it. A client mixes the domains that it has; shares of others fall to
these. All is a function of (seed, client, round) and, by excess loss, of the parameters that the round begins from, so
nothing is stored and a resumed run draws the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from weft.core.seeds import generator
from weft.core.types import Metrics
from weft.models.layout import Row
from weft.training.order import rows_from

PREFIX = "mixture"
"""Begins the names of counts: `mixture/NUMBER` is the rows that were drawn of a domain."""
SMOOTHING = 1e-3
"""The share that is dealt evenly, so that no domain is forgotten (DoReMi's c)."""
PROBED = 16
"""Rows of a domain that its loss is taken of."""
BLOCK = 64
"""Rounds whose draws are added up at once."""


class Table(Protocol):
    """The rows of a client in one domain."""

    def __len__(self) -> int: ...
    def __getitem__(self, row: int) -> Row: ...


@dataclass(frozen=True)
class Draw:
    """The rows that a client draws in a round, in their order: a table."""

    tables: Mapping[int, Table]
    """The client's rows by number of their domain."""
    domains: np.ndarray
    """(count,) the number of a row's domain in the run's list of domains."""
    rows: np.ndarray
    """(count,) its number among the client's rows of this domain."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Row:
        return self.tables[int(self.domains[place])][int(self.rows[place])]

    def counts(self, used: int) -> Metrics:
        """Return the counts of the first `used` rows, by domain."""
        numbers, counts = np.unique(self.domains[:used], return_counts=True)
        return {f"{PREFIX}/{number}": float(count) for number, count in zip(numbers, counts, strict=True)}


@dataclass(frozen=True)
class Mixture:
    """The rule by which shares are chosen.

    Without shares, those of a client's domains are proportional to rows^(1 / temperature) (multilingual BERT's and T5's
    sampling; Raffel et al. 2020, arXiv 1910.10683, section 3.5.2). With reference losses r_d, these p_d are weighed by
    the excess loss of the round's model:

        a_d = p_d exp(strength max(l_d - r_d, 0)) / sum,    share_d = (1 - c) a_d + c / D

    Excess loss against a small reference model and c are DoReMi's (Xie et al. 2023, arXiv 2305.10429, algorithm 1).
    DoReMi multiplies its weights step by step, for a small proxy model, and uses their mean; here a_d is the best
    answer to sum_d a_d excess_d - KL(a || p) / strength at the model of the round. So nothing is remembered, and a
    domain on which the model has reached the reference returns to p_d.
    """

    shares: tuple[float, ...] = ()
    """By number of the domain."""
    public: int = -1
    """The number of the public text among these domains, which every client has: its share stays, and the others' are
    divided anew where a client lacks some of them; -1: there is none."""
    temperature: float = 1.0
    reference: tuple[float, ...] = ()
    """Losses (nats a token), by number of the domain."""
    strength: float = 1.0

    def shares_of(self, domains: Mapping[int, Table], loss: Callable[[Table], float]) -> np.ndarray:
        """Return the shares (domains,) of a client's domains, in the order of their numbers; they add up to 1."""
        numbers = sorted(domains)
        if self.shares:
            given = np.array([self.shares[number] for number in numbers])
            own = np.array([number != self.public for number in numbers])
            if own.any():
                # Divided first: the inverse of a share such as 1e-320 is infinite.
                given[own] = given[own] / given[own].sum() * (1 - given[~own].sum())
            return np.asarray(given / given.sum())
        sizes = np.array([len(domains[number]) for number in numbers], dtype=np.float64)
        prior = sizes ** (1 / self.temperature)
        prior /= prior.sum()
        if not self.reference:
            return np.asarray(prior)
        excess = np.array([max(loss(domains[number]) - self.reference[number], 0.0) for number in numbers])
        # The largest exponent is taken off, so that none overflows.
        weighed = prior * np.exp(self.strength * (excess - excess.max()))
        return np.asarray((1 - SMOOTHING) * weighed / weighed.sum() + SMOOTHING / len(numbers))

    def draw(
        self, domains: Mapping[int, Table], shares: np.ndarray, count: int, seed: int, client: int, round: int
    ) -> Draw:
        """Return the `count` rows of a round: domains by independent draws, the rows of each in shuffled passes.

        With shares that stay, the passes of a domain go on where the round before left them, so that each row of it
        comes once a pass. By excess loss what earlier rounds drew is not known, and a round begins at a place that no
        earlier one has reached.
        """
        numbers = sorted(domains)
        counts = _counts(seed, client, round, count, tuple(shares.tolist()))
        labels = generator(seed, "mixture places", client, round).permutation(
            np.repeat(np.arange(len(numbers)), counts)
        )
        if self.reference:
            before = np.full(len(numbers), round * count)
        else:
            before = _before(seed, client, round, count, tuple(shares.tolist()))
        rows = np.zeros(count, dtype=np.int64)
        for place, number in enumerate(numbers):
            if counts[place]:
                rows[labels == place] = rows_from(
                    len(domains[number]),
                    int(before[place]),
                    int(counts[place]),
                    seed=seed,
                    client=client,
                    purpose=f"order of domain {number}",
                )
        return Draw(domains, np.array(numbers)[labels], rows)


def probed(table: Table) -> list[Row]:
    """Return the rows of a domain that its loss is taken of: `PROBED` at most, evenly spaced."""
    count = min(PROBED, len(table))
    return [table[place * len(table) // count] for place in range(count)]


def _counts(seed: int, client: int, round: int, count: int, shares: tuple[float, ...]) -> np.ndarray:
    drawn: np.ndarray = generator(seed, "mixture", client, round).multinomial(count, shares)
    return drawn


def _before(seed: int, client: int, round: int, count: int, shares: tuple[float, ...]) -> np.ndarray:
    """Return how many rows of each domain all earlier rounds drew."""
    total = np.zeros(len(shares), dtype=np.int64)
    for block in range(round // BLOCK):
        total += _block(seed, client, block, count, shares)
    for earlier in range(round // BLOCK * BLOCK, round):
        total += _counts(seed, client, earlier, count, shares)
    return total


@lru_cache(maxsize=4096)
def _block(seed: int, client: int, block: int, count: int, shares: tuple[float, ...]) -> np.ndarray:
    rounds = range(block * BLOCK, (block + 1) * BLOCK)
    return np.asarray(np.sum([_counts(seed, client, round, count, shares) for round in rounds], axis=0))
