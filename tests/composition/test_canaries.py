"""Planted records: where they stand, what they follow from, and what they leave as it was."""

from __future__ import annotations

import os

import numpy as np
import pytest

import weft
from weft.config import build
from weft.errors import ConfigError, DataError
from weft.federation.clients import InMemory
from weft.launch.canaries import canaries_of, rows_planted
from weft.launch.client import ClientBuilder
from weft.launch.client_memory import DiskMemory

NAMES = ["a", "b", "c"]


def read(given, memory=None):
    return ClientBuilder(build(given)).read(memory or InMemory())


def test_canaries_follow_from_the_secret_alone():
    config = build({"dataset_name": "d", "canaries": 40})
    memory = InMemory()
    first, again = (canaries_of(config, NAMES, memory.secret) for _ in range(2))
    other = canaries_of(config, NAMES, InMemory().secret)
    assert first == again
    assert [one.digits for one in first] != [one.digits for one in other]
    assert [one.planted for one in first] != [one.planted for one in other]
    assert len({one.digits for one in first}) > 38
    assert {one.copies for one in first} == {1, 4, 16, 64}
    assert {one.client for one in first} == set(NAMES)


def test_a_fair_coin_decides():
    config = build({"dataset_name": "d", "canaries": 4000})
    planted = sum(one.planted for one in canaries_of(config, NAMES, InMemory().secret))
    assert abs(planted - 2000) < 160  # five deviations


def test_planted_rows_stand_with_their_clients_and_others_stay(keys):
    given = keys | {"canaries": 16, "canary_repetitions": [1, 2], "canary_clients": ["client_1"]}
    with_them, without = read(given), read(keys)
    for name in with_them.names:
        new, old = with_them.trained.find(name).train, without.trained.find(name).train
        rows = rows_planted(with_them.canaries) if name == "client_1" else 0
        assert len(new) == len(old) + rows
        for place in range(len(old)):
            assert np.array_equal(new[place][0], old[place][0])
    assert with_them.split == without.split
    assert with_them.choices == without.choices == ["blue", "green", "red"]
    assert with_them.questions.keys() == without.questions.keys()


def test_the_row_of_a_canary_is_learnt_to_its_last_digit(keys):
    builder = ClientBuilder(build(keys | {"canaries": 8, "canary_repetitions": [1]}))
    people = builder.read(InMemory())
    assert len(people.canaries) == 8
    for canary in people.canaries:
        train = people.trained.find(canary.client).train
        texts = [builder.tokenizer.decode(train[at][0][train[at][1]]) for at in range(len(train))]
        assert sum(canary.answer in text for text in texts) == (canary.copies if canary.planted else 0)


def test_a_resumed_run_and_an_audit_meet_the_same_canaries(keys):
    given = keys | {"canaries": 8, "canary_repetitions": [2]}
    run = weft.train(given | {"num_rounds": 2, "checkpoint_seconds": 0})
    again = read(given, DiskMemory(run.directory)).canaries
    resumed = weft.train(given | {"num_rounds": 3, "checkpoint_seconds": 0}, resume=True)
    assert read(given, DiskMemory(resumed.directory)).canaries == again
    secret = run.directory.client_dir(again[0].client) / "secret.key"
    assert oct(os.stat(secret).st_mode & 0o777) == "0o600"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"canaries": 3}, "--canaries 8 or more"),
        ({"canaries": 8, "canary_repetitions": [0]}, "1 4 16 64"),
        ({"canaries": 8, "canary_clients": ["nobody"]}, "client_0, client_1"),
    ],
)
def test_canaries_that_cannot_be_are_refused(keys, given, words):
    with pytest.raises(ConfigError, match=words):
        read(keys | given)


def test_canaries_that_are_cut_are_refused(keys):
    with pytest.raises(DataError, match="larger --seq_length"):
        read(keys | {"canaries": 16, "seq_length": 84})


def test_repeated_rows_of_a_canary_are_one_unit(keys, tmp_path):
    from support.rows import colour_rows, write_rows

    rows = [row | {"patient": str(number)} for number, row in enumerate(colour_rows(60))]
    data = write_rows(tmp_path / "people.jsonl", rows)
    own = {"dataset_name": str(data), "privacy_unit": "patient", "noise_multiplier": 1.0}
    people = read(keys | own | {"canaries": 8, "canary_repetitions": [4], "num_clients": 1, "sample_clients": 1})
    units = people.trained.units[0]
    planted = sum(canary.planted for canary in people.canaries)
    assert len(np.unique(units)) == len(units) - 3 * planted
