"""PowerSGD: matrices as products of two thin ones (Vogels et al. 2019, arXiv 1905.13727)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weft.compression.coded import Coded
from weft.core.packing import Reader, as_bytes
from weft.core.party import Coding
from weft.core.types import Tensors
from weft.errors import ConfigError


@dataclass(frozen=True)
class LowRank(Coded):
    """Send P and Q of M ~ P Q^T in bfloat16: P = orthonormal(M Q_0), Q = M^T P, `iterations` times.

    Q_0 is shared: it is drawn from the seed of the round, alike for all clients. A tensor of more than two dimensions
    is a matrix of its first one; what a product would not make smaller, such as a vector, is sent as bfloat16.
    """

    rank: int = 4
    iterations: int = 2

    def __post_init__(self) -> None:
        if self.rank < 1 or self.iterations < 1:
            raise ConfigError(
                f"rank is {self.rank} and iterations {self.iterations}, and both are 1 or more: write such as rank=4 "
                "iterations=2."
            )

    def compress(self, values: Tensors, coding: Coding) -> list[Tensor]:
        """Return the factors of matrices, and other tensors rounded."""
        pieces = [torch.empty(0, dtype=torch.uint8)]
        chance = torch.Generator().manual_seed(coding.round_seed)
        for name in sorted(values):
            value = values[name].detach().cpu().float()
            if (shape := self._shape(value)) is None:
                pieces.append(as_bytes(value.bfloat16()))
                continue
            matrix = value.reshape(shape)
            right = torch.randn(shape[1], self.rank, generator=chance)
            for _ in range(self.iterations):
                left = torch.linalg.qr(matrix @ right).Q
                right = matrix.T @ left
            pieces += [as_bytes(left.bfloat16()), as_bytes(right.bfloat16())]
        return pieces

    def expand(self, reader: Reader, like: Tensors) -> Tensors:
        """Multiply the factors."""
        values = {}
        for name in sorted(like):
            if (shape := self._shape(like[name])) is None:
                value = reader.take(like[name].numel(), torch.bfloat16).float()
            else:
                left, right = (
                    reader.take(count * self.rank, torch.bfloat16).float().view(count, self.rank) for count in shape
                )
                value = left @ right.T
            values[name] = value.reshape(like[name].shape).to(like[name].device, like[name].dtype)
        return {name: values[name] for name in like}

    def raw_size(self, like: Tensors) -> int:
        """Return the bytes of all factors and of the other tensors."""
        shapes = [(value, self._shape(value)) for value in like.values()]
        return sum(2 * (value.numel() if shape is None else self.rank * sum(shape)) for value, shape in shapes)

    def _shape(self, value: Tensor) -> tuple[int, int] | None:
        """Return the shape of a tensor as a matrix; None: it is sent as it is."""
        if value.dim() < 2 or not value.numel():
            return None
        height, width = value.shape[0], value.numel() // value.shape[0]
        return (height, width) if self.rank * (height + width) < height * width else None
