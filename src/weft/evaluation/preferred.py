"""What a model prefers, on held-out preferences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from weft.core.objective import Evaluator
from weft.core.types import Metrics
from weft.federation.clients import View
from weft.models.layout import Question
from weft.models.resident import Resident
from weft.objectives.choices import choice_logps, divergence
from weft.objectives.preference import Preference

NAMES = ("loss_sum", "preference_accuracy_sum", "reward_margin_sum", "chosen_logp_sum", "rejected_logp_sum")


@dataclass(frozen=True)
class Preferred(Evaluator):
    """Evaluate preferences in batches of `batch_size`."""

    objective: Preference
    batch_size: int = 32

    @torch.no_grad()
    def evaluate(self, model: Resident, rows: View) -> Metrics:
        """Return sums over rows: of the loss, of right preferences, of reward margins, of log-probabilities (nats).

        The reward of an answer is beta (log p - log ref), or beta times its mean log-probability where the loss has no
        reference. A judged answer's margin is its reward over the mean of the others', towards its label.
        """
        was_training = model.model.training
        model.model.eval()
        sums: dict[str, float] = dict.fromkeys(NAMES, 0.0)
        try:
            for at in range(0, len(rows), self.batch_size):
                batch = self.objective.collate([rows[row] for row in range(at, min(at + self.batch_size, len(rows)))])
                batch = batch.to(model.device)
                logps = choice_logps(model, batch.questions).view(-1, 2)
                rewards = self.objective.rewards(logps, batch)
                if self.objective.rows == "judged":
                    margin = torch.where(batch.good, 1.0, -1.0) * (rewards[:, 0] - rewards[:, 1].mean().clamp(min=0))
                    shown = logps[:, :1].expand(-1, 2) * torch.stack([batch.good, ~batch.good], dim=1)
                else:
                    margin, shown = rewards[:, 0] - rewards[:, 1], logps
                found: list[Any] = [self.objective.losses(logps, batch).sum(), (margin > 0).sum(), margin.sum()]
                for name, value in zip(NAMES, [*found, *shown.sum(dim=0)], strict=True):
                    sums[name] += float(value)
        finally:
            model.model.train(was_training)
        count = float(len(rows))
        sums |= {"loss_tokens": count, "rows": count, "judged": count}
        if self.objective.needs_reference:
            pairs = [rows[row] for row in range(len(rows))]
            seen = 1 if self.objective.rows == "judged" else 2
            questions = [Question(pair.prompt, pair.answers[:seen]) for pair in pairs]
            sums["kl_sum"], tokens = divergence(model, questions)
            sums["kl_tokens"] = float(tokens)
        return sums
