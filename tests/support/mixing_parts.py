"""Parts of a user's own whose loss is not one of single rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from weft.core.parts import Algorithm, LocalRule
from weft.objectives.sft import SFT


class _Bends(LocalRule):
    def loss_term(self, model, batch):
        return 0.1


@dataclass(frozen=True)
class Bent(Algorithm):
    """A user's algorithm that adds a term to the loss of a batch, and says so."""

    batch_loss: ClassVar[bool] = True

    def rule(self, task, memory):
        return _Bends()


@dataclass(frozen=True)
class Silent(Bent):
    """One that does not say it."""

    batch_loss: ClassVar[bool] = False


@dataclass(frozen=True)
class Whole(SFT):
    """A user's loss without losses of single rows."""

    separable: ClassVar[bool] = False
