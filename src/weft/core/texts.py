"""Texts as tensors, so that they travel, are checked and are kept as everything else is."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import torch
from torch import Tensor


def to_bytes(texts: Sequence[str], slots: int, length: int) -> Tensor:
    """Return (slots, length) uint8: the texts in UTF-8, filled up with zeros; ValueError where one does not fit."""
    made = torch.zeros(slots, length, dtype=torch.uint8)
    for slot, text in enumerate(texts):
        raw = text.encode()
        if len(raw) > length:
            raise ValueError(f"a text of {len(raw)} bytes, and {length} are allowed")
        made[slot, : len(raw)] = torch.tensor(list(raw), dtype=torch.uint8)
    return made


def to_texts(values: Tensor) -> list[str]:
    """Return the text of every slot, "" for an empty one; ValueError for what is no text that may be shown."""
    found = []
    for row in values.to(torch.uint8):
        raw = bytes(row.tolist()).rstrip(b"\0")
        text = raw.decode()  # a UnicodeDecodeError is a ValueError
        if unfit(text):
            raise ValueError("a text with control characters")
        found.append(text)
    return found


def unfit(text: str) -> bool:
    """Say whether a text holds characters that are not to be shown (control, format, private, surrogate)."""
    return any(unicodedata.category(letter).startswith("C") for letter in text)


def printable(text: str, most: int = 500) -> str:
    """Return somebody else's words as they may be written to a terminal, a log or a file: escaped, and cut."""
    shown = (letter if not unfit(letter) else letter.encode("unicode_escape").decode() for letter in text[:most])
    return "".join(shown)
