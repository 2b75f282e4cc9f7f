"""Adaptive servers: FedAdagrad, FedYogi and FedAdam (Reddi et al. 2021, arXiv 2003.00295, algorithm 2)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from weft.core.parts import Algorithm
from weft.core.types import DELTA, ServerState, Tensors, Total

MOMENTUM, SQUARES, TAU = "momentum", "squares", "tau"


@dataclass(frozen=True)
class _FedOpt(Algorithm):
    """w <- w + eta m / (sqrt v + tau), coordinate by coordinate; v starts at tau^2.

    tau and eta are OpenFedLLM's constants by default. They suit changes of 1e-3; where changes are smaller, tau rules
    and the server hardly adapts. tau=auto measures the median of |D| in the first round (of what changed at all) and
    takes eta = 2 tau, so that the first step is about the mean update whatever the learning rate of the clients.
    """

    adds_mean: ClassVar[bool] = False
    remembers_coordinates: ClassVar[bool] = True
    tau: float | Literal["auto"] = field(default=1e-3, metadata={"key": "fedopt_tau"})
    eta: float | None = field(default=None, metadata={"key": "fedopt_eta"})
    beta1: float = field(default=0.9, metadata={"key": "fedopt_beta1"})
    beta2: float = field(default=0.99, metadata={"key": "fedopt_beta2"})

    @abstractmethod
    def direction(self, delta: Tensor, former: Tensor | None) -> Tensor:
        """Return the new m from the mean update and the former m."""

    @abstractmethod
    def squares(self, value: Tensor, direction: Tensor) -> Tensor:
        """Return the new v."""

    def step(self, state: ServerState, total: Total) -> ServerState:
        """Take the adaptive step."""
        delta = total.streams[DELTA]
        tau = self._tau(state, delta)
        eta = self.eta if self.eta is not None else (2 * tau if self.tau == "auto" else 1e-3)
        former, squares = state.memory.get(MOMENTUM, {}), state.memory.get(SQUARES, {})
        params: Tensors = {}
        m: Tensors = {}
        v: Tensors = {}
        for name, value in state.params.items():
            m[name] = self.direction(delta[name], former.get(name))
            v[name] = self.squares(squares.get(name, torch.full_like(value, tau**2)), m[name])
            params[name] = value + eta * m[name] / (v[name].sqrt() + tau)
        memory = {MOMENTUM: m, SQUARES: v, TAU: {TAU: torch.tensor(tau, dtype=torch.float64)}}
        return ServerState(params, memory, state.round + 1)

    def _tau(self, state: ServerState, delta: Tensors) -> float:
        if self.tau != "auto":
            return self.tau
        if TAU in state.memory:
            return float(state.memory[TAU][TAU])
        sizes = torch.cat([value.abs().flatten() for value in delta.values()])
        sizes = sizes[sizes > 0]
        return float(sizes.median()) if len(sizes) else 1e-3


def _smoothed(delta: Tensor, former: Tensor | None, beta: float) -> Tensor:
    """Return the running mean, which begins at the first delta (OpenFedLLM's; the paper begins at zero)."""
    return delta if former is None else beta * former + (1 - beta) * delta


@dataclass(frozen=True)
class FedAdagrad(_FedOpt):
    """m = D, v <- v + D^2."""

    def direction(self, delta: Tensor, former: Tensor | None) -> Tensor:
        """The mean update itself."""
        return delta

    def squares(self, value: Tensor, direction: Tensor) -> Tensor:
        """The sum of squares."""
        return value + direction**2


@dataclass(frozen=True)
class FedYogi(_FedOpt):
    """m <- beta1 m + (1 - beta1) D, v <- v - (1 - beta2) m^2 sign(v - m^2)."""

    def direction(self, delta: Tensor, former: Tensor | None) -> Tensor:
        """The running mean."""
        return _smoothed(delta, former, self.beta1)

    def squares(self, value: Tensor, direction: Tensor) -> Tensor:
        """Towards m^2, by an amount that depends on m^2 only."""
        square = direction**2
        return value - (1 - self.beta2) * square * torch.sign(value - square)


@dataclass(frozen=True)
class FedAdam(_FedOpt):
    """m <- beta1 m + (1 - beta1) D, v <- beta2 v + (1 - beta2) m^2."""

    def direction(self, delta: Tensor, former: Tensor | None) -> Tensor:
        """The running mean."""
        return _smoothed(delta, former, self.beta1)

    def squares(self, value: Tensor, direction: Tensor) -> Tensor:
        """The running mean of squares."""
        return self.beta2 * value + (1 - self.beta2) * direction**2
