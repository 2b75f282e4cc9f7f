"""Loss, perplexity, accuracy and macro-F1 on held-out rows.

Clients report counts and sums only, of which metrics are derived, so one client, some and all are measured alike.
Accuracy compares the likelihoods of a closed set of answers: nothing is generated or parsed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

from weft.core.declarations import Look, Metric
from weft.core.objective import Evaluator, HeldOutRows

if TYPE_CHECKING:
    from weft.core.types import Metrics
    from weft.federation.clients import View
    from weft.models.layout import Question, Row
    from weft.models.resident import Resident

CONFUSION = "confusion"
"""Counts of answers, `confusion/RIGHT/GIVEN`, by their numbers in a closed set."""


def macro_f1(pairs: Mapping[tuple[str, str], float], unread: str | None = None) -> float:
    """Return the mean F1 over the classes that are right or given anywhere, from counts of (right, given).

    `unread` names the answers that could not be read: they are wrong, and no class of their own.

    A class that is never right, or never found, counts as 0: scikit-learn's f1_score(average="macro", zero_division=0).
    """
    totals: dict[str, float] = {}  # of every class how often it is right, and how often it is given, together
    for pair, count in pairs.items():
        for name in pair if count else ():
            if name != unread:
                totals[name] = totals.get(name, 0.0) + count
    scores = [2 * hit / totals[name] if (hit := pairs.get((name, name), 0.0)) else 0.0 for name in sorted(totals)]
    return sum(scores) / len(scores)


def _pairs(counts: Metrics) -> dict[tuple[str, str], float]:
    """Return counts by (right, given)."""
    split = {tuple(name.split("/")): count for name, count in counts.items()}
    return {(right, answer): count for (_, right, answer), count in split.items()}


def _accuracy(counts: Metrics) -> float:
    pairs = _pairs(counts)
    return sum(count for (right, answer), count in pairs.items() if right == answer) / sum(pairs.values())


def _perplexity(sums: Metrics) -> float:
    loss = sums["loss_sum"] / sums["loss_tokens"]
    # exp overflows a float64 just above 709.
    return math.exp(loss) if loss < 700 else math.inf


def _bits_per_byte(sums: Metrics) -> float:
    return sums["loss_sum"] / math.log(2) / sums["text_bytes"]


def _places(count: int) -> Callable[[float], str]:
    """Return what writes a number with so many decimal places, a large one by its power of 10."""
    return lambda value: f"{value:.{count}f}" if value < 1e5 else f"{value:.2e}"


LOSS = Metric(
    "loss",
    "loss",
    "loss_tokens",
    ("loss_sum",),
    better="lower",
    always=True,
    shown="models",
    look=Look(panel="loss", curve="evaluation"),
)
"""Nats a target."""
PERPLEXITY = Metric(
    "perplexity",
    "perplexity",
    "loss_tokens",
    ("loss_sum",),
    better="lower",
    derive=_perplexity,
    always=True,
    look=Look(line_format=".4g", report_format=_places(2), compare_format=_places(3)),
)
BITS_PER_BYTE = Metric(
    "bits_per_byte",
    "bits per byte",
    "text_bytes",
    ("loss_sum",),
    better="lower",
    derive=_bits_per_byte,
    always=True,
    look=Look(line="bits/byte", line_format=".3f"),
)
"""The loss of all tokens, ends of texts included, over the bytes of the text in UTF-8: it compares models of different
tokenizers."""
ACCURACY = Metric(
    "accuracy",
    "accuracy",
    f"{CONFUSION}/*/*",
    better="higher",
    derive=_accuracy,
    share=True,
    always=True,
    shown="models",
    format=".1%",
    look=Look(compare_format=".4f", panel="score"),
)
MACRO_F1 = Metric(
    "macro_f1",
    "macro-F1",
    f"{CONFUSION}/*/*",
    better="higher",
    derive=lambda counts: macro_f1(_pairs(counts)),
    share=True,
    always=True,
    shown="models",
    look=Look(line_format=".3f", panel="score"),
)


class ClosedQuestion(NamedTuple):
    """A held-out row as a question with a closed set of answers; `right` is the index of the right one."""

    question: Question
    right: int


@dataclass(frozen=True)
class HeldOut(Evaluator):
    """Evaluate rows in batches of `batch_size`, longest first."""

    batch_size: int = 32
    questions: Mapping[int, ClosedQuestion] = field(default_factory=dict)
    """By number of the table's row; empty where answers are no closed set."""
    text_bytes: Callable[[int], int] | None = None
    """Of plain text: the bytes that the targets of a row of the table stand for."""
    metrics: ClassVar[tuple[Metric, ...]] = (LOSS, PERPLEXITY, BITS_PER_BYTE, ACCURACY, MACRO_F1)

    @classmethod
    def make(cls, objective: object, batch_size: int, rows: HeldOutRows) -> Self:
        """Return the evaluator of a run, whatever its objective is."""
        return cls(batch_size, rows.questions, rows.text_bytes)

    def evaluate(self, model: Resident, rows: View) -> Metrics:
        """Return `loss_sum` (nats), `loss_tokens`, `rows`, `confusion/RIGHT/GIVEN` counts, and `text_bytes` of text."""
        import numpy as np

        from weft.data.words import instruction_tokens
        from weft.models.layout import Question

        with model.evaluating():
            prefix, words = instruction_tokens(model)
            metrics = self._losses(model, [words.row(rows[row], prefix) for row in range(len(rows))])
            if self.text_bytes is not None:
                metrics["text_bytes"] = float(sum(self.text_bytes(int(row)) for row in rows.index))
            closed_questions = [self.questions[int(row)] for row in rows.index if int(row) in self.questions]
            if rows.examples is not None:
                # The rows of the view begin with their few-shot examples; questions are built from the table, without
                # them.
                prefix = np.concatenate([prefix, rows.examples.tokens])
            questions = [Question(words.into(a.question.prompt, prefix), a.question.choices) for a in closed_questions]
            for question, (answer, _) in zip(closed_questions, rank(model, questions, self.batch_size), strict=True):
                name = f"{CONFUSION}/{question.right}/{answer}"
                metrics[name] = metrics.get(name, 0.0) + 1.0
        return metrics

    def _losses(self, model: Resident, rows: list[Row]) -> Metrics:
        from weft.objectives.causal_lm import next_token_loss

        likelihoods = model.remote_likelihoods(rows)
        if likelihoods is not None:
            total, targets = -sum(one for one, _ in likelihoods), sum(count for _, count in likelihoods)
            return {"loss_sum": total, "loss_tokens": float(targets), "rows": float(len(rows))}
        # Rows of similar length share a batch, with little padding; a batch that does not fit fails at once.
        rows = sorted(rows, key=lambda row: -len(row[0]))
        total, targets = 0.0, 0
        for at in range(0, len(rows), self.batch_size):
            batch = model.lay_out(rows[at : at + self.batch_size]).to(model.device)
            loss = next_token_loss(model, batch)
            total += float(loss.total)
            targets += loss.targets
        return {"loss_sum": total, "loss_tokens": float(targets), "rows": float(len(rows))}


def rank(model: Resident, questions: Sequence[Question], batch_size: int) -> list[tuple[int, list[float]]]:
    """Return for every question the index of its likeliest choice and the log-probability (nats) of each choice.

    Where the model packs exactly, a question's choices share one pass over its prompt.
    """
    import torch

    order = sorted(range(len(questions)), key=lambda i: -len(questions[i].prompt))
    # Longest prompts first, so that the questions of a batch need little padding.
    results: list[tuple[int, list[float]]] = [(0, [])] * len(questions)
    with torch.no_grad():
        for at in range(0, len(order), batch_size):
            chunk = order[at : at + batch_size]
            scores = _score(model, [questions[i] for i in chunk])
            for number, values in zip(chunk, scores, strict=True):
                results[number] = (max(range(len(values)), key=values.__getitem__), values)
    return results


def _score(model: Resident, questions: Sequence[Question]) -> list[list[float]]:
    from weft.objectives.choices import choice_logps

    pairs = model.remote_likelihoods([row for question in questions for row in question.rows()])
    values = iter(choice_logps(model, questions).tolist() if pairs is None else [total for total, _ in pairs])
    return [[next(values) for _ in question.choices] for question in questions]
