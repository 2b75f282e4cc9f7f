"""Who takes part: functions of the seed, and schedules of a server that does not wait."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.errors import RunError
from weft.federation.conditions import Conditions
from weft.federation.sampling import Availability, Selection, arrivals, sample_clients

NAMES = [f"client_{n}" for n in range(20)]


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 9), st.integers(0, 3))
def test_cohorts_are_different_clients_and_depend_on_the_round(population: int, count: int, round: int, again: int):
    found = sample_clients(population, count, seed=1, round=round, draw=again)
    assert found == sample_clients(population, count, seed=1, round=round, draw=again)
    assert len(set(found)) == len(found) == min(population, count)
    assert all(0 <= client < population for client in found)


def test_clients_are_sampled_by_weight():
    weights = np.array([1.0] * 10 + [99.0] * 10)
    seen = [c for r in range(200) for c in sample_clients(20, 2, seed=0, round=r, weights=weights)]
    assert sum(client >= 10 for client in seen) > 0.95 * len(seen)


def test_traces_say_who_can_be_reached():
    trace = Availability({"client_0": [(1, 2), (5, 5)], "client_1": [(3, 4)]}, period=6)
    there = [[int(i) for i in trace.reachable(NAMES[:3], clock)] for clock in range(7)]
    assert there == [[0, 2], [0, 2], [1, 2], [1, 2], [0, 2], [2], [0, 2]]
    selection = Selection(0, 2, availability=trace)
    assert selection.cohort(NAMES[:3], round=5, attempt=0, clock=5) == [2]


def test_simulated_drop_outs_come_at_their_rate():
    conditions = Conditions(seed=3, failure_rate=0.25)
    failed = [conditions.fails(round, 0, name) for round in range(100) for name in NAMES]
    assert np.mean(failed) == pytest.approx(0.25, abs=0.03)
    assert failed == [conditions.fails(round, 0, name) for round in range(100) for name in NAMES]
    assert [Conditions(speeds=(1, 0.5)).step_fraction(client) for client in range(4)] == [1, 0.5, 1, 0.5]
    assert Conditions(speeds=(2.0,)).step_fraction(0) == 1


def test_with_equal_speeds_a_full_buffer_is_a_synchronous_cohort():
    selection = Selection(7, 4)
    for round, (invited, now) in enumerate(islice(arrivals(selection, Conditions(), NAMES, 4), 10)):
        assert [client for client, _ in invited] == selection.cohort(NAMES, round, 0, round)
        assert {version for _, version in invited} == {round}
        assert now == round + 1


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(1, 6), st.lists(st.floats(0.2, 2), min_size=1, max_size=5))
def test_an_asynchronous_schedule_repeats_and_fills_the_buffer_with_different_clients(
    running: int, buffer: int, speeds: list[float]
):
    found = list(islice(arrivals(Selection(1, running), Conditions(speeds=tuple(speeds)), NAMES, buffer), 12))
    clock = 0.0
    for version, (invited, now) in enumerate(found):
        assert now >= clock
        clock = now
        assert len(invited) == buffer
        assert len({client for client, _ in invited}) == buffer
        assert all(began <= version for _, began in invited)
    again = list(islice(arrivals(Selection(1, running), Conditions(speeds=tuple(speeds)), NAMES, buffer), 12))
    assert found == again


def test_a_round_in_which_no_client_can_be_reached_is_an_error():
    nobody = Availability({name: [(50, 60)] for name in NAMES})
    with pytest.raises(RunError, match="No client can be reached in round 1"):
        next(arrivals(Selection(0, 2, availability=nobody), Conditions(), NAMES, 2))


class Counted(list):
    """Names that count how often somebody goes through all of them."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(names)
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        return super().__iter__()


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_who_can_be_reached_is_what_the_trace_says_name_by_name(data):
    spans = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 3)).map(lambda s: (s[0], s[0] + s[1])), max_size=3)
    trace = data.draw(st.dictionaries(st.sampled_from([*NAMES, "nobody"]), spans))
    period = data.draw(st.none() | st.integers(1, 8))
    excluded = data.draw(st.sets(st.integers(0, 19)))
    names, availability = Counted(NAMES), Availability(trace, period)
    for clock in range(9):
        now = (clock % period if period else clock) + 1
        there = [
            index
            for index, name in enumerate(NAMES)
            if name not in trace or any(first <= now <= last for first, last in trace[name])
        ]
        assert availability.reachable(names, clock).tolist() == there
        selection = Selection(0, 20, availability=availability)
        assert selection.cohort(names, 0, 0, clock, sorted(excluded)) == [i for i in there if i not in excluded]
    assert names.passes == 1
    assert availability.reachable(NAMES[:5], 0).max(initial=0) < 5  # other names are looked up anew


def test_excluded_clients_are_looked_up_once_in_a_run():
    """A round may not cost more where there are more clients."""
    from dataclasses import replace
    from types import SimpleNamespace

    import torch

    from weft.core.types import BAD, ServerState
    from weft.federation.loop import Rounds, _sampled_cohort

    names, places = Counted(NAMES), {}
    plan = SimpleNamespace(algorithm=SimpleNamespace(cohort=lambda sampled, count: sampled))
    rounds = Rounds(9, Selection(0, 20), 0, max_bad_updates=2)
    state = ServerState({}, {BAD: {"client_3": torch.tensor(2.0), "client_5": torch.tensor(1.0)}})
    for round in range(5):
        found = _sampled_cohort(plan, replace(state, round=round), rounds, names, places)
        assert found == [index for index in range(20) if index != 3]
    assert names.passes == 1
    assert len(_sampled_cohort(plan, ServerState({}), rounds, names, {})) == 20
    assert names.passes == 1
