"""What releases of transformers call by different names. Nothing else in Weft knows these names.

transformers 5.24 renamed the argument and the output `past_key_values` to `cache`; architectures that it has not
renamed, and releases before it, keep the former name. It also calls activation checkpointing by its name where it was
gradient checkpointing before.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

from torch import nn

from weft.core.model_types import Cache, CausalModel

NAMES = ("cache", "past_key_values", "cache_params")
"""What a cache is called, the newest name first; the last is that of models with a state (Mamba) before 5.24."""


@functools.cache
def _cache_name(forward: Callable[..., object]) -> str:
    """Return the argument of a model's `forward` that takes the keys and values of what came before."""
    known = inspect.signature(forward).parameters
    return next((name for name in NAMES if name in known), "past_key_values")


def cache_arguments(model: nn.Module, cache: Cache | None) -> dict[str, Cache]:
    """Return the arguments of `model(...)` that hand over a cache: none where there is no cache."""
    return {} if cache is None else {_cache_name(type(model).forward): cache}


def cache_of(model: nn.Module, outputs: object) -> Cache:
    """Return the cache in a model's outputs."""
    return getattr(outputs, _cache_name(type(model).forward))


def recompute_activations(model: CausalModel) -> None:
    """Let a model compute its activations anew in the backward pass, rather than keep them."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
