"""What a run needs before its model: a tokenizer of its own, where it is to be trained."""

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
        note: told if the tokenizer is smaller than asked for.
        secret: returns the server's, from which noise is drawn.

    Raises:
        DataError: the text to train it on cannot be read, or there are too few common words.
    """
    if not config.trains_tokenizer:
        return config
    if not (folder / "tokenizer.json").exists():
        tokenizer, told = (
            _federated(config, secret) if config.federated_tokenizer else (train_on_public_text(config), {})
        )
        if len(tokenizer) < config.vocab_size:
            note(f"the tokenizer has {len(tokenizer)} of {config.vocab_size} tokens: its text gives no more.")
        folder.mkdir(parents=True, exist_ok=True)
        if told:
            (folder / "federated.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
        tokenizer.save_pretrained(folder)
    return config.model_copy(update={"tokenizer": str(folder), "tokenizer_text": None, "federated_tokenizer": False})


def _federated(config: RunConfig, secret: Callable[[], Secret]) -> tuple[Tokenizer, JsonObject]:
    """Return a tokenizer made of the clients' counts, and what was sent for it."""
    tokenizer, kept_in = byte_tokenizer(), token_cache(config)
    kept_in.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bytes-", dir=kept_in) as folder:
        plain = config.model_copy(update={"seq_length": WHOLE, "token_cache": folder})
        clients = populate(plain, tokenizer, InMemory(), rows="text", pool=False).trained
        sent = [_counted(client, tokenizer, config.tokenizer_min_count) for client in clients]
    kept = common_words(sent, config.tokenizer_min_clients, config.tokenizer_noise, secret)
    told = {
        "clients": {
            name: {"words": len(counts), "bytes": len(json.dumps(counts, ensure_ascii=False).encode())}
            for name, counts in zip(clients.names, sent, strict=True)
        },
        "words": len(kept),
    }
    return tokenizer_of_words(kept, config.vocab_size), told


def _counted(client: ClientData, tokenizer: Tokenizer, least: int) -> dict[str, int]:
    """Count the words of a client's training rows, at the client."""
    rows = (client.train[row][0] for row in range(len(client.train)))
    return words_of((tokenizer.decode(ids, skip_special_tokens=True) for ids in rows), least)
