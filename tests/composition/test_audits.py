"""Audits of finished runs: what a model that learnt its canaries by heart says, and what one that did not says."""

from __future__ import annotations

import json

import pytest

import weft
from support.rows import colour_rows, write_rows
from weft.cli import main

MEMORY = {"canaries": 24, "canary_repetitions": [1, 30], "use_peft": False, "num_clients": 1, "sample_clients": 1}
MEMORY |= {"num_rounds": 1, "max_steps": 500, "batch_size": 16, "learning_rate": 1e-2, "eval_every": 0}
MEMORY |= {"lr_scheduler_type": "constant", "dtype": "float32", "threads": 1, "eval_fraction": 0.5}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", colour_rows(120))


@pytest.fixture(scope="module")
def learnt(tiny_model, data, tmp_path_factory):
    """A run whose model knows its repeated canaries by heart."""
    own = {"model_name_or_path": str(tiny_model), "dataset_name": str(data), "template": "vicuna", "seq_length": 128}
    return weft.train(own | MEMORY | {"output_dir": str(tmp_path_factory.mktemp("learnt") / "run")})


def audit(run, *tests: str) -> dict:
    assert main(["audit", str(run.path), "--quiet", "--tests", *tests]) == 0
    return json.loads((run.path / "audit.json").read_text())


def test_what_stands_often_in_the_rows_is_exposed_and_what_does_not_is_not(learnt):
    numbers = audit(learnt, "exposure", "extraction", "epsilon")["audits"]
    exposure = numbers["exposure"]["numbers"]["by_copies"]
    assert exposure["30"]["value"] > 6
    assert exposure["0"]["value"] < 3 > exposure["30"]["before"]
    extraction = numbers["extraction"]["numbers"]["by_copies"]
    assert extraction["30"]["value"] > 0.5
    assert extraction["0"]["value"] == 0
    assert numbers["epsilon"]["numbers"]["bound"] > 0.3
    assert numbers["epsilon"]["numbers"]["claimed"] is None
