"""What a run needs before its model: a tokenizer of its own, where it is to be trained."""

from __future__ import annotations

from pathlib import Path

from weft.config import RunConfig
from weft.data.vocabulary import own_tokenizer


def with_tokenizer(config: RunConfig, folder: Path) -> RunConfig:
    """Return the configuration with its tokenizer in a folder: trained there, unless it was before.

    Raises:
        DataError: the text to train it on cannot be read.
    """
    if config.tokenizer_text is None:
        return config
    if not (folder / "tokenizer.json").exists():
        own_tokenizer(config).save_pretrained(folder)
    return config.model_copy(update={"tokenizer": str(folder), "tokenizer_text": None})
