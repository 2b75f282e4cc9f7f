"""What a model's answers are worth, on held-out prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self

from weft.core.declarations import Metric
from weft.core.metrics import plus
from weft.core.objective import Evaluator, HeldOutRows
from weft.evaluation.divergence import KL, divergence
from weft.rewards.answers import ANSWER_TOKENS, CUT, REWARD, count_answers

if TYPE_CHECKING:
    from weft.core.types import Metrics
    from weft.federation.clients import View
    from weft.models.resident import Resident
    from weft.objectives.grpo import GRPO


@dataclass(frozen=True)
class Rewarded(Evaluator):
    """Answer prompts in batches of `batch_size`, always by the likeliest token, and score the answers."""

    objective: GRPO
    batch_size: int = 32
    metrics: ClassVar[tuple[Metric, ...]] = (
        replace(REWARD, look=replace(REWARD.look, curve="evaluation, likeliest answers")),
        ANSWER_TOKENS,
        CUT,
        KL,
    )

    @classmethod
    def make(cls, objective: GRPO, batch_size: int, rows: HeldOutRows) -> Self:
        """Return the evaluator of a run, by the rewards of its objective."""
        return cls(objective, batch_size)

    def evaluate(self, model: Resident, rows: View) -> Metrics:
        """Return sums over rows: of rewards, of answers' tokens and cuts, and of the KL to the reference (nats)."""
        import numpy as np

        from weft.models.generate import Sampling, generate
        from weft.models.layout import Question

        sums: Metrics = {"loss_sum": 0.0, "rows": float(len(rows))}
        sampling = Sampling(self.objective.max_new_tokens, temperature=0.0)
        for at in range(0, len(rows), self.batch_size):
            prompts = [rows[row] for row in range(at, min(at + self.batch_size, len(rows)))]
            answers = generate(model, [prompt.ids for prompt in prompts], sampling)
            totals, faults = self.objective.score(model.tokenizer, prompts, answers)
            questions = [Question(row.ids, [group[0].ids]) for row, group in zip(prompts, answers, strict=True)]
            kl, tokens = divergence(model, questions)
            counts = count_answers(np.array(totals), [group[0] for group in answers])
            counts |= {"kl_sum": kl, "kl_tokens": float(tokens)}
            counts |= {f"reward_{fault}": float(count) for fault, count in faults.items()}
            sums = plus(sums, counts)
        return sums
