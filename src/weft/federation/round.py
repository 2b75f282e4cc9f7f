"""One round of federated training, both sides, in order. The stages stand here and nowhere else.

server   task       what each client is sent             algorithm.task, sharing
client   prepare    put it into the resident model       rule.begin, rule.prepare
client   train      local steps, bent by the rule        local.work
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

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from weft.core import tensors
from weft.core.exchange import Runtime
from weft.core.objective import Evaluator
from weft.core.seeds import derive
from weft.core.types import (
    DELTA,
    FIXED,
    SIDE,
    WEIGHTS,
    Message,
    Probe,
    Reply,
    Score,
    ServerState,
    Streams,
    Task,
    Tensors,
    Undo,
    Update,
)
from weft.errors import BadUpdate, ClientFailed, LateUpdate
from weft.federation.admission import admit
from weft.federation.clients import ClientData
from weft.federation.plan import Plan
from weft.federation.products import Products
from weft.federation.record import RoundRecord
from weft.federation.sharing import Holders, cut_like, pad, padded, with_layers
from weft.federation.state import Participant, advance, blame, expected_streams, task_for
from weft.federation.weigher import Weigher
from weft.models.resident import Resident
from weft.training.loop import Job

CHOICE_ROWS = 64
"""Rows by which a client chooses from several models."""
RULE, CODEC, OWN = "rule.", "codec.", "own"
"""Whose part of a client's memory a stream is; OWN is the stream of trained parameters that do not travel."""


def run_round(
    plan: Plan,
    state: ServerState,
    cohort: Sequence[Participant],
    runtime: Runtime,
    *,
    whole: float = 0.0,
    max_updates: int = 0,
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
        wanted: how many good updates are used, the first that come; 0: all.
    """
    record = RoundRecord(state.round)
    tasks = {asked.client: task_for(plan, state, asked) for asked in cohort}
    if plan.algorithm.shares:
        record.bytes_down = sum(tensors.num_bytes(t.params) + tensors.num_bytes(t.extra) for t in tasks.values())
    replies = plan.protection.collect(runtime.exchange, list(tasks.values()))
    weigher = Weigher(plan.weighting, state.memory.get(WEIGHTS, {}))
    rows = {asked.client: asked.rows for asked in cohort}
    good = _admitted(plan, state, tasks, rows, replies, record)
    updates: Iterable[Update] = map(weigher, islice(good, max_updates or None))
    products = None
    one = plan.algorithm.shares and plan.algorithm.turns is None and plan.algorithm.choice is None
    watched = one and DELTA in plan.algorithm.streams and not plan.protection.sum_only
    holders = Holders(state.params) if plan.sharing.layers else None
    if holders is not None:
        updates = holders.watch(updates)
    elif plan.sharing.scale is not None and watched:
        exact = plan.sharing.lora.single_updates
        products = Products(plan.sharing.scale, state.memory.get(FIXED, {}), exact=exact)
        updates = products.watch(updates, {client: task.params for client, task in tasks.items()})
    total = plan.algorithm.combine((padded(update, state.params) for update in updates), plan.aggregator)
    total = replace(total if holders is None else holders.mean(total), whole=whole)
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
    if products is not None:
        total = plan.sharing.lora.combine(total, state, products.mean())
        averaged = state.params | tensors.add(total.streams[DELTA], state.params)
        record.product_error = products.error(averaged, state.memory, total.streams)
    total = plan.privacy.on_server(total)
    return advance(plan.algorithm, replace(state, memory=state.memory | weigher.memory), total), record


def _admitted(
    plan: Plan,
    state: ServerState,
    tasks: Mapping[str, Task],
    rows: Mapping[str, float],
    replies: Iterable[Reply],
    record: RoundRecord,
) -> Iterator[Update]:
    """Open, decode and check what came back; yield what may be averaged, record the rest."""
    expected = set(tasks)
    for reply in replies:
        try:
            if isinstance(reply, Update):
                if plan.algorithm.shares:
                    record.bytes_up += tensors.num_bytes(reply.streams)
                reply = plan.codec.decode(reply)
            known = _known(plan, state, tasks[reply.client]) if reply.client in tasks else {}
            like = expected_streams(plan, known, state.round) if known else {}
            max_weight = rows.get(reply.client, 0.0) if plan.weighting.by_rows else 1.0
            update = admit(reply, tasks, expected, like, max_weight)
            plan.algorithm.check(update)
        except LateUpdate:
            record.late += 1
            continue
        except ClientFailed as failure:
            record.failures[reply.client] = str(failure)
            record.bad += [reply.client] * isinstance(failure, BadUpdate)
            continue
        record.add(update)
        yield update


def _known(plan: Plan, state: ServerState, task: Task) -> Tensors:
    """Return the parameters that a client has which was sent a task."""
    return task.params if plan.sharing.layers else state.params | task.params


def answer(message: Message, plan: Plan, client: ClientData, model: Resident, evaluator: Evaluator) -> Reply:
    """Answer a message at a client: the one function that a runtime may call there."""
    if isinstance(message, Undo):
        client.memory.drop(client.name, message.round + 1)
        return Score(client.name, message.round, {})
    with model.with_layers(plan.sharing.layers_of(client.index)):
        if isinstance(message, Task):
            return _train(message, plan, client, model)
        said = show(message, plan, client, model)
        chosen = {f"{stream}/{int(value)}": 1.0 for stream, values in said.items() for value in values.values()}
        return Score(client.name, message.round, evaluator.evaluate(model, client.held) | chosen)


def show(message: Probe, plan: Plan, client: ClientData, model: Resident) -> Streams:
    """Put the model that a probe asks for into the resident model: the client's own, or the shared one.

    Returns:
        What the client says of its choice, where it had one.
    """
    memory = client.memory.load(client.name, message.round) if message.own else {}
    extra = {stream: pad(values, model.masters) for stream, values in message.extra.items()}
    rebuild, choice, personal = plan.algorithm.rebuild, plan.algorithm.choice, plan.algorithm.personal
    params = message.params if rebuild is None else rebuild.params(extra, model.started)
    shared = pad(params, model.masters)
    start = model.initial | memory.get(OWN, {})
    model.put_side(message.extra.get(SIDE, {}))
    said: Streams = {}
    if message.own:
        given = Task(client.name, message.round, message.round, shared, extra)
        if choice is not None:
            given, said = choice.choose(given, lambda params: _loss(start | params, plan, client, model))
        shared = given.params if personal is None else personal.params(given.params, _part(memory, RULE))
    model.load(start | shared)
    return said


def _train(task: Task, plan: Plan, client: ClientData, model: Resident) -> Update:
    """Train on a task and return the sealed update; what stays with the client is saved first."""
    memory = client.memory.load(client.name, task.round)
    masters = with_layers(model.masters, plan.sharing.layers_of(client.index))
    shared = {name: value for name, value in masters.items() if name not in model.initial}
    like = expected_streams(plan, shared | task.params, task.round)
    extra = {stream: pad(values, model.masters) for stream, values in task.extra.items()}
    rebuild, choice, personal = plan.algorithm.rebuild, plan.algorithm.choice, plan.algorithm.personal
    params = task.params if rebuild is None else rebuild.params(extra, model.started)
    given = replace(task, params=pad(params, model.masters), extra=extra)
    model.put_side(task.extra.get(SIDE, {}))
    start = model.initial | memory.get(OWN, {})
    said: Streams = {}
    if choice is not None:
        given, said = choice.choose(given, lambda params: _loss(start | params, plan, client, model))
    rule = plan.algorithm.rule(given, _part(memory, RULE))
    trained = {*plan.sharing.trained(shared, task.round), *model.initial}
    job = Job(start, given.params, trained, client.index, task.round, client.step_fraction, client.public)
    done = plan.local.work(model, plan.objective, client.train, rule, job)
    remembered = _named(done.finished.memory, RULE)
    second = None if personal is None else personal.rule(given, _part(memory, RULE))
    if second is not None:
        remembered |= _named(plan.local.work(model, plan.objective, client.train, second, job).finished.memory, RULE)
    if done.kept:
        remembered[OWN] = done.kept
    sent = done.finished.streams | said
    streams = {stream: cut_like(values, like[stream]) for stream, values in sent.items()}
    weight = float(len(client.train)) if plan.weighting.by_rows else 1.0
    update = Update(client.name, task.round, task.base_version, streams, weight, done.metrics, task.attempt)
    update = plan.privacy.on_client(update)
    update, kept = plan.codec.encode(update, _part(memory, CODEC))
    remembered |= _named(kept, CODEC)
    if remembered:
        client.memory.save(client.name, task.round + 1, remembered)
    return plan.protection.seal(update)


def _loss(params: Tensors, plan: Plan, client: ClientData, model: Resident) -> float:
    """Return the loss of parameters on the first of the client's own rows; the model is left with them."""
    model.load(params)
    rows = [client.train[row] for row in range(min(len(client.train), CHOICE_ROWS))]
    return plan.objective.assess(model, rows, plan.local.batch_size, derive(plan.local.seed, "choice", client.name))


def _part(memory: Streams, prefix: str) -> Streams:
    return {name.removeprefix(prefix): values for name, values in memory.items() if name.startswith(prefix)}


def _named(streams: Streams, prefix: str) -> Streams:
    return {prefix + name: values for name, values in streams.items()}
