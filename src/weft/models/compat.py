"""Names that differ between releases of transformers; no other module depends on them.

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
"""Names of the cache argument, the newest first; the last one is that of recurrent models (Mamba) before 5.24."""


@functools.cache
def _cache_name(forward: Callable[..., object]) -> str:
    """Return the name of the argument of `forward` that takes the keys and values of earlier positions."""
    parameters = inspect.signature(forward).parameters
    return next((name for name in NAMES if name in parameters), "past_key_values")


def cache_arguments(model: nn.Module, cache: Cache | None) -> dict[str, Cache]:
    """Return the keyword arguments of `model(...)` that pass a cache; none for None."""
    return {} if cache is None else {_cache_name(type(model).forward): cache}


def cache_of(model: nn.Module, outputs: object) -> Cache:
    """Return the cache in a model's outputs."""
    return getattr(outputs, _cache_name(type(model).forward))


def recompute_activations(model: CausalModel, *, reentrant: bool | None = None) -> None:
    """Make a model recompute its activations in the backward pass, rather than store them.

    The products of bitsandbytes keep their inputs in a way that non-reentrant checkpointing does not see: every layer's
    input would stay in memory. Reentrant checkpointing runs the layers without a graph, so nothing is kept.

    Args:
        model: a transformers model.
        reentrant: kind of the checkpointing; None: reentrant for a quantised base.
    """
    if reentrant is None:
        reentrant = getattr(model.config, "quantization_config", None) is not None
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
