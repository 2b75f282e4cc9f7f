"""Adapters, made by peft: which parameters are trainable, and how they are saved."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from weft.config import RunConfig
from weft.core import lowrank
from weft.core.files import follow_umask
from weft.core.libraries import Tokenizer
from weft.core.lowrank import PERSONAL, SIDE_A, SIDE_B, kind_of
from weft.core.model_types import AdaptedModel, AdapterConfig, CausalModel
from weft.core.parts import LoraAggregation
from weft.core.types import Tensors
from weft.errors import ConfigError
from weft.models.dropout import quicken
from weft.models.noise import hushed
from weft.models.notes import Note, unsaid
from weft.models.prompts import save_prompt
from weft.models.side import adapted_layers, add_middle, add_twin
from weft.models.targets import linear_names, targets_of


def lora_config(config: RunConfig) -> AdapterConfig:
    """Return peft's configuration of the LoRA that a run asks for, but for its modules."""
    from peft import LoraConfig

    alpha = config.peft_lora_alpha
    lora: AdapterConfig = LoraConfig(
        r=config.peft_lora_r,
        lora_alpha=int(alpha) if float(alpha).is_integer() else alpha,
        lora_dropout=config.peft_lora_dropout,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        bias="none",
        task_type="CAUSAL_LM",
    )
    return lora


def add_lora(
    model: CausalModel,
    config: RunConfig,
    dtype: torch.dtype,
    lora: LoraAggregation | None = None,
    layers: list[int] | None = None,
    note: Note = unsaid,
) -> AdaptedModel:
    """Return the model with a trainable LoRA and everything else frozen.

    Args:
        model: a transformers model.
        config: says rank, scaling and where.
        dtype: of the trained parameters.
        lora: says what else is put beside the layers, and which factors are not trained.
        layers: the layers that have one; None: all.
        note: told what cannot have one.

    Raises:
        ConfigError: modules were named that the model does not have, or that can have no such adapter.
    """
    from peft import get_peft_model

    wanted = lora_config(config)
    linear = linear_names(model, model.config.model_type)
    wanted.target_modules = targets_of(model, config.peft_lora_target_modules, layers, note)
    wanted.layers_to_transform = layers
    if wanted.target_modules is None and model.config.model_type in ("gpt2",):
        wanted.fan_in_fan_out = True
    try:
        with hushed():
            adapted: AdaptedModel = get_peft_model(model, wanted, autocast_adapter_dtype=False)
            if lora is not None:
                _shape(adapted, wanted, lora)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise _no_lora(config, linear, str(error).splitlines()[0].rstrip(".")) from None
    if any(type(module).__name__ == "ParamWrapper" for module in adapted.modules()):
        raise _no_lora(config, linear, "the experts' weights are fused")
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    quicken(adapted)
    return adapted


def _no_lora(config: RunConfig, linear: list[str], why: str) -> ConfigError:
    return ConfigError(
        f"No LoRA can be put beside {', '.join(config.peft_lora_target_modules)} ({why}): name some of "
        f"{', '.join(linear)}, or write auto."
    )


def _shape(model: AdaptedModel, wanted: AdapterConfig, lora: LoraAggregation) -> None:
    """Put beside the layers what the aggregation needs, and freeze what it does not train."""
    if lora.shape and not adapted_layers(model):
        raise ConfigError(
            f"{type(lora).__name__} needs LoRA on linear layers, and there is none: name linear layers in "
            "peft_lora_target_modules, or write --lora_aggregation average."
        )
    if lora.shape == "middle":
        add_middle(model)
    if lora.shape == "twin":
        add_twin(model, copy.deepcopy(wanted), PERSONAL)
    for name, parameter in model.named_parameters():
        if kind_of(name) in lora.frozen:
            parameter.requires_grad_(False)


def fixed_factors(model: nn.Module) -> Tensors:
    """Return float32 copies, on the CPU, of the LoRA factors that are not trained."""
    return {
        name: parameter.detach().to("cpu", torch.float32, copy=True)
        for name, parameter in model.named_parameters()
        if kind_of(name) and not parameter.requires_grad
    }


def save_model(model: CausalModel, tokenizer: Tokenizer, params: Tensors, folder: Path) -> None:
    """Write what transformers or peft load as it is, with `params` in place of the trained parameters.

    Args:
        model: a peft model (its adapter is written) or a transformers model (all of it).
        tokenizer: written beside it.
        params: by the names of `model.named_parameters()`, all that the adapter consists of, and the side adapter. What
            is no plain LoRA (a middle matrix, a personal or a side adapter) is folded into one of a larger rank.
        folder: made if it is not there.
    """
    from peft import PeftModel

    folder.mkdir(parents=True, exist_ok=True)
    if not isinstance(model, PeftModel):
        empty = next(model.parameters()).is_meta  # then the parameters are all there is
        model.save_pretrained(str(folder), state_dict=dict(params) if empty else _replaced(model.state_dict(), params))
    elif model.peft_config["default"].is_prompt_learning:
        save_prompt(model, params, folder)
    elif not _is_folded(params):
        model.save_pretrained(str(folder), state_dict=dict(params), save_embedding_layers=False)
    else:
        _save_folded(model.peft_config["default"], params, folder)
    tokenizer.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty card, which names the base's path on this machine
    follow_umask(folder)


def _replaced(state: Tensors, params: Tensors) -> Tensors:
    """Return a model's tensors with `params` in their places, under the names of tied tensors too."""
    places: dict[int, list[str]] = {}
    for name, value in state.items():
        places.setdefault(value.data_ptr(), []).append(name)
    new: Tensors = {}
    for name, value in params.items():
        rounded = value.to(state[name].dtype)  # one tensor for all of its names, or it would be written twice
        new |= dict.fromkeys(places[state[name].data_ptr()], rounded)
    return state | new


def _is_folded(params: Tensors) -> bool:
    return any(kind_of(n) == "R" or PERSONAL in n.split(".") or n.endswith((SIDE_A, SIDE_B)) for n in params)


def _save_folded(wanted: AdapterConfig, params: Tensors, folder: Path) -> None:
    """Write one plain LoRA whose product is the sum of all that is put on each layer."""
    from safetensors.torch import save_file

    scale = wanted.lora_alpha / (wanted.r**0.5 if wanted.use_rslora else wanted.r)
    parts = {module: [product] for module, product in lowrank.side_products(params).items()}
    for adapter in ("default", PERSONAL):
        for module, factors in lowrank.modules(params, adapter).items():
            gate = float(params.get(f"{module}.lora_gate.{adapter}", torch.ones(())))
            parts.setdefault(module, []).append(lowrank.product_of(params, factors, scale * gate))
    whole = {module: lowrank.total(products) for module, products in parts.items()}
    for module, (b, a) in whole.items():
        if a.shape[0] > min(b.shape[0], a.shape[1]):
            whole[module] = lowrank.truncate(whole[module])
    ranks = {module.removeprefix("base_model.model."): one.a.shape[0] for module, one in whole.items()}
    written = copy.deepcopy(wanted)
    written.r = written.lora_alpha = max(max(ranks.values()), 1)
    written.use_rslora, written.inference_mode = False, True
    written.rank_pattern, written.alpha_pattern = ranks, dict(ranks)
    written.save_pretrained(str(folder))
    values = {f"{module}.lora_{kind}.weight": getattr(one, kind.lower()).contiguous()
              for module, one in whole.items() for kind in "AB"}  # fmt: skip
    save_file(values, folder / "adapter_model.safetensors", metadata={"format": "pt"})
