"""Gradients of single examples, layer by layer: their norms, and sums of them under weights.

What a layer's gradient is made of (its inputs and the gradients of its outputs) takes less memory than a gradient for
every example where the layer is large. The norm and the weighted sum follow from either (Goodfellow 2015, arXiv
1510.01799; Bu et al. 2023, arXiv 2210.00038), so a step needs one backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class LayerGradient(Protocol):
    """The gradients of E examples with respect to one parameter, from one layer that computes with it."""

    def squares(self) -> Tensor:
        """Return (E,) float64: the squared L2 norm of every example's gradient."""
        ...

    def mass(self) -> Tensor:
        """Return (E,) float64: a bound of the norm of what `total` adds up of every example, before terms cancel; 0
        where it adds up gradients that are there already."""
        ...

    def total(self, factors: Tensor) -> Tensor:
        """Return the sum, in float32, of the examples' gradients times their factors (E,)."""
        ...

    def whole(self) -> Whole:
        """Return the gradients themselves."""
        ...


@dataclass(frozen=True)
class Owners:
    """The examples that lines belong to."""

    of_line: Tensor
    """(lines,) int64, number of each line's example; lines of one example follow each other."""
    count: int
    """Number of examples."""

    def add_up(self, values: Tensor) -> Tensor:
        """Return the sums (E, ...) over the lines of every example, in float32, of values (lines, ...)."""
        if len(self.of_line) == self.count:
            return values.float()
        sums = torch.zeros(self.count, *values.shape[1:], device=values.device)
        return sums.index_add_(0, self.of_line, values.float())

    def line_up(self, values: Tensor) -> Tensor:
        """Return (E, T, ...): the positions of all lines of an example behind each other, of values (lines, ...).

        An example of fewer lines than others is filled up with zeros.
        """
        values = values.reshape(values.shape[0], -1, values.shape[-1])
        if len(self.of_line) == self.count:
            return values
        sizes = torch.bincount(self.of_line, minlength=self.count)
        most = int(sizes.max())
        if len(self.of_line) < self.count * most:
            begins = sizes.cumsum(0) - sizes
            slots = torch.arange(len(self.of_line), device=values.device) - begins[self.of_line]
            filled = values.new_zeros(self.count, most, *values.shape[1:])
            filled[self.of_line, slots] = values
            values = filled
        return values.reshape(self.count, -1, values.shape[-1])


@dataclass(frozen=True)
class Whole:
    """One gradient for every example."""

    values: Tensor
    """(E, *shape) float32."""

    def squares(self) -> Tensor:
        """Return the squared norms."""
        return self.values.reshape(len(self.values), -1).double().square().sum(1)

    def mass(self) -> Tensor:
        """Return zeros."""
        return torch.zeros(len(self.values), dtype=torch.float64, device=self.values.device)

    def total(self, factors: Tensor) -> Tensor:
        """Return the weighted sum."""
        total: Tensor = torch.tensordot(factors, self.values, dims=1)
        return total

    def whole(self) -> Whole:
        """Return itself."""
        return self


@dataclass(frozen=True)
class Product:
    """Gradients of a matrix: for each example the sum over T positions of the outer products of two vectors."""

    left: Tensor
    """(E, T, rows of the matrix)."""
    right: Tensor
    """(E, T, columns of the matrix)."""

    def squares(self) -> Tensor:
        """Return the squared norms: the sum over pairs of positions of the products of both sides' dot products."""
        # In float64: terms of both signs may cancel, and a norm that is too small would break the bound.
        left, right = self.left.double(), self.right.double()
        return ((left @ left.mT) * (right @ right.mT)).sum((1, 2)).clamp(min=0)

    def mass(self) -> Tensor:
        """Return the sum of the norms of all outer products."""
        norms: Tensor = self.left.double().norm(dim=2) * self.right.double().norm(dim=2)
        return norms.sum(1)

    def total(self, factors: Tensor) -> Tensor:
        """Return the weighted sum."""
        left = (self.left.float() * factors[:, None, None]).flatten(0, 1)
        return left.mT @ self.right.float().flatten(0, 1)

    def whole(self) -> Whole:
        """Return the gradients themselves."""
        return Whole(self.left.float().mT @ self.right.float())


@dataclass(frozen=True)
class Lookup:
    """Gradients of a table: for each example, T rows of it were looked up."""

    numbers: Tensor
    """(E, T) int64: the rows."""
    vectors: Tensor
    """(E, T, width): the gradients of what was looked up."""
    size: int
    """Number of rows of the table."""

    def squares(self) -> Tensor:
        """Return the squared norms: pairs of positions with the same row count."""
        vectors = self.vectors.double()
        same = self.numbers[:, :, None] == self.numbers[:, None, :]
        return ((vectors @ vectors.mT) * same).sum((1, 2)).clamp(min=0)

    def mass(self) -> Tensor:
        """Return the sum of the norms of all vectors."""
        norms: Tensor = self.vectors.double().norm(dim=2)
        return norms.sum(1)

    def total(self, factors: Tensor) -> Tensor:
        """Return the weighted sum."""
        weighted = (self.vectors.float() * factors[:, None, None]).flatten(0, 1)
        sums = torch.zeros(self.size, weighted.shape[1], device=weighted.device)
        return sums.index_add_(0, self.numbers.flatten(), weighted)

    def whole(self) -> Whole:
        """Return the gradients themselves."""
        examples, width = len(self.numbers), self.vectors.shape[-1]
        values = torch.zeros(examples, self.size, width, device=self.vectors.device)
        places = self.numbers[..., None].expand(-1, -1, width)
        return Whole(values.scatter_add_(1, places, self.vectors.float()))


@dataclass(frozen=True)
class Tied:
    """Gradients of one table that is looked up in front and multiplied with behind, as tied embeddings are."""

    lookup: Lookup
    product: Product
    """`left` belongs to the rows of the table (the logits), `right` to its columns (the hidden states)."""

    def squares(self) -> Tensor:
        """Return the squared norms: those of both uses, and twice their dot product."""
        vectors = self.lookup.vectors.double()
        dots = self.product.right.double() @ vectors.mT
        places = self.lookup.numbers[:, None, :].expand(-1, self.product.left.shape[1], -1)
        crossed = (self.product.left.gather(2, places).double() * dots).sum((1, 2))
        return (self.lookup.squares() + self.product.squares() + 2 * crossed).clamp(min=0)

    def mass(self) -> Tensor:
        """Return that of both uses."""
        return self.lookup.mass() + self.product.mass()

    def total(self, factors: Tensor) -> Tensor:
        """Return the weighted sum."""
        return self.lookup.total(factors) + self.product.total(factors)

    def whole(self) -> Whole:
        """Return the gradients themselves."""
        return Whole(self.lookup.whole().values + self.product.whole().values)


def joined(parts: Sequence[LayerGradient]) -> LayerGradient:
    """Return the gradients of one parameter that several layers, or one layer several times, compute with."""
    if len(parts) == 1:
        return parts[0]
    lookups = [part for part in parts if isinstance(part, Lookup)]
    products = [part for part in parts if isinstance(part, Product)]
    if len(lookups) == 1 and len(products) == 1 and len(parts) == 2:
        return Tied(lookups[0], products[0])
    return Whole(torch.stack([part.whole().values for part in parts]).sum(0))


def matrix_gradient(left: Tensor, right: Tensor) -> LayerGradient:
    """Return the gradients of a matrix in the form that takes less memory.

    Args:
        left: (E, T, rows of the matrix): the gradients of the layer's outputs.
        right: (E, T, columns of the matrix): its inputs.
    """
    product = Product(left, right)
    rows, columns, positions = left.shape[2], right.shape[2], left.shape[1]
    return product.whole() if rows * columns <= positions * (rows + columns) else product
