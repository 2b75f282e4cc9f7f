"""Fused kernels: demanded where they cannot be, and a patch that stays with one model."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from weft.errors import ConfigError
from weft.models.kernels import use_kernels, with_local_classes

CPU = torch.device("cpu")


class Plain:
    """A layer of the architecture."""


class Fused:
    """Its replacement."""


def test_a_patch_leaves_classes_and_cpu_tensors_alone(monkeypatch: pytest.MonkeyPatch):
    module = ModuleType("architecture")
    module.Norm, module.rotate, module.other = Plain, lambda tensor, by: ("plain", by), lambda tensor: "other"
    monkeypatch.setitem(sys.modules, "architecture", module)
    plain_other = module.other

    def patch() -> None:
        module.Norm, module.rotate = Fused, lambda tensor, by: ("fused", by)

    for _ in range(2):  # of two models, the second patch must not wrap the first
        with_local_classes("architecture", patch)
        assert module.Norm is Plain
        assert module.other is plain_other
        assert module.rotate(torch.zeros(1), 3) == ("plain", 3)
        assert module.rotate(type("OnGpu", (), {"is_cuda": True})(), by=4) == ("fused", 4)
    assert module.rotate.plain(None, 5) == ("plain", 5)


def test_kernels_that_are_demanded_on_a_cpu_are_refused():
    model = LlamaForCausalLM(LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9))
    assert not use_kernels(model, "auto", CPU)
    assert not use_kernels(model, "none", torch.device("cuda"))
    with pytest.raises(ConfigError, match="kernels is liger, and the device is cpu"):
        use_kernels(model, "liger", CPU)


@pytest.mark.gpu
def test_kernels_compute_what_plain_layers_do():
    pytest.importorskip("liger_kernel", reason="the extra [gpu] is not installed")
    torch.manual_seed(0)
    shape = LlamaConfig(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, vocab_size=64)
    model = LlamaForCausalLM(shape).cuda().bfloat16()
    ids = torch.arange(40, device="cuda")[None]
    plain = model(input_ids=ids).logits.float()
    assert use_kernels(model, "liger", torch.device("cuda"))
    assert (model(input_ids=ids).logits.float() - plain).abs().max() <= 2e-2 * plain.abs().max()
