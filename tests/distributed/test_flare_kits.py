"""Start-up kits of FLARE, and `weft up`, which makes kits and starts server and sites."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import weft
from support.flare import MARKS
from weft.cli import main
from weft.errors import ConfigError
from weft.sites.local_federation import free_port
from weft.sites.processes import command
from weft.sites.provisioning import add_kit, make_kits

pytest.importorskip("nvflare")
pytestmark = MARKS


@pytest.mark.slow
def test_up_trains_on_real_data(shared_data: Path, stories: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = shared_data / "instruct" / "tfns_train.jsonl.gz"
    keys = {"model_name_or_path": str(stories), "dataset_name": str(source), "dataset_sample": 300, "use_peft": True}
    keys |= {"num_rounds": 2, "max_steps": 2, "batch_size": 4, "seq_length": 128, "sample_clients": 3, "threads": 1}
    Path("run.yaml").write_text(yaml.safe_dump(keys | {"truncation_side": "left"}))
    assert main(["up", "run.yaml", "--clients", "3"]) == 0, capsys.readouterr().err
    found = weft.open_run(tmp_path / "weft-up" / "kits" / "server" / "runs" / "run")
    assert len(found.summary["clients"]) == 3
    assert found.summary["rounds"] == 2
    assert found.summary["failures"] == {}


def test_kits_are_not_made_over_others(tmp_path: Path):
    make_kits("localhost", ["a"], tmp_path / "kits", free_port())
    with pytest.raises(ConfigError, match="not empty"):
        make_kits("localhost", ["a"], tmp_path / "kits")
    with pytest.raises(ConfigError, match="already"):
        add_kit(tmp_path / "kits", "a")
    with pytest.raises(ConfigError, match="cannot be called 'A b'"):
        make_kits("localhost", ["A b"], tmp_path / "other")
    with pytest.raises(ConfigError, match="no start-up kit"):
        command(tmp_path / "kits" / "authority", None)
    with pytest.raises(ConfigError, match="--site"):
        command(tmp_path / "kits" / "a", None)
    key = tmp_path / "kits" / "a" / "startup" / "client.key"
    assert key.stat().st_mode & 0o077 == 0
