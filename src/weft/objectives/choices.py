"""The log-probability of an answer, given its prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weft.models.layout import Question, lay_out_choices
from weft.models.resident import Resident


def choice_logps(model: Resident, questions: Sequence[Question]) -> Tensor:
    """Return (choices of all questions,): the sum of the log-probabilities (nats) of each choice's tokens.

    Where the model packs exactly, a question's choices share one pass over its prompt.
    """
    if model.can_pack:
        batch, owner = lay_out_choices(questions)
    else:
        # One line a choice: the prompt again in front of each.
        batch, owner = lay_out_choices([Question(q.prompt, [choice]) for q in questions for choice in q.choices])
        batch = type(batch)(batch.input_ids, None, None, batch.index, batch.targets, batch.rows, batch.tokens)
    batch, owner = batch.to(model.device), owner.to(model.device)
    logits = model.logits(batch).float()
    # The token's own logit less the log of the sum: the whole softmax need not be written down.
    of_target = logits.gather(1, batch.targets[:, None])[:, 0] - torch.logsumexp(logits, dim=-1)
    count = sum(len(question.choices) for question in questions)
    return torch.zeros(count, device=model.device).index_add(0, owner, of_target)
