"""Metrics on the way to the server: counts and sums by name, which can be added up."""

from __future__ import annotations

from weft.core.types import Metrics

CONFUSION = "confusion"
"""Counts of answers, `confusion/RIGHT/GIVEN`, by their numbers in a closed set."""
COMPANIONS: dict[str, tuple[str, ...]] = {
    "loss_tokens": ("loss_sum",),
    "text_bytes": ("loss_sum",),
    "answers": ("reward_sum", "answer_tokens_sum", "cut_sum"),
    "judged": ("preference_accuracy_sum", "reward_margin_sum", "chosen_logp_sum", "rejected_logp_sum"),
    "kl_tokens": ("kl_sum",),
    "texts_scored": ("texts_refused",),
}
"""A count -> the sums over what it counts: without them it means nothing, and they nothing without it."""
COUNTS = frozenset({*COMPANIONS, "rows", "tokens", "steps", "groups", "alike", "cut_sum", "texts_refused"})
"""What is never less than 0."""
LARGEST = 1e18
"""Of a metric."""
DIGITS = 9
"""Of the number of an answer or of a model, at most."""


def plus(left: Metrics, right: Metrics) -> Metrics:
    """Return the sum of two counts; what one of them lacks is 0."""
    return {name: left.get(name, 0.0) + right.get(name, 0.0) for name in left | right}


def complete(metrics: Metrics) -> Metrics:
    """Return metrics without the counts whose sums are not among them."""
    return {name: value for name, value in metrics.items() if metrics.keys() >= set(COMPANIONS.get(name, ()))}


def fault(metrics: Metrics) -> str | None:
    """Return why metrics cannot be counted, None: they can."""
    if not all(abs(value) <= LARGEST for value in metrics.values()):
        return "metrics that are not finite"
    for name, value in metrics.items():
        kind, *numbers = name.split("/")
        if (name in COUNTS or kind == CONFUSION) and value < 0:
            return "a count below 0"
        if kind == CONFUSION and not (len(numbers) == 2 and all(map(is_number, numbers))):
            return "metrics of names that cannot be"
        if value and not metrics.keys() >= set(COMPANIONS.get(name, ())):
            return "counts without the sums that belong to them"
    return None


def is_number(text: str) -> bool:
    """Say whether a text is a number of an answer, or of a model."""
    return text.isascii() and text.isdecimal() and len(text) <= DIGITS


def mean(metrics: Metrics, total: str, count: str) -> float | None:
    """Return a mean; None: nothing was counted, or the sum was not sent."""
    counted = metrics.get(count, 0.0)
    return metrics[total] / counted if counted and total in metrics else None
