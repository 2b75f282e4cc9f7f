"""Clients that fail in a round: what repeats it meets the same failures, and says where it meets others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import weft
from weft.audits.scene import Scene
from weft.audits.sent import Station
from weft.audits.settings import CannotAudit, Settings
from weft.cli import main
from weft.core.witness import state_digest
from weft.federation.conditions import Conditions
from weft.launch.contribution import _measured
from weft.launch.replay import _replayed, bench
from weft.launch.run import Run
from weft.runs import checkpoint
from weft.runs.chain import read_chain
from weft.runs.layout import RunDir

KEPT = {"save_model_freq": 1, "checkpoint_seconds": 0, "num_rounds": 4, "eval_every": 0, "sample_clients": 3}
NOBODY = Conditions(0, 1.0)
"""Under which every client drops out."""


@pytest.fixture
def failing(people) -> dict[str, Any]:
    """The keys of a run in which clients drop out, and rounds of fewer than two are repeated."""
    return people | KEPT | {"client_failure_rate": 0.4, "min_clients": 2, "max_attempts": 20}


def lines(run: Path) -> list[dict[str, Any]]:
    return list(map(json.loads, (run / "metrics.jsonl").read_text().splitlines()))


def test_failures_are_repeated_with_their_rounds(failing, tmp_path: Path, capsys):
    old = weft.train(failing).path
    logged = lines(old)
    assert any(line["event"] == "repeated" for line in logged)
    assert any(line["failures"] for line in logged if line["event"] == "round")
    # Of every round the same clients fail, so that all bits are equal.
    assert main(["verify", str(old), "--replay", "4"]) == 0
    assert capsys.readouterr().out.count("all bits are equal") == 4
    assert main(["contribution", str(old), "--quiet"]) == 0
    found = json.loads((old / "contribution.json").read_text())
    assert found["same_bits"]
    asked = [line["clients"] for line in logged if line["event"] == "round"]
    took_part = {name: sum(name in clients for clients in asked) for name in ("ward_a", "ward_b", "ward_c")}
    assert {name: one["rounds"] for name, one in found["clients"].items()} == took_part
    # Who forgets a client meets the failures of the others, as a run that never had it.
    assert main(["forget", str(old), "--client", "ward_b", "--yes"]) == 0
    new, fresh = Path(f"{old}-forgotten"), tmp_path / "fresh"
    assert main(["sft", "--config", str(new / "config.yaml"), "--output_dir", str(fresh)]) == 0
    assert lines(new) == lines(fresh)
    last, other = (checkpoint.at(RunDir(run), 4) for run in (new, fresh))
    assert state_digest(last) == state_digest(other)


def test_a_client_that_fails_in_a_repeated_round_alone_is_named(people):
    """A replay that lost a client would else compare a round of others."""
    old = weft.train(people | KEPT | {"num_rounds": 1})
    opened, entries = Run(old.path), read_chain(old.path / "chain.jsonl")[0]
    with bench(opened) as parts:
        assert _replayed(parts, opened.directory, entries, 1).equal
        parts.host = replace(parts.host, conditions=Conditions(0, 0.5))
        found = _replayed(parts, opened.directory, entries, 1)
        failed = [name for name in old.client_names if parts.host.conditions.fails(0, 0, name)]
        assert 0 < len(failed) < 3
        assert not found.equal
        assert set(failed) <= set(found.clients)
        assert found.distance is not None
        assert found.distance > 0
        values = _measured(opened, parts, lambda *_: None)
        assert not values["same_bits"]  # which the command says beside them
        assert set(values["clients"]).isdisjoint(failed)


def test_an_audit_of_rounds_in_which_a_client_fails_prints_no_number(people):
    station = Station(Scene(weft.train(people | KEPT | {"num_rounds": 1}), Settings()))
    names = station.scene.names
    assert len(list(station.rounds(names, 1, 1))) == 1
    station.host = replace(station.host, conditions=NOBODY)
    with pytest.raises(CannotAudit, match=r"A round of 3 clients could not be repeated: dropped out"):
        list(station.rounds(names, 1, 1))
    with pytest.raises(CannotAudit, match=r"The client 'ward_.' sends nothing to audit: dropped out"):
        station.one_step(station.drawn(2)[0])
    with pytest.raises(CannotAudit, match="could not be repeated: dropped out"):
        station.mean(station.drawn(3))
