"""Base classes of training losses and of evaluation."""

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
    """The training loss: how rows become batches, and what is minimised."""

    rows: ClassVar[str] = "conversations"
    """Kind of the rows: "conversations", "text", "pairs" (a preferred answer and another), "judged" (good or bad) or
    "prompts" (which the model itself answers)."""
    needs_reference: ClassVar[bool] = False
    """The loss needs log-probabilities under the starting model, computed once."""
    needs_start: ClassVar[bool] = False
    """The loss needs the starting model itself during training and evaluation."""
    reuse: ClassVar[int] = 1
    """Number of steps on the same rows before the next are drawn."""
    by_token: ClassVar[bool] = False
    """The loss is the summed cross-entropy of the batch's targets."""
    separable: ClassVar[bool] = False
    """The loss of a row does not depend on other rows: `separate` and `row_losses` are defined."""
    separable_with: ClassVar[str] = ""
    """What makes it so, as a remedy for the user, such as "leave out --KEY"; empty: only another objective."""
    apart: ClassVar[str] = ""
    """What differs from `loss` where rows are kept apart, as a sentence for the user; empty: nothing."""
    evaluator: ClassVar[str] = "held_out"
    """What measures the model on held-out rows: a name of `weft.registry.EVALUATORS`."""
    metrics: ClassVar[tuple[Metric, ...]] = ()
    """What `counts` is summed up to in the record of a round, beside the loss."""

    @property
    def plain(self) -> Objective:
        """The objective that held-out rows are measured by: itself, unless it wraps another one."""
        return self

    def start(self) -> None:
        """Prepare; raise ConfigError where something that the objective needs cannot be used."""

    def for_model(self, model: Any) -> Self:
        """Return the objective as it suits a loaded model, which may not compute rows that share a line exactly."""
        return self

    def act(self, model: Any, rows: Sequence[Any], seed: int) -> Sequence[Any]:
        """Return the rows to learn from at this step: those given, or the model's answers to them."""
        return rows

    def counts(self, batch: Any) -> Metrics:
        """Return sums for the records, beside the loss."""
        return {}

    def collate(self, rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> Any:
        """Return a batch of rows, each (token ids (n,), mask of the learnt tokens (n,))."""
        raise TypeError(f"{type(self).__name__} must define collate")

    def assess(self, model: Any, rows: Sequence[Any], batch_size: int, seed: int) -> float:
        """Return the mean loss of a model on rows."""
        likelihoods = model.remote_likelihoods(rows)
        if likelihoods is not None:
            return -float(sum(total for total, _ in likelihoods)) / max(1, int(sum(count for _, count in likelihoods)))
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

    def separate(self, rows: Sequence[Any], step: int) -> Any:
        """Return rows on lines of their own (`weft.models.lines.RowLines`), of a multiple of `step` positions."""
        raise TypeError(f"{type(self).__name__} must define separate")

    def row_losses(self, model: Any, batch: Any) -> Tensor:
        """Return (rows,): the loss of every row of a batch that `separate` made, from this row alone."""
        raise TypeError(f"{type(self).__name__} must define row_losses")


class HeldOutRows(Protocol):
    """What is known of the held-out rows, by their numbers in the table of rows."""

    @property
    def questions(self) -> Mapping[int, Any]:
        """Rows as questions with a closed set of answers; empty where answers are no closed set."""

    @property
    def text_bytes(self) -> Callable[[int], int] | None:
        """Of plain text: the bytes that the targets of a row stand for."""


class Evaluator:
    """Measures a model on a client's held-out rows."""

    metrics: ClassVar[tuple[Metric, ...]] = ()
    """What is derived from the counts and sums."""

    @classmethod
    def make(cls, objective: Any, batch_size: int, rows: HeldOutRows) -> Self:
        """Return the evaluator of a run, which takes so many rows at a time."""
        raise TypeError(f"{cls.__name__} must define make")

    def evaluate(self, model: Any, rows: Any) -> Metrics:
        """Return counts and sums, which can be added up over clients."""
        raise TypeError(f"{type(self).__name__} must define evaluate")
