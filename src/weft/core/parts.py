"""The parts that a run is composed of, as base classes whose defaults do nothing.

A part is one small file: a frozen dataclass of hyper-parameters with the methods below. It never sees another
part. What it remembers is a value in the server's state or in a client's memory. What it cannot be combined with is
said by a trait, a class attribute that `weft.federation.plan` compares once, before any model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from torch import Tensor, nn

from weft.core import tensors
from weft.core.types import (
    DELTA,
    Finished,
    Message,
    Metrics,
    Reply,
    ServerState,
    Streams,
    Task,
    Tensors,
    Total,
    Update,
)

if TYPE_CHECKING:
    import numpy as np

Exchange = Callable[[Sequence[Message]], Iterable[Reply]]
"""Carry messages to the clients and yield what comes back, in any order, failures included."""


class LocalRule:
    """The client half of an algorithm: hooks into the local loop. The defaults are plain local training."""

    def begin(self, params: Tensors) -> Tensors:
        """Return what the client starts from, given the task's parameters."""
        return params

    def prepare(self, model: nn.Module) -> None:
        """Change what the model trains before the first step."""

    def loss_term(self, model: nn.Module, batch: Any) -> Tensor | float:
        """Return what is added to the mean loss of every micro-batch."""
        return 0.0

    def adjust_grads(self, params: Tensors) -> None:
        """Change `.grad` of the parameters in place, after clipping and before the optimizer's step."""

    def after_step(self, params: Tensors, lr: float) -> None:
        """Change the parameters in place after the optimizer's step at learning rate `lr`."""

    def finish(self, start: Tensors, end: Tensors, steps: int, lr: float) -> Finished:
        """Return what travels and what stays.

        Args:
            start: the parameters before the first step.
            end: the parameters after the last.
            steps: how many optimizer steps were made.
            lr: the sum of the learning rates of these steps.
        """
        return Finished({DELTA: tensors.subtract(end, start)})


@dataclass(frozen=True)
class Algorithm:
    """The server half of a federated algorithm; this base class is FedAvg.

    FedAvg (McMahan et al. 2017, arXiv 1602.05629, algorithm 1): w <- w + sum_i p_i (w_i - w), p_i by the number of
    the client's rows.
    """

    sums_updates: ClassVar[bool] = True
    """The server needs only weighted means of streams, never one client's."""
    stateful_clients: ClassVar[bool] = False
    """Clients remember something between rounds."""
    shares: ClassVar[bool] = True
    """Parameters travel. Without it a task's parameters are the starting model that everybody has."""
    streams: ClassVar[tuple[str, ...]] = (DELTA,)
    """What every client sends, each stream with the names and shapes of the task's parameters."""
    personal: ClassVar[bool] = False
    """Every client ends with a model of its own."""
    pools_data: ClassVar[bool] = False
    """All rows are brought together at one place: a baseline, not a federation."""

    def cohort(self, sampled: Sequence[int], population: int) -> Sequence[int]:
        """Return the indexes of the round's clients, given those that were sampled."""
        return sampled

    def init(self, params: Tensors) -> ServerState:
        """Return the state before the first round."""
        return ServerState(params)

    def task(self, state: ServerState, client: str) -> Task:
        """Return what a client is sent."""
        return Task(client, state.round, state.round, state.params)

    def rule(self, task: Task, memory: Streams) -> LocalRule:
        """Return the client's half for one task, given what the client remembers."""
        return LocalRule()

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


class Aggregator:
    """How the updates of a cohort become one."""

    additive: ClassVar[bool] = False
    """A weighted mean, which can be streamed and computed under a secure sum."""

    def combine(self, updates: Iterable[Update]) -> Total:
        """Combine the updates, each of positive weight, all of the same streams; no update gives an empty total."""
        raise TypeError(f"{type(self).__name__} must define combine")


class Budget(NamedTuple):
    """What differential privacy has been spent: (epsilon, delta)."""

    epsilon: float
    delta: float


class Privacy:
    """What bounds and hides a client's part in the result. The defaults protect nothing."""

    bounded: ClassVar[bool] = False
    """Every update is clipped to a stated norm, and weights and metrics must reveal nothing."""

    def on_client(self, update: Update) -> Update:
        """Clip, and add local noise."""
        return update

    def on_server(self, total: Total) -> Total:
        """Add central noise."""
        return total

    def spent(self, rounds: int) -> Budget | None:
        """Return the budget spent after a number of rounds, or None where nothing is promised."""
        return None


class Codec:
    """How an update is compressed. The defaults change nothing."""

    dense: ClassVar[bool] = True
    """Encoded updates can be added up as they are."""

    def encode(self, update: Update, memory: Streams) -> tuple[Update, Streams]:
        """Return the encoded update and what the client remembers for the next (error feedback)."""
        return update, memory

    def decode(self, update: Update) -> Update:
        """Undo `encode` up to its loss."""
        return update


class Protection:
    """How single updates are hidden from the server. The defaults hide nothing."""

    sum_only: ClassVar[bool] = False
    """The server sees sums of updates, never one."""

    def seal(self, update: Update) -> Update:
        """Mask or encrypt an update at the client."""
        return update

    def collect(self, exchange: Exchange, messages: Sequence[Message]) -> Iterable[Reply]:
        """Exchange the messages, in as many phases as the protection needs, and yield opened replies."""
        return exchange(messages)


class Loss(NamedTuple):
    """A loss summed over a number of targets."""

    total: Tensor
    targets: int


class Objective:
    """The training loss: what rows become, and what is minimised."""

    text_only: ClassVar[bool] = False
    """Rows are plain text, not conversations."""

    def collate(self, rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> Any:
        """Return a batch of rows, each (token ids, which of them are learnt)."""
        raise TypeError(f"{type(self).__name__} must define collate")

    def loss(self, model: Any, batch: Any) -> Loss:
        """Return the loss of a batch, summed over its targets."""
        raise TypeError(f"{type(self).__name__} must define loss")


class Evaluator:
    """What measures a model on a client's held-out rows."""

    def evaluate(self, model: Any, rows: Any) -> Metrics:
        """Return counts and sums, which can be added up over clients."""
        raise TypeError(f"{type(self).__name__} must define evaluate")


class Runtime:
    """What carries messages to clients, wherever they are. It may call nothing on a client but `answer`."""

    def exchange(self, messages: Sequence[Message]) -> Iterable[Reply]:
        """Yield one reply a message, in any order; what did not come back is a Failure."""
        raise TypeError(f"{type(self).__name__} must define exchange")

    def close(self) -> None:
        """Let go of what the runtime holds."""
