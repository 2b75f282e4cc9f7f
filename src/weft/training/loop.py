"""The local loop: optimizer steps of one client in one round.

The loop knows a model, an objective, rows and a rule that bends the steps; it knows nothing of the server. AdamW is
made anew for every client and round.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from weft.core import tensors
from weft.core.parts import LocalRule, Objective
from weft.core.seeds import derive
from weft.core.types import Finished, Metrics, Tensors
from weft.errors import ClientFailed
from weft.models.layout import Batch, Row
from weft.models.resident import Resident
from weft.training.order import rows_of_round
from weft.training.schedules import Schedule


class Rows(Protocol):
    """A client's tokenized rows."""

    def __len__(self) -> int: ...
    def __getitem__(self, row: int) -> Row: ...


class Trained(NamedTuple):
    """What the local loop gives back: what a rule made of it, and sums for the records."""

    finished: Finished
    metrics: Metrics


@dataclass(frozen=True)
class GradientSteps:
    """Local training by AdamW steps (Loshchilov and Hutter 2019)."""

    schedule: Schedule
    seed: int
    steps: int
    """Optimizer steps a round; below 1: `epochs` passes over the client's rows."""
    epochs: int = 1
    batch_size: int = 16
    accumulation: int = 1
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8

    def num_steps(self, num_rows: int) -> int:
        """Return the optimizer steps of a round for a client of `num_rows` rows."""
        if self.steps > 0:
            return self.steps
        return max(1, math.ceil(num_rows * self.epochs / (self.batch_size * self.accumulation)))

    def work(
        self,
        model: Resident,
        objective: Objective,
        rows: Rows,
        rule: LocalRule,
        start: Tensors,
        client: int,
        round: int,
    ) -> Trained:
        """Train from `start` and return what the rule makes of it.

        Raises:
            ClientFailed: the loss or a parameter is no finite number at the end.
        """
        start = rule.begin(start)
        model.load(start)
        rule.prepare(model.model)
        model.model.train()
        torch.manual_seed(derive(self.seed, "train", client, round))
        steps = self.num_steps(len(rows))
        optimizer = self._optimizer(model)
        # A round has few steps: a scale that starts high would lose the first of them to overflow, every round.
        scaler = torch.amp.GradScaler(model.device.type, init_scale=1024.0, enabled=model.dtype == torch.float16)
        sums = torch.zeros((), device=model.device)
        counted = {"loss_tokens": 0.0, "tokens": 0.0, "rows": 0.0}
        lr_sum = 0.0
        for step, window in enumerate(self._windows(objective, rows, steps, client, round)):
            lr = self.schedule.at(round, step, steps)
            lr_sum += lr
            sums += self._step(model, objective, rule, optimizer, scaler, window, lr)
            counted["loss_tokens"] += sum(len(batch.targets) for batch in window)
            counted["tokens"] += sum(batch.tokens for batch in window)
            counted["rows"] += sum(batch.rows for batch in window)
        optimizer.zero_grad(set_to_none=True)
        loss = float(sums)
        end = model.values()
        if not math.isfinite(loss) or not tensors.all_finite(end):
            raise ClientFailed(f"the training loss is not a finite number ({loss}) after {steps} steps")
        metrics = {"loss_sum": loss, "steps": float(steps), "learning_rate": lr_sum / steps, **counted}
        return Trained(rule.finish(start, end, steps, lr_sum), metrics)

    def _optimizer(self, model: Resident) -> torch.optim.AdamW:
        return torch.optim.AdamW(
            list(model.masters.values()),
            lr=0.0,
            betas=self.betas,
            eps=self.epsilon,
            weight_decay=self.weight_decay,
            fused=model.device.type in ("cpu", "cuda"),
        )

    def _windows(self, objective: Objective, rows: Rows, steps: int, client: int, round: int) -> Iterator[list[Batch]]:
        """Yield the micro-batches of each optimizer step."""
        size, many = self.batch_size, self.accumulation
        order = rows_of_round(len(rows), steps * many * size, seed=self.seed, client=client, round=round)
        for window in order.reshape(steps, many, size):
            yield [objective.collate([rows[int(row)] for row in micro]) for micro in window]

    def _step(
        self,
        model: Resident,
        objective: Objective,
        rule: LocalRule,
        optimizer: torch.optim.AdamW,
        scaler: torch.amp.GradScaler,
        window: list[Batch],
        lr: float,
    ) -> torch.Tensor:
        """Make one optimizer step; return the summed loss of its window, still on the device."""
        total = torch.zeros((), device=model.device)
        # One mean over all targets of the window, not a mean of means: short answers do not weigh more.
        targets = max(1, sum(len(batch.targets) for batch in window))
        for batch in window:
            batch = batch.to(model.device)
            loss = objective.loss(model, batch)
            term = rule.loss_term(model.model, batch)
            scaler.scale(loss.total / targets + term / len(window)).backward()  # type: ignore[no-untyped-call]
            model.collect_grads()
            total += loss.total.detach()
        masters = model.masters
        scaler.unscale_(optimizer)
        if self.max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(list(masters.values()), self.max_grad_norm)
        rule.adjust_grads(masters)
        for group in optimizer.param_groups:
            group["lr"] = lr
        scaler.step(optimizer)
        scaler.update()
        with torch.no_grad():
            rule.after_step(masters, lr)
        model.sync()
        optimizer.zero_grad(set_to_none=True)
        return total
