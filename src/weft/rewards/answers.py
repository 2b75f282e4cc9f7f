"""What is counted of scored answers, in training and in evaluation alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from weft.core.declarations import Look, Metric

if TYPE_CHECKING:
    import numpy as np

    from weft.core.types import Metrics

REWARD = Metric(
    "reward",
    "reward",
    "answers",
    ("reward_sum",),
    better="higher",
    shown="models",
    look=Look(line_format=".3f", report_format="", panel="reward", curve="training"),
)
ANSWER_TOKENS = Metric(
    "answer_tokens",
    "tokens an answer",
    "answers",
    ("answer_tokens_sum",),
    sums_are_counts=True,
    shown="report",
    look=Look(report_format=""),
)
CUT = Metric(
    "cut",
    "answers cut",
    "answers",
    ("cut_sum",),
    better="lower",
    sums_are_counts=True,
    share=True,
    shown="report",
    look=Look(report_format=""),
)


class AnswerLike(Protocol):
    """An answer that was drawn: its tokens, and whether it came to its end."""

    @property
    def ids(self) -> np.ndarray:
        """(T,) token ids."""

    @property
    def ended(self) -> bool:
        """Whether the end token came within the tokens that an answer may have."""


def count_answers(rewards: np.ndarray, answers: Sequence[AnswerLike]) -> Metrics:
    """Return sums over answers, given their (N,) rewards: of rewards, of tokens, and of those that were cut."""
    return {
        "answers": float(len(answers)),
        "reward_sum": float(rewards.sum()),
        "answer_tokens_sum": float(sum(len(answer.ids) for answer in answers)),
        "cut_sum": float(sum(not answer.ended for answer in answers)),
    }
