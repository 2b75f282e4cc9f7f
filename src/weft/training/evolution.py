"""Local training without gradients: CMA-ES on the mean loss of some rows, for models without a backward pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from weft.core.evolution import Search
from weft.core.objective import Objective
from weft.core.parts import LocalRule
from weft.core.seeds import derive, generator
from weft.core.shares import at_most
from weft.core.types import SEARCH, LocalWork, Tensors
from weft.data.words import instruction_tokens
from weft.errors import ClientFailed
from weft.models.layout import Row
from weft.models.resident import Resident
from weft.training.job import Job, LocalResult, RowTable
from weft.training.loop import GradientSteps
from weft.training.order import rows_of_round


@dataclass(frozen=True)
class Evolution(GradientSteps):
    """`steps` generations of `population` candidates each; the step size is the schedule's learning rate."""

    kind: ClassVar[str] = "search"
    population: int = 20

    def rows_in_metrics(self, num_rows: int, reuse: int = 1) -> int:
        """Return the rows of one generation: the losses of the last one are sent."""
        return min(num_rows, self.batch_size * self.accumulation)

    def work(self, model: Resident, objective: Objective, rows: RowTable, rule: LocalRule, job: Job) -> LocalResult:
        """Search from the job's parameters, and return the rule's update for the mean of the last generation.

        Raises:
            ClientFailed: no candidate has a finite loss, or the time allowed is too short for one generation.
        """
        shared = rule.begin(job.shared)
        names = list(shared)
        full_steps = self.num_steps(len(rows))
        steps = at_most(full_steps, job.step_fraction)
        if steps < 1:
            raise ClientFailed(f"was too slow for one of {full_steps} generations")
        start = np.concatenate([shared[name].double().numpy().ravel() for name in names])
        search_state = rule.search()
        sigma = float(search_state["sigma"]) if search_state else self.schedule.at(job.round, 0, full_steps)
        search = Search.at(start, sigma, search_state["variance"].double().numpy() if search_state else None)
        chance = generator(self.seed, "candidates", job.client, job.round)
        size = self.batch_size * self.accumulation
        order = rows_of_round(
            len(rows), steps * size, seed=self.seed, client=job.client, round=job.round, purpose="order"
        ).reshape(steps, size)
        tokens, fitness, candidates = 0, np.zeros(0), np.zeros((0, len(start)))
        for step in range(steps):
            batch_rows = [rows[int(row)] for row in order[step]]
            tokens += self.population * objective.collate(batch_rows).tokens
            candidates = search.ask(self.population, chance)
            seed = derive(self.seed, "candidates", job.client, job.round, step)
            fitness = np.array(
                [self._loss(model, objective, batch_rows, job, shared, candidate, seed) for candidate in candidates]
            )
            if not np.isfinite(fitness).any():
                raise ClientFailed("no candidate has a finite loss")
            # CMA-ES only ranks candidates, so infinity stands for every loss that is not finite.
            search = search.tell(candidates, np.where(np.isfinite(fitness), fitness, np.inf))
        end = _unflat(search.mean, shared)
        best = float(np.where(np.isfinite(fitness), fitness, np.nanmax(fitness)).mean())
        counts = {"loss_tokens": float(size), "tokens": float(tokens), "rows": float(steps * size)}
        metrics = {"loss_sum": best * size, "steps": float(steps), "learning_rate": sigma, **counts}
        metrics |= model.remote_counts()
        solutions = {
            "solutions": torch.from_numpy(candidates).float(),
            "fitness": torch.from_numpy(np.nan_to_num(fitness, nan=1e30, posinf=1e30)).float(),
            "scale": torch.from_numpy(search.sigma * np.sqrt(search.variance)).float(),
        }
        work_done = LocalWork(shared, end, steps, sigma * steps, {SEARCH: solutions})
        return LocalResult(rule.finish(work_done), metrics, {})

    def _loss(
        self,
        model: Resident,
        objective: Objective,
        rows: Sequence[Row],
        job: Job,
        shared: Tensors,
        candidate: np.ndarray,
        seed: int,
    ) -> float:
        model.load(job.personal | _unflat(candidate, shared))
        instruction, words = instruction_tokens(model)
        if len(instruction):
            rows = [words.row(row, instruction) for row in rows]
        loss = objective.assess(model, rows, self.batch_size, seed)
        return loss if math.isfinite(loss) else math.nan


def _unflat(values: np.ndarray, like: Tensors) -> Tensors:
    """Return a flat vector (n,) as float32 tensors with the names and shapes of `like`."""
    flat = torch.from_numpy(values).float()
    parts = flat.split([value.numel() for value in like.values()])  # type: ignore[no-untyped-call]
    return {name: part.reshape(value.shape) for (name, value), part in zip(like.items(), parts, strict=True)}
