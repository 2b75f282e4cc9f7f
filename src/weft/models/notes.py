"""Notes: sentences about peculiarities of a checkpoint, passed to a function of the caller while a model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Note: TypeAlias = Callable[[str], None]


def ignore_note(sentence: str) -> None:
    """Do nothing; for callers that show no notes."""
