"""Compiled layers: the same training within a tolerance, plain layers elsewhere, and where they are refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import weft
from weft.config import build
from weft.errors import ConfigError
from weft.models import compiled
from weft.models.compiled import PAYS_AFTER, compile_layers, plain_layers

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Layers(nn.Module):
    """As much of a model as is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.config = self

    def get_text_config(self) -> Layers:
        return self

    num_hidden_layers = 2


@pytest.mark.slow
@pytest.mark.skipif(compiled.find_compiler() is None, reason="no C++ compiler")
def test_a_compiled_run_trains_as_a_plain_one(keys, tmp_path: Path):
    """With dropout, whose draws are the same; the losses of both agree to 1e-4, and their bits may differ."""
    changes = {"dtype": "float32", "num_rounds": 2, "learning_rate": 1e-2}
    plain = weft.train(keys | changes | {"output_dir": str(tmp_path / "plain")}, quiet=True)
    fused = weft.train(keys | changes | {"compile": "on", "output_dir": str(tmp_path / "fused")}, quiet=True)
    assert list(fused.metrics["train_loss"]) == pytest.approx(list(plain.metrics["train_loss"]), rel=1e-4)
    assert fused.summary["eval"]["loss"] == pytest.approx(plain.summary["eval"]["loss"], rel=1e-4)
    from torch._dynamo.utils import counters

    assert counters["frames"]["ok"] > 0  # the control: something was compiled


def test_a_cpu_without_a_compiler_is_told_so(keys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="takes a C\\+\\+ compiler, which is not on this machine: install g"):
        compile_layers(Layers(), build(keys | {"compile": "on"}), CPU)


def test_a_model_without_layers_is_refused(keys):
    model = Layers()
    model.num_hidden_layers = 3
    with pytest.raises(ConfigError, match="no list of layers to compile"):
        compile_layers(model, build(keys | {"compile": "on"}), CUDA)


def test_auto_compiles_long_runs_on_a_gpu_without_fused_kernels_alone(keys, monkeypatch: pytest.MonkeyPatch):
    made = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: made.append(options))
    auto, said = build(keys | {"compile": "auto"}), []
    assert not compile_layers(Layers(), auto, CPU, said.append, steps=PAYS_AFTER)
    assert not compile_layers(Layers(), auto, CUDA, said.append, steps=PAYS_AFTER - 1)
    monkeypatch.setattr(compiled, "is_fused", lambda model: True)
    assert not compile_layers(Layers(), auto, CUDA, said.append, steps=PAYS_AFTER)
    monkeypatch.setattr(compiled, "is_fused", lambda model: False)
    assert not compile_layers(Layers(), build(keys), CUDA, said.append, steps=PAYS_AFTER)
    assert made == said == []
    assert compile_layers(Layers(), auto, CUDA, said.append, steps=PAYS_AFTER)
    assert made == [{"dynamic": True}] * 2
    assert said == ["The decoder layers are compiled in the first steps (--compile off: they are not)."]


@pytest.mark.parametrize("change", [{"parallel": "fsdp"}, {"model_offload": "cpu"}, {"load_in_4bit": True}])
def test_layers_that_are_not_whole_are_not_compiled(keys, change):
    build(keys | change)
    with pytest.raises(ConfigError, match="Compiled layers must be whole"):
        build(keys | change | {"compile": "on"})


class Double(nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values * 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_plain_layers_are_computed_inside_the_context():
    calls = []

    def backend(graph, inputs):
        calls.append(len(inputs))
        return graph.forward

    layer = Double()
    layer.compile(backend=backend)
    with plain_layers(True):
        layer(torch.ones(1, 2))
    assert calls == []
    with plain_layers(False):
        layer(torch.ones(1, 2))
    assert len(calls) == 1
