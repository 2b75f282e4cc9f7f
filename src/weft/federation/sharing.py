"""What of the trained parameters travels, and in which shape: patterns, kinds of LoRA factors, ranks of clients."""

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
    """What travels between the server and its clients."""

    lora: LoraAggregation = field(default_factory=LoraAggregation)
    scale: float | None = None
    """The s of s B A, where the model is trained by a LoRA whose product is added to the layer."""
    patterns: tuple[str, ...] = ()
    """Which parameters travel, as globs or parts of names; empty: all."""
    ranks: tuple[int, ...] = ()
    """Ranks of the clients by their index, over and over; empty: everybody has the adapter's."""

    layers: tuple[tuple[int, ...], ...] = ()
    """The decoder's layers that the clients have, by their index, over and over; empty: everybody has all."""
    private: bool = False
    """Clients have a prompt of their own behind the shared one."""

    @property
    def keeps(self) -> bool:
        """Whether clients keep trained parameters to themselves."""
        return bool(self.patterns or self.lora.kept or self.lora.shape == "twin" or self.private)

    def travels(self, name: str) -> bool:
        """Say whether a trained parameter is shared."""
        if kind_of(name) in self.lora.kept or PERSONAL in name.split("."):
            return False
        return not self.patterns or any(fnmatchcase(name, p) or p in name for p in self.patterns)

    def trained(self, names: Iterable[str], round: int) -> list[str]:
        """Return which of the shared parameters are trained, and sent back, in a round."""
        return [name for name in names if self.lora.trained(kind_of(name), round)]

    def rank_of(self, client: int) -> int | None:
        """Return the rank of a client, or None where it is the adapter's own."""
        return self.ranks[client % len(self.ranks)] if self.ranks else None

    def layers_of(self, client: int) -> tuple[int, ...] | None:
        """Return the layers that a client has, or None where it has all."""
        return self.layers[client % len(self.layers)] if self.layers else None


def with_layers(values: Tensors, layers: Collection[int] | None) -> Tensors:
    """Return the parameters of these layers, and those of none; None: all."""
    if layers is None:
        return values
    return {name: value for name, value in values.items() if layer_of(name) is None or layer_of(name) in layers}


class Holders:
    """Makes each parameter's mean one over the clients that have it (Diao et al. 2021, arXiv 2010.01264, eq. 3)."""

    def __init__(self, like: Tensors) -> None:
        self._like = like
        self._all = 0.0
        self._weights: dict[str, float] = {}

    def watch(self, updates: Iterable[Update]) -> Iterator[Update]:
        """Pass updates on, with zeros for the parameters that a client does not have."""
        for update in updates:
            delta = update.streams[DELTA]
            self._all += update.weight
            for name in delta:
                self._weights[name] = self._weights.get(name, 0.0) + update.weight
            names = {name for one in (delta, self._like) for name in one}
            full = {n: delta[n] if n in delta else torch.zeros_like(self._like[n]) for n in sorted(names)}
            yield replace(update, streams=update.streams | {DELTA: full})

    def mean(self, total: Total) -> Total:
        """Return the total with each parameter's mean over its holders; what nobody has stays as it is."""
        if DELTA not in total.streams:
            return total
        delta = total.streams[DELTA].items()
        of = {
            name: value * (self._all / self._weights[name]) if name in self._weights else value for name, value in delta
        }
        return replace(total, streams=total.streams | {DELTA: of})


def cut(values: Tensors, rank: int | None) -> Tensors:
    """Return the leading `rank` components of every factor; other tensors as they are."""
    if rank is None:
        return values
    made = {}
    for name, value in values.items():
        kind = kind_of(name) if value.dim() == 2 else ""
        if kind in ("A", "R"):
            value = value[:rank]
        if kind in ("B", "R"):
            value = value[:, :rank]
        made[name] = value
    return made


def cut_like(values: Tensors, like: Tensors) -> Tensors:
    """Return the leading part of every tensor that has the shape of its namesake, contiguous."""
    return {name: values[name][tuple(slice(0, n) for n in one.shape)].contiguous() for name, one in like.items()}


def pad(values: Tensors, like: Tensors) -> Tensors:
    """Return the tensors filled up with zeros at the ends to the shapes of their namesakes.

    A component whose row of A and column of B are both zero has no gradient, so it stays as it is in training.
    """
    made = {}
    for name, value in values.items():
        shape = like[name].shape if name in like else value.shape
        if value.shape != shape and value.dim() == len(shape):
            full = torch.zeros(shape, dtype=value.dtype, device=value.device)
            full[tuple(slice(0, n) for n in value.shape)] = value
            value = full
        made[name] = value
    return made


def padded(update: Update, like: Tensors) -> Update:
    """Return an update of a client of smaller rank in the server's shapes."""
    return replace(update, streams={stream: pad(values, like) for stream, values in update.streams.items()})
