"""The round with fakes: what is dropped, what is averaged, and in which order the stages come."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weft import config as configuration
from weft.aggregation.mean import Mean
from weft.core.exchange import Codec, Privacy, Protection, Runtime
from weft.core.types import Failure, ServerState, Update
from weft.federation.round import run_round
from weft.federation.state import Participant
from weft.launch import compose

STATE = ServerState({"w": torch.zeros(3), "b": torch.zeros(2)}, round=4)
PLAN = compose.plan(configuration.build({"dataset_name": "any"}))


def update(client: str, value: float = 1.0, weight: float = 1.0, **changes: object) -> Update:
    delta = {"w": torch.full((3,), value), "b": torch.full((2,), value)}
    return replace(Update(client, 4, 4, {"delta": delta}, weight), **changes)


def asked(*clients: str) -> list[Participant]:
    return [Participant(client, STATE.round) for client in clients]


class Scripted(Runtime):
    """Answers with what it was given."""

    def __init__(self, *replies: object) -> None:
        self.replies = replies

    def exchange(self, messages):
        yield from self.replies


BAD = {
    "is a failure": Failure("bad", 4, "the training loss is not a finite number"),
    "is of another round": update("bad", round=3),
    "is of another version": update("bad", base_version=2),
    "weighs nothing": update("bad", weight=0.0),
    "weighs less than nothing": update("bad", weight=-1.0),
    "weighs infinitely": update("bad", weight=float("inf")),
    "weighs no number": update("bad", weight=float("nan")),
    "has metrics that are no numbers": update("bad", metrics={"loss_sum": float("nan")}),
    "has no stream": update("bad", streams={}),
    "has another stream": update("bad", streams={"delta": {"w": torch.ones(3), "b": torch.ones(2)}, "more": {}}),
    "lacks a tensor": update("bad", streams={"delta": {"w": torch.ones(3)}}),
    "has another shape": update("bad", streams={"delta": {"w": torch.ones(1, 3), "b": torch.ones(2)}}),
    "has another number format": update("bad", streams={"delta": {"w": torch.ones(3).double(), "b": torch.ones(2)}}),
    "is not a number": update("bad", float("nan")),
    "is infinite": update("bad", float("inf")),
}


@pytest.mark.parametrize("reply", BAD.values(), ids=BAD.keys())
def test_what_may_not_be_averaged_is_dropped_and_recorded(reply):
    runtime = Scripted(update("a", 1.0), reply, update("b", 3.0))
    state, record = run_round(PLAN, STATE, asked("a", "bad", "b"), runtime)
    assert torch.equal(state.params["w"], torch.full((3,), 2.0))
    assert record.clients == ("a", "b")
    assert list(record.failures) == ["bad"]
    assert state.round == 5


def test_a_repeated_update_counts_once_and_a_stranger_not_at_all():
    replies = (update("a", 1.0), update("a", 100.0), update("stranger", 100.0))
    state, record = run_round(PLAN, STATE, asked("a", "silent"), Scripted(*replies))
    assert torch.equal(state.params["w"], torch.ones(3))
    assert record.clients == ("a",)
    assert record.failures["silent"] == "sent no reply"
    assert "stranger" in record.failures


def test_a_round_without_updates_keeps_the_model():
    state, record = run_round(PLAN, STATE, asked("a"), Scripted(Failure("a", 4, "no power")))
    assert torch.equal(state.params["w"], STATE.params["w"])
    assert state.round == 5
    assert record.failures == {"a": "no power"}


def test_updates_are_averaged_as_they_come_and_let_go():
    """However large the cohort, the server holds the update at hand and the mean."""
    alive: list[weakref.ref] = []
    most = 0

    class Streaming(Runtime):
        def exchange(self, messages):
            nonlocal most
            for message in messages:
                sent = update(message.client)
                alive.append(weakref.ref(sent.streams["delta"]["w"]))
                yield sent
                del sent
                most = max(most, sum(one() is not None for one in alive))

    names = [f"client_{n}" for n in range(50)]
    state, record = run_round(PLAN, STATE, asked(*names), Streaming())
    assert len(record.clients) == 50
    assert most <= 2
    assert torch.equal(state.params["w"], torch.ones(3))


def test_the_server_stages_come_in_their_order():
    seen: list[str] = []

    class Watch(Privacy, Codec, Protection):
        def encode_task(self, task, coding, party):
            seen.append("encode task")
            return task, {}

        def on_server(self, total, party):
            seen.append("noise")
            return total, {}

        def decode(self, update, coding, party):
            seen.append("decode")
            return update

        def collect(self, exchange, tasks, like, party):
            seen.append("collect")
            return exchange(tasks)

    watch = Watch()
    plan = replace(PLAN, privacy=watch, codec=watch, codec_down=watch, protection=watch)
    run_round(plan, STATE, asked("a", "b"), Scripted(update("a"), update("b")))
    assert seen == ["encode task", "encode task", "collect", "decode", "decode", "noise"]


values = st.lists(st.tuples(st.floats(-100, 100, width=32), st.floats(0.5, 100, width=32)), min_size=1, max_size=8)


@settings(deadline=None)
@given(values)
def test_the_mean_is_the_weighted_mean_in_any_order(pairs):
    made = [update(str(i), value, weight) for i, (value, weight) in enumerate(pairs)]
    total = Mean().combine(made)
    mean = sum(v * w for v, w in pairs) / sum(w for _, w in pairs)
    assert float(total.streams["delta"]["w"][0]) == pytest.approx(mean, abs=1e-3)
    again = Mean().combine(reversed(made))
    torch.testing.assert_close(total.streams["delta"]["w"], again.streams["delta"]["w"], rtol=1e-4, atol=1e-3)
    low, high = min(v for v, _ in pairs), max(v for v, _ in pairs)
    assert low - 1e-3 <= float(total.streams["delta"]["w"][0]) <= high + 1e-3


@settings(deadline=None)
@given(st.floats(-1e6, 1e6, width=32), st.floats(0.1, 1e6))
def test_the_mean_of_one_update_is_that_update(value: float, weight: float):
    one = update("a", value, weight)
    assert torch.equal(Mean().combine([one]).streams["delta"]["w"], one.streams["delta"]["w"])
    assert torch.equal(one.streams["delta"]["w"], torch.full((3,), value))
