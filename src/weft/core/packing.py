"""Small integers, packed nibbles and bits, sorted indices and zstd in arrays of bytes, read with suspicion.

What is read comes from another party: every size is known before anything is read, nothing is allocated for what the
bytes claim, and bytes that no writer here writes are refused. Sizes depend on the number of values alone, never on
the values, so that they can be predicted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import zstandard
from torch import Tensor

from weft.errors import BadUpdate

ZSTD_LEVEL = 3
STORED, ZSTD = 0, 1
"""First byte of squeezed bytes: they follow as they are, or as one frame of zstd."""


def as_bytes(values: Tensor) -> Tensor:
    """Return the memory of a contiguous tensor as bytes, uint8 of shape (bytes,)."""
    return values.contiguous().reshape(-1).view(torch.uint8)


class Reader:
    """Takes pieces of known sizes off an array of bytes, and refuses what is too short or too long."""

    def __init__(self, raw: Tensor, size: int) -> None:
        """Take over the bytes; `size`: how many there must be.

        Raises:
            BadUpdate: they are not bytes, or of another number.
        """
        if raw.dtype != torch.uint8 or raw.dim() != 1 or raw.numel() != size:
            raise BadUpdate(f"sent {raw.dtype} {tuple(raw.shape)} for {size} encoded bytes")
        self._raw, self._place = raw.cpu(), 0

    def take(self, count: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        """Return the next `count` values of a number format, shape (count,)."""
        end = self._place + count * dtype.itemsize
        piece, self._place = self._raw[self._place : end], end
        # A copy is aligned, as a view in the middle of a message need not be.
        return piece if dtype == torch.uint8 else piece.clone().view(dtype)

    def blocks(self, rows: int, row_bits: Sequence[int], at_once: int) -> Iterator[tuple[int, int, Reader]]:
        """Yield the next rows some at a time: the first one, the end, and a reader of the same sections of these alone.

        What is unpacked of bits takes many times their memory; of a few rows at a time, that is little.

        Args:
            rows: of every section; those of a section follow one another without a gap.
            row_bits: of a row in each section.
            at_once: rows of a block at most, but for up to 8, so that all blocks begin with a byte.
        """
        sections = [self.take(bits_size(rows, bits)) for bits in row_bits]
        least = 8 // math.gcd(8, *row_bits)
        step = max(least, at_once // least * least)
        for begin in range(0, rows, step):
            end = min(rows, begin + step)
            places = [(begin * bits // 8, bits_size(end, bits)) for bits in row_bits]
            pieces = [section[first:last] for section, (first, last) in zip(sections, places, strict=True)]
            block = torch.cat(pieces)
            yield begin, end, Reader(block, block.numel())


def pack_nibbles(codes: Tensor) -> Tensor:
    """Return numbers from 0 to 15, uint8 of shape (n,), as ceil(n / 2) bytes, the first of a pair in the low bits."""
    if codes.numel() % 2:
        codes = torch.cat([codes, codes.new_zeros(1)])
    return codes[::2] | (codes[1::2] << 4)


def unpack_nibbles(packed: Tensor, count: int) -> Tensor:
    """Return the `count` numbers of packed nibbles."""
    codes = torch.empty(2 * packed.numel(), dtype=torch.uint8)
    codes[::2], codes[1::2] = packed & 15, packed >> 4
    return codes[:count]


def pack_flags(flags: np.ndarray) -> Tensor:
    """Return zeros and ones, or truths, of any shape, as a bit each."""
    return torch.from_numpy(np.packbits(flags.reshape(-1), bitorder="little"))


def unpack_flags(packed: Tensor, count: int) -> np.ndarray:
    """Return the `count` zeros and ones of packed bits, uint8 of shape (count,); BadUpdate for bits behind the last."""
    bits = np.unpackbits(packed.numpy(), bitorder="little")
    if bits[count:].any():
        raise BadUpdate("sent bits behind the last encoded number")
    return bits[:count]


def bits_size(count: int, width: int) -> int:
    """Return the bytes of `count` packed numbers of `width` bits each."""
    return (count * width + 7) // 8


def pack_bits(values: np.ndarray, width: int) -> Tensor:
    """Return numbers below 2^width, an integer array of any shape, as `bits_size` bytes."""
    if width == 0:
        return torch.empty(0, dtype=torch.uint8)
    bits = (values.reshape(-1, 1) >> np.arange(width, dtype=values.dtype)) & 1
    return pack_flags(bits.astype(np.uint8))


def unpack_bits(packed: Tensor, count: int, width: int) -> np.ndarray:
    """Return the `count` numbers of packed bits, int64 of shape (count,); BadUpdate for bits behind the last."""
    if width == 0:
        return np.broadcast_to(np.int64(0), count)
    bits = unpack_flags(packed, count * width).reshape(count, width)
    numbers = np.zeros(count, dtype=np.int64)
    for place in range(width):
        numbers |= bits[:, place].astype(np.int64) << place
    return numbers


class Indices:
    """Rows of `keep` increasing indices below `length`, in Elias-Fano's code: about log2(length / keep) + 2 bits each.

    Low bits are packed as they are. The high bits are a row of `high` bits in which bit (index >> low) + place is set
    for the index in that place. So every row has the same size, whatever the indices are.
    """

    def __init__(self, keep: int, length: int) -> None:
        """Describe rows; 1 <= keep <= length."""
        self.keep, self.length = keep, length
        self.low = max(0, (length // keep).bit_length() - 1)
        self.high = keep + ((length - 1) >> self.low)

    @property
    def row_bits(self) -> list[int]:
        """The bits of a row in each of the two sections."""
        return [self.keep * self.low, self.high]

    def size(self, rows: int) -> int:
        """Return the bytes of so many rows."""
        return sum(bits_size(rows, bits) for bits in self.row_bits)

    def pack(self, indices: np.ndarray) -> list[Tensor]:
        """Return increasing indices, int64 of shape (rows, keep), as bytes in pieces."""
        places = (indices >> self.low) + np.arange(self.keep)
        bitmap = np.zeros((len(indices), self.high), dtype=np.uint8)
        np.put_along_axis(bitmap, places, 1, axis=1)
        low = pack_bits(indices & ((1 << self.low) - 1), self.low)
        return [low, pack_flags(bitmap)]

    def unpack(self, reader: Reader, rows: int) -> np.ndarray:
        """Return the indices, int64 of shape (rows, keep); BadUpdate for what is no row of increasing indices."""
        low = unpack_bits(reader.take(bits_size(rows * self.keep, self.low)), rows * self.keep, self.low)
        bitmap = unpack_flags(reader.take(bits_size(rows * self.high, 1)), rows * self.high).reshape(rows, self.high)
        if (bitmap.sum(axis=1, dtype=np.int64) != self.keep).any():
            raise BadUpdate("sent rows of indices of another length")
        # In place: a row of indices has twice the memory of its numbers.
        indices: np.ndarray = np.flatnonzero(bitmap).reshape(rows, self.keep)
        indices -= np.arange(rows)[:, None] * self.high
        indices -= np.arange(self.keep)
        indices <<= self.low
        indices |= low.reshape(rows, self.keep)
        if rows and (indices[:, -1].max() >= self.length or (indices[:, 1:] <= indices[:, :-1]).any()):
            raise BadUpdate("sent indices that do not increase, or lie outside their row")
        return indices


def squeeze(raw: Tensor) -> Tensor:
    """Return bytes packed losslessly by zstd, or as they are where that is shorter: at most one byte more."""
    packed = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(raw.numpy().data)
    if len(packed) >= raw.numel():
        return torch.cat([torch.tensor([STORED], dtype=torch.uint8), raw])
    return torch.frombuffer(bytearray([ZSTD]) + packed, dtype=torch.uint8)


def unsqueeze(packed: Tensor, size: int) -> Tensor:
    """Return the `size` bytes that were squeezed; BadUpdate for what holds another number of bytes.

    The size that a frame claims is compared with the known one before anything is unpacked.
    """
    if packed.dtype != torch.uint8 or packed.dim() != 1 or not 1 <= packed.numel() <= size + 1:
        raise BadUpdate("sent packed bytes that are too many, or none")
    kind, rest = int(packed[0]), packed[1:]
    if kind == STORED:
        return rest
    data = rest.cpu().numpy().tobytes()
    try:
        if kind != ZSTD or zstandard.frame_content_size(data) != size:
            raise BadUpdate("sent packed bytes of another size than it should have")
        whole = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompress(
            data, max_output_size=size, allow_extra_data=False
        )
    except zstandard.ZstdError:
        raise BadUpdate("sent packed bytes that are damaged") from None
    return torch.frombuffer(bytearray(whole), dtype=torch.uint8) if size else rest[:0]
