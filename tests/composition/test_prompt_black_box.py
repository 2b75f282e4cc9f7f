"""Prompts that are found without gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import weft
from weft.errors import ConfigError


@pytest.fixture
def black_box(prompted) -> dict[str, object]:
    own = {
        "prompt_method": "black_box",
        "black_box_dim": 12,
        "population": 8,
        "fed_alg": "fedbpt",
        "learning_rate": 1.0,
    }
    return prompted | own | {"num_rounds": 5, "max_steps": 3, "sample_clients": 3, "batch_size": 8, "eval_every": 0}


@pytest.mark.parametrize("fed_alg", ["fedbpt", "fedavg", "fedadam", "local", "central"])
@pytest.mark.slow
def test_a_search_lowers_the_loss_without_gradients(
    black_box, fed_alg: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a black box has no gradients")

    start = {"prompt_method": "soft", "fed_alg": "fedavg", "num_rounds": 1, "learning_rate": 0.0}
    start |= {"black_box_dim": None, "population": None}
    still = weft.train(black_box | start | {"output_dir": str(tmp_path / "still")}, quiet=True)
    monkeypatch.setattr(torch.Tensor, "backward", refuse)
    run = weft.train(black_box | {"fed_alg": fed_alg}, quiet=True)
    assert run.summary["failures"] == {}
    assert run.summary["eval"]["loss"] < still.summary["eval"]["loss"]
    if fed_alg in ("fedbpt", "fedavg"):
        assert len(load_file(run.path / "adapter" / "adapter_model.safetensors")["prompt_embeddings"]) == 6
        assert run.model is not None
    if fed_alg == "fedbpt":  # up: 8 candidates of 12 numbers, 8 losses, 12 scales, each of 4 bytes, of 3 clients
        assert run.summary["bytes_up"] == 5 * 3 * 4 * (8 * 12 + 8 + 12)


def test_a_resumed_search_by_losses_ends_bit_identical(black_box, tmp_path: Path):
    import shutil

    given = black_box | {"save_model_freq": 1, "checkpoint_seconds": 0}
    one = weft.train(given, quiet=True)
    broken = tmp_path / "broken"
    shutil.copytree(one.path, broken)
    for path in (*broken.glob("checkpoints/round_00000[345]"), broken / "adapter"):
        shutil.rmtree(path)
    (broken / "summary.json").unlink()
    weft.train(given | {"output_dir": str(broken)}, resume=True, quiet=True)
    name = "adapter/adapter_model.safetensors"
    assert (one.path / name).read_bytes() == (broken / name).read_bytes()
    assert (one.path / "metrics.jsonl").read_bytes() == (broken / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fed_alg": "scaffold"}, "a black box has neither"),
        ({"fed_alg": "diloco"}, "a black box has neither"),
        ({"learning_rate": 0.0}, "has no width"),
        ({"personal_steps": 3}, "trained by gradients"),
        ({"private_tokens": 2}, "trained by gradients"),
        ({"prompt_method": "soft", "black_box_dim": None, "population": None}, "searched without gradients"),
    ],
)
def test_keys_that_need_gradients_are_refused_for_a_black_box(black_box, changes: dict[str, object], words: str):
    with pytest.raises(ConfigError, match=words):
        weft.train(black_box | changes, quiet=True)
