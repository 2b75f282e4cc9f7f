"""All rounds of a run, one after the other. Yields a result for each; writes and prints nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice

import numpy as np
import torch

from weft.core.capabilities import UpdateBuffer
from weft.core.exchange import Runtime
from weft.core.secret import Secret
from weft.core.types import BAD, LEFT, ServerState, Total
from weft.errors import RunError
from weft.federation.conditions import Conditions
from weft.federation.plan import Plan
from weft.federation.products import CPU
from weft.federation.record import RoundRecord
from weft.federation.round import run_round
from weft.federation.sampling import Selection, arrivals
from weft.federation.scores import Scores, evaluate
from weft.federation.state import Participant

MAX_REASONS = 3
"""Failures of clients that an error tells."""


@dataclass(frozen=True)
class Rounds:
    """The schedule of a run: number of rounds, selection of clients, evaluations, retries."""

    count: int
    selection: Selection
    eval_every: int
    """Rounds between evaluations; 0: only after the last."""
    max_attempts: int = 10
    """Attempts at one round before the run stops."""
    conditions: Conditions = field(default_factory=Conditions)
    rows: Sequence[float] | np.ndarray | None = None
    """Training rows of each client, shape (clients,); None: unknown."""
    max_bad_updates: int = 0
    """Bad updates after which a client is excluded; 0: never."""
    secret: Callable[[], Secret] = Secret.random
    """Returns the server's secret."""
    product_error: str = "auto"
    """Rounds in which it is computed: auto (those that are evaluated), always or none."""
    device: torch.device = CPU
    """Computes it."""
    left_out: Collection[str] = ()
    """Clients that take no part in the training, so that the shared model is evaluated there."""
    check: Callable[[ServerState], None] = lambda state: None
    """Raises BudgetSpent before a round that would exceed a budget."""
    spend: Callable[[ServerState, Total], None] = lambda state, total: None
    """Writes down what a round spends, before anything of it is released; raises as `check` does."""

    def evaluates(self, round: int) -> bool:
        """Say whether the model is evaluated after so many rounds."""
        return is_evaluated(round, self.count, self.eval_every)

    def error_device(self, round: int) -> torch.device | None:
        """Return the device that computes the product error of round `round`, counted from 1; None: it is not."""
        wanted = self.product_error == "always" or (self.product_error == "auto" and self.evaluates(round))
        return self.device if wanted else None

    def rows_of(self, client: int) -> float:
        """Return the training rows of a client; infinity where they are unknown."""
        return math.inf if self.rows is None else float(self.rows[client])

    def population_weight(self, clients: int, *, by_rows: bool) -> float:
        """Return the sum of the weights of all clients that may take part, in rows or in clients; 0: unknown."""
        apart = {*self.selection.absent, *self.selection.removed}
        members = [client for client in range(clients) if client not in apart]
        if not by_rows:
            return float(len(members))
        return 0.0 if self.rows is None else sum(self.rows_of(client) for client in members)


def is_evaluated(round: int, count: int, every: int) -> bool:
    """Say whether a model is evaluated after a round of `count`: the last one, or an `every`-th (0: the last alone)."""
    return round == count or (every > 0 and round % every == 0)


@dataclass(frozen=True)
class RoundDone:
    """A finished round: the state after it, its record, and the clients' scores where it was evaluated."""

    state: ServerState
    record: RoundRecord
    seconds: float
    scores: Scores | None
    clock: float | None = None
    """Simulated time of an asynchronous round: 1 is what a client of speed 1 needs for its steps."""


def run_rounds(
    plan: Plan,
    state: ServerState,
    runtime: Runtime,
    rounds: Rounds,
    *,
    clients: Sequence[str],
    eval_clients: Sequence[str],
) -> Iterator[RoundDone]:
    """Run the remaining rounds, and yield each when it ends, a round that has to be repeated too.

    Args:
        plan: the composed parts.
        state: after `state.round` rounds.
        runtime: carries the messages.
        rounds: the schedule.
        clients: names of the population.
        eval_clients: names of the clients that have held-out rows.

    Raises:
        RunError: a round failed `max_attempts` times, the last one has no usable update, or every reachable client is
            excluded.
    """
    buffer = plan.algorithm.buffer
    # An asynchronous run replays its simulated arrivals up to the state that it resumes.
    cohorts = None if buffer is None else _arrivals(buffer, rounds, clients, state.round)
    # Attempts, and rounds without a usable update, in a row; a run that is resumed has them again.
    in_vain = empty = 0
    weight = rounds.population_weight(len(clients), by_rows=plan.weighs_rows)
    one_round = partial(run_round, population_weight=weight, secret=rounds.secret, spend=rounds.spend)
    places: dict[str, int] = {}
    while state.round < rounds.count:
        rounds.check(state)
        start = time.perf_counter()
        if cohorts is not None:
            indexes, clock = next(cohorts)
        else:
            indexes, clock = [(i, state.round) for i in _sampled_cohort(plan, state, rounds, clients, places)], None
        cohort = [_participant(plan, rounds, clients, i, version) for i, version in indexes]
        most = rounds.selection.updates_per_round if plan.over_selected else 0
        last = state.round + 1 == rounds.count
        part = replace(plan, error_device=rounds.error_device(state.round + 1))
        part = _with_last_quorum(part) if last and cohort else part
        state, record = one_round(part, state, cohort, runtime, max_updates=most)
        seconds = time.perf_counter() - start
        if record.repeated:
            in_vain += 1
            yield RoundDone(state, record, seconds, None, clock)
            if in_vain >= rounds.max_attempts:
                raise _in_vain(plan, record, in_vain)
            runtime.pause(in_vain)
            continue
        in_vain, empty = 0, empty + 1 if cohort and not record.clients else 0
        # Only where rounds cannot be repeated: the last buffer of an asynchronous run may be lost by chance.
        if last and empty >= min(rounds.count, rounds.max_attempts):
            raise _in_vain(plan, record, 1)
        # The state may be evaluated only after a round that counted: a repeated one left it unchanged.
        tested = _asked(eval_clients, state) if plan.reports and rounds.evaluates(state.round) else ()
        scores = _scores(plan, state, runtime, tested, rounds.left_out, record) if tested else None
        yield RoundDone(state, record, seconds, scores, clock)


def _scores(
    plan: Plan,
    state: ServerState,
    runtime: Runtime,
    tested: Sequence[str],
    left_out: Collection[str],
    record: RoundRecord,
) -> Scores:
    """Evaluate the state after a round; whoever does not answer is recorded."""
    return evaluate(plan, state, runtime, tested, left_out=left_out, failures=record.failures)


def _participant(plan: Plan, rounds: Rounds, clients: Sequence[str], client: int, version: int) -> Participant:
    """Return a client as it takes part in a round, from a version of the parameters."""
    sharing = plan.sharing
    return Participant(
        clients[client], version, sharing.rank_of(client), sharing.layers_of(client), rounds.rows_of(client)
    )


def _with_last_quorum(plan: Plan) -> Plan:
    """Return the plan of the last round: it needs an update, so that a run whose clients are all lost never succeeds.

    Rounds in between may stay without an update where no quorum is set: the next one has other clients.
    """
    waits = plan.algorithm.buffer is None and plan.algorithm.shares
    return replace(plan, quorum=max(1, plan.quorum)) if waits else plan


def _in_vain(plan: Plan, record: RoundRecord, attempts: int) -> RunError:
    """Return the error of a round that was begun in vain, with the reasons of some clients."""
    begun = f"Round {record.round + 1} was begun {attempts} time{'s' * (attempts > 1)}"
    some = "; ".join(f"{client}: {reason}" for client, reason in list(record.failures.items())[:MAX_REASONS])
    why = f" ({some})" if some else ""
    if record.quorum > max(1, plan.quorum) and not plan.aggregator.additive:
        return RunError(
            f"{begun} and fewer than {record.quorum} clients answered{why}, which {type(plan.aggregator).__name__} "
            "needs to stand its attackers",
            "go on with --resume when they can be reached",
        )
    if record.quorum > 1:
        return RunError(
            f"{begun} and fewer than {record.quorum} clients answered{why}",
            "go on with --resume when they can be reached, or with a smaller --min_clients",
        )
    return RunError(
        f"{begun} and no client's update could be used{why}", "mend what the clients say, and go on with --resume"
    )


def _sampled_cohort(
    plan: Plan, state: ServerState, rounds: Rounds, clients: Sequence[str], places: dict[str, int]
) -> Sequence[int]:
    """Return the indexes of a synchronous round's clients; RunError if all that can be reached are excluded.

    `places` is filled with the index of every name when it is first needed: no round looks at every name again.
    """
    excluded = set_aside(state, rounds.max_bad_updates) | gone(state)
    if excluded and not places:
        places.update((name, index) for index, name in enumerate(clients))
    aside = sorted(places[name] for name in excluded if name in places)
    clock = state.round + state.attempts  # the availability trace goes on while a round is repeated
    sampled = rounds.selection.cohort(clients, state.round, state.attempt, clock, aside)
    indexes = plan.algorithm.cohort(sampled, len(clients))
    if not len(indexes) and aside and not rounds.selection.poisson:
        if gone(state) >= excluded:
            raise RunError(
                f"All clients that can be reached have left the run, {len(aside)} in number: the shared model failed "
                "their tests, so look for what is wrong with it before another run."
            )
        raise RunError(
            f"All clients that can be reached sent {rounds.max_bad_updates} bad updates: "
            "correct what they run, or write a larger --max_bad_updates."
        )
    return [client for client in indexes if client not in rounds.selection.removed]


def set_aside(state: ServerState, limit: int) -> set[str]:
    """Return the clients that are excluded for `limit` bad updates or more; `limit` 0 excludes nobody."""
    return {client for client, count in state.memory.get(BAD, {}).items() if limit and int(count) >= limit}


def gone(state: ServerState) -> set[str]:
    """Return the clients that have left the run."""
    return set(state.memory.get(LEFT, {}))


def _asked(clients: Sequence[str], state: ServerState) -> Sequence[str]:
    """Return those of the clients that have not left the run."""
    left = gone(state)
    return [client for client in clients if client not in left] if left else clients


def _arrivals(
    buffer: UpdateBuffer, rounds: Rounds, clients: Sequence[str], first: int
) -> Iterator[tuple[list[tuple[int, int]], float]]:
    """Yield the buffers of an asynchronous run from round `first` on, as `arrivals` does."""
    size = buffer.size or rounds.selection.count
    return islice(arrivals(rounds.selection, rounds.conditions, clients, size), first, None)
