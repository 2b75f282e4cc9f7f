"""Preferences as token ids: a prompt and two answers, with what the starting model gave them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from weft.data.encode import NO_LEAD, cut_left, last_run, tokenize
from weft.data.formats import Example, Turn
from weft.data.preferences import Preference
from weft.data.templates import Template

PROMPTS_CUT = "prompts_cut"


class Pair(NamedTuple):
    """One row. Where answers are judged, the second is another row's, whose log-ratio estimates the divergence."""

    prompt: np.ndarray
    """(P,) int32."""
    answers: tuple[np.ndarray, np.ndarray]
    """Ids of both answers, ends included."""
    reference: np.ndarray
    """(2,) float32: their log-probabilities under the starting model; NaN where it was not asked."""
    good: bool = True
    """Where the first answer is judged: whether it is a good one."""


@dataclass(frozen=True)
class PairTable:
    """Rows of preferences."""

    prompts: list[np.ndarray]
    answers: list[np.ndarray]
    others: list[np.ndarray]
    good: np.ndarray
    """(rows,) bool."""
    rows: np.ndarray
    """(rows,) the example that each row was made of, increasing."""
    partner: np.ndarray
    """(rows,) the row whose answer is the second; the row itself where it has two."""
    reference: np.ndarray
    """(rows, 2) float32."""
    counts: dict[str, int]
    number: int
    """How many examples there were."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Pair:
        other = self.others[row] if len(self.others[row]) else self.answers[int(self.partner[row])]
        return Pair(self.prompts[row], (self.answers[row], other), self.reference[row], bool(self.good[row]))

    @property
    def lengths(self) -> np.ndarray:
        """(examples,): tokens of each, both answers counted; 0 for those that were left out."""
        sizes = np.zeros(self.number, dtype=np.int64)
        parts = zip(self.prompts, self.answers, self.others, strict=True)
        sizes[self.rows] = [sum(len(part) for part in row) for row in parts]
        return sizes

    def within(self, numbers: np.ndarray) -> np.ndarray:
        """Return those of these examples that have a row."""
        return np.intersect1d(numbers, self.rows)

    def rows_of(self, numbers: np.ndarray) -> np.ndarray:
        """Return the rows that were made of these examples, in their order."""
        return np.searchsorted(self.rows, numbers)

    def pair_up(self, rows: np.ndarray) -> None:
        """Let every judged row of a client have the answer of the client's next row as its second."""
        self.partner[rows] = np.roll(rows, -1)


def encode_preferences(
    examples: Sequence[Preference],
    tokenizer: Any,
    template: Template,
    *,
    seq_length: int,
    judged: bool,
    lead: np.ndarray = NO_LEAD,
) -> PairTable:
    """Tokenize preferences.

    A prompt is what both of its answers have in common. It is cut on the left to leave room for the longer answer
    within `seq_length`; where an answer alone is as long, the row is left out. Both are counted.
    """
    prompts: list[np.ndarray] = []
    answers: list[np.ndarray] = []
    others: list[np.ndarray] = []
    good: list[bool] = []
    rows: list[int] = []
    cut = dropped = 0
    said = (
        Example((*one.turns, Turn("assistant", text)))
        for one in examples
        for text in ([one.answer] if judged else [one.answer, one.other])
    )
    made = tokenize(said, tokenizer, template, lead)
    for number, example in enumerate(examples):
        both = [next(made)] if judged else [next(made), next(made)]
        shared = min(last_run(learnt)[0] for _, learnt in both)
        while any((tokens[:shared] != both[0][0][:shared]).any() for tokens, _ in both):
            shared -= 1
        ends = [tokens[shared : last_run(learnt)[1]] for tokens, learnt in both]
        room = seq_length - max(len(end) for end in ends)
        if room < 1 + len(lead):
            dropped += 1
            continue
        cut += shared > room
        prompts.append(cut_left(both[0][0][:shared], room, lead))
        answers.append(ends[0])
        others.append(ends[-1] if not judged else ends[0][:0])
        good.append(example.good)
        rows.append(number)
    tokens = sum(len(part) for kind in (prompts, answers, others) for part in kind)
    counts = {"rows": len(examples), PROMPTS_CUT: cut, "no_answer_within_seq_length": dropped, "tokens": tokens}
    return PairTable(
        prompts,
        answers,
        others,
        np.array(good, dtype=bool),
        np.array(rows, dtype=np.int64),
        np.arange(len(rows)),
        np.full((len(rows), 2), np.nan, dtype=np.float32),
        counts,
        len(examples),
    )
