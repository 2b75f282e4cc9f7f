"""How the loading of a model says, in a sentence, what is not as it seems."""

from __future__ import annotations

from collections.abc import Callable

Note = Callable[[str], None]


def unsaid(sentence: str) -> None:
    """Say nothing."""
