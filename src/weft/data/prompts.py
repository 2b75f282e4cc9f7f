"""Prompts: questions that a model is to answer itself, each with what its reward is computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from weft.data import known
from weft.data.encode import NO_LEAD, cut_left, last_run, tokenize
from weft.data.formats import ANSWERS, DIALOGUES, Example, Examples, Turn, to_examples
from weft.data.pairs import PROMPTS_CUT
from weft.data.templates import Template
from weft.errors import DataError


class Prompt(NamedTuple):
    """One row."""

    ids: np.ndarray
    """(P,) int32."""
    question: str
    """What the user said last."""
    answer: str
    """The row's own answer; empty where it has none."""


@dataclass(frozen=True)
class PromptTable:
    """Rows of prompts; every example has one."""

    prompts: list[Prompt]
    counts: dict[str, int]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, row: int) -> Prompt:
        return self.prompts[row]

    @property
    def lengths(self) -> np.ndarray:
        """(examples,): tokens of each."""
        return np.array([len(prompt.ids) for prompt in self.prompts], dtype=np.int64)

    def within(self, numbers: np.ndarray) -> np.ndarray:
        """Return these examples: all have a row."""
        return numbers

    def rows_of(self, numbers: np.ndarray) -> np.ndarray:
        """Return the rows that were made of these examples: their own numbers."""
        return numbers


def to_prompts(
    rows: Sequence[dict[str, Any]],
    *,
    source: str,
    instruction_column: str | None,
    response_column: str | None,
    needs_answer: bool,
) -> Examples:
    """Turn rows into examples whose last answer is the row's own, or empty where rows have none and need none.

    Args:
        rows: all with the columns of the first.
        source: their name, which errors mention.
        instruction_column: the column of the question, if it is not to be recognised.
        response_column: the column of the answer, likewise.
        needs_answer: a reward compares with the row's answer.

    Raises:
        DataError: no rows, or columns that are not there.
    """
    columns = {"source": source, "instruction_column": instruction_column}
    named = response_column is not None or known.find(source) is not None or not rows
    has_answer = named or any(name in rows[0] for name in (*ANSWERS, *DIALOGUES))
    if has_answer or needs_answer:
        try:
            return to_examples(rows, response_column=response_column, **columns)  # type: ignore[arg-type]
        except DataError as error:
            if has_answer or not rows:
                raise
            raise DataError(f"{error} The reward compares with a row's own answer.") from None
    made = to_examples([row | {ANSWERS[0]: "-"} for row in rows], response_column=ANSWERS[0], **columns)  # type: ignore[arg-type]
    asked = [Example((*example.turns[:-1], Turn("assistant", ""))) for example in made.examples]
    return made._replace(examples=asked)


def encode_prompts(
    examples: Sequence[Example], tokenizer: Any, template: Template, *, most: int, lead: np.ndarray = NO_LEAD
) -> PromptTable:
    """Tokenize all that comes before each example's last answer, as fine-tuning on that answer would.

    A prompt of more than `most` tokens is cut on the left and counted.
    """
    # Where an answer begins is known from rendering one.
    filled = [one if one.answer else Example((*one.turns[:-1], Turn("assistant", "-"))) for one in examples]
    prompts: list[Prompt] = []
    cut = 0
    for example, (ids, learnt) in zip(examples, tokenize(filled, tokenizer, template, lead), strict=True):
        asked = ids[: last_run(learnt)[0]]
        cut += len(asked) > most
        question = next((turn.text for turn in reversed(example.turns) if turn.role == "user"), "")
        prompts.append(Prompt(cut_left(asked, most, lead), question, example.answer))
    tokens = sum(len(prompt.ids) for prompt in prompts)
    return PromptTable(prompts, {"rows": len(examples), PROMPTS_CUT: cut, "tokens": tokens})
