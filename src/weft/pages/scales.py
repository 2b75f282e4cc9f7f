"""Round numbers for the axes of charts."""

from __future__ import annotations

import math
from collections.abc import Callable

from weft.runs.text import human_number


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers between two, in steps of 1, 2 or 5 times a power of ten; `most` at most."""
    if not high > low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10, 20) if (high - low) / (step * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def whole_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round whole numbers between two."""
    return [value for value in ticks(low, high, most) if abs(value - round(value)) < 1e-9]


def log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten between two positive numbers; between powers that are far apart every second, third, ..."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    every = max(1, -(-(last - first + 1) // 6))
    found = [10.0**power for power in range(first, last + 1, every)]
    return found or [low, high]


def tick_text(value: float, step: float) -> str:
    """Return the label of a tick, with as many decimal places as its step has."""
    size = abs(value)
    if size >= 1000:
        return human_number(value)
    if step <= 0 or step < 1e-4:
        return f"{value:.3g}"
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def power_text(value: float) -> str:
    """Return the label of a tick of a logarithmic axis."""
    return f"{value:.0e}" if value < 1e-3 or value >= 1e5 else f"{value:g}"


class Scale:
    """A map from numbers to places, linear or logarithmic."""

    def __init__(self, low: float, high: float, start: float, end: float, *, logarithmic: bool = False) -> None:
        """`low` is put at `start` and `high` at `end`."""
        self._change: Callable[[float], float] = math.log10 if logarithmic else float
        self._low, self._high = self._change(low), self._change(high)
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        """Return the place of a number."""
        share = (self._change(value) - self._low) / ((self._high - self._low) or 1.0)
        return self._start + share * (self._end - self._start)
