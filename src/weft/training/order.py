"""Which rows a client trains on in a round, as a function of (seed, client, round) alone."""

from __future__ import annotations

import numpy as np

from weft.core.seeds import generator


def rows_of_round(
    num_rows: int, count: int, *, seed: int, client: int, round: int, purpose: str = "order"
) -> np.ndarray:
    """Return `count` row numbers: a slice of an endless sequence of shuffled passes over the client's rows.

    Round r takes places r * count to (r + 1) * count, so a client that takes part in every round sees every row
    once a pass, and one that skips rounds needs no memory of where it was.
    """
    first = round * count
    parts: list[np.ndarray] = []
    while count > 0:
        epoch, offset = divmod(first, num_rows)
        shuffled = generator(seed, purpose, client, epoch).permutation(num_rows)
        taken = shuffled[offset : offset + count]
        parts.append(taken)
        first += len(taken)
        count -= len(taken)
    return np.concatenate(parts)
