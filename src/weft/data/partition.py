"""Sampling rows and holding rows out, by row numbers only; `weft.data.splits` deals them to clients."""

from __future__ import annotations

import numpy as np

from weft.core.seeds import generator


def hold_out(
    rows: np.ndarray, fraction: float, *, seed: int, client: int, most: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows to train on and those held out, both sorted.

    A fraction above 0 holds out at least one row, `most` at most, and always leaves one to train on.
    """
    count = min(max(1, round(fraction * len(rows))), len(rows) - 1, most or len(rows)) if fraction > 0 else 0
    if not count:
        return rows, rows[:0]
    shuffled = generator(seed, "held out", client).permutation(len(rows))
    return rows[np.sort(shuffled[count:])], rows[np.sort(shuffled[:count])]


def sample_rows(num_rows: int, sample: int, *, seed: int) -> np.ndarray:
    """Return the sorted numbers of `sample` rows drawn without replacement, or of all where there are no more."""
    if sample >= num_rows:
        return np.arange(num_rows)
    return np.sort(generator(seed, "sample").choice(num_rows, size=sample, replace=False))
