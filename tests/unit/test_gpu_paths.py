"""What is done on a GPU alone, by fakes of one: batches made ahead, lines of equal lengths, weights read to it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from weft.config import build
from weft.core.parts import LocalRule
from weft.models import load, precision
from weft.models.layout import STEP, Batch, Row, lay_out, line_step
from weft.models.resident import Resident
from weft.objectives.causal_lm import CausalLM, next_token_loss
from weft.objectives.grpo import GRPO
from weft.objectives.preference import Preference
from weft.training import ahead, loop
from weft.training.job import Job
from weft.training.loop import GradientSteps
from weft.training.schedules import Schedule

GPU, CPU = torch.device("cuda"), torch.device("cpu")


def some_rows(*lengths: int) -> list[Row]:
    random = np.random.default_rng(0)
    return [(random.integers(3, 90, n).astype(np.int32), np.arange(n) > 2) for n in lengths]


@pytest.fixture
def resident(tiny_model: Path) -> Resident:
    return Resident(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), None, CPU, torch.float32)


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The threads in which batches were pinned; without a GPU there is no memory to pin them in."""
    threads: list[str] = []
    monkeypatch.setattr(Batch, "pinned", lambda batch: threads.append(threading.current_thread().name) or batch)
    return threads


def test_one_window_is_made_while_the_one_before_is_trained_on(pinned: list[str]):
    made: list[int] = []

    def windows() -> Iterator[list[Batch]]:
        for length in (5, 6, 7, 8):
            made.append(length)
            yield [lay_out(some_rows(length), pack=False)]

    coming = ahead.ahead(islice(windows(), 3))
    seen = []
    for number, (batch,) in enumerate(coming):
        seen.append(batch.input_ids.shape[1])
        assert len(made) <= number + 2  # no more than one ahead
    assert seen == made == [5, 6, 7]
    assert len(pinned) == 3
    assert all(name.startswith("batches") for name in pinned)


def test_an_error_of_a_window_comes_when_the_window_is_due_and_no_thread_stays(pinned: list[str]):
    def windows() -> Iterator[list[Batch]]:
        yield [lay_out(some_rows(5), pack=False)]
        raise OSError("no row")

    coming = ahead.ahead(windows())
    next(coming)
    with pytest.raises(OSError, match="no row"):
        next(coming)
    abandoned = ahead.ahead(iter([[lay_out(some_rows(5), pack=False)]] * 3))
    next(abandoned)
    abandoned.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_windows_are_made_ahead_on_a_gpu_unless_the_model_answers(resident: Resident):
    windows = iter([])
    gpu = SimpleNamespace(device=GPU)
    assert ahead.prepared(resident, CausalLM(), windows) is windows
    assert ahead.prepared(gpu, CausalLM(), windows) is not windows
    assert ahead.prepared(gpu, object.__new__(Preference), windows) is not windows
    assert ahead.prepared(gpu, object.__new__(GRPO), windows) is windows


def test_a_round_by_windows_made_ahead_is_the_same_to_the_last_bit(
    resident: Resident, monkeypatch: pytest.MonkeyPatch, pinned: list[str]
):
    steps = GradientSteps(Schedule("constant", 1e-2, 0.0, 1), seed=1, steps=4, batch_size=4, accumulation=2)
    start = resident.values()
    rows = some_rows(*range(6, 30))

    def update() -> dict[str, torch.Tensor]:
        done = steps.work(resident, CausalLM(), rows, LocalRule(), Job({}, start))
        return done.finished.streams["delta"]

    plain = update()
    assert pinned == []
    monkeypatch.setattr(loop, "prepared", lambda model, objective, windows: ahead.ahead(windows))
    by_thread = update()
    assert len(pinned) == 4 * 2
    assert all(torch.equal(value, by_thread[name]) for name, value in plain.items())


def test_lines_on_a_gpu_have_a_multiple_of_64_positions_where_the_model_has_them():
    for positions, step in ((2048, STEP), (1000, 1), (None, 1)):
        config = SimpleNamespace(max_position_embeddings=positions)
        assert line_step(GPU, config) == step
        assert line_step(CPU, config) == 1
    rows = some_rows(70, 20, 30)
    assert lay_out(rows, pack=False).input_ids.shape == (3, 70)
    assert lay_out(rows, pack=False, step=STEP).input_ids.shape == (3, 128)
    assert lay_out(rows, pack=True, step=STEP).input_ids.shape == (1, 128)


@pytest.mark.parametrize("pack", [True, False])
def test_wider_lines_have_the_loss_of_the_same_rows(resident: Resident, pack: bool):
    rows = some_rows(40, 20, 31, 7)
    with torch.no_grad():
        plain = next_token_loss(resident, lay_out(rows, pack=pack))
        wide = next_token_loss(resident, lay_out(rows, pack=pack, step=STEP))
    assert wide.targets == plain.targets
    torch.testing.assert_close(wide.total, plain.total, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
@pytest.mark.parametrize("allow_missing", [False, True])
def test_weights_are_read_to_the_gpu(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, allow_missing: bool
):
    """The GPU is a fake whose memory is this machine's. Weights that are drawn are drawn on the CPU, as everywhere."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    if kind == "pickle":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    config = build({"dataset_name": "d", "model_name_or_path": str(folder), "allow_missing": allow_missing})
    here = load.base_model(config.model_copy(update={"device": "cpu"}))
    maps: list[object] = []
    read = load.shared_base

    def noted(*values: object, **settings: object) -> torch.nn.Module:
        maps.append(settings.pop("device_map", None))
        model = read(*values, **settings, **({"device_map": {"": "cpu"}} if maps[0] else {}))
        monkeypatch.setattr(type(model), "to", lambda model, device: maps.append(device) or model)
        return model

    monkeypatch.setattr(load, "shared_base", noted)
    monkeypatch.setattr(load, "choose_device", lambda _: GPU)
    monkeypatch.setattr(load, "use_kernels", lambda *_: False)
    monkeypatch.setattr(load, "arithmetic", lambda *_: torch.float32)
    there = load.base_model(config)
    assert maps == ([None, GPU] if allow_missing else [{"": "cuda"}])
    values = there.state_dict()
    assert all(torch.equal(value, values[name]) for name, value in here.state_dict().items())


CHOICES = {
    "cpu": ("", "None"),
    "cuda": ("", "expandable_segments:True"),
    "auto": ("", "expandable_segments:True"),
    "cuda:0": ("PYTORCH_CUDA_ALLOC_CONF=max_split_size_mb:64", "None"),
}


@pytest.mark.parametrize("device", CHOICES)
def test_the_allocator_is_set_before_a_gpu_is_used_unless_the_user_did(device: str):
    setting, expected = CHOICES[device]
    script = (
        "import os, torch\n"
        f"os.environ.update(dict([{setting!r}.split('=')] if {setting!r} else []))\n"
        "from weft.models import precision\n"
        "torch.cuda.is_available = lambda: True\n"
        "def current():\n"
        "    assert 'PYTORCH_ALLOC_CONF' in os.environ\n"
        "    return 0\n"
        "torch.cuda.current_device = current\n"
        f"precision.choose_device({device!r})\n"
        "print(os.environ.get('PYTORCH_ALLOC_CONF'))\n"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == expected
    assert precision.ALLOCATOR[0] == "PYTORCH_ALLOC_CONF"
