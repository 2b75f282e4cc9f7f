"""Dropout that does not dominate a step on CPUs.

torch draws one random number an element, which takes longer than the product that follows in a LoRA. Here one 64-bit
draw serves four elements, each kept or dropped by 16 bits of its own, so p is met to within 1/65536.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LANES = 4


class FastDropout(nn.Dropout):
    """nn.Dropout with a quarter of the draws on CPUs; elsewhere it is nn.Dropout."""

    def forward(self, input: Tensor) -> Tensor:
        """Zero elements with probability p, and scale the others by 1 / (1 - p)."""
        if not self.training or self.p == 0.0 or input.device.type != "cpu":
            return super().forward(input)
        draws = torch.empty((input.numel() + LANES - 1) // LANES, dtype=torch.int64).random_(-(2**63), None)
        lanes = draws.view(torch.int16)[: input.numel()].view(input.shape)
        # A lane is uniform on -32768 .. 32767, so the fraction below the threshold is p. Comparing and converting truth
        # values takes torch five times as long as clamping and converting integers: 1 from the threshold on, else 0.
        threshold = min(max(round(self.p * 65536) - 32768, -32767), 32767)
        keep = lanes.clamp_(threshold - 1, threshold).sub_(threshold - 1)
        return input * keep.to(input.dtype).mul_(1.0 / (1.0 - self.p))


def use_fast_dropout(model: nn.Module) -> None:
    """Replace every nn.Dropout of a model's LoRA layers by FastDropout."""
    for module in model.modules():
        layers = getattr(module, "lora_dropout", None)
        if not isinstance(layers, nn.ModuleDict):
            continue
        for name, layer in layers.items():
            if type(layer) is nn.Dropout:
                layers[name] = FastDropout(layer.p)
