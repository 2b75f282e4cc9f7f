"""The local loop: optimizer steps of one client in one round.

The loop knows a model, an objective, rows and a rule that bends the steps; it knows nothing of the server. The
optimizer is made anew for every client and round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import ClassVar, NamedTuple, Protocol

import torch

from weft.core import tensors
from weft.core.metrics import plus
from weft.core.objective import Objective
from weft.core.parts import LocalRule
from weft.core.seeds import derive
from weft.core.shares import at_most
from weft.core.types import LocalWork, Metrics, RuleResult, Tensors
from weft.errors import ClientFailed
from weft.models.layout import Batch, Row
from weft.models.resident import Resident
from weft.training.optimizers import Optimizer, moments_of
from weft.training.order import rows_of_round
from weft.training.schedules import Schedule, round_half

DECAY = "own_decay"
"""In an optimizer's group: its weight decay, as the run has it."""


class RowTable(Protocol):
    """A client's tokenized rows."""

    def __len__(self) -> int: ...
    def __getitem__(self, row: int) -> Row: ...


class Job(NamedTuple):
    """What a client is to train in a round."""

    own: Tensors
    """Trained parameters that are the client's own."""
    shared: Tensors
    """Those that it was sent."""
    trained: Collection[str] | None = None
    """The names of what is trained in this round; None: everything."""
    client: int = 0
    round: int = 0
    step_fraction: float = 1.0
    """Of its steps, how many it makes."""
    public: RowTable | None = None
    """Rows that everybody has, for a share of every batch."""


class Trained(NamedTuple):
    """What the local loop gives back."""

    finished: RuleResult
    """What the rule made of it."""
    metrics: Metrics
    """Sums for the records."""
    kept: Tensors
    """The client's own parameters after the last step."""


@dataclass(frozen=True)
class GradientSteps:
    """Local training by steps of an optimizer."""

    kind: ClassVar[str] = "gradients"
    """How it learns; an algorithm says which it is made for."""
    schedule: Schedule
    seed: int
    steps: int
    """Optimizer steps a round; below 1: `epochs` passes over the client's rows."""
    epochs: int = 1
    public_share: float = 0.0
    """Of the rows of every micro-batch, how many are public ones, where there are such."""
    batch_size: int = 16
    accumulation: int = 1
    max_grad_norm: float = 1.0
    optimizer: Optimizer = field(default_factory=Optimizer)

    def num_steps(self, num_rows: int) -> int:
        """Return the optimizer steps of a round for a client of `num_rows` rows."""
        if self.steps > 0:
            return self.steps
        return max(1, math.ceil(num_rows * self.epochs / (self.batch_size * self.accumulation)))

    def work(self, model: Resident, objective: Objective, rows: RowTable, rule: LocalRule, job: Job) -> Trained:
        """Train on a job and return what the rule makes of it.

        Raises:
            ClientFailed: the loss, a parameter or what is to be sent is no finite number at the end, every step
                overflowed, or there was no time for one.
        """
        shared = rule.begin(job.shared)
        model.load(job.own | shared)
        model.train_only(job.trained)
        masters = {name: master for name, master in model.trained().items() if name in shared}
        rule.prepare(masters)
        model.model.train()
        torch.manual_seed(derive(self.seed, "train", job.client, job.round))
        asked = self.num_steps(len(rows))
        steps = at_most(asked, job.step_fraction)
        if steps < 1:
            raise ClientFailed(f"was too slow for one of {asked} steps")
        optimizer = self.optimizer.make(model.trained(), model.deal(rule.moments()), model.device)
        # A round has few steps: a scale that starts high would lose the first of them to overflow, every round.
        scaler = torch.amp.GradScaler(model.device.type, init_scale=1024.0, enabled=model.dtype == torch.float16)
        loss_sum, lr_sum, made = torch.zeros((), device=model.device), 0.0, 0
        counted = {"loss_tokens": 0.0, "tokens": 0.0, "rows": 0.0}
        done: Metrics = {}

        def act(drawn: Sequence[Row], seed: int) -> Sequence[Row]:
            return objective.act(model, model.own_part(drawn), seed)

        windows = islice(self._windows(objective, rows, asked, job, act), steps)
        for step, window in enumerate(windows):
            lr = self.schedule.at(job.round, step, asked)
            loss_sum += self._backward(model, objective, rule, scaler, window)
            if self._step(model, rule, optimizer, scaler, masters, lr, made):
                lr_sum, made = lr_sum + lr, made + 1
            counted["loss_tokens"] += sum(len(batch.targets) for batch in window)
            counted["tokens"] += sum(batch.tokens for batch in window)
            counted["rows"] += sum(batch.rows for batch in window)
            if step % objective.reuse == 0:
                for batch in window:
                    done = plus(done, objective.counts(batch))
        moments = model.gather(moments_of(optimizer, model.trained())) if rule.wants_moments else {}
        optimizer.zero_grad(set_to_none=True)
        loss, *sums = model.total([float(loss_sum), *counted.values()])
        counted = dict(zip(counted, sums, strict=True))
        end = model.values()
        if not math.isfinite(loss) or not model.finite():
            raise ClientFailed(f"the training loss is not a finite number ({loss}) after {steps} steps{_narrow(model)}")
        if not made:
            raise ClientFailed(f"the gradients of each of {steps} steps overflowed{_narrow(model)}")
        metrics = {"loss_sum": loss, "steps": float(made), "learning_rate": lr_sum / made, **counted, **done}
        finished = rule.finish(LocalWork(shared, {name: end[name] for name in shared}, made, lr_sum, moments))
        if not all(map(tensors.all_finite, finished.streams.values())):
            raise ClientFailed(f"what {steps} steps have made is not finite{_narrow(model)}")
        return Trained(finished, metrics, {name: end[name] for name in job.own if name not in shared})

    def _windows(
        self,
        objective: Objective,
        rows: RowTable,
        steps: int,
        job: Job,
        act: Callable[[Sequence[Row], int], Sequence[Row]] = lambda rows, seed: rows,
    ) -> Iterator[list[Batch]]:
        """Yield the micro-batches of each optimizer step: of what `act` makes of the rows when the step is due."""
        size, many = self.batch_size, self.accumulation
        shared = round_half(self.public_share * size) if job.public is not None else 0
        drawn = [(rows, "order", size - shared)]
        if job.public is not None and shared:
            drawn.append((job.public, "public order", shared))
        orders = [
            rows_of_round(
                len(table), steps * many * count, seed=self.seed, client=job.client, round=job.round, purpose=purpose
            ).reshape(steps, many, count)
            for table, purpose, count in drawn
        ]
        window: list[Batch] = []
        for step in range(steps):
            if step % objective.reuse == 0:
                window = []
                for micro in range(many):
                    chosen = [
                        table[int(row)]
                        for (table, _, _), order in zip(drawn, orders, strict=True)
                        for row in order[step // objective.reuse, micro]
                    ]
                    seed = derive(self.seed, "act", job.client, job.round, step, micro)
                    window.append(objective.collate(act(chosen, seed)))
            yield window

    def _backward(
        self, model: Resident, objective: Objective, rule: LocalRule, scaler: torch.amp.GradScaler, window: list[Batch]
    ) -> torch.Tensor:
        """Gather the gradients of a window; return its summed loss, still on the device."""
        total = torch.zeros((), device=model.device)
        # One mean over all targets of the window, not a mean of means: short answers do not weigh more.
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
        made: int,
    ) -> bool:
        """Make one optimizer step, bent by the rule, from the gradients at hand; `made` were made before it.

        Returns:
            False where float16 overflowed: nothing is changed but the scale of the loss, and the rule sees nothing.
        """
        scaler.unscale_(optimizer)
        grads = {name: value.grad for name, value in model.masters.items() if value.grad is not None}
        if scaler.is_enabled() and not tensors.all_finite(grads):  # the scaler itself knows it, and keeps it for itself
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            return False
        rule.adjust_grads(shared)
        if self.max_grad_norm > 0 and rule.clips:
            model.clip(self.max_grad_norm)
        factor = rule.lr_factor(made)
        for group in optimizer.param_groups:
            decay = group.setdefault(DECAY, group["weight_decay"])
            # The optimizer multiplies both by the learning rate; the factor is the step's alone.
            group["lr"], group["weight_decay"] = lr * factor, decay / factor if factor else decay
        scaler.step(optimizer)
        scaler.update()
        with torch.no_grad():
            rule.after_step(shared, lr)
        model.sync()
        optimizer.zero_grad(set_to_none=True)
        return True


def _narrow(model: Resident) -> str:
    """Return what may help where numbers are not finite, if they are of the narrowest format."""
    return " in float16: write --dtype bfloat16 or float32" if model.dtype == torch.float16 else ""
