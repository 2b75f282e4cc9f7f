"""Choosing the modules of a model that get a LoRA: peft's defaults, corrected where they do not work."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from weft.core.model_types import CausalModel
from weft.errors import ConfigError
from weft.models.checkpoint_names import join_names
from weft.models.emulator import decoder_layers
from weft.models.notes import Note

_LINEAR = ("Linear", "Linear8bitLt", "Linear4bit", "Conv1D", "FalconLinear")
_MAMBA = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
"""Architectures whose kernels read the weight of `out_proj` without calling the module: a LoRA would have no effect."""


def targets_of(
    model: CausalModel, targets: Sequence[str], layers: Sequence[int] | None, note: Note
) -> list[str] | str | None:
    """Return peft's `target_modules`: names, a regular expression, "all-linear", or None for peft's defaults.

    Where peft has no defaults for the architecture, `auto` means every linear layer but the output. Experts' weights
    that are fused into one tensor get no LoRA, and a note says so.

    Args:
        model: a transformers model.
        targets: as in the run: auto, all-linear, or names.
        layers: numbers of the decoder layers that get a LoRA; None: all.
        note: called with a sentence about modules without a LoRA.

    Raises:
        ConfigError: the model lacks a module of this name, or it cannot have a LoRA.
    """
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS

    kind = getattr(model.config, "model_type", "")
    fused = fused_experts(model)
    if list(targets) not in (["auto"], ["all-linear"]):
        _check_named(model, targets, kind, fused)
        single = len(targets) == 1 and re.fullmatch(r"[\w.\-]+", targets[0]) is None
        return (
            targets[0] if single else list(targets)
        )  # an earlier adapter may name its modules by a regular expression
    linear = linear_names(model, kind)
    defaults = [name for name in PEFT_TARGETS.get(kind) or () if name in linear]
    if list(targets) == ["auto"] and defaults:
        linear = defaults
    if fused:
        note(
            f"The experts' weights are fused ({join_names(fused, 1)}) and have no LoRA; it is beside "
            f"{', '.join(linear)}."
        )
    elif list(targets) == ["auto"] and kind in PEFT_TARGETS:
        return None
    elif layers is None and kind not in _MAMBA and not _has_router(model):
        return "all-linear"
    if layers is not None:  # peft accepts layers_to_transform only with names
        inside = {name.rpartition(".")[2] for name, _ in decoder_layers(model)[2].named_modules()}
        linear = [name for name in linear if name in inside]
    return linear


def fused_experts(model: CausalModel) -> list[str]:
    """Return the names of parameters that hold the weights of several experts, (experts, d, k)."""
    return sorted(name for name, value in model.named_parameters() if value.dim() == 3 and "experts" in name)


def linear_names(model: CausalModel, kind: str) -> list[str]:
    """Return the last parts of the names of linear modules that can have a LoRA; the output layer cannot."""
    fit, unfit = set(), {"out_proj"} if kind in _MAMBA else set()
    if fused_experts(model):  # peft applies these names to experts, even where other modules share them
        unfit |= {"gate_proj", "up_proj", "down_proj", "gate_up_proj", "w1", "w2", "w3"}
    output = model.get_output_embeddings()
    for name, module in model.named_modules():
        if module is output or (isinstance(module, nn.Linear) and type(module).__name__ not in _LINEAR):
            unfit.add(name.rpartition(".")[2])
        elif type(module).__name__ in _LINEAR:
            fit.add(name.rpartition(".")[2])
    return sorted(fit - unfit)


def _has_router(model: CausalModel) -> bool:
    """Return whether a model has routers: linear modules that do more than multiply."""
    return any("Router" in type(m).__name__ and isinstance(m, nn.Linear) for m in model.modules())


def _check_named(model: CausalModel, targets: Sequence[str], kind: str, fused: list[str]) -> None:
    """Refuse names that no module has, and modules that cannot have a LoRA."""
    modules = [name for name, _ in model.named_modules()]
    for target in targets:
        pattern = re.compile(rf"(?:.*\.)?{re.escape(target)}")
        if re.fullmatch(r"[\w.\-]+", target) is None:
            continue
        if not any(pattern.fullmatch(name) for name in modules):
            more = f"; the experts are fused into {join_names(fused, 1)} and can have none" if fused else ""
            raise ConfigError(
                f"The model has no module '{target}' for LoRA{more}: name some of "
                f"{', '.join(linear_names(model, kind))}, or write auto."
            )
        if kind in _MAMBA and target.rpartition(".")[2] in ("out_proj", "conv1d"):
            raise ConfigError(
                f"The module '{target}' of a {kind} can have no LoRA, because its kernels bypass the module: name "
                f"some of {', '.join(linear_names(model, kind))}, or write auto."
            )


def layers_of(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the name and the list of a model's decoder layers: its longest ModuleList."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ConfigError("The model has no list of layers to share out over processes: write --parallel none.")
    return max(lists, key=lambda one: len(one[1]))
