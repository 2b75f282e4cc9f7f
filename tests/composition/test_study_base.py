"""Runs of a study begin from one base that was read once, and come to what each of them comes to alone."""

from __future__ import annotations

from pathlib import Path

import weft
from weft.studies.cells import cells_of
from weft.studies.study import read_study
from weft.studies.sweep import check, sweep

RESULTS = ("metrics.jsonl", "adapter/adapter_model.safetensors", "model/model.safetensors")


def kept_bases() -> int:
    """Return how many bases this process keeps for runs to come."""
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if "/memfd:weft base" in line]
    return sum(" rw-s " in line for line in mapped)


def test_runs_that_share_a_base_end_with_the_bits_of_runs_made_alone(keys, tmp_path):
    """The whole model is trained between two arms that leave it frozen, so a trace of that would show in the last."""
    study = read_study(
        {
            "base": {name: value for name, value in keys.items() if name != "output_dir"} | {"num_rounds": 1},
            "grid": {"seed": [1, 2]},
            "arms": {"lora": {}, "whole": {"use_peft": False}, "scaffold": {"fed_alg": "scaffold"}},
            "output_dir": str(tmp_path / "study"),
        }
    )
    kept = []
    assert not sweep(check(study), note=lambda _: kept.append(kept_bases())).failures
    assert kept == [1] * 6
    assert kept_bases() == 0
    for cell in cells_of(study, {}):
        alone = tmp_path / "alone" / cell.arm / str(cell.seed)
        weft.train(cell.config.model_copy(update={"output_dir": str(alone)}), quiet=True)
        compared = [name for name in RESULTS if (alone / name).exists()]
        assert len(compared) == 2
        for name in compared:
            assert (cell.folder / name).read_bytes() == (alone / name).read_bytes(), (cell.name, name)
