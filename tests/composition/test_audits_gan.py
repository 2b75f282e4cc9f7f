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

WORDS = [first + second + third for first in "bdgklmprst" for second in "aeiou" for third in "nrst"]


def rows_of(seed: int, count: int = 36) -> list[dict[str, str]]:
    """Rows of one kind whose answers follow from nothing."""
    rng = random.Random(seed)
    return [
        {"instruction": f"Box {number:03}?", "output": " ".join(rng.choices(WORDS, k=5))}
        for number in rng.sample(range(1000), count)
    ]


@pytest.fixture
def given(tiny_model, tmp_path):
    """The keys of a run of two clients with rows of one kind."""
    clients = [
        {"name": name, "data": str(write_rows(tmp_path / f"{name}.jsonl", rows_of(seed)))}
        for seed, name in enumerate(("north", "south"))
    ]
    return {
        "model_name_or_path": str(tiny_model), "clients": clients, "template": "vicuna", "seq_length": 96,
        "sample_clients": 2, "num_rounds": 3, "max_steps": 1, "batch_size": 8, "learning_rate": 1e-2,
        "lr_scheduler_type": "constant", "dtype": "float32", "use_peft": False, "eval_fraction": 0.5, "eval_every": 0,
        "output_dir": str(tmp_path / "run"), "threads": 1, "report": False,
    }  # fmt: skip


def audit(keys: dict) -> dict:
    run = weft.train(keys)
    assert main(["audit", str(run.path), "--quiet", "--tests", "gan"]) == 0
    return json.loads((run.path / "audit.json").read_text())["audits"]["gan"]


@pytest.mark.slow
def test_what_a_client_learnt_by_heart_is_sampled_and_nothing_of_unseen_rows(given):
    found = audit(given | {"max_steps": 30})["numbers"]["arms"]
    print(json.dumps(found, indent=1))
    for arm in (SAMPLES, TRAINS):
        last = found[arm]["round 3"]
        assert last["auc"]["low"] > 0.5, arm
        assert last["private"] > 2 * last["unseen"]
    control = found[WITHOUT]["round 3"]["auc"]
    assert control["low"] < 0.5 < control["high"]
    assert found["before"]["private"] < 0.05


def test_a_model_that_learns_nothing_gives_nothing_away(given):
    found = audit(given | {"learning_rate": 1e-9})
    last = found["numbers"]["arms"][TRAINS]["round 3"]["auc"]
    assert last["low"] < 0.5 < last["high"]
    assert any(note.startswith("Not above chance") for note in found["notes"])


def test_rows_of_another_kind_than_the_unseen_ones_are_no_finding(given, tmp_path, capsys):
    """What the participant's own rows have in common with the victim's is told apart without the victim."""
    same = [{"instruction": f"Box {number:03}?", "output": "gan gar bon bor"} for number in range(30)]
    data = write_rows(tmp_path / "same.jsonl", same)
    apart = write_rows(tmp_path / "apart.jsonl", rows_of(7, 16))
    more = [row | {"instruction": f"Box {900 + place}?"} for place, row in enumerate(same[:20])]
    victim = {"name": "south", "data": str(write_rows(tmp_path / "victim.jsonl", more)), "eval": str(apart)}
    clients = [{"name": "north", "data": str(data), "eval": str(apart)}, victim]
    keys = {name: value for name, value in given.items() if name != "eval_fraction"}
    run = weft.train(keys | {"clients": clients, "max_steps": 20})
    assert main(["audit", str(run.path), "--tests", "gan"]) == 2
    assert "have not learnt from" in (said := capsys.readouterr().err) or "has not learnt from" in said


def test_what_is_missing_is_said(given, capsys):
    for changes, words in (
        ({"eval_fraction": 0.1}, "too few rows with ends of 4 tokens"),
        ({"clients": given["clients"][:1], "sample_clients": 1}, "One client took part"),
    ):
        run = weft.train(given | changes | {"num_rounds": 1}, overwrite=True)
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
