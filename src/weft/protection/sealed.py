"""What protections have in common that open sums alone: the clients of a sum, its groups, and the range of numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from weft.core.exchange import Exchange, Protection
from weft.core.party import Party
from weft.core.types import Reply, Request, Streams
from weft.errors import ConfigError
from weft.protection.groups import deal, together
from weft.protection.opening import Opening


@dataclass(frozen=True)
class SealedSums(Protection):
    """Sums that are opened, of updates that are not."""

    bound: float = 16.0
    """Largest absolute value of a number in an update; larger ones are cut and counted."""
    min_contributors: int = field(default=3, metadata={"key": "min_contributors"})
    """Fewest clients in a sum: fewer could guess each other's part."""
    group_size: int = field(default=0, metadata={"key": "group_size"})
    """Fewest clients of a group, each of which has a sum of its own; 0: one sum of all."""
    unit: str = field(default="none", metadata={"key": "privacy_unit"})
    """What differential privacy protects: of updates of clients under a budget, nothing but the sum is told."""

    sum_only: ClassVar[bool] = True
    seals_scores: ClassVar[bool] = True
    draws_secrets: ClassVar[bool] = True
    can_group: ClassVar[bool] = True
    word: ClassVar[str]
    """What seals, in a sentence."""

    def __post_init__(self) -> None:
        if not 0 < self.bound < 1e6:
            raise ConfigError(
                f"bound of the {self.word} is {self.bound:g}: write a number above 0 and below 1,000,000."
            )
        if self.min_contributors < 2:
            raise ConfigError(
                f"min_contributors of the {self.word} is {self.min_contributors}, and the sum of one client is its "
                "update: write 2 or more (3)."
            )
        if 0 < self.group_size < self.min_contributors:
            raise ConfigError(
                f"group_size is {self.group_size}, and a sum has min_contributors {self.min_contributors} at least: "
                f"write --group_size {self.min_contributors} or more."
            )

    @property
    def smallest_sum(self) -> int:
        """Fewest clients of a sum that it opens."""
        return max(self.min_contributors, self.group_size)

    @property
    def grouped(self) -> bool:
        """Whether the server sees a sum of each group."""
        return self.group_size > 0

    def opening(self, tasks: Mapping[str, Request], like: Streams, server: Party) -> Opening:
        """Return the sum over the clients of these tasks, at the server."""
        raise TypeError(f"{type(self).__name__} must define opening")

    def keep(self, sums: Sequence[Opening], party: Party) -> None:
        """Put what the server learnt of the sums of a round for the next one into `party.kept`."""

    def collect(self, exchange: Exchange, tasks: Sequence[Request], like: Streams, party: Party) -> Iterable[Reply]:
        """Run the phases of all sums side by side, and yield failures and the sums."""
        by_name = {task.client: task for task in tasks}
        groups = deal(list(by_name), self.group_size, tasks[0].round) if tasks else []
        server = replace(party, quorum=0)
        sums = [self.opening({name: by_name[name] for name in group}, like, server) for group in groups]
        yield from together(exchange, sums, party.quorum)
        self.keep(sums, party)
