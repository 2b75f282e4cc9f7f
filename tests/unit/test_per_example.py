"""Gradients of single examples beside a loop over them, and beside Opacus."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from support.tiny_models import causal_model, pairs_of, rows_of
from weft.errors import ConfigError
from weft.models.lines import lay_out_lines, line_logps
from weft.models.prompts import Front
from weft.models.resident import Resident
from weft.models.side import add_twin
from weft.objectives.preference import Preference
from weft.objectives.sft import SFT
from weft.training.layer_gradients import Lookup, Owners, Product, Tied
from weft.training.per_example import PerExample, clipped_sums, norms

CPU = torch.device("cpu")
LENGTHS = [9, 14, 5, 14]
PAIRS = [(5, 4, 9), (9, 2, 3), (3, 7, 1)]


def resident(kind: str, trained: str, *, tied: bool = False, dora: bool = False) -> Resident:
    from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model

    model = causal_model(kind, tied=tied)
    if trained == "full":
        return Resident(model, None, CPU, torch.float32)
    if trained == "lora":
        gpt2 = kind == "gpt2"
        targets = ["c_attn", "c_proj", "c_fc"] if gpt2 else ["q_proj", "v_proj", "o_proj", "down_proj"]
        config = LoraConfig(
            r=4,
            lora_dropout=0.0,
            init_lora_weights=False,
            use_dora=dora,
            target_modules=targets,
            fan_in_fan_out=gpt2,
            task_type="CAUSAL_LM",
        )
        adapted = get_peft_model(model, config)
        if dora:
            for name, value in adapted.named_parameters():
                if "magnitude" in name:
                    value.data.mul_(1 + 0.1 * torch.rand(value.shape))
        return Resident(adapted, None, CPU, torch.float32)
    kinds = {"soft": PromptTuningConfig, "prefix": PrefixTuningConfig, "p_tuning": PromptEncoderConfig}
    extra = {"encoder_hidden_size": 16} if trained == "p_tuning" else {}
    adapted = get_peft_model(model, kinds[trained](task_type="CAUSAL_LM", num_virtual_tokens=3, **extra))
    return Resident(adapted, None, CPU, torch.float32, Front(adapted, trained))


def lead(trained: str) -> int:
    return 3 if trained in ("soft", "p_tuning") else 0


def assert_equal_to_a_loop(model: Resident, objective, rows, unit_of_row: list[int], bound: float = 0.7) -> None:
    """Compare with a loop over the units, each alone in a batch."""
    units = max(unit_of_row) + 1
    batch = objective.separate(rows, 1)
    owners = Owners(torch.tensor(unit_of_row).repeat_interleave(batch.lines_of_row), units)
    found = PerExample(model).gradients(lambda: objective.row_losses(model, batch), owners)
    lengths = norms(found)
    totals = {name: torch.zeros_like(value) for name, value in model.params.items()}
    assert all(value.requires_grad for value in model.params.values())
    for unit in range(units):
        model.model.zero_grad()
        alone = objective.separate([row for row, owner in zip(rows, unit_of_row, strict=True) if owner == unit], 1)
        objective.row_losses(model, alone).sum().backward()
        grads = {name: value.grad for name, value in model.params.items() if value.grad is not None}
        assert set(grads) == set(found)
        norm = float(torch.stack([grad.double().square().sum() for grad in grads.values()]).sum().sqrt())
        assert norm > 1e-5
        assert float(lengths[unit]) == pytest.approx(norm, rel=1e-5, abs=1e-8)
        for name, grad in grads.items():
            apart = float((found[name].whole().values[unit] - grad).norm())
            assert apart <= 1e-5 * norm + 1e-8, (name, unit, apart, norm)
            totals[name] += grad * min(1.0, bound / norm)
    for name, value in clipped_sums(found, bound).items():
        torch.testing.assert_close(value, totals[name], rtol=0, atol=1e-5 * bound)


OBJECTIVES = {"sft": SFT(), "dpo": Preference(), "kto": Preference("kto")}


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("trained", ["lora", "full", "soft", "prefix"])
@pytest.mark.parametrize("loss", OBJECTIVES)
def test_gradients_of_examples_are_those_of_a_loop(kind: str, trained: str, loss: str):
    model = resident(kind, trained)
    rows = rows_of(LENGTHS, lead=lead(trained)) if loss == "sft" else pairs_of(PAIRS, lead=lead(trained))
    assert_equal_to_a_loop(model, OBJECTIVES[loss], rows, list(range(len(rows))))


@pytest.mark.parametrize("loss", ["ipo", "simpo", "orpo", "robust_dpo"])
def test_other_losses_of_pairs_are_separable(loss: str):
    assert_equal_to_a_loop(resident("llama", "lora"), Preference(loss), pairs_of(PAIRS), [0, 1, 2])


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_tied_embeddings_count_once(kind: str):
    """A table that is looked up and multiplied with: the norm is that of the sum of both gradients."""
    assert_equal_to_a_loop(resident(kind, "full", tied=True), SFT(), rows_of(LENGTHS), [0, 1, 2, 3])
    assert_equal_to_a_loop(resident(kind, "full", tied=True), Preference(), pairs_of(PAIRS), [0, 1, 2])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_dora_has_gradients_of_its_magnitudes(kind: str):
    assert_equal_to_a_loop(resident(kind, "lora", dora=True), SFT(), rows_of(LENGTHS), [0, 1, 2, 3])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_gated_second_adapter_has_gradients_of_its_gate(kind: str):
    from peft import LoraConfig, get_peft_model

    targets = ["c_attn", "c_fc"] if kind == "gpt2" else ["q_proj", "down_proj"]
    config = LoraConfig(r=4, init_lora_weights=False, target_modules=targets, fan_in_fan_out=kind == "gpt2")
    adapted = get_peft_model(causal_model(kind), config)
    add_twin(adapted, config, "own")
    for name, value in adapted.named_parameters():
        if "lora_gate" in name:
            value.data.fill_(0.3)
    model = Resident(adapted, None, CPU, torch.float32)
    assert sum("lora_gate" in name for name in model.params) > 1
    assert_equal_to_a_loop(model, SFT(), rows_of(LENGTHS), [0, 1, 1, 2])


def test_a_prompt_that_a_network_makes():
    assert_equal_to_a_loop(resident("llama", "p_tuning"), SFT(), rows_of(LENGTHS, lead=3), [0, 1, 2, 3])


@pytest.mark.parametrize("trained", ["lora", "full", "soft"])
def test_rows_of_a_unit_are_added_up_before_clipping(trained: str):
    """Units of one, two and three rows; for pairs, each row has two lines."""
    rows = rows_of([9, 14, 5, 14, 7, 11], lead=lead(trained))
    assert_equal_to_a_loop(resident("llama", trained), SFT(), rows, [0, 1, 1, 2, 2, 2])
    assert_equal_to_a_loop(
        resident("llama", trained, tied=True), Preference(), pairs_of(PAIRS, lead=lead(trained)), [0, 1, 1]
    )


@pytest.mark.filterwarnings("ignore:Full backward hook:UserWarning")
def test_gradients_are_those_of_opacus():
    """An oracle from outside: Opacus by hooks, on the model that it knows."""
    opacus = pytest.importorskip("opacus")
    model = resident("llama", "full")
    rows = rows_of(LENGTHS)
    batch = SFT().separate(rows, 1)
    ours = PerExample(model).gradients(lambda: SFT().row_losses(model, batch), Owners(torch.arange(4), 4))
    wrapped = opacus.GradSampleModule(model.base, batch_first=True, loss_reduction="sum")
    logits = wrapped(input_ids=batch.lines.input_ids, position_ids=batch.lines.position_ids, use_cache=False).logits
    losses = []
    for line, (ids, learn) in enumerate(rows):
        logps = logits[line, : len(ids) - 1].log_softmax(-1)
        chosen = logps.gather(1, torch.from_numpy(ids[1:].astype(np.int64))[:, None])[:, 0]
        losses.append(-chosen[torch.from_numpy(learn[1:])].mean())
    torch.stack(losses).sum().backward()
    theirs = {name.removeprefix("_module."): value.grad_sample for name, value in wrapped.named_parameters()}
    assert set(theirs) == set(ours)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient.whole().values, theirs[name], rtol=1e-4, atol=1e-6)


def test_the_length_of_one_row_changes_no_other():
    """A mean over all tokens of a batch lets one row scale the gradients of others, so that no bound holds."""

    def first(length: int) -> torch.Tensor:
        model = resident("llama", "lora")
        rows = [rows_of([24])[0], rows_of([length], seed=1)[0]]
        batch = SFT().separate(rows, 1)
        found = PerExample(model).gradients(lambda: SFT().row_losses(model, batch), Owners(torch.arange(2), 2))
        return norms(found)[0]

    assert float(first(4)) == pytest.approx(float(first(24)), rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(3, 30), min_size=1, max_size=5),
    extra=st.integers(3, 30),
    bound=st.sampled_from([1e-3, 0.1, 1.0, 100.0]),
    seed=st.integers(0, 99),
)
def test_neighbours_differ_by_at_most_the_bound(lengths, extra, bound, seed):
    """One row more, of any length: the clipped sums are at most the bound apart."""
    model = resident("llama", "lora")

    def sums(rows):
        batch = SFT().separate(rows, 1)
        owners = Owners(torch.arange(len(rows)), len(rows))
        return clipped_sums(PerExample(model).gradients(lambda: SFT().row_losses(model, batch), owners), bound)

    rows = rows_of(lengths, seed)
    without, with_it = sums(rows), sums([*rows, *rows_of([extra], seed + 100)])
    apart = torch.stack([(with_it[name] - without[name]).double().square().sum() for name in without]).sum().sqrt()
    assert float(apart) <= bound * (1 + 1e-4) + 1e-5


def test_an_example_that_is_not_finite_adds_nothing():
    model = resident("llama", "lora")
    rows = rows_of(LENGTHS)
    batch = SFT().separate(rows, 1)
    owners = Owners(torch.arange(4), 4)

    def sums(factors: list[float], chosen: slice = slice(None)):
        scale = torch.tensor(factors)
        found = PerExample(model).gradients(lambda: SFT().row_losses(model, batch) * scale, owners)
        return clipped_sums(found, 0.5)

    broken, without = sums([1.0, float("nan"), 1.0, 1.0]), sums([1.0, 0.0, 1.0, 1.0])
    for name, value in broken.items():
        torch.testing.assert_close(value, without[name], rtol=1e-4, atol=1e-6)
    assert all(not value.any() for value in sums([float("inf")] * 4).values())


def test_a_layer_that_mixes_lines_is_refused_by_name():
    class Mixes(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, inputs):
            return self.layer(inputs.flatten(0, 1)).view(*inputs.shape[:2], -1)

    model = causal_model("llama")
    model.model.layers[0].mlp.up_proj = Mixes(model.model.layers[0].mlp.up_proj)
    mixed = Resident(model, None, CPU, torch.float32)
    batch = lay_out_lines(rows_of(LENGTHS))
    with pytest.raises(ConfigError, match=r"up_proj\.layer' \(Linear\)") as refused:
        PerExample(mixed).gradients(lambda: line_logps(mixed, batch)[0], Owners(torch.arange(4), 4))
    assert "--privacy_unit client" in str(refused.value)
    assert all(value.requires_grad for value in mixed.params.values())


@pytest.mark.parametrize("kind", ["product", "lookup", "tied"])
def test_the_bound_holds_where_terms_cancel(kind: str):
    """A server chooses parameters whose terms are huge and cancel: what is left is rounding, and no smaller norm."""
    generator = torch.Generator().manual_seed(3)
    one = torch.randn(1, 32, 24, generator=generator) * 1e6
    other = torch.randn(1, 32, 20, generator=generator) * 1e6
    left, right = torch.cat([one, -one], dim=1), torch.cat([other, other * (1 + 1e-7)], dim=1)
    product = Product(left, right)
    numbers = torch.arange(16).repeat(4)[None]
    lookup = Lookup(numbers, torch.cat([other, -other * (1 + 1e-7)], dim=1), 24)
    gradient = {"product": product, "lookup": lookup, "tied": Tied(lookup, product)}[kind]
    exact = {"product": (left.double().mT @ right.double())[0]}.get(kind)
    sums = clipped_sums({"w": gradient}, 1.0)
    assert float(sums["w"].double().norm()) <= 1.0
    if exact is not None:  # the control: by its exact norm the same sum would not keep to the bound
        factor = min(1.0, 1.0 / float(exact.norm()))
        assert float(gradient.total(torch.tensor([factor])).double().norm()) > 1.0
