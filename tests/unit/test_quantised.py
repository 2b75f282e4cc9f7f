"""A base in 4 bits learns on a CPU as it should, whether or not it was evaluated before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from weft.config import build
from weft.models.layout import lay_out
from weft.models.load import load_resident
from weft.models.tokenizer import load_tokenizer
from weft.objectives.causal_lm import next_token_loss


@pytest.fixture
def model(tiny_tokenizer, tmp_path: Path) -> Path:
    """A model whose layers all have shapes that bitsandbytes has a CPU kernel for."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    own = LlamaConfig(vocab_size=len(tiny_tokenizer), bos_token_id=0, eos_token_id=1, pad_token_id=2, **sizes)
    LlamaForCausalLM(own).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_every_layer_has_a_gradient_after_an_evaluation(model: Path):
    pytest.importorskip("bitsandbytes")
    keys = {"model_name_or_path": str(model), "dataset_name": "none", "use_peft": True, "load_in_4bit": True}
    config = build(keys | {"device": "cpu", "dtype": "float32", "peft_lora_dropout": 0.0})
    resident = load_resident(config, load_tokenizer(config))
    ids = torch.arange(3, 43).numpy().astype("int32")
    batch = lay_out([(ids, ids > 3)], pack=False)
    with resident.evaluating():
        before = float(next_token_loss(resident, batch).total)
    loss = next_token_loss(resident, batch).total
    assert float(loss.detach()) == pytest.approx(before, rel=1e-3)
    loss.backward()
    grads = {name: float(p.grad.abs().max()) for name, p in resident.params.items() if "lora_B" in name}
    assert len(grads) == 4
    assert min(grads.values()) > 0

    name = next(name for name in grads if "layers.0" in name and "v_proj" in name)
    place = torch.nonzero(resident.params[name].grad.abs() == grads[name])[0].tolist()
    step, values = 1e-2, resident.params[name].data
    sides = []
    for sign in (1, -1):  # a difference quotient, from outside of autograd
        values[tuple(place)] += sign * step
        with torch.no_grad():
            sides.append(float(next_token_loss(resident, batch).total))
        values[tuple(place)] -= sign * step
    slope = (sides[0] - sides[1]) / (2 * step)
    assert slope == pytest.approx(float(resident.params[name].grad[tuple(place)]), rel=0.05)
