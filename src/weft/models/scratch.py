"""Models trained from random weights: Llama shapes by size."""

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
"""Name: approximate number of parameters, including tied embeddings of a vocabulary of 8,192."""


def shape_of(config: RunConfig) -> dict[str, int]:
    """Return hidden_size, num_layers and num_heads of a model trained from random weights.

    Raises:
        ConfigError: the shape is incomplete, or the width of a head is not an even whole number.
    """
    shape = dict(SHAPES[config.size]) if config.size else {}
    settings = {"hidden_size": config.hidden_size, "num_layers": config.num_layers, "num_heads": config.num_heads}
    shape |= {key: value for key, value in settings.items() if value is not None}
    missing = [f"--{key}" for key in settings if key not in shape]
    if missing:
        raise ConfigError(f"The shape of the model is not complete: add {' and '.join(missing)}, or write --size.")
    width, heads = shape["hidden_size"], shape["num_heads"]
    # Rotary embeddings rotate pairs of a head's dimensions.
    if width % heads or (width // heads) % 2:
        raise ConfigError(
            f"hidden_size is {width} and num_heads {heads}, but a head must have an even number of places, such as 64: "
            f"write --num_heads {max(1, width // 64)}."
        )
    return shape


def llama_config(config: RunConfig, vocab_size: int, ends: dict[str, int | None]) -> ModelConfig:
    """Return the configuration of a Llama of the run's shape; ConfigError as `shape_of`.

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
