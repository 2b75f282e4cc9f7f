"""The optimizers of the local loop, and their state as plain tensors, set before a round and read after it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weft.core.types import Streams, Tensors
from weft.errors import MissingExtra
from weft.training.muon import MuonAndAdamW


@dataclass(frozen=True)
class Optimizer:
    """AdamW (Loshchilov and Hutter 2019), also with moments in 8 bits (Dettmers et al. 2022), SGD, or Muon."""

    kind: str = "adamw"
    """adamw, sgd, muon, adamw_8bit, or paged_adamw_8bit, whose state moves to the CPU where the GPU is full."""
    weight_decay: float = 0.0
    decay_matrices_only: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    muon_momentum: float = 0.95

    @property
    def plain(self) -> bool:
        """Whether its state is AdamW's `exp_avg` and `exp_avg_sq` in float32."""
        return self.kind == "adamw"

    def make(
        self,
        trained: Tensors,
        moments: Streams,
        device: torch.device,
        matrices: Collection[str] = (),
    ) -> torch.optim.Optimizer:
        """Return an optimizer of these parameters on `device`.

        Args:
            trained: parameters by name.
            moments: state to continue from, by kind and parameter; used without copying. Empty: a fresh state.
            device: of the parameters.
            matrices: names of those that Muon steps; AdamW steps the others.

        Raises:
            MissingExtra: bitsandbytes is needed and not installed.
        """
        optimizer = (
            self._muon(trained, matrices, device) if self.kind == "muon" else self._fresh(self._groups(trained), device)
        )
        for name, parameter in trained.items():
            state = {key: values[name] for key, values in moments.items() if name in values}
            if state:
                optimizer.state[parameter] = {key: self._back(key, value, device) for key, value in state.items()}
        return optimizer

    def _groups(self, trained: Tensors) -> list[dict[str, Any]]:
        groups: dict[tuple[bool, type], dict[str, Any]] = {}
        for value in trained.values():
            # Vectors (biases, norms) are excluded where `decay_matrices_only`.
            decays = value.dim() > 1 or not self.decay_matrices_only
            overrides = {} if decays else {"weight_decay": 0.0}
            # torch's optimizers cannot step DTensors and plain tensors in one group.
            groups.setdefault((decays, type(value.data)), {"params": [], **overrides})["params"].append(value)
        return list(groups.values())

    def _fresh(self, groups: list[dict[str, Any]], device: torch.device) -> torch.optim.Optimizer:
        if self.kind == "sgd":
            return torch.optim.SGD(groups, lr=0.0, weight_decay=self.weight_decay)
        if self.plain:
            return self._adamw(groups, device)
        settings: dict[str, Any] = {"betas": self.betas, "eps": self.epsilon, "weight_decay": self.weight_decay}
        try:
            import bitsandbytes
        except ImportError:
            raise MissingExtra("bitsandbytes", "quant", f"The optimizer {self.kind}") from None
        paged = self.kind.startswith("paged") and device.type == "cuda"  # paging needs CUDA's unified memory
        optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(groups, lr=0.0, is_paged=paged, **settings)
        return optimizer

    def _muon(self, trained: Tensors, matrices: Collection[str], device: torch.device) -> torch.optim.Optimizer:
        inside, others = (
            self._groups({name: value for name, value in trained.items() if (name in matrices) == is_inside})
            for is_inside in (True, False)
        )
        # Muon has a decay of its own by default.
        inside = [{"weight_decay": self.weight_decay} | group for group in inside]
        return MuonAndAdamW(inside, others, self.muon_momentum, lambda groups: self._adamw(groups, device))

    def _adamw(self, groups: list[dict[str, Any]], device: torch.device) -> torch.optim.Optimizer:
        settings: dict[str, Any] = {"betas": self.betas, "eps": self.epsilon, "weight_decay": self.weight_decay}
        return torch.optim.AdamW(groups, lr=0.0, fused=_fused(device), **settings)

    def _back(self, key: str, value: Tensor, device: torch.device) -> Any:
        if key == "step" and self.kind.endswith("8bit"):
            return int(value)
        # torch.optim counts steps on the CPU, except where its kernels are fused.
        return value.to("cpu") if key == "step" and not _fused(device) else value


def _fused(device: torch.device) -> bool:
    return device.type in ("cpu", "cuda")


def moments_of(
    optimizer: torch.optim.Optimizer,
    trained: Tensors,
) -> Streams:
    """Return an optimizer's state by kind and parameter, without copying."""
    moments: Streams = {}
    for name, parameter in trained.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is not None:  # SGD without momentum
                moments.setdefault(key, {})[name] = torch.as_tensor(value).detach()
    return moments
