"""Adapters, made by peft: which parameters are trainable, and how they are saved."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from weft.config import RunConfig
from weft.core.types import Tensors
from weft.errors import ConfigError
from weft.models.dropout import quicken


def lora_config(config: RunConfig) -> Any:
    """Return peft's configuration of the LoRA that a run asks for."""
    from peft import LoraConfig

    named: list[str] | str | None = list(config.peft_lora_target_modules)
    if named == ["auto"]:
        named = None
    elif named == ["all-linear"]:
        named = "all-linear"
    alpha = config.peft_lora_alpha
    return LoraConfig(
        r=config.peft_lora_r,
        lora_alpha=int(alpha) if float(alpha).is_integer() else alpha,
        lora_dropout=config.peft_lora_dropout,
        target_modules=named,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        bias="none",
        task_type="CAUSAL_LM",
    )


def add_lora(model: Any, config: RunConfig, dtype: torch.dtype) -> Any:
    """Return the model with a trainable LoRA and everything else frozen.

    Where peft does not know the architecture, `auto` means every linear layer but the output.

    Raises:
        ConfigError: modules were named that the model does not have.
    """
    from peft import get_peft_model
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    wanted = lora_config(config)
    if wanted.target_modules is None and getattr(model.config, "model_type", "") not in KNOWN:
        wanted.target_modules = "all-linear"
    if wanted.target_modules is None and model.config.model_type in ("gpt2",):
        wanted.fan_in_fan_out = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers in words that are to change
            adapted = get_peft_model(model, wanted, autocast_adapter_dtype=False)
    except ValueError as error:
        if "not found in the base model" not in str(error):
            raise
        linear = sorted({name.rpartition(".")[2] for name, m in model.named_modules() if "Linear" in type(m).__name__})
        raise ConfigError(
            f"The model has none of the modules {config.peft_lora_target_modules} for LoRA: "
            f"name some of {', '.join(linear)}, or write auto."
        ) from None
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    quicken(adapted)
    return adapted


def save_model(model: Any, tokenizer: Any, params: Tensors, folder: Path) -> None:
    """Write what transformers or peft load as it is, with `params` in place of the trained parameters.

    Args:
        model: a peft model (its adapter is written) or a transformers model (all of it).
        tokenizer: written beside it.
        params: by the names of `model.named_parameters()`.
        folder: made if it is not there.
    """
    from peft import PeftModel

    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, PeftModel):
        model.save_pretrained(str(folder), state_dict=dict(params), save_embedding_layers=False)
    else:
        state = model.state_dict()
        state.update({name: value.to(state[name].dtype) for name, value in params.items()})
        model.save_pretrained(str(folder), state_dict=state)
    tokenizer.save_pretrained(str(folder))
