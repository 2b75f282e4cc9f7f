"""A loss in chunks of logits: the loss and the gradients of all logits at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from weft.models.layout import lay_out
from weft.models.resident import Resident
from weft.objectives.chunks import summed_cross_entropy

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 60,
}


def model_and_batch(kind: str, **changes: object):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SHAPE | changes)
    model = Resident(AutoModelForCausalLM.from_config(config), None, torch.device("cpu"), torch.float32)
    rng = np.random.default_rng(1)
    rows = [(rng.integers(0, 60, length).astype(np.int32), np.ones(length, bool)) for length in (9, 20, 14)]
    return model, lay_out(rows, pack=True)


def gradients(model: Resident, batch, most: int) -> tuple[float, torch.Tensor]:
    model.model.zero_grad()
    loss = summed_cross_entropy(model, batch, most)
    loss.backward()
    return float(loss.detach()), torch.cat([p.grad.flatten() for p in model.model.parameters()])


@pytest.mark.parametrize("tied", [True, False])
def test_chunks_change_neither_loss_nor_gradients(tied: bool):
    model, batch = model_and_batch("llama", tie_word_embeddings=tied)
    whole = gradients(model, batch, 1 << 20)
    assert model.ends_with_head is None  # not even asked
    parts = gradients(model, batch, 7 * 60)
    assert model.ends_with_head is True
    assert parts[0] == pytest.approx(whole[0], rel=1e-5)
    assert (parts[1] - whole[1]).norm() <= 1e-5 * whole[1].norm()


def test_what_follows_the_output_layer_is_not_left_out():
    model, batch = model_and_batch("gemma2", final_logit_softcapping=0.05)
    whole, parts = gradients(model, batch, 1 << 20), gradients(model, batch, 7 * 60)
    assert model.ends_with_head is False
    assert parts[0] == whole[0]
    assert torch.equal(parts[1], whole[1])


def test_the_output_layer_computes_one_chunk_at_a_time():
    model, batch = model_and_batch("llama")
    sizes: list[int] = []
    model.base.get_output_embeddings().register_forward_hook(lambda layer, args, out: sizes.append(out.shape[1]))
    gradients(model, batch, 7 * 60)
    assert len(batch.targets) == 40
    assert max(sizes[2:]) <= 8  # the first two calls test whether anything follows the layer
    assert sum(size for size in sizes if size == 7) >= 2 * 35  # forward, and again in the backward pass
