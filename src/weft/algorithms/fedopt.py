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
    """w <- w + eta m / (sqrt v + tau), coordinate by coordinate.

    form: whose definitions of m and v. D is the cohort's mean update.
        openfedllm (default)   m begins at the first D, v at tau^2, and v goes by m^2, which is smoother than D^2
        paper                  m begins at 0, v at tau^2, and v goes by D^2 (algorithm 2; v_-1 is the least allowed)
        flower                 as paper, but v begins at 0; FedAdam's eta is corrected as Adam's is, by a count that
                               is one ahead: sqrt(1 - beta2^(r+1)) / (1 - beta1^(r+1)) in round r = 1, 2, ...
    FedAdagrad has m = D in all three (the paper's choice, beta1 = 0), so openfedllm and paper are one.

    tau and eta are OpenFedLLM's constants by default. They suit changes of about 1e-3; where changes are smaller, tau
    dominates sqrt v and the server hardly adapts. tau=auto takes the median of the nonzero |D| of the first round, and
    eta = 2 tau, so that the first step is about the mean update for any learning rate of the clients.
    """

    adds_mean: ClassVar[bool] = False
    remembers_coordinates: ClassVar[bool] = True
    tau: float | Literal["auto"] = field(default=1e-3, metadata={"key": "fedopt_tau"})
    eta: float | None = field(default=None, metadata={"key": "fedopt_eta"})
    beta1: float = field(default=0.9, metadata={"key": "fedopt_beta1"})
    beta2: float = field(default=0.99, metadata={"key": "fedopt_beta2"})
    form: Literal["openfedllm", "paper", "flower"] = "openfedllm"

    @abstractmethod
    def squares(self, value: Tensor, square: Tensor) -> Tensor:
        """Return the new v from the previous v (`value`) and the squared m or D (`square`), elementwise."""

    def direction(self, delta: Tensor, previous: Tensor | None) -> Tensor:
        """Return the new m from the mean update and the previous m: the running mean."""
        if previous is None:
            return delta if self.form == "openfedllm" else (1 - self.beta1) * delta
        return self.beta1 * previous + (1 - self.beta1) * delta

    def correction(self, round: int) -> float:
        """Return the factor of eta in a round, counted from 0."""
        return 1.0

    def step(self, state: ServerState, total: Total) -> ServerState:
        """Take the adaptive step."""
        delta = total.streams[DELTA]
        tau = self._tau(state, delta)
        eta = self.eta if self.eta is not None else (2 * tau if self.tau == "auto" else 1e-3)
        eta *= self.correction(state.round)
        momenta, squares = state.memory.get(MOMENTUM, {}), state.memory.get(SQUARES, {})
        least = 0.0 if self.form == "flower" else tau**2
        params: Tensors = {}
        m: Tensors = {}
        v: Tensors = {}
        for name, value in state.params.items():
            m[name] = self.direction(delta[name], momenta.get(name))
            by = m[name] if self.form == "openfedllm" else delta[name]
            v[name] = self.squares(squares.get(name, torch.full_like(value, least)), by**2)
            params[name] = value + eta * m[name] / (v[name].sqrt() + tau)
        memory = {MOMENTUM: m, SQUARES: v, TAU: {TAU: torch.tensor(tau, dtype=torch.float64)}}
        return ServerState(params, memory, state.round + 1)

    def _tau(self, state: ServerState, delta: Tensors) -> float:
        if self.tau != "auto":
            return self.tau
        if TAU in state.memory:
            return float(state.memory[TAU][TAU])
        sizes = torch.cat([value.abs().flatten() for value in delta.values()])
        # Parameters that were not trained have changes of exactly 0, which would pull the median there.
        sizes = sizes[sizes > 0]
        return float(sizes.median()) if len(sizes) else 1e-3


@dataclass(frozen=True)
class FedAdagrad(_FedOpt):
    """m = D, v <- v + D^2."""

    def direction(self, delta: Tensor, previous: Tensor | None) -> Tensor:
        """Return the mean update itself."""
        return delta

    def squares(self, value: Tensor, square: Tensor) -> Tensor:
        """Return the sum of squares."""
        return value + square


@dataclass(frozen=True)
class FedYogi(_FedOpt):
    """m <- beta1 m + (1 - beta1) D, v <- v - (1 - beta2) s sign(v - s), s = m^2 or D^2 by the form."""

    def squares(self, value: Tensor, square: Tensor) -> Tensor:
        """Move v towards the square, by an amount that depends on the square only."""
        return value - (1 - self.beta2) * square * torch.sign(value - square)


@dataclass(frozen=True)
class FedAdam(_FedOpt):
    """m <- beta1 m + (1 - beta1) D, v <- beta2 v + (1 - beta2) s, s = m^2 or D^2 by the form."""

    def correction(self, round: int) -> float:
        """Return Flower's bias correction for form=flower."""
        if self.form != "flower":
            return 1.0
        count = float(round + 2)
        return float((1 - self.beta2**count) ** 0.5 / (1 - self.beta1**count))

    def squares(self, value: Tensor, square: Tensor) -> Tensor:
        """Return the running mean of squares."""
        return self.beta2 * value + (1 - self.beta2) * square
