"""The largest numbers of every chunk, and nothing of the others, which wait in the error feedback."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weft.compression.coded import Flat
from weft.core.packing import Indices, Reader, as_bytes, bits_size, pack_bits, unpack_flags
from weft.core.party import Coding
from weft.errors import ConfigError

MOST_CHUNK = 1 << 20
"""Numbers of the longest chunk."""
AT_ONCE = 1 << 16
"""Numbers that are unpacked at a time: their indices and bits take some ten times their memory meanwhile."""


@dataclass(frozen=True)
class TopK(Flat):
    """Send the `keep` largest numbers of every `chunk` as bfloat16 (Aji and Heafield 2017, arXiv 1704.05021)."""

    keep: int = 64
    """Numbers of a chunk that are sent."""
    chunk: int = 4096
    """Numbers of a chunk, over which all tensors are laid as one line."""

    def __post_init__(self) -> None:
        if not 1 <= self.chunk <= MOST_CHUNK:
            raise ConfigError(f"chunk is {self.chunk}, and a chunk has 1 to {MOST_CHUNK} numbers: write chunk=4096.")
        if not 1 <= self.keep <= self.chunk:
            few = f"a chunk has {self.chunk} numbers" if self.keep > self.chunk else "1 or more of a chunk are sent"
            raise ConfigError(f"keep is {self.keep}, and {few}: write such as keep={max(1, self.chunk // 64)}.")
        if not self.error_feedback:
            raise ConfigError(
                "The codec sends the largest numbers only, so that without error_feedback the others are never sent: "
                "leave out error_feedback."
            )

    def pack(self, flat: Tensor, coding: Coding) -> list[Tensor]:
        """Return indices and values of the largest numbers."""
        rows, indices = self._rows(flat.numel())
        # Places behind the last number are taken last.
        line = torch.nn.functional.pad(flat, (0, rows * indices.length - flat.numel()))
        size = line.abs()
        size[flat.numel() :] = -1
        places = size.view(rows, -1).topk(indices.keep, dim=1, sorted=False).indices.sort(dim=1).values
        values = line.view(rows, -1).gather(1, places)
        return [*indices.pack(places.numpy()), *self.pack_values(values)]

    def unpack(self, reader: Reader, count: int) -> Tensor:
        """Return zeros with the numbers that were sent among them."""
        rows, indices = self._rows(count)
        line = torch.zeros(rows, indices.length)
        sections = [*indices.row_bits, *self.value_bits(indices.keep)]
        for begin, end, block in reader.blocks(rows, sections, AT_ONCE // indices.length):
            places = torch.from_numpy(indices.unpack(block, end - begin))
            line[begin:end].scatter_(1, places, self.unpack_values(block, end - begin, indices.keep))
        return line.view(-1)[:count]

    def line_size(self, count: int) -> int:
        """Return the bytes of indices and values."""
        rows, indices = self._rows(count)
        return sum(bits_size(rows, bits) for bits in (*indices.row_bits, *self.value_bits(indices.keep)))

    def pack_values(self, values: Tensor) -> list[Tensor]:
        """Return the values, float32 of shape (rows, keep), as bytes."""
        return [as_bytes(values.bfloat16())]

    def unpack_values(self, reader: Reader, rows: int, keep: int) -> Tensor:
        """Return values, float32 of shape (rows, keep)."""
        return reader.take(rows * keep, torch.bfloat16).float().view(rows, keep)

    def value_bits(self, keep: int) -> list[int]:
        """Return the bits of a row's values, in the sections that `pack_values` makes of all rows."""
        return [16 * keep]

    def _rows(self, count: int) -> tuple[int, Indices]:
        """Return the number of chunks of a line, and the code of their indices; a short line is one chunk."""
        chunk = min(self.chunk, count)
        keep = max(1, round(self.keep * chunk / self.chunk))
        return -(-count // chunk), Indices(keep, chunk)


@dataclass(frozen=True)
class SparseLoCo(TopK):
    """Send the largest numbers of every chunk in 2 bits (SparseLoCo; Sarfi et al. 2025, arXiv 2508.15706).

    e <- momentum e + D, send q = Q(top-k(e)), e <- e - q: the error feedback fades, and so stands for DiLoCo's outer
    momentum. Q has four values a chunk, -b, -a, a and b: a is the mean size of those numbers that are not above the
    mean size of all, b that of the others.
    """

    momentum: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.momentum <= 1:
            raise ConfigError(f"momentum is {self.momentum}, and it is above 0 and at most 1: write such as 0.95.")

    def decay(self) -> float:
        """Return the momentum."""
        return self.momentum

    def pack_values(self, values: Tensor) -> list[Tensor]:
        """Return the two sizes of each chunk, and two bits for each value: its sign, and which size it has."""
        sizes = values.abs()
        large = sizes > sizes.mean(1, keepdim=True)
        above = large.sum(1)
        total_above = torch.where(large, sizes, 0.0).sum(1)
        total_below = sizes.sum(1) - total_above
        levels = torch.stack([total_below / (values.shape[1] - above), total_above / above.clamp(min=1)], dim=1)
        codes = (values < 0).to(torch.uint8) | (large.to(torch.uint8) << 1)
        return [as_bytes(levels.clamp_(min=0).bfloat16()), pack_bits(codes.numpy(), 2)]

    def unpack_values(self, reader: Reader, rows: int, keep: int) -> Tensor:
        """Return the sizes with their signs."""
        levels = reader.take(2 * rows, torch.bfloat16).float().view(rows, 2)
        flags = torch.from_numpy(unpack_flags(reader.take(bits_size(rows * keep, 2)), rows * keep * 2)).bool()
        below_zero, large = flags.view(rows, keep, 2).unbind(-1)
        sizes = torch.where(large, levels[:, 1:], levels[:, :1])
        return torch.where(below_zero, -sizes, sizes)

    def value_bits(self, keep: int) -> list[int]:
        """Return the bits of two sizes, and two for each value."""
        return [32, 2 * keep]
