"""Keys of runs that several files here have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.preferences import judged_rows, preference_rows
from support.rows import colour_rows, write_rows


@pytest.fixture
def preference_keys(keys, tmp_path: Path) -> dict[str, object]:
    """The keys of a run of seconds on pairs of answers."""
    data = write_rows(tmp_path / "pairs.jsonl", preference_rows(60))
    own = {"objective": "preference", "dataset_name": str(data), "peft_lora_dropout": 0.0, "learning_rate": 1e-2}
    return keys | own | {"num_rounds": 4, "max_steps": 4, "dtype": "float32", "eval_every": 0}


@pytest.fixture
def judged_keys(preference_keys, tmp_path: Path) -> dict[str, object]:
    """The keys of a run of seconds on answers that were judged one by one."""
    return preference_keys | {
        "loss": "kto",
        "dataset_name": str(write_rows(tmp_path / "labels.jsonl", judged_rows(60))),
    }


@pytest.fixture
def prompted(keys) -> dict[str, object]:
    """The keys of a run of seconds that trains a soft prompt."""
    own = {"use_peft": False, "prompt_method": "soft", "num_virtual_tokens": 6, "learning_rate": 3e-2}
    return keys | own | {"dtype": "float32", "template": "alpaca"}


@pytest.fixture
def people(keys, tmp_path: Path) -> dict[str, Any]:
    """The keys of a run of three named clients."""
    rows = {name: write_rows(tmp_path / f"{name}.jsonl", colour_rows(30, seed)) for seed, name in enumerate("abc")}
    clients = {"clients": [{"name": f"ward_{name}", "data": str(file)} for name, file in rows.items()]}
    left = {key: value for key, value in keys.items() if key not in ("dataset_name", "num_clients")}
    return left | clients | {"eval_fraction": 0.4, "dtype": "float32", "choices": ["red", "green", "blue"]}
