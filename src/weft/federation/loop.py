"""All rounds of a run, one after the other. Yields what happened; writes and prints nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from weft.core.capabilities import UpdateBuffer
from weft.core.exchange import Runtime
from weft.core.parts import Algorithm
from weft.core.secret import Secret
from weft.core.types import BAD, Metrics, Probe, ServerState
from weft.errors import ClientFailed, RunError
from weft.federation.admission import admit_score
from weft.federation.conditions import Conditions
from weft.federation.plan import Plan
from weft.federation.record import RoundRecord
from weft.federation.round import run_round
from weft.federation.sampling import Selection, arrivals
from weft.federation.state import Participant, to_use


@dataclass(frozen=True)
class Rounds:
    """How rounds follow each other."""

    count: int
    selection: Selection
    eval_every: int
    """Rounds between evaluations; 0: only after the last."""
    max_attempts: int = 10
    """How often in a row a round may be begun before the run stops."""
    conditions: Conditions = field(default_factory=Conditions)
    rows: Sequence[float] | np.ndarray | None = None
    """Training rows of the clients, as far as they are known; None: not at all."""
    max_bad_updates: int = 0
    """Bad updates after which a client is not asked again; 0: it always is."""
    secret: Callable[[], Secret] = Secret.random
    """Returns the server's secret."""

    def known(self, client: int) -> float:
        """Return how many rows a client is known to have; endlessly many where nothing is known."""
        return math.inf if self.rows is None else float(self.rows[client])

    def whole(self, clients: int, *, by_rows: bool) -> float:
        """Return what all clients that may take part weigh together: their rows, or their number; 0: not known."""
        there = [client for client in range(clients) if client not in self.selection.absent]
        if not by_rows:
            return float(len(there))
        return 0.0 if self.rows is None else sum(self.known(client) for client in there)


@dataclass(frozen=True)
class RoundDone:
    """A finished round: the state after it, its record, and the clients' scores where it was evaluated."""

    state: ServerState
    record: RoundRecord
    seconds: float
    scores: dict[str, Metrics] | None
    clock: float | None = None
    """Simulated time of an asynchronous round: 1 is what a client of speed 1 needs for its steps."""


def run_rounds(
    plan: Plan,
    state: ServerState,
    runtime: Runtime,
    rounds: Rounds,
    *,
    clients: Sequence[str],
    evaluated: Sequence[str],
) -> Iterator[RoundDone]:
    """Run the rounds that are left, and yield each when it is done, one that has to be repeated too.

    Args:
        plan: the composed parts.
        state: where to go on from; `state.round` rounds are behind it.
        runtime: what carries the messages.
        rounds: how many, of which clients.
        clients: names of the population.
        evaluated: names of the clients that have held-out rows.

    Raises:
        RunError: too few clients answered too often in a row.
    """
    buffer = plan.algorithm.buffer
    cohorts = None if buffer is None else _arrivals(buffer, rounds, clients, state.round)
    in_vain = 0  # since this process began: a run that is resumed has its attempts again
    whole = rounds.whole(len(clients), by_rows=plan.weighs_rows)
    while state.round < rounds.count:
        began = time.perf_counter()
        clock: float | None = None
        if cohorts is not None:
            invited, clock = next(cohorts)
        else:
            aside = [i for i, name in enumerate(clients) if name in set_aside(state, rounds.max_bad_updates)]
            sampled = rounds.selection.cohort(clients, state.round, state.attempt, state.round + state.attempts, aside)
            invited = [(i, state.round) for i in plan.algorithm.cohort(sampled, len(clients))]
            if not invited and aside:
                raise RunError(f"All clients that can be reached sent {rounds.max_bad_updates} bad updates.")
        sharing = plan.sharing
        cohort = [
            Participant(clients[i], version, sharing.rank_of(i), sharing.layers_of(i), rounds.known(i))
            for i, version in invited
        ]
        max_updates = rounds.selection.used if plan.over_selected else 0
        state, record = run_round(
            plan, state, cohort, runtime, whole=whole, max_updates=max_updates, secret=rounds.secret
        )
        seconds = time.perf_counter() - began
        if record.repeated:
            in_vain += 1
            yield RoundDone(state, record, seconds, None, clock)
            if in_vain >= rounds.max_attempts:
                raise RunError(
                    f"Round {state.round + 1} was begun {in_vain} times and fewer than {record.needed} clients "
                    "answered: go on with --resume when they can be reached, or with a smaller --min_clients."
                )
            continue
        in_vain = 0
        last = state.round == rounds.count
        due = last or (rounds.eval_every > 0 and state.round % rounds.eval_every == 0)
        scores = None
        if due and evaluated:
            scores = evaluate(plan.algorithm, state, runtime, evaluated, failures=record.failures)
        yield RoundDone(state, record, seconds, scores, clock)


def set_aside(state: ServerState, most: int) -> set[str]:
    """Return the clients that sent so many bad updates that they are not asked again."""
    return {client for client, count in state.memory.get(BAD, {}).items() if most and int(count) >= most}


def _arrivals(
    buffer: UpdateBuffer, rounds: Rounds, clients: Sequence[str], behind: int
) -> Iterator[tuple[list[tuple[int, int]], float]]:
    """Return the buffers of an asynchronous run from round `behind` on: (client, version) of every update."""
    size = buffer.size or rounds.selection.count
    return islice(arrivals(rounds.selection, rounds.conditions, clients, size), behind, None)


def evaluate(
    algorithm: Algorithm,
    state: ServerState,
    runtime: Runtime,
    clients: Sequence[str],
    *,
    own: bool = True,
    failures: dict[str, str] | None = None,
) -> dict[str, Metrics]:
    """Return the counts and sums of every client that answers, of its own model or of the shared one.

    Args:
        algorithm: what the parameters are sent by.
        state: what is evaluated.
        runtime: what carries the messages.
        clients: who is asked.
        own: whether a client that has a model of its own measures that one.
        failures: takes why a client's scores are missing, unless it has failed before.
    """
    probes = [Probe(client, state.round, *to_use(algorithm, state), own) for client in clients]
    scores: dict[str, Metrics] = {}
    for reply in runtime.exchange(probes):
        try:
            scores[reply.client] = admit_score(reply).metrics
        except ClientFailed as failure:
            if failures is not None:
                failures.setdefault(reply.client, f"was not evaluated: {failure}")
    return scores
