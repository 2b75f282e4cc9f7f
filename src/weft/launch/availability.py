"""Availability traces: the rounds in which each client can be reached."""

from __future__ import annotations

from collections.abc import Sequence

from weft.data.load import whole_rows
from weft.errors import DataError
from weft.federation.sampling import Availability
from weft.registry import nearest


def read_trace(path: str, clients: Sequence[str], period: int | None) -> Availability:
    """Read rows of `client`, `first` and `last` (rounds, from 1): CSV, JSON lines or any kind that data may have.

    Raises:
        DataError: no such file, another column, an unknown client, or a span that ends before it begins.
    """
    spans: dict[str, list[tuple[int, int]]] = {}
    names = set(clients)
    for number, row in enumerate(whole_rows(path), start=1):
        try:
            name, first, last = str(row["client"]), int(row["first"]), int(row["last"])
        except (KeyError, TypeError, ValueError):
            raise DataError(
                f"Row {number} of the trace '{path}' has no client, first and last round: write `client,first,last` "
                "and whole numbers below it."
            ) from None
        if name not in names:
            guess = nearest(name, list(clients))
            hint = f" Did you mean '{guess}'?" if guess else ""
            raise DataError(
                f"Row {number} of the trace '{path}' names the client '{name}', which does not exist.{hint}"
            )
        if not 1 <= first <= last:
            raise DataError(
                f"Row {number} of the trace '{path}' goes from round {first} to {last}: rounds count from 1."
            )
        spans.setdefault(name, []).append((first, last))
    return Availability(spans, period)
