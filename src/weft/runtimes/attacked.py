"""Runtimes in which somebody lies: clients send what an attack says, or the server does. Simulations only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from weft.core import tensors
from weft.core.attack import Scene
from weft.core.exchange import Runtime
from weft.core.party import Gathering, Party
from weft.core.seeds import derive
from weft.core.types import DELTA, Message, Reply, Task, Tensors, Total, Update
from weft.federation.own_aggregator import checked
from weft.federation.own_attack import forge
from weft.federation.plan import Plan


@dataclass(frozen=True)
class Around(Runtime):
    """Carries messages as another runtime does, but for what `exchange` changes."""

    inner: Runtime

    def pause(self, attempts: int) -> None:
        """Wait as the other runtime does."""
        self.inner.pause(attempts)

    def close(self) -> None:
        """Close the other runtime."""
        self.inner.close()


@dataclass(frozen=True)
class Attacked(Around):
    """Carries messages as another runtime does, and lets attackers see all updates of a round before they send."""

    plan: Plan
    malicious: frozenset[str]
    """Names of the clients that lie."""
    seed: int

    def exchange(self, messages: Sequence[Message]) -> Iterator[Reply]:
        """Yield the replies in the order in which they came, those of attackers replaced."""
        tasks = [message for message in messages if isinstance(message, Task)]
        if not tasks:
            yield from self.inner.exchange(messages)
            return
        replies = list(self.inner.exchange(messages))
        updates = [reply for reply in replies if isinstance(reply, Update)]
        own = [update for update in updates if update.client in self.malicious]
        honest = [update for update in updates if update.client not in self.malicious]
        forged: dict[str, Update] = {}
        if own:
            forged = forge(self.plan.attack, own, honest, self._scene(tasks))
        for reply in replies:
            yield forged.get(reply.client, reply) if isinstance(reply, Update) else reply

    def _scene(self, tasks: Sequence[Task]) -> Scene:
        first, plan = tasks[0], self.plan
        # With memory and secret of its own: attackers know the rule, and neither of these.
        seen = Gathering(
            Party("", first.round, first.attempt), len(tasks), first.params, plan.sharing.scale, plan.trusted
        )

        def rule(updates: Sequence[Update]) -> Total:
            return checked(plan.aggregator, seen).combine(updates)

        return Scene(first.round, derive(self.seed, "attack", first.round, first.attempt), len(tasks), rule)


@dataclass(frozen=True)
class DishonestServer(Around):
    """Carries messages as another runtime does; the model in a task is the server's with something put into it.

    Clients begin from that model, and their updates are counted from the server's, so that what was put in stays.
    """

    change: Callable[[Tensors, int], Tensors]
    """Returns what is added to the parameters of a round; empty: nothing."""

    def exchange(self, messages: Sequence[Message]) -> Iterator[Reply]:
        """Yield the replies in the order in which they came."""
        tasks = [message for message in messages if isinstance(message, Task)]
        added = self.change(tasks[0].params, tasks[0].round) if tasks else {}
        if not added:
            yield from self.inner.exchange(messages)
            return
        sent = [
            replace(message, params=message.params | tensors.add(_those(message.params, added), added))
            if isinstance(message, Task)
            else message
            for message in messages
        ]
        for reply in self.inner.exchange(sent):
            if isinstance(reply, Update):
                delta = reply.streams[DELTA]
                changed = delta | tensors.add(_those(delta, added), added)
                reply = replace(reply, streams=reply.streams | {DELTA: changed})
            yield reply


def _those(values: Tensors, names: Tensors) -> Tensors:
    return {name: values[name] for name in names}
