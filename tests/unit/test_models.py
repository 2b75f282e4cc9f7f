"""Layout, packing, masters and evaluation of a resident model."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from weft.core.metrics import summarise
from weft.evaluation.heldout import HeldOut, macro_f1, rank
from weft.models.layout import Question, lay_out, place
from weft.models.resident import Resident
from weft.objectives.causal_lm import next_token_loss

CPU = torch.device("cpu")


def some_rows(*lengths: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(rng.integers(3, 250, n).astype(np.int32), rng.random(n) < 0.7) for n in lengths]


@pytest.fixture
def model(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40))
def test_packing_places_every_row_once_within_the_length(lengths: list[int]):
    lines = place(lengths, max(lengths))
    assert sorted(row for line in lines for row in line) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in line) <= max(lengths) for line in lines)


@pytest.mark.parametrize("pack", [False, True])
def test_loss_and_gradients_are_those_of_rows_alone(model, pack: bool):
    plain = copy.deepcopy(model)
    resident = Resident(model, None, CPU, torch.float32)
    rows = some_rows(20, 33, 10, 41, 18, 7)
    batch = lay_out(rows, pack=pack)
    assert (len(batch.input_ids) < len(rows)) == pack
    loss = next_token_loss(resident, batch)
    loss.total.backward()
    expected = torch.zeros(())
    for ids, learn in rows:
        given_ids = torch.from_numpy(ids.astype(np.int64))[None]
        labels = torch.from_numpy(np.where(learn, ids, -100).astype(np.int64))[None]
        out = plain(input_ids=given_ids, labels=labels)
        expected = expected + out.loss * int(learn[1:].sum())
    expected.backward()
    assert loss.targets == sum(int(learn[1:].sum()) for _, learn in rows)
    torch.testing.assert_close(loss.total, expected, rtol=1e-5, atol=1e-5)
    for (name, mine), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_the_probe_finds_which_models_can_pack():
    from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

    sizes = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 1}
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64, **sizes))
    bloom = BloomForCausalLM(BloomConfig(hidden_size=32, n_layer=2, n_head=2, **sizes))
    mamba = MambaForCausalLM(MambaConfig(hidden_size=32, num_hidden_layers=2, pad_token_id=2, **sizes))
    assert [Resident(m, None, CPU, torch.float32).can_pack for m in (gpt2, bloom, mamba)] == [True, False, False]


def test_masters_keep_every_bit_that_the_model_rounds(model):
    resident = Resident(model, None, CPU, torch.bfloat16)
    values = {name: torch.randn_like(value) for name, value in resident.values().items()}
    resident.load(values)
    kept = resident.values()
    assert all(torch.equal(values[name], kept[name]) for name in values)
    assert all(torch.equal(p, values[name].bfloat16()) for name, p in resident.params.items())
    batch = lay_out(some_rows(8, 9), pack=True)
    next_token_loss(resident, batch).total.backward()
    once = {name: p.grad.float() for name, p in resident.params.items()}
    resident.collect_grads()
    next_token_loss(resident, batch).total.backward()
    resident.collect_grads()
    for name, master in resident.masters.items():
        assert resident.params[name].grad is None
        torch.testing.assert_close(master.grad, 2 * once[name])


@pytest.mark.parametrize("packs", [True, False])
def test_ranking_equals_scoring_each_choice_alone(model, packs: bool):
    resident = Resident(model.eval(), None, CPU, torch.float32)
    resident.can_pack = packs
    rng = np.random.default_rng(1)
    questions = [
        Question(
            rng.integers(3, 250, n).astype(np.int32), [rng.integers(3, 250, k).astype(np.int32) for k in (1, 3, 2)]
        )
        for n in (5, 12, 30)
    ]
    found = rank(resident, questions, batch_size=2)
    for question, (best, scores) in zip(questions, found, strict=True):
        expected = []
        for choice in question.choices:
            ids = torch.from_numpy(np.concatenate([question.prompt, choice]).astype(np.int64))[None]
            logs = F.log_softmax(model(ids).logits[0].detach(), dim=-1)
            start = len(question.prompt)
            expected.append(float(sum(logs[start + i - 1, token] for i, token in enumerate(choice.tolist()))))
        assert scores == pytest.approx(expected, rel=1e-4)
        assert best == int(np.argmax(expected))


def test_metrics_equal_those_worked_by_hand():
    # Right 0: 3 of 4 named 0; right 1: 1 of 2. F1(0) = 6/8, F1(1) = 2/4 (named 1 twice: once wrongly).
    counts = {"confusion/0/0": 3.0, "confusion/0/1": 1.0, "confusion/1/1": 1.0, "confusion/1/0": 1.0}
    found = summarise(HeldOut.metrics, [{"loss_sum": 6.0, "loss_tokens": 3.0, "rows": 6.0, **counts}])
    assert found["loss"] == 2.0
    assert found["perplexity"] == pytest.approx(math.e**2)
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["macro_f1"] == pytest.approx((6 / 8 + 2 / 4) / 2)
    assert summarise(HeldOut.metrics, [{"rows": 0.0}])["loss"] is None
    # A model that always says the most common answer has high accuracy and low macro-F1.
    assert macro_f1({("n", "n"): 8, ("p", "n"): 1, ("m", "n"): 1}) == pytest.approx((16 / 18) / 3)
