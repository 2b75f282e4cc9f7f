"""Sharing rows out: over clients, into training and held-out rows. Works on row numbers only."""

from __future__ import annotations

import numpy as np

from weft.core.seeds import generator
from weft.errors import DataError


def split_iid(num_rows: int, num_clients: int, *, seed: int) -> list[np.ndarray]:
    """Deal shuffled rows out in parts whose sizes differ by at most one; each part is sorted.

    Raises:
        DataError: more clients than rows.
    """
    if num_clients > num_rows:
        raise DataError(f"There are {num_clients} clients and {num_rows} rows: write --num_clients {num_rows} or less.")
    shuffled = generator(seed, "split").permutation(num_rows)
    return [np.sort(part) for part in np.array_split(shuffled, num_clients)]


def hold_out(rows: np.ndarray, fraction: float, *, seed: int, client: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows to train on and those held out, both sorted.

    A fraction above 0 holds out at least one row, and always leaves one to train on.
    """
    count = min(max(1, round(fraction * len(rows))), len(rows) - 1) if fraction > 0 else 0
    shuffled = generator(seed, "held out", client).permutation(len(rows))
    return rows[np.sort(shuffled[count:])], rows[np.sort(shuffled[:count])]


def sample_rows(num_rows: int, sample: int, *, seed: int) -> np.ndarray:
    """Return the sorted numbers of `sample` rows drawn without replacement, or of all where there are no more."""
    if sample >= num_rows:
        return np.arange(num_rows)
    return np.sort(generator(seed, "sample").choice(num_rows, size=sample, replace=False))
