"""A checkpoint's weights are all used and none is drawn in silence: names, shapes, files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from weft.config import build
from weft.errors import ConfigError
from weft.models.checkpoint import find_checkpoint, load_weights
from weft.models.checkpoint_names import plain_names, wrapper_prefixes
from weft.models.load import has_pickle_files


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "given"))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Write a checkpoint's weights again, changed."""
    values = change(load_file(folder / "model.safetensors"))
    save_file(
        {name: v.clone().contiguous() for name, v in values.items()}, folder / "model.safetensors", {"format": "pt"}
    )


def configure(folder: Path, **keys: object) -> None:
    """Change a model's configuration."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def same(model: torch.nn.Module, folder: Path) -> bool:
    """Whether a model has the weights of a folder that transformers loads by itself."""
    wanted = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    found = model.state_dict()
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ("_orig_mod.model.norm.weight", "model.norm.weight"),
        ("module._orig_mod.model.norm.weight", "model.norm.weight"),
        ("base_model.model.model.norm.weight", "model.norm.weight"),
        ("_orig_mod.module.base_model.model.model.norm.weight", "model.norm.weight"),
        ("model._orig_mod.norm.weight", "model.norm.weight"),
        ("model.layers.0._orig_mod.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("_fsdp_wrapped_module.model.layers.1._fsdp_wrapped_module.mlp.bias", "model.layers.1.mlp.bias"),
        ("_forward_module.model.model.norm.weight", "model.norm.weight"),
        ("model.norm.weight", "model.norm.weight"),
        ("transformer.h.0.attn.c_attn.weight", "transformer.h.0.attn.c_attn.weight"),
    ],
)  # fmt: skip
def test_wrappers_are_stripped_from_a_name(given: str, plain: str):
    found = plain_names([given])
    assert found == {given: plain}
    assert bool(wrapper_prefixes(found)) == (given != plain)


def test_two_names_of_one_weight_are_refused():
    with pytest.raises(ConfigError, match=r"twice, as 'module\.a' and as 'a'"):
        plain_names(["module.a", "a"])


WRAPS = {
    "compile": lambda name: f"_orig_mod.{name}",
    "ddp": lambda name: f"module.{name}",
    "peft": lambda name: f"base_model.model.{name}",
    "stacked": lambda name: f"module._orig_mod.base_model.model.{name}",
    "attribute": lambda name: f"model._orig_mod.{name}",
    "inner": lambda name: name.replace("layers.0.", "layers.0._orig_mod."),
}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("form", ["safetensors", "bin", "shards", "bin_shards"])
def test_a_wrapped_checkpoint_is_the_model(folder: Path, tiny_model: Path, wrap: str, form: str):
    values = {WRAPS[wrap](name): value for name, value in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    stem, end = ("pytorch_model", "bin") if "bin" in form else ("model", "safetensors")
    write = torch.save if end == "bin" else lambda part, file: save_file(part, file, {"format": "pt"})
    if "shards" in form:
        names = list(values)
        parts = {f"{stem}-00001-of-00002.{end}": names[::2], f"{stem}-00002-of-00002.{end}": names[1::2]}
        for file, part in parts.items():
            write({name: values[name] for name in part}, folder / file)
        index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
        (folder / f"{stem}.{end}.index.json").write_text(json.dumps(index))
    else:
        write(values, folder / f"{stem}.{end}")
    said: list[str] = []
    model = load_weights(str(folder), note=said.append, dtype=torch.float32)
    assert same(model, tiny_model)
    assert model.name_or_path == str(folder)
    assert any("stripped" in sentence for sentence in said)
    assert any("pickle" in sentence for sentence in said) == ("bin" in form)


def test_missing_weights_are_refused_by_name_or_drawn_from_the_seed(folder: Path, tiny_model: Path):
    rewrite(folder, lambda values: {name: v for name, v in values.items() if ".layers.1." not in name})
    with pytest.raises(ConfigError, match=r"lacks model\.layers\.1\.input_layernorm\.weight.* --allow_missing"):
        load_weights(str(folder))
    said: list[str] = []
    torch.manual_seed(1)
    first = load_weights(str(folder), allow_missing=True, seed=5, note=said.append).state_dict()
    torch.manual_seed(2)
    again = load_weights(str(folder), allow_missing=True, seed=5).state_dict()
    other = load_weights(str(folder), allow_missing=True, seed=6).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name in first if not torch.equal(first[name], other[name])]
    assert drawn
    assert all(".layers.1." in name for name in drawn)
    assert any("initialised from the seed" in sentence and ".layers.1." in sentence for sentence in said)


def test_a_classifier_is_refused_by_name(folder: Path):
    classifier = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    classifier.config.tie_word_embeddings = False
    classifier.save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"lacks lm_head\.weight and has score\.weight without a place"):
        load_weights(str(folder))


def test_weights_that_the_model_lacks_are_refused_unless_they_are_buffers(folder: Path, tiny_model: Path):
    more = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.layers.0.attn.bias": torch.ones(1, 1, 8, 8),
        "model.layers.0.attn.masked_bias": torch.tensor(-1e4),
    }
    rewrite(folder, lambda values: values | more)
    assert same(load_weights(str(folder), dtype=torch.float32), tiny_model)
    rewrite(folder, lambda values: values | {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)})
    with pytest.raises(ConfigError, match=r"has model\.layers\.0\.self_attn\.q_proj\.bias without a place"):
        load_weights(str(folder))
    said: list[str] = []
    assert same(load_weights(str(folder), allow_missing=True, note=said.append, dtype=torch.float32), tiny_model)
    assert any("q_proj.bias" in sentence and "not used" in sentence for sentence in said)


@pytest.mark.parametrize("keys", [{"vocab_size": 700}, {"vocab_size": 300}, {"intermediate_size": 60}])
def test_another_shape_is_refused(folder: Path, keys: dict[str, int]):
    configure(folder, **keys)
    with pytest.raises(ConfigError, match=r"has the shape .* but its config\.json describes"):
        load_weights(str(folder))
    with pytest.raises(ConfigError, match="has the shape"):
        load_weights(str(folder), allow_missing=True)


def test_another_architecture_is_refused(folder: Path):
    configure(folder, model_type="gpt_neox", architectures=["GPTNeoXForCausalLM"])
    with pytest.raises(ConfigError, match=r"does not fit the GPTNeoXForCausalLM|has the shape"):
        load_weights(str(folder))


def test_an_absent_tied_head_is_fine_and_another_head_is_refused(folder: Path, tiny_model: Path):
    assert "lm_head.weight" not in find_checkpoint(str(folder)).tensors
    assert same(load_weights(str(folder), dtype=torch.float32), tiny_model)
    rewrite(folder, lambda values: values | {"lm_head.weight": values["model.embed_tokens.weight"]})
    assert same(load_weights(str(folder), dtype=torch.float32), tiny_model)
    rewrite(folder, lambda values: values | {"lm_head.weight": values["lm_head.weight"] + 1})
    with pytest.raises(ConfigError, match='"tie_word_embeddings": false'):
        load_weights(str(folder))
    configure(folder, tie_word_embeddings=False)  # what the sentence says
    model = load_weights(str(folder), dtype=torch.float32)
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight + 1)


def test_an_absent_head_of_its_own_is_refused_with_a_remedy(folder: Path, tiny_model: Path):
    configure(folder, tie_word_embeddings=False)
    with pytest.raises(ConfigError, match=r'lacks lm_head\.weight; write "tie_word_embeddings": true'):
        load_weights(str(folder))
    configure(folder, tie_word_embeddings=True)  # what the sentence says
    assert same(load_weights(str(folder), dtype=torch.float32), tiny_model)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_formats_of_numbers_are_read(folder: Path, kind: torch.dtype):
    rewrite(folder, lambda values: {name: value.to(kind) for name, value in values.items()})
    assert same(load_weights(str(folder), dtype=torch.float32), folder)


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
def test_numbers_without_their_scale_are_refused(folder: Path, kind: torch.dtype):
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(folder, lambda values: values | {name: values[name].to(kind)})
    with pytest.raises(ConfigError, match="no quantization_config"):
        load_weights(str(folder))


def test_damaged_and_absent_files_are_said(folder: Path, tmp_path: Path):
    whole = (folder / "model.safetensors").read_bytes()
    for length in (len(whole) // 2, 40, 0):
        (folder / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(ConfigError, match=r"model\.safetensors' are damaged .* copy the file again"):
            load_weights(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="holds no weights"):
        load_weights(str(folder))
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00trueq\x00\x85q\x01Rq\x02.")
    with pytest.raises(ConfigError, match="hold more than tensors"):
        load_weights(str(folder))
    torch.save({"model": {}, "epoch": 3}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="a training program's own checkpoint"):
        load_weights(str(folder))


def test_a_missing_shard_is_said(folder: Path):
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="50KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert same(load_weights(str(folder), dtype=torch.float32), folder)
    shards[0].unlink()
    with pytest.raises(ConfigError, match=rf"lacks the weights {shards[0].name}, which its .*index\.json names"):
        load_weights(str(folder))
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ConfigError, match="no index of weights"):
        load_weights(str(folder))


def test_a_missing_generation_config_is_fine(folder: Path, tiny_model: Path):
    (folder / "generation_config.json").unlink(missing_ok=True)
    assert same(load_weights(str(folder), dtype=torch.float32), tiny_model)


def test_pickles_are_known_as_such(folder: Path):
    config = build({"model_name_or_path": str(folder), "dataset_name": "none"})
    assert not has_pickle_files(config)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    assert not has_pickle_files(config)  # what is loaded is the other file
    (folder / "model.safetensors").unlink()
    assert has_pickle_files(config)
