"""Which rows are one unit of privacy: one example, or all of a client with the same value of a column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from weft.config import RunConfig
from weft.data.documents import Documents
from weft.data.sources import Sources
from weft.errors import DataError
from weft.federation.clients import Clients
from weft.keys.privacy import CLIENT, unit_kind


def cut_units(config: RunConfig, sources: Sources, parts: list[np.ndarray]) -> list[np.ndarray]:
    """Return the examples of each client, of each unit at most max_rows_per_unit; what is left out is counted.

    Rows without a value are left out, too: as a unit of their own they would be several persons, and each alone could
    be a person with other rows.

    Args:
        config: the run.
        sources: have the value of each example.
        parts: numbers of the examples that each client trains on.

    Raises:
        DataError: a client has no row with a value.
    """
    unit, most = config.privacy_unit, config.max_rows_per_unit
    if unit_kind(unit) != "column":
        return parts
    known = [part[[sources.unit_values[int(number)] != "" for number in part]] for part in parts]
    if nobodys := sum(map(len, parts)) - sum(map(len, known)):
        sources.log(f"{nobodys} rows are left out, because they have no {unit}, and nobody can say whose they are.")
    if any(len(part) and not len(rest) for part, rest in zip(parts, known, strict=True)):
        raise DataError(
            f"A client has rows, and none with a {unit}, which privacy_unit protects: fill in the column, or write "
            "--privacy_unit row."
        )
    if most is None:
        return known
    kept = [part[_place_in_unit(_codes(sources, part)) < most] for part in known]
    if cut := sum(map(len, known)) - sum(map(len, kept)):
        sources.log(
            f"{cut} rows are left out, because a unit ({unit}) has at most {most} rows: the first ones are used."
        )
    return kept


def with_units(config: RunConfig, sources: Sources, table: Any, clients: Clients) -> Clients:
    """Return the clients that train, with the unit of each of their rows; arguments as of `units_of_rows`."""
    return replace(clients, units=units_of_rows(config, sources, table, clients.train))


def units_of_rows(
    config: RunConfig, sources: Sources, table: Any, rows: Sequence[Sequence[int] | np.ndarray]
) -> list[np.ndarray] | None:
    """Return (rows,) of each client: the number of the unit of each of its rows; None: each row is one, or none is.

    Args:
        config: the run.
        sources: have the value of each example.
        table: of tokenized rows; a row of plain text is a unit by itself.
        rows: numbers of the rows that each client trains on.
    """
    kind = unit_kind(config.privacy_unit)
    if kind in ("none", CLIENT) or isinstance(table, Documents):
        return None
    examples = [table.rows[np.asarray(of_client)] for of_client in rows]
    if kind == "column":
        return [_codes(sources, part) for part in examples]
    if all(len(np.unique(part)) == len(part) for part in examples):
        return None
    return [np.unique(part, return_inverse=True)[1].reshape(-1) for part in examples]


def unit_counts(units: Sequence[np.ndarray] | None, rows: Sequence[Sequence[int] | np.ndarray]) -> list[int]:
    """Return the number of units of each client, given those of its rows, or None where each row is one."""
    if units is None:
        return [len(of_client) for of_client in rows]
    return [len(np.unique(of_client)) for of_client in units]


def _codes(sources: Sources, part: np.ndarray) -> np.ndarray:
    """Return a number for each of these examples, the same for the same value; DataError where one has none."""
    values = [sources.unit_values[int(number)] for number in part]
    if sources.unit_fault is not None and None in values:
        raise sources.unit_fault
    codes: np.ndarray = np.unique(np.asarray(values, dtype=object).astype(str), return_inverse=True)[1].reshape(-1)
    return codes


def _place_in_unit(codes: np.ndarray) -> np.ndarray:
    """Return for each row how many rows of its unit come before it."""
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    places = np.empty(len(codes), dtype=np.int64)
    places[order] = np.arange(len(codes)) - np.repeat(starts, np.diff([*starts, len(codes)]))
    return places
