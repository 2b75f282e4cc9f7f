"""FLARE's attestation with Weft's kits, as docs/threats.md switches it on; its mock stands for the hardware."""

from __future__ import annotations

import gc
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from support.flare import MARKS
from support.paths import ROOT
from support.rows import colour_rows, write_rows
from weft.config import build
from weft.errors import RunError
from weft.sites.local_federation import LocalFederation
from weft.sites.watcher import watch

pytest.importorskip("nvflare")

pytestmark = [*MARKS, pytest.mark.slow]
SITES = ("hospital_a", "hospital_b")
MOCK = {"id": "snp", "path": "nvflare.app_opt.confidential_computing.mock_authorizer.MockAuthorizer"}


def components() -> list[dict[str, object]]:
    """The components of the page, with the mock in place of AMD's hardware."""
    page = (ROOT / "docs" / "threats.md").read_text(encoding="utf-8")
    (listing,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    authorizer, manager = json.loads("{" + listing + "}")["components"]
    assert authorizer["id"] == MOCK["id"]
    return [MOCK, manager]


def switch_on(kit: Path) -> None:
    path = kit / "local" / "resources.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["components"] += components()
    path.write_text(json.dumps(settings), encoding="utf-8")


@pytest.fixture
def federation(tmp_path: Path, tiny_model: Path) -> Iterator[LocalFederation]:
    policies = {}
    for number, name in enumerate(SITES):
        write_rows(tmp_path / f"{name}.jsonl", colour_rows(24, number))
        policies[name] = tmp_path / f"{name}.yaml"
        policy = {"data": f"{name}.jsonl", "threads": 1, "accept": {"models": [str(tiny_model)], "min_train_rows": 1}}
        policies[name].write_text(yaml.safe_dump(policy))
    made = LocalFederation(tmp_path, policies)
    try:
        yield made
    finally:
        made.close()
    gc.collect()


def log_of(federation: LocalFederation, name: str) -> str:
    return (federation.kits / name / "console.log").read_text(errors="replace")


def test_parties_with_proofs_train_together(federation: LocalFederation, keys):
    for name in ("server", *SITES):
        switch_on(federation.kits / name)
    for name in ("server", *SITES):
        federation.start(name)
    federation.wait(set(SITES))
    left = {key: value for key, value in keys.items() if key not in ("dataset_name", "num_clients", "output_dir")}
    config = build(left | {"runtime": "nvflare", "sites": list(SITES), "threads": 1, "num_rounds": 1, "eval_every": 0})
    assert watch(federation.kits / "admin", config, "attested", lambda _: None)["state"] == "done"
    for name in SITES:
        assert "{'server.x-mock': True}, invalid_participant_list=[]" in log_of(federation, name)
        assert f"'{name}.x-mock': True" in log_of(federation, "server")


def wait_for(federation: LocalFederation, name: str, words: str) -> None:
    until = time.monotonic() + 60
    while words not in log_of(federation, name) and time.monotonic() < until:
        time.sleep(0.2)
    assert words in log_of(federation, name)


def test_a_site_leaves_a_server_without_a_proof(federation: LocalFederation):
    switch_on(federation.kits / "hospital_a")
    for name in ("server", "hospital_a"):
        federation.start(name)
    wait_for(federation, "hospital_a", "CC validation failed on client! Shutting down")
    assert "'server' sends no proof of its machine" in log_of(federation, "hospital_a")


def test_the_server_refuses_a_site_without_a_proof_and_goes_on(federation: LocalFederation):
    for name in ("server", "hospital_a"):
        switch_on(federation.kits / name)
    for name in ("server", *SITES):
        federation.start(name)
    wait_for(federation, "server", "'hospital_b' sends no proof of its machine")
    federation.wait({"hospital_a"})
    with pytest.raises(RunError):
        federation.wait({"hospital_b"}, patience=4.0)
    assert "Shutting down" not in log_of(federation, "server")
