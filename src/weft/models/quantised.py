"""A base in 8 or 4 bits (bitsandbytes; Dettmers et al. 2022, arXiv 2208.07339, and 2023, arXiv 2305.14314)."""

from __future__ import annotations

from typing import Any

import torch

from weft.config import RunConfig
from weft.errors import MissingExtra


def quantisation(config: RunConfig, dtype: torch.dtype) -> Any:
    """Return how transformers is to quantise the base of a run; MissingExtra without bitsandbytes."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise MissingExtra("bitsandbytes", "quant", "A base in 8 or 4 bits") from None
    from transformers import BitsAndBytesConfig

    if config.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
