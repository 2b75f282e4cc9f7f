"""Local training by loss differences along shared random directions: full parameters in the memory of inference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from weft.core import tensors
from weft.core.directions import direction
from weft.core.objective import Objective
from weft.core.parts import LocalRule
from weft.core.seeds import generator
from weft.core.shares import at_most
from weft.core.types import SEARCH, LocalWork
from weft.errors import ClientFailed
from weft.models.resident import Resident
from weft.training.job import Job, LocalResult, RowTable
from weft.training.loop import GradientSteps


@dataclass(frozen=True)
class SeedSteps(GradientSteps):
    """y <- y - lr rho z_j, rho = (L(y + e z_j) - L(y - e z_j)) / 2e, j drawn from K (MeZO, Malladi et al. 2023)."""

    kind: ClassVar[str] = "directions"

    def work(self, model: Resident, objective: Objective, rows: RowTable, rule: LocalRule, job: Job) -> LocalResult:
        """Train on a job; the rule receives, for each direction, the sum (count,) of lr * rho.

        Raises:
            ClientFailed: a loss is not finite, or the time allowed is too short for one step.
        """
        search_state = rule.search()
        count, epsilon, seed = int(search_state["count"]), float(search_state["epsilon"]), int(search_state["seed"])
        shared = rule.begin(job.shared)
        model.load(job.personal | shared)
        masters = {name: model.masters[name] for name in shared}
        full_steps = self.num_steps(len(rows))
        steps = at_most(full_steps, job.step_fraction)
        if steps < 1:
            raise ClientFailed(f"was too slow for one of {full_steps} steps")
        direction_numbers = generator(self.seed, "directions", job.client, job.round).integers(0, count, steps)
        sums = torch.zeros(count)
        lr_sum, loss_sum = 0.0, 0.0
        counts = {"loss_tokens": 0.0, "tokens": 0.0, "rows": 0.0}
        draw = self._draw(model, objective, full_steps, job)
        windows = self._windows(
            objective, rows, full_steps, job, lambda some, key: objective.act(model, some, key), draw
        )
        with model.evaluating():
            for step, window in zip(range(steps), windows, strict=False):
                lr = self.schedule.at(job.round, step, full_steps)
                number = int(direction_numbers[step])
                z = tensors.copy(direction(seed, number, masters), model.device)
                targets = sum(len(batch.targets) for batch in window)
                losses = []
                # From y to y + e z, then to y - e z: one copy of the parameters serves both.
                for move in (epsilon, -2 * epsilon):
                    self._move(model, masters, z, move)
                    total = sum(float(objective.loss(model, batch.to(model.device)).total) for batch in window)
                    losses.append(total / targets)
                slope = (losses[0] - losses[1]) / (2 * epsilon)
                if not math.isfinite(slope):
                    raise ClientFailed(f"the loss is not a finite number after {step} steps")
                self._move(model, masters, z, epsilon - lr * slope)  # back to y, and the step
                sums[number] += lr * slope
                lr_sum += lr
                loss_sum += sum(losses) / 2 * targets
                counts["loss_tokens"] += targets
                counts["tokens"] += sum(batch.tokens for batch in window)
                counts["rows"] += sum(batch.rows for batch in window)
        metrics = {"loss_sum": loss_sum, "steps": float(steps), "learning_rate": lr_sum / steps, **counts}
        if draw is not None:
            metrics |= draw.counts(steps * self.accumulation * self.batch_size)
        work_done = LocalWork(shared, shared, steps, lr_sum, {SEARCH: {"sums": sums}})
        return LocalResult(rule.finish(work_done), metrics, {})

    def _move(self, model: Resident, masters: dict[str, torch.Tensor], z: dict[str, torch.Tensor], by: float) -> None:
        for name, master in masters.items():
            master.add_(z[name], alpha=by)
        model.sync()
