"""Texts extended token by token in the span of the second layer's update."""

from __future__ import annotations

import random

import pytest

import weft
from support.rows import write_rows
from weft.audits.prefixes import Prefixes
from weft.audits.scene import Scene
from weft.audits.settings import Settings

WORDS = [first + second + third for first in "bdgklmprst" for second in "aeiou" for third in "nrst"]


@pytest.fixture
def given(tiny_model, tmp_path):
    rng = random.Random(0)
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": " ".join(rng.choices(WORDS, k=7))} for _ in range(30)])
    return {
        "model_name_or_path": str(tiny_model), "dataset_name": str(texts), "objective": "causal_lm", "num_clients": 3,
        "sample_clients": 3, "num_rounds": 1, "max_steps": 1, "batch_size": 2, "seq_length": 10, "optimizer": "sgd",
        "learning_rate": 1.0, "dtype": "float32", "use_peft": False, "eval_fraction": 0.1, "eval_every": 0,
        "output_dir": str(tmp_path / "run"), "threads": 1,
    }  # fmt: skip


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
