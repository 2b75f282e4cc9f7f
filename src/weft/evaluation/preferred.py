"""What a model prefers, on held-out preferences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from weft.core.declarations import Look, Metric
from weft.core.objective import Evaluator, HeldOutRows
from weft.evaluation.divergence import KL, divergence
from weft.evaluation.heldout import LOSS

if TYPE_CHECKING:
    from weft.core.types import Metrics
    from weft.federation.clients import View
    from weft.models.resident import Resident
    from weft.objectives.preference import Preference

PREFERENCE_ACCURACY = Metric(
    "preference_accuracy",
    "preference accuracy",
    "judged",
    ("preference_accuracy_sum",),
    better="higher",
    sums_are_counts=True,
    share=True,
    shown="models",
    look=Look(line="preferred", line_format=".1%", report_format="", panel="preference accuracy", curve="evaluation"),
)
REWARD_MARGIN = Metric(
    "reward_margin",
    "reward margin",
    "judged",
    ("reward_margin_sum",),
    better="higher",
    shown="models",
    look=Look(line="margin", line_format=".3f", report_format=""),
)
CHOSEN_LOGP = Metric(
    "chosen_logp",
    "log-probability, chosen",
    "judged",
    ("chosen_logp_sum",),
    shown="report",
    look=Look(report_format=""),
)
REJECTED_LOGP = Metric(
    "rejected_logp",
    "log-probability, rejected",
    "judged",
    ("rejected_logp_sum",),
    shown="report",
    look=Look(report_format=""),
)
MEANS = (LOSS, PREFERENCE_ACCURACY, REWARD_MARGIN, CHOSEN_LOGP, REJECTED_LOGP)
"""Over the rows; the loss is a mean over rows too."""


@dataclass(frozen=True)
class Preferred(Evaluator):
    """Evaluate preferences in batches of `batch_size`."""

    objective: Preference
    batch_size: int = 32
    metrics: ClassVar[tuple[Metric, ...]] = (*MEANS, KL)

    @classmethod
    def make(cls, objective: Preference, batch_size: int, rows: HeldOutRows) -> Self:
        """Return the evaluator of a run, by the loss and the reference of its objective."""
        return cls(objective, batch_size)

    def evaluate(self, model: Resident, rows: View) -> Metrics:
        """Return sums over rows: of the loss, of right preferences, of reward margins, of log-probabilities (nats).

        The reward of an answer is beta (log p - log ref), or beta times its mean log-probability where the loss has no
        reference. A judged answer's margin is its reward over the mean of the others', towards its label.
        """
        import torch

        from weft.objectives.choices import choice_logps

        names = [name for metric in MEANS for name in metric.sums]
        sums: dict[str, float] = dict.fromkeys(names, 0.0)
        with model.evaluating():
            for at in range(0, len(rows), self.batch_size):
                batch = self.objective.collate([rows[row] for row in range(at, min(at + self.batch_size, len(rows)))])
                batch = batch.to(model.device)
                logps = choice_logps(model, batch.questions).view(-1, 2)
                rewards = self.objective.rewards(logps, batch)
                if self.objective.rows == "judged":
                    # KTO's reference point: the mean reward of mismatched answers estimates a KL divergence, so it is
                    # never below 0.
                    margin = torch.where(batch.good, 1.0, -1.0) * (rewards[:, 0] - rewards[:, 1].mean().clamp(min=0))
                    answer_logps = logps[:, :1].expand(-1, 2) * torch.stack([batch.good, ~batch.good], dim=1)
                else:
                    margin, answer_logps = rewards[:, 0] - rewards[:, 1], logps
                values: list[Any] = [self.objective.losses(logps, batch).sum(), (margin > 0).sum(), margin.sum()]
                for name, value in zip(names, [*values, *answer_logps.sum(dim=0)], strict=True):
                    sums[name] += float(value)
        count = float(len(rows))
        sums |= {"loss_tokens": count, "rows": count, "judged": count}
        if self.objective.needs_reference:
            sums |= self._divergence(model, rows)
        return sums

    def _divergence(self, model: Resident, rows: View) -> Metrics:
        """Return the KL divergence from the reference (nats), summed over tokens of answers, and how many they are."""
        from weft.models.layout import Question

        # The second answer of a judged row belongs to another row: the divergence is over its own alone.
        answers = 1 if self.objective.rows == "judged" else 2
        total, count = 0.0, 0
        for at in range(0, len(rows), self.batch_size):
            pairs = [rows[row] for row in range(at, min(at + self.batch_size, len(rows)))]
            added, tokens = divergence(model, [Question(pair.prompt, pair.answers[:answers]) for pair in pairs])
            total, count = total + added, count + tokens
        return {"kl_sum": total, "kl_tokens": float(count)}
