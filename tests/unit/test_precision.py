"""Number formats, quantised bases and recomputed activations: each trains, and evaluates near float32."""

from __future__ import annotations

from pathlib import Path

import pytest

import weft

FORMATS = [
    {"dtype": "bfloat16"},
    {"dtype": "float16"},
    {"dtype": "float16", "use_peft": False},
    {"load_in_8bit": True},
    {"gradient_checkpointing": True},
    {"gradient_checkpointing": True, "use_peft": False},
]


@pytest.mark.parametrize("changes", FORMATS, ids=str)
@pytest.mark.slow
def test_a_format_changes_the_losses_little(keys, changes: dict[str, object], tmp_path: Path):
    if "load_in_8bit" in changes:
        pytest.importorskip("bitsandbytes", reason="the extra [quant] is not installed")
    keys = keys | {"use_peft": changes.get("use_peft", True), "learning_rate": 5e-3}
    single = weft.train(keys | {"dtype": "float32", "output_dir": str(tmp_path / "a")}, quiet=True)
    other = weft.train(keys | changes | {"output_dir": str(tmp_path / "b")}, quiet=True)
    assert other.summary["eval"]["loss"] == pytest.approx(single.summary["eval"]["loss"], rel=0.03)
    assert list(other.metrics["train_loss"]) == pytest.approx(list(single.metrics["train_loss"]), rel=0.03)


@pytest.mark.gpu
@pytest.mark.parametrize("changes", [{}, {"load_in_4bit": True}, {"load_in_8bit": True}, {"use_peft": False}], ids=str)
def test_a_run_on_a_gpu_repeats_bit_for_bit(keys, changes: dict[str, object], tmp_path: Path):
    run = weft.train(keys | {"use_peft": True} | changes | {"device": "cuda"}, quiet=True)
    again = weft.train(
        keys | {"use_peft": True} | changes | {"device": "cuda", "output_dir": str(tmp_path / "b")}, quiet=True
    )
    assert (run.path / "metrics.jsonl").read_bytes() == (again.path / "metrics.jsonl").read_bytes()
