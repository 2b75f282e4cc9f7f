"""Updates as the server of a run receives them: clients answer once more, by the run's own parts, with few rows.

Codec, bound and noise are in force. Masks are not: what a sum of masked updates hides is who sent what, and the mean of
a round shows what it leaves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from weft.audits.scene import Scene
from weft.audits.settings import CannotAudit
from weft.compression.identity import Identity
from weft.core.party import Party
from weft.core.types import DELTA, ServerState, Tensors, Update
from weft.errors import WeftError
from weft.federation.client_host import ClientHost
from weft.federation.clients import Clients, InMemory, RowTable
from weft.federation.coding import decode
from weft.federation.plan import Plan
from weft.federation.round import run_round
from weft.federation.sharing import pad
from weft.federation.state import Participant, begin, expected_streams, task_for
from weft.models import layout
from weft.models.resident import Resident
from weft.protection.plain import Plain
from weft.runtimes.inprocess import InProcess


class Sent(NamedTuple):
    """What somebody sees of clients' training."""

    delta: Tensors
    """The change of the shared parameters."""
    tokens: list[frozenset[int]]
    """The tokens that each of the clients read, the last of every row left out: nothing is predicted from it."""


class Row(NamedTuple):
    """A training row of a client."""

    client: str
    number: int
    """Of the row in the table."""


class Malicious(NamedTuple):
    """A client that trains on rows of its making in the place of some of its own."""

    client: str
    made: Callable[[Tensors], list[layout.Row]]
    """Returns them, of the shared parameters that a round begins with."""


@dataclass(frozen=True)
class _Longer:
    """A table with rows after its last."""

    table: RowTable
    more: list[layout.Row]

    def __len__(self) -> int:
        return len(self.table) + len(self.more)

    def __getitem__(self, row: int) -> Any:
        return self.table[row] if row < len(self.table) else self.more[row - len(self.table)]


class Station:
    """The run's clients, ready to answer with other rows than their own."""

    def __init__(self, scene: Scene) -> None:
        """Prepare the parts.

        Raises:
            CannotAudit: the run's clients send no change of parameters.
        """
        host, _, values = scene.begun
        plan = host.plan
        kind = plan.local.kind
        if kind != "gradients" or not plan.algorithm.shares or plan.algorithm.pools_data:
            raise CannotAudit(
                f"The run trains by {scene.config.fed_alg}, in which no client sends a change of parameters that its "
                "rows made: audit a run of fedavg, or another that is federated, and learns by gradients."
            )
        if plan.algorithm.choice is not None or plan.algorithm.rebuild is not None:
            raise CannotAudit("The run has several models, and updates of one are audited: leave out --cluster.")
        self.scene, self.host = scene, host
        self.plan = replace(plan, protection=Plain(), codec_down=Identity(), quorum=0)
        # The first round: its learning rate is not yet decayed, and its update gives the most away.
        self.state: ServerState = begin(self.plan, values, host.model.fixed)

    def drawn(self, count: int) -> list[Row]:
        """Return random training rows, of one client after the other, each content once; fewer where there are no more.

        Raises:
            CannotAudit: there are fewer than two, so that no update is another row's.
        """
        clients = list(self.host.train_clients)
        orders = [self.scene.chance("sent", client.name).permutation(len(client.train)) for client in clients]
        rows = (
            Row(client.name, int(client.train.index[int(order[turn])]))
            for turn in range(max(map(len, orders), default=0))
            for client, order in zip(clients, orders, strict=True)
            if turn < len(order)
        )
        found: dict[bytes, Row] = {}
        for row in rows:  # of two with one content, the control of the one would be the update of the other
            found.setdefault(self.host.train_clients.table[row.number][0].tobytes(), row)
            if len(found) == count:
                break
        if len(found) < 2:
            raise CannotAudit(
                "The run has fewer than two training rows that differ, and the control is the update of another row: "
                "audit a run of more rows."
            )
        return list(found.values())

    def all_of_round(self, client: str) -> list[Row]:
        """Return as many rows of a client as it goes over in a round."""
        one, local = self.host.train_clients.find(client), self.plan.local
        many = min(len(one.train), local.num_steps(len(one.train)) * local.batch_size * local.accumulation)
        order = self.scene.chance("round", client).permutation(len(one.train))[:many]
        return [Row(client, int(one.train.index[int(row)])) for row in order]

    def tokens(self, rows: Sequence[Row]) -> frozenset[int]:
        """Return the tokens of rows that something is predicted from."""
        ids = [self.host.train_clients.table[row.number][0][:-1] for row in rows]
        return frozenset(int(token) for token in np.unique(np.concatenate(ids)) if token >= 0)

    def one_step(self, row: Row) -> Sent:
        """Return the update of a client that makes one step on one row."""
        plan = replace(self.plan, local=replace(self.plan.local, steps=1, batch_size=1, accumulation=1))
        return Sent(self._answer(plan, row.client, [row]), [self.tokens([row])])

    def whole_round(self, client: str) -> Sent:
        """Return the update of a client's whole round."""
        rows = self.all_of_round(client)
        return Sent(self._answer(self.plan, client, rows), [self.tokens(rows)])

    def mean(self, rows: Sequence[Row]) -> Sent:
        """Return what a round releases in which each of these clients makes one step on its row.

        Raises:
            CannotAudit: the run's aggregator cannot be asked of so few clients.
        """
        plan = replace(self.plan, local=replace(self.plan.local, steps=1, batch_size=1, accumulation=1))
        host = self._host(plan, {row.client: [row] for row in rows})
        after = _next(plan, self.state, [self._participant(row.client, self.state, 1.0) for row in rows], host)
        delta = {name: value - self.state.params[name] for name, value in after.params.items()}
        return Sent(delta, [self.tokens([row]) for row in rows])

    def rounds(
        self, names: Sequence[str], count: int, most_steps: int, malicious: Malicious | None = None
    ) -> Iterator[Tensors]:
        """Yield the shared parameters after each of the first rounds in which these clients train on all their rows.

        Args:
            names: of the clients; all of them take part in every round.
            count: of rounds.
            most_steps: of a client in a round.
            malicious: one of the clients, which trains on rows of its making too.

        Raises:
            CannotAudit: such a round cannot be repeated.
        """
        clients = self.host.train_clients
        sizes = {client.name: len(client.train) for client in clients}
        steps = max(self.plan.local.num_steps(sizes[name]) for name in names)
        plan = (
            self.plan if steps <= most_steps else replace(self.plan, local=replace(self.plan.local, steps=most_steps))
        )
        host = replace(self.host, plan=plan, train_clients=replace(clients, memory=InMemory()))
        state = self.state
        for _ in range(count):
            cohort = [self._participant(name, state, float(sizes[name])) for name in names]
            more = [] if malicious is None else malicious.made(state.params)
            with_more = host if malicious is None or not more else _given(host, malicious.client, more)
            state = _next(plan, state, cohort, with_more)
            yield state.params

    def _participant(self, client: str, state: ServerState, rows: float = math.inf) -> Participant:
        """Return a client with the rank and the layers that it has."""
        place, sharing = self.host.train_clients.find(client).index, self.plan.sharing
        return Participant(client, state.round, sharing.rank_of(place), sharing.layers_of(place), rows)

    def _host(self, plan: Plan, rows: dict[str, list[Row]]) -> ClientHost:
        """Return a client host whose clients have these rows, and remember nothing for the run."""
        clients = self.host.train_clients
        few = [
            np.array([row.number for row in rows[name]]) if name in rows else clients.train[place]
            for place, name in enumerate(clients.names)
        ]
        units = None if clients.units is None else [np.arange(len(of)) for of in few]
        own: Clients = replace(clients, train=few, memory=InMemory(), units=units)
        return replace(self.host, plan=plan, train_clients=own)

    def _answer(self, plan: Plan, client: str, rows: list[Row]) -> Tensors:
        host = self._host(plan, {client: rows})
        task = task_for(plan, self.state, self._participant(client, self.state))
        reply = host.reply(task)
        server = Party("", self.state.round, memory={})
        like = expected_streams(plan, task.params, self.state.round)
        if isinstance(reply, Update):
            reply = decode(plan, reply, like, server)
        if not isinstance(reply, Update) or DELTA not in reply.streams:
            reason = getattr(reply, "reason", "its update has no change of parameters")
            raise CannotAudit(f"The client '{client}' sends nothing to audit: {reason}.")
        # Clients of a smaller rank, or of fewer layers, send less; of the rest they have no gradient.
        whole = expected_streams(plan, self.state.params, self.state.round)[DELTA]
        sent = pad(reply.streams[DELTA], whole)
        return {name: sent[name] if name in sent else torch.zeros_like(value) for name, value in whole.items()}


def _given(host: ClientHost, name: str, more: list[layout.Row]) -> ClientHost:
    """Return a client host in which rows take the place of up to half of a client's, which has as many as before.

    Raises:
        CannotAudit: rows are drawn by domains.
    """
    clients = host.train_clients
    if clients.domains is not None:
        raise CannotAudit("The run draws rows by domains, and samples of a participant have none: leave out --mixture.")
    place, first = clients.names.index(name), len(clients.table)
    own = len(clients.train[place])
    numbers = np.arange(min(own // 2, len(more)))
    kept = own - len(numbers)
    changed = replace(
        clients, table=_Longer(clients.table, more), train=_mixed(clients.train, place, kept, first + numbers)
    )
    if clients.units is not None:  # each of them is a unit of its own
        above = 1 + max((int(units.max()) for units in clients.units if len(units)), default=-1)
        changed = replace(changed, units=_mixed(clients.units, place, kept, above + numbers))
    return replace(host, train_clients=changed)


def _mixed(arrays: Sequence[Any], place: int, kept: int, numbers: np.ndarray) -> list[Any]:
    return [np.concatenate([one[:kept], numbers]) if at == place else one for at, one in enumerate(arrays)]


def _next(plan: Plan, state: ServerState, cohort: Sequence[Participant], host: ClientHost) -> ServerState:
    """Return the state after a round to which every client of the cohort adds; raise CannotAudit."""
    where = f"A round of {len(cohort)} clients could not be repeated"
    try:
        after, record = run_round(plan, state, cohort, InProcess(host))
    except WeftError as error:
        raise CannotAudit(f"{where}: {error}") from None
    if record.failures or after.round == state.round:
        reason = next(iter(record.failures.values()), "too few updates")
        raise CannotAudit(f"{where}: {reason}.")
    return after


def values_of(model: Resident, params: Tensors) -> Tensors:
    """Return a value of each trained parameter: the shared one, or what a client begins with where none is shared."""
    return model.initial | {name: value for name, value in params.items() if name in model.masters}


def flat(delta: Tensors) -> Tensor:
    """Return all numbers of an update in one vector."""
    return torch.cat([delta[name].flatten().float() for name in sorted(delta)])
