"""The parts that a run is composed of, as base classes whose defaults do nothing.

A part is one small file: a frozen dataclass of hyper-parameters with the methods below. It never sees another
part. What it remembers is a value in the server's state or in a client's memory. What it cannot be combined with is
said by a trait, a class attribute that `weft.federation.compatibility` compares once, before any model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from weft.core import tensors
from weft.core.capabilities import FromSeeds, ModelChoice, PersonalModels, TurnTaking, UpdateBuffer
from weft.core.exchange import Aggregator
from weft.core.local_rule import LocalRule as LocalRule
from weft.core.lowrank import Product
from weft.core.types import DELTA, SCALARS, ServerState, Streams, Task, Tensors, Total, Update


@dataclass(frozen=True)
class Algorithm:
    """The server half of a federated algorithm; this base class is FedAvg (McMahan et al. 2017, arXiv 1602.05629):

    w <- w + sum_i p_i (w_i - w), p_i by the number of the client's rows.

    Three things say what an algorithm is. Traits are facts that decide what it may be combined with. The core is what
    every round asks every algorithm for, with FedAvg's answer as the default: `cohort` and `check` belong to it, for a
    round always has clients and always has updates to look at, so there is no algorithm for which they are absent.
    Capabilities are what few have; a property returns an object of `weft.core.capabilities`, or None.
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

    @property
    def personal(self) -> PersonalModels | None:
        """Models of the clients' own."""
        return None

    @property
    def rebuild(self) -> FromSeeds | None:
        """Parameters that do not travel, but are made anew."""
        return None

    @property
    def turns(self) -> TurnTaking | None:
        """Parts of the parameters that travel in turn."""
        return None

    @property
    def buffer(self) -> UpdateBuffer | None:
        """A server that does not wait for a cohort."""
        return None

    @property
    def choice(self) -> ModelChoice | None:
        """Several models, of which a client takes one."""
        return None

    def cohort(self, sampled: Sequence[int], population: int) -> Sequence[int]:
        """Return the indexes of the round's clients, given those that were sampled."""
        return sampled

    def init(self, params: Tensors) -> ServerState:
        """Return the state before the first round."""
        return ServerState(params)

    def task(self, state: ServerState, client: str, version: int) -> Task:
        """Return what a client is sent that begins at `version`, the state's round unless there is a buffer."""
        return Task(client, state.round, version, state.params)

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
