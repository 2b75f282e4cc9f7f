"""Rows of token ids that the runs of a study share: what one run of a process has tokenized, the next one takes."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar, cast

from weft.core.libraries import Tokenizer
from weft.data.templates import Template
from weft.data.tokens import TextTokenizer

T = TypeVar("T")
MOST = 4
"""Results that are kept: all arms of a seed come before the next seed, and each has a table and its questions."""

_kept: ContextVar[OrderedDict[str, tuple[object, dict[str, None]]] | None] = ContextVar("kept", default=None)


@contextmanager
def rows_are_shared() -> Iterator[None]:
    """Keep the newest results of `remembered` until the end of the block."""
    token = _kept.set(OrderedDict())
    try:
        yield
    finally:
        _kept.reset(token)


def remembered(make: Callable[[], T], tokenizer: Tokenizer, template: Template, *parts: object) -> T:
    """Return what `make` returns, or what it returned for the same arguments where rows are shared.

    Nobody may write into the result.

    Args:
        make: tokenizes.
        tokenizer: by its content, not its name.
        template: what it notes on the conversations is noted again.
        parts: all else that the result follows from, as plain data.
    """
    kept = _kept.get()
    if kept is None:
        return make()
    state = hashlib.sha256()
    for part in (TextTokenizer(tokenizer).fingerprint, tokenizer.chat_template, template, *parts):
        state.update(repr(part).encode() + b"\0")
    key = state.hexdigest()
    notes: dict[str, None] = getattr(template, "notes", {})
    if key not in kept:
        before = dict(notes)
        result = make()
        kept[key] = (result, {note: None for note in notes if note not in before})
        while len(kept) > MOST:
            kept.popitem(last=False)
        return result
    kept.move_to_end(key)
    found, said = kept[key]
    notes.update(said)
    return cast("T", found)
