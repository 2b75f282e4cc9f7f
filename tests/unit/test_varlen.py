"""Rows on one line with offsets: the logits, losses and gradients of rows alone."""

from __future__ import annotations

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.attention.varlen import varlen_attn
from transformers import AutoConfig, AutoModelForCausalLM

from weft.models import varlen
from weft.models.layout import Row, lay_out
from weft.models.lines import lay_out_lines
from weft.models.probes import packing_is_exact
from weft.models.resident import Resident
from weft.objectives.causal_lm import CausalLM

CPU = torch.device("cpu")
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "vocab_size": 60,
}
KINDS = {
    "llama": {},
    "llama, grouped heads": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 5},
}


def resident(kind: str, **changes: object) -> Resident:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind.split(",")[0], **SHAPE | KINDS.get(kind, {}) | changes)
    return Resident(AutoModelForCausalLM.from_config(config), None, CPU, torch.float32)


def rows(*lengths: int) -> list[Row]:
    rng = np.random.default_rng(3)
    return [(rng.integers(0, 60, length).astype(np.int32), rng.random(length) < 0.7) for length in lengths]


def loss_and_gradients(model: Resident, objective: CausalLM, table: list[Row]) -> tuple[float, torch.Tensor]:
    model.model.zero_grad()
    loss = objective.loss(model, objective.collate(table))
    loss.total.backward()
    return float(loss.total.detach()), torch.cat([p.grad.flatten() for p in model.model.parameters()])


def test_a_line_of_three_rows_by_hand():
    first, second = (np.array([5, 6, 7], np.int32), np.array([0, 0, 1], bool)), (np.array([8, 9], np.int32), [0, 1])
    batch = lay_out([first, (second[0], np.array(second[1], bool))], pack=True, offsets="always")
    assert batch.input_ids.shape == (1, 64)
    assert batch.input_ids[0, :6].tolist() == [5, 6, 7, 8, 9, 0]
    assert batch.position_ids is not None
    assert batch.position_ids[0, :7].tolist() == [0, 1, 2, 0, 1, 0, 1]
    assert batch.offsets is not None
    assert batch.offsets.tolist() == [0, 3, 5, 64]
    assert batch.longest == 59  # the padding is a row of its own
    assert (batch.index.tolist(), batch.targets.tolist()) == ([1, 3], [7, 9])
    assert (batch.mask, batch.rows, batch.tokens) == (None, 2, 5)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_rows_alone(kind: str):
    model, table = resident(kind), rows(9, 30, 4, 17, 22)
    alone = loss_and_gradients(model, CausalLM(pack=False), table)
    assert varlen.install(model.base)
    assert packing_is_exact(model, offsets=True)
    line = loss_and_gradients(model, CausalLM(offsets="always"), table)
    assert line[0] == pytest.approx(alone[0], rel=1e-6)
    assert (line[1] - alone[1]).norm() <= 1e-5 * alone[1].norm()


@pytest.mark.parametrize("length", [512, pytest.param(4096, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["llama", "llama, grouped heads"])
def test_long_rows_keep_their_logits(kind: str, length: int):
    model, table = resident(kind), rows(length, length // 2, length // 4, 70)
    assert varlen.install(model.base)
    with model.evaluating():
        alone = model.logits(lay_out(table, pack=False))
        line = model.logits(lay_out(table, pack=True, offsets="always"))
    assert (line - alone).abs().max() <= 1e-5 * alone.abs().max()


def test_a_row_sees_its_own_window_alone():
    """The control: with a window as long as the row, the model has other logits."""
    narrow, wide = resident("mistral"), resident("mistral", sliding_window=100)
    for model in (narrow, wide):
        assert varlen.install(model.base)
    batch = lay_out(rows(30, 20), pack=True, offsets="always")
    with narrow.evaluating(), wide.evaluating():
        assert not torch.allclose(narrow.logits(batch), wide.logits(batch), atol=1e-4)


def test_recomputed_activations_keep_the_offsets():
    model, table = resident("llama"), rows(9, 30, 4)
    assert varlen.install(model.base)
    stored = loss_and_gradients(model, CausalLM(offsets="always"), table)
    model.model.train()
    model.recomputation.allowed = True
    assert model.recomputation.switch_on("a test")
    again = loss_and_gradients(model, CausalLM(offsets="always"), table)
    assert again[0] == stored[0]
    assert torch.equal(again[1], stored[1])


def test_a_model_with_soft_caps_keeps_its_masks():
    model = resident("gemma2", num_key_value_heads=2, attn_logit_softcapping=20.0)
    assert not varlen.install(model.base)
    assert model.base.config._attn_implementation == "eager"
    assert model.lay_out(rows(90, 50, 60)).offsets is None


def test_attention_with_dropout_is_left_alone():
    model = resident("llama", attention_dropout=0.1)
    assert not varlen.install(model.base)
    assert model.base.config._attn_implementation == "sdpa"


def test_a_cpu_keeps_masks_where_they_cost_little():
    """It computes row by row, which pays where lines would hold much padding, or a mask would be large."""
    model = resident("llama")
    assert model.offsets
    assert model.lay_out(rows(5, 4, 9)).mask is not None
    assert model.lay_out(rows(30, 4, 30, 30)).offsets is None
    one_line = model.lay_out(rows(90, 50, 60))
    assert one_line.offsets is not None
    assert one_line.input_ids.shape == (1, 200)
    assert model.lay_out(rows(600, 300, 299)).offsets is not None
    assert model.lay_out(rows(600, 600)).mask is None
    assert model.lay_out(rows(90, 50, 60), pack=False).input_ids.shape == (3, 90)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cpu_computes_by_row_what_rows_alone_have(kind: str):
    """In training too, where the layout is chosen by the rule above."""
    model, table = resident(kind), rows(90, 50, 60)
    alone = loss_and_gradients(model, CausalLM(pack=False), table)
    objective = CausalLM().for_model(model)
    assert objective.collate(table).offsets is not None
    line = loss_and_gradients(model, objective, table)
    assert line[0] == pytest.approx(alone[0], rel=1e-6)
    assert (line[1] - alone[1]).norm() <= 1e-5 * alone[1].norm()


def test_short_rows_in_16_bits_are_computed_in_float32_on_a_cpu():
    torch.manual_seed(0)
    query, key, value = (torch.randn(50, 4, 8) for _ in range(3))
    offsets = torch.tensor([0, 20, 50], dtype=torch.int32)
    kernel = varlen.kernel_for("cpu")
    assert kernel is not None
    narrow = [part.bfloat16() for part in (query, key, value)]
    exact = varlen.by_row(*(part.float() for part in narrow), offsets, 30, None, 0)
    assert torch.equal(kernel(*narrow, offsets, 30, None, 0), exact.bfloat16())
    assert not torch.equal(varlen.by_row(*narrow, offsets, 30, None, 0), exact.bfloat16())  # the control


def test_torch_has_the_kernel_that_is_called():
    tensor = torch.zeros(4, 2, 8)
    offsets = torch.tensor([0, 4], dtype=torch.int32)
    settings = {"scale": None, "window_size": (-1, 0), "enable_gqa": True}
    inspect.signature(varlen_attn).bind(tensor, tensor, tensor, offsets, offsets, 4, 4, **settings)
    assert varlen.kernel_for("cuda") is varlen._torch_kernel


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [4, 2])
def test_the_kernel_of_a_gpu_computes_what_rows_alone_have(heads: int):
    torch.manual_seed(0)
    query, key, value = (torch.randn(50, count, 64, device="cuda", dtype=torch.bfloat16) for count in (4, heads, heads))
    offsets = torch.tensor([0, 20, 50], dtype=torch.int32, device="cuda")
    kernel = varlen.kernel_for("cuda")
    assert kernel is not None
    for window in (0, 7):
        ours = kernel(query, key, value, offsets, 30, None, window).float()
        assert torch.allclose(ours, varlen.by_row(query, key, value, offsets, 30, None, window).float(), atol=2e-2)


@pytest.mark.gpu
def test_batches_whose_tensors_are_expanded_travel_to_a_gpu():
    """Positions that all lines share, and masks that all heads share, are one piece of memory on the CPU."""
    row = (np.arange(5, dtype=np.int32), np.ones(5, dtype=bool))
    mask = torch.ones(5, 5, dtype=torch.bool).tril().expand(2, 1, 5, 5)
    batch = replace(lay_out_lines([row, row]), mask=mask)
    moved = batch.to(torch.device("cuda"))
    assert moved.mask is not None
    assert torch.equal(moved.mask.cpu(), mask)
    assert moved.position_ids is not None
    assert moved.position_ids.tolist() == [list(range(5))] * 2
