"""Training rows that an attack or cleaners change before they are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from weft.config import RunConfig
from weft.data.source_kinds import Texts
from weft.errors import DataError
from weft.json_types import JsonObject
from weft.launch.cleaning import Surprise, clean_shares
from weft.launch.malicious import malicious_of, poison
from weft.launch.reading import AnySources, TokenTable


def changed(
    config: RunConfig,
    sources: AnySources,
    names: Sequence[str],
    shares: Sequence[np.ndarray | None],
    held_out: Sequence[np.ndarray],
    surprise: Surprise | None,
) -> tuple[list[np.ndarray | None] | None, JsonObject, list[Any]]:
    """Poison and clean the training examples, as far as the run says.

    An attack comes first: cleaning is what may find it. Malicious clients do not clean their own poison.

    Returns:
        What is left to each client, and of the public examples, or None where nothing changed; the entry `cleaning` of
        the split; the examples for measuring, which no attack has changed.
    """
    untouched = list(getattr(sources, "examples", []))
    train = [part for part in shares[: len(names)] if part is not None]
    poisoned = not isinstance(sources, Texts) and poison(config, sources.examples, names, train)
    malicious = malicious_of(config, names)
    sets, cleaning = clean_shares(config, sources, names, shares, held_out, surprise, uncleaned=malicious)
    honest = untouched if poisoned else getattr(sources, "examples", [])
    return (sets if poisoned or cleaning else None), cleaning, honest


def still_there(
    table: TokenTable, names: Sequence[str], sets: Sequence[np.ndarray | None]
) -> tuple[list[np.ndarray], np.ndarray | None]:
    """Return the clients' examples, and the public ones, that have a row with the texts that cleaning wrote."""
    train = [table.within(part) for part in sets[:-1] if part is not None]
    for name, part, before in zip(names, train, sets, strict=False):
        if before is not None and len(before) and not len(part):
            raise DataError(
                f"The client '{name}' has no row with an answer within seq_length, once rows were cleaned or poisoned: "
                "give it data."
            )
    return train, None if sets[-1] is None else table.within(sets[-1])
