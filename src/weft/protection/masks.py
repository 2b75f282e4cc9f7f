"""Secure aggregation by masks: the server learns the sum of the updates, and no single one.

Bonawitz et al. 2017 (doi 10.1145/3133956.3133982), with the graph of Bell et al. 2020 (eprint 2020/704) for large
cohorts. Four exchanges a round: keys, shares, masked updates, unmasking. Each client adds a mask of its own and one for
each peer that the peer takes off. Shares of more than two thirds of the holders open the own masks of those that
answered and the shared masks of those that dropped out, never both of one client. See docs/wire.md for what the server
still sees. The protocol is written here and has had no review from outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from weft.core.party import Party
from weft.core.types import ProtectionReply, ProtectionRequest, Reply, Request, Streams, Update
from weft.errors import ClientFailed, ConfigError
from weft.protection.fixed_point import WHOLE, packed_size
from weft.protection.groups import groups_of
from weft.protection.mask_client import SEALED_BYTES, Client
from weft.protection.mask_server import KEYS, SHARES, UNMASK, MaskOpening
from weft.protection.masking import KEY_BYTES, check_library
from weft.protection.members import METRICS, Keys, Members, model_of, names_tensor, to_bytes, to_tensor
from weft.protection.opening import Opening
from weft.protection.sealed import SealedSums
from weft.protection.shamir import SHARE_BYTES
from weft.protection.sums import SLOTS, Grid, lengths_of, vector_names

LIST_BYTES = 1 << 13
"""Bytes of one member in a list, with its certificate."""
MANY = 20
"""Neighbours of a client among more than twice as many clients."""


@dataclass(frozen=True)
class Masks(SealedSums):
    """Masks that cancel in the sum; see above."""

    bits: int = 0
    """Of a number, from the third round on; 0: the modulus has 32 bits. In the first round, and until every tensor
    has moved, it has 64, and in the one after it 32."""
    neighbours: int = 0
    """With how many others a client shares masks (even); 0: all others, or 20 of more than 40."""

    word: ClassVar[str] = "masks"
    fewer_bytes: ClassVar[str] = "write --codec none --protection_args bits=9"

    def __post_init__(self) -> None:
        check_library()
        super().__post_init__()
        if self.bits and not 4 <= self.bits <= 16:
            raise ConfigError(
                f"bits of the masks is {self.bits}: write 0 for 32 bits of the sum, or 4 to 16, such as 9."
            )
        if self.bits and self.unit == "client":
            raise ConfigError(
                f"bits of the masks is {self.bits}, which announces how large updates were, and privacy_unit client "
                "covers their sum alone: leave out bits in --protection_args."
            )
        if self.neighbours % 2 or self.neighbours < 0 or 0 < self.neighbours < 4:
            raise ConfigError(
                f"neighbours of the masks is {self.neighbours}: write 0, or an even number from 4, such as 20."
            )

    @property
    def remark(self) -> str:
        """What is hidden and what is not."""
        return (
            "the server sees sums of updates, of training metrics and of scores only. Who takes part, when, and the "
            "number of rows are not hidden (docs/wire.md); the protocol has had no review from outside."
        )

    def largest(self, update_bounds: tuple[int, int]) -> tuple[int, int]:
        """Return upper bounds of a masked update and of a reply with shares."""
        size, tensors = update_bounds
        return 2 * size + 8 * (SLOTS + tensors) + (1 << 20), tensors + 8

    def traffic(self, like: Streams, encoded: int, names: Sequence[str], round: int) -> tuple[float, float]:
        """Return the mean bytes of keys, lists and shares to a client, and of all that it sends; see the base class."""
        count = max(1, len(names) // groups_of(len(names), self.group_size))
        graph = self._graph(count)
        peers = min(graph or count, count - 1)
        keys = Keys(*(bytes(KEY_BYTES),) * 3)
        listed, some = len(Members(dict.fromkeys(names[:count], keys), graph).raw), len(names_tensor(names[:count]))
        numbers, counts = lengths_of(like)
        bits = 64 if round == 0 or self.unit == "client" else WHOLE if round == 1 or not self.bits else self.bits
        width = Grid(1.0, count, 1.0, bits).width
        up = 3 * KEY_BYTES + peers * SEALED_BYTES + (peers + 1) * SHARE_BYTES
        up += packed_size(numbers, width) + 8 * counts + METRICS
        bounds = 8 * len(vector_names(like)) * min(round, 2 if self.bits else 1) if self.unit != "client" else 0
        down = 3 * listed + 3 * some + 8 + bounds + peers * SEALED_BYTES
        return float(down), float(up)

    def answer(self, request: ProtectionRequest, party: Party) -> Reply:
        """Publish keys, share secrets, or reveal shares at the client."""
        client = self._client(party, request.attempt)
        values = request.streams.get(request.phase, {})
        if request.phase == KEYS:
            sent = {name: to_tensor(part) for name, part in zip(Keys._fields, client.keys(), strict=True)}
        elif request.phase == SHARES:
            sent = {"shares": client.shares(to_bytes(values.get("members")))}
        elif request.phase == UNMASK:
            sent = {"shares": client.reveal(values)}
        else:
            raise ClientFailed(f"knows no message '{request.phase}' of masked sums")
        return ProtectionReply(request.client, request.round, request.phase, {request.phase: sent})

    def seal(self, update: Update, task: Request, party: Party) -> Update:
        """Mask an update at the client."""
        client = self._client(party, task.attempt)
        stream = MaskOpening.stream
        values = task.extra.get(stream, {}) | model_of(task, stream, party)
        return client.mask(update, values, self.bound, self.bits, bare=self.unit == "client")

    def _graph(self, clients: int) -> int:
        """Return with how many others each of so many clients shares masks; 0: all."""
        return self.neighbours or (MANY if clients > 2 * MANY else 0)

    def _client(self, party: Party, attempt: int) -> Client:
        # How many clients the server asked, a client cannot know: it takes either.
        graphs = (self.neighbours,) if self.neighbours else (0, MANY)
        return Client(party, attempt, max(self.min_contributors, party.quorum), graphs)

    def opening(self, tasks: Mapping[str, Request], like: Streams, server: Party) -> MaskOpening:
        """Return a masked sum, at the server."""
        graph = self._graph(len(tasks))
        return MaskOpening(tasks, like, server, self.bound, self.min_contributors, graph, self.bits)

    def keep(self, sums: Sequence[Opening], party: Party) -> None:
        """Keep the bounds of tensors for the next round: of groups, the largest."""
        if self.unit == "client":
            return  # no sizes are told, so that numbers keep the bits of the first round
        fresh: Streams = {}
        for one in sums:
            assert isinstance(one, MaskOpening)
            for stream, values in one.bounds.items():
                before = fresh.get(stream, {})
                fresh[stream] = {name: torch.maximum(value, before.get(name, value)) for name, value in values.items()}
        party.kept.update({stream: party.memory.get(stream, {}) | values for stream, values in fresh.items()})
