"""Local steps under differential privacy: DP-SGD (Abadi et al. 2016, arXiv 1607.00133).

At every step each unit (a row, or all rows of a patient) takes part with the same probability q, by coins that the
client's secret decides. The gradient of a unit is that of the mean loss of its rows; it is clipped to a norm of C. The
step follows (sum of the clipped gradients + noise of the deviation z C) / (the expected number of units): the rows of a
unit enter nowhere else, so what is computed from these gradients costs no further privacy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from weft.core.objective import Objective
from weft.core.parts import LocalRule
from weft.core.types import Tensors
from weft.errors import ClientFailed
from weft.models.resident import Resident
from weft.training.job import Job, LocalResult, RowTable
from weft.training.layer_gradients import Owners
from weft.training.loop import GradientSteps
from weft.training.per_example import PerExample, clipped_sums

Words = tuple[str | int, ...]


def no_noise(units: int) -> float:
    """Return 0: nothing is protected. For tests and for measuring what clipping alone does."""
    return 0.0


@dataclass(frozen=True)
class PrivateSteps(GradientSteps):
    """DP-SGD on the units of a client; `batch_size * accumulation` units are expected at a step."""

    hides_units: ClassVar[bool] = True
    bound: float = 1.0
    """C, the largest norm of a unit's gradient."""
    noise_of: Callable[[int], float] = field(default=no_noise, compare=False)
    """Returns z, the deviation of the noise as a multiple of the bound, for a client with so many units."""

    def work(self, model: Resident, objective: Objective, rows: RowTable, rule: LocalRule, job: Job) -> LocalResult:
        """Train on a job; no metric of the rows is among the result's.

        Raises:
            ClientFailed: a parameter or the update is not finite at the end, or the time allowed is too short for one
                step.
        """
        units = units_of(job.units, len(rows))
        noise = self.noise_of(len(units))
        session = self._begin(model, rule, job, len(units))
        scaler = torch.amp.GradScaler(model.device.type, enabled=False)
        per_example = PerExample(model)
        lr_sum = 0.0
        for step in range(session.steps):
            lr = self.schedule.at(job.round, step, session.full_steps)
            words = (job.purpose, job.round, job.attempt, step, _digest(model.trainable()))
            sums: Tensors = {}
            for group in self._groups(self._draw(units, job, words)):
                _add(sums, self._clipped(model, objective, per_example, rows, group))
            # Without noise the bound may be infinite, whose product with 0 is no number.
            self._put_gradients(model, sums, noise * self.bound if noise else 0.0, job, words)
            self._step(model, rule, session.optimizer, scaler, session.masters, lr, step)
            lr_sum += lr
        if not model.finite():
            raise ClientFailed(f"a parameter is not a finite number after {session.steps} steps")
        metrics = {"steps": float(session.steps), "learning_rate": lr_sum / session.steps}
        return self._end(model, rule, job, session, session.steps, lr_sum, metrics)

    def probability(self, units: int) -> float:
        """Return q, the probability that a unit takes part in a step, for a client with so many units."""
        return min(1.0, self.batch_size * self.accumulation / units)

    def _draw(self, units: Sequence[np.ndarray], job: Job, words: Words) -> list[np.ndarray]:
        """Return the rows of each unit that takes part in a step, and seed what is random in the model.

        Dropout must not tell who takes part either: its numbers are the secret's too.
        """
        secret = job.secret()
        torch.manual_seed(int.from_bytes(secret.bytes(8, *words, "dropout"), "little") >> 1)
        coins = secret.uniform(len(units), *words, "sample")
        return [units[int(number)] for number in np.flatnonzero(coins < self.probability(len(units)))]

    def _groups(self, units: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """Yield units that are computed together: of at most `batch_size` rows, or one unit of more."""
        group: list[np.ndarray] = []
        for rows in units:
            if group and sum(map(len, group)) + len(rows) > self.batch_size:
                yield group
                group = []
            group.append(rows)
        if group:
            yield group

    def _clipped(
        self,
        model: Resident,
        objective: Objective,
        per_example: PerExample,
        rows: RowTable,
        units: Sequence[np.ndarray],
    ) -> Tensors:
        """Return the sum of the clipped gradients of some units, by parameter."""
        batch = objective.separate([rows[int(row)] for unit in units for row in unit], model.line_step)
        batch = batch.to(model.device)
        sizes = torch.tensor([len(unit) for unit in units], device=model.device)
        unit_of_row = torch.repeat_interleave(torch.arange(len(units), device=model.device), sizes)
        owners = Owners(unit_of_row.repeat_interleave(batch.lines_of_row), len(units))

        def losses() -> Tensor:
            each: Tensor = objective.row_losses(model, batch)
            return each / sizes[unit_of_row]

        return clipped_sums(per_example.gradients(losses, owners), self.bound)

    def _put_gradients(self, model: Resident, sums: Tensors, deviation: float, job: Job, words: Words) -> None:
        """Set the gradients of the masters: of the sums, with noise, over the expected number of units."""
        expected = self.batch_size * self.accumulation
        secret = job.secret() if deviation else None
        for name, master in model.trainable().items():
            total = sums[name].double() if name in sums else torch.zeros_like(master, dtype=torch.float64)
            if secret is not None:
                total += deviation * secret.normal(tuple(master.shape), *words, "noise", name).to(total.device)
            master.grad = (total / expected).float()


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


def _add(sums: Tensors, more: Tensors) -> None:
    for name, value in more.items():
        sums[name] = sums[name] + value if name in sums else value


def _digest(values: Tensors) -> str:
    """Return a digest of parameters.

    The noise of a step is drawn for these parameters alone: a server that asks for a round again, from others, would
    else get the same noise on another gradient, and could take it off.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, value in values.items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
