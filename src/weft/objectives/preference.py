"""Preference losses: DPO and its variants. All are means over pairs, of log-probabilities summed over an answer.

With h = (log p(y_w) - log ref(y_w)) - (log p(y_l) - log ref(y_l)), m a mean over an answer's tokens instead of a sum:
dpo         -log sigma(beta h)                                                (Rafailov et al. 2023, arXiv 2305.18290)
robust_dpo  (-(1 - e) log sigma(beta h) + e log sigma(-beta h)) / (1 - 2 e)   (Chowdhury et al. 2024, arXiv 2403.00409)
ipo         (m_h - 1 / (2 beta))^2                                            (Azar et al. 2023, arXiv 2310.12036)
simpo       -log sigma(beta (m_w - m_l) - gamma)                              (Meng et al. 2024, arXiv 2405.14734)
orpo        -m_w - beta log sigma(log odds(m_w) - log odds(m_l))              (Hong et al. 2024, arXiv 2403.07691)
kto         1 - sigma(beta (r - z)) for good answers, 1 - sigma(beta (z - r)) for bad ones, r = log p - log ref, z the
            mean of r over other rows' answers, not below 0, no gradient      (Ethayarajh et al. 2024, arXiv 2402.01306)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.core.objective import Loss, Objective
from weft.data.pairs import Pair
from weft.models.layout import Question
from weft.models.lines import RowLines, lay_out_lines, line_logps
from weft.models.resident import Resident
from weft.objectives.choices import choice_logps

FREE = ("simpo", "orpo")
"""Losses without a reference."""
APART = (
    "KTO's z, a mean over other rows' answers, is 0 here, its smallest value: what one row adds would else depend on "
    "others."
)


@dataclass(frozen=True)
class PairBatch:
    """A batch of N pairs of answers, the preferred one first; for KTO, of judged answers with another row's."""

    questions: list[Question]
    reference: Tensor
    """(N, 2) float32: log-probabilities (nats) of the answers by the starting model."""
    good: Tensor
    """(N,) bool: KTO's judgement of the first answer."""
    lengths: Tensor
    """(N, 2) int64, tokens of the answers."""
    targets: Tensor
    """(N,): the loss is a mean over pairs."""
    rows: int
    tokens: int

    def to(self, device: torch.device) -> PairBatch:
        """Return the batch on a device."""
        parts = ("reference", "good", "lengths", "targets")
        return replace(self, **{name: getattr(self, name).to(device) for name in parts})


@dataclass(frozen=True)
class Preference(Objective):
    """One of the losses above."""

    evaluator: ClassVar[str] = "preferences"
    separable: ClassVar[bool] = True
    loss_name: str = field(default="dpo", metadata={"key": "loss"})
    beta: float = field(default=0.1, metadata={"key": "dpo_beta"})
    smoothing: float = field(default=0.1, metadata={"key": "label_smoothing"})
    gamma: float = field(default=0.5, metadata={"key": "simpo_gamma"})

    @property
    def rows(self) -> str:  # type: ignore[override]
        """Pairs of answers; for KTO, judged answers."""
        return "judged" if self.loss_name == "kto" else "pairs"

    @property
    def apart(self) -> str:  # type: ignore[override]
        """KTO's z."""
        return APART if self.loss_name == "kto" else ""

    @property
    def needs_reference(self) -> bool:  # type: ignore[override]
        """All but SimPO and ORPO."""
        return self.loss_name not in FREE

    @property
    def needs_start(self) -> bool:  # type: ignore[override]
        """Losses with a reference: evaluation reports the divergence from it."""
        return self.needs_reference

    def collate(self, rows: Sequence[Pair]) -> PairBatch:  # type: ignore[override]
        """Return the batch."""
        lengths = torch.tensor([[len(answer) for answer in row.answers] for row in rows])
        return PairBatch(
            [Question(row.prompt, row.answers) for row in rows],
            torch.tensor([row.reference.tolist() for row in rows]),
            torch.tensor([row.good for row in rows]),
            lengths,
            torch.arange(len(rows)),
            len(rows),
            int(lengths.sum()) + sum(len(row.prompt) for row in rows),
        )

    def loss(self, model: Resident, batch: PairBatch) -> Loss:
        """Return the summed loss of a batch."""
        logps = choice_logps(model, batch.questions).view(-1, 2)
        return Loss(self.losses(logps, batch).sum(), len(batch.targets))

    def separate(self, rows: Sequence[Pair], step: int) -> RowLines:
        """Lay out every answer on a line of its own, behind its prompt; for KTO only the answer that is judged."""
        answers = 1 if self.loss_name == "kto" else 2
        lines = [line for row in rows for line in Question(row.prompt, row.answers[:answers]).rows()]
        return RowLines(lay_out_lines(lines, step), answers, self.collate(rows))

    def row_losses(self, model: Resident, batch: RowLines) -> Tensor:
        """Return (rows,): the loss of every pair or judged answer.

        KTO's z is a mean over other rows' answers, so it is 0 here: its smallest value, which every row can know.
        """
        logps = line_logps(model, batch.lines)[0].view(-1, batch.lines_of_row)
        if self.loss_name == "kto":
            return self._kto(F.pad(logps - batch.batch.reference[:, :1], (0, 1)), batch.batch.good)
        return self.losses(logps, batch.batch)

    def losses(self, logps: Tensor, batch: PairBatch) -> Tensor:
        """Return (N,): the loss of every pair, for the log-probabilities (N, 2) in nats of its answers."""
        if self.loss_name == "kto":
            return self._kto(logps - batch.reference, batch.good)
        if self.loss_name in FREE:
            better, worse = (logps / batch.lengths).unbind(1)
            if self.loss_name == "simpo":
                return -F.logsigmoid(self.beta * (better - worse) - self.gamma)
            odds = (better - worse) - (_log1mexp(better) - _log1mexp(worse))
            return -better - self.beta * F.logsigmoid(odds)
        ratios = logps - batch.reference
        if self.loss_name == "ipo":
            ratios = ratios / batch.lengths
            return (ratios[:, 0] - ratios[:, 1] - 1 / (2 * self.beta)) ** 2
        margin = self.beta * (ratios[:, 0] - ratios[:, 1])
        if self.loss_name == "robust_dpo":
            clean, flipped = -F.logsigmoid(margin), -F.logsigmoid(-margin)
            return ((1 - self.smoothing) * clean - self.smoothing * flipped) / (1 - 2 * self.smoothing)
        return -F.logsigmoid(margin)

    def _kto(self, ratios: Tensor, good: Tensor) -> Tensor:
        # The second answer belongs to another row: it only estimates the divergence z.
        ratio, other_ratio = ratios.unbind(1)
        towards = torch.where(good, 1.0, -1.0)
        divergence = other_ratio.mean().clamp(min=0).detach()
        return 1 - torch.sigmoid(self.beta * towards * (ratio - divergence))

    def rewards(self, logps: Tensor, batch: PairBatch) -> Tensor:
        """Return (N, 2): beta times the log-ratio of each answer to the reference; without one, beta times its mean
        log-probability per token."""
        if self.needs_reference:
            return self.beta * (logps - batch.reference)
        return self.beta * logps / batch.lengths


def _log1mexp(value: Tensor) -> Tensor:
    """Return log(1 - exp(value)) for values below 0."""
    # Each form is accurate on its side of -log 2 (Maechler 2012).
    return torch.where(value > -0.6931472, torch.log(-torch.expm1(value)), torch.log1p(-torch.exp(value)))
