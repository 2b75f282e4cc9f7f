"""A client's local training in one round: what it is given, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple, Protocol

import numpy as np
import torch

from weft.core.secret import Secret
from weft.core.types import LocalWork, Metrics, RuleResult, Tensors
from weft.models.layout import Row


class RowTable(Protocol):
    """A client's tokenized rows."""

    def __len__(self) -> int: ...
    def __getitem__(self, row: int) -> Row: ...


class Job(NamedTuple):
    """A client's training task in a round."""

    personal: Tensors
    """Trained parameters that stay with the client, by name."""
    shared: Tensors
    """Trained parameters from the server, by name."""
    trained: Collection[str] | None = None
    """Names of the parameters to train in this round; None: all."""
    client: int = 0
    round: int = 0
    step_fraction: float = 1.0
    """Share of its steps that the client has time for."""
    public: RowTable | None = None
    """Rows that all clients have, for a share of every batch."""
    attempt: int = 0
    """Number of repeated rounds of the run so far."""
    secret: Callable[[], Secret] = Secret.random
    """Returns the client's secret."""
    purpose: str = "train"
    """What is trained: random numbers of one purpose are never used for another."""
    domains: Mapping[int, RowTable] | None = None
    """The client's rows by number of their domain, where a mixture draws from them."""
    units: np.ndarray | None = None
    """(rows,) int64: the number of the unit that each of the client's rows belongs to; None: each row is one."""


class Session(NamedTuple):
    """What the steps of a client in a round have in common."""

    start: Tensors
    """Values of the shared parameters, by name."""
    masters: Tensors
    """Shared parameters that are trained, on the device."""
    full_steps: int
    steps: int
    """Steps that the client has time for."""
    optimizer: torch.optim.Optimizer


class LocalResult(NamedTuple):
    """The result of a client's local training."""

    finished: RuleResult
    """The update, as the rule returns it."""
    metrics: Metrics
    """Sums for the run's records."""
    personal: Tensors
    """Parameters that stay with the client, after the last step."""
    work: LocalWork | None = None
    """What the rule made the update of; None where no optimizer stepped."""
