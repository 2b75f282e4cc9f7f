"""Training rows that an attack, cleaners and canaries change before they are trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from weft.config import RunConfig
from weft.core.libraries import Tokenizer
from weft.core.secret import Secret
from weft.data.source_kinds import Texts
from weft.data.templates import Template
from weft.errors import DataError
from weft.json_types import JsonObject
from weft.launch.canaries import Canary, plant
from weft.launch.canary_tokens import Written, all_canaries
from weft.launch.cleaning import Surprise, clean_shares
from weft.launch.malicious import malicious_of, poison
from weft.launch.reading import AnySources, TokenTable


class Changes(NamedTuple):
    """What became of the training examples."""

    shares: list[np.ndarray | None] | None
    """What is left to each client, and of the public examples; None: nothing changed."""
    cleaning: JsonObject
    """The entry `cleaning` of the split."""
    honest: list[Any]
    """The examples for measuring, which no attack has changed."""
    canaries: list[Canary]
    """Planted records, and those that coins kept out."""


def changed(
    config: RunConfig,
    sources: AnySources,
    names: Sequence[str],
    shares: Sequence[np.ndarray | None],
    held_out: Sequence[np.ndarray],
    surprise: Surprise | None,
    secret_of: Callable[[str], Secret],
    tokenizer: Tokenizer,
    template: Template,
) -> Changes:
    """Poison and clean the training examples and plant canaries, as far as the run says.

    An attack comes first: cleaning is what may find it. Malicious clients do not clean their own poison. Canaries come
    last: they are to be in the rows that are trained on.

    Args:
        config: the run.
        sources: have the examples.
        names: of the clients.
        shares: the numbers of the examples that each client trains on, and last the public ones, or None.
        held_out: of each client.
        surprise: as in `clean_shares`.
        secret_of: returns the secret of a client.
        tokenizer: turns text into ids.
        template: how a conversation becomes text.
    """
    untouched = list(getattr(sources, "examples", []))
    train = [part for part in shares[: len(names)] if part is not None]
    poisoned = not isinstance(sources, Texts) and poison(config, sources.examples, names, train)
    malicious = malicious_of(config, names)
    sets, cleaning = clean_shares(config, sources, names, shares, held_out, surprise, uncleaned=malicious)
    made = all_canaries(config, sources, names, secret_of, Written(tokenizer, template))
    canaries = plant(config, sources, names, sets, made)
    honest = untouched if poisoned else getattr(sources, "examples", [])
    return Changes(sets if poisoned or cleaning or canaries else None, cleaning, honest, canaries)


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
