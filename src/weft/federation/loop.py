"""All rounds of a run, one after the other. Yields what happened; writes and prints nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from weft.core.parts import Runtime
from weft.core.types import Metrics, Probe, Score, ServerState
from weft.federation.plan import Plan
from weft.federation.round import RoundRecord, run_round
from weft.federation.sampling import sample_clients


@dataclass(frozen=True)
class Rounds:
    """How rounds follow each other."""

    count: int
    sample: int
    seed: int
    eval_every: int
    """Rounds between evaluations; 0: only after the last."""


@dataclass(frozen=True)
class RoundDone:
    """A finished round: the state after it, its record, and the clients' scores where it was evaluated."""

    state: ServerState
    record: RoundRecord
    seconds: float
    scores: dict[str, Metrics] | None


def run_rounds(
    plan: Plan,
    state: ServerState,
    runtime: Runtime,
    rounds: Rounds,
    *,
    clients: Sequence[str],
    evaluated: Sequence[str],
    weights: np.ndarray | None = None,
) -> Iterator[RoundDone]:
    """Run the rounds that are left, and yield each when it is done.

    Args:
        plan: the composed parts.
        state: where to go on from; `state.round` rounds are behind it.
        runtime: what carries the messages.
        rounds: how many, of how many clients.
        clients: names of the population.
        evaluated: names of the clients that have held-out rows.
        weights: (population,) chances of being sampled, or None for equal ones.
    """
    for number in range(state.round, rounds.count):
        began = time.perf_counter()
        sampled = sample_clients(len(clients), rounds.sample, seed=rounds.seed, round=number, weights=weights)
        cohort = [clients[index] for index in plan.algorithm.cohort(sampled, len(clients))]
        state, record = run_round(plan, state, cohort, runtime)
        seconds = time.perf_counter() - began
        last = state.round == rounds.count
        due = last or (rounds.eval_every > 0 and state.round % rounds.eval_every == 0)
        scores = evaluate(state, runtime, evaluated) if due and evaluated else None
        yield RoundDone(state, record, seconds, scores)


def evaluate(state: ServerState, runtime: Runtime, clients: Sequence[str]) -> dict[str, Metrics]:
    """Return the counts and sums of every client that answers."""
    probes = [Probe(client, state.round, state.params) for client in clients]
    return {reply.client: reply.metrics for reply in runtime.exchange(probes) if isinstance(reply, Score)}
