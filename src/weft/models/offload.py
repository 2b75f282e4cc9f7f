"""A frozen base whose layers lie on the CPU or on disk, and are on the device only while they compute (accelerate)."""

from __future__ import annotations

import shutil
import tempfile
import weakref

import torch
from torch import nn

from weft.config import RunConfig
from weft.core.seeds import derive
from weft.errors import ConfigError
from weft.models.side import adapted_layers
from weft.models.spread import layers_of


def away(config: RunConfig, shell: nn.Module, device: torch.device) -> dict[str, object]:
    """Return what `from_pretrained` needs to leave the layers of a model away from the device.

    Args:
        config: says where to (model_offload).
        shell: the model on the meta device.
        device: where everything else is.

    Raises:
        ConfigError: to the CPU, on the CPU.
    """
    where = config.model_offload
    if where == "cpu" and device.type == "cpu":
        raise ConfigError("The model is on the CPU already, so no layer can wait there: write --model_offload disk.")
    place, layers = layers_of(shell)
    places: dict[str, str] = {f"{place}.{number}": where for number in range(len(layers))}
    for name, module in shell.named_modules():
        leaf = not any(True for _ in module.children())
        if leaf and name and not name.startswith(f"{place}."):
            places[name] = str(device)
    return {"device_map": places, "offload_folder": tempfile.mkdtemp(prefix="weft-offload-")}


def tidy(model: nn.Module, folder: str) -> None:
    """Delete the folder of a model's layers when the model goes, or the process."""
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)


def revive(model: nn.Module, device: torch.device, seed: int) -> None:
    """Give adapters beside layers that are away memory of their own, and the values that they would have had."""
    torch.manual_seed(derive(seed, "adapter"))
    for layer in adapted_layers(model).values():
        for factors in (layer.lora_A, layer.lora_B):
            for name in factors:
                # Twice drawn, as peft does: by the linear layer, and by LoRA.
                factors[name].to_empty(device=device).reset_parameters()
        for name in layer.lora_A:
            layer.reset_lora_parameters(name, True)
