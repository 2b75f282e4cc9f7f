"""One round of federated training, both sides, in order. The stages stand here and nowhere else.

server   task       what each client is sent             algorithm.task, sharing, codec.encode_task
client   prepare    put it into the resident model       codec.decode_task, rule.begin, rule.prepare
client   train      local steps, bent by the rule        local.work
client   report     what may be told of the training     client.reportable
client   bound      clip, add local noise                privacy.on_client
client   compress   with error feedback                  codec.encode
client   seal       mask or encrypt                      protection.seal
wire     exchange   whatever the runtime is              runtime.exchange
server   open       unmask, decode, check                protection.collect, codec.decode, admit
server   combine    a streaming mean, or a robust one    algorithm.combine, lora.combine
server   noise      central differential privacy         privacy.on_server
server   step       server optimizer                     algorithm.step
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice

from weft.core.exchange import Party, Runtime
from weft.core.objective import Evaluator
from weft.core.secret import Secret
from weft.core.types import (
    CODEC,
    PRIVACY,
    PROTECTION,
    SIDE,
    WEIGHTS,
    Message,
    Probe,
    ProtectionRequest,
    Reply,
    Score,
    ServerState,
    Task,
    Undo,
    Update,
)
from weft.federation.admission import admitted
from weft.federation.client_model import choose, personal_steps, put
from weft.federation.clients import ClientData
from weft.federation.coding import coding_of, encode_tasks, metered
from weft.federation.cohort_watch import CohortWatch
from weft.federation.part_memory import OWN, RULE, kept_as, part_of
from weft.federation.plan import Plan
from weft.federation.record import RoundRecord
from weft.federation.sharing import cut_like, padded, with_layers
from weft.federation.state import Participant, advance, blame, expected_streams, task_for
from weft.federation.weigher import Weigher
from weft.models.resident import Resident
from weft.training.loop import Job


def run_round(
    plan: Plan,
    state: ServerState,
    cohort: Sequence[Participant],
    runtime: Runtime,
    *,
    whole: float = 0.0,
    max_updates: int = 0,
    secret: Callable[[], Secret] = Secret.random,
) -> tuple[ServerState, RoundRecord]:
    """Run one round on the server and return the state after it.

    A client that fails, or whose update cannot be averaged, is dropped and recorded. With fewer good updates than
    `plan.needed` the state stays and counts an attempt; without a quorum and any update the round counts.

    Args:
        plan: the composed parts.
        state: before the round.
        cohort: who is asked.
        runtime: what carries the messages.
        whole: what all clients together weigh; 0: not known.
        max_updates: how many good updates are used, the first that come; 0: all.
        secret: returns the server's.
    """
    record = RoundRecord(state.round)

    def server(part: str) -> Party:
        return Party("", state.round, state.attempts, part_of(state.memory, part), secret)

    tasks = {one.client: task_for(plan, state, one) for one in cohort}
    sent, coded = encode_tasks(plan, list(tasks.values()), server(CODEC))
    exchange = metered(runtime.exchange, record) if plan.algorithm.shares else runtime.exchange
    like = expected_streams(plan, state.params, state.round)
    replies = plan.protection.collect(exchange, sent, like, server(PROTECTION))
    most = {one.client: one.rows if plan.weighs_rows else 1.0 for one in cohort}
    good = admitted(plan, state, tasks, most, replies, record, server(CODEC))
    weigher = Weigher(plan.weighting, state.memory.get(WEIGHTS, {}))
    watch = CohortWatch(plan, state, tasks)
    updates = watch.over(map(weigher, islice(good, max_updates or None)))
    total = plan.algorithm.combine((padded(update, state.params) for update in updates), plan.aggregator)
    total = replace(total, whole=whole)
    record.close(total.clients, tasks, max_updates)
    record.needed = plan.needed(total.clients)
    record.repeated = len(total.clients) < record.needed
    state = blame(state, record.bad)
    if plan.remembers:
        unused = set(tasks) - set(() if record.repeated else total.clients)
        list(runtime.exchange([Undo(client, state.round) for client in sorted(unused)]))
    if record.repeated:
        return replace(state, attempts=state.attempts + 1, attempt=state.attempt + 1), record
    if not total.clients:
        return replace(state, round=state.round + 1, attempt=0), record
    total, record.product_error = watch.combine(total)
    total, noised = plan.privacy.on_server(total, server(PRIVACY))
    memory = weigher.memory | kept_as(coded, CODEC) | kept_as(noised, PRIVACY)
    return advance(plan.algorithm, state, total, memory), record


def answer(message: Message, plan: Plan, client: ClientData, model: Resident, evaluator: Evaluator) -> Reply:
    """Answer a message at a client: the one function that a runtime may call there."""
    if isinstance(message, Undo):
        client.memory.drop(client.name, message.round + 1)
        return Score(client.name, message.round, {})
    if isinstance(message, ProtectionRequest):
        return plan.protection.answer(message, client.party(PROTECTION, {}, message.round, message.attempt))
    if isinstance(message, Probe) and message.keep:
        put(message, plan, client, model)
        personal_steps(plan, model, client, message.round)
        if client.export is not None:
            client.export(model, message.extra.get(SIDE, {}))
        return Score(client.name, message.round, {})
    with model.with_layers(plan.sharing.layers_of(client.index)):
        if isinstance(message, Task):
            return _train(message, plan, client, model)
        choice = put(message, plan, client, model)
        metrics = evaluator.evaluate(model, client.held)
        metrics |= {f"{stream}/{int(value)}": 1.0 for stream, values in choice.items() for value in values.values()}
        return Score(client.name, message.round, client.reportable(metrics))


def _train(task: Task, plan: Plan, client: ClientData, model: Resident) -> Update:
    """Train on a task and return the sealed update; what stays with the client is saved first."""
    memory = client.memory.load(client.name, task.round)
    codec = client.party(CODEC, memory, task.round, task.attempt)
    received, kept = plan.codec.decode_task(task, codec)
    masters = with_layers(model.masters, plan.sharing.layers_of(client.index))
    shared = {name: value for name, value in masters.items() if name not in model.initial}
    like = expected_streams(plan, shared | received.params, task.round)
    start = model.initial | memory.get(OWN, {})
    given, choice = choose(plan, received, start, client, model)
    rule = plan.algorithm.rule(given, part_of(memory, RULE))
    trained = {*plan.sharing.trained(shared, task.round), *model.initial}
    job = Job(start, given.params, trained, client.index, task.round, client.step_fraction, client.public)
    done = plan.local.work(model, plan.objective, client.train, rule, job)
    remembered = kept_as(done.finished.memory, RULE)
    personal = plan.algorithm.personal
    second = None if personal is None else personal.rule(given, part_of(memory, RULE))
    if second is not None:
        more = plan.local.work(model, plan.objective, client.train, second, job).finished.memory
        remembered |= kept_as(more, RULE)
    if done.personal:
        remembered[OWN] = done.personal
    streams = {s: cut_like(values, like[s]) for s, values in (done.finished.streams | choice).items()}
    weight = float(len(client.train)) if plan.weighs_rows else 1.0
    metrics = {} if plan.privacy.bounded else client.reportable(done.metrics)
    update = Update(client.name, task.round, task.base_version, streams, weight, metrics, task.attempt)
    update, noised = plan.privacy.on_client(update, client.party(PRIVACY, memory, task.round, task.attempt))
    coding = coding_of(plan, client.name, task.round, task.base_version, like)
    update, kept = plan.codec.encode(update, coding, replace(codec, memory=kept))
    remembered |= kept_as(noised, PRIVACY) | kept_as(kept, CODEC)
    if remembered:
        client.memory.save(client.name, task.round + 1, remembered)
    return plan.protection.seal(update, task, client.party(PROTECTION, {}, task.round, task.attempt))
