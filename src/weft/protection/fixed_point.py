"""Numbers as integers modulo 2^32 that can be added under masks, and back.

A value x of at most `bound` becomes round(x * scale) modulo 2^32, with scale = 2^31 / (terms * bound), so that a sum of
`terms` values cannot wrap. A decoded sum differs from the sum of the values by at most terms / (2 * scale).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

CHUNK = 1 << 20
"""Values that are converted at a time: what is computed in float64 takes eight bytes each."""


class Range(NamedTuple):
    """What the integers stand for."""

    bound: float
    """Largest absolute value of a term."""
    terms: int
    """Most terms of a sum."""

    @property
    def scale(self) -> float:
        """Integers for 1.0; half an integer a term is left for rounding."""
        return float((2**31 - 1 - self.terms) / (self.terms * self.bound))


def encode(values: np.ndarray, within: Range) -> tuple[np.ndarray, int]:
    """Return the integers (n,) uint32 of finite values (n,), and how many were cut to the bound."""
    out = np.empty(len(values), dtype=np.uint32)
    cut = 0
    for at in range(0, len(values), CHUNK):
        piece = values[at : at + CHUNK].astype(np.float64)
        cut += int(np.count_nonzero(np.abs(piece) > within.bound))
        np.clip(piece, -within.bound, within.bound, out=piece)
        piece *= within.scale
        out[at : at + CHUNK] = np.rint(piece).astype(np.int64).astype(np.uint32)  # modulo 2^32
    return out, cut


def decode(total: np.ndarray, within: Range) -> np.ndarray:
    """Return the values (n,) float64 of a sum (n,) uint32."""
    values: np.ndarray = total.view(np.int32).astype(np.float64)
    values /= within.scale
    return values
