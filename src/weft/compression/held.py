"""Parameters on their way down: the difference from the version that a client holds, or the whole.

The server keeps H, the parameters as clients know them. In every round it encodes w - H, adds what the bytes stand for
to H, and sends them; so whatever an encoding loses is in the next difference. A client that missed rounds is sent the
differences of all of them. They are kept as long as they are together smaller than the whole, which is sent to a client
that was away for longer. A client that is new holds version 0: it has loaded the model that the run begins from, and a
digest says whether it is the server's. Clients of different ranks or layers have an H for each shape.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from weft.core import tensors
from weft.core.directions import digest
from weft.core.party import Coding, Party
from weft.core.types import Streams, Task, Tensors
from weft.errors import BadUpdate, ClientFailed

DIFFERENCES = "differences"
"""The stream of a task with encoded differences, each named by the versions that it leads from and to."""
VERSIONS = "versions"
"""The stream of the server's memory with the version that each client holds, shape () each."""
START = "start"
"""Among the differences, and in the server's memory: the digest of version 0."""
NOTHING = -1
"""The version of a client that holds none."""
HELD, VERSION = "held", "version"
"""Streams of a client's memory: the parameters that it holds, and their version."""
LOST = "does not hold the version of the parameters that the server counts from"
"""The reason of a client whose memory was lost, which is then sent the whole."""

Shrink = Callable[[Tensors, Coding], tuple[Tensor, Tensors]]
Grow = Callable[[Tensor, Tensors], Tensors]


def encode_chain(shrink: Shrink, task: Task, coding: Coding, party: Party) -> tuple[Task, Streams]:
    """Return the task with the differences that its client misses, or the whole, and the server's new memory.

    Args:
        shrink: encodes tensors; returns the bytes and what they stand for.
        task: with the parameters themselves.
        coding: without a client: all clients are sent the same bytes.
        party: the server.
    """
    group = _group_of(task.params)
    memory = _advanced(shrink, group, task, coding, dict(party.memory))
    held, differences = memory[f"{group}.{HELD}"], memory.get(f"{group}.{DIFFERENCES}", {})
    start = memory.get(f"{group}.{START}", {})
    version = memory.get(VERSIONS, {}).get(task.client)
    if version is not None:
        chain = _chain(differences, int(version))
    else:
        chain = start | (_chain(differences, 0) if start and task.round else {})
        chain = chain if len(chain) > 1 or not task.round else {}
    if not chain:
        return replace(task, params=held), memory
    return replace(task, params={}, extra=task.extra | {DIFFERENCES: chain}), memory


def _advanced(shrink: Shrink, group: str, task: Task, coding: Coding, memory: Streams) -> Streams:
    """Return the memory with the parameters as clients know them in this round; the first task of a round encodes."""
    held = memory.get(f"{group}.{HELD}")
    if held is None:
        # The parameters of round 0 are those that every client's model was loaded with.
        start = {} if task.round else {f"{group}.{START}": {START: digest(task.params)}}
        newest = {VERSION: torch.tensor(task.round)}
        return memory | start | {f"{group}.{HELD}": task.params, f"{group}.{VERSION}": newest}
    before = int(memory[f"{group}.{VERSION}"][VERSION])
    if before == task.round:
        return memory
    packed, sent = shrink(tensors.subtract(task.params, held), coding)
    differences = memory.get(f"{group}.{DIFFERENCES}", {}) | {f"{before}.{task.round}": packed}
    while len(differences) > 1 and tensors.num_bytes(differences) >= tensors.num_bytes(held):
        differences.pop(next(iter(_sorted(differences))))
    return memory | {
        f"{group}.{HELD}": tensors.add(held, sent),
        f"{group}.{VERSION}": {VERSION: torch.tensor(task.round)},
        f"{group}.{DIFFERENCES}": differences,
    }


def _chain(differences: Tensors, version: int) -> Tensors:
    """Return the differences that lead from a version to the newest one; empty where they are not kept."""
    chain = {}
    for name in _sorted(differences):
        begin, end = _versions(name)
        if begin == version:
            chain[name], version = differences[name], end
    return chain


def decode_chain(
    grow: Grow, size: Callable[[Tensors], int], task: Task, coding: Coding, party: Party
) -> tuple[Task, Streams]:
    """Return the task with its parameters, and the client's new memory.

    Args:
        grow: returns the tensors that bytes stand for.
        size: returns the most bytes of encoded tensors of such shapes.
        task: as it came.
        coding: `like["params"]` are the parameters that the client's model was loaded with.
        party: the client.

    Raises:
        ClientFailed: the differences begin at a version that the client does not hold, or cannot be read.
    """
    like = coding.like["params"]
    if DIFFERENCES not in task.extra:
        memory = {HELD: task.params, VERSION: {VERSION: torch.tensor(task.round)}}
        return task, memory
    chain = dict(task.extra[DIFFERENCES])
    version, params = _begins(chain.pop(START, None), like, party)
    steps = [_versions(name) for name in _sorted(chain)]
    if (steps[0][0] if steps else 0) != version or params.keys() != like.keys():
        raise ClientFailed(LOST)
    # Each leads on, so there are no more than rounds, however few bytes they have: decoding them takes time.
    if (
        task.params
        or len(steps) > task.round
        or sum(value.numel() for value in chain.values()) > max(size(like), tensors.num_bytes(like))
    ):
        raise ClientFailed("was sent more differences of the parameters than the parameters have bytes")
    for begin, end in steps:
        if begin != version or end <= begin:
            raise ClientFailed("was sent differences of the parameters with one missing among them")
        version = end
        try:
            params = tensors.add(params, grow(chain[f"{begin}.{end}"], params))
        except BadUpdate as error:
            raise ClientFailed(f"was sent a difference of the parameters that cannot be decoded: it {error}") from None
    if version != task.round or not tensors.all_finite(params):
        raise ClientFailed("was sent differences of the parameters that lead to no parameters of this round")
    extra = {stream: values for stream, values in task.extra.items() if stream != DIFFERENCES}
    memory = {HELD: params, VERSION: {VERSION: torch.tensor(task.round)}}
    return replace(task, params=params, extra=extra), memory


def _begins(start: Tensor | None, like: Tensors, party: Party) -> tuple[int, Tensors]:
    """Return the version that differences are added to at a client, and its parameters.

    Args:
        start: digest of the parameters that the server's run began with, where the differences count from these.
        like: the parameters that the client's model was loaded with.
        party: the client.
    """
    if start is None:
        version = party.memory.get(VERSION, {}).get(VERSION)
        return NOTHING if version is None else int(version), party.memory.get(HELD, {})
    mine = digest(like)
    return 0 if start.dtype == mine.dtype and torch.equal(start, mine) else NOTHING, tensors.copy(like)


def settled(memory: Streams, round: int, used: Sequence[str], lost: Sequence[str]) -> Streams:
    """Return the server's memory after a round.

    Args:
        memory: as `encode_chain` left it, or as it was before a round that is repeated.
        round: the round.
        used: clients whose updates were used: they hold the round's version. Every other client goes back to what it
            held before, since its memory of the round is undone.
        lost: clients that hold no version that can be counted from.
    """
    versions = memory.get(VERSIONS, {}) | {client: torch.tensor(NOTHING) for client in lost}
    versions |= {client: torch.tensor(round) for client in used}
    return {stream: values for stream, values in memory.items() if stream != VERSIONS} | (
        {VERSIONS: versions} if versions else {}
    )


def _group_of(params: Tensors) -> str:
    """Return a short name of the shapes of parameters: clients of one rank and of the same layers share it."""
    text = repr([(name, tuple(params[name].shape)) for name in sorted(params)])
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def _versions(name: str) -> tuple[int, int]:
    """Return the versions that a difference leads from and to; ClientFailed for a name that is not written so."""
    begin, _, end = name.partition(".")
    if begin.isdecimal() and end.isdecimal() and name == f"{int(begin)}.{int(end)}":
        return int(begin), int(end)
    raise ClientFailed("was sent differences of the parameters without versions")


def _sorted(differences: Tensors) -> list[str]:
    """Return the names of differences in the order of their versions; ClientFailed for names that are none."""
    return sorted(differences, key=_versions)
