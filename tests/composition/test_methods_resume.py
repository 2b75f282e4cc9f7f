"""Every algorithm's memory after a kill, and a run of an older version."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import weft
from weft import registry

MORE = [
    {"fed_alg": "diloco", "fed_args": {"inner_state": "average"}},
    {"fed_alg": "fedbuff", "client_speed": [1, 0.4], "num_clients": 6, "fed_args": {"buffer_size": 1}},
    {"fed_alg": "scaffold", "client_ranks": [2, 8]},
    {"client_failure_rate": 0.4, "min_clients": 2, "num_clients": 6},
    {"over_selection": 0.5, "client_speed": [1, 0.5], "num_clients": 6},
    {"share": ["lora_A"]},
]
MORE += [
    {"prompt_method": "black_box", "use_peft": False, "fed_alg": "fedbpt", "black_box_dim": 4, "population": 4},
    {"prompt_method": "soft", "use_peft": False, "num_virtual_tokens": 4, "private_tokens": 2},
    {"cluster": 2},
]
RUNS = [{"fed_alg": name} for name in registry.ALGORITHMS if name not in ("fedbpt", "fedtext")]
RUNS += [{"lora_aggregation": name} for name in registry.LORA_AGGREGATIONS if name != "average"]


@pytest.mark.parametrize("changes", RUNS + MORE, ids=lambda changes: "-".join(str(v) for v in changes.values()))
@pytest.mark.slow
def test_every_memory_survives_a_kill(keys, changes: dict[str, object], tmp_path: Path):
    """What a kill after round 2 leaves, later files of rounds under way included, ends as the undisturbed run."""
    config = keys | {"num_rounds": 4, "max_steps": 1, "save_model_freq": 1, "checkpoint_seconds": 0} | changes
    whole = weft.train(config | {"output_dir": str(tmp_path / "whole")}).path
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    for path in (*broken.glob("checkpoints/round_00000[34]"), broken / "adapter", *broken.glob("clients/*/adapter")):
        shutil.rmtree(path, ignore_errors=True)
    (broken / "summary.json").unlink()
    weft.train(config | {"output_dir": str(broken)}, resume=True)
    files = ["metrics.jsonl", *(str(p.relative_to(whole)) for p in sorted(whole.glob("**/adapter/*.safetensors")))]
    assert len(files) > 1
    for name in files:
        assert (whole / name).read_bytes() == (broken / name).read_bytes(), name


def test_a_kill_among_the_personal_steps_costs_nothing_but_time(keys):
    run = weft.train(keys | {"personal_steps": 2, "fed_alg": "fedprox"})
    before = {path: path.read_bytes() for path in run.path.glob("**/adapter/*.safetensors")}
    models = run.summary["models"]
    (run.path / "summary.json").unlink()
    shutil.rmtree(run.path / "clients" / "client_1")
    again = weft.train(keys | {"personal_steps": 2, "fed_alg": "fedprox"}, resume=True)
    assert len(before) == 4
    assert all(path.read_bytes() == content for path, content in before.items())
    assert again.summary["models"] == models


def test_a_run_of_an_older_version_is_resumed(keys):
    """Keys that were not there yet stand for their defaults; one that was changed does not."""
    import yaml

    run = weft.train(keys)
    file = run.path / "config.yaml"
    head, _, text = file.read_text().partition("\n")
    saved = yaml.safe_load(text)
    older = {key: value for key, value in saved.items() if key not in ("lora_aggregation", "client_ranks", "size")}
    file.write_text(head + "\n" + yaml.safe_dump(older))
    assert weft.train(keys, resume=True).summary["rounds"] == 3
    file.write_text(head + "\n" + yaml.safe_dump(older))
    with pytest.raises(weft.errors.ConfigError, match="lora_aggregation was 'average' and is now 'ffa'"):
        weft.train(keys | {"lora_aggregation": "ffa"}, resume=True)
