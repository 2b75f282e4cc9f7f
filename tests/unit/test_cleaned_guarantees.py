"""What cleaning that compares rows leaves of a guarantee of differential privacy is said in the run's statement."""

from __future__ import annotations

from typing import Any

import pytest

from weft import registry
from weft.config import build
from weft.launch.budgets import guarantee_of, privacy_part

ROW = {"privacy_unit": "row", "target_epsilon": 8.0, "max_steps": 2, "num_rounds": 2, "batch_size": 4}
CLIENT = {"privacy_unit": "client", "noise_multiplier": 1.0, "sample_clients": 3, "num_clients": 9, "num_rounds": 2}


def said(changes: dict[str, Any]) -> list[str]:
    pytest.importorskip("dp_accounting")
    config = build({"dataset_name": "any", "use_peft": True, "lora_aggregation": "ffa"} | changes)
    guarantee = guarantee_of(config, privacy_part(config), 200)
    assert guarantee is not None
    return [text for text in guarantee.statement(1, 1.0)["not_covered"] if "after cleaning" in text]


def test_cleaners_that_compare_rows_are_named_and_others_are_not():
    (text,) = said(ROW | {"clean": ["length", "exact_duplicates", "triggers"]})
    assert text.startswith("the cleaning by exact_duplicates and triggers, which leaves out a row because of others")
    assert said(ROW | {"clean": ["length", "personal_data"]}) == []
    assert said(ROW) == []


def test_within_a_client_that_is_the_unit_nothing_is_lost_and_across_clients_it_is():
    pytest.importorskip("datasketch")
    assert said(CLIENT | {"clean": ["exact_duplicates", "near_duplicates"]}) == []
    (text,) = said(CLIENT | {"clean": ["near_duplicates"], "clean_args": {"near_duplicates.across": "true"}})
    assert "near_duplicates" in text


def test_every_cleaner_says_whether_it_compares_rows():
    comparing = {name for name in registry.CLEANERS if registry.load(registry.CLEANERS, name, "part").compares_rows}
    assert comparing == {"exact_duplicates", "near_duplicates", "perplexity", "triggers", "contamination"}
