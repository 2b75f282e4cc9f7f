"""Noisy scores: what prompts that are searched without gradients need of private rows.

Each candidate is scored by the losses of units that take part by secret coins. A unit adds the vector of its losses
behind all candidates, without their mean, scaled to a norm of C at most; the sum gets noise of the deviation z C. One
number for each candidate is all that there is noise on, however large the prompt is, and whatever is computed from the
scores (the search, rewritten texts) costs no further privacy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from weft.core.objective import Objective
from weft.core.parts import LocalRule
from weft.core.seeds import derive
from weft.core.tensors import digest
from weft.core.types import Metrics
from weft.data.words import Words as Placed
from weft.data.words import instruction_tokens
from weft.models.layout import Row
from weft.models.resident import Resident
from weft.training.evolution import Evolution
from weft.training.hiding import Hiding, Words, units_of
from weft.training.job import Job, LocalResult, RowTable
from weft.training.wording import InstructionSearch

WORST = 1e4
"""Loss in nats that stands for one that is not finite."""


@dataclass(frozen=True)
class _Scores(Hiding):
    """The scores of candidates."""

    def scores(
        self,
        losses: Callable[[int, Sequence[Row]], np.ndarray],
        candidates: int,
        rows: RowTable,
        job: Job,
        words: Words,
    ) -> np.ndarray:
        """Return (candidates,): noisy mean losses of the units that take part, without what candidates have in common.

        Args:
            losses: returns (rows,) the losses of some rows behind a candidate, by its number.
            candidates: their number.
            rows: of the client.
            job: of the client.
            words: the place of the step, and what the candidates are: each has noise of its own.
        """
        units = units_of(job.units, len(rows))
        drawn = self.draw(units, job, words)
        total = np.zeros(candidates)
        for group in self.groups(drawn):
            some = [rows[int(row)] for unit in group for row in unit]
            each = np.stack([losses(number, some) for number in range(candidates)], axis=1)
            total += clipped(each, [len(unit) for unit in group], self.bound)
        if deviation := self.deviation(len(units)):
            # As in `PrivateSteps`: noise of another scale, or on another sum, is other noise.
            words += (str(deviation), digest({"": {"": torch.from_numpy(total)}}))
            total += deviation * job.secret().normal((candidates,), *words, "noise").numpy()
        values: np.ndarray = total / self.expected
        return values


def clipped(losses: np.ndarray, sizes: Sequence[int], bound: float) -> np.ndarray:
    """Return (candidates,): the sum over units of their mean losses, centred and scaled to a norm of `bound` at most.

    Args:
        losses: (rows, candidates), in nats.
        sizes: of the units, whose rows follow each other.
        bound: above 0.
    """
    losses = np.clip(np.nan_to_num(losses.astype(np.float64), nan=WORST, posinf=WORST), -WORST, WORST)
    starts = np.cumsum([0, *sizes[:-1]])
    means = np.add.reduceat(losses, starts, axis=0) / np.asarray(sizes)[:, None]
    means -= means.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    values: np.ndarray = (means * np.minimum(1.0, bound / np.maximum(norms, 1e-300))).sum(axis=0)
    return values


def row_losses(model: Resident, objective: Objective, rows: Sequence[Row]) -> np.ndarray:
    """Return (rows,): the mean loss of each row's targets, by the model here or behind an endpoint."""
    likelihoods = model.remote_likelihoods(rows)
    if likelihoods is not None:
        return np.array([-total / max(1, count) for total, count in likelihoods])
    with model.evaluating():
        batch = objective.separate(rows, model.line_step).to(model.device)
        values: np.ndarray = objective.row_losses(model, batch).double().cpu().numpy()
    return values


@dataclass(frozen=True)
class PrivateEvolution(_Scores, Evolution):
    """A search whose fitness is noisy scores."""

    def work(self, model: Resident, objective: Objective, rows: RowTable, rule: LocalRule, job: Job) -> LocalResult:
        """Search as `Evolution` does; no metric of the rows is among the result's."""
        session = self.begin_search(model, rule, job, len(units_of(job.units, len(rows))))
        search, candidates, total = session.search, session.candidates, np.zeros(self.population)

        def losses(number: int, some: Sequence[Row]) -> np.ndarray:
            session.put(model, candidates[number])
            instruction, placed = instruction_tokens(model)
            behind = [placed.row(row, instruction) for row in some] if len(instruction) else some
            return row_losses(model, objective, behind)

        for step in range(session.steps):
            if not session.common:
                candidates, total = search.ask(self.population, session.chance), np.zeros(self.population)
            words = (job.purpose, job.round, job.attempt, step, digest({"": {"": torch.from_numpy(candidates)}}))
            total += self.scores(losses, self.population, rows, job, words)  # those of common candidates add up
            if not session.common:
                search = search.tell(candidates, total)
        metrics = {"steps": float(session.steps), "learning_rate": session.sigma}
        return self.end_search(session, search, candidates, total, rule, metrics)


@dataclass(frozen=True)
class PrivateWords(_Scores, InstructionSearch):
    """Instructions that are chosen by noisy scores."""

    def score_all(
        self, model: Resident, objective: Objective, rows: RowTable, pool: Sequence[str], job: Job
    ) -> tuple[np.ndarray, Metrics | None]:
        """Return the noisy scores of the texts, and None: nothing of the rows is told."""
        placed, steps = Placed(model.tokenizer), self.num_steps(len(units_of(job.units, len(rows))))
        behind = [placed.tokens(text) for text in pool]

        def losses(number: int, some: Sequence[Row]) -> np.ndarray:
            return row_losses(model, objective, [placed.row(row, behind[number]) for row in some])

        total = np.zeros(len(pool))
        for step in range(steps):
            words = (job.purpose, job.round, job.attempt, step, derive(0, *pool))
            total += self.scores(losses, len(pool), rows, job, words)
        return total / steps, None
