"""The parts that a run is composed of, as base classes whose defaults do nothing.

A part is one small file: a frozen dataclass of hyper-parameters with the methods below. It never sees another part.
Its memory is a value in the server's state or in a client's memory. Traits, which are class attributes, decide what it
can be combined with; `weft.federation.compatibility` compares them once, before any model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from weft.core import tensors
from weft.core.capabilities import EarlyStart, FromSeeds, ModelChoice, PersonalModels, TurnTaking, UpdateBuffer
from weft.core.exchange import Aggregator
from weft.core.local_rule import LocalRule as LocalRule
from weft.core.lowrank import Product
from weft.core.types import DELTA, SCALARS, ServerState, Streams, Task, Tensors, Total, Update


@dataclass(frozen=True)
class Algorithm:
    """The server half of a federated algorithm; this base class is FedAvg (McMahan et al. 2017, arXiv 1602.05629):

    w <- w + sum_i p_i (w_i - w), p_i by the number of the client's rows.

    An algorithm consists of three things. Traits are facts that decide what it may be combined with. The core methods
    are called in every round, for every algorithm, and default to FedAvg's; `cohort` and `check` belong to them, since
    every round has clients and updates. Capabilities are what few algorithms have: a property returns an object of
    `weft.core.capabilities`, or None.
    """

    sums_updates: ClassVar[bool] = True
    """The server needs only weighted means of streams, never one client's."""
    sums_with: ClassVar[str] = ""
    """Values in `fed_args` with which it needs no more; empty: there are none."""
    stateful_clients: ClassVar[bool] = False
    """Clients keep memory between rounds."""
    shares: ClassVar[bool] = True
    """Parameters travel; otherwise a task holds the starting model, which every client has."""
    streams: ClassVar[tuple[str, ...]] = (DELTA,)
    """Streams that every client sends, with the names and shapes of the task's parameters."""
    scalars: ClassVar[tuple[str, ...]] = ()
    """Names of single numbers that every client sends in the stream SCALARS."""
    pools_data: ClassVar[bool] = False
    """All rows are brought together at one place: a baseline, not a federation."""
    adds_mean: ClassVar[bool] = True
    """The step adds the mean delta to the parameters, and nothing else."""
    adds_up: ClassVar[bool] = False
    """The server sums up the clients' streams over rounds, so each client's weight must be the same in all rounds."""
    remembers_coordinates: ClassVar[bool] = False
    """Server or clients keep values per coordinate, which lose their meaning where the basis of the factors changes."""
    uses_moments: ClassVar[bool] = False
    """It reads AdamW's moments, which other optimizers do not have."""
    plain_steps: ClassVar[bool] = True
    """Its local steps are the optimizer's: no hook of its rule reads parameters or gradients between them."""
    batch_loss: ClassVar[bool] = False
    """Its rule adds a term to the loss of every micro-batch (`LocalRule.loss_term`): no loss of single rows."""
    local: ClassVar[str] = "gradients"
    """The kind of local work that it needs: "gradients", "search" (candidates and their losses), "directions" (numbered
    random ones) or "words" (texts and their scores)."""
    one_step: ClassVar[bool] = False
    """A round is one optimizer step, made at the server."""
    partial_work: ClassVar[bool] = True
    """A client that makes fewer steps than planned may take part."""

    @property
    def personal(self) -> PersonalModels | None:
        """Personal models of the clients."""
        return None

    @property
    def rebuild(self) -> FromSeeds | None:
        """Parameters that do not travel, but are rebuilt."""
        return None

    @property
    def turns(self) -> TurnTaking | None:
        """Parts of the parameters that travel in turn."""
        return None

    @property
    def early(self) -> EarlyStart | None:
        """Training that may begin before its task has come."""
        return None

    @property
    def buffer(self) -> UpdateBuffer | None:
        """An asynchronous server."""
        return None

    @property
    def choice(self) -> ModelChoice | None:
        """Several models, of which a client chooses one."""
        return None

    def cohort(self, sampled: Sequence[int], population: int) -> Sequence[int]:
        """Return the indexes of the round's clients, given the sampled ones."""
        return sampled

    def init(self, params: Tensors) -> ServerState:
        """Return the state before the first round."""
        return ServerState(params)

    def task(self, state: ServerState, client: str, version: int) -> Task:
        """Return the task of a client that begins at `version`, which is the state's round unless there is a buffer."""
        return Task(client, state.round, version, state.params)

    def task_like(self, params: Tensors) -> Streams:
        """Return tensors of the names and shapes of the streams that a task may hold beside its parameters.

        A client refuses a task with others; some may be absent, such as those of later rounds.
        """
        return {}

    def like(self, params: Tensors) -> Streams:
        """Return tensors of the names, shapes and dtypes of a client's streams, given its parameters."""
        like = dict.fromkeys(self.streams, params)
        if self.scalars:
            like[SCALARS] = {name: torch.zeros(()) for name in self.scalars}
        return like

    def check(self, update: Update) -> None:
        """Raise ClientFailed for an update of the right shapes whose content is invalid."""

    def rule(self, task: Task, memory: Streams) -> LocalRule:
        """Return the client half for one task, given the rule's memory at the client."""
        return LocalRule()

    def combine(self, updates: Iterable[Update], aggregator: Aggregator) -> Total:
        """Combine the cohort's updates."""
        return aggregator.combine(updates)

    def step(self, state: ServerState, total: Total) -> ServerState:
        """Return the state after the round; the cohort in `total` is not empty."""
        params = tensors.add(state.params, total.streams[DELTA])
        return ServerState(params, state.memory, state.round + 1)


@dataclass(frozen=True)
class LoraAggregation:
    """How the low-rank factors of a cohort become one; this base class averages them (FedIT).

    A factor's kind is "A" (r, k), "B" (d, r), "R" (r, r, between them) or "" for any other parameter.
    """

    single_updates: ClassVar[bool] = False
    """The server multiplies each client's factors, so it needs single updates, not their sum."""
    keeps_basis: ClassVar[bool] = True
    """The basis of the factors is the same in all rounds, so values per coordinate keep their meaning."""
    any_rank: ClassVar[bool] = True
    """Clients may have smaller ranks: their factors are the leading ones."""
    alternates: ClassVar[bool] = False
    """The trained kinds depend on the round."""
    plain: ClassVar[bool] = False
    """Treats factors like any parameters, so it suits full training and prompts too."""
    shape: ClassVar[str] = ""
    """What the model has beside a LoRA: "middle" (an R), "twin" (a personal adapter), "side" (frozen factors)."""
    frozen: ClassVar[tuple[str, ...]] = ()
    """Kinds of factors that are never trained."""
    personal_kinds: ClassVar[tuple[str, ...]] = ()
    """Kinds of factors that are trained and never leave the client."""

    def trains(self, kind: str, round: int) -> bool:
        """Say whether factors of a kind are trained, and travel, in a round."""
        return True

    def combine(self, total: Total, state: ServerState, products: Mapping[str, Product]) -> Total:
        """Return the total that the step adds, and the new side adapter (SIDE) where there is one.

        Args:
            total: the cohort's mean delta of every factor.
            state: before the round; `state.memory[SIDE]` is the side adapter so far.
            products: the cohort's mean of s B_i A_i by module, a (d, k) matrix in factors; empty unless
                `single_updates`.
        """
        return total
