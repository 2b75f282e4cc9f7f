"""The server's side of masked sums: it passes keys and shares on, adds what it cannot read, and opens the sum."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from weft.core.types import Failure, ProtectionReply, Streams, Tensors
from weft.errors import ClientFailed
from weft.protection import masking, shamir
from weft.protection.groups import Phases
from weft.protection.mask_client import SEALED_BYTES, pair_key, read_grid
from weft.protection.members import Keys, Members, names_tensor, to_bytes, to_tensor, transcript
from weft.protection.opening import WRONG_WEIGHTS, Opening
from weft.protection.sums import Masked, from_tensors, sizes_in, vector_names, zeros

KEYS, SHARES, UNMASK = "keys", "shares", "unmask"
"""The phases beside the task."""
BOUNDS = "bounds"
"""The stream of the server's memory that holds the bound of each tensor."""
NEAR = "near"
"""The same, with the bounds that are near enough to sizes for numbers of few bits."""


@dataclass
class MaskOpening(Opening):
    """One attempt of a round, from the keys to the sum."""

    graph: int = 0
    bits: int = 0

    stream: ClassVar[str] = "masks"
    sealed: ClassVar[str] = "masked"
    members: Members = field(init=False)
    shares: dict[str, Tensor] = field(default_factory=dict, init=False)
    """Of each client in the cohort: its sealed shares, a row for each of its peers."""
    total: Masked = field(init=False)
    bounds: Streams = field(default_factory=dict, init=False)
    """Of the tensors, for the next round, once the sum is opened: BOUNDS and NEAR."""

    def run(self) -> Phases:
        """Yield the phases, the failures of clients, and the sum of the others' updates if it can be opened."""
        keys: dict[str, Keys] = {}
        yield from self.ask(KEYS, self.tasks, lambda name: {}, lambda reply: self._take_keys(reply, keys))
        self.members = Members(keys, self.graph)
        if (why := self.too_few(keys)) is not None:
            yield from self.closed(keys, why)
            return
        members = to_tensor(self.members.raw)
        yield from self.ask(SHARES, keys, lambda name: {SHARES: {"members": members}}, self._take_shares)
        yield from self._leave_out()
        if (why := self.too_few(self.shares)) is not None:
            yield from self.closed(self.shares, why)
            return
        sent = {
            "members": members,
            "cohort": names_tensor(list(self.shares)),
            "heaviest": torch.tensor(self.heaviest, dtype=torch.float64),
        } | self.model
        names = ["/".join(one) for one in vector_names(self.like)]
        for stream in (BOUNDS, NEAR):
            known = self.party.memory.get(stream, {})
            if names and known.keys() >= set(names):
                sent[stream] = torch.stack([known[name] for name in names])
        self.grid = read_grid(sent, self.bound, self.bits, len(self.members.names), len(names))
        self.total = zeros(self.like, self.grid.width)
        yield from self.gather([self.tasks[name] for name in sorted(self.shares)], sent)
        why = self.too_few(self.added)
        if why is None and not all(self._can_open(name, self.added) for name in self.shares):
            why = "too few of the clients that hold shares are left"
        if why is not None:
            yield from self.closed(self.added, why)
            return
        yield from self._open(sent)

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

    def take(self, values: Tensors) -> None:
        """Add a masked update to the sum."""
        one = from_tensors(values, self.like, self.grid.width)
        if one is None:
            raise ClientFailed("no masked numbers")
        np.add(self.total.numbers, one.numbers, out=self.total.numbers)
        np.add(self.total.counts, one.counts, out=self.total.counts)

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

        yield from self.ask(UNMASK, self.added, request, take, len(self.added))
        if not self._take_masks_off(known, transcript(sent)):
            yield from self.closed(self.added, "too few clients answered with shares that fit")
            return
        update = self.mean(self.total)
        if update is None:
            yield from self.closed(self.added, WRONG_WEIGHTS)
            return
        names = ["/".join(one) for one in vector_names(self.like)]
        sizes = sizes_in(self.total, len(names), self.grid)
        for stream, few in ((BOUNDS, False), (NEAR, True)):
            # Until every tensor has moved, numbers keep the bits with which no bound is needed.
            moved = self.grid.measured or not self.grid.still(sizes).any()
            if moved and (not few or (self.bits and self.grid.measured)):
                bounds = torch.from_numpy(self.grid.next_bounds(sizes, few=few))
                self.bounds[stream] = dict(zip(names, bounds.unbind(), strict=True))
        yield update

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
