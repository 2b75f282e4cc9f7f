"""Which trained parameters travel, and in which shape: patterns, kinds of LoRA factors, ranks and layers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import torch

from weft.core.lowrank import PERSONAL, kind_of, layer_of
from weft.core.parts import LoraAggregation
from weft.core.types import DELTA, Tensors, Total, Update


@dataclass(frozen=True)
class Sharing:
    """Which parameters travel between the server and its clients."""

    lora: LoraAggregation = field(default_factory=LoraAggregation)
    scale: float | None = None
    """The s of s B A for a plain LoRA; None for everything else."""
    patterns: tuple[str, ...] = ()
    """Globs, or parts of names, of the parameters that travel; empty: all."""
    ranks: tuple[int, ...] = ()
    """Ranks of the clients by index, repeated cyclically; empty: the adapter's for all."""
    layers: tuple[tuple[int, ...], ...] = ()
    """Decoder layers of the clients by index, repeated cyclically; empty: all layers for all."""
    private: bool = False
    """Clients have a private prompt behind the shared one."""

    @property
    def keeps(self) -> bool:
        """Whether some trained parameters never leave their client."""
        return bool(self.patterns or self.lora.personal_kinds or self.lora.shape == "twin" or self.private)

    def travels(self, name: str) -> bool:
        """Say whether a trained parameter is shared."""
        if kind_of(name) in self.lora.personal_kinds or PERSONAL in name.split("."):
            return False
        return not self.patterns or any(fnmatchcase(name, p) or p in name for p in self.patterns)

    def trained_names(self, names: Iterable[str], round: int) -> list[str]:
        """Return the names of the shared parameters that are trained, and returned, in a round."""
        return [name for name in names if self.lora.trains(kind_of(name), round)]

    def rank_of(self, client: int) -> int | None:
        """Return the rank of a client; None: the adapter's."""
        return self.ranks[client % len(self.ranks)] if self.ranks else None

    def layers_of(self, client: int) -> tuple[int, ...] | None:
        """Return the decoder layers of a client; None: all."""
        return self.layers[client % len(self.layers)] if self.layers else None


def with_layers(values: Tensors, layers: Collection[int] | None) -> Tensors:
    """Return the parameters of these layers, and those outside any layer; `layers` None: all parameters."""
    if layers is None:
        return values
    return {name: value for name, value in values.items() if layer_of(name) is None or layer_of(name) in layers}


class Holders:
    """Takes each parameter's mean over the clients that hold it (Diao et al. 2021, arXiv 2010.01264, eq. 3)."""

    def __init__(self, like: Tensors) -> None:
        self._like = like
        self._all = 0.0
        self._weights: dict[str, float] = {}

    def watch(self, updates: Iterable[Update]) -> Iterator[Update]:
        """Yield the updates, with zeros for the parameters that a client does not hold."""
        for update in updates:
            delta = update.streams[DELTA]
            self._all += update.weight
            for name in delta:
                self._weights[name] = self._weights.get(name, 0.0) + update.weight
            names = {name for params in (delta, self._like) for name in params}
            # The mean is over all clients, so holders are weighted by zeros here and rescaled in `mean`.
            full = {n: delta[n] if n in delta else torch.zeros_like(self._like[n]) for n in sorted(names)}
            yield replace(update, streams=update.streams | {DELTA: full})

    def mean(self, total: Total) -> Total:
        """Return the total with each parameter's mean over its holders; one that nobody holds keeps its zeros."""
        if DELTA not in total.streams:
            return total
        delta = total.streams[DELTA].items()
        of = {
            name: value * (self._all / self._weights[name]) if name in self._weights else value for name, value in delta
        }
        return replace(total, streams=total.streams | {DELTA: of})


def crop_rank(values: Tensors, rank: int | None) -> Tensors:
    """Return the leading `rank` components of every LoRA factor; other tensors unchanged."""
    if rank is None:
        return values
    result = {}
    for name, value in values.items():
        kind = kind_of(name) if value.dim() == 2 else ""
        # A (r, k) has a component in each row, B (d, r) in each column, R (r, r) in both.
        if kind in ("A", "R"):
            value = value[:rank]
        if kind in ("B", "R"):
            value = value[:, :rank]
        result[name] = value
    return result


def crop_like(values: Tensors, like: Tensors) -> Tensors:
    """Return each tensor cropped at its ends to the shape of its namesake in `like`, contiguous."""
    return {
        name: values[name][tuple(slice(0, n) for n in shape_of.shape)].contiguous() for name, shape_of in like.items()
    }


def pad(values: Tensors, like: Tensors) -> Tensors:
    """Return the tensors padded with zeros at their ends to the shapes of their namesakes in `like`.

    A component whose row of A and column of B are both zero has no gradient, so it stays zero in training.
    """
    result = {}
    for name, value in values.items():
        shape = like[name].shape if name in like else value.shape
        if value.shape != shape and value.dim() == len(shape):
            full = torch.zeros(shape, dtype=value.dtype, device=value.device)
            full[tuple(slice(0, n) for n in value.shape)] = value
            value = full
        result[name] = value
    return result


def pad_update(update: Update, like: Tensors) -> Update:
    """Return an update of a client of smaller rank, padded to the server's shapes."""
    return replace(update, streams={stream: pad(values, like) for stream, values in update.streams.items()})
