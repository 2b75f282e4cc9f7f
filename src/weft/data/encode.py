"""Rows of token ids: conversations as flat arrays, and questions with a closed set of answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from weft.core.libraries import Tokenizer
from weft.data.formats import Example, Turn
from weft.data.rows import ExampleOmissions
from weft.data.templates import Template
from weft.data.tokenize import NO_LEAD, begin_and_end_ids, last_run, split_prompt, tokenize, truncate_left

__all__ = ["Choices", "ConversationTable", "begin_and_end_ids", "closed_set", "encode", "encode_choices"]

NO_ANSWER = "no answer within seq length"


@dataclass(frozen=True)
class ConversationTable:
    """Rows of token ids in two flat arrays, without an object for each row."""

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
    omissions: ExampleOmissions
    """Examples without a row."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        span = slice(int(self.starts[row]), int(self.starts[row + 1]))
        return self.ids[span], self.learn[span]

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
    tokenizer: Tokenizer,
    template: Template,
    *,
    seq_length: int,
    truncation_side: str = "right",
    lead: np.ndarray = NO_LEAD,
) -> ConversationTable:
    """Render and tokenize examples.

    A token is learnt if its characters reach into a learnt piece. Rows longer than `seq_length` are cut on
    `truncation_side`; rows without a learnt token, and those that the template refuses, are left out. All are counted.

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
    truncated, omissions = 0, ExampleOmissions()
    refusals: dict[int, str] = {}
    from_left = truncation_side == "left"
    whole = list(tokenize(examples, tokenizer, template, lead, refusals))
    masks = [mask for _, mask in whole]
    spare = _shorter_answers(examples, masks, seq_length - len(lead)) if from_left else [0] * len(whole)
    for number, (tokens, learn_mask) in enumerate(whole):
        most = seq_length - spare[number]
        if len(tokens) > most:
            truncated += 1
            tokens, learn_mask = (truncate_left(v, most, lead) if from_left else v[:most] for v in (tokens, learn_mask))
        learn_mask[:1] = False  # nothing comes before the first token to predict it from
        if not learn_mask.any():
            omissions.add(refusals.get(number, NO_ANSWER), number)
            continue
        ids.append(tokens)
        learn.append(learn_mask)
        rows.append(number)
    starts = np.zeros(len(ids) + 1, dtype=np.int64)
    np.cumsum([len(tokens) for tokens in ids], out=starts[1:])
    counts = {
        "rows": len(examples),
        "truncated": truncated,
        "no_answer_within_seq_length": omissions.get(NO_ANSWER, (0, 0))[0],
        "tokens": int(starts[-1]),
    }
    return ConversationTable(
        np.concatenate(ids) if ids else np.zeros(0, np.int32),
        np.concatenate(learn) if learn else np.zeros(0, bool),
        starts,
        np.array(rows, dtype=np.int64),
        counts,
        len(examples),
        omissions,
    )


def _shorter_answers(examples: Sequence[Example], masks: Sequence[np.ndarray], room: int) -> list[int]:
    """Return by how many tokens each answer is shorter than the longest; 0 unless they are a closed set.

    Rows are cut on the left as if each had the longest answer, as `encode_choices` does: else the length that is left
    to a question would tell its answer.

    No more than leaves a token of the question, if question and answer have `room` tokens.
    """
    if closed_set(example.answer for example in examples) is None:
        return [0] * len(examples)
    runs = (last_run(mask) if mask.any() else (0, 0) for mask in masks)
    lengths = np.array([end - start for start, end in runs], dtype=np.int64)
    shorter = np.minimum(lengths.max() - lengths, np.maximum(room - lengths - 1, 0))
    return [int(count) for count in np.where(lengths > 0, shorter, 0)]


class Choices(NamedTuple):
    """Questions with a closed set of answers, as token ids (int32)."""

    prompts: list[np.ndarray]
    choices: list[list[np.ndarray]]
    right: list[int]
    """Which choice is right; -1 where none is."""


def encode_choices(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    template: Template,
    choices: Sequence[str],
    *,
    seq_length: int,
    lead: np.ndarray = NO_LEAD,
) -> Choices:
    """Tokenize every example with each choice as its last answer.

    The prompt is the prefix that all choices of an example share; the remainder of each, with its end, is the
    choice. Prompts are cut on the left to leave room for the longest choice within `seq_length`.
    """
    index_of = {text: number for number, text in enumerate(choices)}
    filled_in = (_with_answer(example, text) for example in examples for text in choices)
    tokenized = tokenize(filled_in, tokenizer, template, lead)
    encoded = Choices([], [], [])
    for example in examples:
        # The last run of learnt tokens is the answer; what the template writes after it is left out.
        prompt, answers = split_prompt([next(tokenized) for _ in choices])
        room = max(1, seq_length - max(len(answer) for answer in answers))
        encoded.prompts.append(truncate_left(prompt, room, lead))
        encoded.choices.append(answers)
        encoded.right.append(index_of.get(example.answer, index_of.get(example.answer.strip(), -1)))
    return encoded


def _with_answer(example: Example, text: str) -> Example:
    last = max(at for at, turn in enumerate(example.turns) if turn.role == "assistant")
    return Example((*example.turns[:last], Turn("assistant", text)))


def closed_set(answers: Iterable[str], most: int = 20, rows_each: int = 10) -> list[str] | None:
    """Return the distinct answers, sorted, if there are 2 to `most`, with `rows_each` rows on average; else None."""
    counts: Counter[str] = Counter()
    for answer in answers:
        counts[answer.strip()] += 1
        if len(counts) > most:
            return None
    if len(counts) < 2 or counts.total() < rows_each * len(counts):
        return None
    return sorted(counts)
