"""Encrypted sums over NVIDIA FLARE: a key in the kits of real sites, and none at the server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import weft
from support.flare import MARKS, begun
from weft.cli import main
from weft.config import build
from weft.sites.kit_key import FILE
from weft.sites.local_federation import LocalFederation
from weft.sites.watcher import watch

pytest.importorskip("nvflare")
pytest.importorskip("tenseal", reason="the extra he is not installed")
pytestmark = [*MARKS, pytest.mark.slow]
SITES = ("hospital_a", "hospital_b", "hospital_c")


@pytest.fixture
def parties(tmp_path: Path, tiny_model: Path) -> Iterator[LocalFederation]:
    """A server and three sites, which take part in encrypted sums of three alone."""
    accept = {"models": [str(tiny_model)], "protection": ["ckks"], "min_clients": 3, "min_report_rows": 1}

    def with_key(made: LocalFederation) -> None:
        assert main(["server", "ckks", str(made.kits)]) == 0

    with begun(tmp_path, {name: {"accept": accept} for name in SITES}, with_key) as made:
        yield made


def test_an_encrypted_run_is_the_plain_one_and_the_server_has_no_key(keys, parties: LocalFederation, tmp_path: Path):
    left = {key: value for key, value in keys.items() if key not in ("dataset_name", "num_clients")}
    run = left | {"runtime": "nvflare", "sites": list(SITES), "threads": 1, "protection": "ckks"}
    run |= {"sample_clients": 3, "num_rounds": 2, "max_steps": 2, "eval_every": 0}
    last = watch(parties.admin, build(run), "sealed", lambda _: None)
    assert last["state"] == "done", last
    there = parties.kits / "server" / "runs" / "sealed"
    lines = [json.loads(line) for line in (there / "metrics.jsonl").read_text().splitlines()]
    assert [line["clients"] for line in lines if line["event"] == "round"] == [list(SITES)] * 2

    clients = [{"name": name, "data": str(tmp_path / f"{name}.jsonl")} for name in SITES]
    own = {key: value for key, value in run.items() if key not in ("sites", "runtime", "protection")}
    plain = weft.train(own | {"clients": clients, "output_dir": str(tmp_path / "here")})
    ours, theirs = (load_file(next(path.glob("adapter/*.safetensors"))) for path in (there, plain.path))
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=2e-6)

    key = (parties.kits / SITES[0] / FILE).read_bytes()
    pieces = [key[at : at + 48] for at in (200, 60_000, 120_000)]
    files = [path for path in (parties.kits / "server").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not any(piece in path.read_bytes() for path in files for piece in pieces)

    # A site whose key is another one is left out, in words.
    (parties.kits / SITES[1] / FILE).unlink()
    said = str(watch(parties.admin, build(run | {"min_clients": 3}), "without", lambda _: None)["error"])
    assert "its kit has no ckks.key" in said
