"""Codecs that are linear, with what all clients of a round share: their numbers can be added up, also under masks.

A sketch S is drawn from the public seed of the round. A client sends S x as numbers, so that the sum of what clients
send is the sketch of their sum: a secure sum holds it, and the server lifts it back once. What a sketch leaves out is
kept in the client's memory and joins the next one. Without error feedback the lifted numbers are scaled up, so that
their mean over sketches is x.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from weft.compression.coded import Coded
from weft.core.packing import Reader, as_bytes
from weft.core.party import Coding
from weft.core.seeds import derive
from weft.core.tensors import num_bytes
from weft.core.types import DELTA, Streams, Tensors, Update
from weft.errors import BadUpdate, ConfigError

HEADER = 8
"""Bytes of the seed, which what travels down begins with: who missed rounds decodes several at once."""


@dataclass(frozen=True)
class Linear(Coded):
    """Base class: a line of float32 numbers for each tensor, linear in it for a given seed."""

    addable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.zstd:
            raise ConfigError("What the codec sends is added up as numbers, which cannot be packed: leave out zstd.")

    @abstractmethod
    def project(self, value: Tensor, seed: int) -> Tensor:
        """Return the sketch of a float32 tensor on the CPU, float32 of shape (count_of(value),)."""

    @abstractmethod
    def lift(self, sketch: Tensor, like: Tensor, seed: int) -> Tensor:
        """Return the float32 tensor, of the shape of `like`, that a sketch stands for."""

    @abstractmethod
    def count_of(self, like: Tensor) -> int:
        """Return how many numbers the sketch of such a tensor has."""

    def encoded(self, like: Streams) -> Streams:
        """Return streams whose delta has the sketches' shapes."""
        # One number that is repeated: nobody reads it.
        shapes = {name: torch.zeros(1).expand(self.count_of(value)) for name, value in like[DELTA].items()}
        return like | {DELTA: shapes}

    def to_send(self, values: Tensors, coding: Coding) -> tuple[Tensors, Tensors]:
        """Return the sketches of the round, and the tensors that they stand for."""
        sketches = self._projected(values, coding.round_seed)
        return sketches, self._lifted(sketches, values, coding.round_seed)

    def decode(self, update: Update, coding: Coding, party: object) -> Update:
        """Return the update with the delta that sketches, or means of sketches, stand for."""
        sketches, like = update.streams.get(DELTA, {}), coding.like[DELTA]
        if sketches.keys() != like.keys():
            raise BadUpdate("sent a delta that is not encoded")
        for name, sketch in sketches.items():
            if sketch.dtype != torch.float32 or tuple(sketch.shape) != (self.count_of(like[name]),):
                raise BadUpdate(f"sent {sketch.dtype} {tuple(sketch.shape)} for the sketch of a tensor")
        return replace(update, streams=update.streams | {DELTA: self._lifted(sketches, like, coding.round_seed)})

    def largest(self, like: Streams) -> tuple[int, int]:
        """Return the bytes and the tensors of an encoded update."""
        return num_bytes(self.encoded(like)), sum(map(len, like.values()))

    def compress(self, values: Tensors, coding: Coding) -> list[Tensor]:
        """Return the seed and the sketches."""
        seed = coding.round_seed % 2**63
        sketches = self._projected(values, seed)
        return [as_bytes(torch.tensor([seed])), *(as_bytes(sketches[name]) for name in sorted(values))]

    def expand(self, reader: Reader, like: Tensors) -> Tensors:
        """Lift the sketches."""
        seed = int(reader.take(1, torch.int64))
        if seed < 0:
            raise BadUpdate("sent a sketch with a seed below 0")
        sketches = {name: reader.take(self.count_of(like[name]), torch.float32) for name in sorted(like)}
        return self._lifted(sketches, like, seed)

    def raw_size(self, like: Tensors) -> int:
        """Return the bytes of the seed and the sketches."""
        return HEADER + 4 * sum(map(self.count_of, like.values()))

    def _projected(self, values: Tensors, seed: int) -> Tensors:
        return {
            name: self.project(value.detach().cpu().float(), derive(seed, name)).contiguous()
            for name, value in values.items()
        }

    def _lifted(self, sketches: Tensors, like: Tensors, seed: int) -> Tensors:
        return {
            name: self.lift(sketches[name].cpu(), value, derive(seed, name)).to(value.device, value.dtype)
            for name, value in like.items()
        }


@dataclass(frozen=True)
class RandomK(Linear):
    """Send one number of every `every`, at places from the round's seed (Konecny et al. 2016, arXiv 1610.05492)."""

    every: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.every <= 1 << 20:
            raise ConfigError(f"every is {self.every}, and it is 1 to {1 << 20}: write such as every=16.")

    def project(self, value: Tensor, seed: int) -> Tensor:
        """Return the numbers at the places."""
        return value.reshape(-1)[torch.from_numpy(self._stretches(value, seed)[0])]

    def lift(self, sketch: Tensor, like: Tensor, seed: int) -> Tensor:
        """Return zeros with the numbers at their places."""
        places, lengths = self._stretches(like, seed)
        line = torch.zeros(like.numel())
        line[torch.from_numpy(places)] = sketch if self.error_feedback else sketch * torch.from_numpy(lengths).float()
        return line.reshape(like.shape)

    def count_of(self, like: Tensor) -> int:
        """Return the number of stretches."""
        return math.ceil(like.numel() / self.every)

    def _stretches(self, like: Tensor, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return one place of every stretch of `every` numbers, and the stretches' lengths; the last may be shorter."""
        starts = np.arange(0, like.numel(), self.every)
        lengths = np.minimum(self.every, like.numel() - starts)
        drawn = np.random.Generator(np.random.PCG64(seed)).random(len(starts))
        return starts + (drawn * lengths).astype(np.int64), lengths


@dataclass(frozen=True)
class SharedLowRank(Linear):
    """Send M Q of every matrix M, or M^T Q where that is smaller; Q is orthonormal and drawn from the round's seed.

    The first step of PowerSGD (Vogels et al. 2019, arXiv 1905.13727) alone: its second one needs the sum of the first.
    A tensor of more than two dimensions is a matrix of its first one; vectors, and matrices with no side longer than
    `rank`, are sent as they are.
    """

    rank: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise ConfigError(f"rank is {self.rank}, and it is 1 or more: write such as rank=4.")

    def project(self, value: Tensor, seed: int) -> Tensor:
        """Return the product."""
        matrix = self._matrix(value)
        return (value if matrix is None else matrix @ self._basis(matrix.shape[1], seed)).reshape(-1)

    def lift(self, sketch: Tensor, like: Tensor, seed: int) -> Tensor:
        """Return the product with Q^T."""
        matrix = self._matrix(like)
        if matrix is None:
            return sketch.reshape(like.shape)
        width = matrix.shape[1]
        scale = 1.0 if self.error_feedback else width / self.rank
        lifted = sketch.view(-1, self.rank) @ self._basis(width, seed).T * scale
        return (lifted if _is_wide(like) else lifted.T).reshape(like.shape)

    def count_of(self, like: Tensor) -> int:
        """Return the numbers of the product, or of the tensor."""
        matrix = self._matrix(like)
        return like.numel() if matrix is None else matrix.shape[0] * self.rank

    def _basis(self, width: int, seed: int) -> Tensor:
        """Return Q, of shape (width, rank): orthonormal columns in directions that are equally likely."""
        chance = torch.Generator().manual_seed(seed)
        basis: Tensor = torch.linalg.qr(torch.randn(width, self.rank, generator=chance)).Q
        return basis

    def _matrix(self, value: Tensor) -> Tensor | None:
        """Return a tensor as a matrix whose second side is the longer one; None: it is sent as it is."""
        if value.dim() < 2 or not value.numel():
            return None
        matrix = value.reshape(value.shape[0], -1)
        matrix = matrix if _is_wide(value) else matrix.T
        return matrix if matrix.shape[1] > self.rank else None


def _is_wide(value: Tensor) -> bool:
    """Say whether a tensor, as a matrix of its first dimension, has no fewer columns than rows."""
    return value.shape[0] <= value.numel() // value.shape[0]
