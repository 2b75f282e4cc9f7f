"""An update as integers that can be added, and a sum of them as an update again.

The streams become one vector of numbers modulo 2^32 (`fixed_point`). The weight, single numbers and metrics become a
short vector modulo 2^64, whose range and precision fit counts. Streams are weighted at the client: the sum of w x and
the sum of w give the weighted mean, and no weight is seen. A metric's place follows from its name.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from weft.core.types import SCALARS, Metrics, Streams, Update
from weft.errors import ClientFailed
from weft.protection import fixed_point
from weft.protection.fixed_point import Range

SLOTS = 256
"""Places of metrics in the vector of counts; a name whose place another name has is left out."""
FRACTION = 2.0**24
"""Integers for 1.0 in the vector of counts: sums of up to 5e11 are exact to 6e-8."""
WEIGHT_FRACTION = 2.0**44
"""The same for the weight, which is at most 1: the sum of clients' rows is exact up to 10^8 rows."""
LARGEST = 2.0**31
"""Largest count of one client, so that sums over 2^8 clients and more cannot wrap."""
CUT = "cut_values"
"""The metric that counts values beyond the bound."""


class Masked(NamedTuple):
    """What is masked, and then added."""

    numbers: np.ndarray
    """(d,) uint32."""
    counts: np.ndarray
    """(2 + scalars + SLOTS,) uint64: weight, values that were cut, single numbers, metrics."""


def vector_names(streams: Streams) -> list[tuple[str, str]]:
    """Return streams and names of the numbers, in their order in the vector."""
    return [(stream, name) for stream in sorted(streams) if stream != SCALARS for name in sorted(streams[stream])]


def place_of(name: str) -> int:
    """Return the place of a metric among SLOTS."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % SLOTS


def to_integers(update: Update, within: Range, heaviest: float) -> tuple[Masked, list[str]]:
    """Return an update as integers, and the names of the metrics among them.

    Args:
        update: of one client.
        within: the range of w x, where w is at most 1.
        heaviest: the weight that counts 1; a larger one counts 1 too.

    Raises:
        ClientFailed: a number is not finite.
    """
    share = min(1.0, update.weight / heaviest)
    flat = [update.streams[stream][name].reshape(-1) for stream, name in vector_names(update.streams)]
    values = torch.cat(flat).float().numpy() if flat else np.zeros(0, dtype=np.float32)
    scalars = [float(value) for _, value in sorted(update.streams.get(SCALARS, {}).items())]
    names, places = [], set[int]()
    metrics = np.zeros(SLOTS)
    for name, value in sorted(update.metrics.items()):
        if (place := place_of(name)) not in places:
            places.add(place)
            names.append(name)
            metrics[place] = value
    counts = np.array([share, 0.0, *(share * value for value in scalars), *metrics])
    if not (np.isfinite(values).all() and np.isfinite(counts).all()):
        raise ClientFailed("has an update with numbers that are not finite, which it must not hide in a sum")
    numbers, counts[1] = fixed_point.encode(values * np.float32(share), within)
    if np.abs(counts).max() > LARGEST:
        raise ClientFailed(f"has a metric of size {np.abs(counts).max():.3g}, which is too large for a masked sum")
    return Masked(numbers, np.rint(counts * _fractions(len(counts))).astype(np.int64).view(np.uint64)), names


def to_update(total: Masked, like: Streams, names: Collection[str], within: Range, heaviest: float) -> Update | None:
    """Return the sum of updates as their weighted mean, without client and round; None where its weight cannot be.

    Args:
        total: of the members, without masks.
        like: streams of an update.
        names: of all metrics that a member has.
        within: as in `to_integers`.
        heaviest: as in `to_integers`.
    """
    counts = total.counts.view(np.int64).astype(np.float64) / _fractions(len(total.counts))
    weight = counts[0]
    if not 0 < weight <= within.terms * (1 + 1e-6):  # each weighs 1 at most: somebody masked what no client has
        return None
    values = torch.from_numpy((fixed_point.decode(total.numbers, within) / weight).astype(np.float32))
    streams: Streams = {stream: {} for stream in like}
    at = 0
    for stream, name in vector_names(like):
        shape, dtype = like[stream][name].shape, like[stream][name].dtype
        size = math.prod(shape)
        streams[stream][name] = values[at : at + size].reshape(shape).to(dtype)
        at += size
    for number, (name, value) in enumerate(sorted(like.get(SCALARS, {}).items())):
        streams[SCALARS][name] = torch.tensor(counts[2 + number] / weight, dtype=value.dtype)
    return Update("", 0, 0, streams, _whole(weight * heaviest), _metrics(counts, names))


def _fractions(count: int) -> np.ndarray:
    """Return the integers for 1.0 of each place in the vector of counts."""
    fractions = np.full(count, FRACTION)
    fractions[0] = WEIGHT_FRACTION
    return fractions


def sizes(like: Streams) -> tuple[int, int]:
    """Return the lengths of the two vectors of an update."""
    numbers = sum(like[stream][name].numel() for stream, name in vector_names(like))
    return numbers, 2 + len(like.get(SCALARS, {})) + SLOTS


def _metrics(counts: np.ndarray, names: Collection[str]) -> Metrics:
    places = [place_of(name) for name in names]
    slots = counts[-SLOTS:]
    metrics = {name: _whole(slots[place_of(name)]) for name in sorted(names) if places.count(place_of(name)) == 1}
    return metrics | ({CUT: _whole(counts[1])} if counts[1] > 0 else {})


def _whole(value: float) -> float:
    """Return the nearest integer of a count, which its rounded value is off by less than this."""
    nearest = float(round(value))
    return nearest if abs(value - nearest) < 1e-4 else float(value)


def as_tensors(masked: Masked) -> dict[str, Tensor]:
    """Return the vectors as tensors for the wire: int32 and int64."""
    return {
        "numbers": torch.from_numpy(masked.numbers.view(np.int32)),
        "counts": torch.from_numpy(masked.counts.view(np.int64)),
    }


def from_tensors(values: dict[str, Tensor], lengths: Sequence[int]) -> Masked | None:
    """Return the vectors of tensors, or None where these are no such."""
    numbers, counts = values.get("numbers"), values.get("counts")
    if numbers is None or counts is None or (numbers.dtype, counts.dtype) != (torch.int32, torch.int64):
        return None
    if (tuple(numbers.shape), tuple(counts.shape)) != ((lengths[0],), (lengths[1],)):
        return None
    return Masked(numbers.numpy().view(np.uint32), counts.numpy().view(np.uint64))
