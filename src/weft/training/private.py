"""Local steps under differential privacy: DP-SGD (Abadi et al. 2016, arXiv 1607.00133).

The gradient of a unit is that of the mean loss of its rows; it is clipped to a norm of C. The step follows (sum of the
clipped gradients + noise of the deviation z C) / (the expected number of units): the rows of a unit enter nowhere else,
so what is computed from these gradients costs no further privacy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from weft.core.objective import Objective
from weft.core.parts import LocalRule
from weft.core.tensors import digest
from weft.core.types import Tensors
from weft.errors import ClientFailed, ConfigError
from weft.models.resident import Resident
from weft.training.hiding import Hiding, Words, units_of
from weft.training.job import Job, LocalResult, RowTable
from weft.training.layer_gradients import Owners
from weft.training.per_example import PerExample, clipped_sums


@dataclass(frozen=True)
class PrivateSteps(Hiding):
    """DP-SGD on the units of a client."""

    def work(self, model: Resident, objective: Objective, rows: RowTable, rule: LocalRule, job: Job) -> LocalResult:
        """Train on a job; no metric of the rows is among the result's.

        Raises:
            ClientFailed: a parameter or the update is not finite at the end, or the time allowed is too short for one
                step.
            ConfigError: the rule adds a term to the loss of a batch.
        """
        if type(rule).loss_term is not LocalRule.loss_term:
            raise ConfigError(
                f"{type(rule).__name__} adds a term to the loss of several rows together, so that no bound of one row "
                "holds: set the algorithm's trait batch_loss, and write --privacy_unit client."
            )
        units = units_of(job.units, len(rows))
        deviation = self.deviation(len(units))
        session = self._begin(model, rule, job, len(units))
        scaler = torch.amp.GradScaler(model.device.type, enabled=False)
        per_example = PerExample(model)
        lr_sum = 0.0
        for step in range(session.steps):
            lr = self.schedule.at(job.round, step, session.full_steps)
            words = (job.purpose, job.round, job.attempt, step, digest({"": model.trainable()}))
            sums: Tensors = {}
            for group in self.groups(self.draw(units, job, words)):
                _add(sums, self._clipped(model, objective, per_example, rows, group))
            self._put_gradients(model, sums, deviation, job, words)
            self._step(model, rule, session.optimizer, scaler, session.masters, lr, step)
            lr_sum += lr
        if not model.finite():
            raise ClientFailed(f"a parameter is not a finite number after {session.steps} steps")
        metrics = {"steps": float(session.steps), "learning_rate": lr_sum / session.steps}
        return self._end(model, rule, job, session, session.steps, lr_sum, metrics)

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
        secret = job.secret() if deviation else None
        # Noise of another scale, or on another sum, is other noise: the difference of two answers tells nothing.
        words += (str(deviation), digest({"": sums}))
        for name, master in model.trainable().items():
            total = sums[name].double() if name in sums else torch.zeros_like(master, dtype=torch.float64)
            if secret is not None:
                total += deviation * secret.normal(tuple(master.shape), *words, "noise", name).to(total.device)
            master.grad = (total / self.expected).float()


def _add(sums: Tensors, more: Tensors) -> None:
    for name, value in more.items():
        sums[name] = sums[name] + value if name in sums else value
