"""How one source is dealt to clients: alike, or skewed by label, column, size, length or topic.

A split works on what is known of the rows and returns row numbers; it draws from the seed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from weft.core.seeds import generator
from weft.data.topics import cluster_texts
from weft.errors import DataError

ATTEMPTS = 200


@dataclass(frozen=True)
class SplitRows:
    """What a split may look at."""

    lengths: np.ndarray
    """(rows,) tokens of each."""
    labels: Callable[[], Sequence[str] | None]
    """The column that was named, or the answers where they are few; None where there is neither."""
    texts: Callable[[], Sequence[str]]
    origins: Sequence[str]
    """The file that each row came from, by its name."""
    column: Sequence[str] | None = None
    """The values of the column that was named."""

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True)
class How:
    """The numbers of a split."""

    clients: int
    """0, for splits that are given by the data: as many as there are."""
    seed: int
    alpha: float = 0.5
    min_rows: int = 1
    shards: int = 2
    rest: int = 0
    """Clients to which the rows of values are dealt that get no client of their own."""


class Shares(NamedTuple):
    """The rows of every client, sorted, and the clients' names where the data gives them."""

    rows: list[np.ndarray]
    names: list[str] | None = None
    left: dict[str, int] | None = None
    """Values of which no client was made, and how many rows each has that go to nobody."""


Split = Callable[[SplitRows, How], Shares]
"""What deals rows; its further parameters are its own, and are given by `split_args`."""


def iid(rows: SplitRows, how: How) -> Shares:
    """Deal shuffled rows in parts whose sizes differ by at most one."""
    _enough(rows, how)
    shuffled = generator(how.seed, "split").permutation(len(rows))
    return Shares([np.sort(part) for part in np.array_split(shuffled, how.clients)])


def dirichlet(rows: SplitRows, how: How) -> Shares:
    """Share out the rows of every label by proportions over clients drawn from Dirichlet(alpha).

    As Yurochkin et al. 2019 (arXiv 1905.12022): label by label, so that sizes differ too. Hsu et al. 2019 (1909.06335)
    draw proportions over labels, client by client.

    Raises:
        DataError: no labels, or an alpha that leaves some client under `min_rows` in every draw.
    """
    return _by_classes(rows, how, _codes(_labels(rows, "dirichlet")))


def length(rows: SplitRows, how: How) -> Shares:
    """As dirichlet, by length: the rows' ten tenths from short to long are the labels."""
    order = np.argsort(rows.lengths, kind="stable")
    tenth = np.empty(len(rows), dtype=np.int64)
    tenth[order] = np.arange(len(rows)) * 10 // max(1, len(rows))
    return _by_classes(rows, how, tenth)


def cluster(rows: SplitRows, how: How) -> Shares:
    """As dirichlet, by topic: clusters of hashed TF-IDF vectors are the labels, as many as clients, 2 to 20."""
    _enough(rows, how)
    return _by_classes(rows, how, cluster_texts(rows.texts(), min(20, max(2, how.clients)), seed=how.seed))


def quantity(rows: SplitRows, how: How) -> Shares:
    """Deal shuffled rows in parts whose sizes are drawn from Dirichlet(alpha)."""
    _enough(rows, how)
    shuffled = generator(how.seed, "split").permutation(len(rows))

    def draw(random: np.random.Generator) -> list[np.ndarray]:
        return np.split(shuffled, _cuts(random.dirichlet([how.alpha] * how.clients), len(rows)))

    return _drawn(draw, how)


def shards(rows: SplitRows, how: How) -> Shares:
    """Sort by label, cut into clients x shards pieces, deal each client `shards` (McMahan et al. 2017, section 3)."""
    pieces = how.clients * how.shards
    if len(rows) < pieces:
        raise DataError(
            f"{how.clients} clients of {how.shards} shards need {pieces} rows, and there are {len(rows)}: write fewer "
            "--num_clients or --shards_per_client."
        )
    codes = _codes(_labels(rows, "shards"))
    random = generator(how.seed, "split")
    order = np.lexsort((random.permutation(len(rows)), codes))
    cut = np.array_split(order, pieces)
    dealt = random.permutation(pieces).reshape(how.clients, how.shards)
    return Shares([np.sort(np.concatenate([cut[piece] for piece in own])) for own in dealt])


def by(rows: SplitRows, how: How) -> Shares:
    """A client for every value of a column; with a number of clients, for those with the most rows."""
    if rows.column is None:
        raise DataError("The split 'by' goes by a column: write --split_column NAME.")
    return _natural(rows.column, how, "the column has", "values")


def domain(rows: SplitRows, how: How) -> Shares:
    """A client for every file of the folder."""
    if len(set(rows.origins)) < 2:
        raise DataError("The split 'domain' makes a client of every file of a folder: name a folder of several files.")
    return _natural(rows.origins, how, "the folder has", "files")


def _natural(values: Sequence[str], how: How, where: str, what: str) -> Shares:
    found: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        found.setdefault(value, []).append(row)
    if how.clients > len(found):
        raise DataError(
            f"There are {how.clients} clients, but {where} {len(found)} {what}: write --num_clients {len(found)} or "
            "less, or leave it out."
        )
    names = sorted(found)
    if how.clients:
        names = sorted(sorted(names, key=lambda name: -len(found[name]))[: how.clients])
    small = [name for name in names if len(found[name]) < how.min_rows]
    if small:
        raise DataError(
            f"'{small[0]}' has {len(found[small[0]])} rows, but split_min_rows is {how.min_rows}: write fewer "
            "--num_clients (those with the most rows are taken), or a smaller --split_min_rows."
        )
    left = {name: len(own) for name, own in sorted(found.items()) if name not in names}
    own_rows = [np.array(found[name]) for name in names]
    if not how.rest:
        return Shares(own_rows, names, left)
    return Shares([*own_rows, *_rest(found, left, how)], [*names, *_rest_names(names, how.rest)])


def _rest(found: dict[str, list[int]], left: dict[str, int], how: How) -> list[np.ndarray]:
    """Deal the rows of values without a client, at random, to the clients of the rest."""
    if not left:
        raise DataError(
            f"clients_of_rest is {how.rest}, but each of the {len(found)} values has a client: write fewer "
            "--num_clients, or leave out --clients_of_rest."
        )
    rows = np.array([row for name in left for row in found[name]])
    most = len(rows) // how.min_rows
    if how.rest > most:
        raise DataError(
            f"clients_of_rest is {how.rest}, but {len(rows)} rows are left for them"
            + (f" and split_min_rows is {how.min_rows}" if how.min_rows > 1 else "")
            + (f": write {most} or less." if most else ": leave out --clients_of_rest, or write fewer --num_clients.")
        )
    shuffled = rows[generator(how.seed, "split", "rest").permutation(len(rows))]
    return [np.sort(part) for part in np.array_split(shuffled, how.rest)]


def _rest_names(names: list[str], count: int) -> list[str]:
    made = ["rest"] if count == 1 else [f"rest_{number}" for number in range(count)]
    if taken := set(made) & set(names):
        raise DataError(
            f"A value is called '{sorted(taken)[0]}', as a client of the rest would be: leave out --clients_of_rest, "
            "or rename the value."
        )
    return made


def _labels(rows: SplitRows, split: str) -> Sequence[str]:
    labels = rows.labels()
    if labels is None:
        raise DataError(
            f"The split '{split}' goes by labels, and the answers are too many to be some: write --split_column NAME, "
            "or choose --split_strategy cluster, length or quantity."
        )
    return labels


def _codes(labels: Sequence[str]) -> np.ndarray:
    return np.unique(np.asarray(labels, dtype=object).astype(str), return_inverse=True)[1].reshape(-1)


def _by_classes(rows: SplitRows, how: How, codes: np.ndarray) -> Shares:
    """Share out every class by proportions of its own."""
    _enough(rows, how)
    random = generator(how.seed, "split")
    classes = [random.permutation(np.flatnonzero(codes == code)) for code in np.unique(codes)]

    def draw(random: np.random.Generator) -> list[np.ndarray]:
        parts = [np.split(own, _cuts(random.dirichlet([how.alpha] * how.clients), len(own))) for own in classes]
        return [np.concatenate(own) for own in zip(*parts, strict=True)]

    return _drawn(draw, how)


def _drawn(draw: Callable[[np.random.Generator], list[np.ndarray]], how: How) -> Shares:
    """Draw until every client has its least rows."""
    for attempt in range(ATTEMPTS):
        parts = draw(generator(how.seed, "split", "draw", attempt))
        if min(len(part) for part in parts) >= how.min_rows:
            return Shares([np.sort(part) for part in parts])
    raise DataError(
        f"With split_alpha {how.alpha:g} some of {how.clients} clients had fewer than {how.min_rows} rows in each of "
        f"{ATTEMPTS} draws: write a larger --split_alpha, fewer --num_clients, or a smaller --split_min_rows."
    )


def _cuts(shares: np.ndarray, count: int) -> np.ndarray:
    """Return where `count` rows are cut so that the parts have about these shares."""
    return (
        np.floor(np.cumsum(np.nan_to_num(shares, nan=1 / len(shares)))[:-1] * count + 0.5)
        .astype(np.int64)
        .clip(0, count)
    )


def _enough(rows: SplitRows, how: How) -> None:
    if how.clients * how.min_rows > len(rows):
        most = len(rows) // how.min_rows
        each = f" of at least {how.min_rows} rows" if how.min_rows > 1 else ""
        raise DataError(
            f"There are {how.clients} clients{each} and {len(rows)} rows: write --num_clients {most} or less."
        )
