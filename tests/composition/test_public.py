"""Rows that everybody may see: as a client of every round, or as a share of every batch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import weft
from support.rows import colour_rows, write_rows
from weft.core.objective import Objective
from weft.launch.compose import local_steps
from weft.training.job import Job


@pytest.fixture
def public(tmp_path: Path) -> str:
    return str(write_rows(tmp_path / "public.jsonl", colour_rows(30, 9)))


def rounds(run) -> list[dict]:
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "round"]


def test_public_data_is_a_client_of_every_round(keys, public: str):
    run = weft.train(keys | {"public_data": public, "num_clients": 5, "num_rounds": 4})
    for line in rounds(run):
        assert len(line["clients"]) == 3
        assert line["clients"][-1] == "public"
    assert set(run.summary["clients"]) == {f"client_{n}" for n in range(5)}
    assert len({tuple(line["clients"]) for line in rounds(run)}) > 1


def test_public_data_has_no_personal_model(keys, public: str):
    run = weft.train(keys | {"public_data": public, "fed_alg": "ditto", "personal_steps": 0})
    assert set(run.summary["models"]["clients"]) == {"client_0", "client_1", "client_2"}
    assert not (run.path / "clients" / "public" / "adapter").exists()


def test_central_training_has_the_public_rows_too(keys, public: str):
    with_them = weft.train(keys | {"public_data": public, "fed_alg": "central", "max_steps": -1, "num_train_epochs": 1})
    alone = weft.train(
        keys
        | {"fed_alg": "central", "max_steps": -1, "num_train_epochs": 1, "output_dir": f"{keys['output_dir']}-alone"}
    )
    assert rounds(with_them)[0]["examples"] == pytest.approx(rounds(alone)[0]["examples"] + 30, abs=4)


class Spy(Objective):
    """An objective that only remembers which rows it was given."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def collate(self, rows):
        self.seen.append([int(ids[0]) for ids, _ in rows])


def table(first: int, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.array([first + n]), np.array([True])) for n in range(count)]


def test_a_share_of_every_batch_is_public(keys):
    from weft.config import build

    steps = local_steps(build(keys | {"public_data": "x", "public_share": 0.25, "gradient_accumulation_steps": 2}))
    own, public = table(0, 9), table(1000, 7)
    for round in range(3):
        spy = Spy()
        list(steps._windows(spy, own, 4, Job({}, {}, None, 1, round, public=public)))
        assert len(spy.seen) == 8
        for batch in spy.seen:
            assert [row >= 1000 for row in batch] == [False, False, False, True]
    # 4 x 2 x 3 rows a round: after three rounds every own row was seen as often as any other, within one.
    alone = Spy()
    list(steps._windows(alone, own, 4, Job({}, {}, None, 1, 0)))
    assert all(len(batch) == 4 and max(batch) < 1000 for batch in alone.seen)


def test_a_share_changes_what_is_learnt_and_nothing_else(keys, public: str):
    with_them = weft.train(keys | {"public_data": public, "public_share": 0.5})
    plain = weft.train(keys | {"output_dir": f"{keys['output_dir']}-plain"})
    one, two = rounds(with_them), rounds(plain)
    assert [line["clients"] for line in one] == [line["clients"] for line in two]
    assert [line["examples"] for line in one] == [line["examples"] for line in two]
    assert one[0]["train_loss"] != two[0]["train_loss"]
    assert torch.isfinite(torch.tensor(with_them.summary["eval"]["loss"]))


def test_mistaken_keys_of_public_data_are_refused(keys, tmp_path: Path, public: str):
    with pytest.raises(weft.errors.ConfigError, match="write --public_data FILE"):
        weft.train(keys | {"public_share": 0.5})
    named = {k: v for k, v in keys.items() if k not in ("dataset_name", "num_clients")} | {
        "clients": [{"name": "public", "data": public}]
    }
    with pytest.raises(weft.errors.ConfigError, match="give it another name"):
        weft.train(named | {"public_data": public})
