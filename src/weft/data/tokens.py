"""Plain text to ids, many texts at a time, with nothing in memory but the ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from weft.core.libraries import Tokenizer
from weft.data.tokenize import begin_and_end_ids


@dataclass(frozen=True)
class TextTokenizer:
    """A Hugging Face tokenizer for plain text; ids are its own first tokens, the text's, and the end token."""

    tokenizer: Tokenizer
    _sizes: dict[int, int] = field(default_factory=dict)

    @cached_property
    def begin(self) -> list[int]:
        """Tokens before every text."""
        return begin_and_end_ids(self.tokenizer)[0]

    @cached_property
    def dtype(self) -> np.dtype[np.generic]:
        """The smallest type that holds its ids."""
        return np.dtype(np.uint16 if len(self.tokenizer) <= 1 << 16 else np.uint32)

    @cached_property
    def fingerprint(self) -> str:
        """A digest that differs for tokenizers that give other ids."""
        fast = getattr(self.tokenizer, "backend_tokenizer", None) if self._fast else None
        parts = fast.to_str() if fast else json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        ends = [self.begin, self.tokenizer.eos_token_id, type(self.tokenizer).__name__]
        return hashlib.sha256((parts + json.dumps(ends)).encode()).hexdigest()

    @property
    def _fast(self) -> bool:
        return bool(getattr(self.tokenizer, "is_fast", False))

    def encode(self, texts: Sequence[str | None]) -> list[np.ndarray | None]:
        """Return the ids (T,) int64 of each text, with first and end tokens; None for None.

        Names of special tokens within a text are text.
        """
        present = [text for text in texts if text is not None]
        if self._fast:
            fast = self.tokenizer.backend_tokenizer
            # The setting belongs to the backend, which the model's other users share.
            setting_before, fast.encode_special_tokens = fast.encode_special_tokens, True
            try:
                ids_of_texts = [encoding.ids for encoding in fast.encode_batch_fast(present, add_special_tokens=False)]
            finally:
                fast.encode_special_tokens = setting_before
        else:
            ids_of_texts = [self.tokenizer.encode(text, add_special_tokens=False) for text in present]
        remaining = iter(ids_of_texts)
        end = [begin_and_end_ids(self.tokenizer)[1]]
        return [None if text is None else np.array(self._with_ends(next(remaining), end)) for text in texts]

    def _with_ends(self, ids: list[int], end: list[int]) -> list[int]:
        begin = [] if self.begin and ids[: len(self.begin)] == self.begin else self.begin
        return begin + ids + end

    def bytes_of(self, text: str | None, ids: np.ndarray) -> int:
        """Return the bytes of a text in UTF-8, without its first token's where no token comes before it."""
        whole = len((text or "").encode())
        if self.begin:
            return whole
        first = int(ids[0])
        if first not in self._sizes:
            self._sizes[first] = len(self.tokenizer.decode([first]).encode())
        return whole - self._sizes[first]
