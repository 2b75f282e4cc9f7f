"""The local loop: optimizer steps of one client in one round.

The loop knows a model, an objective, rows, and an algorithm's rule that changes the steps; it knows nothing of the
server. Every client and round gets a new optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import ClassVar

import numpy as np
import torch

from weft.core import tensors
from weft.core.metrics import plus
from weft.core.objective import Objective
from weft.core.parts import LocalRule
from weft.core.seeds import derive
from weft.core.shares import at_most
from weft.core.types import LocalWork, Metrics, Tensors
from weft.errors import ClientFailed
from weft.models.layout import Batch, Row
from weft.models.resident import Resident
from weft.training.ahead import prepared
from weft.training.job import Job, LocalResult, RowTable, Session
from weft.training.mixture import Draw, Mixture, Table, probed
from weft.training.muon import matrices_of
from weft.training.optimizers import Optimizer, moments_of
from weft.training.order import rows_of_round
from weft.training.retry import within_memory
from weft.training.schedules import Schedule, round_half

DECAY = "run_decay"
"""Key in an optimizer's parameter group: the run's weight decay, before `lr_factor`."""


@dataclass(frozen=True)
class GradientSteps:
    """Local training by steps of an optimizer."""

    kind: ClassVar[str] = "gradients"
    """Kind of local training; an algorithm names the kind that it needs."""
    hides_units: ClassVar[bool] = False
    """Every step bounds what one unit of privacy adds to it, and adds noise."""
    schedule: Schedule
    seed: int
    steps: int
    """Optimizer steps per round; below 1: `epochs` passes over the client's rows."""
    epochs: int = 1
    public_share: float = 0.0
    """Share of public rows in every micro-batch, where there are public rows."""
    mixture: Mixture | None = None
    """How rows are drawn from a client's domains; None: from all of its rows alike."""
    batch_size: int = 16
    accumulation: int = 1
    max_grad_norm: float = 1.0
    optimizer: Optimizer = field(default_factory=Optimizer)

    def num_steps(self, num_rows: int) -> int:
        """Return the optimizer steps per round of a client with `num_rows` rows."""
        if self.steps > 0:
            return self.steps
        return max(1, math.ceil(num_rows * self.epochs / (self.batch_size * self.accumulation)))

    def rows_in_metrics(self, num_rows: int, reuse: int = 1) -> int:
        """Return how many of a client's rows the sums of a round are taken over: fewer than `num_rows` in a short one.

        Args:
            num_rows: the client's rows.
            reuse: steps that share their rows (`Objective.reuse`).
        """
        draws = -(-self.num_steps(num_rows) // reuse)
        return min(num_rows, draws * self.batch_size * self.accumulation)

    def work(self, model: Resident, objective: Objective, rows: RowTable, rule: LocalRule, job: Job) -> LocalResult:
        """Train on a job, and return the rule's update, metrics and personal parameters.

        Raises:
            ClientFailed: the loss, a parameter or the update is not finite at the end, every step overflowed, or the
                time allowed is too short for one step.
        """
        session = self._begin(model, rule, job, len(rows))
        draw = self._draw(model, objective, session.full_steps, job)
        tensors.seed_used_devices(derive(self.seed, "train", job.client, job.round))
        full_steps, steps = session.full_steps, session.steps
        # A round has few steps: a scale that starts high would lose the first of them to overflow, every round.
        scaler = torch.amp.GradScaler(model.device.type, init_scale=1024.0, enabled=model.dtype == torch.float16)
        loss_sum, lr_sum, step_count = torch.zeros((), device=model.device), 0.0, 0
        counts = {"loss_tokens": 0.0, "tokens": 0.0, "rows": 0.0}
        objective_counts: Metrics = {}

        def act(batch_rows: Sequence[Row], seed: int) -> Sequence[Row]:
            return objective.act(model, model.local_rows(batch_rows), seed)

        windows = prepared(model, objective, islice(self._windows(objective, rows, full_steps, job, act, draw), steps))
        for step, window in enumerate(windows):
            lr = self.schedule.at(job.round, step, full_steps)
            loss_sum += within_memory(model, partial(self._backward, model, objective, rule, scaler, window))
            if self._step(model, rule, session.optimizer, scaler, session.masters, lr, step_count):
                lr_sum, step_count = lr_sum + lr, step_count + 1
            counts["loss_tokens"] += sum(len(batch.targets) for batch in window)
            counts["tokens"] += sum(batch.tokens for batch in window)
            counts["rows"] += sum(batch.rows for batch in window)
            if step % objective.reuse == 0:  # the same answers serve several steps: count them once
                for batch in window:
                    objective_counts = plus(objective_counts, objective.counts(batch))
        loss, *sums = model.total([float(loss_sum), *counts.values()])
        counts = dict(zip(counts, sums, strict=True))
        if not math.isfinite(loss) or not model.finite():
            # Without the number: a site sends the reason, and may send no loss of its rows.
            raise ClientFailed(f"the training loss is not a finite number after {steps} steps{_narrow(model)}")
        if not step_count:
            raise ClientFailed(f"the gradients of each of {steps} steps overflowed{_narrow(model)}")
        if draw is not None:
            objective_counts |= draw.counts(steps * self.accumulation * self.batch_size)
        metrics: Metrics = {"loss_sum": loss, "steps": float(step_count), "learning_rate": lr_sum / step_count}
        return self._end(model, rule, job, session, step_count, lr_sum, metrics | counts | objective_counts)

    def _begin(self, model: Resident, rule: LocalRule, job: Job, num_rows: int) -> Session:
        """Put the parameters of a job into the model, and make the optimizer; ClientFailed without time for a step."""
        shared = rule.begin(job.shared)
        model.load(job.personal | shared)
        model.train_only(job.trained)
        masters = {name: master for name, master in model.trainable().items() if name in shared}
        rule.prepare(masters)
        model.model.train()
        full_steps = self.num_steps(num_rows)
        steps = at_most(full_steps, job.step_fraction)
        if steps < 1:
            raise ClientFailed(f"was too slow for one of {full_steps} steps")
        matrices = matrices_of(model) if self.optimizer.kind == "muon" else ()
        moments = model.scatter(rule.moments())
        optimizer = self.optimizer.make(model.trainable(), moments, model.device, matrices)
        return Session(shared, masters, full_steps, steps, optimizer)

    def _end(
        self,
        model: Resident,
        rule: LocalRule,
        job: Job,
        session: Session,
        steps: int,
        lr_sum: float,
        metrics: Metrics,
    ) -> LocalResult:
        """Return the result of steps that were made; ClientFailed where the update is not finite."""
        optimizer, shared = session.optimizer, session.start
        moments = model.gather(moments_of(optimizer, model.trainable())) if rule.wants_moments else {}
        optimizer.zero_grad(set_to_none=True)
        end = model.values()
        work = LocalWork(shared, {name: end[name] for name in shared}, steps, lr_sum, moments)
        finished = rule.finish(work)
        if not all(map(tensors.all_finite, finished.streams.values())):
            raise ClientFailed(f"the update after {session.steps} steps is not finite{_narrow(model)}")
        return LocalResult(finished, metrics, {name: end[name] for name in job.personal if name not in shared}, work)

    def _draw(self, model: Resident, objective: Objective, steps: int, job: Job) -> Draw | None:
        """Return the rows of a round that a mixture draws; None: without one, or where the client has no domains."""
        if self.mixture is None or not job.domains:
            return None

        def loss(table: Table) -> float:
            return objective.assess(model, probed(table), self.batch_size, self.seed)

        shares, count = self.mixture.shares_of(job.domains, loss), steps * self.accumulation * self.batch_size
        return self.mixture.draw(job.domains, shares, count, self.seed, job.client, job.round)

    def _windows(
        self,
        objective: Objective,
        rows: RowTable,
        steps: int,
        job: Job,
        act: Callable[[Sequence[Row], int], Sequence[Row]] = lambda rows, seed: rows,
        draw: Draw | None = None,
    ) -> Iterator[list[Batch]]:
        """Yield the micro-batches of each optimizer step; `act` turns rows into training rows when a step is due."""
        size, many = self.batch_size, self.accumulation
        shared = round_half(self.public_share * size) if job.public is not None else 0
        tables: list[tuple[RowTable, str, int]] = [(rows, "order", size - shared)]
        if job.public is not None and shared:
            tables.append((job.public, "public order", shared))
        orders = [
            rows_of_round(
                len(table), steps * many * count, seed=self.seed, client=job.client, round=job.round, purpose=purpose
            ).reshape(steps, many, count)
            for table, purpose, count in tables
        ]
        if draw is not None:
            tables, orders = [(draw, "", size)], [np.arange(len(draw)).reshape(steps, many, size)]
        window: list[Batch] = []
        for step in range(steps):
            if step % objective.reuse == 0:
                window = []
                for micro in range(many):
                    batch_rows = [
                        table[int(row)]
                        for (table, _, _), order in zip(tables, orders, strict=True)
                        for row in order[step // objective.reuse, micro]
                    ]
                    seed = derive(self.seed, "act", job.client, job.round, step, micro)
                    window.append(objective.collate(act(batch_rows, seed)))
            yield window

    def _backward(
        self, model: Resident, objective: Objective, rule: LocalRule, scaler: torch.amp.GradScaler, window: list[Batch]
    ) -> torch.Tensor:
        """Accumulate the gradients of a window; return its summed loss, a scalar on the device."""
        total = torch.zeros((), device=model.device)
        # One mean over all targets of the window, not a mean of means: the targets of short answers weigh no more.
        targets = max(1.0, model.total([float(sum(len(batch.targets) for batch in window))])[0])
        for batch in window:
            batch = batch.to(model.device)
            if objective.by_token and (summed := model.next_token_gradient(batch, targets)) is not None:
                model.collect_grads()
                total += summed
                continue
            loss = objective.loss(model, batch)
            term = rule.loss_term(model.model, batch)
            mean = (loss.total / targets + term / len(window)) * model.loss_scale
            scaler.scale(mean).backward()  # type: ignore[no-untyped-call]
            model.collect_grads()
            total += loss.total.detach()
        return total

    def _step(
        self,
        model: Resident,
        rule: LocalRule,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        shared: Tensors,
        lr: float,
        step_number: int,
    ) -> bool:
        """Make optimizer step number `step_number` (from 0) with the accumulated gradients, as the rule changes it.

        Returns:
            False where float16 overflowed: only the loss scale has changed, and the rule is not called.
        """
        scaler.unscale_(optimizer)
        grads = {name: value.grad for name, value in model.masters.items() if value.grad is not None}
        if scaler.is_enabled() and not tensors.all_finite(
            grads
        ):  # the scaler knows this too, but has no public way to ask
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            return False
        rule.adjust_grads(shared)
        if self.max_grad_norm > 0 and rule.clips:
            model.clip(self.max_grad_norm)
        factor = rule.lr_factor(step_number)
        for group in optimizer.param_groups:
            decay = group.setdefault(DECAY, group["weight_decay"])
            # The decay of a step is lr * weight_decay: dividing keeps the decay that it would have without the factor.
            group["lr"], group["weight_decay"] = lr * factor, decay / factor if factor else decay
        scaler.step(optimizer)
        scaler.update()
        with torch.no_grad():
            rule.after_step(shared, lr)
        model.sync()
        optimizer.zero_grad(set_to_none=True)
        return True


def _narrow(model: Resident) -> str:
    """Return a remedy for numbers that are not finite, where float16 may be the cause."""
    return " in float16: write --dtype bfloat16 or float32" if model.dtype == torch.float16 else ""
