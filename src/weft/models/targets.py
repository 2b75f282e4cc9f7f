"""Which modules of a model have a LoRA. peft is asked first; what it gets wrong is chosen here."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from weft.core.model_types import CausalModel
from weft.errors import ConfigError
from weft.models.checkpoint_names import listed
from weft.models.emulator import decoder_layers
from weft.models.notes import Note

_LINEAR = ("Linear", "Linear8bitLt", "Linear4bit", "Conv1D", "FalconLinear")
_MAMBA = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
"""Kinds whose kernels take the weight of `out_proj` past the module, so that an adapter would not be seen."""


def targets_of(
    model: CausalModel, named: Sequence[str], layers: Sequence[int] | None, note: Note
) -> list[str] | str | None:
    """Return what peft is to be told of the modules: names, an expression, "all-linear", or None: what it knows.

    Where peft does not know the architecture, `auto` means every linear layer but the output. Weights of experts that
    are fused into one tensor have no LoRA, which is said.

    Args:
        model: a transformers model.
        named: as in the run: auto, all-linear, or names.
        layers: the layers that have one; None: all.
        note: told what has none.

    Raises:
        ConfigError: a module was named that the model does not have, or that can have none.
    """
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    kind = getattr(model.config, "model_type", "")
    fused = fused_experts(model)
    if list(named) not in (["auto"], ["all-linear"]):
        _check_named(model, named, kind, fused)
        single = len(named) == 1 and re.fullmatch(r"[\w.\-]+", named[0]) is None
        return named[0] if single else list(named)  # an adapter may name its modules by an expression
    linear = linear_names(model, kind)
    known = [name for name in KNOWN.get(kind) or () if name in linear]
    if list(named) == ["auto"] and known:
        linear = known
    if fused:
        note(f"The experts' weights are fused ({listed(fused, 1)}) and have no LoRA; it is beside {', '.join(linear)}.")
    elif list(named) == ["auto"] and kind in KNOWN:
        return None
    elif layers is None and kind not in _MAMBA and not _odd(model):
        return "all-linear"
    if layers is not None:  # peft wants names where layers are chosen
        inside = {name.rpartition(".")[2] for name, _ in decoder_layers(model)[2].named_modules()}
        linear = [name for name in linear if name in inside]
    return linear


def fused_experts(model: CausalModel) -> list[str]:
    """Return the names of parameters that hold several experts."""
    return sorted(name for name, value in model.named_parameters() if value.dim() == 3 and "experts" in name)


def linear_names(model: CausalModel, kind: str) -> list[str]:
    """Return the last parts of the names of linear modules that can have a LoRA; the output layer is none."""
    fit, unfit = set(), {"out_proj"} if kind in _MAMBA else set()
    if fused_experts(model):  # peft takes these for the experts' own, even where other modules have them too
        unfit |= {"gate_proj", "up_proj", "down_proj", "gate_up_proj", "w1", "w2", "w3"}
    output = model.get_output_embeddings()
    for name, module in model.named_modules():
        if module is output or (isinstance(module, nn.Linear) and type(module).__name__ not in _LINEAR):
            unfit.add(name.rpartition(".")[2])
        elif type(module).__name__ in _LINEAR:
            fit.add(name.rpartition(".")[2])
    return sorted(fit - unfit)


def _odd(model: CausalModel) -> bool:
    """Say whether a model has linear modules that do more than a product: routers."""
    return any("Router" in type(m).__name__ and isinstance(m, nn.Linear) for m in model.modules())


def _check_named(model: CausalModel, named: Sequence[str], kind: str, fused: list[str]) -> None:
    """Refuse names that no module has, and those that can have no LoRA."""
    every = [name for name, _ in model.named_modules()]
    for one in named:
        pattern = re.compile(rf"(?:.*\.)?{re.escape(one)}")
        if re.fullmatch(r"[\w.\-]+", one) is None:
            continue
        if not any(pattern.fullmatch(name) for name in every):
            more = f"; the experts are fused into {listed(fused, 1)} and can have none" if fused else ""
            raise ConfigError(
                f"The model has no module '{one}' for LoRA{more}: name some of "
                f"{', '.join(linear_names(model, kind))}, or write auto."
            )
        if kind in _MAMBA and one.rpartition(".")[2] in ("out_proj", "conv1d"):
            raise ConfigError(
                f"The module '{one}' of a {kind} can have no LoRA, because its kernels do not ask the module: name "
                f"some of {', '.join(linear_names(model, kind))}, or write auto."
            )
