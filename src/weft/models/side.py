"""Additions to the LoRA of a peft model: frozen side factors, a middle matrix, a gated personal adapter.

All are hooks, so that they work on every kind of base layer: Linear, Conv1D, quantised.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from weft.core.lowrank import SIDE_A, SIDE_B
from weft.core.model_types import AdaptedModel, AdapterConfig, LoraLayer
from weft.core.types import Tensors


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """Return the modules of a peft model that have a LoRA, by name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A") and module.lora_A}


class Side:
    """Frozen factors beside every LoRA layer: y + S_B (S_A x). The server changes them between rounds."""

    def __init__(self, model: nn.Module) -> None:
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}
        self.values: Tensors = {}
        self._device = next(model.parameters()).device
        for name, layer in lora_layers(model).items():
            layer.get_base_layer().register_forward_hook(self._hook(name))

    def load(self, values: Tensors) -> None:
        """Set the factors, by the names `MODULE.side_A` (R, k) and `MODULE.side_B` (d, R)."""
        if values is self.values:  # the same round: nothing to copy
            return
        self.values = values
        self._factors = {
            name.removesuffix(SIDE_A): (
                value.to(self._device),
                values[name.removesuffix(SIDE_A) + SIDE_B].to(self._device),
            )
            for name, value in values.items()
            if name.endswith(SIDE_A)
        }

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            factors = self._factors.get(name)
            if factors is None:
                return output
            a, b = (factor.to(args[0].dtype) for factor in factors)
            return output + nn.functional.linear(nn.functional.linear(args[0], a), b).to(output.dtype)

        return add


def add_middle(model: AdaptedModel) -> None:
    """Put a trainable R (r, r), initially zero, between the frozen factors of every LoRA: dW = s B R A.

    A and B become the leading singular vectors of the layer's own weight, B times its singular values (LoRA-XS, Balazy
    et al. 2024, arXiv 2405.17604, section 3).
    """
    for layer in lora_layers(model).values():
        down, up = layer.lora_A["default"], layer.lora_B["default"]
        rank = down.weight.shape[0]
        if not down.weight.is_meta:
            u, s, v = _leading(_weight(layer), rank)
            with torch.no_grad():
                down.weight.copy_(v.T)
                up.weight.copy_(u * s)
        middle = nn.Linear(rank, rank, bias=False, device=down.weight.device, dtype=down.weight.dtype)
        nn.init.zeros_(middle.weight)
        layer.lora_R = nn.ModuleDict({"default": middle})
        down.weight.requires_grad_(False)
        up.weight.requires_grad_(False)
        down.register_forward_hook(lambda module, args, output, middle=middle: middle(output))


class Gate(nn.ParameterDict):
    """A factor of what a layer returns, as a layer that is called: gradients of single rows are noted at those."""

    __call__ = nn.Module.__call__  # its own refuses calls

    def forward(self, output: Tensor) -> Tensor:
        """Return the output times the gate."""
        (gate,) = self.values()
        product: Tensor = output * gate
        return product


def add_twin(model: AdaptedModel, config: AdapterConfig, adapter: str) -> None:
    """Add a second LoRA to every LoRA layer, with a trainable scalar gate that is initially 1."""
    model.add_adapter(adapter, config)
    model.base_model.set_adapter(["default", adapter])
    for layer in lora_layers(model).values():
        up = layer.lora_B[adapter]
        gate = Gate({adapter: nn.Parameter(torch.ones((), device=up.weight.device, dtype=up.weight.dtype))})
        layer.lora_gate = gate
        up.register_forward_hook(lambda module, args, output, gate=gate: gate(output))


def _weight(layer: LoraLayer) -> Tensor:
    """Return the weight (d, k) of a LoRA layer's base in float32, dequantised and transposed where necessary."""
    base = layer.get_base_layer()
    weight: Tensor = base.weight
    if hasattr(weight, "quant_state") or hasattr(weight, "CB"):
        from peft.utils.integrations import dequantize_module_weight

        weight = dequantize_module_weight(base)
    weight = torch.as_tensor(weight.detach()).float()
    return weight.T if getattr(layer, "fan_in_fan_out", False) else weight


def _leading(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the leading U (d, rank), S (rank,) and V (k, rank) of a weight (d, k), padded with zeros."""
    have = min(rank, *weight.shape)
    # Above 512 a randomised SVD is much cheaper; it oversamples by 8 directions.
    if min(weight.shape) <= 512:
        u, s, vt = torch.linalg.svd(weight, full_matrices=False)
        u, s, v = u[:, :have], s[:have], vt[:have].T
    else:
        u, s, v = torch.svd_lowrank(weight, q=min(have + 8, *weight.shape), niter=4)
        u, s, v = u[:, :have], s[:have], v[:, :have]
    fill = (0, rank - have)
    return nn.functional.pad(u, fill), nn.functional.pad(s, fill), nn.functional.pad(v, fill)
