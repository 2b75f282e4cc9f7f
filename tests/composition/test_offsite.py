"""Offsite tuning: layers left out, ends tuned by clients, ends put back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import weft
from support.flags import flags
from support.rows import colour_rows, write_rows
from weft.cli import main
from weft.errors import ConfigError
from weft.models.emulator import Emulator, choose_layers, decoder_layers, emulator_of


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer) -> Path:
    """A random Llama of six layers."""
    folder = tmp_path_factory.mktemp("deep")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tiny_tokenizer), **sizes, **ids)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def emulate(deep: Path, out: Path, keep: int = 4, ends: int = 1, *more: str) -> Path:
    words = ["emulate", str(deep), "--out", str(out), "--keep_layers", str(keep), "--ends", str(ends), *more]
    assert main(words) == 0
    return out


def values(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


def test_the_ends_and_evenly_spread_layers_are_kept():
    assert choose_layers(6, 6, 1) == [0, 1, 2, 3, 4, 5]
    assert choose_layers(6, 4, 1) == [0, 1, 4, 5]
    assert choose_layers(12, 7, 2) == [0, 1, 2, 6, 9, 10, 11]
    assert choose_layers(6, 4, 2) == [0, 1, 4, 5]
    with pytest.raises(ConfigError, match="a model of 2, which has fewer than 4: write --ends 1, or fewer"):
        choose_layers(2, 2, 2)  # it said: write --keep_layers 4 to 2
    with pytest.raises(ConfigError, match="take a model of two layers or more"):
        choose_layers(1, 1, 1)
    for keep in (1, 7):
        with pytest.raises(ConfigError, match="--keep_layers 2 to 6"):
            choose_layers(6, keep, 1)
    emulator = Emulator("m", 6, [0, 1, 4, 5], 1)
    assert emulator.trained == [0, 3]
    assert emulator.full_name("model.layers.3.self_attn.q_proj.weight") == "model.layers.5.self_attn.q_proj.weight"


def test_an_emulator_of_all_layers_is_the_model(deep: Path, tmp_path: Path):
    folder = emulate(deep, tmp_path / "whole", keep=6)
    before, after = values(deep), values(folder)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_layers_that_an_emulator_keeps_are_the_models(deep: Path, tmp_path: Path):
    folder = emulate(deep, tmp_path / "emulator")
    found = emulator_of(folder)
    assert found == Emulator(str(deep), 6, [0, 1, 4, 5], 1)
    keys = json.loads((folder / "emulator.json").read_text())  # as folders of earlier releases have them
    assert keys == {"of": str(deep), "layers": 6, "kept": [0, 1, 4, 5], "ends": 1}
    before, after = values(deep), values(folder)
    for name, value in after.items():
        assert torch.equal(value, before[found.full_name(name)]), name
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert len(decoder_layers(model)[2]) == model.config.num_hidden_layers == 4
    ids = torch.tensor([[5, 6, 7]])
    assert model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=2).shape[1] <= 6  # a cache works too


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_only_the_end_layers_are_tuned_and_put_back(keys, deep: Path, kind: str, tmp_path: Path, capsys):
    folder = emulate(deep, tmp_path / "emulator")
    changes = {"model_name_or_path": str(folder), "use_peft": kind == "lora", "dtype": "float32", "num_rounds": 6}
    changes |= {
        "peft_lora_target_modules": "all-linear" if kind == "lora" else None,
        "max_steps": 6,
        "learning_rate": 5e-3,
        "sample_clients": 3,
    }
    run = weft.train(keys | changes, quiet=True)
    out = tmp_path / "full"
    merge = ["--merge"] if kind == "lora" else []
    assert main(["export", str(run.path), "--plug_in", str(deep), "--out", str(out), *merge]) == 0
    before, after = values(deep), values(out)
    assert before.keys() == after.keys()
    moved = {name.split(".")[2] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"0", "5"}
    # What was learnt with layers left out helps with all of them.
    score = {"num_rounds": 1, "max_steps": 1, "learning_rate": 0.0, "use_peft": False}
    losses = []
    for number, model in enumerate((deep, out)):
        own = {"model_name_or_path": str(model), "output_dir": str(tmp_path / f"score{number}")}
        losses.append(weft.train(keys | score | own, quiet=True).summary["eval"]["loss"])
    assert losses[1] < losses[0] - 0.3
    if kind == "lora":
        adapter = tmp_path / "adapter"
        assert main(["export", str(run.path), "--plug_in", str(deep), "--out", str(adapter)]) == 0
        from peft import PeftModel

        base = AutoModelForCausalLM.from_pretrained(deep, dtype=torch.float32)
        merged = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload().state_dict()
        assert all(torch.allclose(merged[name], after[name], atol=1e-6) for name in after)
        written = json.loads((adapter / "adapter_config.json").read_text())
        assert written["layers_to_transform"] == [0, 5]


def test_distillation_moves_only_the_middle_towards_the_model(deep: Path, tmp_path: Path, capsys):
    text = write_rows(tmp_path / "text.jsonl", [{"text": row["instruction"]} for row in colour_rows(60)])
    more = ("--distil", str(text), "--distil_steps", "30", "--distil_rate", "3e-3", "--seq_length", "32")
    folder = emulate(deep, tmp_path / "distilled", 4, 1, *more)
    said = capsys.readouterr().out.split()
    assert float(said[6]) < float(said[4]), said
    before, after, found = values(deep), values(folder), emulator_of(folder)
    changed = {n.split(".")[2] for n in after if not torch.equal(after[n], before[found.full_name(n)])}
    assert changed == {"1", "2"}  # the ends, the embeddings and the head stay


def test_the_plan_counts_the_ends_only(keys, deep: Path, tmp_path: Path, capsys):
    folder = emulate(deep, tmp_path / "emulator")
    assert main(["sft", *flags(keys | {"model_name_or_path": str(folder), "use_peft": "false"}), "--dry_run"]) == 0
    model = AutoModelForCausalLM.from_pretrained(folder)
    ends = sum(p.numel() for place in (0, 3) for p in decoder_layers(model)[2][place].parameters())
    assert f"{ends} parameters in" in capsys.readouterr().out


def test_mistakes_with_emulators_are_refused_in_one_sentence(
    keys, deep: Path, tiny_model: Path, tmp_path: Path, capsys
):
    assert main(["emulate", str(deep), "--out", str(tmp_path / "x"), "--keep_layers", "9"]) == 2
    assert "--keep_layers 4 to 6" in capsys.readouterr().err
    assert main(["emulate", str(deep), "--out", str(deep), "--keep_layers", "4"]) == 2
    assert "not empty" in capsys.readouterr().err
    plain = weft.train(keys | {"num_rounds": 1}, quiet=True)
    assert main(["export", str(plain.path), "--plug_in", str(deep), "--out", str(tmp_path / "y")]) == 2
    assert "did not tune an emulator" in capsys.readouterr().err
    folder = emulate(deep, tmp_path / "emulator")
    capsys.readouterr()
    changes = {"model_name_or_path": str(folder), "num_rounds": 1, "output_dir": str(tmp_path / "run2")}
    run = weft.train(keys | changes, quiet=True)
    assert main(["export", str(run.path), "--plug_in", str(tiny_model), "--out", str(tmp_path / "z")]) == 2
    assert "has 2 layers, and the emulator is of a model of 6" in capsys.readouterr().err
    (folder / "emulator.json").write_text("{")
    assert main(["sft", *flags(keys | changes), "--overwrite"]) == 2
    assert "make the emulator again" in capsys.readouterr().err
