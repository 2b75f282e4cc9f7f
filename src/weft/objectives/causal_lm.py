"""Next-token prediction: on all tokens of plain text for pre-training, on chosen targets otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from weft.core.objective import Loss, Objective
from weft.models.layout import Batch, Row, lay_out
from weft.models.lines import RowLines, lay_out_lines, line_logps
from weft.models.resident import Resident
from weft.objectives.chunks import summed_cross_entropy


def next_token_loss(model: Resident, batch: Batch) -> Loss:
    """Return the summed cross-entropy (nats) of the batch's targets, in float32."""
    return Loss(summed_cross_entropy(model, batch), len(batch.targets))


@dataclass(frozen=True)
class CausalLM(Objective):
    """-sum log p(x_t | x_<t) over every token of plain text."""

    pack: bool = True
    offsets: str = ""
    """When rows share one line by offsets instead of a mask (`lay_out`)."""
    step: int = 1
    """Padded lines have a multiple of so many positions."""
    rows: ClassVar[str] = "text"
    by_token: ClassVar[bool] = True
    separable: ClassVar[bool] = True

    def for_model(self, model: Resident) -> Self:
        """Return the objective, without packing where the model would mix the rows of a line."""
        return replace(self, pack=self.pack and model.can_pack, offsets=model.offsets, step=model.line_step)

    def collate(self, rows: Sequence[Row]) -> Batch:
        """Lay out the rows; with `pack`, several share a line."""
        return lay_out(rows, pack=self.pack, offsets=self.offsets, step=self.step)

    def loss(self, model: Resident, batch: Batch) -> Loss:
        """Return the summed loss of a batch."""
        return next_token_loss(model, batch)

    def separate(self, rows: Sequence[Row], step: int) -> RowLines:
        """Lay out every row on a line of its own."""
        return RowLines(lay_out_lines(rows, step))

    def row_losses(self, model: Resident, batch: RowLines) -> Tensor:
        """Return (rows,): the mean loss of each row's targets.

        A mean over the targets of all rows would let the length of one row change what the others add.
        """
        logps, counts = line_logps(model, batch.lines)
        return -logps / counts.clamp(min=1)
