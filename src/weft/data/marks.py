"""Names of special tokens inside turns stay text, also where a chat template writes special tokens itself.

Before a template renders a conversation, each name of a special token in a turn is put between two characters of
private use; text between such marks is later tokenized as plain text. So does transformers 5
(`apply_chat_template(..., sanitize_control_tokens=True)`), whose ids are the oracle of the tests.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from weft.core.libraries import Tokenizer

START, END = "\U000f0000", "\U000f0001"
_BARE = re.compile(f"[{START}{END}]")


class Stretch(NamedTuple):
    """A part of a rendered text."""

    first: int
    last: int
    as_text: bool
    """Names of special tokens in it are text."""


@lru_cache(maxsize=8)
def _names(tokenizer: Tokenizer) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return patterns for names of special tokens, and for such names between marks."""
    special_tokens = getattr(tokenizer, "added_tokens_decoder", {}).values()
    names = {token.content for token in special_tokens if token.special} | set(tokenizer.all_special_tokens)
    # Longer names first, so that no name hides another that begins with it; `(?!)` matches nothing.
    either = "|".join(re.escape(str(name)) for name in sorted(names, key=len, reverse=True)) or "(?!)"
    return re.compile(either), re.compile(f"{START}({either}){END}|[{START}{END}]")


def add_marks(text: str, tokenizer: Tokenizer) -> str:
    """Return the text with marks around names of special tokens."""
    name_pattern = _names(tokenizer)[0]
    if START in text or END in text:
        text = _BARE.sub("", text)
    return name_pattern.sub(f"{START}\\g<0>{END}", text)


def remove_marks(text: str) -> str:
    """Return the text without marks."""
    return _BARE.sub("", text) if START in text or END in text else text


def stretches(text: str, tokenizer: Tokenizer) -> list[Stretch]:
    """Return the parts of a text between its marks; no part contains a mark."""
    parts, position = [], 0
    for match in _names(tokenizer)[1].finditer(text):
        parts.append(Stretch(position, match.start(), False))
        if match.group(1):
            parts.append(Stretch(match.start() + 1, match.end() - 1, True))
        position = match.end()
    parts.append(Stretch(position, len(text), False))
    return [part for part in parts if part.first < part.last]
