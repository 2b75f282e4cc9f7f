"""Rounds with clients that send bad updates, repeat themselves, come late or drop out."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from support.updates import PLAN, STATE, Posted, cohort, honest, update
from weft.core import wire
from weft.core.exchange import Runtime
from weft.core.types import BAD, Failure
from weft.errors import RunError
from weft.federation.loop import Rounds, run_rounds, set_aside
from weft.federation.round import run_round
from weft.federation.sampling import Selection


class Stubborn(Runtime):
    """Two clients that are honest, and one that never is."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def exchange(self, messages):
        self.asked.append([message.client for message in messages])
        for task in messages:
            made = update(task.client, round=task.round, base_version=task.base_version, attempt=task.attempt)
            yield replace(made, weight=-1.0) if task.client == "c" else made


def test_a_client_that_goes_on_sending_bad_updates_is_set_aside():
    runtime, clients = Stubborn(), ["a", "b", "c"]
    begun = replace(STATE, round=0)
    how = Rounds(6, Selection(1, 3), 0, rows=[10, 10, 10], max_bad_updates=2)
    done = list(run_rounds(PLAN, begun, runtime, how, clients=clients, eval_clients=[]))
    assert runtime.asked == [["a", "b", "c"]] * 2 + [["a", "b"]] * 4
    state = done[-1].state
    assert {name: int(count) for name, count in state.memory[BAD].items()} == {"c": 2}
    assert set_aside(state, 2) == {"c"}
    lone = Rounds(9, Selection(1, 3), 0, rows=[10], max_bad_updates=2)
    with pytest.raises(RunError, match="bad updates"):
        list(run_rounds(PLAN, replace(begun, memory=state.memory), Stubborn(), lone, clients=["c"], eval_clients=[]))


def test_a_repeated_and_a_late_update_are_counted_and_dropped():
    sent = honest()
    late = wire.pack(update("good_1", seed=7, round=3, base_version=3), "r")
    once, _ = run_round(PLAN, STATE, cohort(), Posted(sent))
    state, record = run_round(PLAN, STATE, cohort(), Posted([sent[0], sent[0], ("good_1", late), *sent[1:], sent[2]]))
    assert record.late == 3
    assert record.failures == {}
    assert record.bad == []
    assert all(torch.equal(state.params[name], value) for name, value in once.params.items())


class Unsteady(Runtime):
    """Clients of whom three in ten drop out, by failing or by silence."""

    def __init__(self) -> None:
        self.chance = random.Random(1)

    def exchange(self, messages):
        for task in messages:
            drawn = self.chance.random()
            if drawn < 0.15:
                yield Failure(task.client, task.round, "dropped out")
            elif drawn > 0.3:
                yield update(task.client, round=task.round, base_version=task.base_version, attempt=task.attempt)


def test_rounds_with_drop_outs_commit_or_are_repeated_for_two_hundred_rounds():
    plan = replace(PLAN, quorum=4)
    clients = [f"c{i}" for i in range(5)]
    how = Rounds(200, Selection(1, 5), 0, max_attempts=50, rows=[10.0] * 5)
    done = list(run_rounds(plan, replace(STATE, round=0), Unsteady(), how, clients=clients, eval_clients=[]))
    committed = [one for one in done if not one.record.repeated]
    assert [one.state.round for one in committed] == list(range(1, 201))
    assert all(len(one.record.clients) >= 4 for one in committed)
    again = [one for one in done if one.record.repeated]
    assert again
    assert all(len(one.record.clients) < 4 for one in again)
    assert done[-1].state.attempts == len(again)
    assert all(set(one.record.clients) | set(one.record.failures) == set(clients) for one in done)
