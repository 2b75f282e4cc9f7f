"""A participant that samples the shared model and trains on its samples: what it reads of another client's rows."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

import weft
from support.rows import write_rows
from weft.audits.gan import SAMPLES, TRAINS, WITHOUT
from weft.audits.scene import Scene
from weft.audits.sent import Malicious, Station
from weft.audits.settings import Settings
from weft.cli import main

LETTERS = "abcdefghiklmnoprstuw"


def rows_of(seed: int, count: int, copies: int = 1) -> list[dict[str, str]]:
    """Rows of one kind whose answers follow from nothing: three words that are in no other row."""
    rng = random.Random(seed)
    rows = [
        {"instruction": f"Box {number:03}?", "output": " ".join("".join(rng.choices(LETTERS, k=4)) for _ in range(3))}
        for number in rng.sample(range(1000), count)
    ]
    return rows * copies


@pytest.fixture
def given(tiny_model, tmp_path):
    """The keys of a run of two clients with rows of one kind, each four times."""
    clients = [
        {
            "name": name,
            "data": str(write_rows(tmp_path / f"{name}.jsonl", rows_of(place, 8, 4))),
            "eval": str(write_rows(tmp_path / f"{name}_unseen.jsonl", rows_of(100 + place, 24))),
        }
        for place, name in enumerate(("north", "south"))
    ]
    return {
        "model_name_or_path": str(tiny_model), "clients": clients, "template": "vicuna", "seq_length": 96,
        "sample_clients": 2, "num_rounds": 3, "max_steps": 1, "batch_size": 8, "learning_rate": 1e-2,
        "lr_scheduler_type": "constant", "dtype": "float32", "use_peft": False, "eval_every": 0,
        "output_dir": str(tmp_path / "run"), "threads": 1, "report": False, "seed": 0,
    }  # fmt: skip


def audit(keys: dict) -> dict:
    run = weft.train(keys)
    assert main(["audit", str(run.path), "--quiet", "--tests", "gan"]) == 0
    return json.loads((run.path / "audit.json").read_text())["audits"]["gan"]


@pytest.mark.slow
def test_what_a_client_learnt_by_heart_is_sampled_and_nothing_of_unseen_rows(given):
    found = audit(given | {"max_steps": 60})["numbers"]["arms"]
    for arm in (SAMPLES, TRAINS):
        last = found[arm]["round 3"]
        assert last["auc"]["low"] > 0.5, arm
        assert last["private"] > 0.1 > 0.05 > last["unseen"]
        assert last["private"] > found[arm]["round 1"]["private"]
    control = found[WITHOUT]["round 3"]
    assert control["auc"]["low"] < 0.5 < control["auc"]["high"]
    assert control["private"] < 0.05


def test_a_model_that_learns_nothing_gives_nothing_away(given):
    found = audit(given | {"learning_rate": 1e-9})
    last = found["numbers"]["arms"][TRAINS]["round 3"]["auc"]
    assert last["low"] < 0.5 < last["high"]
    assert any(note.startswith("Not above chance") for note in found["notes"])


def test_rows_of_another_kind_than_the_unseen_ones_are_no_finding(given, tmp_path, capsys):
    """Every client says the same, which no unseen row does: it is sampled without the victim too."""
    clients = []
    for place, one in enumerate(given["clients"]):
        same = [{"instruction": f"Box {300 * place + number}?", "output": "gan gar bon bor"} for number in range(24)]
        clients.append(one | {"data": str(write_rows(tmp_path / f"same_{place}.jsonl", same))})
    run = weft.train(given | {"clients": clients, "max_steps": 30})
    assert main(["audit", str(run.path), "--tests", "gan"]) == 2
    assert "that has not learnt from the client 'south' tell its rows from unseen ones" in capsys.readouterr().err
    assert not (run.path / "audit.json").exists()


def test_what_is_missing_is_said(given, tmp_path, capsys):
    north, south = given["clients"]
    few = south | {"eval": str(write_rows(tmp_path / "few.jsonl", rows_of(9, 5)))}
    for clients, words in (
        ([north, few], "The client 'south' trained on, or held out, too few rows with ends of 4 tokens"),
        ([north], "One client took part"),
    ):
        run = weft.train(given | {"clients": clients, "sample_clients": len(clients), "num_rounds": 1}, overwrite=True)
        assert main(["audit", str(run.path), "--tests", "gan"]) == 2
        assert words in capsys.readouterr().err


def test_a_malicious_client_trains_on_its_rows_and_claims_no_more_than_it_has(given):
    """Half of what it has are others, and the round is another one than with its own rows."""
    station = Station(Scene(weft.train(given | {"num_rounds": 1}), Settings()))
    asked = []

    def made(params):
        asked.append(params)
        ids = np.arange(40, 60, dtype=np.int32)
        return [(ids, np.arange(20) > 3)] * 100  # more than it has

    names = ["north", "south"]
    (honest,) = station.rounds(names, 1, 1)
    (after,) = station.rounds(names, 1, 1, Malicious("north", made))
    (nothing,) = station.rounds(names, 1, 1, Malicious("north", lambda params: []))
    assert len(asked) == 1
    assert any(not bool((after[name] == value).all()) for name, value in honest.items())
    assert all(bool((nothing[name] == value).all()) for name, value in honest.items())
