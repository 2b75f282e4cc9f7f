"""Scores of held-out rows on their way to the server: of each client, or in a sealed sum where updates are in one.

A sealed sum of scores takes the same messages as one of updates, with a probe in place of the task. Its keys and
promises are others (`Party.evaluating`), and all clients in it must have been sent the same model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import torch

from weft.core.declarations import Metric
from weft.core.exchange import Runtime
from weft.core.metrics import ScoreSum
from weft.core.party import Party
from weft.core.score_places import placed, sum_of
from weft.core.types import SCALARS, Metrics, Probe, Reply, Score, ServerState, Streams, Update
from weft.errors import BadUpdate, ClientFailed
from weft.federation.admission import admit_score, check_metrics
from weft.federation.budgeted import joins
from weft.federation.clients import ClientData
from weft.federation.plan import Plan
from weft.federation.state import to_use

STEP = 2.0**-24
"""Of the numbers of a sealed sum."""


@dataclass
class Scores:
    """What an evaluation brought."""

    clients: dict[str, Metrics] = field(default_factory=dict)
    """The counts and sums of each client."""
    sums: list[ScoreSum] = field(default_factory=list)
    """Those of several clients together, whose own ones nobody knows."""

    @property
    def anybody(self) -> bool:
        """Whether a client was evaluated."""
        return bool(self.clients or self.sums)

    def within(self, names: Collection[str]) -> Scores:
        """Return the part of these clients; a sum is theirs if all in it are."""
        clients = {name: part for name, part in self.clients.items() if name in names}
        return Scores(clients, [one for one in self.sums if set(one.members) <= set(names)])

    def without(self, names: Collection[str]) -> Scores:
        """Return the other part."""
        clients = {name: part for name, part in self.clients.items() if name not in names}
        return Scores(clients, [one for one in self.sums if not set(one.members) <= set(names)])


def scored(plan: Plan, client: ClientData, probe: Probe, metrics: Metrics, choice: Streams) -> Reply:
    """Return a client's answer to a probe: its scores as its site reports them, or these sealed for a sum.

    Args:
        plan: the parts.
        client: the client.
        probe: what it was asked.
        metrics: counts and sums of its held-out rows.
        choice: which of several models it has chosen.
    """
    metrics |= {f"{stream}/{int(value)}": 1.0 for stream, values in choice.items() for value in values.values()}
    reported = client.reportable(metrics)
    if not plan.protection.seals_scores:
        return Score(client.name, probe.round, reported)
    values = placed(plan.measured, reported, plan.score_places)
    streams = {SCALARS: {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}}
    update = Update(client.name, probe.round, probe.base_version, streams, 1.0, attempt=probe.attempt)
    return plan.protection.seal(update, probe, joins(plan, client, probe))


def evaluate(
    plan: Plan,
    state: ServerState,
    runtime: Runtime,
    clients: Sequence[str],
    *,
    personal: bool = True,
    left_out: Collection[str] = (),
    failures: dict[str, str] | None = None,
) -> Scores:
    """Return the counts and sums of every client that answers, of its personal model or of the shared one.

    Args:
        plan: the parts; with a protection of updates the scores come as sums.
        state: the model to evaluate.
        runtime: carries the messages.
        clients: names of the clients to evaluate at.
        personal: evaluate personal models where there are any.
        left_out: clients that have none in any case; their scores are in sums of their own.
        failures: reasons by client; a client without scores is added, unless it failed in the round already.
    """
    use = to_use(plan.algorithm, state)
    probes = [
        Probe(client, state.round, *use, personal and client not in left_out, attempt=state.attempts)
        for client in clients
    ]
    scores, reasons = Scores(), {} if failures is None else failures
    for reply in _replies(plan, state, runtime, probes, left_out):
        names = reply.senders if isinstance(reply, Update) else (reply.client,)
        try:
            if isinstance(reply, Update) and reply.members:
                scores.sums.append(_opened(plan.measured, reply))
            else:
                scores.clients[reply.client] = admit_score(reply).metrics
        except ClientFailed as failure:
            reasons.update({name: f"was not evaluated: {failure}" for name in names if name not in reasons})
    return scores


def _replies(
    plan: Plan, state: ServerState, runtime: Runtime, probes: Sequence[Probe], left_out: Collection[str]
) -> Iterable[Reply]:
    """Yield scores, or sums of them: one of the clients that were left out, and one of the others."""
    if not plan.protection.seals_scores:
        yield from runtime.exchange(probes)
        return
    for apart in (False, True):
        some = [probe for probe in probes if (probe.client in left_out) is apart]
        server = Party("", state.round, state.attempts)
        yield from plan.protection.collect(runtime.exchange, some, expected_scores(plan), server)


def expected_scores(plan: Plan) -> Streams:
    """Return tensors of the names, shapes and dtypes of a client's scores before they are sealed."""
    return {SCALARS: {name: torch.zeros((), dtype=torch.float64) for name in plan.score_places}}


def _opened(metrics: Sequence[Metric], update: Update) -> ScoreSum:
    """Return an opened sum, which holds means; raises BadUpdate where clients cannot have counted such numbers."""
    count = len(update.members)
    values = {name: _nearest(float(value) * count, count) for name, value in update.streams[SCALARS].items()}
    found = sum_of(metrics, values, update.members)
    for part in found.sums.values():
        check_metrics(part)
    if found.rows < 0:
        raise BadUpdate("sent a count below 0")
    return found


def _nearest(value: float, count: int) -> float:
    """Return a sum of so many numbers as the clients had it: of whole numbers the very same."""
    whole = float(round(value))
    return whole if abs(value - whole) <= count * STEP else value
