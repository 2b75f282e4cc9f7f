"""Texts as tensors, so that they are sent, checked and saved like parameters."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def to_bytes(texts: Sequence[str], slots: int, length: int) -> Tensor:
    """Return the texts in UTF-8, padded with zeros: uint8, shape (slots, length); ValueError if a text is too long."""
    import torch

    values = torch.zeros(slots, length, dtype=torch.uint8)
    for slot, text in enumerate(texts):
        raw = text.encode()
        if len(raw) > length:
            raise ValueError(f"a text of {len(raw)} bytes, and {length} are allowed")
        values[slot, : len(raw)] = torch.tensor(list(raw), dtype=torch.uint8)
    return values


def to_texts(values: Tensor) -> list[str]:
    """Return the text of every slot, "" for an empty one; ValueError for invalid UTF-8 or unprintable characters."""
    import torch

    texts = []
    for row in values.to(torch.uint8):
        raw = bytes(row.tolist()).rstrip(b"\0")
        text = raw.decode()  # a UnicodeDecodeError is a ValueError
        if unfit(text):
            raise ValueError("a text with control characters")
        texts.append(text)
    return texts


def unfit(text: str) -> bool:
    """Say whether a text contains unprintable characters (control, format, private use, surrogate)."""
    return any(unicodedata.category(letter).startswith("C") for letter in text)


def printable(text: str, limit: int = 500) -> str:
    """Return another party's text, safe for a terminal or a log: unprintable characters escaped, cut at `limit`."""
    # Separators of lines (U+2028) are unprintable too, though no control characters.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:limit])


def quoted(text: str, limit: int = 500) -> str:
    """Return another party's words in double quotes, which they cannot end: whatever they say, they are its own."""
    return '"' + printable(text, limit).replace('"', "'") + '"'
