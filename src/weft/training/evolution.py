"""Local training without gradients: CMA-ES on the mean loss of some rows, for models without a backward pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from weft.core.evolution import COMMON, Search, common_chance, standardised
from weft.core.objective import Objective
from weft.core.parts import LocalRule
from weft.core.seeds import derive, generator
from weft.core.shares import at_most
from weft.core.types import SEARCH, LocalWork, Metrics, Tensors
from weft.data.words import instruction_tokens
from weft.errors import ClientFailed
from weft.models.layout import Row
from weft.models.resident import Resident
from weft.training.job import Job, LocalResult, RowTable
from weft.training.loop import GradientSteps
from weft.training.order import rows_of_round


@dataclass(frozen=True)
class SearchSession:
    """A client's search in one round, as it begins."""

    shared: Tensors
    """The parameters that are searched, by name."""
    personal: Tensors
    search: Search
    sigma: float
    steps: int
    """Generations; or, of common candidates, batches of rows on which they are scored."""
    chance: np.random.Generator
    common: bool
    """All clients score the same candidates, one generation in a round."""
    candidates: np.ndarray
    """(population, d): the common ones."""

    def put(self, model: Resident, candidate: np.ndarray) -> None:
        """Put a candidate (d,) into the model."""
        model.load(self.personal | _unflat(candidate, self.shared))


@dataclass(frozen=True)
class Evolution(GradientSteps):
    """`steps` generations of `population` candidates each; the step size is the schedule's learning rate.

    An algorithm whose rule names `COMMON` has one generation a round, the same at all clients.
    """

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
        session = self.begin_search(model, rule, job, len(rows))
        search, candidates, steps = session.search, session.candidates, session.steps
        size = self.batch_size * self.accumulation
        order = rows_of_round(
            len(rows), steps * size, seed=self.seed, client=job.client, round=job.round, purpose="order"
        ).reshape((1, -1) if session.common else (steps, size))
        tokens, fitness = 0, np.zeros(0)
        for step, numbers in enumerate(order):
            batch_rows = [rows[int(row)] for row in numbers]
            tokens += self.population * objective.collate(batch_rows).tokens
            if not session.common:
                candidates = search.ask(self.population, session.chance)
            seed = derive(self.seed, "candidates", job.client, job.round, step)
            fitness = np.array(
                [self._loss(model, objective, batch_rows, session, candidate, seed) for candidate in candidates]
            )
            if not np.isfinite(fitness).any():
                raise ClientFailed("no candidate has a finite loss")
            # CMA-ES only ranks candidates, so infinity stands for every loss that is not finite.
            search = search.tell(candidates, np.where(np.isfinite(fitness), fitness, np.inf))
        best = float(np.where(np.isfinite(fitness), fitness, np.nanmax(fitness)).mean())
        counts = {"loss_tokens": float(size), "tokens": float(tokens), "rows": float(steps * size)}
        metrics = {"loss_sum": best * size, "steps": float(steps), "learning_rate": session.sigma, **counts}
        return self.end_search(session, search, candidates, fitness, rule, metrics | model.remote_counts())

    def begin_search(self, model: Resident, rule: LocalRule, job: Job, num_rows: int) -> SearchSession:
        """Return the search of a job; ClientFailed where the time allowed is too short for one generation."""
        shared = rule.begin(job.shared)
        full_steps = self.num_steps(num_rows)
        steps = at_most(full_steps, job.step_fraction)
        if steps < 1:
            raise ClientFailed(f"was too slow for one of {full_steps} generations")
        start = np.concatenate([value.double().numpy().ravel() for value in shared.values()])
        told = rule.search()
        sigma = float(told["sigma"]) if told else self.schedule.at(job.round, 0, full_steps)
        search = Search.at(start, sigma, told["variance"].double().numpy() if told else None)
        common = COMMON in told
        chance = common_chance(self.seed, job.round) if common else None
        chance = chance or generator(self.seed, "candidates", job.client, job.round)
        candidates = search.ask(self.population, chance) if common else np.zeros((0, len(start)))
        return SearchSession(shared, job.personal, search, sigma, steps, chance, common, candidates)

    def end_search(
        self,
        session: SearchSession,
        search: Search,
        candidates: np.ndarray,
        fitness: np.ndarray,
        rule: LocalRule,
        metrics: Metrics,
    ) -> LocalResult:
        """Return the result of a search, given its last generation (population, d) and its losses (population,).

        Losses of candidates that all clients have in common are standardised, so that they can be added up.
        """
        steps, sigma = session.steps, session.sigma
        end = _unflat(search.mean, session.shared)
        losses = torch.from_numpy(np.nan_to_num(fitness, nan=1e30, posinf=1e30))
        if session.common:
            losses = standardised(losses)
        solutions = {
            "solutions": torch.from_numpy(candidates).float(),
            "fitness": losses.float(),
            "scale": torch.from_numpy(search.sigma * np.sqrt(search.variance)).float(),
        }
        work_done = LocalWork(session.shared, end, steps, sigma * steps, {SEARCH: solutions})
        return LocalResult(rule.finish(work_done), metrics, {})

    def _loss(
        self,
        model: Resident,
        objective: Objective,
        rows: Sequence[Row],
        session: SearchSession,
        candidate: np.ndarray,
        seed: int,
    ) -> float:
        session.put(model, candidate)
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
