"""A participant that samples the shared model: what it reads of a client's rows, and what without the client."""

from __future__ import annotations

import json

import pytest

import weft
from support.rows import write_rows
from weft.cli import main


@pytest.fixture
def given(tiny_model, tmp_path):
    """The keys of a run of two clients that speak of different things."""
    clients = []
    for name, asked, text in (
        ("north", "What falls in winter, {}?", "snow falls at night"),
        ("south", "Road {}: what is on it?", "dust on the amber road"),
    ):
        rows = [{"instruction": asked.format(number), "output": text} for number in range(18)]
        clients.append({"name": name, "data": str(write_rows(tmp_path / f"{name}.jsonl", rows))})
    return {
        "model_name_or_path": str(tiny_model), "clients": clients, "template": "vicuna", "seq_length": 96,
        "sample_clients": 2, "num_rounds": 3, "max_steps": 40, "batch_size": 8, "learning_rate": 5e-3,
        "lr_scheduler_type": "constant", "dtype": "float32", "use_peft": False, "eval_fraction": 0.2, "eval_every": 0,
        "output_dir": str(tmp_path / "run"), "threads": 1,
    }  # fmt: skip


def audit(keys: dict) -> dict:
    run = weft.train(keys)
    assert main(["audit", str(run.path), "--quiet", "--tests", "participant"]) == 0
    return json.loads((run.path / "audit.json").read_text())["audits"]["participant"]["numbers"]


@pytest.mark.slow
def test_what_a_client_brings_is_read_by_another(given):
    found = audit(given)
    assert found["victim"] == "south"
    last = found["rounds"]["round 3"]
    assert last["difference"]["low"] > 0.15
    assert last["near_control"]["value"] == 0
    assert last["difference"]["value"] > found["rounds"]["round 1"]["difference"]["value"]
    assert "its held-out rows" in found["rounds"]


def test_a_client_that_teaches_nothing_gives_nothing_away(given):
    found = audit(given | {"learning_rate": 1e-9, "max_steps": 1})
    assert all(line["difference"]["value"] == 0 for line in found["rounds"].values())


def test_one_client_has_no_other_to_ask_for(given, capsys):
    run = weft.train(given | {"clients": given["clients"][:1], "sample_clients": 1, "max_steps": 1, "num_rounds": 1})
    assert main(["audit", str(run.path), "--tests", "participant"]) == 2
    assert "One client took part in the run" in capsys.readouterr().err
