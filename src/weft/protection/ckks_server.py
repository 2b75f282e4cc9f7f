"""The server's side of encrypted sums: it adds ciphertexts, without any key, and asks clients to open the sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from weft.core.types import ProtectionReply, Streams, Tensors
from weft.errors import ClientFailed
from weft.protection import ciphertexts, fixed_point
from weft.protection.ciphertexts import CLIENTS, SLOTS
from weft.protection.ckks_client import TOKEN_BYTES
from weft.protection.groups import Phases
from weft.protection.hidden import WIDTH, blocks_of, chosen, grid_of, put_together
from weft.protection.members import names_tensor
from weft.protection.opening import WRONG_WEIGHTS, Opening, threshold
from weft.protection.tags import COUNT

AGREE, OPEN = "agree", "open"
"""The phases after the task."""


@dataclass
class CkksOpening(Opening):
    """One attempt of a round, from the updates to the sum."""

    patterns: Sequence[str] = ()
    """Of the tensors that are encrypted; none: all."""

    stream: ClassVar[str] = "ckks"
    sealed: ClassVar[str] = "encrypted"
    hidden: np.ndarray = field(init=False)
    """bool (d,): which numbers are encrypted."""
    count: int = field(init=False)
    """Ciphertexts of an update."""
    total: Tensor = field(init=False)
    """The sum of the ciphertexts."""
    plain: np.ndarray = field(init=False)
    """The sum of the numbers that are not encrypted."""
    tokens: dict[str, Tensor] = field(default_factory=dict, init=False)
    """The agreements to open the sum."""
    found: np.ndarray | None = field(default=None, init=False)
    """What a client has opened."""

    def run(self) -> Phases:
        """Yield the phases, the failures of clients, and the sum of the others' updates if it can be opened."""
        members = len(self.tasks)
        why = self.too_few(self.tasks)
        if members > CLIENTS:
            why = f"at most {CLIENTS} ciphertexts are added"
        if why is not None:
            yield from self.closed(self.tasks, why)
            return
        self.hidden = chosen(self.like, self.patterns)
        self.grid = grid_of(self.bound, members, self.heaviest)
        self.count = blocks_of(self.like, self.hidden)
        self.total = ciphertexts.empty(self.count)
        self.plain = np.zeros(np.count_nonzero(~self.hidden), dtype=np.uint64)
        sent = {
            "members": names_tensor(list(self.tasks)),
            "heaviest": torch.tensor(self.heaviest, dtype=torch.float64),
        } | self.model
        yield from self.gather([self.tasks[name] for name in sorted(self.tasks)], sent)
        if (why := self.too_few(self.added)) is not None:
            yield from self.closed(self.added, why)
            return
        yield from self._open(sent | {"survivors": names_tensor(self.added)})

    def take(self, values: Tensors) -> None:
        """Add an encrypted update to the sum."""
        sealed, raw = values.get("values"), values.get("open")
        plain = None if raw is None else fixed_point.unpack(raw, len(self.plain), WIDTH)
        if sealed is None or plain is None or not ciphertexts.fits(sealed, self.count):
            raise ClientFailed("no ciphertexts")
        ciphertexts.add(self.total, sealed)
        self.plain += plain

    def _open(self, sent: Tensors) -> Phases:
        """Let the survivors agree to the sum, and one of them open it; yield it."""
        yield from self.ask(AGREE, self.added, lambda name: {AGREE: sent}, self._take_token, len(self.added))
        if len(self.tokens) < threshold(len(self.tasks)):
            yield from self.closed(self.added, "too few clients agreed to open it")
            return
        none = torch.zeros(TOKEN_BYTES, dtype=torch.uint8)
        tokens = torch.stack([self.tokens.get(name, none) for name in sorted(self.added)])
        request: Streams = {OPEN: sent | {"tokens": tokens, "sum": self.total}}
        round = next(iter(self.tasks.values())).round
        able = sorted(self.tokens)
        for place in range(len(able)):  # in turn, since it is work
            name = able[(round + place) % len(able)]
            yield from self.ask(OPEN, [name], lambda _: request, self._take_sum, quiet=True)
            if self.found is not None:
                break
        else:
            yield from self.closed(self.added, "no client opened it")
            return
        update = self.mean(put_together(self.found, self.plain, self.hidden, self.like))
        if update is None:
            yield from self.closed(self.added, WRONG_WEIGHTS)
            return
        yield update

    def _take_token(self, reply: ProtectionReply) -> None:
        token = reply.streams[AGREE]["token"]
        if token.dtype != torch.uint8 or tuple(token.shape) != (TOKEN_BYTES,):
            raise ClientFailed("no agreement")
        self.tokens[reply.client] = token

    def _take_sum(self, reply: ProtectionReply) -> None:
        count = self.count * SLOTS - COUNT
        numbers = fixed_point.unpack(reply.streams[OPEN]["numbers"], count, WIDTH)
        if numbers is None:
            raise ClientFailed("no sum")
        spare = 64 - WIDTH
        self.found = (numbers << np.uint64(spare)).view(np.int64) >> spare
