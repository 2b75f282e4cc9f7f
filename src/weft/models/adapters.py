"""Adapters, made by peft: which parameters are trainable, and how they are saved."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import TypeGuard

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
from weft.models.dropout import use_fast_dropout
from weft.models.noise import quiet_libraries
from weft.models.notes import Note, ignore_note
from weft.models.prompts import save_prompt
from weft.models.side import add_middle, add_twin, lora_layers
from weft.models.targets import linear_names, targets_of


def lora_config(config: RunConfig) -> AdapterConfig:
    """Return peft's configuration of a run's LoRA; its target modules are not filled in yet."""
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
    aggregation: LoraAggregation | None = None,
    layers: list[int] | None = None,
    note: Note = ignore_note,
) -> AdaptedModel:
    """Return the model with a trainable LoRA and everything else frozen.

    Args:
        model: a transformers model.
        config: names rank, scaling and target modules.
        dtype: of the trained parameters.
        aggregation: decides what else is added beside the layers, and which factors stay frozen.
        layers: numbers of the decoder layers that get a LoRA; None: all.
        note: called with a sentence about modules that cannot have a LoRA.

    Raises:
        ConfigError: the run names modules that the model lacks, or that cannot have a LoRA.
    """
    from peft import get_peft_model

    settings = lora_config(config)
    linear = linear_names(model, model.config.model_type)
    settings.target_modules = targets_of(model, config.peft_lora_target_modules, layers, note)
    settings.layers_to_transform = layers
    if settings.target_modules is None and model.config.model_type in ("gpt2",):
        settings.fan_in_fan_out = True
    try:
        with quiet_libraries():
            peft_model: AdaptedModel = get_peft_model(model, settings, autocast_adapter_dtype=False)
            if aggregation is not None:
                _shape(peft_model, settings, aggregation)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise _no_lora(config, linear, str(error).splitlines()[0].rstrip(".")) from None
    if any(type(module).__name__ == "ParamWrapper" for module in peft_model.modules()):
        raise _no_lora(config, linear, "the experts' weights are fused")
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    use_fast_dropout(peft_model)
    return peft_model


def _no_lora(config: RunConfig, linear: list[str], reason: str) -> ConfigError:
    return ConfigError(
        f"No LoRA can be put beside {', '.join(config.peft_lora_target_modules)} ({reason}): name some of "
        f"{', '.join(linear)}, or write auto."
    )


def _shape(model: AdaptedModel, settings: AdapterConfig, aggregation: LoraAggregation) -> None:
    """Add the extra factors that the aggregation needs, and freeze those that it does not train."""
    if aggregation.shape and not lora_layers(model):
        raise ConfigError(
            f"{type(aggregation).__name__} needs LoRA on linear layers, and there is none: name linear layers in "
            "peft_lora_target_modules, or write --lora_aggregation average."
        )
    if aggregation.shape == "middle":
        add_middle(model)
    if aggregation.shape == "twin":
        add_twin(model, copy.deepcopy(settings), PERSONAL)
    for name, parameter in model.named_parameters():
        if kind_of(name) in aggregation.frozen:
            parameter.requires_grad_(False)


def fixed_factors(model: nn.Module) -> Tensors:
    """Return float32 copies, on the CPU, of the LoRA factors that are not trained."""
    return {
        name: parameter.detach().to("cpu", torch.float32, copy=True)
        for name, parameter in model.named_parameters()
        if kind_of(name) and not parameter.requires_grad
    }


def _order_lists(file: Path) -> None:
    """Sort the lists of names in peft's settings: it writes sets, whose order differs from process to process."""
    if not file.exists():
        return
    settings = json.loads(file.read_text(encoding="utf-8"))
    for key in ("target_modules", "exclude_modules", "modules_to_save"):
        if isinstance(settings.get(key), list):
            settings[key] = sorted(settings[key])
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_model(model: CausalModel, tokenizer: Tokenizer, params: Tensors, folder: Path) -> None:
    """Write a folder that transformers or peft load directly, with `params` as the values of the trained parameters.

    Args:
        model: a peft model (its adapter is written) or a transformers model (all of it).
        tokenizer: written beside it.
        params: by the names of `model.named_parameters()`, the whole adapter and the side adapter. What is not plain
            LoRA (a middle matrix, a personal or a side adapter) is folded into one LoRA of a larger rank.
        folder: created if it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not _is_adapted(model):
        empty = next(model.parameters()).is_meta  # then the parameters are all there is
        model.save_pretrained(str(folder), state_dict=dict(params) if empty else _replaced(model.state_dict(), params))
    elif model.peft_config["default"].is_prompt_learning:
        save_prompt(model, params, folder)
    elif not _is_folded(params):
        # Its card is made from a template that is compiled anew each time, and names the base's path on this machine.
        vars(model)["create_or_update_model_card"] = lambda folder: None
        model.save_pretrained(str(folder), state_dict=dict(params), save_embedding_layers=False)
    else:
        _save_folded(model.peft_config["default"], params, folder)
    _order_lists(folder / "adapter_config.json")
    tokenizer.save_pretrained(str(folder))
    follow_umask(folder)


def _is_adapted(model: CausalModel) -> TypeGuard[AdaptedModel]:
    """Whether peft made the model; a process that has not imported peft has no such model, and need not import it."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def _replaced(state: Tensors, params: Tensors) -> Tensors:
    """Return a model's tensors with `params` in place of theirs, under every name of a tied tensor."""
    places: dict[int, list[str]] = {}  # storage address -> all names of the tensor
    for name, value in state.items():
        places.setdefault(value.data_ptr(), []).append(name)
    new: Tensors = {}
    for name, value in params.items():
        rounded = value.to(state[name].dtype)  # one tensor for all of its names, or it would be written twice
        new |= dict.fromkeys(places[state[name].data_ptr()], rounded)
    return state | new


def _is_folded(params: Tensors) -> bool:
    return any(kind_of(n) == "R" or PERSONAL in n.split(".") or n.endswith((SIDE_A, SIDE_B)) for n in params)


def _save_folded(settings: AdapterConfig, params: Tensors, folder: Path) -> None:
    """Write one plain LoRA whose product B A is, for each layer, the sum of all low-rank terms on that layer."""
    from safetensors.torch import save_file

    scale = settings.lora_alpha / (settings.r**0.5 if settings.use_rslora else settings.r)
    parts = {module: [product] for module, product in lowrank.side_products(params).items()}
    for adapter in ("default", PERSONAL):
        for module, factors in lowrank.modules(params, adapter).items():
            gate = float(params.get(f"{module}.lora_gate.{adapter}", torch.ones(())))
            parts.setdefault(module, []).append(lowrank.product_of(params, factors, scale * gate))
    # B_1 A_1 + B_2 A_2 = [B_1 B_2] [A_1; A_2]: ranks add up, a sum beyond full rank is cut back, losing only rounding.
    whole = {module: lowrank.total(products) for module, products in parts.items()}
    for module, (b, a) in whole.items():
        if a.shape[0] > min(b.shape[0], a.shape[1]):
            whole[module] = lowrank.truncate(whole[module])
    ranks = {module.removeprefix("base_model.model."): product.a.shape[0] for module, product in whole.items()}
    saved_settings = copy.deepcopy(settings)
    saved_settings.r = saved_settings.lora_alpha = max(max(ranks.values()), 1)
    saved_settings.use_rslora, saved_settings.inference_mode = False, True
    saved_settings.rank_pattern, saved_settings.alpha_pattern = ranks, dict(ranks)
    saved_settings.save_pretrained(str(folder))
    values = {f"{module}.lora_{kind}.weight": getattr(product, kind.lower()).contiguous()
              for module, product in whole.items() for kind in "AB"}  # fmt: skip
    save_file(values, folder / "adapter_model.safetensors", metadata={"format": "pt"})
