"""Differential privacy inside sums that masks open: shares of the noise, and nothing told beside the sum."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import torch

import weft
from support.results import events, weights
from weft.config import build
from weft.core.types import DELTA, Update
from weft.errors import ConfigError
from weft.federation.clients import InMemory
from weft.launch import compose
from weft.launch.client import ClientBuilder
from weft.protection.sums import Grid, to_integers

pytest.importorskip("dp_accounting")
pytest.importorskip("cryptography")
SHARES: dict[str, object] = {"privacy_unit": "client", "noise_at": "client", "num_rounds": 2, "eval_every": 0}
SHARES |= {"sample_clients": 3, "min_clients": 3, "noise_multiplier": 1.0, "clip_norm": 0.1}
MASKS = {"protection": "masks"}


def distance(one, two) -> float:
    left, right = weights(one), weights(two)
    return max(float((left[name] - right[name]).abs().max()) for name in left)


HOW = [
    {},
    {"clip_norm": "adaptive"},
    {"noise_at": "server", "min_clients": 0},
    pytest.param(
        {"protection": "ckks"},
        marks=pytest.mark.skipif(importlib.util.find_spec("tenseal") is None, reason="the extra he is not installed"),
    ),
]


@pytest.mark.parametrize("how", HOW, ids=str)
def test_noise_and_sealed_sums_go_together_and_spend_what_noise_spends(keys, tmp_path, how):
    runs = [weft.train(keys | SHARES | MASKS | how | {"output_dir": str(tmp_path / name)}) for name in ("a", "b")]
    plain = {key: value for key, value in how.items() if key != "protection"}
    alone = weft.train(keys | SHARES | plain | {"output_dir": str(tmp_path / "alone")})
    assert [line["epsilon"] for line in events(runs[0])] == [line["epsilon"] for line in events(alone)]
    assert distance(*runs) > 1e-4  # other secrets, other noise
    assert runs[0].summary["failures"] == {}


def test_without_noise_masks_change_rounding_alone(keys, tmp_path):
    free = SHARES | {"noise_multiplier": 0.0, "clip_norm": float("inf")}
    runs = [
        weft.train(keys | free | more | {"output_dir": str(tmp_path / str(n))}) for n, more in enumerate((MASKS, {}))
    ]
    assert distance(*runs) < 1e-5


def test_a_client_joins_no_sum_that_lacks_a_part_of_the_noise(keys):
    """The server is not trusted: whatever it asks, fewer than min_clients shares are never opened."""
    for more, least in ((MASKS, 3), (MASKS | {"noise_at": "server"}, 0)):
        plan = compose.plan(build(keys | SHARES | more))
        assert plan.shares_of_noise == least
    builder = ClientBuilder(build(keys | SHARES | MASKS))
    client = next(iter(builder.read(InMemory()).trained))
    assert client.party("protection.", {}, 0, least=builder.plan.shares_of_noise).quorum == 3


def test_under_a_budget_a_sum_tells_nothing_beside_its_numbers():
    """Sizes of tensors, and how many values were cut, are facts about updates that no noise covers."""
    update = Update("a", 0, 0, {DELTA: {"w": torch.tensor([0.5, -40.0])}}, 1.0)
    grid = Grid(16.0, 3, 1.0)
    told, bare = (to_integers(update, grid, np.random.default_rng(0), bare=bare)[0] for bare in (False, True))
    assert np.array_equal(told.numbers, bare.numbers)
    assert told.counts[1] != 0
    assert told.counts[-1] != 0
    assert np.flatnonzero(bare.counts).tolist() == [0]  # its weight, which is 1 for all


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"protection_args": {"bits": 9}}, "leave out bits in --protection_args"),
        ({"num_clients": 6, "sample_clients": 6, "group_size": 3, "min_clients": 5}, "write --group_size 5"),
    ],
    ids=str,
)
def test_what_would_tell_more_than_the_noisy_sum_is_refused(keys, given, words):
    with pytest.raises(ConfigError) as refused:
        compose.plan(build(keys | SHARES | MASKS | {"model_name_or_path": "there/is/none"} | given))
    assert words in str(refused.value)
    assert "\n" not in json.dumps(str(refused.value))
