"""Masked sums over NVIDIA FLARE: keys signed by real kits, and sites that are killed within a round."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import weft
from support.flare import MARKS, begun
from weft.config import build
from weft.core.secret import FILE as SECRET
from weft.sites.local_federation import LocalFederation
from weft.sites.watcher import watch

pytest.importorskip("nvflare")
pytestmark = [*MARKS, pytest.mark.slow]
SITES = ("hospital_a", "hospital_b", "hospital_c", "hospital_d")


@pytest.fixture
def parties(tmp_path: Path, tiny_model: Path) -> Iterator[LocalFederation]:
    """A server and four sites, which take part in masked sums of three or more alone."""
    accept = {"models": [str(tiny_model)], "protection": ["masks"], "min_clients": 3, "min_report_rows": 1}
    with begun(tmp_path, {name: {"accept": accept} for name in SITES}) as made:
        yield made


def kill_in_task(kit: Path, run: str, word: str) -> None:
    """Wait until a site trains, and kill its processes whose command has a word."""
    counts = kit / "weft" / run / "work.json"
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if counts.exists() and json.loads(counts.read_text() or "{}").get("messages", {}).get("Task"):
            break
        time.sleep(0.02)
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(kit) in words and word in words:
            os.kill(int(path.parent.name), signal.SIGKILL)


def test_a_masked_run_is_the_plain_one_although_sites_are_killed(keys, parties: LocalFederation, tmp_path: Path):
    """In the first round one site's model process is killed and goes on; of another all is, and it counts as gone."""
    left = {key: value for key, value in keys.items() if key not in ("dataset_name", "num_clients")}
    run = left | {"runtime": "nvflare", "sites": list(SITES), "threads": 1, "silence_timeout": 6.0}
    run |= {"sample_clients": 4, "num_rounds": 2, "max_steps": 60, "eval_every": 0}

    said = str(watch(parties.admin, build(run), "plain", lambda _: None)["error"])
    assert "the protection 'none' is not among what this site accepts (masks)" in said

    killers = [
        threading.Thread(target=kill_in_task, args=(parties.kits / name, "masked", word))
        for name, word in (("hospital_b", "weft.sites.model_process"), ("hospital_d", ""))
    ]
    for killer in killers:
        killer.start()
    last = watch(parties.admin, build(run | {"protection": "masks"}), "masked", lambda _: None)
    assert last["state"] == "done", last
    there = parties.kits / "server" / "runs" / "masked"
    lines = [json.loads(line) for line in (there / "metrics.jsonl").read_text().splitlines()]
    assert [line["clients"] for line in lines if line["event"] == "round"] == [list(SITES[:3])] * 2

    clients = [{"name": name, "data": str(tmp_path / f"{name}.jsonl")} for name in SITES[:3]]
    own = {key: value for key, value in run.items() if key not in ("sites", "runtime")}
    plain = weft.train(own | {"clients": clients, "sample_clients": 3, "output_dir": str(tmp_path / "here")})
    ours, theirs = (load_file(next(path.glob("adapter/*.safetensors"))) for path in (there, plain.path))
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=2e-5)
    secret = parties.kits / "hospital_b" / "weft" / "masked" / "clients" / "hospital_b" / SECRET
    assert secret.stat().st_mode & 0o077 == 0
