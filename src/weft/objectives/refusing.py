"""Refusal training: beside every batch, any objective learns answers to attack prompts, such as refusals.

It is adversarial training with the requests of an attacker instead of perturbed inputs. The algorithms see a loss.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import torch

from weft.core.objective import Loss
from weft.models.layout import Batch, Row
from weft.models.resident import Resident
from weft.objectives.sft import SFT
from weft.objectives.wrapped import Wrapped


class Requests(Protocol):
    """Attack prompts with the answers that they shall get, as tokens."""

    def __len__(self) -> int: ...
    def __getitem__(self, row: int) -> Row: ...


class Request(NamedTuple):
    """An attack prompt among the rows of a batch."""

    row: Row


@dataclass(frozen=True)
class Mixed:
    """A batch of the inner objective, and one of attack prompts."""

    inner: Any
    requests: Batch

    @property
    def targets(self) -> Any:
        """Those of the inner batch: the loss is a mean over them."""
        return self.inner.targets

    @property
    def tokens(self) -> int:
        """Tokens of both."""
        return int(self.inner.tokens) + self.requests.tokens

    @property
    def rows(self) -> int:
        """Rows of the client's own."""
        return int(self.inner.rows)

    def to(self, device: torch.device) -> Mixed:
        """Return both on a device."""
        return Mixed(self.inner.to(device), self.requests.to(device))


@dataclass(frozen=True)
class Refusing(Wrapped):
    """Another objective, and the mean loss of answers to attack prompts, in training alone."""

    separable_with: ClassVar[str] = "leave out --adversarial_prompts"
    share: float
    """Attack prompts for each row of a batch (rounded, 1 at least), and the weight of their mean loss."""
    requests: Requests | None = field(default=None, compare=False)
    answers: SFT = field(default_factory=SFT)

    def for_model(self, model: Any) -> Self:
        """Return the objective as it suits a model."""
        return replace(self, inner=self.inner.for_model(model), answers=self.answers.for_model(model))

    def act(self, model: Any, rows: Sequence[Any], seed: int) -> Sequence[Any]:
        """Return the rows to learn from, and attack prompts drawn by the seed."""
        assert self.requests is not None
        lots, count = random.Random(seed), max(1, round(self.share * len(rows)))
        drawn = [Request(self.requests[lots.randrange(len(self.requests))]) for _ in range(count)]
        return [*self.inner.act(model, rows, seed), *drawn]

    def collate(self, rows: Sequence[Any]) -> Any:
        """Return a batch of rows, with one of attack prompts where there are any."""
        drawn = [row.row for row in rows if isinstance(row, Request)]
        own = self.inner.collate([row for row in rows if not isinstance(row, Request)])
        return Mixed(own, self.answers.collate(drawn)) if drawn else own

    def counts(self, batch: Any) -> Any:
        """Return the inner objective's sums for the records."""
        return self.inner.counts(batch.inner if isinstance(batch, Mixed) else batch)

    def loss(self, model: Resident, batch: Any) -> Loss:
        """Return the inner loss, and to each of its targets the weighted mean loss of the answers."""
        if not isinstance(batch, Mixed):
            return self.inner.loss(model, batch)
        own, learnt = self.inner.loss(model, batch.inner), self.answers.loss(model, batch.requests)
        return Loss(own.total + self.share * own.targets * learnt.total / max(1, learnt.targets), own.targets)
