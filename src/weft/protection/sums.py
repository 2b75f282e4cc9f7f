"""An update as integers that can be added, and a sum of them as an update again.

The streams become one vector of numbers modulo a power of two (`fixed_point`). The weight, single numbers, metrics and
the sizes of tensors become a short vector modulo 2^64, whose range and precision fit counts. Streams are weighted at
the client: the sum of w x and the sum of w give the weighted mean, and no weight is seen. A metric's place follows from
its name.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from weft.core.types import SCALARS, Metrics, Streams, Update
from weft.errors import ClientFailed
from weft.protection import fixed_point, masking
from weft.protection.fixed_point import Range

SLOTS = 256
"""Places of metrics in the vector of counts; a name whose place another name has is left out."""
FRACTION = 2.0**24
"""Integers for 1.0 in the vector of counts: sums of up to 5e11 are exact to 6e-8."""
WEIGHT_FRACTION = 2.0**44
"""The same for the weight, which is at most 1: the sum of clients' rows is exact up to 10^8 rows."""
FINE = ("learning_rate", "learning_rates")
"""A metric and a single number far below 1: they have as many integers as the weight, and are exact to 3e-14."""
LARGEST = 2.0**31 * FRACTION
"""Largest integer of one client in the vector of counts, so that sums over 2^8 clients and more cannot wrap."""
FIRST_FRACTION = 2.0**50
"""The same for sizes of tensors before any bound is known, when they may be tiny: means of squares of gradients are."""
WIDER = 12.0
"""Largest size of a tensor that is counted, as a multiple of its bound; 1 before any bound is known."""
TIGHT, LOOSE = 1.5, 1024.0
"""Bounds that are announced, as multiples of the largest size of the round before."""
NOT_FINITE = "has an update with numbers that are not finite, which it must not hide in a sum"
CUT = "cut_values"
"""The metric that counts values beyond the bound."""


class Masked(NamedTuple):
    """What is masked, and then added."""

    numbers: np.ndarray
    """(d,) uint16, uint32 or uint64."""
    counts: np.ndarray
    """uint64: weight, values that were cut, single numbers, SLOTS metrics, and the size of each tensor."""

    def add_masks(self, secret: bytes, sign: int) -> None:
        """Add to both the masks that follow from 32 secret bytes (sign 1), or take them off (-1)."""
        masking.add_mask(self.numbers, masking.derive(secret, "numbers"), sign)
        masking.add_mask(self.counts, masking.derive(secret, "counts"), sign)


class Grid(NamedTuple):
    """What the integers of a sum stand for; everybody in it has the same."""

    bound: float
    """Largest absolute value of a number where no bounds are announced."""
    terms: int
    """Most clients of the sum."""
    heaviest: float
    """The weight that counts 1; a larger one counts 1 too."""
    bits: int = fixed_point.WIDE
    """As of `Range`."""
    sized: bool = True
    """Whether the sizes of tensors are counted, from which the server announces bounds."""
    bounds: tuple[float, ...] = ()
    """Of each tensor, which the server announces; empty: none are known yet."""

    @property
    def few(self) -> bool:
        """Whether numbers have few bits."""
        return self.ranges(1)[0].few

    @property
    def measured(self) -> bool:
        """Whether bounds are announced, so that sizes are well known after the sum."""
        return self.bits != fixed_point.WIDE

    @property
    def width(self) -> int:
        """Bits of the modulus."""
        return self.ranges(1)[0].width

    @property
    def power(self) -> int:
        """The power in which sizes of tensors are added: a higher one gives a value nearer to the largest size.

        Where bounds are generous, sizes are small fractions of them, of which a higher power would vanish.
        """
        return {fixed_point.WIDE: 1, fixed_point.WHOLE: 2}.get(self.bits, 8)

    @property
    def fraction(self) -> float:
        """Integers for 1.0 of such powers in the vector of counts."""
        if not self.measured:
            return FIRST_FRACTION
        return FRACTION if self.few else WEIGHT_FRACTION

    def ranges(self, count: int) -> list[Range]:
        """Return the range of each of so many tensors."""
        return [Range(bound, self.terms, self.bits) for bound in self.bounds or (self.bound,) * count]

    def still(self, sizes: np.ndarray) -> np.ndarray:
        """Return (tensors,) bool: which did not move, or less than can be measured; `sizes` as of `next_bounds`.

        What did not move says nothing of how it will: of LoRA's factors, A stands still in a first step.
        """
        none: np.ndarray = sizes * self.fraction < 1
        return none

    def next_bounds(self, sizes: np.ndarray, few: bool) -> np.ndarray:
        """Return bounds (tensors,) for the next round.

        The root of the sum of powers is at least the largest size; that of eighth powers, for 100 clients, at most 1.8
        times that. Numbers of few bits have no room to spare. Others have bounds that a learning rate which is still
        rising does not reach.

        Args:
            sizes: added powers of the sizes of tensors, as multiples of the bounds of this round.
            few: whether numbers will have few bits.
        """
        roots = np.maximum(sizes, 1 / self.fraction) ** (1 / self.power)
        now = np.array([one.bound for one in self.ranges(len(sizes))])
        room = TIGHT if few else LOOSE
        bounds: np.ndarray = np.clip(room * now * roots, 1e-30, self.bound)
        return bounds


def heaviest_in(values: Mapping[str, Tensor]) -> float:
    """Return the weight that counts 1, as the server sent it; ClientFailed where it sent none."""
    heaviest = values.get("heaviest")
    if heaviest is None or heaviest.numel() != 1 or not 0 < float(heaviest) < float("inf"):
        raise ClientFailed("was sent no largest weight")
    return float(heaviest)


def vector_names(streams: Streams) -> list[tuple[str, str]]:
    """Return streams and names of the numbers, in their order in the vector."""
    return [(stream, name) for stream in sorted(streams) if stream != SCALARS for name in sorted(streams[stream])]


def place_of(name: str) -> int:
    """Return the place of a metric among SLOTS."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % SLOTS


def to_integers(
    update: Update, grid: Grid, chance: np.random.Generator | None, *, bare: bool = False
) -> tuple[Masked, list[str]]:
    """Return an update as integers, and the names of the metrics among them.

    Args:
        update: of one client.
        grid: what the integers of w x stand for, where w is at most 1.
        chance: rounds numbers of few bits; not needed otherwise.
        bare: nothing is counted beside the numbers: neither how many were cut nor how large tensors are. Privacy of
            clients accounts for the sum of the numbers alone.

    Raises:
        ClientFailed: a number is not finite.
    """
    share = min(1.0, update.weight / grid.heaviest)
    names = vector_names(update.streams)
    numbers, sizes, cut = [np.zeros(0, dtype=fixed_point.kind_of(grid.width))], list[float](), 0
    for (stream, name), within in zip(names, grid.ranges(len(names)), strict=True):
        values = update.streams[stream][name].detach().cpu().reshape(-1).float().numpy() * np.float32(share)
        if not np.isfinite(values).all():
            raise ClientFailed(NOT_FINITE)
        integers, more = fixed_point.encode(values, within, chance)
        numbers.append(integers)
        cut += more
        largest = float(np.abs(values).max(initial=0.0)) / within.bound
        widest = WIDER if grid.measured else 1.0  # so that sums of thousands of sizes do not wrap
        sizes.append(min(widest, largest) ** grid.power if grid.sized and not bare else 0.0)
    scalars = [share * float(value) for _, value in sorted(update.streams.get(SCALARS, {}).items())]
    metric_names, places = [], set[int]()
    metrics = np.zeros(SLOTS)
    for name, value in sorted(update.metrics.items()):
        if (place := place_of(name)) not in places:
            places.add(place)
            metric_names.append(name)
            metrics[place] = value
    counts = np.array([share, 0 if bare else cut, *scalars, *metrics, *sizes])
    if not np.isfinite(counts).all():
        raise ClientFailed(NOT_FINITE)
    whole = np.rint(counts * _fractions(update.streams, grid))
    if np.abs(whole).max() > LARGEST:
        # Not its size: the server hears this, and could send a model for which every client must tell its loss.
        raise ClientFailed("has a metric that is too large for a masked sum")
    return Masked(np.concatenate(numbers), whole.astype(np.int64).view(np.uint64)), metric_names


def to_update(total: Masked, like: Streams, names: Collection[str], grid: Grid) -> Update | None:
    """Return the sum of updates as their weighted mean, without client and round; None where its weight cannot be.

    Args:
        total: of the members, without masks.
        like: streams of an update.
        names: of all metrics that a member has.
        grid: as in `to_integers`.
    """
    tensors = vector_names(like)
    counts = total.counts.view(np.int64).astype(np.float64) / _fractions(like, grid)
    weight = counts[0]
    if not 0 < weight <= grid.terms * (1 + 1e-6):  # each weighs 1 at most: somebody masked what no client has
        return None
    streams: Streams = {stream: {} for stream in like}
    at = 0
    for (stream, name), within in zip(tensors, grid.ranges(len(tensors)), strict=True):
        shape, dtype = like[stream][name].shape, like[stream][name].dtype
        size = math.prod(shape)
        values = (fixed_point.decode(total.numbers[at : at + size], within) / weight).astype(np.float32)
        streams[stream][name] = torch.from_numpy(values).reshape(shape).to(dtype)
        at += size
    for number, (name, value) in enumerate(sorted(like.get(SCALARS, {}).items())):
        streams[SCALARS][name] = torch.tensor(counts[2 + number] / weight, dtype=value.dtype)
    slots = counts[len(counts) - len(tensors) - SLOTS :][:SLOTS]
    return Update("", 0, 0, streams, _whole(weight * grid.heaviest), _metrics(slots, counts[1], names))


def sizes_in(total: Masked, tensors: int, grid: Grid) -> np.ndarray:
    """Return the added powers of the tensors' sizes (tensors,)."""
    sizes: np.ndarray = total.counts.view(np.int64)[len(total.counts) - tensors :] / grid.fraction
    return sizes


def _fractions(like: Streams, grid: Grid) -> np.ndarray:
    """Return the integers for 1.0 of each place in the vector of counts of such streams."""
    scalars, tensors = sorted(like.get(SCALARS, {})), len(vector_names(like))
    metrics = np.full(SLOTS, FRACTION)
    metrics[[place_of(name) for name in FINE]] = WEIGHT_FRACTION
    single = [WEIGHT_FRACTION if name in FINE else FRACTION for name in scalars]
    return np.array([WEIGHT_FRACTION, FRACTION, *single, *metrics, *[grid.fraction] * tensors])


def lengths_of(like: Streams) -> tuple[int, int]:
    """Return the lengths of the two vectors of an update."""
    names = vector_names(like)
    numbers = sum(like[stream][name].numel() for stream, name in names)
    return numbers, 2 + len(like.get(SCALARS, {})) + SLOTS + len(names)


def zeros(like: Streams, width: int) -> Masked:
    """Return an empty sum."""
    numbers, counts = lengths_of(like)
    return Masked(np.zeros(numbers, fixed_point.kind_of(width)), np.zeros(counts, np.uint64))


def _metrics(slots: np.ndarray, cut: float, names: Collection[str]) -> Metrics:
    places = [place_of(name) for name in names]
    found = {name: float(slots[place_of(name)]) for name in sorted(names) if places.count(place_of(name)) == 1}
    metrics = {name: value if name in FINE else _whole(value) for name, value in found.items()}
    return metrics | ({CUT: _whole(cut)} if cut > 0 else {})


def _whole(value: float) -> float:
    """Return the nearest integer of a count, which its rounded value is off by less than this."""
    nearest = float(round(value))
    return nearest if nearest and abs(value - nearest) < 1e-4 else float(value)


def as_tensors(masked: Masked, width: int) -> dict[str, Tensor]:
    """Return the vectors as tensors for the wire: the numbers as packed bytes, the counts as int64."""
    return {
        "numbers": fixed_point.pack(masked.numbers, width),
        "counts": torch.from_numpy(masked.counts.view(np.int64)),
    }


def from_tensors(values: dict[str, Tensor], like: Streams, width: int) -> Masked | None:
    """Return the vectors of tensors, or None where these are no such."""
    raw, counts = values.get("numbers"), values.get("counts")
    length, counted = lengths_of(like)
    if raw is None or counts is None or counts.dtype != torch.int64 or tuple(counts.shape) != (counted,):
        return None
    numbers = fixed_point.unpack(raw, length, width)
    return None if numbers is None else Masked(numbers, counts.numpy().view(np.uint64))
