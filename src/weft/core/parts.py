"""The parts that a run is composed of, as base classes whose defaults do nothing.

A part is one small file: a frozen dataclass of hyper-parameters with the methods below. It never sees another
part. What it remembers is a value in the server's state or in a client's memory. What it cannot be combined with is
said by a trait, a class attribute that `weft.federation.plan` compares once, before any model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from weft.core import tensors
from weft.core.exchange import Aggregator
from weft.core.lowrank import Product
from weft.core.types import (
    DELTA,
    SCALARS,
    Finished,
    LocalWork,
    ServerState,
    Streams,
    Task,
    Tensors,
    Total,
    Update,
)

if TYPE_CHECKING:
    pass


class LocalRule:
    """The client half of an algorithm: hooks into the local loop. The defaults are plain local training.

    A rule sees the parameters that are shared; what a client keeps to itself is trained beside them, plainly.
    """

    wants_moments: bool = False
    """Tell `finish` the optimizer's moments."""
    clips: bool = True
    """Gradients are clipped at the client."""

    def begin(self, params: Tensors) -> Tensors:
        """Return what the client starts from, given the task's parameters."""
        return params

    def moments(self) -> Streams:
        """Return AdamW's moments to start with (`exp_avg`, `exp_avg_sq`, `step`), or nothing for fresh ones."""
        return {}

    def search(self) -> Tensors:
        """Return how wide a search without gradients begins (`sigma` (), `variance` (d,)), or nothing for a sphere."""
        return {}

    def prepare(self, params: Tensors) -> None:
        """Look at the parameters that are trained in this round, on their device, before the first step.

        The hooks below see the same ones.
        """

    def loss_term(self, model: nn.Module, batch: Any) -> Tensor | float:
        """Return what is added to the mean loss of every micro-batch."""
        return 0.0

    def adjust_grads(self, params: Tensors) -> None:
        """Change `.grad` of the parameters in place, before clipping and the optimizer's step."""

    def lr_factor(self, step: int) -> float:
        """Return what the optimizer's step is multiplied by, but not its weight decay; `step` counts from 0.

        With 0 the optimizer changes nothing at all.
        """
        return 1.0

    def after_step(self, params: Tensors, lr: float) -> None:
        """Change the parameters in place after the optimizer's step; `lr` is the schedule's learning rate."""

    def finish(self, work: LocalWork) -> Finished:
        """Return what travels and what stays."""
        return Finished({DELTA: tensors.subtract(work.end, work.start)})


@dataclass(frozen=True)
class Algorithm:
    """The server half of a federated algorithm; this base class is FedAvg (McMahan et al. 2017, arXiv 1602.05629):

    w <- w + sum_i p_i (w_i - w), p_i by the number of the client's rows.
    """

    sums_updates: ClassVar[bool] = True
    """The server needs only weighted means of streams, never one client's."""
    stateful_clients: ClassVar[bool] = False
    """Clients remember something between rounds."""
    shares: ClassVar[bool] = True
    """Parameters travel; otherwise a task's are the starting model that everybody has."""
    streams: ClassVar[tuple[str, ...]] = (DELTA,)
    """What every client sends with the names and shapes of the task's parameters."""
    scalars: ClassVar[tuple[str, ...]] = ()
    """The names of single numbers that every client sends beside them, in the stream SCALARS."""
    personal: ClassVar[bool] = False
    """Every client ends with a model of its own."""
    one_model: ClassVar[bool] = True
    """The server's parameters are one model; otherwise a client chooses from several."""
    pools_data: ClassVar[bool] = False
    """All rows are brought together at one place: a baseline, not a federation."""
    adds_mean: ClassVar[bool] = True
    """The step adds the mean delta to the parameters, and nothing else."""
    adds_up: ClassVar[bool] = False
    """The server adds up over rounds what clients send, which takes a weight of each client that stays the same."""
    remembers_coordinates: ClassVar[bool] = False
    """Server or clients remember values for each parameter, which lose their meaning where its basis is changed."""
    uses_moments: ClassVar[bool] = False
    """It works with AdamW's moments themselves, which other optimizers do not have."""
    plain_steps: ClassVar[bool] = True
    """Its local steps are the optimizer's: no hook of its rule looks at parameters or gradients between them."""
    local: ClassVar[str] = "gradients"
    """The local work that it is made for: "gradients", "search" (candidates and their losses), "directions" (numbered
    ones, from which parameters are made anew) or "words" (texts and their scores)."""
    one_step: ClassVar[bool] = False
    """A client and round is a single step, made at the server."""
    partial_work: ClassVar[bool] = True
    """A client that made fewer steps than asked may take part with what it has."""
    asynchronous: ClassVar[bool] = False
    """The server does not wait for a cohort: a client may have begun at an earlier version."""

    @property
    def period(self) -> int:
        """Rounds after which the same parameters travel again; beyond 1, a client keeps the rest in the meantime."""
        return 1

    def sent_back(self, params: Tensors, round: int) -> Tensors:
        """Return which of the trained parameters a client sends back in a round."""
        return params

    @property
    def buffer(self) -> int:
        """Updates that make a step of an asynchronous server; 0: as many as clients train at a time."""
        return 0

    def cohort(self, sampled: Sequence[int], population: int) -> Sequence[int]:
        """Return the indexes of the round's clients, given those that were sampled."""
        return sampled

    def init(self, params: Tensors) -> ServerState:
        """Return the state before the first round."""
        return ServerState(params)

    def task(self, state: ServerState, client: str, version: int) -> Task:
        """Return what a client is sent that begins at `version`, which is the state's round unless asynchronous."""
        return Task(client, state.round, version, state.params)

    def sent(self, state: ServerState) -> Tensors:
        """Return the parameters that are sent wherever they are to be used, not trained."""
        return state.params

    def rebuilt(self, params: Tensors, extra: Streams, start: Tensors) -> Tensors:
        """Return the parameters that a message stands for, given what came with it and what the client began with."""
        return params

    def beside(self, state: ServerState) -> Streams:
        """Return what is sent along wherever the parameters are sent to be used, not trained."""
        return {}

    def choose(self, task: Task, loss: Callable[[Tensors], float]) -> tuple[Task, Streams]:
        """Return the task as the client takes it, and what it says of its choice.

        Args:
            task: as it was sent.
            loss: of parameters on some of the client's own rows.
        """
        return task, {}

    def like(self, params: Tensors) -> Streams:
        """Return tensors of the names, shapes and dtypes that a client's streams must have, given its parameters."""
        like = dict.fromkeys(self.streams, params)
        if self.scalars:
            like[SCALARS] = {name: torch.zeros(()) for name in self.scalars}
        return like

    def check(self, update: Update) -> None:
        """Refuse an update of the right shapes whose content cannot be: raise ClientFailed."""

    def rule(self, task: Task, memory: Streams) -> LocalRule:
        """Return the client's half for one task, given what the client remembers."""
        return LocalRule()

    def own_rule(self, task: Task, memory: Streams) -> LocalRule | None:
        """Return the rule of a second pass of local training, for a model that stays with the client, or None."""
        return None

    def own_params(self, params: Tensors, memory: Streams) -> Tensors:
        """Return what a client uses for itself, given the shared parameters and its memory."""
        return params

    def combine(self, updates: Iterable[Update], aggregator: Aggregator) -> Total:
        """Bring the cohort's updates together."""
        return aggregator.combine(updates)

    def step(self, state: ServerState, total: Total) -> ServerState:
        """Return the state after the round; the cohort in `total` is not empty."""
        params = tensors.add(state.params, total.streams[DELTA])
        return ServerState(params, state.memory, state.round + 1)


@dataclass(frozen=True)
class LoraAggregation:
    """How the low-rank factors of a cohort become one; this base class averages them (FedIT).

    A factor's kind is "A" (r, k), "B" (d, r), "R" (r, r, between them) or "" for what is no factor.
    """

    single_updates: ClassVar[bool] = False
    """The server multiplies each client's factors, so a sum of updates is not enough."""
    keeps_basis: ClassVar[bool] = True
    """A coordinate of the factors means the same in the next round."""
    any_rank: ClassVar[bool] = True
    """Clients may have smaller ranks: their factors are the leading ones."""
    alternates: ClassVar[bool] = False
    """What is trained depends on the round."""
    plain: ClassVar[bool] = False
    """Treats factors as any parameters, so that it fits training of any kind."""
    shape: ClassVar[str] = ""
    """What the model needs beside a LoRA: "middle" (an R), "twin" (a personal adapter), "side" (frozen factors)."""
    frozen: ClassVar[tuple[str, ...]] = ()
    """Kinds of factors that are never trained."""
    kept: ClassVar[tuple[str, ...]] = ()
    """Kinds of factors that are trained and stay with the client."""

    def trained(self, kind: str, round: int) -> bool:
        """Say whether factors of a kind are trained, and travel, in a round."""
        return True

    def combine(self, total: Total, state: ServerState, products: Mapping[str, Product]) -> Total:
        """Return what the step is to add, and the new side adapter (SIDE) where there is one.

        Args:
            total: the cohort's mean delta of every factor.
            state: before the round; `state.memory[SIDE]` is the side adapter so far.
            products: the cohort's mean product s B_i A_i of every module, (d, k) in factors.
        """
        return total
