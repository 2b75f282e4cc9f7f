"""The bytes that a run will send, before it runs: sizes follow from shapes, and who is asked from the seed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

from weft.config import RunConfig
from weft.core.tensors import num_bytes
from weft.core.types import DELTA, Streams, Task
from weft.federation.plan import Plan
from weft.federation.state import expected_streams
from weft.launch import compose
from weft.launch.population import Population

SETTLED = 4
"""Rounds after which all have the same size under a protection."""
DIGEST = 32
"""Bytes of the digest that a new client is sent."""


class Sizes(NamedTuple):
    """The bytes of a client's messages in a round."""

    whole: float
    """Of its parameters."""
    difference: float
    """Of one encoded difference of them."""
    beside: float
    """Of what travels beside them in every task."""
    up: float
    """Of its update."""
    parts: tuple[float, ...] = ()
    """Of the parameters that travel in each of the rounds in turn; empty: all do in every round."""


def sizes_of(plan: Plan, task: Task, names: Sequence[str] = (), num_rounds: int = 1) -> Sizes:
    """Return the sizes of a client's messages, given its task.

    Args:
        plan: the parts.
        task: of the client.
        names: of the clients of a round.
        num_rounds: of the run.
    """
    whole, beside = num_bytes(task.params), num_bytes(task.extra)
    rounds = range(2 * plan.period)  # what is trained may alternate from round to round
    sent = [expected_streams(plan, task.params, round) for round in rounds]
    sealed, up = _sealed(plan, sent, names, num_rounds)
    if plan.algorithm.turns is not None:
        return Sizes(whole, whole, beside + sealed, up, tuple(map(num_bytes, sent[: plan.period])))
    coded = plan.codec_down.lossy
    difference = plan.codec_down.largest({DELTA: task.params})[0] if coded else whole
    return Sizes(whole, difference, beside + sealed, up)


def _sealed(plan: Plan, sent: Sequence[Streams], names: Sequence[str], num_rounds: int) -> tuple[float, float]:
    """Return the mean bytes that the protection sends a client, and those that the client sends.

    Args:
        plan: the parts.
        sent: streams of an update, in a cycle of rounds.
        names: of the clients of a round.
        num_rounds: of the run.
    """
    encoded = [plan.codec.largest(streams)[0] for streams in sent]

    @cache
    def of(place: int, settled: int) -> tuple[float, float]:
        return plan.protection.traffic(plan.codec.encoded(sent[place]), encoded[place], names, settled)

    # Protections have settled after some rounds; whole cycles are as long as all rounds are.
    rounds = range(max(num_rounds, len(sent)))
    all_rounds = [of(round % len(sent), min(round, SETTLED)) for round in rounds]
    down, up = (sum(sizes) / len(rounds) for sizes in zip(*all_rounds, strict=True))
    return down, up


def mean_bytes(config: RunConfig, plan: Plan, population: Population, sizes: Sequence[Sizes]) -> tuple[float, float]:
    """Return the mean bytes of a task and of an update over all clients and rounds, without drop-outs and repeats.

    Args:
        config: the run.
        plan: its parts.
        population: its clients.
        sizes: those of the clients by index, repeated cyclically.
    """
    if not (plan.codec_down.lossy or sizes[0].parts) and len(sizes) == 1:
        return sizes[0].whole + sizes[0].beside, sizes[0].up
    holders: dict[int, _Holders] = {}
    down = up = count = 0.0
    last: frozenset[int] = frozenset()
    for round, cohort in enumerate(_cohorts(config, plan, population)):
        for client in cohort:
            size = sizes[client % len(sizes)]
            if plan.codec_down.lossy:
                sent = holders.setdefault(client % len(sizes), _Holders(size)).sent(client, round)
            elif size.parts and client in last:  # it has all but the part that changed in the round before
                sent = size.parts[(round - 1) % len(size.parts)]
            else:
                sent = size.whole
            down += size.beside + sent
            up += size.up
            count += 1
        last = frozenset(cohort)
    return down / max(1, count), up / max(1, count)


def _cohorts(config: RunConfig, plan: Plan, population: Population) -> Iterator[Sequence[int]]:
    """Yield the indexes of the clients of each round."""
    selection, names = compose.selection(config, population), population.trained.names
    for round in range(config.num_rounds):
        yield plan.algorithm.cohort(selection.cohort(names, round, 0, round), len(names))


class _Holders:
    """Who holds which version of the parameters, as `weft.compression.held` counts."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.rounds: list[int] = []
        """Rounds in which a client of this shape took part: each has a difference from the one before."""
        self.place: dict[int, int] = {}
        """Of the round in `rounds` whose parameters a client holds."""
        # Differences are kept as long as they are together smaller than the whole.
        self.kept = max(1, math.ceil(sizes.whole / max(1, sizes.difference)) - 1)

    def sent(self, client: int, round: int) -> float:
        """Return the bytes of parameters that a client is sent in a round."""
        if not self.rounds or self.rounds[-1] != round:
            self.rounds.append(round)
        newest, knows_start = len(self.rounds) - 1, self.rounds[0] == 0
        missing = newest - self.place.get(client, 0)
        is_new = client not in self.place
        self.place[client] = newest
        if missing > self.kept or (is_new and not knows_start):
            return self.sizes.whole
        return missing * self.sizes.difference + DIGEST * is_new
