"""Fused kernels for norms, rotary embeddings and gated layers on a GPU (Liger; Hsu et al. 2024, arXiv 2410.10989)."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from weft.core.model_types import CausalModel
from weft.errors import ConfigError, MissingExtra

PARTS = ("rope", "rms_norm", "swiglu", "geglu", "layer_norm")
"""What is replaced. The loss is not: it is computed in chunks here, for any model."""


def use_kernels(model: CausalModel, name: str, device: torch.device) -> bool:
    """Make a model compute with fused kernels; return whether it does.

    Args:
        model: a transformers model, before it has an adapter.
        name: "auto": on CUDA, where they are installed and know the architecture; "liger": demanded; "none".
        device: of the model.

    Raises:
        ConfigError: they are demanded, and the device or the architecture is none of theirs.
        MissingExtra: they are demanded and not installed.
    """
    if name == "none" or (name == "auto" and device.type != "cuda"):
        return False
    if device.type != "cuda":
        raise ConfigError(f"kernels is {name}, and the device is {device.type}: Liger's kernels are for CUDA GPUs.")
    if importlib.util.find_spec("liger_kernel") is None:
        if name == "auto":
            return False
        raise MissingExtra("liger-kernel", "gpu", "kernels liger")
    # It warns of each of its back ends that is not installed.
    logging.getLogger("liger_kernel").setLevel(logging.ERROR)
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    kind = model.config.model_type
    patch = MODEL_TYPE_TO_APPLY_LIGER_FN.get(kind)
    if patch is None:
        if name == "auto":
            return False
        raise ConfigError(f"Liger has no kernels for a {kind}: leave out --kernels.")
    parts = {part: True for part in PARTS if part in inspect.signature(patch).parameters}
    with_local_classes(
        type(model).__module__,
        lambda: patch(model=model, cross_entropy=False, fused_linear_cross_entropy=False, **parts),
    )
    return True


def is_fused(model: nn.Module) -> bool:
    """Return whether a model computes with fused kernels of Liger."""
    homes = (str(getattr(module.forward, "__module__", "")) for module in model.modules())
    return any(home.startswith("liger_kernel") for home in homes)


def with_local_classes(module_name: str, patch: Callable[[], object]) -> None:
    """Run Liger's patch of a model so that it changes this model alone.

    The patch also replaces the classes and functions of the architecture's module, so that the next model would compute
    with Triton on any device. Classes are put back. A function, which the layers look up when they are called, remains
    replaced for tensors on CUDA only.
    """
    module = importlib.import_module(module_name)
    before = dict(vars(module))
    patch()
    for name, value in dict(vars(module)).items():
        former = before.get(name)
        if former is None or value is former:
            continue
        setattr(module, name, former if isinstance(value, type) else _by_device(value, former))


def _by_device(fused: Callable[..., object], plain: Callable[..., object]) -> Callable[..., object]:
    """Return a function that calls `fused` for tensors on CUDA, and `plain` for others."""
    plain = getattr(plain, "plain", plain)  # patched before, for another model

    @functools.wraps(plain)
    def choose(first: Tensor, *args: object, **kwargs: object) -> object:
        return (fused if first.is_cuda else plain)(first, *args, **kwargs)

    choose.plain = plain  # type: ignore[attr-defined]
    return choose
