"""An adapter and its base become one model that computes the same; every remedy that a refusal names works."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

import weft
from weft.cli import main
from weft.config import build
from weft.errors import ConfigError
from weft.launch.run import Run
from weft.models.adapter_files import attach
from weft.models.load import base_model, load_resident
from weft.models.merge import write_merged
from weft.models.starting import from_adapter
from weft.models.tokenizer import load_tokenizer

IDS = torch.arange(24).reshape(2, 12) * 7 % 300


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model.eval()(input_ids=IDS, use_cache=False).logits.float()


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def shaken(model: Any) -> Any:
    """Move every trained value, so that an adapter does something."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.requires_grad or "lora_" in name:
                value += 0.1 * torch.randn_like(value)
    return model.eval()


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path):
    """Write an adapter as peft does; its folder, and the logits of its model."""

    def make(config: Any) -> tuple[Path, Tensor]:
        model = shaken(peft.get_peft_model(loaded(tiny_model), config))
        folder = tmp_path / "adapter of mine"
        model.save_pretrained(folder)
        return folder, logits(peft.PeftModel.from_pretrained(loaded(tiny_model), folder))

    return make


def lora(**more: Any) -> Any:
    return peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **{"target_modules": ["q_proj", "v_proj"], **more})


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> bool:
    return bool((found - wanted).abs().max() <= tolerance * wanted.abs().max())


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize(
    "more",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"use_dora": True},
        {"use_rslora": True},
        {"alpha_pattern": {"q_proj": 32}},
        {"init_lora_weights": "pissa"},
    ],
    ids=str,
)
def test_a_folder_is_merged_into_the_same_function(adapter, tiny_model: Path, tmp_path: Path, more: dict[str, Any]):
    folder, wanted = adapter(lora(**more))
    assert not close(logits(loaded(tiny_model)), wanted, 1e-2)
    assert main(["export", str(folder), "--merge", "--out", str(tmp_path / "whole")]) == 0
    assert close(logits(loaded(tmp_path / "whole")), wanted)
    tied = loaded(tmp_path / "whole").config.tie_word_embeddings
    assert tied != any(end in str(more) for end in ("lm_head", "embed_tokens"))
    assert AutoTokenizer.from_pretrained(tmp_path / "whole").eos_token_id == 1


@pytest.mark.parametrize("modules", [["q_proj", "lm_head"], ["embed_tokens"]])
def test_a_run_beside_tied_ends_is_merged_into_the_same_function(keys, tmp_path: Path, modules: list[str]):
    more = {"peft_lora_target_modules": modules, "learning_rate": 0.05, "num_rounds": 1, "max_steps": 3}
    run = weft.train(keys | more, quiet=True)
    wanted = logits(run.load_model(full_precision=True))
    assert not close(logits(loaded(Path(str(keys["model_name_or_path"])))), wanted, 1e-3)
    assert main(["export", str(run.path), "--merge", "--out", str(tmp_path / "whole")]) == 0
    assert close(logits(loaded(tmp_path / "whole")), wanted)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_merged_model_is_written_in_other_formats(adapter, tmp_path: Path, dtype: str):
    folder, wanted = adapter(lora())
    assert main(["export", str(folder), "--merge", "--dtype", dtype, "--out", str(tmp_path / "whole")]) == 0
    assert load_file(tmp_path / "whole" / "model.safetensors")["model.norm.weight"].dtype == getattr(torch, dtype)
    assert close(logits(loaded(tmp_path / "whole")), wanted, 0.05)


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_a_merge_that_computes_something_else_is_refused(adapter, tiny_model: Path, tmp_path: Path, monkeypatch):
    folder, _ = adapter(lora(target_modules=["lm_head"]))
    monkeypatch.setattr("weft.models.merge.untie", lambda model: None)
    monkeypatch.setattr(
        "weft.models.merge._record_untied", lambda model: setattr(model.config, "tie_word_embeddings", True)
    )
    model = attach(loaded(tiny_model), folder)
    with pytest.raises(ConfigError, match="would compute other logits"):
        write_merged(model, AutoTokenizer.from_pretrained(tiny_model), "float32", tmp_path / "whole")
    assert not (tmp_path / "whole").exists()


def refusal(folder: Path, **keys: Any) -> str:
    """Return why a run does not begin from a folder."""
    config = build({"model_name_or_path": str(folder), "dataset_name": "none", "use_peft": True, **keys})
    try:
        tokenizer = load_tokenizer(config)
        load_resident(from_adapter(config), tokenizer)
    except ConfigError as error:
        return str(error)
    pytest.fail("nothing was refused")


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize(
    "config",
    [
        lora(modules_to_save=["lm_head"]),
        lora(rank_pattern={"q_proj": 2}),
        lora(alpha_pattern={"q_proj": 2}),
        lora(bias="lora_only", target_modules=["q_proj"]),
        lora(init_lora_weights="pissa"),
        lora(layers_to_transform=[1]),
        peft.IA3Config(
            task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
    ],
    ids=["heads", "ranks", "alphas", "bias", "pissa", "layers", "ia3"],
)
def test_an_adapter_that_no_run_goes_on_with_is_merged_by_the_command_in_the_refusal(
    adapter, tmp_path: Path, config: Any
):
    folder, wanted = adapter(config)
    said = refusal(folder)
    command = re.search(r"`weft (export .*?)`", said)
    assert command is not None, said
    words = [str(tmp_path / "whole") if word == "DIR" else word for word in shlex.split(command[1])]
    assert main(words) == 0
    assert close(logits(loaded(tmp_path / "whole")), wanted)
    whole = build({"model_name_or_path": str(tmp_path / "whole"), "dataset_name": "none", "use_peft": True})
    assert load_resident(from_adapter(whole), load_tokenizer(whole)).params


def test_without_use_peft_both_remedies_work(adapter, tmp_path: Path):
    folder, wanted = adapter(lora())
    said = refusal(folder, use_peft=False)
    assert "add --use_peft" in said
    again = build({"model_name_or_path": str(folder), "dataset_name": "none", "use_peft": True, "dtype": "float32"})
    assert close(logits(load_resident(from_adapter(again), load_tokenizer(again)).model), wanted)
    assert f"weft export {shlex.quote(str(folder))} --merge" in said


def test_a_prompt_is_neither_gone_on_with_nor_merged(adapter, tiny_model: Path, tmp_path: Path, capsys):
    folder, _ = adapter(peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    for use_peft in (True, False):
        assert f"name its base, '{tiny_model}'" in refusal(folder, use_peft=use_peft)
    assert main(["export", str(folder), "--merge", "--out", str(tmp_path / "whole")]) == 2
    assert "cannot be merged" in capsys.readouterr().err


def test_a_base_that_is_gone_is_refused_with_the_file_to_mend(adapter, tiny_model: Path, tmp_path: Path):
    folder, _ = adapter(lora())
    file = folder / "adapter_config.json"
    words = json.loads(file.read_text())
    for base, said in ((str(tmp_path / "gone"), "which is not there"), (None, "does not say which model")):
        file.write_text(json.dumps(words | {"base_model_name_or_path": base}))
        assert said in refusal(folder)
    file.write_text(json.dumps(words | {"base_model_name_or_path": str(tiny_model)}))  # what the sentence says
    config = build({"model_name_or_path": str(folder), "dataset_name": "none", "use_peft": True})
    assert load_resident(from_adapter(config), load_tokenizer(config)).params


def test_an_adapter_of_another_base_or_a_damaged_one_is_refused(adapter, tiny_model: Path, tmp_path: Path, capsys):
    folder, _ = adapter(lora())
    file = folder / "adapter_model.safetensors"
    whole, values = file.read_bytes(), load_file(file)
    first = next(iter(values))
    cases = {
        "size mismatch": {name: torch.cat([v, v], dim=-1) for name, v in values.items()},
        f"lacks {first.replace('.weight', '.default.weight')}": {n: v for n, v in values.items() if n != first},
        "has no place|has base_model": values | {first.replace("layers.0", "layers.7"): values[first].clone()},
    }
    for said, changed in cases.items():
        save_file(changed, file)
        assert re.search(said, refusal(folder)), said
        assert main(["export", str(folder), "--merge", "--out", str(tmp_path / "whole")]) == 2
        assert re.search(said, capsys.readouterr().err)
        assert not (tmp_path / "whole").exists()
    file.write_bytes(whole[:100])
    assert "damaged" in refusal(folder)
    file.unlink()
    assert "has no adapter_model.safetensors" in refusal(folder)


def test_an_adapter_in_a_pickle_is_read_and_said(adapter, tmp_path: Path, capsys):
    folder, wanted = adapter(lora())
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    assert main(["export", str(folder), "--merge", "--out", str(tmp_path / "whole")]) == 0
    assert "pickle" in capsys.readouterr().err
    assert close(logits(loaded(tmp_path / "whole")), wanted)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_base_saved_in_few_bits_is_trained_by_lora_and_merged(keys, tiny_model: Path, tmp_path: Path, bits: int):
    pytest.importorskip("bitsandbytes")
    few = tmp_path / "few"
    how = BitsAndBytesConfig(load_in_4bit=True) if bits == 4 else BitsAndBytesConfig(load_in_8bit=True)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, quantization_config=how, device_map={"": "cpu"})
    model.save_pretrained(few)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(few)
    changed = keys | {"model_name_or_path": str(few), "num_rounds": 1, "device": "cpu"}
    with pytest.raises(ConfigError, match=f"saved in {bits} bits, so it cannot be trained itself: add --use_peft"):
        weft.train(changed | {"use_peft": False}, quiet=True)
    with pytest.raises(ConfigError, match="leave out --load_in_"):
        weft.train(changed | {f"load_in_{12 - bits}bit": True}, quiet=True)
    run = weft.train(changed, quiet=True)
    assert main(["export", str(run.path), "--merge", "--out", str(tmp_path / "whole")]) == 0
    assert close(logits(loaded(tmp_path / "whole")), logits(Run(run.path).load_model(full_precision=True)))
    assert "quantization_config" not in json.loads((tmp_path / "whole" / "config.json").read_text())


def test_a_run_on_wrapped_weights_is_merged(keys, tiny_model: Path, tmp_path: Path):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "compiled"))
    values = load_file(folder / "model.safetensors")
    save_file({f"_orig_mod.{name}": v for name, v in values.items()}, folder / "model.safetensors", {"format": "pt"})
    run = weft.train(keys | {"model_name_or_path": str(folder), "num_rounds": 1}, quiet=True)
    assert main(["export", str(run.path), "--merge", "--out", str(tmp_path / "whole")]) == 0
    assert set(load_file(tmp_path / "whole" / "model.safetensors")) == set(values)
    assert torch.equal(base_model(run.config).lm_head.weight, values["model.embed_tokens.weight"])
