"""Differential privacy between sites over NVIDIA FLARE: the policy and the ledger of a real site."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.flare import MARKS, begun
from weft.config import build
from weft.privacy.ledger import Ledger
from weft.sites.local_federation import LocalFederation
from weft.sites.site_ledger import spent_of
from weft.sites.watcher import watch

pytest.importorskip("nvflare")
pytest.importorskip("dp_accounting")
pytestmark = [*MARKS, pytest.mark.slow]
SITES = ("hospital_a", "hospital_b")


@pytest.fixture
def parties(tmp_path: Path, tiny_model: Path) -> Iterator[LocalFederation]:
    """A server and two sites; one asks for an epsilon of 8 at most, and keeps a ledger for 12."""
    policies: dict[str, dict[str, Any]] = {
        name: {"accept": {"models": [str(tiny_model)], "min_train_rows": 1}} for name in SITES
    }
    policies["hospital_b"]["accept"] |= {"privacy": ["client", "patient"], "max_epsilon": 8.0}
    policies["hospital_b"]["ledger"] = {"file": "spent.jsonl", "max_epsilon": 12.0}
    with begun(tmp_path, policies) as made:
        yield made


def test_a_real_site_enforces_its_epsilon_and_its_ledger(keys, parties: LocalFederation, tmp_path: Path):
    left = {key: value for key, value in keys.items() if key not in ("dataset_name", "num_clients")}
    run = left | {"runtime": "nvflare", "sites": list(SITES), "threads": 1, "silence_timeout": 20.0}
    run |= {"privacy_unit": "client", "noise_at": "client", "sample_clients": 2, "min_clients": 2, "num_rounds": 2}
    # Shares of the noise inside the masked sum: the server sees no update, and no sum without all of the noise.
    run |= {"protection": "masks", "min_contributors": 2}

    def ran(name: str, **changes: object) -> dict[str, object]:
        return watch(parties.admin, build(run | changes), name, lambda _: None)

    said = str(ran("plain", privacy_unit="none", noise_at="server")["error"])
    assert "the privacy 'none' is not among what this site accepts (client, patient)" in said
    assert "hospital_b: " in said
    said = str(ran("much", target_epsilon=9)["error"])
    assert "the run may spend an epsilon of 9, and this site accepts 8 at most" in said
    assert not (tmp_path / "spent.jsonl").exists()
    last = ran("private", target_epsilon=8)
    assert last["state"] == "done", last
    summary = json.loads((parties.kits / "server" / "runs" / "private" / "summary.json").read_text())
    assert 7.9 < summary["privacy"]["epsilon"] <= 8
    assert "share of the noise" in summary["privacy"]["protects_against"]
    assert spent_of(Ledger(tmp_path / "spent.jsonl")) == (8.0, 1e-5)
    assert "for all runs 4 is left" in str(ran("more", target_epsilon=8)["error"])
