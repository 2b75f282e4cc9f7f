"""Models that begin from nothing: Llama shapes by size."""

from __future__ import annotations

from weft.config import RunConfig
from weft.core.model_types import ModelConfig
from weft.errors import ConfigError

SHAPES = {
    "5m": {"hidden_size": 192, "num_layers": 8, "num_heads": 3},
    "15m": {"hidden_size": 320, "num_layers": 10, "num_heads": 5},
    "60m": {"hidden_size": 576, "num_layers": 14, "num_heads": 9},
    "150m": {"hidden_size": 832, "num_layers": 17, "num_heads": 13},
}
"""About so many parameters with a vocabulary of 8,192, embeddings tied and counted."""


def shape_of(config: RunConfig) -> dict[str, int]:
    """Return hidden_size, num_layers and num_heads of a model that begins from nothing.

    Raises:
        ConfigError: heads that do not divide the width evenly, or part of a shape only.
    """
    shape = dict(SHAPES[config.size]) if config.size else {}
    given = {"hidden_size": config.hidden_size, "num_layers": config.num_layers, "num_heads": config.num_heads}
    shape |= {key: value for key, value in given.items() if value is not None}
    missing = [f"--{key}" for key in given if key not in shape]
    if missing:
        raise ConfigError(f"The shape of the model is not complete: add {' and '.join(missing)}, or write --size.")
    width, heads = shape["hidden_size"], shape["num_heads"]
    if width % heads or (width // heads) % 2:
        raise ConfigError(
            f"hidden_size is {width} and num_heads {heads}, but a head must have an even number of places, such as 64: "
            f"write --num_heads {max(1, width // 64)}."
        )
    return shape


def llama_config(config: RunConfig, vocab_size: int, ends: dict[str, int | None]) -> ModelConfig:
    """Return the configuration of a Llama of the shape that a run asks for; ConfigError as `shape_of`.

    The feed-forward layers are 8/3 as wide as the hidden ones, rounded up to a multiple of 64.
    """
    from transformers import LlamaConfig

    shape = shape_of(config)
    llama: ModelConfig = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=shape["hidden_size"],
        intermediate_size=-(-shape["hidden_size"] * 8 // 3 // 64) * 64,
        num_hidden_layers=shape["num_layers"],
        num_attention_heads=shape["num_heads"],
        num_key_value_heads=shape["num_heads"],
        max_position_embeddings=max(config.seq_length, 512),
        tie_word_embeddings=True,
        **ends,
    )
    return llama
