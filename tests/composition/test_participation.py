"""Who takes part in a round: quorum, over-selection, slow clients, drop-outs, availability."""

from __future__ import annotations

from pathlib import Path

import pytest

import weft
from support.results import events
from weft.runs import checkpoint
from weft.runs.layout import RunDir


def test_a_round_with_too_few_replies_is_repeated_and_not_averaged(keys):
    changes = {"num_clients": 8, "sample_clients": 4, "min_clients": 4, "client_failure_rate": 0.3, "num_rounds": 4}
    run = weft.train(keys | changes | {"max_attempts": 100, "fed_alg": "scaffold"})
    assert all(len(line["clients"]) == 4 for line in events(run))
    repeated = events(run, "repeated")
    assert repeated
    assert all(len(line["clients"]) < 4 for line in repeated)
    assert run.summary["attempts"] == 4 + len(repeated)
    # Whoever trained in a repeated round only has forgotten it: c is the cohort's share of the c_i of those that count.
    used = {client for line in events(run) for client in line["clients"]}
    directory = RunDir(run.path)
    kept = {f"client_{i}" for i in range(8) if checkpoint.load_client_memory(directory, f"client_{i}", 4)}
    assert kept == used


def test_a_quorum_that_is_never_met_stops_the_run_to_be_resumed(keys):
    changes = {"sample_clients": 2, "min_clients": 2, "client_failure_rate": 0.99, "max_attempts": 3}
    with pytest.raises(weft.errors.RunError, match="begun 3 times and fewer than 2 clients answered"):
        weft.train(keys | changes)


def test_more_are_asked_than_needed_and_the_fastest_count(keys):
    changes = {"num_clients": 8, "sample_clients": 2, "over_selection": 1.0, "client_speed": [1, 0.5]}
    run = weft.train(keys | changes)
    assert len(events(run)) == run.config.num_rounds
    for line in events(run):
        assert len(line["clients"]) == 2
        assert len(line["over_selected"]) == 2
        slow = [name for name in line["clients"] if int(name[-1]) % 2]
        fast_spare = [name for name in line["over_selected"] if int(name[-1]) % 2 == 0]
        assert not (slow and fast_spare)


def test_slow_clients_make_fewer_steps(keys):
    run = weft.train(keys | {"sample_clients": 3, "max_steps": 4, "client_speed": [1, 0.5, 0.1], "eval_every": 0})
    assert len(events(run)) == run.config.num_rounds
    for line in events(run):
        assert line["examples"] == (4 + 2) * 4
        assert line["failures"] == {"client_2": "was too slow for one of 4 steps"}


def test_an_asynchronous_server_does_not_wait_for_the_slow(keys, tmp_path: Path):
    shared = keys | {
        "num_clients": 6,
        "sample_clients": 3,
        "num_rounds": 6,
        "client_speed": [1, 1, 0.25],
        "max_steps": 1,
    }
    run = weft.train(shared | {"fed_alg": "fedbuff", "fed_args": {"buffer_size": 2}})
    clocks = [line["clock"] for line in events(run)]
    assert clocks == sorted(clocks)
    # Waiting for a client of speed 1/4 takes 4 a round.
    assert clocks[-1] < 4 * 6 / 2


def test_an_asynchronous_server_goes_on_without_those_that_drop_out(keys):
    changes = {"fed_alg": "fedbuff", "client_failure_rate": 0.6, "client_speed": [1, 0.3, 0.5], "num_rounds": 12}
    run = weft.train(keys | changes | {"num_clients": 6, "sample_clients": 3, "max_steps": 1, "eval_every": 0})
    found = events(run)
    assert any(not line["clients"] for line in found)
    assert any(line["clients"] for line in found)
    assert run.summary["rounds"] == 12


def test_only_clients_that_a_trace_has_available_are_asked(keys, tmp_path: Path):
    trace = tmp_path / "trace.csv"
    trace.write_text("client,first,last\nclient_0,1,1\nclient_1,2,2\nclient_2,3,9\n")
    run = weft.train(keys | {"sample_clients": 1, "availability": str(trace)})
    assert [line["clients"] for line in events(run)] == [["client_0"], ["client_1"], ["client_2"]]
    trace.write_text("client,first,last\nclent_0,1,1\n")
    with pytest.raises(weft.errors.DataError, match="Did you mean 'client_0'"):
        weft.train(keys | {"availability": str(trace)}, overwrite=True)
