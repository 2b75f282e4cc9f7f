"""How far a model has gone from the one that the run began from: the KL divergence of its predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from weft.core.declarations import Look, Metric

if TYPE_CHECKING:
    from weft.models.layout import Question
    from weft.models.resident import Resident

KL = Metric(
    "kl",
    "KL to the reference",
    "kl_tokens",
    ("kl_sum",),
    look=Look(line="KL", line_format=".3g", report_format="", compare_format=".3g", order=1),
)
"""Nats a token of the answers."""


def divergence(model: Resident, questions: Sequence[Question]) -> tuple[float, int]:
    """Return the KL divergence of the model from the run's starting model, summed over tokens, and their number.

    Args:
        model: the resident model, which remembers its start.
        questions: prompts with choices; every token of every choice counts, given the prompt and the choice so far.

    Returns:
        The sum of KL(model || start) over the whole vocabulary (nats), and the number of tokens.
    """
    import torch

    from weft.objectives.choices import batches_within, most_tokens, score_choices

    total, tokens = 0.0, 0
    with model.evaluating():
        # Groups bound the memory: logits over the whole vocabulary are kept for two models at a time.
        for some in batches_within(questions, most_tokens(model)):
            with model.as_reference():
                reference = torch.log_softmax(score_choices(model, some).logits, dim=-1)
            # Both are (tokens of the choices, vocabulary).
            ours = torch.log_softmax(score_choices(model, some).logits, dim=-1)
            total += float((ours.exp() * (ours - reference)).sum())
            tokens += len(ours)
    return total, tokens
