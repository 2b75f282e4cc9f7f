"""The server's state between rounds: the tasks made from it, and its update after a round."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from weft.core import tensors
from weft.core.parts import Algorithm
from weft.core.party import Party
from weft.core.types import (
    AGGREGATOR,
    BAD,
    CODEC,
    CODEC_DOWN,
    DELTA,
    FIXED,
    LEFT,
    PRIVACY,
    PROTECTION,
    SIDE,
    WEIGHTS,
    ServerState,
    Streams,
    Task,
    Tensors,
    Total,
)
from weft.errors import RunError
from weft.federation.part_memory import part_of, with_prefix
from weft.federation.plan import Plan
from weft.federation.sharing import crop_rank, with_layers

RESERVED = (SIDE, FIXED, WEIGHTS, BAD, LEFT)
PARTS = (AGGREGATOR, CODEC, CODEC_DOWN, PRIVACY, PROTECTION)
"""Streams of the server's memory that the algorithm never sees: RESERVED by name, PARTS by prefix."""


class Participant(NamedTuple):
    """A client of a round."""

    client: str
    version: int
    """Of the parameters that it begins from."""
    rank: int | None = None
    """Of its adapter; None: the server's."""
    layers: tuple[int, ...] | None = None
    """Decoder layers that it has; None: all."""
    rows: float = math.inf
    """Training rows; infinity where the server does not know them."""


def begin(plan: Plan, values: Tensors, fixed: Tensors) -> ServerState:
    """Return the state before the first round.

    Args:
        plan: the parts.
        values: all trained parameters of the model as it was loaded.
        fixed: factors that are never trained.
    """
    state = plan.algorithm.init({name: value for name, value in values.items() if plan.sharing.travels(name)})
    return replace(state, memory=state.memory | {FIXED: fixed}) if fixed else state


def task_for(plan: Plan, state: ServerState, participant: Participant) -> Task:
    """Return a client's task: the algorithm's, cropped to the client's rank and layers, with the side adapter."""

    def crop(values: Tensors) -> Tensors:
        return with_layers(crop_rank(values, participant.rank), participant.layers)

    task = plan.algorithm.task(state, participant.client, participant.version)
    extra = {stream: crop(values) for stream, values in task.extra.items()}
    extra |= _side(state) | plan.privacy.told(part_of(state.memory, PRIVACY))
    return replace(task, params=crop(task.params), extra=extra, attempt=state.attempts)


def blame(state: ServerState, clients: Sequence[str], left: Sequence[str] = ()) -> ServerState:
    """Return the state with one more bad update counted for each of these clients, and with those that left."""
    if not clients and not left:
        return state
    counts, gone = dict(state.memory.get(BAD, {})), dict(state.memory.get(LEFT, {}))
    for client in clients:
        counts[client] = counts.get(client, torch.zeros((), dtype=torch.int64)) + 1
    gone |= {client: torch.tensor(state.round + 1) for client in left}
    kept = {BAD: counts, LEFT: gone}
    return replace(state, memory=state.memory | {name: values for name, values in kept.items() if values})


def without_step(state: ServerState, *, repeated: bool) -> ServerState:
    """Return the state after a round that changed nothing; one that is repeated counts an attempt."""
    if repeated:
        return replace(state, attempts=state.attempts + 1, attempt=state.attempt + 1)
    return replace(state, round=state.round + 1, attempt=0)


def to_use(algorithm: Algorithm, state: ServerState) -> tuple[Tensors, Streams]:
    """Return the parameters, and the streams beside them, of a message that asks to use the model without training."""
    params, extra = state.params, _side(state)
    if algorithm.rebuild is not None:
        params, extra = {}, extra | algorithm.rebuild.recipe(state)
    if algorithm.choice is not None:
        extra |= algorithm.choice.other_models(state)
    return params, extra


def _side(state: ServerState) -> Streams:
    """Return the stream of the side adapter, if there is one."""
    return {SIDE: state.memory[SIDE]} if SIDE in state.memory else {}


def expected_streams(plan: Plan, params: Tensors, round: int) -> Streams:
    """Return tensors of the names, shapes and dtypes of a client's update, given all its shared parameters."""
    trained = {name: params[name] for name in plan.sharing.trained_names(params, round)}
    turns = plan.algorithm.turns
    return plan.algorithm.like(trained if turns is None else turns.part(trained, round)) | plan.privacy.like()


def _is_reserved(stream: str) -> bool:
    return stream in RESERVED or stream.startswith(PARTS)


def advance(algorithm: Algorithm, state: ServerState, total: Total, parts: Streams) -> ServerState:
    """Return the state after the algorithm's step on the parameters in the total; the other parameters stay.

    Args:
        algorithm: makes the step.
        state: before the round.
        total: of the cohort; in a round that trains a part of the parameters, of that part only.
        parts: the new memory of weighting, codecs and privacy.
    """
    other_memory = {stream: state.memory[stream] for stream in RESERVED if stream in state.memory} | parts
    other_memory |= {SIDE: total.streams[SIDE]} if SIDE in total.streams else {}
    other_memory |= with_prefix(total.memory, AGGREGATOR)
    memory = {stream: values for stream, values in state.memory.items() if not _is_reserved(stream)}
    names = total.streams.get(DELTA, state.params)
    # The algorithm must not see the memory of other parts: it may drop or rescale every stream that it finds.
    part = replace(state, memory=memory)
    if len(names) < len(state.params):
        memory_part = {
            stream: {name: v for name, v in values.items() if name in names or name not in state.params}
            for stream, values in memory.items()
        }
        part = replace(
            state,
            params={name: value for name, value in state.params.items() if name in names},
            # Memory of other parameters only is, for these, none yet.
            memory={stream: values for stream, values in memory_part.items() if values},
        )
    state_after = algorithm.step(part, total)
    memory_after = state_after.memory
    # Memory of parameters outside the total was withheld from the algorithm: it is put back.
    if part.params is not state.params:
        memory_after = memory | {stream: memory.get(stream, {}) | values for stream, values in memory_after.items()}
    # Every update was checked, but what a server computes from them can still leave the range of its numbers.
    if not tensors.all_finite(state_after.params):
        raise RunError(
            f"After round {state.round + 1} the model would hold numbers that are not finite, so the round is not kept",
            "go on with --resume and a smaller --max_update_norm, or begin again with a smaller --learning_rate",
        )
    return ServerState(
        state.params | state_after.params, memory_after | other_memory, state_after.round, state.attempts
    )


def collector(plan: Plan, max_weights: Mapping[str, float], server: Party) -> Party:
    """Return the server as a protection sees it: with the round's quorum and the largest weight of its clients."""
    quorum, heaviest = plan.quorum_of(max_weights, len(max_weights)), max(max_weights.values(), default=1.0)
    return replace(server, quorum=quorum, heaviest=heaviest, alike=plan.sends_alike)
