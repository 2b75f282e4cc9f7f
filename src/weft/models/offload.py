"""A frozen base whose layers lie on the CPU or on disk, and are on the device while they compute (accelerate)."""

from __future__ import annotations

import shutil
import tempfile
import weakref

import torch
from torch import nn

from weft.config import RunConfig
from weft.core.seeds import derive
from weft.errors import ConfigError
from weft.models.side import lora_layers
from weft.models.targets import layers_of


def offload_arguments(config: RunConfig, shell: nn.Module, device: torch.device) -> dict[str, object]:
    """Return the arguments of `from_pretrained` that offload the layers of a model.

    Args:
        config: names the place of the layers (model_offload).
        shell: the model on the meta device.
        device: of embeddings, norms and the output layer.

    Raises:
        ConfigError: the layers would be offloaded to the CPU from the CPU.
    """
    storage = config.model_offload
    if storage == "cpu" and device.type == "cpu":
        raise ConfigError("The model is on the CPU already, so no layer can wait there: write --model_offload disk.")
    place, layers = layers_of(shell)
    places: dict[str, str] = {f"{place}.{number}": storage for number in range(len(layers))}
    for name, module in shell.named_modules():
        leaf = not any(True for _ in module.children())
        if leaf and name and not name.startswith(f"{place}."):
            places[name] = str(device)
    return {"device_map": places, "offload_folder": tempfile.mkdtemp(prefix="weft-offload-")}


def delete_on_exit(model: nn.Module, folder: str) -> None:
    """Delete the folder of offloaded layers when the model is collected, or the process ends."""
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)


def reset_lora(model: nn.Module, device: torch.device, seed: int) -> None:
    """Allocate adapters beside offloaded layers on the device, and give them the values of a run without offloading."""
    torch.manual_seed(derive(seed, "adapter"))
    for layer in lora_layers(model).values():
        for factors in (layer.lora_A, layer.lora_B):
            for name in factors:
                # peft draws twice, for nn.Linear and for LoRA; both draws advance the generator.
                factors[name].to_empty(device=device).reset_parameters()
        for name in layer.lora_A:
            layer.reset_lora_parameters(name, True)
