"""Secure aggregation by masks: the server learns the sum of the updates, and no single one.

Bonawitz et al. 2017 (doi 10.1145/3133956.3133982), with the graph of Bell et al. 2020 (eprint 2020/704) for large
cohorts. Four exchanges a round: keys, shares, masked updates, unmasking. Each client adds a mask of its own and one for
each peer that the peer takes off. Shares of more than two thirds of the holders open the own masks of those that
answered and the shared masks of those that dropped out, never both of one client. See docs/wire.md for what the server
still sees. The protocol is written here and has had no review from outside.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from weft.core.exchange import Exchange, Protection
from weft.core.party import Party
from weft.core.types import ProtectionReply, ProtectionRequest, Reply, Streams, Task, Update
from weft.errors import ClientFailed, ConfigError
from weft.protection import mask_server
from weft.protection.groups import deal, together
from weft.protection.mask_client import Client
from weft.protection.mask_server import KEYS, SHARES, UNMASK
from weft.protection.masking import check_library
from weft.protection.members import Keys, to_bytes, to_tensor
from weft.protection.sums import SLOTS

LIST_BYTES = 1 << 13
"""Bytes of one member in a list, with its certificate."""


@dataclass(frozen=True)
class Masks(Protection):
    """Masks that cancel in the sum; see above."""

    bound: float = 16.0
    """Largest absolute value of a number in an update; larger ones are cut and counted."""
    min_contributors: int = field(default=3, metadata={"key": "min_contributors"})
    """Fewest clients in a sum: fewer could guess each other's part."""
    group_size: int = field(default=0, metadata={"key": "group_size"})
    """Fewest clients of a group, each of which has a sum of its own; 0: one sum of all."""
    bits: int = 0
    """Of a number, from the third round on; 0: the modulus has 32 bits. In the first round, and until every tensor
    has moved, it has 64, and in the one after it 32."""
    unit: str = field(default="none", metadata={"key": "privacy_unit"})
    """What differential privacy protects: of updates of clients under a budget, nothing but the sum is told."""
    neighbours: int = 0
    """With how many others a client shares masks (even); 0: all others, or 20 of more than 40."""

    sum_only: ClassVar[bool] = True
    draws_secrets: ClassVar[bool] = True
    can_group: ClassVar[bool] = True
    fewer_bytes: ClassVar[str] = "write --codec none --protection_args bits=9"
    remark: ClassVar[str] = (
        "the server sees sums of updates and of training metrics only. Who takes part, when, the number of rows and "
        "the scores of held-out rows are not hidden (docs/wire.md); the protocol has had no review from outside."
    )

    def __post_init__(self) -> None:
        check_library()
        if not 0 < self.bound < 1e6:
            raise ConfigError(f"bound of the masks is {self.bound:g}: write a number above 0 and below 1,000,000.")
        if self.bits and not 4 <= self.bits <= 16:
            raise ConfigError(
                f"bits of the masks is {self.bits}: write 0 for 32 bits of the sum, or 4 to 16, such as 9."
            )
        if self.bits and self.unit == "client":
            raise ConfigError(
                f"bits of the masks is {self.bits}, which announces how large updates were, and privacy_unit client "
                "covers their sum alone: leave out bits in --protection_args."
            )
        if self.min_contributors < 2:
            raise ConfigError(
                f"min_contributors of the masks is {self.min_contributors}, and the sum of one client is its update: "
                "write 2 or more (3)."
            )
        if 0 < self.group_size < self.min_contributors:
            raise ConfigError(
                f"group_size is {self.group_size}, and a sum has min_contributors {self.min_contributors} at least: "
                f"write --group_size {self.min_contributors} or more."
            )
        if self.neighbours % 2 or self.neighbours < 0 or 0 < self.neighbours < 4:
            raise ConfigError(
                f"neighbours of the masks is {self.neighbours}: write 0, or an even number from 4, such as 20."
            )

    @property
    def smallest_sum(self) -> int:
        """Fewest clients of a sum that it opens."""
        return max(self.min_contributors, self.group_size)

    @property
    def grouped(self) -> bool:
        """Whether the server sees a sum of each group."""
        return self.group_size > 0

    def largest(self, update_bounds: tuple[int, int]) -> tuple[int, int]:
        """Return upper bounds of a masked update and of a reply with shares."""
        size, tensors = update_bounds
        return 2 * size + 8 * (SLOTS + tensors) + (1 << 20), tensors + 8

    def answer(self, request: ProtectionRequest, party: Party) -> Reply:
        """Publish keys, share secrets, or reveal shares at the client."""
        client = Client(party, request.attempt, max(self.min_contributors, party.quorum))
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

    def seal(self, update: Update, task: Task, party: Party) -> Update:
        """Mask an update at the client."""
        client = Client(party, task.attempt, max(self.min_contributors, party.quorum))
        return client.mask(update, task.extra.get("masks", {}), self.bound, self.bits, bare=self.unit == "client")

    def collect(self, exchange: Exchange, tasks: Sequence[Task], like: Streams, party: Party) -> Iterable[Reply]:
        """Run the four exchanges and yield failures and the sum."""
        by_name = {task.client: task for task in tasks}
        groups = deal(list(by_name), self.group_size, tasks[0].round) if tasks else []
        server = replace(party, quorum=0)
        sums = [
            mask_server.MaskOpening(
                {name: by_name[name] for name in group},
                like,
                server,
                self.bound,
                self.min_contributors,
                self.neighbours or (20 if len(group) > 40 else 0),
                self.bits,
            )
            for group in groups
        ]
        yield from together(exchange, sums, party.quorum)
        if self.unit == "client":
            return  # no sizes are told, so that numbers keep the bits of the first round
        fresh: Streams = {}
        for one in sums:  # of groups, the largest
            for stream, values in one.bounds.items():
                before = fresh.get(stream, {})
                fresh[stream] = {name: torch.maximum(value, before.get(name, value)) for name, value in values.items()}
        party.kept.update({stream: party.memory.get(stream, {}) | values for stream, values in fresh.items()})
