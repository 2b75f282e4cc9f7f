"""A base in 8 or 4 bits (bitsandbytes; Dettmers et al. 2022, arXiv 2208.07339, and 2023, arXiv 2305.14314)."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from weft.config import RunConfig
from weft.core.model_types import ModelConfig
from weft.errors import ConfigError, MissingExtra
from weft.json_types import JsonObject


def quantisation(config: RunConfig, dtype: torch.dtype) -> object:
    """Return transformers' configuration for quantising the base of a run; MissingExtra without bitsandbytes."""
    _need_bitsandbytes()
    from transformers import BitsAndBytesConfig

    if config.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=config.int8_threshold)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def advice(config: RunConfig, fits_16: bool) -> str | None:
    """Return a sentence about a faster choice than 8 bits on a GPU; None: the run has no base in 8 bits.

    Args:
        config: the run.
        fits_16: whether a step with the base in 16 bits is estimated to fit into the GPU's memory.
    """
    if not config.load_in_8bit:
        return None
    # Step times on an H200, LoRA at 7 B width, 16 x 512 (docs/benchmarks.md): 107, 112 and 161 ms.
    faster = "bfloat16 fits into this GPU" if fits_16 else "--load_in_4bit takes less memory"
    return f"A step with a base in 8 bits takes about 1.5 times as long as one in bfloat16 or in 4 bits: {faster}."


def _need_bitsandbytes() -> None:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise MissingExtra("bitsandbytes", "quant", "A base in 8 or 4 bits") from None


def quantised_bits(model_config: ModelConfig) -> int | None:
    """Return the bits in which bitsandbytes saved a model, by its configuration; None: it did not."""
    settings = _settings_of(model_config)
    if settings.get("quant_method", "bitsandbytes") != "bitsandbytes" or not settings:
        return None
    return 8 if settings.get("load_in_8bit") or settings.get("_load_in_8bit") else 4


def keep_unpacked(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit layers for its CPU kernel.

    bitsandbytes repacks a layer for good when it first computes without gradients. Its CPU kernel has no backward pass,
    so the layers before it would silently learn nothing, and it does not support all shapes.
    """
    layers: Iterator[Any] = model.modules()  # bitsandbytes has no types
    for layer in layers:
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


@contextlib.contextmanager
def without_probing() -> Iterator[None]:
    """Keep peft from importing bitsandbytes, as long as nothing in this process uses it; also a decorator.

    peft imports bitsandbytes wherever it is installed, to ask each layer whether it is quantised. That compiles
    functions and so imports torch's compiler: 1.2 seconds of every start. A quantised base has imported bitsandbytes
    before its adapter is made; then nothing is kept from peft. The import fails in here as if the package were absent,
    by Python's own means (None in `sys.modules`), so this belongs around calls of peft only.
    """
    if "bitsandbytes" in sys.modules:
        yield
        return
    from transformers.utils import is_bitsandbytes_available

    is_bitsandbytes_available()  # transformers remembers its answer, which has to be the true one
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    try:
        _forget_answers()
        yield
    finally:
        del sys.modules["bitsandbytes"]
        _forget_answers()


def _forget_answers() -> None:
    """Let peft ask again whether bitsandbytes is there: it remembers the answers."""
    asked = sys.modules.get("peft.import_utils")
    for name in ("is_bnb_available", "is_bnb_4bit_available") if asked else ():
        getattr(getattr(asked, name), "cache_clear", lambda: None)()


def check_quantised(config: RunConfig, model_config: ModelConfig) -> None:
    """Refuse a base that is quantised by an unsupported method, or that the run cannot train.

    Args:
        config: the run.
        model_config: transformers' configuration of the model.

    Raises:
        ConfigError: the message names the reason and a remedy.
        MissingExtra: bitsandbytes is needed and not installed.
    """
    settings, name = _settings_of(model_config), config.model_name_or_path
    if not settings:
        return
    bits = quantised_bits(model_config)
    if bits is None:
        raise ConfigError(
            f"'{name}' is quantised by {settings.get('quant_method')}, which Weft does not load: name the model that "
            "it was made of, with --load_in_4bit if it is to take as little memory."
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
    requested = 8 if config.load_in_8bit else 4 if config.load_in_4bit else bits
    if requested != bits:
        raise ConfigError(
            f"'{name}' is saved in {bits} bits and cannot be loaded in {requested}: leave out --load_in_{requested}bit."
        )
    _need_bitsandbytes()


def _settings_of(model_config: ModelConfig) -> JsonObject:
    """Return the quantisation settings in a model's configuration; empty where it is not quantised."""
    settings = getattr(model_config, "quantization_config", None) or {}
    return dict(settings if isinstance(settings, dict) else settings.to_dict())
