"""Putting a client's model into the resident one: what a message says, and what the client has for itself."""

from __future__ import annotations

from dataclasses import replace

from weft.core.parts import LocalRule
from weft.core.seeds import derive
from weft.core.types import SIDE, Probe, Streams, Task, Tensors
from weft.federation.clients import ClientData
from weft.federation.part_memory import OWN, RULE, part_of
from weft.federation.plan import Plan
from weft.federation.sharing import pad
from weft.models.resident import Resident
from weft.training.loop import Job

CHOICE_ROWS = 64
"""Rows by which a client chooses from several models."""


def choose(
    plan: Plan, task: Task, start: Tensors, client: ClientData, model: Resident, *, own: bool = True
) -> tuple[Task, Streams]:
    """Return the task as the client takes it, in the resident model's shapes, and what it says of its choice.

    Args:
        plan: the parts.
        task: as it came.
        start: what the client has beside the shared parameters.
        client: whose rows decide where there are several models.
        model: gets the side adapter that came along.
        own: the client may choose; otherwise it takes the first model.
    """
    rebuild, choice = plan.algorithm.rebuild, plan.algorithm.choice
    extra = {stream: pad(values, model.masters) for stream, values in task.extra.items()}
    params = task.params if rebuild is None else rebuild.params(extra, model.reference)
    given = replace(task, params=pad(params, model.masters), extra=extra)
    model.put_side(task.extra.get(SIDE, {}))
    if choice is None or not own:
        return given, {}
    return choice.choose(given, lambda params: _loss(start | params, plan, client, model))


def put(message: Probe, plan: Plan, client: ClientData, model: Resident) -> Streams:
    """Put the model that a probe asks for into the resident model: the client's own, or the shared one.

    Returns:
        What the client says of its choice, where it had one.
    """
    memory = client.memory.load(client.name, message.round) if message.own else {}
    start = model.initial | memory.get(OWN, {})
    task = Task(client.name, message.round, message.round, message.params, message.extra)
    given, said = choose(plan, task, start, client, model, own=message.own)
    personal = plan.algorithm.personal if message.own else None
    shared = given.params if personal is None else personal.params(given.params, part_of(memory, RULE))
    model.load(start | shared)
    return said


def personal_steps(plan: Plan, model: Resident, client: ClientData, round: int) -> None:
    """Make the personal steps, if there are any, from the model in place, at the run's learning rate throughout."""
    if not plan.personal_steps:
        return
    schedule = replace(plan.local.schedule, kind="constant", warmup_steps=0, warmup_ratio=0.0)
    steps = replace(plan.local, steps=plan.personal_steps, schedule=schedule)
    job = Job({}, model.values(), None, client.index, round, public=client.public)
    steps.work(model, plan.objective, client.train, LocalRule(), job)


def _loss(params: Tensors, plan: Plan, client: ClientData, model: Resident) -> float:
    """Return the loss of parameters on the first of the client's own rows; the model is left with them."""
    model.load(params)
    rows = [client.train[row] for row in range(min(len(client.train), CHOICE_ROWS))]
    return plan.objective.assess(model, rows, plan.local.batch_size, derive(plan.local.seed, "choice", client.name))
