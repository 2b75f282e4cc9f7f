"""The mean product of a cohort's LoRA factors, watched as updates stream by, and how far averages are from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from weft.core import lowrank
from weft.core.lowrank import Product
from weft.core.types import DELTA, SIDE, Streams, Tensors, Update

LIMIT = 256
"""Columns kept of every module where only the error is wanted; a larger cohort is summed up in its best factors."""


class Products:
    """Collects sum p_i s B_i A_i of every module."""

    def __init__(self, scale: float, fixed: Tensors, *, exact: bool) -> None:
        """Begin a round.

        Args:
            scale: the s of s B A.
            fixed: factors that are the same for everybody and do not travel.
            exact: keep every client's factors, however many there are.
        """
        self.scale, self.fixed, self.exact = scale, fixed, exact
        self.weight = 0.0
        self._parts: dict[str, list[tuple[Product, float]]] = {}
        self._means: dict[str, Product] = {}

    def watch(self, updates: Iterable[Update], bases: Mapping[str, Tensors]) -> Iterator[Update]:
        """Pass updates on; `bases` are the parameters that each client began from, in its own rank."""
        for update in updates:
            base, delta = bases[update.client], update.streams.get(DELTA, {})
            ended = {name: value + delta[name] if name in delta else value for name, value in base.items()}
            self._add(self.fixed | ended, update.weight)
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
                summed = lowrank.total(*_apart(parts))
                self._parts[module] = [(lowrank.truncate(summed, LIMIT), 1.0)]

    def mean(self) -> dict[str, Product]:
        """Return the weighted mean of the products of every module whose factors the server knows."""
        if not self._means:  # made once a round: for a large cohort it is a copy of everybody's factors
            for module, parts in self._parts.items():
                products, weights = _apart(parts)
                self._means[module] = lowrank.total(products, [weight / self.weight for weight in weights])
        return self._means

    def error(self, params: Tensors, former: Streams, now: Streams) -> float | None:
        """Return how far the mean product is from what the server would go on with, relative to the former.

        Args:
            params: the averaged (or recomputed) factors.
            former: server memory with the side adapter before the round.
            now: streams with the side adapter after it.

        Returns:
            The Frobenius norm of the difference over that of the mean product, over all modules together; None where
            the server does not know the factors.
        """
        if not self._parts:
            return None
        known = self.fixed | params
        before, after = lowrank.side_products(former.get(SIDE, {})), lowrank.side_products(now.get(SIDE, {}))
        apart, whole = 0.0, 0.0
        factors = lowrank.modules(known)
        for module, mean in self.mean().items():
            terms = [mean, lowrank.product_of(known, factors[module], -self.scale)]
            if module in after:
                terms.append(Product(-after[module].b, after[module].a))
                terms += [before[module]] if module in before else []
            apart += lowrank.norm(lowrank.total(terms)) ** 2
            whole += lowrank.norm(mean) ** 2
        return math.sqrt(apart / whole) if whole else 0.0


def _fitted(params: Tensors, factors: Mapping[str, str], scale: float) -> Product:
    """Return the product of factors of which some may have been cut to a client's rank and others not."""
    rank = min(params[factors["A"]].shape[0], params[factors["B"]].shape[1])
    known = {factors["A"]: params[factors["A"]], factors["B"]: params[factors["B"]]}
    if "R" in factors:
        middle = params[factors["R"]]
        rank = min(rank, middle.shape[0])
        known[factors["R"]] = middle[:rank, :rank]
    known[factors["A"]] = known[factors["A"]][:rank]
    known[factors["B"]] = known[factors["B"]][:, :rank]
    return lowrank.product_of(known, factors, scale)


def _apart(parts: list[tuple[Product, float]]) -> tuple[list[Product], list[float]]:
    return [product for product, _ in parts], [weight for _, weight in parts]
