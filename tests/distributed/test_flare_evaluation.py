"""Federated evaluation over NVIDIA FLARE: real sites score as one process does, in the clear and in a sealed sum."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import weft
from support.flare import MARKS, begun
from support.results import metrics
from weft.cli import main
from weft.config import build
from weft.sites.local_federation import LocalFederation
from weft.sites.watcher import watch

pytest.importorskip("nvflare")
pytestmark = [*MARKS, pytest.mark.slow]
SITES = ("hospital_a", "hospital_b", "hospital_c")


@pytest.fixture
def parties(tmp_path: Path, tiny_model: Path) -> Iterator[LocalFederation]:
    """A server and three sites."""
    accept = {"models": [str(tiny_model)], "min_report_rows": 1}
    with begun(tmp_path, {name: {"accept": accept} for name in SITES}) as made:
        yield made


def test_sites_score_a_trained_model_as_one_process_does(keys, parties: LocalFederation, tmp_path: Path, capsys):
    left = {key: value for key, value in keys.items() if key not in ("dataset_name", "num_clients")}
    left |= {"threads": 1, "sample_clients": 3, "num_rounds": 1, "eval_fraction": 0.3, "eval_every": 0}
    left |= {"choices": ["red", "green", "blue"]}
    run = left | {"runtime": "nvflare", "sites": list(SITES), "silence_timeout": 20.0}

    def ran(name: str, **changes: object) -> list[dict[str, Any]]:
        last = watch(parties.admin, build(run | changes), name, lambda _: None)
        assert last["state"] == "done", last
        lines = (parties.kits / "server" / "runs" / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    clients = [{"name": name, "data": str(tmp_path / f"{name}.jsonl")} for name in SITES]
    here = left | {"clients": clients}
    trained = weft.train(here | {"output_dir": str(tmp_path / "trained")}, quiet=True)
    assert ran("first")[-1] == metrics(trained)[-1]

    (there,) = ran("after", num_rounds=0, evaluated_run="first")
    capsys.readouterr()
    assert main(["evaluate", str(trained.path), "--federated", "--json", "--output_dir", str(tmp_path / "again")]) == 0
    assert there == json.loads(capsys.readouterr().out)["shared"] | {"round": 0}
    assert set(there["clients"]) == set(SITES)

    (sealed,) = ran("sealed", num_rounds=0, evaluated_run="first", protection="masks")
    assert (sealed["clients"], sealed["members"]) == ({}, list(SITES))
    assert "groups" not in sealed
    for name in ("rows", "accuracy", "macro_f1"):
        assert sealed[name] == there[name]
    assert sealed["loss"] == pytest.approx(there["loss"], abs=1e-7)

    (before,) = ran("before", num_rounds=0)  # the control: another model has other scores
    assert before["loss"] != there["loss"]
    begun_here = weft.train(here | {"num_rounds": 0, "output_dir": str(tmp_path / "begun")}, quiet=True)
    assert before == metrics(begun_here)[0]
