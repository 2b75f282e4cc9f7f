"""What is learnt from rows, and how it is measured: base classes, as those of `weft.core.parts`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self

from weft.core.declarations import Metric

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from torch import Tensor

    from weft.core.types import Metrics


class Loss(NamedTuple):
    """A loss summed over a number of targets."""

    total: Tensor
    targets: int


class Objective:
    """The training loss: what rows become, and what is minimised."""

    rows: ClassVar[str] = "conversations"
    """What rows are: "conversations", "text", "pairs" (a preferred answer and another), "judged" (good or bad) or
    "prompts" (to be answered by the model itself)."""
    needs_reference: ClassVar[bool] = False
    """The loss compares with the log-probabilities of the model that the run began from."""
    needs_start: ClassVar[bool] = False
    """It compares with the model that the run began from while it trains or is evaluated."""
    reuse: ClassVar[int] = 1
    """Steps that are made with the same rows before others are drawn."""
    by_token: ClassVar[bool] = False
    """The loss is the summed cross-entropy of the batch's targets."""
    evaluator: ClassVar[str] = "held_out"
    """What measures the model on held-out rows: a name of `weft.registry.EVALUATORS`."""
    metrics: ClassVar[tuple[Metric, ...]] = ()
    """What `counts` is summed up to in the record of a round, beside the loss."""

    def start(self) -> None:
        """Get ready; ConfigError where something that it needs cannot be used."""

    def act(self, model: Any, rows: Sequence[Any], seed: int) -> Sequence[Any]:
        """Return what is learnt from, given rows and the model as it is at this step."""
        return rows

    def counts(self, batch: Any) -> Metrics:
        """Return sums for the records, beside the loss."""
        return {}

    def collate(self, rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> Any:
        """Return a batch of rows, each (token ids, which of them are learnt)."""
        raise TypeError(f"{type(self).__name__} must define collate")

    def assess(self, model: Any, rows: Sequence[Any], batch_size: int, seed: int) -> float:
        """Return how badly a model does on rows: the mean loss."""
        told = model.asked_likelihoods(rows)
        if told is not None:
            return -float(sum(total for total, _ in told)) / max(1, int(sum(count for _, count in told)))
        total, targets = 0.0, 0
        with model.evaluating():
            for at in range(0, len(rows), batch_size):
                loss = self.loss(model, self.collate(rows[at : at + batch_size]).to(model.device))
                total += float(loss.total)
                targets += loss.targets
        return total / max(1, targets)

    def loss(self, model: Any, batch: Any) -> Loss:
        """Return the loss of a batch, summed over its targets."""
        raise TypeError(f"{type(self).__name__} must define loss")


class HeldOutRows(Protocol):
    """What is known of the held-out rows, by their numbers in the table of rows."""

    @property
    def questions(self) -> Mapping[int, Any]:
        """Rows as questions with a closed set of answers; empty where answers are no closed set."""

    @property
    def text_bytes(self) -> Callable[[int], int] | None:
        """Of plain text: the bytes that the targets of a row stand for."""


class Evaluator:
    """What measures a model on a client's held-out rows."""

    metrics: ClassVar[tuple[Metric, ...]] = ()
    """What is derived from the counts and sums."""

    @classmethod
    def make(cls, objective: Any, batch_size: int, rows: HeldOutRows) -> Self:
        """Return the evaluator of a run, which takes so many rows at a time."""
        raise TypeError(f"{cls.__name__} must define make")

    def evaluate(self, model: Any, rows: Any) -> Metrics:
        """Return counts and sums, which can be added up over clients."""
        raise TypeError(f"{type(self).__name__} must define evaluate")
