"""Rows of token ids: conversations as flat arrays, and questions with a closed set of answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from weft.data.formats import Example, Turn
from weft.data.rows import Gone
from weft.data.templates import Template
from weft.data.tokenize import NO_LEAD, added, apart, cut_left, tokenize

__all__ = ["Choices", "Encoded", "added", "closed_set", "encode", "encode_choices"]

NO_ANSWER = "no answer within seq length"


@dataclass(frozen=True)
class Encoded:
    """Rows of token ids behind each other, without an object for each."""

    ids: np.ndarray
    """(tokens,) int32."""
    learn: np.ndarray
    """(tokens,) bool: is a target of the loss."""
    starts: np.ndarray
    """(rows + 1,) int64: where each row begins."""
    rows: np.ndarray
    """(rows,) int64: the example that each row was made of, increasing."""
    counts: dict[str, int]
    number: int
    """How many examples there were."""
    gone: Gone
    """Examples without a row."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        here = slice(int(self.starts[row]), int(self.starts[row + 1]))
        return self.ids[here], self.learn[here]

    @property
    def lengths(self) -> np.ndarray:
        """(examples,): tokens of each, 0 for those that were left out."""
        return np.bincount(self.rows, weights=np.diff(self.starts), minlength=self.number).astype(np.int64)

    def within(self, numbers: np.ndarray) -> np.ndarray:
        """Return those of these examples that have a row."""
        return np.intersect1d(numbers, self.rows)

    def rows_of(self, numbers: np.ndarray) -> np.ndarray:
        """Return the rows that were made of these examples, in their order."""
        return np.searchsorted(self.rows, numbers)


def encode(
    examples: Sequence[Example],
    tokenizer: Any,
    template: Template,
    *,
    seq_length: int,
    truncation_side: str = "right",
    lead: np.ndarray = NO_LEAD,
) -> Encoded:
    """Render and tokenize examples.

    A token is learnt if its characters reach into a learnt piece. Rows longer than `seq_length` are cut on the
    stated side; rows without a learnt token left, and those that the template refuses, are left out. All are counted.

    Args:
        examples: conversations.
        tokenizer: of the model.
        template: how a conversation becomes text.
        seq_length: longest row in tokens.
        truncation_side: the side that over-long rows are cut on.
        lead: ids that every row begins with, and that are never cut.
    """
    ids: list[np.ndarray] = []
    learn: list[np.ndarray] = []
    rows: list[int] = []
    truncated, gone = 0, Gone()
    refused: dict[int, str] = {}
    for number, (tokens, learnt) in enumerate(tokenize(examples, tokenizer, template, lead, refused)):
        if len(tokens) > seq_length:
            truncated += 1
            left = truncation_side == "left"
            tokens, learnt = (cut_left(v, seq_length, lead) if left else v[:seq_length] for v in (tokens, learnt))
        learnt[:1] = False  # nothing comes before the first token to predict it from
        if not learnt.any():
            gone.add(refused.get(number, NO_ANSWER), number)
            continue
        ids.append(tokens)
        learn.append(learnt)
        rows.append(number)
    starts = np.zeros(len(ids) + 1, dtype=np.int64)
    np.cumsum([len(tokens) for tokens in ids], out=starts[1:])
    counts = {
        "rows": len(examples),
        "truncated": truncated,
        "no_answer_within_seq_length": gone.get(NO_ANSWER, (0, 0))[0],
        "tokens": int(starts[-1]),
    }
    return Encoded(
        np.concatenate(ids) if ids else np.zeros(0, np.int32),
        np.concatenate(learn) if learn else np.zeros(0, bool),
        starts,
        np.array(rows, dtype=np.int64),
        counts,
        len(examples),
        gone,
    )


class Choices(NamedTuple):
    """Questions with a closed set of answers, as token ids (int32)."""

    prompts: list[np.ndarray]
    choices: list[list[np.ndarray]]
    right: list[int]
    """Which choice is right; -1 where none is."""


def encode_choices(
    examples: Sequence[Example],
    tokenizer: Any,
    template: Template,
    choices: Sequence[str],
    *,
    seq_length: int,
    lead: np.ndarray = NO_LEAD,
) -> Choices:
    """Tokenize every example with each choice as its last answer.

    A prompt is what all choices of an example have in common; what is left of each, its end included, is the
    choice. Prompts are cut on the left to leave room for the longest choice within `seq_length`.
    """
    place = {text: number for number, text in enumerate(choices)}
    asked = (_with_answer(example, text) for example in examples for text in choices)
    made = tokenize(asked, tokenizer, template, lead)
    found = Choices([], [], [])
    for example in examples:
        # The last run of learnt tokens is the answer, with what the template puts behind it left out.
        prompt, answers = apart([next(made) for _ in choices])
        room = max(1, seq_length - max(len(answer) for answer in answers))
        found.prompts.append(cut_left(prompt, room, lead))
        found.choices.append(answers)
        found.right.append(place.get(example.answer, place.get(example.answer.strip(), -1)))
    return found


def _with_answer(example: Example, text: str) -> Example:
    last = max(at for at, turn in enumerate(example.turns) if turn.role == "assistant")
    return Example((*example.turns[:last], Turn("assistant", text)))


def closed_set(answers: Iterable[str], most: int = 20, each: int = 10) -> list[str] | None:
    """Return the distinct answers, sorted, if there are 2 to `most` and on average at least `each` rows of one."""
    counted: Counter[str] = Counter()
    for answer in answers:
        counted[answer.strip()] += 1
        if len(counted) > most:
            return None
    if len(counted) < 2 or counted.total() < each * len(counted):
        return None
    return sorted(counted)
