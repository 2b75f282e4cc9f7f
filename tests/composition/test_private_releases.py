"""What a ledger counts beside what happens: each step with noise of its own, and the units that may be in it."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

import weft
from support.rows import colour_rows, write_rows
from weft.core.secret import Secret
from weft.launch.account import steps_of
from weft.privacy.ledger import Ledger
from weft.runs.start import LEDGER
from weft.training.hiding import Hiding

pytest.importorskip("dp_accounting")
CANDIDATES = ["Answer in one word.", "red green blue", "Name the colour of it."]
HOW: dict[str, dict[str, object]] = {
    "steps": {"max_steps": 3},
    "epochs": {"max_steps": -1, "num_train_epochs": 1},
    "accumulated": {"max_steps": 2, "gradient_accumulation_steps": 2},
    "slow clients": {"max_steps": 4, "client_speed": [1, 0.5, 0.25]},
    "fast clients": {"max_steps": 2, "client_speed": [2, 3, 1]},
    "one gradient": {"fed_alg": "fedsgd", "max_steps": 1},
    "two models": {"fed_alg": "ditto", "max_steps": 2},
    "control variates": {"fed_alg": "scaffold", "max_steps": 2},
    "late answers": {"fed_alg": "fedbuff", "max_steps": 2},
    "all rows at one place": {"fed_alg": "central", "max_steps": 2},
    "alone": {"fed_alg": "local", "max_steps": 2},
    "personal steps": {"max_steps": 2, "personal_steps": 2},
    "a person": {"privacy_unit": "person", "max_steps": 2, "max_rows_per_unit": 1},
    "a soft prompt": {"use_peft": False, "prompt_method": "soft", "max_steps": 2},
    "a black box": {
        "use_peft": False, "fed_alg": "fedbpt", "prompt_method": "black_box", "black_box_dim": 6, "population": 4,
        "num_virtual_tokens": 2, "max_steps": 2,
    },
    "words": {
        "use_peft": False, "fed_alg": "fedtext", "prompt_method": "text", "prompt_candidates": CANDIDATES,
        "prompt_pool": 3, "prompt_length": 40, "max_steps": 2,
    },
}  # fmt: skip


@pytest.fixture
def private(keys, tmp_path: Path) -> dict[str, object]:
    rows = [row | {"person": f"p{number // 2}"} for number, row in enumerate(colour_rows(66))]
    own = {"privacy_unit": "row", "noise_multiplier": 1.0, "sample_clients": 3, "num_rounds": 2, "eval_every": 0}
    plain = {key: value for key, value in keys.items() if key != "learning_rate"}
    return plain | own | {"dataset_name": str(write_rows(tmp_path / "rows.jsonl", rows))}


@pytest.mark.parametrize("how", HOW.values(), ids=HOW.keys())
def test_no_client_draws_noise_more_often_or_of_likelier_units_than_the_ledger_says(private, how, monkeypatch):
    """Steps with noise of each client, and the probability of a unit in them; personal models do not leave it."""
    drawn: dict[bytes, set[tuple[object, ...]]] = defaultdict(set)
    rates: list[float] = []
    normal, probability = Secret.normal, Hiding.probability

    def watch(self: Secret, shape, *purpose):
        if "noise" in purpose and purpose[0] == "train":
            drawn[self._key].add(purpose[: purpose.index("noise")])
        return normal(self, shape, *purpose)

    def keep(self: Hiding, units: int) -> float:
        rates.append(probability(self, units))
        return rates[-1]

    monkeypatch.setattr(Secret, "normal", watch)
    monkeypatch.setattr(Hiding, "probability", keep)
    run = weft.train(private | how, quiet=True)
    assert run.summary["failures"] == {}
    counted = [steps_of(entry) for entry in Ledger(run.path / LEDGER).entries]
    # A client has a secret for each round here; all rows at one place are one client's.
    clients, steps = 1 if how.get("fed_alg") == "central" else 3, sum(one.count for one in counted)
    assert len(counted) == 2
    assert 0 < max(map(len, drawn.values())) <= max(one.count for one in counted)
    assert 0 < max(rates) <= max(one.sampling.rate for one in counted)
    total = sum(map(len, drawn.values()))
    if how["max_steps"] == -1 or "client_speed" in how:
        assert 0 < total <= clients * steps
    else:  # the control: where all clients make the same steps, all are counted
        assert total == clients * steps
