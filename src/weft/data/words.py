"""Inserting a text into rows that are already tokenized."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from weft.config import RunConfig
from weft.core.libraries import Tokenizer
from weft.data.tokenize import begin_and_end_ids
from weft.keys.prompt import EMBEDDED


def lead_of(config: RunConfig) -> np.ndarray:
    """Return the ids (L,) int32 that every row begins with: negative, one for each vector of a soft prompt."""
    if config.prompt_method not in EMBEDDED or config.endpoint is not None:
        return np.zeros(0, dtype=np.int32)
    return -np.arange(1, config.num_virtual_tokens + config.private_tokens + 1, dtype=np.int32)


def instruction_tokens(model: InstructedModel) -> tuple[np.ndarray, Words]:
    """Return the ids (N,) int32 of a resident model's instruction (N = 0 without one), and their inserter."""
    words, instruction = Words(model.tokenizer), getattr(model.model, "instruction", None)
    return words.tokens(instruction.text() if instruction is not None else ""), words


class InstructedModel(Protocol):
    """A resident model; its `model` has an `instruction` where one is learnt."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        ...

    @property
    def model(self) -> object:
        """Its layers."""
        ...


class Words:
    """Inserts a text into rows of token ids, after the tokens that every row begins with."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.begin = np.array(begin_and_end_ids(tokenizer)[0], dtype=np.int32)

    def tokens(self, text: str) -> np.ndarray:
        """Return the ids (N,) int32 of a text and a newline; N = 0 for an empty text."""
        if not text:
            return np.zeros(0, dtype=np.int32)
        return np.array(self.tokenizer.encode(text + "\n", add_special_tokens=False), dtype=np.int32)

    def into(self, ids: np.ndarray, words: np.ndarray) -> np.ndarray:
        """Return the row's ids (T,) with these (N,) inserted after its beginning: (T + N,)."""
        at = int(np.argmax(ids >= 0))  # behind the vectors of a prompt, which are negative
        if np.array_equal(ids[at : at + len(self.begin)], self.begin):
            at += len(self.begin)
        return np.concatenate([ids[:at], words, ids[at:]])

    def row(self, row: tuple[np.ndarray, np.ndarray], words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return a row (ids, learn mask) with these ids inserted, none of which is learnt."""
        ids, learn = row
        longer = self.into(ids, words)
        return longer, np.concatenate([np.zeros(len(longer) - len(ids), dtype=bool), learn])
