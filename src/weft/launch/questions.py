"""Held-out rows as questions with a closed set of answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from weft.config import RunConfig
from weft.core.libraries import Tokenizer
from weft.data.encode import ConversationTable, closed_set, encode_choices
from weft.data.formats import Example
from weft.data.remembered import remembered
from weft.data.words import lead_of
from weft.evaluation.heldout import ClosedQuestion
from weft.models.layout import Question


def choices_of(config: RunConfig, examples: list[Example], train: list[np.ndarray]) -> list[str] | None:
    """Return the closed set of answers: the one that is named, or the one that training answers form."""
    if config.choices is not None:
        return list(config.choices) or None
    return closed_set(examples[number].answer for rows_of_client in train for number in rows_of_client)


def make_questions(
    choices: list[str] | None,
    examples: list[Example],
    held_out: list[np.ndarray],
    table: ConversationTable,
    tokenizer: Tokenizer,
    template: Any,
    config: RunConfig,
) -> dict[int, ClosedQuestion]:
    """Make questions of the held-out rows whose answer is one of the choices."""
    if not choices:
        return {}
    numbers = np.concatenate(held_out)
    test_examples = [examples[number] for number in numbers]
    length, lead = config.seq_length, lead_of(config)
    encoded = remembered(
        lambda: encode_choices(test_examples, tokenizer, template, choices, seq_length=length, lead=lead),
        *(tokenizer, template, test_examples, choices, length, lead.tolist()),
    )
    return {
        int(row): ClosedQuestion(Question(encoded.prompts[i], encoded.choices[i]), int(encoded.right[i]))
        for i, row in enumerate(table.rows_of(numbers))
        if encoded.right[i] >= 0
    }


def questions_of(
    config: RunConfig,
    examples: list[Any],
    table: object,
    train: list[np.ndarray],
    held_out: list[np.ndarray],
    make: Callable[..., dict[int, ClosedQuestion]],
) -> tuple[list[str] | None, dict[int, ClosedQuestion]]:
    """Return the closed set of answers of conversations, and held-out rows as questions; neither of other rows."""
    if not isinstance(table, ConversationTable):
        return None, {}
    choices = choices_of(config, examples, train)
    return choices, make(choices, examples, held_out, table)
