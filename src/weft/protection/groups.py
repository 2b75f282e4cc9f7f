"""Several sums of one round, each over a group of its clients, whose phases go side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from weft.core.exchange import Exchange
from weft.core.types import Failure, Message, Reply
from weft.protection.masking import words


class Step(NamedTuple):
    """Messages of one phase of a sum."""

    messages: list[Message]
    take: Callable[[Reply], Failure | None]
    """Takes a reply to one of them; returns why it does not count."""
    opens: int = 0
    """Of the phase that opens the sum: the clients in it."""


Phases: TypeAlias = Iterator[Step | Reply]


class Sum(Protocol):
    """A sum of updates that is on its way."""

    def run(self) -> Phases:
        """Yield a step for each phase, and replies: failures, and the sum. What follows a step sees its replies."""
        ...

    def close(self, why: str) -> Iterator[Failure]:
        """Yield the failures of a sum that stays closed."""
        ...


def groups_of(count: int, size: int) -> int:
    """Return the groups of so many clients; `size` as of `deal`."""
    return max(1, count // size) if size else 1


def deal(names: Sequence[str], size: int, round: int) -> list[list[str]]:
    """Return clients in groups of `size`, or up to twice as many in the last ones; other groups in every round.

    Args:
        names: of a cohort.
        size: fewest clients of a group; 0, or more than half of them: one group.
        round: the round. A repeated one has the same groups, as far as it has the same clients.
    """
    count = groups_of(len(names), size)
    order = sorted(names, key=lambda name: hashlib.sha256(words("group", str(round), name)).digest())
    return [sorted(order[number::count]) for number in range(count)]


def together(exchange: Exchange, sums: Sequence[Sum], quorum: int) -> Iterator[Reply]:
    """Run sums side by side, one exchange for each phase, and yield all replies.

    Args:
        exchange: carries the messages.
        sums: of different clients.
        quorum: clients that all sums need together; with fewer, none is opened.
    """
    under_way = {number: (one, one.run()) for number, one in enumerate(sums)}
    while under_way:
        steps: dict[int, Step] = {}
        for number, (_, phases) in list(under_way.items()):
            for step in phases:
                if isinstance(step, Step):
                    steps[number] = step
                    break
                yield step
            else:
                del under_way[number]
        opening = [step.opens for step in steps.values() if step.opens]
        if opening and sum(opening) < quorum:
            for number in steps:
                yield from under_way.pop(number)[0].close(f"{sum(opening)} clients are left, and it takes {quorum}")
            continue
        if not steps:
            return
        waiting = {message.client: step for step in steps.values() for message in step.messages}
        for reply in exchange([message for step in steps.values() for message in step.messages]):
            step_of = waiting.get(reply.client)
            if step_of is not None and (failure := step_of.take(reply)) is not None:
                yield failure
