"""Which numbers of an update are encrypted, and in which order: counts, then those of the tensors that are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np

from weft.core.types import Streams
from weft.protection.ciphertexts import LARGEST, SLOTS
from weft.protection.sums import Grid, Masked, lengths_of, vector_names
from weft.protection.tags import COUNT

WIDTH = int(LARGEST).bit_length() + 1
"""Bits of a modulus that holds the largest sum, with its sign."""
LIMBS = 4
"""Numbers of 16 bits to which a count of 64 bits is taken apart, so that sums of them stay small."""


def grid_of(bound: float, terms: int, heaviest: float) -> Grid:
    """Return what the integers of an encrypted sum stand for; arguments as of `Grid`."""
    return Grid(bound, terms, heaviest, WIDTH, sized=False)


def chosen(like: Streams, patterns: Sequence[str]) -> np.ndarray:
    """Return for each number of an update, bool (d,), whether it is encrypted.

    Args:
        like: streams of an update.
        patterns: globs, or parts of names, of tensors; none: all are.
    """
    names = vector_names(like)
    sizes = [like[stream][name].numel() for stream, name in names]
    kept = [matches(name, patterns) for _, name in names]
    return np.repeat(np.array(kept, dtype=bool), np.array(sizes, dtype=np.intp))


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Say whether a tensor is encrypted; `patterns` as of `chosen`."""
    return not patterns or any(fnmatchcase(name, pattern) or pattern in name for pattern in patterns)


def hidden_of(total: Masked, sealed: np.ndarray) -> np.ndarray:
    """Return what is encrypted of an update, int64: the limbs of the counts, then the chosen numbers."""
    limbs = total.counts.astype("<u8").view("<u2").astype(np.int64)
    return np.concatenate([limbs, total.numbers[sealed].view(np.int64)])


def blocks_of(like: Streams, sealed: np.ndarray) -> int:
    """Return the ciphertexts of an update: of tags, and of what `hidden_of` returns."""
    return -(-(COUNT + LIMBS * lengths_of(like)[1] + int(np.count_nonzero(sealed))) // SLOTS)


def put_together(hidden: np.ndarray, plain: np.ndarray, sealed: np.ndarray, like: Streams) -> Masked:
    """Return a sum.

    Args:
        hidden: the opened sum of what `hidden_of` returns, and any numbers after it.
        plain: sum of the numbers that are not encrypted, uint64.
        sealed: as of `chosen`.
        like: streams of an update.
    """
    _, counted = lengths_of(like)
    limbs, rest = hidden[: LIMBS * counted].astype(np.uint64).reshape(counted, LIMBS), hidden[LIMBS * counted :]
    counts = np.zeros(counted, dtype=np.uint64)
    for place in range(LIMBS):
        counts += limbs[:, place] << np.uint64(16 * place)  # modulo 2^64
    numbers = np.zeros(len(sealed), dtype=np.uint64)
    numbers[sealed] = rest[: np.count_nonzero(sealed)].astype(np.uint64)
    numbers[~sealed] = plain
    return Masked(numbers, counts)
