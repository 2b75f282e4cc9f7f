"""A hostile site in a process of its own, over real FLARE: it poses as the server to the other sites."""

from __future__ import annotations

import gc
import json
import time
from pathlib import Path

import pytest
import yaml

from support.flare import MARKS
from support.rows import colour_rows, write_rows
from weft.config import build
from weft.sites.local_federation import LocalFederation
from weft.sites.processes import command, start
from weft.sites.watcher import watch

pytest.importorskip("nvflare")
pytestmark = MARKS
HOSTILE = Path(__file__).parent / "hostile"
VICTIMS = ("hospital_a", "hospital_b")


@pytest.fixture
def federation(tmp_path: Path, tiny_model: Path):
    """Two sites, and a third whose processes run the attacker's code."""
    policies = {}
    for number, name in enumerate((*VICTIMS, "hospital_c")):
        write_rows(tmp_path / f"{name}.jsonl", colour_rows(24 + 3 * number, number))
        policies[name] = tmp_path / f"{name}.yaml"
        policy = {"data": f"{name}.jsonl", "threads": 1, "accept": {"models": [str(tiny_model)], "min_report_rows": 1}}
        policies[name].write_text(yaml.safe_dump(policy))
    made = LocalFederation(tmp_path, policies)
    yield made
    made.close()
    gc.collect()


def logs(made: LocalFederation, name: str) -> str:
    kit = made.kits / name
    return "".join(path.read_text(errors="replace") for path in kit.rglob("*log*") if path.is_file())


def test_a_site_that_plays_the_server_is_not_answered(
    keys, federation: LocalFederation, tmp_path: Path, tiny_model: Path
):
    """Under its own name the victim's process refuses it; with the server's address forged, FLARE's server does."""
    run = {key: value for key, value in keys.items() if key not in ("dataset_name", "num_clients", "output_dir")}
    run |= {"runtime": "nvflare", "threads": 1, "silence_timeout": 20.0, "num_rounds": 30, "max_steps": 30}
    run |= {"eval_every": 0, "sample_clients": 3, "sites": [*VICTIMS, "hospital_c"]}
    words = {"run": run | {"output_dir": "runs/evil"}, "id": "evil", "index": 0, "clients": 3, "base": "0" * 64}
    (tmp_path / "handshake.json").write_text(json.dumps(words))
    out = tmp_path / "outcomes.json"
    for name in ("server", *VICTIMS):
        federation.start(name)
    kit = federation.kits / "hospital_c"
    told, env = command(kit, federation.policies["hospital_c"])
    bad = {"PYTHONPATH": f"{HOSTILE}:{env.get('PYTHONPATH', '')}", "HOSTILE_OUT": str(out)}
    bad["HOSTILE_HANDSHAKE"] = str(tmp_path / "handshake.json")
    federation.parties["hospital_c"] = start(told, env | bad, kit)
    federation.wait({*VICTIMS, "hospital_c"})
    last = watch(federation.admin, build(run), "honest", lambda _: None)
    assert last["state"] == "done", last
    until = time.monotonic() + 90
    while not out.exists() and time.monotonic() < until:
        time.sleep(0.2)
    outcomes = json.loads(out.read_text())
    assert {(victim, forge) for victim, forge, _ in outcomes} == {(v, f) for v in VICTIMS for f in ("False", "True")}
    assert not [said for *_, said in outcomes if said.startswith("answered")], outcomes
    assert "auth token for client hospital_c is bound to origin" in logs(federation, "server")
    for victim in VICTIMS:
        said = logs(federation, victim)
        assert "a call of 'hospital_c' was refused" in said
        assert not (federation.kits / victim / "weft" / "evil").exists()
        assert (federation.kits / victim / "weft" / "honest").exists()
