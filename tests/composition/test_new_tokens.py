"""Canaries of tokens that occur in no other row: what they are, what a model knows of them, and what it does not."""

from __future__ import annotations

import json

import pytest

import weft
from support.coins import same_coins
from weft.cli import main
from weft.config import build
from weft.errors import ConfigError, DataError
from weft.federation.clients import InMemory
from weft.launch.canary_tokens import KIND
from weft.launch.client import ClientBuilder

PLANTED = {"canaries": 8, "canary_tokens": 24, "canary_repetitions": [4], "num_clients": 1, "sample_clients": 1}
FULL = {"use_peft": False, "dtype": "float32", "eval_every": 0, "num_rounds": 1, "max_steps": 80, "batch_size": 16}
FULL |= {"learning_rate": 1e-2, "lr_scheduler_type": "constant", "threads": 1}


@pytest.fixture(autouse=True)
def coins():
    with same_coins():
        yield


def test_a_canary_is_a_token_that_stands_in_no_other_row(keys):
    builder = ClientBuilder(build(keys | PLANTED))
    people = builder.read(InMemory())
    tokens = [canary for canary in people.canaries if canary.kind == KIND]
    assert len(tokens) == 24
    assert len({canary.answer for canary in tokens}) == 24
    table = people.trained.table
    rows = [table[place][0].tolist() for place in range(len(table))]
    for canary in tokens:
        ids = {token for row in rows for token in row if builder.tokenizer.decode([token]).strip() == canary.answer}
        having = [row for row in rows if ids & {*row}]
        assert len(having) == (canary.copies if canary.planted else 0)
        assert all(sum(token in ids for token in row) == 1 for row in having)
        assert all(canary.name in builder.tokenizer.decode(row) for row in having)


def test_records_stay_what_they_are_beside_them(keys):
    memory = InMemory()
    alone, beside = (
        ClientBuilder(build(keys | PLANTED | {"canary_tokens": count})).read(memory).canaries for count in (0, 24)
    )
    assert list(beside[:8]) == list(alone)


def audit(run) -> dict:
    assert main(["audit", str(run.path), "--quiet", "--tests", "new_tokens"]) == 0
    return json.loads((run.path / "audit.json").read_text())["audits"]["new_tokens"]["numbers"]


def test_tokens_that_were_learnt_are_told_and_others_are_not(keys):
    found = audit(weft.train(keys | PLANTED | FULL))
    assert found["log-probability"]["auc"]["value"] > 0.8
    assert found["what it rose by"]["auc"]["low"] > 0.5
    assert found["before training (control)"]["auc"]["value"] < 0.9
    assert found["written"]["0"]["value"] == 0
    untaught = audit(weft.train(keys | PLANTED | FULL | {"learning_rate": 1e-9, "max_steps": 1}, overwrite=True))
    rise = untaught["log-probability"]["auc"]
    assert rise["low"] - 0.1 < 0.5 < rise["high"] + 0.1


def test_a_run_without_them_is_told_what_to_write(keys, capsys):
    run = weft.train(keys | PLANTED | {"canary_tokens": 0, "num_rounds": 1, "max_steps": 1})
    assert main(["audit", str(run.path), "--tests", "new_tokens"]) == 2
    assert "--canary_tokens 32" in capsys.readouterr().err


def test_a_vocabulary_that_has_too_few_is_refused(keys):
    with pytest.raises(DataError, match="occur in no row, and canary_tokens is 2000"):
        ClientBuilder(build(keys | PLANTED | {"canary_tokens": 2000})).read(InMemory())
    with pytest.raises(ConfigError, match="--canary_tokens 8 or more"):
        build(keys | PLANTED | {"canary_tokens": 3})
