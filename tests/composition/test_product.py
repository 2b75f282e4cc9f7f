"""The product of parts: every algorithm with every objective and kind of training runs two rounds."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest

import weft
from conftest import colour_rows, write_rows
from weft import registry

ALGORITHMS = [*registry.ALGORITHMS, "local1"]
KINDS = {
    "lora": {"use_peft": True},
    "rslora": {"use_peft": True, "use_rslora": True, "peft_lora_target_modules": ["all-linear"]},
    "dora": {"use_peft": True, "use_dora": True},
    "full": {"use_peft": False},
}


@pytest.mark.parametrize(
    ("fed_alg", "objective", "kind"), list(itertools.product(ALGORITHMS, registry.OBJECTIVES, KINDS))
)
def test_two_rounds(keys, fed_alg: str, objective: str, kind: str, tmp_path: Path):
    changes: dict[str, object] = {"fed_alg": fed_alg, "objective": objective, "num_rounds": 2} | KINDS[kind]
    if objective == "causal_lm":
        rows = [{"text": row["instruction"] + " " + row["output"]} for row in colour_rows(40)]
        changes["dataset_name"] = str(write_rows(tmp_path / "text.jsonl", rows))
    run = weft.train(keys | changes, quiet=True)
    assert run.summary["rounds"] == 2
    assert math.isfinite(run.summary["eval"]["loss"])
    assert run.summary["failures"] == {}
