"""One round of federated training, both sides, in execution order. No other module calls the stages.

server   task       the message to each client           algorithm.task, sharing, codec_down.encode_task
client   prepare    load it into the resident model      codec_down.decode_task, rule.begin, rule.prepare
client   train      local steps, bent by the rule        local.work
client   report     metrics that the site may send       client.reportable
client   bound      clip, add local noise                privacy.on_client
client   compress   with error feedback                  codec.encode
client   seal       mask or encrypt                      protection.seal
wire     exchange   whatever the runtime is              runtime.exchange
server   open       unmask, decode, check                protection.collect, codec.decode, admit
server   combine    a streaming mean, or a robust one    algorithm.combine
server   noise      central differential privacy         privacy.on_server
server   step       LoRA factors, server optimizer       lora.combine, algorithm.step
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from weft.core.exchange import Runtime
from weft.core.objective import Evaluator
from weft.core.party import Party
from weft.core.secret import Secret
from weft.core.types import (
    BOUND,
    CODEC,
    CODEC_DOWN,
    PRIVACY,
    PROTECTION,
    WEIGHTS,
    Message,
    Probe,
    ProtectionRequest,
    Reply,
    Score,
    ServerState,
    Task,
    Total,
    Undo,
    Update,
)
from weft.federation.admission import admit_all
from weft.federation.budgeted import bounded, joins, paid
from weft.federation.client_model import export_model, load_probe_model, prepare
from weft.federation.clients import ClientData
from weft.federation.coding import decode_task, encode, encode_tasks, settle, watched
from weft.federation.cohort_watch import CohortWatch
from weft.federation.outliers import limited
from weft.federation.part_memory import OWN, RULE, part_of, with_prefix, with_prefixes
from weft.federation.plan import Plan
from weft.federation.record import RoundRecord
from weft.federation.scores import scored
from weft.federation.sharing import crop_like, pad_update, with_layers
from weft.federation.state import Participant, advance, blame, collector, expected_streams, task_for, without_step
from weft.federation.unused import undo
from weft.federation.weigher import Weigher
from weft.models.resident import Resident


def run_round(
    plan: Plan,
    state: ServerState,
    cohort: Sequence[Participant],
    runtime: Runtime,
    *,
    population_weight: float = 0.0,
    max_updates: int = 0,
    secret: Callable[[], Secret] = Secret.random,
    spend: Callable[[ServerState, Total], None] = lambda state, total: None,
) -> tuple[ServerState, RoundRecord]:
    """Run one round on the server and return the state after it.

    A client that fails, or whose update is refused, is dropped and recorded. With fewer admitted updates than the
    quorum the parameters stay and an attempt is counted. Where no quorum is set, a round without updates counts too.

    Args:
        plan: the composed parts.
        state: before the round.
        cohort: the clients of the round.
        runtime: carries the messages.
        population_weight: sum of the weights of all clients, in rows or in clients; 0: unknown.
        max_updates: number of admitted updates that are used, in order of arrival; 0: all.
        secret: returns the server's secret.
        spend: counts what the round spends of a budget, before anything that follows from it is released.
    """
    record = RoundRecord(state.round)

    def server(part: str) -> Party:
        return Party("", state.round, state.attempts, part_of(state.memory, part), secret)

    tasks = {participant.client: task_for(plan, state, participant) for participant in cohort}
    encoded, down_memory = encode_tasks(plan, list(tasks.values()), server(CODEC_DOWN))
    exchange = watched(runtime.exchange, record, counted=plan.algorithm.shares)
    like = expected_streams(plan, state.params, state.round)
    max_weights = {participant.client: participant.rows if plan.weighs_rows else 1.0 for participant in cohort}
    # Generators up to `combine`: an update joins the mean (or a file) before the next is read: memory holds one.
    protector = collector(plan, max_weights, server(PROTECTION))
    replies = plan.protection.collect(exchange, encoded, plan.codec.encoded(like), protector)
    admitted = admit_all(plan, state, tasks, max_weights, replies, record, server(CODEC))
    weigher = Weigher(plan.weighting, state.memory.get(WEIGHTS, {}))
    watcher = CohortWatch(plan, state, tasks, max_updates or len(tasks), runtime)
    updates = watcher.watch(limited(plan, bounded(plan, state, admitted), weigher, max_updates, record))
    total = plan.algorithm.combine((pad_update(update, state.params) for update in updates), watcher.aggregator(server))
    total = replace(total, population_weight=population_weight)
    record.close(total, tasks, max_updates, plan.quorum_of(total.clients, watcher.asked))
    state = blame(state, record.bad, record.left)
    undo(plan, state, set(tasks) - set(() if record.repeated else total.clients), runtime)
    state, down_memory = settle(plan, state, down_memory, record)
    total = paid(plan, state, total, like, spend)
    if record.repeated or record.unusable or not (total.clients or plan.privacy.bounded):
        return without_step(state, repeated=record.repeated), record
    total, privacy_memory = plan.privacy.on_server(total, server(PRIVACY))
    total, record.product_error = watcher.combine(total)
    parts = {CODEC_DOWN: down_memory, PRIVACY: privacy_memory, PROTECTION: protector.memory | protector.kept}
    return advance(plan.algorithm, state, total, weigher.memory | with_prefixes(parts)), record


def answer(message: Message, plan: Plan, client: ClientData, model: Resident, evaluator: Evaluator) -> Reply:
    """Answer a message at a client: the one function that a runtime may call there."""
    if isinstance(message, Undo):
        client.memory.drop(client.name, message.round + 1)
        return Score(client.name, message.round, {})
    if isinstance(message, ProtectionRequest):
        return plan.protection.answer(message, joins(plan, client, message))
    if isinstance(message, Probe) and message.export:
        export_model(message, plan, client, model)
        return Score(client.name, message.round, {})
    with model.with_layers(plan.sharing.layers_of(client.index)):
        if isinstance(message, Task):
            return _train(message, plan, client, model)
        choice = load_probe_model(message, plan, client, model)
        metrics = evaluator.evaluate(model, client.held_out) if plan.reports else {}
        return scored(plan, client, message, metrics, choice)


def _train(task: Task, plan: Plan, client: ClientData, model: Resident) -> Update:
    """Train on a task and return the sealed update; the client's new memory is saved first."""
    memory = client.memory.load(client.name, task.round)
    masters = with_layers(model.masters, plan.sharing.layers_of(client.index))
    shared = {name: model.reference.get(name, value) for name, value in masters.items() if name not in model.initial}
    decoded, down_memory = decode_task(plan, task, shared, client, memory)
    like = expected_streams(plan, shared | decoded.params, task.round)
    start = model.initial | memory.get(OWN, {})
    local_task, choice = prepare(plan, decoded, start, client, model)
    rule, names = plan.algorithm.rule(local_task, part_of(memory, RULE)), plan.sharing.trained_names(shared, task.round)
    inputs = local_task.extra | with_prefix(memory, "memory.")
    job = client.job(start, local_task.params, {*names, *model.initial}, task.round, task.attempt, inputs)
    done = client.begun(rule, local_task) or plan.local.work(model, plan.objective, client.train, rule, job)
    new_memory = with_prefix(done.finished.memory, RULE)
    personal = plan.algorithm.personal
    if personal is not None and (second_rule := personal.rule(local_task, part_of(memory, RULE))) is not None:
        second = plan.local.work(model, plan.objective, client.train, second_rule, job._replace(purpose="personal"))
        new_memory |= with_prefix(second.finished.memory, RULE)
    if done.personal:
        new_memory[OWN] = done.personal
    streams = {name: crop_like(values, like[name]) for name, values in (done.finished.streams | choice).items()}
    weight = float(len(client.train)) if plan.weighs_rows else 1.0
    metrics = {} if plan.privacy.bounded else client.reportable(done.metrics)
    update = Update(client.name, task.round, task.base_version, streams, weight, metrics, task.attempt)
    # Noise comes first: whatever is computed from a noisy update, its compression too, costs no further privacy.
    party = client.party(PRIVACY, memory, task.round, task.attempt, task.extra.get(BOUND))
    update, privacy_memory = plan.privacy.on_client(update, party)
    update, codec_memory = encode(plan, update, like, client, memory)
    new_memory |= codec_memory | down_memory | with_prefix(privacy_memory, PRIVACY)
    if new_memory:
        client.memory.save(client.name, task.round + 1, new_memory)
    return plan.protection.seal(update, task, joins(plan, client, task))
