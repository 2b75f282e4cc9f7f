"""The training of a client's next round, begun while messages travel: its result waits for the task.

Nothing of it is remembered. It follows from the client's memory alone, so a process that is killed trains again when
the task comes, and the same numbers result.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from weft.core.local_rule import LocalRule
from weft.core.tensors import all_finite
from weft.core.types import Task, Tensors
from weft.errors import ClientFailed
from weft.federation.clients import ClientData
from weft.federation.part_memory import OWN, RULE, part_of
from weft.federation.plan import Plan
from weft.models.resident import Resident
from weft.training.job import LocalResult


@dataclass(frozen=True)
class _Begun:
    """A training that needs no task any more."""

    client: str
    round: int
    attempt: int
    share: float
    """Of its steps that the client makes."""
    result: LocalResult


class HeadStart:
    """Trains one client at a time in a thread; the resident model is its own until `wait` returns."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._begun: _Begun | None = None
        self._error: Exception | None = None

    def begin(
        self,
        plan: Plan,
        model: Resident,
        client: ClientData,
        task: Task,
        within: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Begin the round after `task`, whose update the client has made; do nothing where the next task is needed.

        Args:
            plan: the parts.
            model: is trained.
            client: with its memory after the round of `task`.
            task: the last one.
            within: returns the context of the work, such as one that counts its time.
        """
        self.wait()
        self._begun, round, early = None, task.round + 1, plan.algorithm.early
        if early is None:
            return
        memory = client.memory.load(client.name, round)
        rule = early.rule(part_of(memory, RULE), round)
        if rule is None:
            return
        names = plan.sharing.trained_names(model.masters.keys() - model.initial.keys(), round)
        own = model.initial | memory.get(OWN, {})
        job = client.job(own, {}, {*names, *model.initial}, round, task.attempt)

        def train() -> None:
            try:
                with within():
                    result = plan.local.work(model, plan.objective, client.train, rule, job)
                self._begun = _Begun(client.name, round, task.attempt, client.step_fraction, result)
            except ClientFailed:
                pass  # the training fails again when its task is there, and the server is told
            except Exception as error:  # of the thread: raised where the next message is answered
                self._error = error

        self._thread = threading.Thread(target=train, daemon=True, name="head start")
        self._thread.start()

    def wait(self) -> None:
        """Wait until the model is free; raises what the training raised, but for ClientFailed."""
        self._join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def drop(self) -> None:
        """Wait until the model is free, and forget what was begun, and what it raised."""
        self._join()
        self._begun = self._error = None

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def take(self, client: ClientData) -> Callable[[LocalRule, Task], LocalResult | None]:
        """Return what finds the client's training for a task: the result, if it was of that task and its values."""
        begun, self._begun = self._begun, None

        def found(rule: LocalRule, task: Task) -> LocalResult | None:
            wanted = (client.name, task.round, task.attempt, client.step_fraction)
            if begun is None or wanted != (begun.client, begun.round, begun.attempt, begun.share):
                return None
            result, work = begun.result, begun.result.work
            # After an Undo, or a round that was missed, the memory is another one.
            if work is None or not _same(rule.begin(task.params), work.start):
                return None
            finished = rule.finish(work)
            # Trained again, so that the failure has its reason.
            return result._replace(finished=finished) if all(map(all_finite, finished.streams.values())) else None

        return found


def _same(left: Tensors, right: Tensors) -> bool:
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())
