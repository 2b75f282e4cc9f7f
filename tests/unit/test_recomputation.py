"""Activations recomputed by themselves: when memory does not suffice, with the same numbers, said once."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from weft.config import build
from weft.core.local_rule import LocalRule
from weft.models import load, recomputation
from weft.models.recomputation import Recomputation, check_room, fits, recomputation_of
from weft.models.resident import Resident
from weft.objectives.sft import SFT
from weft.training.job import Job
from weft.training.loop import GradientSteps
from weft.training.schedules import Schedule

KEYS = {"model_name_or_path": "none", "dataset_name": "none", "use_peft": True, "peft_lora_dropout": 0.3}
SHAPE = LlamaConfig(
    hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, vocab_size=60, use_cache=False
)


class FullOnce(SFT):
    """An objective whose first loss, or every loss, does not fit into memory."""

    fails = 1

    def loss(self, model, batch):
        loss = super().loss(model, batch)
        if FullOnce.fails > 0:
            FullOnce.fails -= 1
            loss.total.backward()  # gradients and random numbers of the attempt must not count
            raise torch.OutOfMemoryError("the memory is full")
        return loss


def resident(allowed: bool, notes: list[str]) -> Resident:
    torch.manual_seed(0)
    model = load.add_lora(LlamaForCausalLM(SHAPE), build(KEYS), torch.float32)
    made = Resident(model, None, torch.device("cpu"), torch.float32)
    made.recomputation = Recomputation(made.base, allowed=allowed, note=notes.append)
    return made


def work(model: Resident, objective: SFT):
    rng = np.random.default_rng(0)
    rows = [(rng.integers(0, 60, 12).astype(np.int32), np.ones(12, bool)) for _ in range(8)]
    steps = GradientSteps(Schedule("constant", 1e-2, 0.0, 1), seed=0, steps=3, batch_size=4)
    return steps.work(model, objective, rows, LocalRule(), Job({}, model.values()))


def test_a_step_that_does_not_fit_is_repeated_with_the_same_numbers():
    notes: list[str] = []
    plain = work(resident(True, notes), SFT())
    assert notes == []
    FullOnce.fails = 1
    model = resident(True, notes)
    repeated = work(model, FullOnce())
    assert model.recomputation.is_on
    assert notes == [
        "A step did not fit into the memory of the GPU: activations are recomputed from here on "
        "(--gradient_checkpointing auto)."
    ]
    assert repeated.metrics == plain.metrics
    for name, value in plain.finished.streams["delta"].items():
        assert torch.equal(repeated.finished.streams["delta"][name], value)


@pytest.mark.parametrize(("allowed", "fails"), [(False, 1), (True, 2)])
def test_memory_that_never_suffices_ends_the_step(allowed: bool, fails: int):
    FullOnce.fails = fails
    with pytest.raises(torch.OutOfMemoryError):
        work(resident(allowed, []), FullOnce())


@pytest.mark.parametrize(
    ("keys", "is_on", "allowed"),
    [
        ({}, False, True),
        ({"gradient_checkpointing": True}, True, False),
        ({"gradient_checkpointing": False}, False, False),
        ({"use_peft": False, "prompt_method": "prefix"}, False, False),
    ],
)
def test_what_the_key_decides(keys: dict[str, object], is_on: bool, allowed: bool):
    found = recomputation_of(build(KEYS | keys), LlamaForCausalLM(SHAPE), print)
    assert (found.is_on, found.allowed) == (is_on, allowed)


def test_the_estimate_decides_on_a_gpu_alone():
    config, model = build(KEYS), resident(True, [])
    assert fits(config, model.base, 100, torch.float32, 10**12)
    assert not fits(config, model.base, 100, torch.float32, 10**5)
    check_room(config, model.recomputation, 100, torch.float32, torch.device("cpu"))
    assert not model.recomputation.is_on


@pytest.mark.parametrize(("space", "is_on"), [(10**5, True), (10**12, False)])
def test_a_gpu_that_is_too_small_is_told_before_the_first_step(
    space: int, is_on: bool, monkeypatch: pytest.MonkeyPatch
):
    """The GPU is a fake that has so many bytes left."""
    notes: list[str] = []
    model = resident(True, notes)
    monkeypatch.setattr(recomputation, "room", lambda device: space)
    check_room(build(KEYS), model.recomputation, 100, torch.float32, torch.device("cuda"))
    assert model.recomputation.is_on is is_on
    assert [note.partition(":")[0] for note in notes] == [
        "A step is estimated to need more memory than the GPU has"
    ] * is_on


def layers_whose_input_lives(bits: int, *, reentrant: bool | None = None) -> int:
    """Return how many layers' inputs are kept after a forward pass with recomputed activations."""
    from transformers import BitsAndBytesConfig

    bnb = pytest.importorskip("bitsandbytes", reason="the extra [quant] is not installed")
    torch.manual_seed(0)
    model = LlamaForCausalLM(SHAPE)
    for layer in model.model.layers if bits == 8 else ():
        for name, linear in list(layer.self_attn.named_children()):
            made = bnb.nn.Linear8bitLt(32, 32, bias=False, has_fp16_weights=False)
            made.weight = bnb.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
            setattr(layer.self_attn, name, made.to("cpu"))
    if bits == 8:
        model.config.quantization_config = BitsAndBytesConfig(load_in_8bit=True)
    load.recompute_activations(model, reentrant=reentrant)
    model.train()
    inputs: list[weakref.ref[torch.Tensor]] = []
    for layer in model.model.layers:
        layer.self_attn.q_proj.register_forward_pre_hook(lambda module, args: inputs.append(weakref.ref(args[0])))
    out = model(input_ids=torch.arange(12)[None], use_cache=False).logits.sum()
    gc.collect()
    alive = sum(one() is not None for one in inputs[:4])
    out.backward()
    return alive


def test_a_base_in_eight_bits_keeps_no_inputs():
    assert layers_whose_input_lives(8) == 0
    assert layers_whose_input_lives(8, reentrant=False) == 4  # the control: bitsandbytes holds them
