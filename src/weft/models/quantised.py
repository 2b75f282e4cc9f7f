"""A base in 8 or 4 bits (bitsandbytes; Dettmers et al. 2022, arXiv 2208.07339, and 2023, arXiv 2305.14314)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from weft.config import RunConfig
from weft.core.model_types import ModelConfig
from weft.errors import ConfigError, MissingExtra
from weft.json_types import JsonObject


def quantisation(config: RunConfig, dtype: torch.dtype) -> object:
    """Return how transformers is to quantise the base of a run; MissingExtra without bitsandbytes."""
    _need_bitsandbytes()
    from transformers import BitsAndBytesConfig

    if config.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _need_bitsandbytes() -> None:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise MissingExtra("bitsandbytes", "quant", "A base in 8 or 4 bits") from None


def stored_bits(own: ModelConfig) -> int | None:
    """Return in how many bits bitsandbytes saved a model, given its configuration; None: it is not quantised so."""
    said = _said(own)
    if said.get("quant_method", "bitsandbytes") != "bitsandbytes" or not said:
        return None
    return 8 if said.get("load_in_8bit") or said.get("_load_in_8bit") else 4


def keep_unpacked(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit layers for its CPU kernel.

    It does so when a layer first computes without gradients, for good; the kernel has no gradient, so that layers
    before it would learn nothing in silence afterwards, and it does not take all shapes.
    """
    layers: Iterator[Any] = model.modules()  # bitsandbytes has no types
    for layer in layers:
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def check_stored(config: RunConfig, own: ModelConfig) -> None:
    """Refuse a base that is quantised in a way that is not read, or that cannot be trained as the run asks.

    Args:
        config: the run.
        own: the model's own configuration.

    Raises:
        ConfigError: the sentence says why.
        MissingExtra: bitsandbytes is needed and absent.
    """
    said, name = _said(own), config.model_name_or_path
    if not said:
        return
    bits = stored_bits(own)
    if bits is None:
        raise ConfigError(
            f"'{name}' is quantised by {said.get('quant_method')}, which Weft does not load: name the model that it "
            "was made of, with --load_in_4bit if it is to take as little memory."
        )
    if not config.adapts:
        raise ConfigError(
            f"'{name}' is saved in {bits} bits, so it cannot be trained itself: add --use_peft, or name the model that "
            "it was made of."
        )
    if config.parallel != "none" or config.model_offload != "none":
        raise ConfigError(
            f"'{name}' is saved in {bits} bits, and a quantised base is neither spread over processes nor offloaded: "
            "write --parallel none --model_offload none, or name the model that it was made of."
        )
    asked = 8 if config.load_in_8bit else 4 if config.load_in_4bit else bits
    if asked != bits:
        raise ConfigError(
            f"'{name}' is saved in {bits} bits and cannot be loaded in {asked}: leave out --load_in_{asked}bit."
        )
    _need_bitsandbytes()


def _said(own: ModelConfig) -> JsonObject:
    """Return what a model's configuration says of its quantisation."""
    found = getattr(own, "quantization_config", None) or {}
    return dict(found if isinstance(found, dict) else found.to_dict())
