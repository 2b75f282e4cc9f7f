"""Clients of a sealed sum in one process, whose messages a test may drop, change or look at."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from weft.core.party import Party
from weft.core.promises import Promises
from weft.core.secret import Common, Secret
from weft.core.types import Failure, ProtectionRequest, Reply, Streams, Task, Update
from weft.errors import ClientFailed, SumOpened
from weft.protection.fixed_point import Range
from weft.protection.masks import Masks
from weft.protection.sealed import SealedSums

ROUND = 4


class Cohort:
    """Clients in one process, whose messages a test may drop, change or look at."""

    def __init__(self, count: int, protection: SealedSums | None = None, width: int = 50) -> None:
        self.protection = protection or Masks()
        self.names = [f"site_{number:02}" for number in range(count)]
        self.common = Common(self.protection.new_key()) if self.protection.shares_key else None
        self.secrets = {name: Secret.random() for name in self.names}
        self.promises = {name: Promises() for name in self.names}
        rng = np.random.default_rng(count)
        self.deltas = {name: torch.tensor(rng.normal(size=width), dtype=torch.float32) for name in self.names}
        self.weights = {name: float(rng.integers(1, 90)) for name in self.names}
        self.lost: dict[str, str] = {}
        """By client: the phase whose answer does not arrive."""
        self.change: Callable[[object], object] = lambda message: message
        self.seen: list[Reply] = []
        self.alike = False
        """Whether all are sent the same model, and know it."""

    def party(self, name: str) -> Party:
        promises, common = self.promises[name], lambda make: self.common
        return Party(
            name, ROUND, 0, {}, partial(self.secrets.get, name), promises=promises, common=common, alike=self.alike
        )

    def update(self, name: str) -> Update:
        metrics = {"rows": self.weights[name], "loss": 0.5}
        streams: Streams = {"delta": {"w": self.deltas[name]}, "scalars": {"tau": torch.tensor(3.0)}}
        return Update(name, ROUND, ROUND, streams, self.weights[name], metrics)

    def answer(self, message: Task | ProtectionRequest) -> Reply:
        party = self.party(message.client)
        try:
            if isinstance(message, Task):
                return self.protection.seal(self.update(message.client), message, party)
            return self.protection.answer(message, party)
        except ClientFailed as failure:
            return Failure(message.client, message.round, str(failure), opened=isinstance(failure, SumOpened))

    def exchange(self, messages):
        for message in messages:
            phase = message.phase if isinstance(message, ProtectionRequest) else "task"
            if self.lost.get(message.client) == phase:
                yield Failure(message.client, ROUND, "is gone")
                self.lost[message.client] = "always"
            elif self.lost.get(message.client) != "always":
                reply = self.answer(self.change(message))
                self.seen.append(reply)
                yield reply

    def collect(
        self, attempt: int = 0, quorum: int = 0, memory: Streams | None = None
    ) -> tuple[Update | None, dict[str, str]]:
        tasks = [Task(name, ROUND, ROUND, {}, {}, attempt) for name in self.names]
        like: Streams = {
            "delta": {"w": torch.zeros(len(self.deltas[self.names[0]]))},
            "scalars": {"tau": torch.zeros(())},
        }
        server = Party(
            "", ROUND, attempt, memory or {}, quorum=quorum, heaviest=max(self.weights.values()), alike=self.alike
        )
        self.kept = server.kept
        replies = list(self.protection.collect(self.exchange, tasks, like, server))
        sums = [reply for reply in replies if isinstance(reply, Update)]
        assert len(sums) <= 1
        failures = {reply.client: reply.reason for reply in replies if isinstance(reply, Failure)}
        return (sums[0] if sums else None), failures

    def mean(self, names) -> torch.Tensor:
        total = sum(self.weights[name] for name in names)
        return sum(self.deltas[name].double() * self.weights[name] for name in names) / total


def assert_mean(cohort: Cohort, found: Update, names: list[str]) -> None:
    assert found.members == tuple(names)
    assert found.weight == sum(cohort.weights[name] for name in names)
    step = Range(cohort.protection.bound, len(cohort.names))
    heaviest = max(cohort.weights.values())
    off = len(names) * heaviest / step.scale / found.weight + 1e-6
    assert (found.streams["delta"]["w"].double() - cohort.mean(names)).abs().max() < off
    assert float(found.streams["scalars"]["tau"]) == pytest.approx(3.0, abs=1e-5)
    assert found.metrics["rows"] == pytest.approx(sum(cohort.weights[name] for name in names))
    assert found.metrics["loss"] == pytest.approx(0.5 * len(names), abs=1e-5)
