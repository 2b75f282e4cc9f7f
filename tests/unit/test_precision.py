"""Number formats, quantised bases and recomputed activations: each trains, and evaluates near float32."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

import weft
from weft.config import build
from weft.models import load
from weft.models.precision import choose_dtype, use_tensor_cores
from weft.models.quantised import advice, quantisation
from weft.models.tokenizer import load_tokenizer

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
def test_a_run_on_a_gpu_repeats(keys, changes: dict[str, object], tmp_path: Path):
    run = weft.train(keys | {"use_peft": True} | changes | {"device": "cuda"}, quiet=True)
    again = weft.train(
        keys | {"use_peft": True} | changes | {"device": "cuda", "output_dir": str(tmp_path / "b")}, quiet=True
    )
    # Not bit for bit: the backward pass of flash attention adds in no fixed order.
    assert list(run.metrics["train_loss"]) == pytest.approx(list(again.metrics["train_loss"]), rel=1e-3)


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_that_emulates_bfloat16_computes_in_float16(
    native: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    """T4 and V100 say that they support bfloat16; they emulate it."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert choose_dtype("auto", torch.device("cuda"), 4096) == dtype


@pytest.mark.parametrize(
    ("device", "dtype", "capability", "used"),
    [
        ("cuda", torch.float32, (8, 0), True),
        ("cuda", torch.float32, (7, 5), False),
        ("cuda", torch.bfloat16, (9, 0), False),
        ("cpu", torch.float32, (0, 0), False),
    ],
)
def test_float32_is_multiplied_in_tf32_from_ampere_on(
    device: str, dtype: torch.dtype, capability: tuple[int, int], used: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = False
        assert use_tensor_cores(torch.device(device), dtype) is used
        assert torch.backends.cuda.matmul.allow_tf32 is used
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("used", [True, False])
def test_a_run_says_that_its_products_are_in_tf32(keys, used: bool, monkeypatch: pytest.MonkeyPatch):
    config, notes = build(keys), []
    monkeypatch.setattr(load, "use_tensor_cores", lambda device, dtype: used)
    load.load_resident(config, load_tokenizer(config), note=notes.append)
    assert [note for note in notes if "TF32" in note] == [
        "The GPU multiplies float32 matrices in TF32, whose factors have 10 bits of mantissa."
    ] * used


def test_eight_bits_are_advised_against_where_others_are_faster():
    keys = {"model_name_or_path": "none", "dataset_name": "none", "use_peft": True}
    assert advice(build(keys), True) is None
    eight = build(keys | {"load_in_8bit": True, "int8_threshold": 0.0})
    assert "bfloat16 fits into this GPU" in (advice(eight, True) or "")
    assert "--load_in_4bit" in (advice(eight, False) or "")
    if importlib.util.find_spec("bitsandbytes"):
        assert quantisation(eight, torch.bfloat16).llm_int8_threshold == 0.0
