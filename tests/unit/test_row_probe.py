"""Models in which rows of a batch influence each other are found before anybody trains."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from support.tiny_models import causal_model, pairs_of, rows_of
from weft.errors import ConfigError
from weft.models.resident import Resident
from weft.objectives.causal_lm import CausalLM
from weft.objectives.preference import Preference
from weft.objectives.sft import SFT
from weft.training.row_probe import check_apart

CPU = torch.device("cpu")
ROWS = rows_of([9, 14, 5])
PAIRS = pairs_of([(5, 4, 9), (9, 2, 3)])


class Norm(nn.Module):
    """Batch normalisation behind a layer: a mean over the lines and positions of a batch."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer, self.norm = layer, nn.BatchNorm1d(width)

    def forward(self, inputs):
        out = self.layer(inputs)
        return self.norm(out.flatten(0, 1)).view_as(out)


class Capacity(nn.Module):
    """Only the largest values of a batch pass, as in experts of a limited capacity: no gradient tells it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs):
        out = self.layer(inputs)
        least = out.detach().abs().flatten().sort().values[-out.numel() // 4]
        return out * (out.detach().abs() >= least)


def resident(change=lambda model: None) -> Resident:
    model = causal_model("llama")
    change(model)
    return Resident(model, None, CPU, torch.float32)


@pytest.mark.parametrize(("objective", "rows"), [(SFT(), ROWS), (CausalLM(), ROWS), (Preference(), PAIRS)])
def test_a_model_that_keeps_rows_apart_passes_and_is_left_as_it_was(objective, rows):
    model = resident()
    model.model.eval()
    chance = torch.get_rng_state()
    check_apart(model, objective, rows)
    check_apart(model, objective, rows[:1])
    assert not model.model.training
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(value.grad is None for value in model.params.values())
    assert not model.base.get_input_embeddings()._forward_hooks


@pytest.mark.parametrize("objective", [SFT(), Preference()])
@pytest.mark.parametrize("mixes", ["norm", "capacity"])
def test_a_model_that_mixes_rows_is_refused_with_what_can_be_done(objective, mixes: str):
    def change(model) -> None:
        mlp = model.model.layers[0].mlp
        wide = mlp.up_proj.out_features
        mlp.up_proj = Norm(mlp.up_proj, wide) if mixes == "norm" else Capacity(mlp.up_proj)

    with pytest.raises(ConfigError, match=r"depends on the rows beside it.*--privacy_unit client") as refused:
        check_apart(resident(change), objective, PAIRS if isinstance(objective, Preference) else ROWS)
    assert "LlamaForCausalLM" in str(refused.value)
    assert "\n" not in str(refused.value)
