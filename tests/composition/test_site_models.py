"""Which files of a model a site loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

from weft.sites.client import SiteClient
from weft.sites.policy import read_policy


def test_a_site_takes_no_model_in_pickle_files(keys, tiny_model: Path, tmp_path: Path):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    policy = {"data": str(keys["dataset_name"]), "accept": {"models": {"the model": str(folder)}}, "threads": 1}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(policy))
    run = {key: value for key, value in keys.items() if key not in ("dataset_name", "num_clients")}
    run |= {"runtime": "nvflare", "sites": ["a", "b"], "sample_clients": 2, "model_name_or_path": "the model"}
    words = {"run": run, "id": "one", "index": 0, "clients": 2, "base": "another"}

    def answer() -> str:
        site = SiteClient(read_policy(tmp_path / "site.yaml"), tmp_path / "work", "a", "1")
        return str(json.loads(site.work(json.dumps(words).encode()))["refused"])

    assert "another hash" in answer()  # it was loaded, and is not the server's
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert answer() == "the model here is in pickle files (.bin), and a site loads safetensors only"
    assert str(folder) not in answer()
