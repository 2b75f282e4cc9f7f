"""What all local training has in common that bounds and hides single units: which take part, and for how much noise.

At every step each unit (a row, or all rows of a patient) takes part with the same probability q, by coins that the
client's secret decides. What a unit adds to a sum has a norm of C at most, and the sum gets noise of the deviation z C.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from weft.core.tensors import seed_used_devices
from weft.training.job import Job
from weft.training.loop import GradientSteps

Words = tuple[str | int, ...]


def no_noise(units: int) -> float:
    """Return 0: nothing is protected. For tests and for measuring what the bound alone does."""
    return 0.0


@dataclass(frozen=True)
class Hiding(GradientSteps):
    """Steps on sums over units; `batch_size * accumulation` units are expected at each."""

    hides_units: ClassVar[bool] = True
    bound: float = 1.0
    """C, the largest norm of what a unit adds."""
    noise_of: Callable[[int], float] = field(default=no_noise, compare=False)
    """Returns z, the deviation of the noise as a multiple of the bound, for a client with so many units."""

    @property
    def expected(self) -> int:
        """The expected number of units at a step."""
        return self.batch_size * self.accumulation

    def probability(self, units: int) -> float:
        """Return q, the probability that a unit takes part in a step, for a client with so many units."""
        return min(1.0, self.expected / units)

    def deviation(self, units: int) -> float:
        """Return the standard deviation of the noise on a sum, for a client with so many units."""
        noise = self.noise_of(units)
        return noise * self.bound if noise else 0.0  # without noise the bound may be infinite

    def draw(self, units: Sequence[np.ndarray], job: Job, words: Words) -> list[np.ndarray]:
        """Return the rows of each unit that takes part in a step, and seed what is random in the model.

        Dropout must not tell who takes part either: its numbers are the secret's too.
        """
        secret = job.secret()
        seed_used_devices(int.from_bytes(secret.bytes(8, *words, "dropout"), "little") >> 1)
        coins = secret.uniform(len(units), *words, "sample")
        return [units[int(number)] for number in np.flatnonzero(coins < self.probability(len(units)))]

    def groups(self, units: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """Yield units that are computed together: of at most `batch_size` rows, or one unit of more."""
        group: list[np.ndarray] = []
        for rows in units:
            if group and sum(map(len, group)) + len(rows) > self.batch_size:
                yield group
                group = []
            group.append(rows)
        if group:
            yield group


def units_of(unit_of_row: np.ndarray | None, count: int) -> list[np.ndarray]:
    """Return the rows of each unit of a client with `count` rows, in the order of the units' numbers.

    Args:
        unit_of_row: (count,) the unit of each row; None: each row is one.
        count: of the client's rows.
    """
    if unit_of_row is None:
        return list(np.arange(count)[:, None])
    order = np.argsort(unit_of_row, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(unit_of_row[order])) + 1)
