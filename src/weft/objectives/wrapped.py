"""An objective around another one, which trains differently and measures as that one does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from weft.core.declarations import Metric
from weft.core.objective import Objective
from weft.core.types import Metrics


@dataclass(frozen=True)
class Wrapped(Objective):
    """What is not overridden is the inner objective's."""

    by_token: ClassVar[bool] = False
    inner: Objective

    @property
    def plain(self) -> Objective:
        """The inner objective, by which held-out rows are measured."""
        return self.inner

    @property
    def rows(self) -> str:  # type: ignore[override]
        """Those of the inner objective, as are all properties below."""
        return self.inner.rows

    @property
    def needs_reference(self) -> bool:  # type: ignore[override]
        """Whether log-probabilities under the starting model are needed."""
        return self.inner.needs_reference

    @property
    def needs_start(self) -> bool:  # type: ignore[override]
        """Whether the starting model is needed."""
        return self.inner.needs_start

    @property
    def reuse(self) -> int:  # type: ignore[override]
        """Steps on the same rows."""
        return self.inner.reuse

    @property
    def evaluator(self) -> str:  # type: ignore[override]
        """What measures held-out rows."""
        return self.inner.evaluator

    @property
    def metrics(self) -> tuple[Metric, ...]:  # type: ignore[override]
        """What is recorded beside the loss."""
        return self.inner.metrics

    def start(self) -> None:
        """Prepare the inner objective."""
        self.inner.start()

    def for_model(self, model: Any) -> Self:
        """Return the objective as it suits a model."""
        return replace(self, inner=self.inner.for_model(model))

    def act(self, model: Any, rows: Sequence[Any], seed: int) -> Sequence[Any]:
        """Return the rows to learn from."""
        return self.inner.act(model, rows, seed)

    def counts(self, batch: Any) -> Metrics:
        """Return sums for the records."""
        return self.inner.counts(batch)

    def collate(self, rows: Sequence[Any]) -> Any:
        """Return a batch of rows."""
        return self.inner.collate(rows)

    def assess(self, model: Any, rows: Sequence[Any], batch_size: int, seed: int) -> float:
        """Return the mean loss on rows, by the inner objective."""
        return self.inner.assess(model, rows, batch_size, seed)
