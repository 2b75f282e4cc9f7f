"""Loss, perplexity, accuracy and macro-F1 on held-out rows.

Clients report counts and sums only; `summarise` turns any sum of them into metrics, so one client, some and all
are measured alike. Accuracy compares the likelihoods of a closed set of answers: nothing is generated or parsed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from weft.core.metrics import CONFUSION, mean
from weft.core.objective import Evaluator
from weft.core.types import Metrics
from weft.data.words import instruction_tokens
from weft.federation.clients import View
from weft.models.layout import Question, Row, lay_out
from weft.models.resident import Resident
from weft.objectives.causal_lm import next_token_loss
from weft.objectives.choices import choice_logps

PREFERRED = ("preference_accuracy", "reward_margin", "chosen_logp", "rejected_logp")
"""Means over judged pairs."""
REWARDED = ("reward", "answer_tokens", "cut")
"""Means over answers."""
OPTIONAL = (*PREFERRED, *REWARDED, "kl")
"""What only some objectives are measured by."""
SCORES = ("loss", "perplexity", "bits_per_byte", "accuracy", "macro_f1", *OPTIONAL)
"""What `summarise` makes of counts and sums."""


class Questions(NamedTuple):
    """A held-out row as a question with a closed set of answers; `right` is the index of the right one."""

    question: Question
    right: int


@dataclass(frozen=True)
class HeldOut(Evaluator):
    """Evaluate rows in batches of `batch_size`, longest first."""

    batch_size: int = 32
    asked: Mapping[int, Questions] = field(default_factory=dict)
    """By number of the table's row; empty where answers are no closed set."""
    text_bytes: Callable[[int], int] | None = None
    """Of plain text: the bytes that the targets of a row of the table stand for."""

    @torch.no_grad()
    def evaluate(self, model: Resident, rows: View) -> Metrics:
        """Return `loss_sum` (nats), `loss_tokens`, `rows`, `confusion/RIGHT/GIVEN` counts, and `text_bytes` of text."""
        was_training = model.model.training
        model.model.eval()
        try:
            said, words = instruction_tokens(model)
            metrics = self._losses(model, [words.row(rows[row], said) for row in range(len(rows))])
            if self.text_bytes is not None:
                metrics["text_bytes"] = float(sum(self.text_bytes(int(row)) for row in rows.index))
            asked = [self.asked[int(row)] for row in rows.index if int(row) in self.asked]
            if rows.shown is not None:
                said = np.concatenate([said, rows.shown.tokens])
            questions = [Question(words.into(a.question.prompt, said), a.question.choices) for a in asked]
            for known, (given, _) in zip(asked, rank(model, questions, self.batch_size), strict=True):
                name = f"{CONFUSION}/{known.right}/{given}"
                metrics[name] = metrics.get(name, 0.0) + 1.0
        finally:
            model.model.train(was_training)
        return metrics

    def _losses(self, model: Resident, rows: list[Row]) -> Metrics:
        told = model.asked_likelihoods(rows)
        if told is not None:
            total, targets = -sum(one for one, _ in told), sum(count for _, count in told)
            return {"loss_sum": total, "loss_tokens": float(targets), "rows": float(len(rows))}
        rows = sorted(rows, key=lambda row: -len(row[0]))
        total, targets = 0.0, 0
        for at in range(0, len(rows), self.batch_size):
            batch = lay_out(rows[at : at + self.batch_size], pack=model.can_pack).to(model.device)
            loss = next_token_loss(model, batch)
            total += float(loss.total)
            targets += loss.targets
        return {"loss_sum": total, "loss_tokens": float(targets), "rows": float(len(rows))}


@torch.no_grad()
def rank(model: Resident, questions: Sequence[Question], batch_size: int) -> list[tuple[int, list[float]]]:
    """Return for every question the likeliest choice and the log-probability (nats) of each.

    Where the model packs exactly, a question's choices share one pass over its prompt.
    """
    order = sorted(range(len(questions)), key=lambda i: -len(questions[i].prompt))
    found: list[tuple[int, list[float]]] = [(0, [])] * len(questions)
    for at in range(0, len(order), batch_size):
        chunk = order[at : at + batch_size]
        scores = _score(model, [questions[i] for i in chunk])
        for number, values in zip(chunk, scores, strict=True):
            found[number] = (max(range(len(values)), key=values.__getitem__), values)
    return found


def _score(model: Resident, questions: Sequence[Question]) -> list[list[float]]:
    told = model.asked_likelihoods([row for question in questions for row in question.rows()])
    values = iter(choice_logps(model, questions).tolist() if told is None else [total for total, _ in told])
    return [[next(values) for _ in question.choices] for question in questions]


def summarise(metrics: Metrics) -> dict[str, float | int | None]:
    """Return SCORES and `rows`; None: not measured. `loss` is in nats a token; of preferences it is a mean over rows.

    What is said of preferences and rewards is there for these only; `kl` (nats a token of the answers) is where there
    is a reference.
    Bits per byte compares models of different tokenizers: the loss of all tokens, ends of texts included, over the
    bytes of the text in UTF-8.
    """
    loss = mean(metrics, "loss_sum", "loss_tokens")
    pairs = {
        (name.split("/")[1], name.split("/")[2]): count
        for name, count in metrics.items()
        if name.startswith(CONFUSION + "/")
    }
    size = metrics.get("text_bytes", 0.0) if loss is not None else 0.0
    judged, answers = metrics.get("judged"), metrics.get("answers")
    asked = sum(pairs.values())
    right = sum(count for (gold, given), count in pairs.items() if gold == given)
    return {
        "loss": loss,
        "perplexity": None if judged else _exp(loss),
        "bits_per_byte": metrics["loss_sum"] / math.log(2) / size if size else None,
        "accuracy": right / asked if asked else None,
        "macro_f1": macro_f1(pairs) if asked else None,
        **{name: mean(metrics, f"{name}_sum", "judged") for name in PREFERRED if judged},
        **{name: mean(metrics, f"{name}_sum", "answers") for name in REWARDED if answers},
        **({} if (kl := mean(metrics, "kl_sum", "kl_tokens")) is None else {"kl": kl}),
        "rows": int(metrics.get("rows", 0)),
    }


def macro_f1(pairs: Mapping[tuple[str, str], float]) -> float:
    """Return the mean F1 over the classes that are right or given anywhere, from counts of (right, given).

    A class that is never right, or never found, counts as 0: scikit-learn's f1_score(average="macro", zero_division=0).
    """
    known: dict[str, float] = {}  # of every class how often it is right, and how often it is given, together
    for pair, count in pairs.items():
        for name in pair if count else ():
            known[name] = known.get(name, 0.0) + count
    scores = [2 * hit / known[name] if (hit := pairs.get((name, name), 0.0)) else 0.0 for name in sorted(known)]
    return sum(scores) / len(scores)


def _exp(loss: float | None) -> float | None:
    if loss is None:
        return None
    return math.exp(loss) if loss < 700 else math.inf
