"""What few algorithms can do beyond the core of `weft.core.parts.Algorithm`: one small class for each capability.

An algorithm has a property for each, which returns an object of the class, or None: then nothing of it happens. So a
capability may depend on hyper-parameters (DiLoCo takes turns with two fragments, not with one), whoever wraps an
algorithm hands it on as it is, and what follows from having one (a server that does not wait, clients that end with
models of their own) is read off its presence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from weft.core.local_rule import LocalRule
from weft.core.types import ServerState, Streams, Task, Tensors


class PersonalModels(ABC):
    """Every client ends with a model of its own, beside the shared one or instead of it (Ditto, local)."""

    @abstractmethod
    def params(self, shared: Tensors, memory: Streams) -> Tensors:
        """Return what a client uses for itself, given the shared parameters and what its rules remember."""

    def rule(self, task: Task, memory: Streams) -> LocalRule | None:
        """Return the rule of a second pass of local training, for the client's own model, or None for no such pass."""
        return None


class FromSeeds(ABC):
    """No parameters travel: whoever has what the run began with makes them anew (FedKSeed)."""

    @abstractmethod
    def recipe(self, state: ServerState) -> Streams:
        """Return what is sent instead of parameters."""

    @abstractmethod
    def params(self, recipe: Streams, start: Tensors) -> Tensors:
        """Return the parameters that a recipe stands for.

        Args:
            recipe: what was sent.
            start: the parameters that the run began with.

        Raises:
            ClientFailed: these are not the ones that the recipe is counted from.
        """


@dataclass(frozen=True)
class TurnTaking(ABC):
    """Parts of the parameters travel in turn; a client keeps the rest in the meantime (DiLoCo's fragments)."""

    period: int
    """Rounds after which the same parameters travel again, 2 or more."""

    @abstractmethod
    def part(self, params: Tensors, round: int) -> Tensors:
        """Return which of the trained parameters a client sends back in a round."""


@dataclass(frozen=True)
class UpdateBuffer:
    """The server waits for no cohort, but steps whenever its buffer is full: clients began at earlier versions too."""

    size: int = 0
    """Updates that make a step; 0: as many as clients train at a time."""


class ModelChoice(ABC):
    """The server has several models, of which each client takes one (clusters)."""

    @abstractmethod
    def others(self, state: ServerState) -> Streams:
        """Return the other models, which are sent beside the first wherever it is sent to be used, not trained."""

    @abstractmethod
    def choose(self, task: Task, loss: Callable[[Tensors], float]) -> tuple[Task, Streams]:
        """Return the task as the client takes it, and what it says of its choice.

        Args:
            task: as it was sent.
            loss: of parameters on some of the client's own rows.
        """
