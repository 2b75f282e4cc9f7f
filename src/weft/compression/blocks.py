"""Fewer bits for every number: bfloat16, whole numbers of 8 or 4 bits with one scale for a block, or its sign alone.

The whole numbers are rounded at random to one of their two neighbours, so that the mean over draws is the number
itself. The draws protect nobody: they follow from the run's seed, the client, the round and the attempt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from weft.compression.coded import Flat
from weft.core.packing import Reader, as_bytes, bits_size, pack_flags, pack_nibbles, unpack_flags, unpack_nibbles
from weft.core.party import Coding
from weft.errors import ConfigError


@dataclass(frozen=True)
class BF16(Flat):
    """Send bfloat16: half the bytes, with 8 significant bits, rounded to the nearest."""

    def pack(self, flat: Tensor, coding: Coding) -> list[Tensor]:
        """Round."""
        return [as_bytes(flat.bfloat16())]

    def unpack(self, reader: Reader, count: int) -> Tensor:
        """Return the rounded numbers."""
        return reader.take(count, torch.bfloat16).float()

    def line_size(self, count: int) -> int:
        """Return two bytes a number."""
        return 2 * count


@dataclass(frozen=True)
class Int8(Flat):
    """Send numbers from -127 to 127 and a bfloat16 scale for each block of them: a quarter of the bytes."""

    bits: ClassVar[int] = 8
    block: int = 256
    """Numbers of a block."""

    def __post_init__(self) -> None:
        _check_block(self.block)

    def pack(self, flat: Tensor, coding: Coding) -> list[Tensor]:
        """Return the scales and the rounded numbers."""
        most, count = 2 ** (self.bits - 1) - 1, flat.numel()
        rows = torch.nn.functional.pad(flat, (0, -count % self.block)).view(-1, self.block)
        scales = rounded_up(rows.abs().amax(1) / most)
        steps = torch.where(scales > 0, 1.0 / scales.float(), 0.0)
        chance = torch.Generator().manual_seed(coding.seed)
        draws = torch.rand(rows.shape, generator=chance)
        codes = draws.addcmul_(rows, steps[:, None]).floor_().clamp_(-most, most).add_(most + 1)
        codes = codes.view(-1)[:count].to(torch.uint8)
        return [as_bytes(scales), pack_nibbles(codes) if self.bits == 4 else codes]

    def unpack(self, reader: Reader, count: int) -> Tensor:
        """Return the numbers times their scales."""
        most, blocks = 2 ** (self.bits - 1) - 1, -(-count // self.block)
        scales = reader.take(blocks, torch.bfloat16).float()
        codes = unpack_nibbles(reader.take((count + 1) // 2), count) if self.bits == 4 else reader.take(count)
        rows = torch.nn.functional.pad(codes, (0, -count % self.block)).view(-1, self.block)
        return rows.float().sub_(most + 1).mul_(scales[:, None]).view(-1)[:count]

    def line_size(self, count: int) -> int:
        """Return a number's bits and its part of a scale."""
        return 2 * -(-count // self.block) + bits_size(count, self.bits)


@dataclass(frozen=True)
class Int4(Int8):
    """Send numbers from -7 to 7 and a bfloat16 scale for each block of them: an eighth of the bytes."""

    bits: ClassVar[int] = 4


@dataclass(frozen=True)
class Sign(Flat):
    """Send the sign of every number and the mean size of each block (Karimireddy et al. 2019, arXiv 1901.09847)."""

    block: int = 1024
    """Numbers of a block."""

    def __post_init__(self) -> None:
        _check_block(self.block)
        if not self.error_feedback:
            raise ConfigError(
                "The codec sends one size for a whole block, so that without error_feedback what is above and below it "
                "is never sent: leave out error_feedback."
            )

    def pack(self, flat: Tensor, coding: Coding) -> list[Tensor]:
        """Return the mean sizes and a bit for each sign."""
        rows = torch.nn.functional.pad(flat, (0, -flat.numel() % self.block)).view(-1, self.block)
        filled = torch.full((len(rows),), float(self.block))
        filled[-1] -= rows.numel() - flat.numel()
        sizes = rows.abs().sum(1) / filled
        return [as_bytes(sizes.bfloat16()), pack_flags((flat < 0).numpy())]

    def unpack(self, reader: Reader, count: int) -> Tensor:
        """Return the sizes with the signs."""
        blocks = -(-count // self.block)
        sizes = reader.take(blocks, torch.bfloat16).float()
        bits = unpack_flags(reader.take(bits_size(count, 1)), count)
        signs = torch.from_numpy(bits).float().mul_(-2).add_(1)
        rows = torch.nn.functional.pad(signs, (0, -count % self.block)).view(-1, self.block)
        return rows.mul_(sizes[:, None]).view(-1)[:count]

    def line_size(self, count: int) -> int:
        """Return a bit a number and a size a block."""
        return 2 * -(-count // self.block) + bits_size(count, 1)


def _check_block(block: int) -> None:
    if not 2 <= block <= 1 << 20:
        raise ConfigError(f"block is {block}, and a block has 2 to {1 << 20} numbers: write such as block=256.")


def rounded_up(values: Tensor) -> Tensor:
    """Return positive float32 numbers as bfloat16, rounded away from zero: no quotient by them is too large."""
    raw = values.contiguous().view(torch.int32)
    return ((raw + 0xFFFF) >> 16 << 16).view(torch.float32).bfloat16()
