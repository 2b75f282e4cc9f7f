"""What a loaded model is asked before it is trained, and which modules have a LoRA."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from transformers import AutoConfig, AutoModelForCausalLM

from weft.config import build
from weft.errors import ConfigError
from weft.models.load import load_model_config, load_resident
from weft.models.probes import check_computes
from weft.models.resident import Resident
from weft.models.targets import fused_experts
from weft.models.tokenizer import load_tokenizer

CPU = torch.device("cpu")
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
MIXTURE = {**SHAPE, "num_key_value_heads": 2, "num_experts_per_tok": 2}
KINDS: dict[str, dict[str, Any]] = {
    "bert": SHAPE,
    "roberta": {**SHAPE, "type_vocab_size": 1},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
    "mixtral": {**MIXTURE, "num_local_experts": 4},
    "qwen3_moe": {**MIXTURE, "head_dim": 8, "num_experts": 4, "moe_intermediate_size": 16},
    "qwen2_moe": {**MIXTURE, "num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 32},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "multi_query": True},
    "gpt_bigcode": {"n_embd": 32, "n_layer": 2, "n_head": 4, "multi_query": True},
    "gemma2": {**SHAPE, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8},
}


@pytest.fixture
def made(tiny_tokenizer, tmp_path: Path):
    """Write a small model of a kind; its folder."""

    def make(kind: str, **more: object) -> Path:
        ends = {"vocab_size": len(tiny_tokenizer), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
        torch.manual_seed(0)
        own = AutoConfig.for_model(kind, **ends, **KINDS[kind], **more)
        AutoModelForCausalLM.from_config(own).save_pretrained(tmp_path / kind)
        tiny_tokenizer.save_pretrained(tmp_path / kind)
        return tmp_path / kind

    return make


def load(folder: Path, said: list[str] | None = None, **keys: object) -> Resident:
    """Load a model as a run does."""
    config = build({"model_name_or_path": str(folder), "dataset_name": "none", "dtype": "float32", **keys})
    return load_resident(config, load_tokenizer(config), note=[].append if said is None else said.append)


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlnet"])
@pytest.mark.parametrize("use_peft", [True, False])
def test_a_model_that_looks_ahead_is_refused(made, kind: str, use_peft: bool):
    with pytest.raises(ConfigError, match=f"\\({kind}\\) looks ahead"):
        load(made(kind), use_peft=use_peft)


def test_a_bert_that_is_a_decoder_is_accepted(made):
    assert load(made("bert", is_decoder=True)).params  # what the sentence says


def test_a_causal_model_leaks_nothing_in_any_format(tiny_model: Path):
    for dtype in (torch.float32, torch.bfloat16):
        check_computes(Resident(AutoModelForCausalLM.from_pretrained(tiny_model), None, CPU, dtype), "tiny")


def test_a_mask_that_lets_one_layer_look_ahead_is_found(tiny_model: Path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    layer = model.model.layers[1].mlp
    forward = layer.forward
    layer.forward = lambda hidden: forward(hidden) + 0.01 * hidden.roll(-1, dims=1)
    with pytest.raises(ConfigError, match="looks ahead"):
        check_computes(Resident(model, None, CPU, torch.float32), "tiny")


def test_numbers_that_are_none_are_refused(tiny_model: Path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    model.model.norm.weight.data[3] = torch.nan
    with pytest.raises(ConfigError, match="computes NaN"):
        check_computes(Resident(model, None, CPU, torch.float32), "tiny")


@pytest.mark.parametrize("own", ["bart", "t5"])
def test_an_encoder_with_a_decoder_is_refused_from_its_configuration(tiny_model: Path, tmp_path: Path, own: str):
    folder = tmp_path / own
    shutil.copytree(tiny_model, folder)
    {"bart": T.BartConfig, "t5": T.T5Config}[own]().save_pretrained(folder)
    with pytest.raises(ConfigError, match=f"an encoder with a decoder \\({own}\\)"):
        load_model_config(build({"model_name_or_path": str(folder), "dataset_name": "none"}))


def test_what_predicts_no_token_is_refused(tiny_model: Path, tmp_path: Path):
    folder = tmp_path / "vit"
    shutil.copytree(tiny_model, folder)
    T.ViTConfig().save_pretrained(folder)
    with pytest.raises(ConfigError, match="no model that predicts the next token"):
        load_model_config(build({"model_name_or_path": str(folder), "dataset_name": "none"}))


@pytest.mark.parametrize("named", [["auto"], ["all-linear"]])
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "qwen2_moe"])
def test_a_mixture_of_experts_has_a_lora_beside_its_attention(made, kind: str, named: list[str]):
    said: list[str] = []
    model = load(made(kind), said, use_peft=True, peft_lora_target_modules=named)
    assert any("self_attn" in name for name in model.params)
    if fused_experts(model.model):  # from transformers 5 on
        assert all("self_attn" in name or "shared_expert_gate" in name for name in model.params)
        assert any("experts' weights are fused" in sentence and "q_proj" in sentence for sentence in said)


def test_experts_that_are_fused_can_have_no_lora(made):
    folder = made("qwen3_moe")
    if not fused_experts(AutoModelForCausalLM.from_pretrained(folder)):
        pytest.skip("this release of transformers does not fuse experts")
    with pytest.raises(ConfigError, match=r"can have none: name some of|fused\): name some of"):
        load(folder, use_peft=True, peft_lora_target_modules=["gate_proj", "up_proj"], peft_lora_dropout=0.0)
    assert load(folder, use_peft=True, peft_lora_target_modules=["k_proj", "o_proj"]).params  # what the sentence says


def test_mamba_has_a_lora_by_itself(made):
    folder = made("mamba")
    model = load(folder, use_peft=True)
    assert model.params
    assert not model.can_pack
    assert all("out_proj" not in name for name in model.params)
    with pytest.raises(ConfigError, match="'out_proj' of a mamba can have no LoRA"):
        load(folder, use_peft=True, peft_lora_target_modules=["in_proj", "out_proj"])


def test_a_module_that_is_not_there_is_refused_even_beside_one_that_is(tiny_model: Path):
    with pytest.raises(ConfigError, match=r"no module 'c_attn' for LoRA: name some of .*q_proj"):
        load(tiny_model, use_peft=True, peft_lora_target_modules=["q_proj", "c_attn"])


@pytest.mark.parametrize("kind", ["falcon", "gpt_bigcode", "gemma2"])
def test_a_prefix_stands_before_models_of_few_keys(made, kind: str):
    model = load(made(kind), prompt_method="prefix", num_virtual_tokens=3)
    assert model.front is not None
    assert model.front.length == 3
    assert sum(value.numel() for value in model.params.values())


def test_where_no_prefix_can_stand_another_prompt_can(made):
    folder = made("mamba")
    with pytest.raises(ConfigError, match="write another --prompt_method"):
        load(folder, prompt_method="prefix")
    assert load(folder, prompt_method="soft").params  # what the sentence says


@pytest.mark.parametrize("said", [{"quant_method": "gptq", "bits": 4}, {"quant_method": "awq", "bits": 4}])
def test_other_quantisations_are_refused(tiny_model: Path, tmp_path: Path, said: dict[str, object]):
    folder = tmp_path / "quantised"
    shutil.copytree(tiny_model, folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": said}))
    with pytest.raises(ConfigError, match=f"quantised by {said['quant_method']}, which Weft does not load"):
        load(folder, use_peft=True)
