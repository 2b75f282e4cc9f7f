"""Preferences as token ids: a prompt and two answers, with their log-probabilities under the starting model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from weft.core.libraries import Tokenizer
from weft.data.encode import NO_ANSWER
from weft.data.formats import Example, Turn
from weft.data.preferences import PreferencePair
from weft.data.rows import ExampleOmissions
from weft.data.templates import Template
from weft.data.tokenize import NO_LEAD, split_prompt, tokenize, truncate_left

TRUNCATED_PROMPTS = "prompts_cut"


class Pair(NamedTuple):
    """One row. For unpaired preferences the second answer is another row's; its log-ratio estimates the divergence."""

    prompt: np.ndarray
    """(P,) int32."""
    answers: tuple[np.ndarray, np.ndarray]
    """Ids of both answers, ends included."""
    reference: np.ndarray
    """(2,) float32: log-probabilities of both answers under the starting model; NaN until they are computed."""
    good: bool = True
    """For unpaired preferences: whether the first answer is a good one."""


@dataclass(frozen=True)
class PairTable:
    """Rows of preferences."""

    prompts: list[np.ndarray]
    answers: list[np.ndarray]
    others: list[np.ndarray]
    good: np.ndarray
    """(rows,) bool."""
    rows: np.ndarray
    """(rows,) the example of each row, not decreasing; an unpaired example with two answers has two rows."""
    partner: np.ndarray
    """(rows,) the row whose answer serves as the second answer; the row itself where it has two."""
    reference: np.ndarray
    """(rows, 2) float32."""
    counts: dict[str, int]
    number: int
    """How many examples there were."""
    omissions: ExampleOmissions
    """Examples without a row."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Pair:
        other = self.others[row] if len(self.others[row]) else self.answers[int(self.partner[row])]
        return Pair(self.prompts[row], (self.answers[row], other), self.reference[row], bool(self.good[row]))

    @property
    def lengths(self) -> np.ndarray:
        """(examples,): tokens of each, both answers counted; 0 for those that were left out."""
        parts = zip(self.prompts, self.answers, self.others, strict=True)
        sizes = [sum(len(part) for part in row) for row in parts]
        return np.bincount(self.rows, weights=sizes, minlength=self.number).astype(np.int64)

    def within(self, numbers: np.ndarray) -> np.ndarray:
        """Return those of these examples that have a row."""
        return np.intersect1d(numbers, self.rows)

    def rows_of(self, numbers: np.ndarray) -> np.ndarray:
        """Return the rows that were made of these examples, in their order."""
        first = np.searchsorted(self.rows, numbers)
        counts = np.searchsorted(self.rows, numbers, side="right") - first
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        rows: np.ndarray = np.repeat(first, counts) + within
        return rows

    def pair_up(self, rows: np.ndarray) -> None:
        """Give every unpaired row of a client the answer of another of the client's rows as its second answer.

        It is the next row; the next but one where examples have two rows, so that it is of another prompt.
        """
        # The divergence is estimated on mismatched pairs of prompt and answer, as in KTO.
        twice = len(rows) > len(np.unique(self.rows[rows]))
        self.partner[rows] = np.roll(rows, -2 if twice else -1)


def encode_preferences(
    examples: Sequence[PreferencePair],
    tokenizer: Tokenizer,
    template: Template,
    *,
    seq_length: int,
    unpaired: bool,
    lead: np.ndarray = NO_LEAD,
) -> PairTable:
    """Tokenize preferences.

    A prompt is what both of its answers have in common. It is cut on the left to leave room for the longer answer
    within `seq_length`; an example is left out if an answer alone is as long, or if the template refuses it. Both are
    counted. With `unpaired`, each answer of an example that has two becomes a row: a good one and a bad one.
    """
    prompts: list[np.ndarray] = []
    answers: list[np.ndarray] = []
    others: list[np.ndarray] = []
    good: list[bool] = []
    rows: list[int] = []
    num_truncated, omissions = 0, ExampleOmissions()
    for number, prompt, ends in _tokenize_pairs(examples, tokenizer, template, lead, omissions):
        room = seq_length - max(len(end) for end in ends)
        if room < 1 + len(lead):
            omissions.add(NO_ANSWER, number)
            continue
        num_truncated += len(prompt) > room
        prompt = truncate_left(prompt, room, lead)
        for which in range(len(ends) if unpaired else 1):
            prompts.append(prompt)
            answers.append(ends[which])
            others.append(ends[which][:0] if unpaired else ends[-1])
            good.append(examples[number].good and which == 0)
            rows.append(number)
    tokens = sum(len(part) for kind in (prompts, answers, others) for part in kind)
    num_too_long = omissions.get(NO_ANSWER, (0, 0))[0]
    counts = {
        "rows": len(examples),
        TRUNCATED_PROMPTS: num_truncated,
        "no_answer_within_seq_length": num_too_long,
        "tokens": tokens,
    }
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
        omissions,
    )


def _tokenize_pairs(
    examples: Sequence[PreferencePair],
    tokenizer: Tokenizer,
    template: Template,
    lead: np.ndarray,
    omissions: ExampleOmissions,
) -> Iterator[tuple[int, np.ndarray, list[np.ndarray]]]:
    """Yield number, prompt ids and answers' ids of every example that the template accepts."""
    refusals: dict[int, str] = {}
    conversations = (
        Example((*one.turns, Turn("assistant", text)))
        for one in examples
        for text in ((one.answer, one.other) if one.other else (one.answer,))
    )
    tokenized = tokenize(conversations, tokenizer, template, lead, refusals)
    position = 0
    for number, example in enumerate(examples):
        answers = [next(tokenized) for _ in range(2 if example.other else 1)]
        reason = next((refusals[n] for n in range(position, position + len(answers)) if n in refusals), None)
        position += len(answers)
        if reason is not None:
            omissions.add(reason, number)
            continue
        prompt, endings = split_prompt(answers)
        yield number, prompt, endings
