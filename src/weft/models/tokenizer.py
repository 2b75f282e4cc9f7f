"""Loading a model's tokenizer, and checking that tokenizer and model belong together."""

from __future__ import annotations

from pathlib import Path

from weft.config import RunConfig
from weft.core.libraries import Tokenizer
from weft.core.model_types import ModelConfig
from weft.errors import ConfigError
from weft.models.checkpoint import find_checkpoint
from weft.models.fim_tokens import add_marks, embeddings_needed
from weft.models.noise import silence_libraries
from weft.models.source import model_source, readable_errors
from weft.models.starting import adapter_of

_FILES = ("*token*", "vocab*", "*.model", "merges*", "tekken*", "*bpe*")
"""Patterns of the names of tokenizer files."""


def load_tokenizer(config: RunConfig) -> Tokenizer:
    """Return a run's tokenizer, with an end token and a padding token; ConfigError if it cannot have them."""
    from transformers import AutoTokenizer

    silence_libraries()
    source = (config.tokenizer or "") if config.from_scratch else model_source(config.model_name_or_path)
    adapter = adapter_of(config)
    if adapter is not None and (adapter / "tokenizer_config.json").exists():
        source = str(adapter)
    if Path(source).is_dir() and not any(True for kind in _FILES for _ in Path(source).glob(kind)):
        problem = (
            "no tokenizer (tokenizer.json)" if (Path(source) / "config.json").exists() else "no model (config.json)"
        )
        raise ConfigError(
            f"The folder '{source}' holds {problem}: give a hub name, or a folder with all files of a model."
        )
    with readable_errors(source):
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(
            source, trust_remote_code=config.trust_remote_code, token=config.token or None
        )
    if config.prompt_template is not None:
        tokenizer.chat_template = _read_template(config.prompt_template)
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"The tokenizer of '{source}' has no end token (eos_token): set one in its folder.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    add_marks(config, tokenizer)
    return tokenizer


def _read_template(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"There is no template '{path}': check the path after --prompt_template.") from None
    except (OSError, UnicodeDecodeError):
        raise ConfigError(
            f"The template '{path}' cannot be read as UTF-8: check the file and its permissions."
        ) from None


def check_fits(config: RunConfig, tokenizer: Tokenizer, model_config: ModelConfig) -> None:
    """Refuse rows longer than the model's context, and a tokenizer with ids that the model has no embedding for.

    For a folder, also check that all weight files exist and have intact headers.
    """
    if not config.from_scratch and Path(model_source(config.model_name_or_path)).is_dir():
        checkpoint = find_checkpoint(model_source(config.model_name_or_path))
        if not checkpoint.is_pickle:
            checkpoint.check()
    text = model_config.get_text_config() if hasattr(model_config, "get_text_config") else model_config
    places = getattr(text, "vocab_size", None)
    if places is not None and max(tokenizer.get_vocab().values()) >= max(
        places, embeddings_needed(config, tokenizer, model_config)
    ):
        raise ConfigError(
            f"The tokenizer of '{config.model_name_or_path}' has the id {max(tokenizer.get_vocab().values())}, but the "
            f"model has {places} embeddings: give a folder whose tokenizer and model belong together."
        )
    limit = getattr(model_config, "max_position_embeddings", None)
    limit = limit if limit is not None and limit > 0 else None  # XLNet says -1: no limit
    ahead = {"prefix": config.num_virtual_tokens + config.private_tokens, "text": config.prompt_length}
    prompt_length = ahead.get(config.prompt_method or "", 0)
    if limit is not None and prompt_length + config.seq_length > limit > config.seq_length:
        raise ConfigError(
            f"A prompt of up to {prompt_length} tokens and rows of {config.seq_length} are longer than the model's "
            f"context ({limit}): write --seq_length {max(2, limit - prompt_length)}, or a shorter prompt."
        )
    if limit is not None and config.seq_length > limit:
        raise ConfigError(
            f"seq_length is {config.seq_length}, but the model's context ends at {limit}: write --seq_length {limit}."
        )
