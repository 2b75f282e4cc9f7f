"""The log-probabilities of answers, given their prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from weft.models.layout import Question, lay_out_choices
from weft.models.resident import Resident


class Scored(NamedTuple):
    """The N tokens of all choices of all questions, in their order."""

    logits: Tensor
    """(N, V) float32, which predict them."""
    tokens: Tensor
    """(N,) int64."""
    owner: Tensor
    """(N,) int64: which choice each is of, counted through all questions."""

    def at(self, temperature: float) -> Scored:
        """Return the same of a model whose answers are drawn at a temperature, which divides its logits."""
        return self if temperature == 1.0 else self._replace(logits=self.logits / temperature)

    @property
    def logps(self) -> Tensor:
        """(N,): the log-probability (nats) of each token."""
        # The token's own logit less the log of the sum: the whole softmax need not be written down.
        return self.logits.gather(1, self.tokens[:, None])[:, 0] - torch.logsumexp(self.logits, dim=-1)


def score_choices(model: Resident, questions: Sequence[Question]) -> Scored:
    """Compute the logits of every choice's tokens.

    Where the model packs exactly, a question's choices share one pass over its prompt.
    """
    if model.can_pack:
        batch, owner = lay_out_choices(questions)
    else:
        # One line a choice: the prompt again in front of each.
        batch, owner = lay_out_choices([Question(q.prompt, [choice]) for q in questions for choice in q.choices])
        batch = type(batch)(batch.input_ids, None, None, batch.index, batch.targets, batch.rows, batch.tokens)
    batch, owner = batch.to(model.device), owner.to(model.device)
    return Scored(model.logits(batch).float(), batch.targets, owner)


def choice_logps(model: Resident, questions: Sequence[Question]) -> Tensor:
    """Return (choices of all questions,): the sum of the log-probabilities (nats) of each choice's tokens."""
    scored = score_choices(model, questions)
    count = sum(len(question.choices) for question in questions)
    return torch.zeros(count, device=model.device).index_add(0, scored.owner, scored.logps)


def most_tokens(model: Resident, logits: int = 1 << 26) -> int:
    """Return how many tokens may be scored at a time, so that no more than so many logits are held."""
    return max(1, logits // int(model.model.get_output_embeddings().weight.shape[0]))


def within(questions: Sequence[Question], most: int) -> Iterator[list[Question]]:
    """Yield the questions in groups of at most `most` tokens of choices, or of one question."""
    held: list[Question] = []
    count = 0
    for question in questions:
        size = sum(len(choice) for choice in question.choices)
        if held and count + size > most:
            yield held
            held, count = [], 0
        held.append(question)
        count += size
    if held:
        yield held
