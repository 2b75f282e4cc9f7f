"""Randomness as a function of what it is for.

Every random choice is drawn from a generator made anew from (seed, round, client, purpose), so that there is no
generator state to save, nothing depends on the order in which clients run, and a resumed run draws what the
uninterrupted one would have drawn.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *words: str | int) -> int:
    """Return a 63-bit number that depends on the seed and on every word, and on nothing else."""
    # The type is part of the text: round 1 and a client named "1" give different numbers.
    text = "\x1f".join([str(seed), *(f"{type(word).__name__}:{word}" for word in words)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *words: str | int) -> np.random.Generator:
    """Return a numpy generator (Philox, counter based) for one purpose."""
    return np.random.Generator(np.random.Philox(derive(seed, *words)))
