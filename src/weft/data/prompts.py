"""Prompts that a model answers by generation, each with the question and answer that rewards need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from weft.core.libraries import Tokenizer
from weft.data.formats import Example, Turn
from weft.data.pairs import TRUNCATED_PROMPTS
from weft.data.rows import ExampleOmissions
from weft.data.templates import Template
from weft.data.tokenize import NO_LEAD, last_run, tokenize, truncate_left


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
    """Rows of prompts."""

    prompts: list[Prompt]
    rows: np.ndarray
    """(rows,) int64: the example that each row was made of, increasing."""
    counts: dict[str, int]
    number: int
    """How many examples there were."""
    omissions: ExampleOmissions
    """Examples without a row."""

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, row: int) -> Prompt:
        return self.prompts[row]

    @property
    def lengths(self) -> np.ndarray:
        """(examples,): tokens of each, 0 for those that were left out."""
        sizes = np.zeros(self.number, dtype=np.int64)
        sizes[self.rows] = [len(prompt.ids) for prompt in self.prompts]
        return sizes

    def within(self, numbers: np.ndarray) -> np.ndarray:
        """Return those of these examples that have a row."""
        return np.intersect1d(numbers, self.rows)

    def rows_of(self, numbers: np.ndarray) -> np.ndarray:
        """Return the rows that were made of these examples, in their order."""
        return np.searchsorted(self.rows, numbers)


def encode_prompts(
    examples: Sequence[Example], tokenizer: Tokenizer, template: Template, *, most: int, lead: np.ndarray = NO_LEAD
) -> PromptTable:
    """Tokenize all that comes before each example's last answer, as fine-tuning on that answer would.

    A prompt of more than `most` tokens is cut on the left and counted; one that the template refuses is left out.
    """
    # A placeholder answer is rendered, since only a rendered answer shows where the prompt ends.
    refusals: dict[int, str] = {}
    complete_examples = [
        example if example.answer else Example((*example.turns[:-1], Turn("assistant", "-"))) for example in examples
    ]
    prompts: list[Prompt] = []
    rows: list[int] = []
    num_truncated, omissions = 0, ExampleOmissions()
    tokenized = tokenize(complete_examples, tokenizer, template, lead, refusals)
    for number, (example, (ids, learn_mask)) in enumerate(zip(examples, tokenized, strict=True)):
        if number in refusals:
            omissions.add(refusals[number], number)
            continue
        prompt_ids = ids[: last_run(learn_mask)[0]]
        num_truncated += len(prompt_ids) > most
        question = next((turn.text for turn in reversed(example.turns) if turn.role == "user"), "")
        prompts.append(Prompt(truncate_left(prompt_ids, most, lead), question, example.answer))
        rows.append(number)
    tokens = sum(len(prompt.ids) for prompt in prompts)
    counts = {"rows": len(examples), TRUNCATED_PROMPTS: num_truncated, "tokens": tokens}
    return PromptTable(prompts, np.array(rows, dtype=np.int64), counts, len(examples), omissions)
