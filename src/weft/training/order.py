"""The rows that a client trains on in a round, as a function of (seed, client, round) alone."""

from __future__ import annotations

import numpy as np

from weft.core.seeds import derive, generator

LARGE = 1 << 20
"""Number of rows from which an order is computed place by place, rather than drawn as a whole permutation."""


def rows_of_round(
    num_rows: int, count: int, *, seed: int, client: int, round: int, purpose: str = "order"
) -> np.ndarray:
    """Return `count` row numbers: a slice of an endless sequence of shuffled passes over the client's rows.

    Round r takes places r * count to (r + 1) * count, so a client that takes part in every round trains on every row
    once per pass, and no client needs to store its position.
    """
    return rows_from(num_rows, round * count, count, seed=seed, client=client, purpose=purpose)


def rows_from(num_rows: int, first: int, count: int, *, seed: int, client: int, purpose: str) -> np.ndarray:
    """Return the row numbers in the `count` places from `first` on of that endless sequence."""
    parts: list[np.ndarray] = []
    while count > 0:
        epoch, offset = divmod(first, num_rows)
        if num_rows <= LARGE:
            rows = generator(seed, purpose, client, epoch).permutation(num_rows)[offset : offset + count]
        else:
            places = np.arange(offset, min(offset + count, num_rows), dtype=np.uint64)
            rows = shuffled_places(places, num_rows, derive(seed, purpose, client, epoch))
        parts.append(rows)
        first += len(rows)
        count -= len(rows)
    return np.concatenate(parts)


def shuffled_places(places: np.ndarray, size: int, key: int) -> np.ndarray:
    """Return the images (int64) of places (uint64) under a pseudo-random permutation of `size` numbers.

    A Feistel network of four rounds on the next even power of two, in constant memory; images of `size` or more pass
    through it again (cycle walking, Black and Rogaway 2002).
    """
    half = np.uint64(((size - 1).bit_length() + 1) // 2)
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = [np.uint64(derive(key, "feistel", number)) for number in range(4)]
    images = places.copy()
    outside = np.arange(len(images))
    while len(outside):
        left, right = images[outside] >> half, images[outside] & mask
        for each in keys:
            left, right = right, left ^ (_mixed(right + each) & mask)
        images[outside] = (left << half) | right
        outside = outside[images[outside] >= size]
    return images.astype(np.int64)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Return the values with their bits mixed (the finalizer of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
