"""Other architectures than Llama: Conv1D layers, tied heads, positions of their own, and no packing."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import transformers

import weft

SIZES = {"vocab_size": 700, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
MODELS = {
    "gpt2": (transformers.GPT2LMHeadModel, transformers.GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 2}),
    "qwen3": (
        transformers.Qwen3ForCausalLM,
        transformers.Qwen3Config,
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
        },
    ),
    "bloom": (transformers.BloomForCausalLM, transformers.BloomConfig, {"hidden_size": 32, "n_layer": 2, "n_head": 2}),
}


@pytest.mark.parametrize("use_peft", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_trains_and_its_adapter_loads(
    keys, name: str, use_peft: bool, tiny_tokenizer, tmp_path: Path
):
    model, config, sizes = MODELS[name]
    folder = tmp_path / name
    model(config(**SIZES, **sizes)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    changes = {"model_name_or_path": str(folder), "use_peft": use_peft, "num_rounds": 2, "choices": "red,green,blue"}
    run = weft.train(keys | changes, quiet=True)
    assert math.isfinite(run.summary["eval"]["loss"])
    assert run.summary["eval"]["accuracy"] is not None
    assert run.summary["failures"] == {}
    assert run.model.config.model_type == name
