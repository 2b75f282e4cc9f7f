"""The rows of a cohort as one matrix in blocks, and the Gram matrix from which robust rules compute.

Distances, norms and weighted sums of n updates need the n x n Gram matrix alone, whatever the number of parameters:
one pass over the updates makes it, and one more adds them up with the weights that a rule found.

The matrix is centred on one update first, whose norm is the lower median of all: a common part of the updates would
otherwise cancel away their differences, and a centre far away would cancel away those of honest clients. All products
are summed up in float64, so that a row of numbers up to 1e30 neither overflows nor hides the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from weft.core import lowrank
from weft.core.types import DELTA, Streams, Tensors, Update

BLOCK = 1 << 16
"""Columns of a block: at 100 clients it holds 50 MB in float64."""
WIDE = torch.float64


@dataclass(frozen=True)
class Base:
    """What updates are differences from, where distances between products of LoRA factors are wanted."""

    params: Tensors
    """The shared parameters before the round, frozen factors among them."""
    scale: float
    """The s of s B A."""


@dataclass(frozen=True)
class Rows:
    """The updates of a cohort, of the same streams, names and shapes; row i is the i-th update."""

    updates: Sequence[Update]
    anchor: Streams = field(default_factory=dict)
    """A vector beside the updates: the last row of the Gram matrix. What it lacks is zero."""

    def __len__(self) -> int:
        return len(self.updates)

    @property
    def places(self) -> list[tuple[str, str]]:
        """The streams and names of all tensors, in order."""
        return [(stream, name) for stream, values in self.updates[0].streams.items() for name in values]

    def blocks(self, stream: str, name: str, *, wide: bool = True) -> Iterator[tuple[slice, Tensor]]:
        """Yield the columns of a tensor, and their numbers in all updates and the anchor, (n + 1, columns).

        They are in float64, or as they came where `wide` is false; numbers of 16 bits then become float32.
        """
        flat = [update.streams[stream][name].detach().reshape(-1) for update in self.updates]
        anchor = self.anchor.get(stream, {}).get(name)
        last = flat[0].new_zeros(()).expand_as(flat[0]) if anchor is None else anchor.detach().reshape(-1)
        dtype = WIDE if wide else torch.promote_types(last.dtype, torch.float32)
        for start in range(0, flat[0].numel(), BLOCK):
            part = slice(start, start + BLOCK)
            yield part, torch.stack([row[part].to("cpu", dtype) for row in [*flat, last]])

    def map(self, columns: Callable[[str, Tensor], Tensor], *, wide: bool = True) -> Streams:
        """Return streams whose numbers `columns` computes from each stream's name and block: (n + 1, c) to (c,)."""
        found: Streams = {stream: {} for stream in self.updates[0].streams}
        for stream, name in self.places:
            like = self.updates[0].streams[stream][name]
            # Written in place: a list of blocks, and then their sum, take four times the memory of the result.
            flat = torch.empty(like.numel(), dtype=like.dtype)
            for part, block in self.blocks(stream, name, wide=wide):
                flat[part] = columns(stream, block)
            found[stream][name] = flat.to(like.device).reshape(like.shape)
        return found

    def mix(self, weights: Tensor) -> Streams:
        """Return the sum of all rows, the anchor's included, by weights of shape (n + 1,)."""
        used = weights.nonzero().reshape(-1)  # a weight of 0 times what is far away is still to be 0
        return self.map(lambda _, block: weights[used] @ block[used])

    def gram(self, base: Base | None = None, *, anchored: bool = False) -> Gram:
        """Return the Gram matrix over all streams.

        Where there are several streams, each is scaled to its own spread: a control variate is larger than a delta by
        the learning rate, and what an attacker does to the delta would be lost beside it.

        Args:
            base: compare products of LoRA factors; None: compare the factors' own numbers.
            anchored: centre on the anchor, for rules of norms and angles, which may stand more attackers than others.
        """
        streams = list(self.updates[0].streams)
        grams = [self._gram_of(stream, base if stream == DELTA else None, anchored) for stream in streams]
        if len(grams) == 1:
            return Gram(grams[0])
        return Gram(torch.stack([one / (spread(one) or 1.0) for one in grams]).sum(0))

    def _gram_of(self, stream: str, base: Base | None, anchored: bool) -> Tensor:
        names = list(self.updates[0].streams[stream])
        total = torch.zeros(len(self) + 1, len(self) + 1, dtype=WIDE)
        if base is not None:
            factors = lowrank.modules(base.params)
            total += self._products(factors, base)
            names = [name for name in names if not any(name in kinds.values() for kinds in factors.values())]
        centre = len(self) if anchored else self._centre(stream, names)
        for name in names:
            for _, block in self.blocks(stream, name):
                block -= block[centre].clone()
                total += block @ block.T
        return total

    def _centre(self, stream: str, names: Sequence[str]) -> int:
        """Return the row whose norm is the lower median: with fewer attackers than others it is no larger than some
        honest one's."""
        squares = torch.zeros(len(self) + 1, dtype=WIDE)
        for name in names:
            for _, block in self.blocks(stream, name):
                squares += block.square().sum(1)
        return int(squares[:-1].argsort(stable=True)[(len(self) - 1) // 2])

    def _products(self, factors: Mapping[str, Mapping[str, str]], base: Base) -> Tensor:
        """Return the Gram matrix of the changes of s B_i A_i, summed over modules; the anchor's is zero.

        <B_i A_i, B_j A_j> = sum of (B_i^T B_j) * (A_i A_j^T): of all pairs at once by two products of stacked factors.
        """
        count = len(self) + 1
        total = torch.zeros(count, count, dtype=WIDE)
        for kinds in factors.values():
            if not {"A", "B"} <= kinds.keys():
                continue
            found = []
            for update in self.updates:
                delta = update.streams[DELTA]
                params = {
                    name: value.to("cpu", WIDE) + delta[name].to("cpu", WIDE) if name in delta else value.to(WIDE)
                    for name, value in ((name, base.params[name]) for name in kinds.values())
                }
                found.append(lowrank.product_of(params, kinds, base.scale))
            start = {name: base.params[name].to("cpu", WIDE) for name in kinds.values()}
            found.append(lowrank.product_of(start, kinds, base.scale))
            b, a = torch.cat([one.b for one in found], dim=1), torch.cat([one.a for one in found], dim=0)
            pairs = (b.T @ b) * (a @ a.T)
            rank = found[0].a.shape[0]
            inner = pairs.reshape(count, rank, count, rank).sum(dim=(1, 3))
            # Centred on the product before the round, so that the anchor's row is zero.
            total += inner - inner[-1:] - inner[:, -1:] + inner[-1, -1]
        return total


def ordered(values: Tensor) -> Tensor:
    """Return every column of (n, c) in ascending order.

    numpy sorts short rows of contiguous numbers with the CPU's vector instructions: with AVX-512, 100 float32 numbers a
    column in a hundredth of the time that torch takes for columns of float64.
    """
    return torch.from_numpy(np.sort(values.T.contiguous().numpy(), axis=1)).T


def spread(gram: Tensor) -> float:
    """Return a squared distance that describes honest updates: of all pairs, that below which a quarter lie.

    With fewer attackers than others at least a quarter of the pairs are of honest ones, so no attacker can raise it
    above the largest distance between two of them. At 0 (most are equal) the largest distance counts.
    """
    n = gram.shape[0] - 1
    squares = Gram(gram).squared_distances[:n, :n]
    upper = squares[tuple(torch.triu_indices(n, n, 1))].sort().values
    if not len(upper):
        return 0.0
    return float(upper[(len(upper) - 1) // 4]) or float(upper[-1])


@dataclass(frozen=True)
class Gram:
    """Inner products of n rows and, last, an anchor, relative to a common centre: (n + 1, n + 1) in float64."""

    inner: Tensor

    @property
    def squared_distances(self) -> Tensor:
        """Squared distances of all pairs; rounding errors below 0 are 0."""
        square = self.inner.diagonal()
        distances = square[:, None] + square[None, :] - 2 * self.inner
        return distances.clamp(min=0).fill_diagonal_(0)

    @property
    def norms(self) -> Tensor:
        """Distances of the rows from the anchor, (n,): their norms where the anchor is zero."""
        return self.squared_distances[-1, :-1].sqrt()

    @property
    def cosines(self) -> Tensor:
        """Cosines of the angles between rows as the anchor sees them, (n, n); 0 for a row of length 0."""
        at = self.about(torch.eye(len(self.inner), dtype=WIDE)[-1])[:-1, :-1]
        norms = at.diagonal().clamp(min=0).sqrt()
        product = norms[:, None] * norms[None, :]
        return torch.where(product > 0, at / product.clamp(min=1e-300), torch.zeros_like(at)).clamp(-1, 1)

    def about(self, weights: Tensor) -> Tensor:
        """Return the inner products relative to the point with these weights (of sum 1) instead of the centre."""
        towards = self.inner @ weights
        return self.inner - towards[:, None] - towards[None, :] + weights @ towards

    def distances_from(self, weights: Tensor) -> Tensor:
        """Return the distances of all rows and the anchor from the point with these weights (of sum 1), (n + 1,)."""
        towards = self.inner @ weights
        return (self.inner.diagonal() - 2 * towards + weights @ towards).clamp(min=0).sqrt()

    def mixed(self, mixture: Tensor) -> Gram:
        """Return the Gram matrix of rows that are sums of these by a matrix (m, n) of weights; the anchor stays."""
        rows, columns = mixture.shape
        whole = torch.zeros(rows + 1, columns + 1, dtype=WIDE)
        whole[:rows, :columns], whole[rows, columns] = mixture, 1.0
        return Gram(whole @ self.inner @ whole.T)


def lower_median(values: Tensor) -> float:
    """Return the lower median, which with fewer attackers than others is no larger than an honest client's value."""
    return float(values.sort().values[(len(values) - 1) // 2])


def cut_factors(norms: Tensor, radius: float) -> Tensor:
    """Return the factors that cut vectors of these norms down to a radius; 1 for those within it."""
    return torch.where(norms > radius, radius / norms.clamp(min=1e-300), torch.ones_like(norms))
