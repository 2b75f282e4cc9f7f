"""What a model's answers are worth, on held-out prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from weft.core.metrics import plus
from weft.core.objective import Evaluator
from weft.core.types import Metrics
from weft.federation.clients import View
from weft.models.generate import Sampling, generate
from weft.models.layout import Question
from weft.models.resident import Resident
from weft.objectives.choices import divergence
from weft.objectives.grpo import GRPO, answer_counts


@dataclass(frozen=True)
class Rewarded(Evaluator):
    """Answer prompts in batches of `batch_size`, always by the likeliest token, and score the answers."""

    objective: GRPO
    batch_size: int = 32

    def evaluate(self, model: Resident, rows: View) -> Metrics:
        """Return sums over rows: of rewards, of answers' tokens and cuts, and of the KL to the reference (nats)."""
        sums: Metrics = {"loss_sum": 0.0, "rows": float(len(rows))}
        how = Sampling(self.objective.max_new_tokens, temperature=0.0)
        for at in range(0, len(rows), self.batch_size):
            prompts = [rows[row] for row in range(at, min(at + self.batch_size, len(rows)))]
            drawn = generate(model, [prompt.ids for prompt in prompts], how)
            totals, faults = self.objective.score(model.tokenizer, prompts, drawn)
            questions = [Question(row.ids, [group[0].ids]) for row, group in zip(prompts, drawn, strict=True)]
            apart, tokens = divergence(model, questions)
            found = answer_counts(np.array(totals), [group[0] for group in drawn])
            found |= {"kl_sum": apart, "kl_tokens": float(tokens)}
            found |= {f"reward_{fault}": float(count) for fault, count in faults.items()}
            sums = plus(sums, found)
        return sums
