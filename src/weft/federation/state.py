"""The server's state between rounds: what of it a client is sent, and how it goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from weft.core.parts import Algorithm
from weft.core.types import BAD, CODEC, DELTA, FIXED, PRIVACY, SIDE, WEIGHTS, ServerState, Streams, Task, Tensors, Total
from weft.federation.plan import Plan
from weft.federation.sharing import cut, with_layers

RESERVED = (SIDE, FIXED, WEIGHTS, BAD)
PARTS = (CODEC, PRIVACY)
"""Server memory that is not the algorithm's: by its name, or by what its name begins with."""


class Participant(NamedTuple):
    """A client of a round: its name, the version of the parameters that it begins from, its rank and its layers."""

    client: str
    version: int
    rank: int | None = None
    layers: tuple[int, ...] | None = None
    rows: float = math.inf
    """Training rows that it is known to have."""


def begin(plan: Plan, values: Tensors, fixed: Tensors) -> ServerState:
    """Return the state before the first round.

    Args:
        plan: the parts.
        values: all trained parameters of the model as it was loaded.
        fixed: factors that are never trained.
    """
    state = plan.algorithm.init({name: value for name, value in values.items() if plan.sharing.travels(name)})
    return replace(state, memory=state.memory | {FIXED: fixed}) if fixed else state


def task_for(plan: Plan, state: ServerState, asked: Participant) -> Task:
    """Return what a client is sent: the algorithm's task, cut to the client's rank and layers, and the side adapter."""
    task = plan.algorithm.task(state, asked.client, asked.version)
    extra = {stream: with_layers(cut(values, asked.rank), asked.layers) for stream, values in task.extra.items()}
    return replace(
        task,
        params=with_layers(cut(task.params, asked.rank), asked.layers),
        extra=extra | _side(state),
        attempt=state.attempts,
    )


def blame(state: ServerState, clients: Sequence[str]) -> ServerState:
    """Return the state with a bad update more of each of these clients."""
    if not clients:
        return state
    counts = dict(state.memory.get(BAD, {}))
    for client in clients:
        counts[client] = counts.get(client, torch.zeros((), dtype=torch.int64)) + 1
    return replace(state, memory=state.memory | {BAD: counts})


def to_use(algorithm: Algorithm, state: ServerState) -> tuple[Tensors, Streams]:
    """Return what is sent wherever a model is to be used, not trained: the parameters, and what goes with them."""
    params, extra = state.params, _side(state)
    if algorithm.rebuild is not None:
        params, extra = {}, extra | algorithm.rebuild.recipe(state)
    if algorithm.choice is not None:
        extra |= algorithm.choice.others(state)
    return params, extra


def _side(state: ServerState) -> Streams:
    """Return the side adapter, if there is one."""
    return {SIDE: state.memory[SIDE]} if SIDE in state.memory else {}


def expected_streams(plan: Plan, params: Tensors, round: int) -> Streams:
    """Return tensors like those that a client with these parameters, all that are shared, sends back in a round."""
    trained = {name: params[name] for name in plan.sharing.trained(params, round)}
    turns = plan.algorithm.turns
    return plan.algorithm.like(trained if turns is None else turns.part(trained, round))


def _is_reserved(stream: str) -> bool:
    return stream in RESERVED or stream.startswith(PARTS)


def advance(algorithm: Algorithm, state: ServerState, total: Total, parts: Streams) -> ServerState:
    """Return the state after the algorithm's step on the parameters that the total holds; others stay.

    Args:
        algorithm: makes the step.
        state: before the round.
        total: of the cohort.
        parts: what weighting, codec and privacy remember from now on.
    """
    reserved = {stream: state.memory[stream] for stream in RESERVED if stream in state.memory} | parts
    reserved |= {SIDE: total.streams[SIDE]} if SIDE in total.streams else {}
    memory = {stream: values for stream, values in state.memory.items() if not _is_reserved(stream)}
    names = total.streams.get(DELTA, state.params)
    part = replace(state, memory=memory)
    if len(names) < len(state.params):
        restricted = {
            stream: {name: v for name, v in values.items() if name in names or name not in state.params}
            for stream, values in memory.items()
        }
        part = replace(
            state,
            params={name: value for name, value in state.params.items() if name in names},
            # Memory of other parameters only is, for these, none yet.
            memory={stream: values for stream, values in restricted.items() if values},
        )
    after = algorithm.step(part, total)
    kept = after.memory
    if part.params is not state.params:
        kept = memory | {stream: memory.get(stream, {}) | values for stream, values in kept.items()}
    return ServerState(state.params | after.params, kept | reserved, after.round, state.attempts)
