"""Messages as bytes and means of updates, beside copying as many bytes: a message of 420 MB, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from common import machine, median, report

from weft.aggregation.mean import Mean
from weft.core.types import DELTA, Update
from weft.core.wire import pack, unpack

MATRICES, SIZE, CLIENTS, TIMES = 100, 1024, 6, 5
PACK, UNPACK, MEAN = 2.0, 1.0, 2.4
"""Bounds: writing is one copy and a pass for the digest, reading is that pass only."""


def update(client: int, matrices: int, size: int) -> Update:
    """Return an update of `matrices` square matrices in float32."""
    delta = {f"layer{number}.weight": torch.full((size, size), float(client)) for number in range(matrices)}
    return Update(str(client), 0, 0, {DELTA: delta}, 1.0)


def taken(action: Callable[[], Any]) -> float:
    """Return the seconds of an action; what it returns is freed before the clock stops, as its copies' memory is."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def main(matrices: int = MATRICES, size: int = SIZE, times: int = TIMES) -> None:
    """Alternate all of them and print the ratios of the medians."""
    torch.set_num_threads(1)
    updates = [update(client, matrices, size) for client in range(CLIENTS)]
    raw = pack(updates[0])
    buffer = bytearray(raw)  # what comes over a wire can be written to, so that tensors are views of it
    mean = [values.clone() for values in updates[0].streams[DELTA].values()]

    def copies() -> None:
        for one in updates:
            for there, value in zip(mean, one.streams[DELTA].values(), strict=True):
                there.copy_(value)

    arms: dict[str, Callable[[], Any]] = {
        "copy to new memory": lambda: bytearray(raw),
        "pack": lambda: pack(updates[0]),
        "unpack": lambda: unpack(buffer),
        "copies of the updates": copies,
        "mean of the updates": lambda: Mean().combine(iter(updates)),
    }
    found: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(times + 1):
        for name, action in arms.items():
            if (seconds := taken(action)) and number:
                found[name].append(seconds)
    best = {name: median(values) for name, values in found.items()}
    print(f"# {machine()}; {len(raw) / 1e6:.0f} MB, {CLIENTS} updates, one thread")
    for name, seconds in best.items():
        size_of = len(raw) * (CLIENTS if "updates" in name else 1)
        print(f"{name:<24} {seconds:7.3f} s   {size_of / seconds / 1e9:6.2f} GB/s")
    report("writing a message / copying it to new memory", best["pack"] / best["copy to new memory"], PACK, most=True)
    report(
        "reading a message / copying it to new memory", best["unpack"] / best["copy to new memory"], UNPACK, most=True
    )
    report("the mean of updates / copying them", best["mean of the updates"] / best["copies of the updates"], MEAN,
           most=True)  # fmt: skip


if __name__ == "__main__":
    main()
