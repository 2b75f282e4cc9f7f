"""Capabilities that few algorithms have beyond the core of `weft.core.parts.Algorithm`: one small class for each.

An algorithm has a property for each, which returns an object of the class, or None where it lacks the capability. So a
capability may depend on hyper-parameters (DiLoCo takes turns with two fragments, not with one), a wrapper passes it on
unchanged, and the rest of Weft asks for its presence, never for the name of an algorithm.
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
        """Return the client's personal parameters, given the shared ones and the memory of its rules."""

    def rule(self, task: Task, memory: Streams) -> LocalRule | None:
        """Return the rule of a second pass of local training, for the client's own model, or None for no such pass."""
        return None


class FromSeeds(ABC):
    """No parameters travel: every party rebuilds them from the run's starting parameters (FedKSeed)."""

    @abstractmethod
    def recipe(self, state: ServerState) -> Streams:
        """Return the streams that are sent instead of parameters."""

    @abstractmethod
    def params(self, recipe: Streams, start: Tensors) -> Tensors:
        """Return the parameters that a recipe stands for.

        Args:
            recipe: streams from `recipe`.
            start: the starting parameters of the run.

        Raises:
            ClientFailed: the recipe refers to other starting parameters.
        """


@dataclass(frozen=True)
class TurnTaking(ABC):
    """Parts of the parameters travel in turn; the rest stays at the client in the meantime (DiLoCo's fragments)."""

    period: int
    """Rounds after which the same parameters travel again, 2 or more."""

    @abstractmethod
    def part(self, params: Tensors, round: int) -> Tensors:
        """Return those of the trained parameters that a client sends back in a round."""


class EarlyStart(ABC):
    """A round's training follows from what its client remembers: it may begin before the task is there (a delay)."""

    @abstractmethod
    def rule(self, memory: Streams, round: int) -> LocalRule | None:
        """Return the rule of a round whose task has not come, or None for a training that begins from its task.

        It does what the rule of the task will do, but for `finish`, which is left to the latter.

        Args:
            memory: of the rules at the client, after the round before.
            round: the round to begin.
        """


@dataclass(frozen=True)
class UpdateBuffer:
    """An asynchronous server: it steps whenever its buffer is full, with updates that may begin at earlier versions."""

    size: int = 0
    """Updates per step; 0: as many as clients train at a time."""


class ModelChoice(ABC):
    """The server has several models, of which each client takes one (clusters)."""

    @abstractmethod
    def other_models(self, state: ServerState) -> Streams:
        """Return the models beside the first, for a message that asks to use the model without training."""

    @abstractmethod
    def choose(self, task: Task, loss: Callable[[Tensors], float]) -> tuple[Task, Streams]:
        """Return the task of the chosen model, and a stream that tells the server the choice.

        Args:
            task: with all models.
            loss: returns the mean loss of parameters on some of the client's rows.
        """
