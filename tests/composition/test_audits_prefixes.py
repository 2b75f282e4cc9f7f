"""Texts extended token by token in the span of the second layer's update."""

from __future__ import annotations

import pytest

import weft
from support.short_texts import one_step_keys
from weft.audits.prefixes import Prefixes
from weft.audits.scene import Scene
from weft.audits.settings import Settings


@pytest.fixture
def given(tiny_model, tmp_path):
    return one_step_keys(tiny_model, tmp_path, seq_length=10)


LORA = {"use_peft": True, "peft_lora_r": 16, "peft_lora_target_modules": ["q_proj", "v_proj"]}


@pytest.mark.parametrize(("adapter", "exact", "rouge"), [({}, 3, 0.8), (LORA, 1, 0.4)], ids=["full", "lora"])
def test_whole_texts_are_read(given, adapter, exact, rouge):
    found = Prefixes().findings(Scene(weft.train(given | adapter), Settings())).numbers
    assert found["exact"] >= exact
    assert found["rouge_l"]["value"] > rouge > 2 * found["control"]["value"]


def test_differential_privacy_leaves_no_text(given):
    own = {"privacy_unit": "row", "noise_multiplier": 4.0, "clip_norm": 1.0}
    found = Prefixes().findings(Scene(weft.train(given | own), Settings())).numbers
    assert found["exact"] == 0
    assert found["rouge_l"]["value"] < 0.3
