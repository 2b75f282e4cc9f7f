"""Splits of one source among clients: uniform, or skewed by label, column, size, length or topic.

A split reads properties of the rows and returns row numbers; all of its randomness is from the seed.
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
    """The properties of rows that a split may use."""

    lengths: np.ndarray
    """(rows,) tokens of each."""
    labels: Callable[[], Sequence[str] | None]
    """The values of split_column, or the answers if they are few; None if there is neither."""
    texts: Callable[[], Sequence[str]]
    origins: Sequence[str]
    """The file that each row came from, by its name."""
    column: Sequence[str] | None = None
    """The values of split_column; None if it is not set."""

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True)
class SplitSettings:
    """The numbers that set up a split."""

    clients: int
    """How many clients; 0 for splits by a property of the data: one for each of its values."""
    seed: int
    alpha: float = 0.5
    min_rows: int = 1
    shards: int = 2
    rest: int = 0
    """How many clients share the rows of values that have no client."""


class Shares(NamedTuple):
    """The rows of every client, sorted, and the clients' names if the data defines them."""

    rows: list[np.ndarray]
    names: list[str] | None = None
    unassigned: dict[str, int] | None = None
    """Value -> rows that no client gets, for values without a client."""


Split = Callable[[SplitRows, SplitSettings], Shares]
"""A split; the run file sets its further parameters by `split_args`."""


def iid(rows: SplitRows, settings: SplitSettings) -> Shares:
    """Deal shuffled rows in parts whose sizes differ by at most one."""
    _check_enough(rows, settings)
    shuffled = generator(settings.seed, "split").permutation(len(rows))
    return Shares([np.sort(part) for part in np.array_split(shuffled, settings.clients)])


def dirichlet(rows: SplitRows, settings: SplitSettings) -> Shares:
    """Share out the rows of every label by proportions over clients drawn from Dirichlet(alpha).

    As Yurochkin et al. 2019 (arXiv 1905.12022): label by label, so that sizes differ too. Hsu et al. 2019 (1909.06335)
    draw proportions over labels, client by client.

    Raises:
        DataError: no labels, or an alpha that leaves some client under `min_rows` in every draw.
    """
    return _by_classes(rows, settings, _codes(_labels(rows, "dirichlet")))


def length(rows: SplitRows, settings: SplitSettings) -> Shares:
    """As dirichlet, by length: the rows' ten tenths from short to long are the labels."""
    order = np.argsort(rows.lengths, kind="stable")
    tenth = np.empty(len(rows), dtype=np.int64)
    tenth[order] = np.arange(len(rows)) * 10 // max(1, len(rows))
    return _by_classes(rows, settings, tenth)


def cluster(rows: SplitRows, settings: SplitSettings) -> Shares:
    """As dirichlet, by topic: clusters of hashed TF-IDF vectors are the labels, as many as clients, 2 to 20."""
    _check_enough(rows, settings)
    return _by_classes(
        rows, settings, cluster_texts(rows.texts(), min(20, max(2, settings.clients)), seed=settings.seed)
    )


def quantity(rows: SplitRows, settings: SplitSettings) -> Shares:
    """Deal shuffled rows in parts whose sizes are drawn from Dirichlet(alpha)."""
    _check_enough(rows, settings)
    shuffled = generator(settings.seed, "split").permutation(len(rows))

    def draw(random: np.random.Generator) -> list[np.ndarray]:
        return np.split(shuffled, _cut_points(random.dirichlet([settings.alpha] * settings.clients), len(rows)))

    return _draw_until_enough(draw, settings)


def shards(rows: SplitRows, settings: SplitSettings) -> Shares:
    """Sort by label, cut into clients x shards pieces, deal each client `shards` (McMahan et al. 2017, section 3)."""
    pieces = settings.clients * settings.shards
    if len(rows) < pieces:
        raise DataError(
            f"{settings.clients} clients of {settings.shards} shards need {pieces} rows, and there are {len(rows)}: "
            "write fewer --num_clients or --shards_per_client."
        )
    codes = _codes(_labels(rows, "shards"))
    random = generator(settings.seed, "split")
    # Within a label the order is random, so that shards of one label differ between seeds.
    order = np.lexsort((random.permutation(len(rows)), codes))
    pieces_of_rows = np.array_split(order, pieces)
    assignment = random.permutation(pieces).reshape(settings.clients, settings.shards)
    return Shares(
        [np.sort(np.concatenate([pieces_of_rows[piece] for piece in piece_numbers])) for piece_numbers in assignment]
    )


def by(rows: SplitRows, settings: SplitSettings) -> Shares:
    """A client for every value of a column; with a number of clients, for those with the most rows."""
    if rows.column is None:
        raise DataError("The split 'by' needs a column: write --split_column NAME.")
    return _natural(rows.column, settings, "the column has", "values")


def domain(rows: SplitRows, settings: SplitSettings) -> Shares:
    """A client for every file of the folder."""
    if len(set(rows.origins)) < 2:
        raise DataError("The split 'domain' makes a client of every file of a folder: name a folder of several files.")
    return _natural(rows.origins, settings, "the folder has", "files")


def _natural(values: Sequence[str], settings: SplitSettings, subject: str, unit: str) -> Shares:
    rows_of_value: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        rows_of_value.setdefault(value, []).append(row)
    if settings.clients > len(rows_of_value):
        raise DataError(
            f"There are {settings.clients} clients, but {subject} {len(rows_of_value)} {unit}: write "
            f"--num_clients {len(rows_of_value)} or less, or leave it out."
        )
    names = sorted(rows_of_value)
    if settings.clients:
        names = sorted(sorted(names, key=lambda name: -len(rows_of_value[name]))[: settings.clients])
    small = [name for name in names if len(rows_of_value[name]) < settings.min_rows]
    if small:
        raise DataError(
            f"'{small[0]}' has {len(rows_of_value[small[0]])} rows, but split_min_rows is {settings.min_rows}: "
            "write fewer --num_clients (those with the most rows are taken), or a smaller --split_min_rows."
        )
    unassigned = {name: len(members) for name, members in sorted(rows_of_value.items()) if name not in names}
    client_rows = [np.array(rows_of_value[name]) for name in names]
    if not settings.rest:
        return Shares(client_rows, names, unassigned)
    return Shares(
        [*client_rows, *_rest(rows_of_value, unassigned, settings)], [*names, *_rest_names(names, settings.rest)]
    )


def _rest(rows_of_value: dict[str, list[int]], unassigned: dict[str, int], settings: SplitSettings) -> list[np.ndarray]:
    """Deal the rows of values without a client, at random, to the clients of the rest."""
    if not unassigned:
        raise DataError(
            f"clients_of_rest is {settings.rest}, but each of the {len(rows_of_value)} values has a client: write "
            "fewer --num_clients, or leave out --clients_of_rest."
        )
    rows = np.array([row for name in unassigned for row in rows_of_value[name]])
    most = len(rows) // settings.min_rows
    if settings.rest > most:
        raise DataError(
            f"clients_of_rest is {settings.rest}, but {len(rows)} rows are left for them"
            + (f" and split_min_rows is {settings.min_rows}" if settings.min_rows > 1 else "")
            + (f": write {most} or less." if most else ": leave out --clients_of_rest, or write fewer --num_clients.")
        )
    shuffled = rows[generator(settings.seed, "split", "rest").permutation(len(rows))]
    return [np.sort(part) for part in np.array_split(shuffled, settings.rest)]


def _rest_names(names: list[str], count: int) -> list[str]:
    rest_names = ["rest"] if count == 1 else [f"rest_{number}" for number in range(count)]
    if clash := set(rest_names) & set(names):
        raise DataError(
            f"A value is called '{sorted(clash)[0]}', as a client of the rest would be: leave out --clients_of_rest, "
            "or rename the value."
        )
    return rest_names


def _labels(rows: SplitRows, split: str) -> Sequence[str]:
    labels = rows.labels()
    if labels is None:
        raise DataError(
            f"The split '{split}' needs labels, and there are too many distinct answers to serve as labels: write "
            "--split_column NAME, or choose --split_strategy cluster, length or quantity."
        )
    return labels


def _codes(labels: Sequence[str]) -> np.ndarray:
    return np.unique(np.asarray(labels, dtype=object).astype(str), return_inverse=True)[1].reshape(-1)


def _by_classes(rows: SplitRows, settings: SplitSettings, codes: np.ndarray) -> Shares:
    """Share out every class by proportions of its own."""
    _check_enough(rows, settings)
    random = generator(settings.seed, "split")
    classes = [random.permutation(np.flatnonzero(codes == code)) for code in np.unique(codes)]

    def draw(random: np.random.Generator) -> list[np.ndarray]:
        parts = [
            np.split(members, _cut_points(random.dirichlet([settings.alpha] * settings.clients), len(members)))
            for members in classes
        ]
        return [np.concatenate(members) for members in zip(*parts, strict=True)]

    return _draw_until_enough(draw, settings)


def _draw_until_enough(draw: Callable[[np.random.Generator], list[np.ndarray]], settings: SplitSettings) -> Shares:
    """Repeat a draw until every client has at least `min_rows` rows; DataError after `ATTEMPTS` draws."""
    for attempt in range(ATTEMPTS):
        parts = draw(generator(settings.seed, "split", "draw", attempt))
        if min(len(part) for part in parts) >= settings.min_rows:
            return Shares([np.sort(part) for part in parts])
    raise DataError(
        f"With split_alpha {settings.alpha:g} some of {settings.clients} clients had fewer than {settings.min_rows} "
        f"rows in each of {ATTEMPTS} draws: write a larger --split_alpha, fewer --num_clients, or a smaller "
        "--split_min_rows."
    )


def _cut_points(shares: np.ndarray, count: int) -> np.ndarray:
    """Return the bounds that cut `count` rows into parts of about these shares."""
    # With a very small alpha all gamma draws may underflow, and numpy's Dirichlet sample is NaN.
    return (
        np.floor(np.cumsum(np.nan_to_num(shares, nan=1 / len(shares)))[:-1] * count + 0.5)
        .astype(np.int64)
        .clip(0, count)
    )


def _check_enough(rows: SplitRows, settings: SplitSettings) -> None:
    if settings.clients * settings.min_rows > len(rows):
        most = len(rows) // settings.min_rows
        each = f" of at least {settings.min_rows} rows" if settings.min_rows > 1 else ""
        raise DataError(
            f"There are {settings.clients} clients{each} and {len(rows)} rows: write --num_clients {most} or less."
        )
