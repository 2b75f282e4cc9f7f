"""Numbers as integers that can be added under masks modulo a power of two, and back.

A value x of at most `bound` becomes round(x * scale) modulo 2^32 or 2^64, with a scale such that a sum of `terms`
values cannot wrap. In `bits` bits it becomes one of 2^bits - 1 integers, rounded at random to one of its two neighbours
so that the mean over draws is x, and the modulus is the smallest power of two that holds the sum.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

CHUNK = 1 << 17
"""Values that are converted at a time: what is computed in float64 takes eight bytes each, and fits into a cache."""
PACKED = 1 << 15
"""Numbers that are packed at a time, a multiple of eight; so many fill whole bytes at any width."""
WHOLE, WIDE = 32, 64
"""Bits of the modulus where numbers are not of few bits, and where their sizes are not known."""


class Range(NamedTuple):
    """What the integers stand for."""

    bound: float
    """Largest absolute value of a term."""
    terms: int
    """Most terms of a sum."""
    bits: int = WHOLE
    """Of a term, if they are few; WHOLE or more: of the modulus."""

    @property
    def few(self) -> bool:
        """Whether a term has few bits."""
        return self.bits < WHOLE

    @property
    def levels(self) -> float:
        """The integer of the bound; where terms do not have few bits, half an integer a term is left for rounding."""
        if self.few:
            return float(2 ** (self.bits - 1) - 1)
        most: float = 2**31 - 1 - self.terms if self.bits == WHOLE else 2 ** (self.bits - 2)
        return most / self.terms

    @property
    def scale(self) -> float:
        """Integers for 1.0."""
        return float(self.levels / self.bound)

    @property
    def width(self) -> int:
        """Bits of the modulus."""
        return 1 + (self.terms * int(self.levels)).bit_length() if self.few else self.bits


def kind_of(width: int) -> np.dtype[np.unsignedinteger[np.typing.NBitBase]]:
    """Return the unsigned type in which numbers of so many bits are kept."""
    return np.dtype("<u2" if width <= 16 else "<u4" if width <= WHOLE else "<u8")


def encode(values: np.ndarray, within: Range, chance: np.random.Generator | None = None) -> tuple[np.ndarray, int]:
    """Return the integers (n,) of finite values (n,), and how many were cut to the bound.

    Args:
        values: of one client.
        within: their range.
        chance: rounds numbers of few bits; not needed otherwise.
    """
    out = np.empty(len(values), dtype=kind_of(within.width))
    cut = 0
    for at in range(0, len(values), CHUNK):
        piece = values[at : at + CHUNK].astype(np.float64)
        cut += int(np.count_nonzero(np.abs(piece) > within.bound))
        np.clip(piece, -within.bound, within.bound, out=piece)
        piece *= within.scale
        if within.few and chance is not None:
            piece += chance.random(len(piece), dtype=np.float32)
            np.clip(np.floor(piece, out=piece), -within.levels, within.levels, out=piece)
        else:
            np.rint(piece, out=piece)
        out[at : at + CHUNK] = piece.astype(np.int64).astype(out.dtype)  # modulo its size
    return out, cut


def decode(total: np.ndarray, within: Range) -> np.ndarray:
    """Return the values (n,) float64 of a sum (n,) of integers."""
    spare = 8 * total.itemsize - within.width
    signed = (total << spare).view(f"<i{total.itemsize}") >> spare  # the sign is the highest bit of the modulus
    values: np.ndarray = signed.astype(np.float64)
    values /= within.scale
    return values


def packed_size(count: int, width: int) -> int:
    """Return the bytes of numbers of so many bits."""
    return -(-count * width // 8)


def pack(numbers: np.ndarray, width: int) -> Tensor:
    """Return the lowest bits of numbers (n,) as bytes, uint8 of shape (packed_size,)."""
    whole = 8 * numbers.itemsize
    if width == whole:
        return torch.from_numpy(numbers.view(np.uint8))
    out = np.empty(packed_size(len(numbers), width), dtype=np.uint8)
    for at in range(0, len(numbers), PACKED):
        piece = numbers[at : at + PACKED].view(np.uint8)
        bits = np.unpackbits(piece, bitorder="little").reshape(-1, whole)[:, :width]
        place = at * width // 8
        out[place : place + packed_size(len(bits), width)] = np.packbits(bits, bitorder="little")
    return torch.from_numpy(out)


def unpack(raw: Tensor, count: int, width: int) -> np.ndarray | None:
    """Return the numbers (count,) that `pack` made to these bytes; None where it made no such bytes."""
    if raw.dtype != torch.uint8 or tuple(raw.shape) != (packed_size(count, width),):
        return None
    packed, kind = raw.contiguous().numpy(), kind_of(width)
    whole = 8 * kind.itemsize
    if width == whole:
        return packed.copy().view(kind)
    out = np.empty(count, dtype=kind)
    for at in range(0, count, PACKED):
        size = min(PACKED, count - at)
        place = at * width // 8
        bits = np.unpackbits(packed[place : place + packed_size(size, width)], bitorder="little", count=size * width)
        rows = np.zeros((size, whole), dtype=np.uint8)
        rows[:, :width] = bits.reshape(size, width)
        out[at : at + size] = np.packbits(rows, bitorder="little").view(kind)
    return out
