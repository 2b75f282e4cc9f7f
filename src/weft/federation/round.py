"""One round of federated training, both sides, in order. The stages stand here and nowhere else.

server   task       what each client is sent             algorithm.task
client   prepare    put it into the resident model       rule.begin, rule.prepare
client   train      local steps, bent by the rule        local.work
client   bound      clip, add local noise                privacy.on_client
client   compress   with error feedback                  codec.encode
client   seal       mask or encrypt                      protection.seal
wire     exchange   whatever the runtime is              runtime.exchange
server   open       unmask, decode, check                protection.collect, codec.decode, admit
server   combine    a streaming mean, or a robust one    algorithm.combine
server   noise      central differential privacy         privacy.on_server
server   step       server optimizer                     algorithm.step
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from weft.core import tensors
from weft.core.parts import Evaluator, Runtime
from weft.core.types import Message, Probe, Reply, Score, ServerState, Streams, Task, Update
from weft.errors import ClientFailed
from weft.federation.admission import admit
from weft.federation.plan import Plan
from weft.federation.site import Site
from weft.models.resident import Resident

RULE, CODEC = "rule.", "codec."
"""Whose part of a client's memory a stream is."""


@dataclass
class RoundRecord:
    """What is known of a round afterwards: who took part, counts and sums."""

    round: int
    clients: tuple[str, ...] = ()
    failures: dict[str, str] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0

    def add(self, update: Update) -> None:
        """Count an admitted update's metrics."""
        for name, value in update.metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value


def run_round(
    plan: Plan, state: ServerState, cohort: Sequence[str], runtime: Runtime
) -> tuple[ServerState, RoundRecord]:
    """Run one round on the server and return the state after it.

    A client that fails, or whose update cannot be averaged, is dropped and recorded. With no usable update the
    parameters stay as they are and the round counts.
    """
    record = RoundRecord(state.round)
    tasks = [plan.algorithm.task(state, client) for client in cohort]
    if plan.algorithm.shares:
        record.bytes_down = sum(tensors.num_bytes(t.params) + tensors.num_bytes(t.extra) for t in tasks)
    replies = plan.protection.collect(runtime.exchange, tasks)
    total = plan.algorithm.combine(_admitted(plan, state, cohort, replies, record), plan.aggregator)
    record.clients = total.clients
    if not total.clients:
        return replace(state, round=state.round + 1), record
    total = plan.privacy.on_server(total)
    return plan.algorithm.step(state, total), record


def _admitted(
    plan: Plan, state: ServerState, cohort: Sequence[str], replies: Iterable[Reply], record: RoundRecord
) -> Iterator[Update]:
    """Open, decode and check what came back; yield what may be averaged, record the rest."""
    expected = set(cohort)
    for reply in replies:
        try:
            if isinstance(reply, Update):
                if plan.algorithm.shares:
                    record.bytes_up += tensors.num_bytes(reply.streams)
                reply = plan.codec.decode(reply)
            update = admit(reply, state, plan.algorithm.streams, expected)
        except ClientFailed as failure:
            record.failures[reply.client] = str(failure)
            continue
        record.add(update)
        yield update
    for client in sorted(expected - record.failures.keys()):
        record.failures[client] = "sent no reply"


def answer(message: Message, plan: Plan, site: Site, model: Resident, evaluator: Evaluator) -> Reply:
    """Answer a message at a client: the one function that a runtime may call there."""
    if isinstance(message, Probe):
        memory = _part(site.memory.load(site.name, message.round), RULE)
        model.load(plan.algorithm.own_params(message.params, memory))
        return Score(site.name, message.round, evaluator.evaluate(model, site.held))
    return _train(message, plan, site, model)


def _train(task: Task, plan: Plan, site: Site, model: Resident) -> Update:
    """Train on a task and return the sealed update; what stays with the client is saved first."""
    memory = site.memory.load(site.name, task.round)
    rule = plan.algorithm.rule(task, _part(memory, RULE))
    trained = plan.local.work(model, plan.objective, site.train, rule, task.params, site.index, task.round)
    update = Update(
        site.name, task.round, task.base_version, trained.finished.streams, float(len(site.train)), trained.metrics
    )
    update = plan.privacy.on_client(update)
    update, kept = plan.codec.encode(update, _part(memory, CODEC))
    remembered = _named(trained.finished.memory, RULE) | _named(kept, CODEC)
    if remembered:
        site.memory.save(site.name, task.round + 1, remembered)
    return plan.protection.seal(update)


def _part(memory: Streams, prefix: str) -> Streams:
    return {name.removeprefix(prefix): values for name, values in memory.items() if name.startswith(prefix)}


def _named(streams: Streams, prefix: str) -> Streams:
    return {prefix + name: values for name, values in streams.items()}
