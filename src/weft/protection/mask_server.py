"""The server's side of masked sums: it passes keys and shares on, adds what it cannot read, and opens the sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from weft.core.party import Party
from weft.core.types import Failure, Message, ProtectionReply, ProtectionRequest, Reply, Streams, Task, Tensors, Update
from weft.errors import ClientFailed
from weft.protection import masking, shamir
from weft.protection.groups import Phases, Step
from weft.protection.mask_client import OPENED, SEALED_BYTES, pair_key, read_grid, transcript
from weft.protection.members import Keys, Members, names_of, names_tensor, to_bytes, to_tensor
from weft.protection.sums import Grid, Masked, from_tensors, sizes_in, to_update, vector_names, zeros

KEYS, SHARES, UNMASK = "keys", "shares", "unmask"
"""The phases beside the task."""
HEAVIEST = 2.0**20
"""The weight that counts 1 where the server does not know how many rows clients have."""
BOUNDS = "bounds"
"""The stream of the server's memory that holds the bound of each tensor."""
NEAR = "near"
"""The same, with the bounds that are near enough to sizes for numbers of few bits."""
MOST_METRICS = 1 << 16
"""Largest list of the names of metrics, in bytes."""


@dataclass
class Opening:
    """One attempt of a round, from the keys to the sum."""

    tasks: Mapping[str, Task]
    like: Streams
    party: Party
    bound: float
    least: int
    graph: int
    bits: int = 0

    heaviest: float = field(init=False)
    members: Members = field(init=False)
    shares: dict[str, Tensor] = field(default_factory=dict, init=False)
    """Of each client in the cohort: its sealed shares, a row for each of its peers."""
    grid: Grid = field(init=False)
    total: Masked = field(init=False)
    bounds: Streams = field(default_factory=dict, init=False)
    """Of the tensors, for the next round, once the sum is opened: BOUNDS and NEAR."""
    added: list[str] = field(default_factory=list, init=False)
    """Clients whose masked update is in the sum."""
    metrics: set[str] = field(default_factory=set, init=False)
    bound_before: int = field(default=0, init=False)
    """Clients that opened a sum in an earlier attempt of the round, and join no other."""

    def __post_init__(self) -> None:
        self.heaviest = self.party.heaviest if math.isfinite(self.party.heaviest) else HEAVIEST

    def run(self) -> Phases:
        """Yield the phases, the failures of clients, and the sum of the others' updates if it can be opened."""
        keys: dict[str, Keys] = {}
        yield from self._ask(KEYS, self.tasks, lambda name: {}, lambda reply: self._take_keys(reply, keys))
        self.members = Members(keys, self.graph)
        if (why := self._too_few(keys)) is not None:
            yield from self._closed(keys, why)
            return
        members = to_tensor(self.members.raw)
        yield from self._ask(SHARES, keys, lambda name: {SHARES: {"members": members}}, self._take_shares)
        yield from self._leave_out()
        if (why := self._too_few(self.shares)) is not None:
            yield from self._closed(self.shares, why)
            return
        sent = {
            "members": members,
            "cohort": names_tensor(list(self.shares)),
            "heaviest": torch.tensor(self.heaviest, dtype=torch.float64),
        }
        names = ["/".join(one) for one in vector_names(self.like)]
        for stream in (BOUNDS, NEAR):
            known = self.party.memory.get(stream, {})
            if names and known.keys() >= set(names):
                sent[stream] = torch.stack([known[name] for name in names])
        self.grid = read_grid(sent, self.bound, self.bits, len(self.members.names), len(names))
        self.total = zeros(self.like, self.grid.width)
        yield from self._gather([self.tasks[name] for name in sorted(self.shares)], sent)
        why = self._too_few(self.added)
        if why is None and not all(self._can_open(name, self.added) for name in self.shares):
            why = "too few of the clients that hold shares are left"
        if why is not None:
            yield from self._closed(self.added, why)
            return
        yield from self._open(sent)

    def close(self, why: str) -> Iterator[Failure]:
        """Yield the failures of a sum that stays closed although it could be opened."""
        return self._closed(self.added, why)

    def _ask(
        self,
        phase: str,
        clients: Iterable[str],
        streams: Callable[[str], Streams],
        take: Callable[[ProtectionReply], None],
        opens: int = 0,
    ) -> Phases:
        """Send a request to clients and take their replies; yield failures, also of replies that do not fit."""
        first = next(iter(self.tasks.values()))
        asked = [ProtectionRequest(name, first.round, phase, streams(name), first.attempt) for name in sorted(clients)]
        waiting = {message.client for message in asked}

        def hear(reply: Reply) -> Failure | None:
            if reply.client not in waiting:
                return None  # late, or a second one
            waiting.discard(reply.client)
            if isinstance(reply, Failure):
                return reply
            if not isinstance(reply, ProtectionReply) or (reply.phase, reply.round) != (phase, first.round):
                return _bad(reply, f"sent no answer to the request '{phase}'")
            try:
                take(reply)
            except (ClientFailed, ValueError, KeyError):
                return _bad(reply, f"sent an answer to the request '{phase}' that cannot be read")
            return None

        if opens:  # whoever fails now is in the sum already: the others' shares stand for it
            yield Step(list(asked), lambda reply: hear(reply) and None, opens)
            return
        yield Step(list(asked), hear)
        for name in sorted(waiting):
            yield Failure(name, first.round, f"did not answer the request '{phase}'")

    def _take_keys(self, reply: ProtectionReply, keys: dict[str, Keys]) -> None:
        values = reply.streams[KEYS]
        one = Keys(*(to_bytes(values.get(name)) for name in Keys._fields))
        if {len(part) for part in one[:3]} != {masking.KEY_BYTES}:
            raise ClientFailed("no keys")
        if any({one.cipher, one.mask} & {other.cipher, other.mask} for other in keys.values()):
            raise ClientFailed("keys of another client")
        keys[reply.client] = one

    def _take_shares(self, reply: ProtectionReply) -> None:
        rows = reply.streams[SHARES]["shares"]
        if rows.dtype != torch.uint8 or tuple(rows.shape) != (len(self.members.peers[reply.client]), SEALED_BYTES):
            raise ClientFailed("no shares")
        self.shares[reply.client] = rows

    def _leave_out(self) -> Iterator[Failure]:
        """Leave out clients whose peers dropped out before they held enough shares, until there is none."""
        while lost := [name for name in self.shares if not self._can_open(name, self.shares)]:
            if len(lost) == len(self.shares):
                return  # too few for any sum, which is said once for all
            for name in sorted(lost):
                del self.shares[name]
                round = self.tasks[name].round
                yield Failure(name, round, "has too few peers left that could open its part of a masked sum")

    def _gather(self, tasks: Sequence[Task], sent: Tensors) -> Phases:
        """Let the cohort train, and add up the masked updates as they come: memory holds one."""
        messages: list[Message] = [replace(task, extra=task.extra | {"masks": sent}) for task in tasks]
        waiting = {task.client: task for task in tasks}

        def hear(reply: Reply) -> Failure | None:
            task = waiting.pop(reply.client, None)
            return None if task is None else self._add(reply, task)

        yield Step(messages, hear)
        for name, task in waiting.items():
            yield Failure(name, task.round, "did not send its masked update")

    def _add(self, reply: Reply, task: Task) -> Failure | None:
        """Add a masked update to the sum, or return why not."""
        if isinstance(reply, Failure):
            if not reply.reason.lstrip('"').startswith(OPENED):  # a site's words come in quotes
                return reply
            # With so few others no sum of this round can be opened: answers to an earlier attempt were lost.
            self.bound_before += 1
            count = len(self.tasks)
            return replace(reply, final=count - self.bound_before < 2 * count // 3 + 1)
        wanted = (task.round, task.base_version, task.attempt)
        if not isinstance(reply, Update) or (reply.round, reply.base_version, reply.attempt) != wanted:
            return _bad(reply, "sent no update of this round")
        values = reply.streams.get("masked", {})
        one = from_tensors(values, self.like, self.grid.width)
        try:
            raw = values.get("metrics")
            names = names_of(raw if raw is not None and raw.numel() <= MOST_METRICS else None)
        except ClientFailed:
            one = None
        if one is None or set(reply.streams) != {"masked"} or (reply.weight, reply.metrics) != (1.0, {}):
            return _bad(reply, "sent an update that is not masked as the run says")
        np.add(self.total.numbers, one.numbers, out=self.total.numbers)
        np.add(self.total.counts, one.counts, out=self.total.counts)
        self.added.append(reply.client)
        self.metrics |= set(names)
        return None

    def _open(self, sent: Tensors) -> Phases:
        """Ask the survivors for their shares, take the masks off, and yield the sum."""
        survivors = names_tensor(self.added)
        known: dict[str, dict[int, bytes]] = {name: {} for name in self.shares}

        def request(name: str) -> Streams:
            rows = [
                self.shares[peer][self.members.peers[peer].index(name)]
                for peer in self.members.peers[name]
                if peer in self.shares
            ]
            held = torch.stack(rows) if rows else torch.zeros(0, SEALED_BYTES, dtype=torch.uint8)
            values = {"members": sent["members"], "cohort": sent["cohort"], "survivors": survivors, "shares": held}
            return {UNMASK: values}

        def take(reply: ProtectionReply) -> None:
            owners = [peer for peer in self.members.peers[reply.client] if peer in self.shares] + [reply.client]
            rows = reply.streams[UNMASK]["shares"]
            if rows.dtype != torch.uint8 or tuple(rows.shape) != (len(owners), shamir.SHARE_BYTES):
                raise ClientFailed("no shares")
            for owner, row in zip(owners, rows, strict=True):
                known[owner][self.members.holders(owner).index(reply.client) + 1] = to_bytes(row)

        yield from self._ask(UNMASK, self.added, request, take, len(self.added))
        if not self._take_masks_off(known, transcript(sent)):
            yield from self._closed(self.added, "too few clients answered with shares that fit")
            return
        update = to_update(self.total, self.like, self.metrics, self.grid)
        if update is None:
            yield from self._closed(self.added, "its weights add up to what no clients have")
            return
        names = ["/".join(one) for one in vector_names(self.like)]
        sizes = sizes_in(self.total, len(names), self.grid)
        for stream, few in ((BOUNDS, False), (NEAR, True)):
            # Until every tensor has moved, numbers keep the bits with which no bound is needed.
            moved = self.grid.measured or not self.grid.still(sizes).any()
            if moved and (not few or (self.bits and self.grid.measured)):
                bounds = torch.from_numpy(self.grid.next_bounds(sizes, few=few))
                self.bounds[stream] = dict(zip(names, bounds.unbind(), strict=True))
        task = self.tasks[self.added[0]]
        yield replace(
            update,
            client=self.added[0],
            round=task.round,
            base_version=task.base_version,
            attempt=task.attempt,
            members=tuple(sorted(self.added)),
        )

    def _take_masks_off(self, known: Mapping[str, Mapping[int, bytes]], said: str) -> bool:
        """Take off the survivors' own masks, and the masks that they share with those who dropped out."""
        task = next(iter(self.tasks.values()))
        about = (str(task.round), str(task.attempt), said)
        for owner, shares in known.items():
            keys, threshold = self.members.keys[owner], self.members.threshold(owner)
            if owner in self.added:
                commitment = keys.commitment
                seed = shamir.join(shares, threshold, lambda one: masking.commitment(one) == commitment)  # noqa: B023
                if seed is None:
                    return False
                self.total.add_masks(seed, -1)
                continue
            public = keys.mask
            secret = shamir.join(shares, threshold, lambda one: masking.public_key(one) == public)  # noqa: B023
            if secret is None:
                return False
            for peer in self.members.peers[owner]:
                if peer in self.added:
                    key = pair_key(secret, self.members.keys[peer].mask, (owner, peer), about)
                    # The survivor added it where its name comes first.
                    self.total.add_masks(key, -1 if peer < owner else 1)
        return True

    def _can_open(self, name: str, clients: Iterable[str]) -> bool:
        """Return whether these clients hold enough shares of a member's secrets."""
        there = set(clients)
        return sum(holder in there for holder in self.members.holders(name)) >= self.members.threshold(name)

    def _too_few(self, clients: Iterable[str]) -> str | None:
        """Return why these clients are too few for a sum; None: they are enough."""
        count = len(list(clients))
        least = max(self.least, self.party.quorum, 2 * len(self.tasks) // 3 + 1)
        return f"{count} of {len(self.tasks)} clients are left, and it takes {least}" if count < least else None

    def _closed(self, clients: Collection[str], why: str) -> Iterator[Failure]:
        """Yield a failure of every client whose update stays closed."""
        round = next(iter(self.tasks.values())).round
        for name in sorted(clients):
            yield Failure(name, round, f"is in a masked sum that stays closed: {why}")


def _bad(reply: Reply, reason: str) -> Failure:
    return Failure(reply.client, reply.round, reason, bad=True)
