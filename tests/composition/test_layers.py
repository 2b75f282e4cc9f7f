"""Clients that have only some of a model's layers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import weft
from support.flags import flags
from weft.aggregation.mean import Mean
from weft.cli import main
from weft.core.lowrank import layer_of
from weft.core.types import DELTA, Update
from weft.errors import ConfigError
from weft.federation.sharing import Holders, with_layers
from weft.models.emulator import keep_layers, only_layers


@pytest.fixture(scope="session")
def deep_model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer) -> Path:
    """A random Llama of five layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("deep")
    torch.manual_seed(1)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer), num_hidden_layers=5, max_position_embeddings=256, **shape, **ends
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def deep(keys, deep_model: Path) -> dict[str, object]:
    own = {"model_name_or_path": str(deep_model), "dtype": "float32", "num_rounds": 2, "sample_clients": 3}
    return keys | own | {"learning_rate": 1e-2, "eval_every": 1}


def weights(run) -> dict[str, torch.Tensor]:
    (file,) = run.weights().glob("*model.safetensors")
    return load_file(file)


def test_layers_are_read_from_names_and_the_rest_is_everybodys():
    names = ["model.embed_tokens.weight", "model.layers.3.mlp.weight", "base_model.model.h.10.c_attn.lora_A.weight"]
    assert [layer_of(name) for name in names] == [None, 3, 10]
    values = {name: torch.zeros(1) for name in names}
    assert list(with_layers(values, [3])) == names[:2]
    assert with_layers(values, None) is values


def test_each_mean_is_over_those_who_have_the_layer():
    """Weights 1, 3 and 4; the layer 1 is had by the first two, 2 by nobody: (1 * 2 + 3 * 6) / 4 = 5."""
    like = {"w": torch.zeros(2), "layers.1.w": torch.zeros(1), "layers.2.w": torch.zeros(1)}
    sent = [
        ({"w": torch.tensor([1.0, 0.0]), "layers.1.w": torch.tensor([2.0])}, 1.0),
        ({"w": torch.tensor([2.0, 0.0]), "layers.1.w": torch.tensor([6.0])}, 3.0),
        ({"w": torch.tensor([0.0, 4.0])}, 4.0),
    ]
    names = {name: like[name.replace("x.", "")] for name in like}
    holders = Holders(names)
    updates = [Update(f"c{i}", 0, 0, {DELTA: delta}, weight) for i, (delta, weight) in enumerate(sent)]
    total = holders.mean(Mean().combine(holders.watch(updates)))
    assert total.weight == 8.0
    assert total.streams[DELTA]["w"].tolist() == pytest.approx([7 / 8, 2.0])
    assert total.streams[DELTA]["layers.1.w"].tolist() == pytest.approx([2.5 * 2])
    assert total.streams[DELTA]["layers.2.w"].tolist() == [0.0]


def test_a_thinned_model_is_the_model_without_these_layers(deep_model: Path):
    from transformers import AutoModelForCausalLM

    whole, thin = (AutoModelForCausalLM.from_pretrained(deep_model).eval() for _ in range(2))
    keep_layers(thin, [0, 2, 4])
    ids = torch.arange(12)[None] + 5
    with torch.no_grad():
        before = whole(ids).logits
        with only_layers(whole, [0, 2, 4]):
            assert torch.equal(whole(ids).logits, thin(ids).logits)
            assert torch.equal(whole(ids, use_cache=True).logits, thin(ids).logits)
        assert torch.equal(whole(ids, use_cache=True).logits, before)
    assert whole.config.num_hidden_layers == 5


def test_a_client_with_some_layers_learns_what_the_smaller_model_learns(deep, deep_model: Path, tmp_path: Path):
    """All parameters, everybody with the layers 0, 2 and 4: the same numbers as by the model of these layers."""
    from transformers import AutoModelForCausalLM

    thin = AutoModelForCausalLM.from_pretrained(deep_model)
    keep_layers(thin, [0, 2, 4])
    shutil.copytree(deep_model, tmp_path / "thin")
    thin.save_pretrained(tmp_path / "thin")
    given = deep | {"use_peft": False, "learning_rate": 1e-3}
    large = weft.train(given | {"client_layers": [3]}, quiet=True)
    other = {"model_name_or_path": str(tmp_path / "thin"), "output_dir": str(tmp_path / "small")}
    small = weft.train(given | other, quiet=True)
    assert large.summary["eval"]["loss"] == pytest.approx(small.summary["eval"]["loss"], abs=1e-6)
    assert large.summary["bytes_up"] == small.summary["bytes_up"]
    ours, theirs, begun = weights(large), weights(small), load_file(deep_model / "model.safetensors")
    for place, layer in enumerate([0, 2, 4]):
        for name in (name for name in theirs if f"layers.{place}." in name):
            mine = ours[name.replace(f"layers.{place}.", f"layers.{layer}.")]
            torch.testing.assert_close(mine, theirs[name], atol=1e-6, rtol=0)
    for name in (name for name in ours if layer_of(name) in (1, 3)):
        assert torch.equal(ours[name], begun[name]), name


@pytest.mark.parametrize("fed_alg", ["fedavg", "fedprox", "fedadam", "fedavgm"])
@pytest.mark.parametrize("lora", ["average", "ffa", "rolora"])
def test_clients_of_different_depths_and_ranks_train_every_layer(deep, fed_alg: str, lora: str):
    changes = {"client_layers": [5, 2], "client_ranks": [8, 4, 2], "fed_alg": fed_alg, "lora_aggregation": lora}
    if fed_alg == "fedadam":
        changes["fedopt_eta"] = 1e-2
    run = weft.train(deep | changes, quiet=True)
    assert run.summary["failures"] == {}
    moved = {layer_of(name) for name, value in weights(run).items() if "lora_B" in name and value.abs().sum() > 0}
    assert moved == {0, 1, 2, 3, 4}


def test_client_layers_that_name_all_layers_change_nothing(deep, tmp_path: Path):
    runs = [
        weft.train(deep | {"client_layers": layers, "output_dir": str(tmp_path / name)}, quiet=True)
        for name, layers in (("with", [5]), ("without", None))
    ]
    ours, theirs = (weights(run) for run in runs)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=1e-7, rtol=0)


def test_the_plan_counts_the_bytes_of_the_layers_that_clients_are_sent(deep, capsys):
    # All three clients take part in every round: two of five layers, and one of two.
    keys = {key: value for key, value in deep.items() if value is not None} | {"sample_clients": 3}
    travels = {}
    for layers in ("5", "5,2"):
        assert main(["sft", *flags(keys | {"client_layers": layers}), "--dry_run"]) == 0
        (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("travels"))
        travels[layers] = float(line.split()[1])
    assert travels["5,2"] == pytest.approx(0.8 * travels["5"], rel=0.02)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"client_layers": [6]}, "from 1 to 5"),
        ({"fed_alg": "scaffold"}, "fedadam"),
        ({"fed_alg": "ditto"}, "fedadam"),
        ({"fed_alg": "local"}, "fedadam"),
        ({"fed_alg": "fedbuff"}, "fedadam"),
        ({"cluster": 2}, "--cluster"),
        ({"lora_aggregation": "stack"}, "--lora_aggregation average"),
        ({"lora_aggregation": "dual"}, "--share|average"),
        ({"use_peft": False, "prompt_method": "soft"}, "or prompts"),
    ],
)
def test_client_layers_with_keys_that_need_whole_models_are_refused(deep, changes: dict[str, object], words: str):
    with pytest.raises(ConfigError, match=words):
        weft.train(deep | {"client_layers": [5, 2]} | changes, quiet=True)
