"""The tokenizer that a run trains for itself, from text or from its clients' word counts."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from weft.config import RunConfig
from weft.core.libraries import Tokenizer
from weft.core.secret import Secret
from weft.data.source_kinds import token_cache
from weft.data.vocabulary import byte_tokenizer, common_words, tokenizer_of_words, train_on_public_text, words_of
from weft.federation.clients import ClientData, InMemory
from weft.json_types import JsonObject
from weft.launch.population import populate

WHOLE = 1 << 40
"""A row length that no document has."""


def with_tokenizer(
    config: RunConfig,
    folder: Path,
    note: Callable[[str], None] = lambda _: None,
    secret: Callable[[], Secret] = Secret.random,
) -> RunConfig:
    """Return the configuration with its tokenizer in a folder: trained there, unless it was before.

    Args:
        config: the run.
        folder: of the tokenizer.
        note: receives a sentence if the tokenizer is smaller than `vocab_size`.
        secret: returns the server's, from which noise is drawn.

    Raises:
        DataError: the text to train it on cannot be read, or there are too few common words.
    """
    if not config.trains_tokenizer:
        return config
    if not (folder / "tokenizer.json").exists():
        tokenizer, traffic = (
            _federated(config, secret) if config.federated_tokenizer else (train_on_public_text(config), {})
        )
        if len(tokenizer) < config.vocab_size:
            note(f"the tokenizer has {len(tokenizer)} of {config.vocab_size} tokens: its text gives no more.")
        folder.mkdir(parents=True, exist_ok=True)
        if traffic:
            (folder / "federated.json").write_text(json.dumps(traffic, indent=1), encoding="utf-8")
        tokenizer.save_pretrained(folder)
    return config.model_copy(update={"tokenizer": str(folder), "tokenizer_text": None, "federated_tokenizer": False})


def _federated(config: RunConfig, secret: Callable[[], Secret]) -> tuple[Tokenizer, JsonObject]:
    """Return a tokenizer made of the clients' word counts, and the traffic that they took."""
    tokenizer, cache = byte_tokenizer(), token_cache(config)
    cache.mkdir(parents=True, exist_ok=True)
    # A cache of its own: rows of single bytes are many, and of no use after this.
    with tempfile.TemporaryDirectory(prefix="bytes-", dir=cache) as folder:
        text_config = config.model_copy(update={"seq_length": WHOLE, "token_cache": folder})
        clients = populate(text_config, tokenizer, InMemory(), rows="text", pool=False).trained
        counts_by_client = [_count_words(client, tokenizer, config.tokenizer_min_count) for client in clients]
    words = common_words(counts_by_client, config.tokenizer_min_clients, config.tokenizer_noise, secret)
    traffic = {
        "clients": {
            name: {"words": len(counts), "bytes": len(json.dumps(counts, ensure_ascii=False).encode())}
            for name, counts in zip(clients.names, counts_by_client, strict=True)
        },
        "words": len(words),
    }
    return tokenizer_of_words(words, config.vocab_size), traffic


def _count_words(client: ClientData, tokenizer: Tokenizer, min_count: int) -> dict[str, int]:
    """Count the words of a client's training rows, at the client."""
    rows = (client.train[row][0] for row in range(len(client.train)))
    return words_of((tokenizer.decode(ids, skip_special_tokens=True) for ids in rows), min_count)
