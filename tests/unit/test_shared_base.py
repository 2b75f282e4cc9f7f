"""The base that the runs of a study share: read once, the same bits as one that was read, and nobody's to change."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from weft.models.checkpoint import load_weights
from weft.models.shared_base import base_is_shared, shared_base

Loaded = Callable[..., Any]
F32 = {"dtype": torch.float32}


class Reader:
    """Reads models, and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, source: str, **settings: Any) -> Any:
        self.times += 1
        return load_weights(source, **settings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Llama whose output layer is its embeddings."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=90, tie_word_embeddings=True, **shape)).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def tensors(model: Any) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def values(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in tensors(model).items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


SETTINGS = {
    "float32": F32,
    "bfloat16": {"dtype": torch.bfloat16},
    "placed": F32 | {"device_map": {"": "cpu"}},
    "gpu": F32 | {"device_map": {"": "cuda"}},
}


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "placed", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_every_run_gets_the_bits_of_a_model_that_was_read(folder, kind):
    settings = SETTINGS[kind]
    torch.manual_seed(7)
    alone = shared_base(str(folder), seed=3, **settings)
    state = torch.get_rng_state()
    read = Reader()
    with base_is_shared():
        for seed in (3, 4, 3):
            torch.manual_seed(seed)
            model = shared_base(str(folder), seed=seed, load=read, **settings)
            assert torch.equal(torch.get_rng_state(), state) == (seed == 3)
            assert any(name.endswith("inv_freq") for name, _ in model.named_buffers())
            assert same(values(model), values(alone))
            assert model.lm_head.weight is model.model.embed_tokens.weight
            assert {name: (p.requires_grad, p.__dict__) for name, p in model.named_parameters()} == {
                name: (p.requires_grad, p.__dict__) for name, p in alone.named_parameters()
            }
            assert all(one.data_ptr() % 64 == 0 for one in tensors(model).values())
            assert {one.device for one in tensors(model).values()} == {one.device for one in tensors(alone).values()}
            assert model.config.to_dict() == alone.config.to_dict()
            assert (model.training, model.name_or_path) == (alone.training, alone.name_or_path)
    assert read.times == 1


def train(model: Any) -> None:
    """Do to a base whatever a run may do to it."""
    model.train()
    model.config.use_cache = False
    model.generation_config.max_length = 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tokens = torch.arange(8)[None]
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    for name, value in tensors(model).items():
        if "layers.1" in name or name.endswith("inv_freq"):
            value.data.add_(1)  # which torch's own count of changes does not see
    model.resize_token_embeddings(100, mean_resizing=False)


def trace(load: Loaded) -> None:
    """Train one model, and look for a trace of it in the next."""
    first = load()
    before, shape = values(first), first.config.to_dict()
    train(first)
    assert not same(values(first), before)
    second = load()
    assert same(values(second), before)
    assert not second.training
    assert all(p.grad is None for p in second.parameters())
    assert second.config.to_dict() == shape
    assert second.generation_config.max_length != 3


def test_what_a_run_does_to_its_base_is_in_no_other(folder):
    read = Reader()
    with base_is_shared():
        trace(lambda: shared_base(str(folder), load=read, **F32))
        trace(lambda: shared_base(str(folder), load=read, **F32))
    assert read.times == 1


def test_a_base_that_is_handed_on_without_a_copy_is_found_out(folder):
    """The control of the test above."""
    model = load_weights(str(folder), **F32)
    with pytest.raises(AssertionError):
        trace(lambda: model)


def mappings() -> tuple[int, int]:
    """How many mappings of bases there are: the ones that are kept, and those of runs."""
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if "/memfd:weft base" in line]
    return sum(" rw-s " in line for line in mapped), sum(" rw-p " in line for line in mapped)


def test_frozen_weights_are_the_same_memory_for_all_runs(folder):
    with base_is_shared():
        models = [shared_base(str(folder), **F32) for _ in range(2)]
        assert mappings() == (1, 2)
    # What runs still hold outlives the block, and the rest goes with it.
    assert all(torch.isfinite(value).all() for model in models for value in values(model).values())
    assert mappings() == (0, 2)


def changed_values(folder: Path) -> None:
    """Write other values, in the same number of bytes and at the same time of change."""
    file, times = folder / "model.safetensors", (folder / "model.safetensors").stat()
    weights = load_file(file)
    save_file({name: value + 1 for name, value in weights.items()}, file, {"format": "pt"})
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def changed_settings(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(file.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))


@pytest.mark.parametrize("change", [changed_values, changed_settings])
def test_a_file_that_changed_between_runs_is_read_again(folder, change):
    read = Reader()
    with base_is_shared():
        before = shared_base(str(folder), load=read, **F32)
        change(folder)
        after = shared_base(str(folder), load=read, **F32)
    fresh = load_weights(str(folder), **F32)
    assert read.times == 2
    assert same(values(after), values(fresh))
    assert after.config.to_dict() == fresh.config.to_dict()
    assert not same(values(before), values(after)) or before.config.to_dict() != after.config.to_dict()


def test_another_base_is_read_and_the_former_is_let_go(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    changed_values(other)
    read = Reader()
    with base_is_shared():
        for source, dtype in [(folder, F32), (other, F32), (other, {"dtype": torch.bfloat16}), (folder, F32)]:
            model = shared_base(str(source), load=read, **dtype)
            assert same(values(model), values(load_weights(str(source), **dtype)))
            assert mappings() == (1, 1)
            del model
    assert read.times == 4


def test_weights_that_are_drawn_from_the_seed_are_drawn_for_each(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: value for name, value in weights.items() if ".layers.1." not in name},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    read = Reader()
    with base_is_shared():
        for seed in (1, 2, 1):
            said: list[str] = []
            model = shared_base(str(folder), seed=seed, allow_missing=True, load=read, note=said.append, **F32)
            assert same(values(model), values(load_weights(str(folder), seed=seed, allow_missing=True, **F32)))
            assert any("initialised from the seed" in sentence for sentence in said)
    assert read.times == 3


def test_what_is_peculiar_about_a_checkpoint_is_said_to_every_run(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(
        {f"module.{name}": value for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    heard: list[list[str]] = [[], []]
    with base_is_shared():
        for said in heard:
            shared_base(str(folder), note=said.append, **F32)
    assert heard[0] == heard[1]
    assert "stripped" in heard[0][0]


def test_nothing_is_kept_outside_of_a_study(folder):
    read = Reader()
    for _ in range(2):
        shared_base(str(folder), load=read, **F32)
    assert read.times == 2
