"""Log-probabilities of answers given their prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from weft.models.layout import Question, lay_out_choices
from weft.models.resident import Resident


class TokenScores(NamedTuple):
    """The N tokens of all choices of all questions, in order, and the logits that predict them."""

    logits: Tensor
    """(N, V) float32."""
    tokens: Tensor
    """(N,) int64."""
    owner: Tensor
    """(N,) int64: number of each token's choice, counted through all questions."""

    def at(self, temperature: float) -> TokenScores:
        """Return the scores of a model that samples at a temperature, which divides its logits."""
        return self if temperature == 1.0 else self._replace(logits=self.logits / temperature)

    @property
    def logps(self) -> Tensor:
        """(N,): the log-probability (nats) of each token."""
        # The token's logit minus logsumexp: (N,) results without an (N, V) softmax.
        return self.logits.gather(1, self.tokens[:, None])[:, 0] - torch.logsumexp(self.logits, dim=-1)


def score_choices(model: Resident, questions: Sequence[Question]) -> TokenScores:
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
    return TokenScores(model.logits(batch).float(), batch.targets, owner)


def choice_logps(model: Resident, questions: Sequence[Question]) -> Tensor:
    """Return (choices of all questions,): the sum of the log-probabilities (nats) of each choice's tokens."""
    scores = score_choices(model, questions)
    count = sum(len(question.choices) for question in questions)
    return torch.zeros(count, device=model.device).index_add(0, scores.owner, scores.logps)


def choice_logps_and_greed(model: Resident, questions: Sequence[Question]) -> tuple[Tensor, Tensor]:
    """Return what `choice_logps` does, and (choices,) bool: each of a choice's tokens is the likeliest at its place."""
    scores = score_choices(model, questions)
    count = sum(len(question.choices) for question in questions)
    zeros = torch.zeros(count, device=model.device)
    misses = (scores.logits.argmax(dim=-1) != scores.tokens).float()
    return zeros.index_add(0, scores.owner, scores.logps), zeros.index_add(0, scores.owner, misses) == 0


def most_tokens(model: Resident, logits: int = 1 << 26) -> int:
    """Return how many tokens may be scored at a time so that they have at most `logits` logits."""
    return max(1, logits // int(model.model.get_output_embeddings().weight.shape[0]))


def batches_within(questions: Sequence[Question], most: int) -> Iterator[list[Question]]:
    """Yield the questions in groups whose choices have at most `most` tokens; a longer question comes alone."""
    batch: list[Question] = []
    count = 0
    for question in questions:
        size = sum(len(choice) for choice in question.choices)
        if batch and count + size > most:
            yield batch
            batch, count = [], 0
        batch.append(question)
        count += size
    if batch:
        yield batch
