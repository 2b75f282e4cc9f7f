"""The mean product of a cohort's LoRA factors, collected while updates stream by, and the error of averages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import torch

from weft.core import lowrank
from weft.core.lowrank import Product
from weft.core.types import DELTA, SIDE, Streams, Tensors, Update

CPU = torch.device("cpu")
LIMIT = 256
"""Largest rank per module where only the error is measured: larger sums are truncated to it."""


class Products:
    """Collects sum_i p_i s B_i A_i of every module."""

    def __init__(self, scale: float, fixed: Tensors, *, exact: bool, device: torch.device = CPU) -> None:
        """Begin a round.

        Args:
            scale: the s of s B A.
            fixed: frozen factors, the same for all clients, which do not travel.
            exact: never truncate the sum.
            device: computes the error, one module after the other; the factors wait on the CPU.
        """
        # Norms are computed in float64, which accelerators other than CUDA's lack.
        self.device = device if device.type == "cuda" else CPU
        self.scale, self.fixed, self.exact = scale, fixed, exact
        self.weight = 0.0
        self._parts: dict[str, list[tuple[Product, float]]] = {}
        self._means: dict[str, Product] = {}

    def watch(self, updates: Iterable[Update], bases: Mapping[str, Tensors]) -> Iterator[Update]:
        """Pass updates on; `bases` are the parameters that each client began from, in its own rank."""
        for update in updates:
            base, delta = bases[update.client], update.streams.get(DELTA, {})
            params = {name: value + delta[name] if name in delta else value for name, value in base.items()}
            # Frozen factors do not travel, but belong to the product.
            self._add(self.fixed | params, update.weight)
            yield update

    def _add(self, params: Tensors, weight: float) -> None:
        self.weight += weight
        self._means = {}
        for module, factors in lowrank.modules(params).items():
            if not {"A", "B"} <= factors.keys():
                continue
            parts = self._parts.setdefault(module, [])
            parts.append((_fitted(params, factors, self.scale), weight))
            if not self.exact and sum(part.a.shape[0] for part, _ in parts) > 2 * LIMIT:
                best = lowrank.truncate(_on(lowrank.total(*_apart(parts)), self.device), LIMIT)
                self._parts[module] = [(_on(best, CPU), 1.0)]

    def mean(self) -> dict[str, Product]:
        """Return the weighted mean of the products of every module whose factors the server knows."""
        if not self._means:  # made once a round: for a large cohort it is a copy of everybody's factors
            for module, parts in self._parts.items():
                products, weights = _apart(parts)
                self._means[module] = lowrank.total(products, [weight / self.weight for weight in weights])
        return self._means

    def error(self, params: Tensors, memory: Streams, streams: Streams) -> float | None:
        """Return the distance of the server's new product from the clients' mean product, relative to the latter.

        Args:
            params: the averaged (or recomputed) factors.
            memory: the server's memory, with the side adapter before the round.
            streams: the total's streams, with the side adapter after the round.

        Returns:
            The Frobenius norm of the difference over that of the mean product, over all modules together; None where
            the server does not know the factors.
        """
        if not self._parts:
            return None
        values = self.fixed | params
        before, after = lowrank.side_products(memory.get(SIDE, {})), lowrank.side_products(streams.get(SIDE, {}))
        distance, size = 0.0, 0.0
        factors = lowrank.modules(values)
        for module, mean in self.mean().items():
            terms = [mean, lowrank.product_of(values, factors[module], -self.scale)]
            if module in after:
                # The side adapter's change is part of what the server adds to the layer in this round.
                terms.append(Product(-after[module].b, after[module].a))
                terms += [before[module]] if module in before else []
            distance += lowrank.norm(_on(lowrank.total(terms), self.device)) ** 2
            size += lowrank.norm(_on(mean, self.device)) ** 2
        return math.sqrt(distance / size) if size else 0.0


def _fitted(params: Tensors, factors: Mapping[str, str], scale: float) -> Product:
    """Return the product at the smallest rank of the factors: a frozen one has the adapter's, others the client's."""
    rank = min(params[factors["A"]].shape[0], params[factors["B"]].shape[1])
    values = {factors["A"]: params[factors["A"]], factors["B"]: params[factors["B"]]}
    if "R" in factors:
        middle = params[factors["R"]]
        rank = min(rank, middle.shape[0])
        values[factors["R"]] = middle[:rank, :rank]
    values[factors["A"]] = values[factors["A"]][:rank]
    values[factors["B"]] = values[factors["B"]][:, :rank]
    return lowrank.product_of(values, factors, scale)


def _on(product: Product, device: torch.device) -> Product:
    return Product(product.b.to(device), product.a.to(device))


def _apart(parts: list[tuple[Product, float]]) -> tuple[list[Product], list[float]]:
    return [product for product, _ in parts], [weight for _, weight in parts]
