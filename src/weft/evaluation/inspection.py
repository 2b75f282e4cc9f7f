"""Tests of a client's own on each shared model: answers that must not come, and the loss of canaries.

They notice a back-door that a server puts into the model, as far as the client's own questions have its trigger.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from weft.models.layout import Question, Row
from weft.models.resident import Resident
from weft.objectives.choices import batches_within, choice_logps_and_greed, most_tokens

ROWS = 32
"""The most questions of one pass."""


@dataclass(frozen=True)
class Found:
    """What a test found."""

    rate: float | None
    """Share of the questions to which the answer that must not come is the model's own; None: none were asked."""
    loss: float | None
    """Mean loss of the canaries (nats a token); None: there are none."""


@dataclass(frozen=True)
class Inspection:
    """The questions and the limits of a client."""

    forbidden: Sequence[Question] = ()
    """Each with the one answer that must not come."""
    rate: float = 1.0
    canaries: Sequence[Question] = ()
    """Each with its answer."""
    most_rise: float | None = None
    most_fall: float | None = None
    before: float = 0.0
    """Loss of the canaries under the model as it was loaded, before the server sent anything."""

    def begun(self, model: Resident) -> Inspection:
        """Return the inspection that compares with a model, which is loaded."""
        loss = self.look(model).loss
        return self if loss is None else replace(self, before=loss)

    def look(self, model: Resident) -> Found:
        """Test a model, which is loaded; it stays as it is.

        An answer comes if each of its tokens is the likeliest after the question and the tokens before it: it is then
        how greedy decoding begins.
        """
        with model.evaluating():
            greedy = [came for _, came, _ in _scored(model, self.forbidden)]
            losses = [(-logp, tokens) for logp, _, tokens in _scored(model, self.canaries)]
        rate = sum(greedy) / len(greedy) if greedy else None
        tokens = sum(count for _, count in losses)
        return Found(rate, sum(loss for loss, _ in losses) / tokens if tokens else None)

    def objection(self, found: Found) -> str | None:
        """Return why the client leaves, for its own log; None: it stays."""
        if found.rate is not None and found.rate > self.rate:
            count = round(found.rate * len(self.forbidden))
            return (
                f"to {count} of {len(self.forbidden)} questions it gives the answer that must not come "
                f"({found.rate:.0%}, and rate is {self.rate:.0%})"
            )
        change = 0.0 if found.loss is None else found.loss - self.before
        if self.most_rise is not None and not change <= self.most_rise:
            return f"the loss of the canaries rose by {change:.3g} nats a token, and most_rise is {self.most_rise:g}"
        if self.most_fall is not None and not -change <= self.most_fall:
            return f"the loss of the canaries fell by {-change:.3g} nats a token, and most_fall is {self.most_fall:g}"
        return None


def question_of(row: Row, ends: Collection[int]) -> Question | None:
    """Return a conversation's last question with its answer, without the tokens that end it; None: it has no answer.

    Args:
        row: token ids and which are answers.
        ends: special tokens; the answer is what comes before the first of them.
    """
    ids, learn = row
    places = np.flatnonzero(learn)
    if not len(places):
        return None
    breaks = np.flatnonzero(np.diff(places) > 1)
    run = places[breaks[-1] + 1 :] if len(breaks) else places
    special = np.flatnonzero(np.isin(ids[run], list(ends)))
    answer = run[: special[0]] if len(special) else run
    return Question(ids[: answer[0]], [ids[answer]]) if len(answer) and answer[0] else None


def _scored(model: Resident, questions: Sequence[Question]) -> list[tuple[float, bool, int]]:
    """Return of every question the log-probability of its answer (nats), whether it is the model's own, its tokens."""
    scored: list[tuple[float, bool, int]] = []
    for batch in batches_within(questions, most_tokens(model)):
        for at in range(0, len(batch), ROWS):
            part = batch[at : at + ROWS]
            logps, came = choice_logps_and_greed(model, part)
            sizes = (len(question.choices[0]) for question in part)
            scored += zip(logps.tolist(), came.tolist(), sizes, strict=True)
    return scored
