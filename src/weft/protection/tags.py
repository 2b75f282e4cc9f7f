"""Tags of numbers that add up as the numbers do: of a sum, they show whose numbers are in it, each once.

A tag of numbers m is <r, m> + s modulo a prime, where r follows from a key and s from the key, the owner's name and the
round (Agrawal and Boneh 2009, doi 10.1007/978-3-642-01957-9_18). Whoever adds without the key can form no sum that
fits: another one passes with a probability of one in the prime for each tag.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from weft.core.secret import Secret

COUNT = 4
"""Tags of a message: one in 2^80 forgeries passes."""
TAG_PRIME = 1_048_573
"""Below 2^20, so that tags of 2^18 clients add up to less than 2^38."""
CHUNK = 1 << 18
"""Numbers at a time: products below 2^40 add up to less than 2^63."""


def tags_of(numbers: np.ndarray, secret: Secret, owners: Iterable[str], about: tuple[str, ...]) -> np.ndarray:
    """Return the tags of a sum, int64 of shape (COUNT,), from 0 and below the prime.

    Args:
        numbers: of the sum, int64 (n,).
        secret: that all owners have, and nobody else.
        owners: whose numbers are in it.
        about: what the sum is of. For the same words an owner has the same numbers, or keeps them encrypted.
    """
    tags = np.zeros(COUNT, dtype=np.int64)
    for owner in owners:
        tags += np.frombuffer(secret.bytes(8 * COUNT, "tag", owner, *about), "<i8") % TAG_PRIME
    for at in range(0, len(numbers), CHUNK):
        piece = numbers[at : at + CHUNK] % TAG_PRIME
        # A row for each number: the first ones are the same, however many follow.
        factors = np.frombuffer(secret.bytes(4 * COUNT * len(piece), "factors", at), "<u4").reshape(-1, COUNT)
        tags += piece @ (factors % TAG_PRIME).astype(np.int64) % TAG_PRIME
    tags %= TAG_PRIME
    return tags
