"""Other architectures than Llama: Conv1D layers, tied heads, positions of their own, and no packing."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import transformers

import weft
from support.results import same_values, weights
from support.rows import write_rows

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
    "mamba": (
        transformers.MambaForCausalLM,
        transformers.MambaConfig,
        {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    ),
    "bloom": (transformers.BloomForCausalLM, transformers.BloomConfig, {"hidden_size": 32, "n_layer": 2, "n_head": 2}),
}


@pytest.mark.parametrize("use_peft", [True, False])
@pytest.mark.parametrize("name", ["gpt2", "qwen3", "bloom"])
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


@pytest.mark.parametrize("name", ["bloom", "mamba"])
def test_a_model_that_would_mix_the_rows_of_a_line_is_trained_on_rows_of_their_own(
    keys, name: str, tiny_tokenizer, tmp_path: Path
):
    """Short rows beside a long one would share its line; the run is bit by bit that of an objective without packing."""
    model, config, sizes = MODELS[name]
    folder = tmp_path / name
    model(config(**SIZES, **sizes)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    rows = [{"instruction": "say", "output": "red " * (40 if number % 4 == 0 else 2)} for number in range(40)]
    changes = {
        "dataset_name": str(write_rows(tmp_path / "rows.jsonl", rows)),
        "model_name_or_path": str(folder),
        "use_peft": False,
        "num_rounds": 1,
        "batch_size": 4,
    }
    run = weft.train(keys | changes, quiet=True)
    assert run.summary["failures"] == {}
    alone = {"objective_args": {"pack": False}, "output_dir": str(tmp_path / "alone")}
    assert same_values(weights(run), weights(weft.train(keys | changes | alone, quiet=True)))
