"""Loading a client's model into the resident one: the parameters of a message, and those the client keeps."""

from __future__ import annotations

from dataclasses import replace

from weft.core.parts import LocalRule
from weft.core.seeds import derive
from weft.core.types import SIDE, Probe, Streams, Task, Tensors
from weft.federation.clients import ClientData
from weft.federation.part_memory import OWN, RULE, part_of
from weft.federation.plan import Plan
from weft.federation.sharing import pad
from weft.federation.task_check import check_task
from weft.models.resident import Resident

CHOICE_ROWS = 64
"""Training rows on which a client compares several models (clusters)."""


def choose(
    plan: Plan, task: Task, start: Tensors, client: ClientData, model: Resident, *, personal: bool = True
) -> tuple[Task, Streams]:
    """Return the task in the resident model's shapes, of the model that the client chose, and a stream with the choice.

    Args:
        plan: the parts.
        task: decoded, in the shapes of the client's rank.
        start: parameters that do not travel: the initial values, and the client's own.
        client: its rows decide where there are several models.
        model: the side adapter of the task is loaded into it.
        personal: choose by loss; otherwise the first model is taken.

    Raises:
        ClientFailed: the task holds what this run does not send.
    """
    check_task(plan, task, client.index, model)
    rebuild, choice = plan.algorithm.rebuild, plan.algorithm.choice
    extra = {stream: pad(values, model.masters) for stream, values in task.extra.items()}
    params = task.params if rebuild is None else rebuild.params(extra, model.reference)
    local_task = replace(task, params=pad(params, model.masters), extra=extra)
    # Before any loss is computed: all models of a choice are compared with the side adapter in place.
    model.put_side(task.extra.get(SIDE, {}))
    if choice is None or not personal:
        return local_task, {}
    return choice.choose(local_task, lambda params: _loss(start | params, plan, client, model))


def prepare(plan: Plan, task: Task, start: Tensors, client: ClientData, model: Resident) -> tuple[Task, Streams]:
    """Return the task that a client trains on, and its choice, as `choose` does; the client has tested the model.

    Raises:
        ClientFailed: as `choose`.
        LeftRun: the model that was sent fails the client's test.
    """
    local_task, choice = choose(plan, task, start, client, model)
    if client.inspect is not None:
        model.load(start | local_task.params)
        client.inspect(model, task.round)
    return local_task, choice


def load_probe_model(message: Probe, plan: Plan, client: ClientData, model: Resident) -> Streams:
    """Load the model that a probe asks for into the resident model: the client's personal one, or the shared one.

    Returns:
        The stream with the client's choice, empty where there is one model only.
    """
    # An evaluation of the shared model must not depend on what the client remembers.
    memory = client.memory.load(client.name, message.round) if message.personal else {}
    start = model.initial | memory.get(OWN, {})
    task = Task(client.name, message.round, message.round, message.params, message.extra)
    task, choice = choose(plan, task, start, client, model, personal=message.personal)
    personal = plan.algorithm.personal if message.personal else None
    params = task.params if personal is None else personal.params(task.params, part_of(memory, RULE))
    model.load(start | params)
    return choice


def personal_steps(plan: Plan, model: Resident, client: ClientData, round: int) -> None:
    """Make the run's personal steps on the resident model, at a constant learning rate; none by default."""
    if not plan.personal_steps:
        return
    schedule = replace(plan.local.schedule, kind="constant", warmup_steps=0, warmup_ratio=0.0)
    steps = replace(plan.local, steps=plan.personal_steps, schedule=schedule)
    job = client.job({}, model.values(), None, round)._replace(step_fraction=1.0, purpose="after")
    steps.work(model, plan.objective, client.train, LocalRule(), job)


def export_model(message: Probe, plan: Plan, client: ClientData, model: Resident) -> None:
    """Make the personal steps from the final model, and write the result where the client exports one."""
    load_probe_model(message, plan, client, model)
    if client.inspect is not None:
        client.inspect(model, message.round)
    personal_steps(plan, model, client, message.round)
    if client.export is not None:
        client.export(model, message.extra.get(SIDE, {}))


def _loss(params: Tensors, plan: Plan, client: ClientData, model: Resident) -> float:
    """Return the mean loss of parameters on the client's first rows; afterwards the model has these parameters."""
    model.load(params)
    rows = [client.train[row] for row in range(min(len(client.train), CHOICE_ROWS))]
    return plan.objective.assess(model, rows, plan.local.batch_size, derive(plan.local.seed, "choice", client.name))
