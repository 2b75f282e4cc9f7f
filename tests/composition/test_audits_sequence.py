"""Reconstruction of a row's text from its update: by a gradient that fits, and with differential privacy."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import weft
from support.short_texts import one_step_keys
from weft.audits.inversion import searched
from weft.audits.scene import Scene
from weft.audits.sequence import Texts, moved
from weft.audits.settings import Settings
from weft.cli import main


@pytest.fixture
def given(tiny_model, tmp_path):
    return one_step_keys(tiny_model, tmp_path, seq_length=8)


def audit(keys: dict) -> dict:
    run = weft.train(keys)
    assert main(["audit", str(run.path), "--quiet", "--limit", "2", "--tests", "sequence"]) == 0
    return json.loads((run.path / "audit.json").read_text())["audits"]["sequence"]["numbers"]


@pytest.mark.slow
def test_a_text_is_reconstructed_with_its_order_and_its_gradient_is_the_clients(given):
    scene = Scene(weft.train(given), Settings(limit=2))
    found = Texts().findings(scene).numbers
    assert found["rouge_l"]["value"] > 2 * found["control"]["value"]
    assert found["rouge_l"]["value"] > 1.5 * found["chance"]["value"]
    assert found["words"]["value"] > found["words_control"]["value"] + 0.2
    for one in searched(scene):
        ids = one.ids.tolist()
        exact, loss = one.matching.distance(ids)
        assert exact < 1e-2 < 0.1 < one.matching.distance(ids[::-1])[0]
        assert 0 < loss < 10
        assert one.matching.read(one.matching.of(ids))[:, 0].tolist() == ids
    with torch.no_grad():  # whatever was loaded into the model since
        for value in scene.begun[0].model.params.values():
            value.zero_()
    again = searched(scene)[0]
    assert again.matching.distance(again.ids.tolist())[0] < 1e-2


@pytest.mark.slow
def test_differential_privacy_leaves_chance(given):
    found = audit(given | {"privacy_unit": "row", "noise_multiplier": 4.0, "clip_norm": 1.0})
    assert found["rouge_l"]["value"] <= found["chance"]["high"]


def test_changes_keep_the_length_and_stay_in_the_pool():
    chance, tokens = np.random.default_rng(0), list(range(8))
    made = [moved(tokens, [90, 91], chance) for _ in range(200)]
    assert all(len(one) == 8 for one in made)
    assert all(sorted(one) == tokens or any(token >= 90 for token in one) for one in made)
    assert len({tuple(one) for one in made}) > 50
    assert tokens == list(range(8))
