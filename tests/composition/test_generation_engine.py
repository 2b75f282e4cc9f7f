"""Answers by vLLM: from the weights of the moment, by the names that vLLM knows, and nothing else changed."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import weft
from support import fake_vllm
from support.flags import flags
from weft.cli import main
from weft.config import build, gather, settle
from weft.errors import ConfigError, MissingExtra
from weft.models.generate import Sampling, generate
from weft.models.load import load_resident
from weft.models.resident import Resident
from weft.models.tokenizer import load_tokenizer
from weft.models.vllm_engine import all_weights

PROMPTS = [np.arange(5, 5 + length, dtype=np.int32) for length in (3, 9, 1)]
GRPO_KEYS = ("reward", "reward_length", "num_generations", "max_new_tokens")
GREEDY = Sampling(12, temperature=0.0)


@pytest.fixture
def asked(keys) -> dict[str, object]:
    own = {"objective": "grpo", "peft_lora_dropout": 0.0, "learning_rate": 1e-2, "dtype": "float32", "batch_size": 2}
    own |= {"max_new_tokens": 6, "num_generations": 4, "reward": "length", "reward_length": 10}
    return keys | own | {"generation_engine": "vllm"}


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put the stand-in where vLLM is imported, and return its log."""
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm.module())
    monkeypatch.setattr(fake_vllm, "LOG", log := [])
    return log


@pytest.fixture(params=["llama", "gpt2", "tied"])
def folder(request: pytest.FixtureRequest, tiny_model: Path, tmp_path: Path) -> Path:
    """The folder of a model: one with linear layers, one with Conv1D layers, one whose embeddings are tied."""
    if request.param == "llama":
        return tiny_model
    return model_in(tmp_path / "model", request.param, tiny_model)


def model_in(folder: Path, kind: str, tiny_model: Path) -> Path:
    """Write a random model, "gpt2" or a Llama with "tied" embeddings, with the tokenizer of the tiny one."""
    tokenizer = load_tokenizer(build({"model_name_or_path": str(tiny_model), "dataset_name": "none"}))
    torch.manual_seed(1)
    size = len(tokenizer)
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=256))
    else:
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=size, tie_word_embeddings=True, **shape))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def resident_of(keys: dict[str, object]) -> Resident:
    config = build(keys)
    return load_resident(config, load_tokenizer(config))


def disturb(model: Resident, seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    model.load(
        {name: value + 0.3 * torch.randn(value.shape, generator=chance) for name, value in model.values().items()}
    )


def texts(model: Resident, sampling: Sampling, copies: int = 1, seed: int = 0) -> list[list[list[int]]]:
    answers = generate(model, PROMPTS, sampling, copies=copies, seed=seed)
    return [[[int(token) for token in answer.ids] for answer in group] for group in answers]


@pytest.mark.parametrize("peft", [True, False])
def test_greedy_answers_are_those_of_torch_after_every_change_of_the_weights(asked, folder: Path, peft: bool, engine):
    model = resident_of(asked | {"model_name_or_path": str(folder), "use_peft": peft})
    seen = []
    for seed in range(3):
        disturb(model, seed)
        by_vllm = texts(model, GREEDY)
        vllm, model.engine = model.engine, None
        assert texts(model, GREEDY) == by_vllm
        model.engine = vllm
        seen.append(by_vllm)
    assert seen[0] != seen[1] != seen[2]  # weights that were not handed over would show
    assert engine.count("start") == 1
    assert engine.count("reset") == 3


def test_a_lora_is_added_as_peft_adds_it(asked, folder: Path):
    model = resident_of(asked | {"model_name_or_path": str(folder), "peft_lora_alpha": 7})
    disturb(model, 0)
    ours = {name: value.clone() for name, value in all_weights(model.base)}
    theirs = dict(model.model.merge_and_unload().named_parameters())
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], atol=1e-6), name


def test_answers_end_are_cut_and_repeat(asked):
    model = resident_of(asked)
    model.model.generation_config.eos_token_id = list(range(40, 80))
    sampling = Sampling(20, temperature=1.5)
    sampled = generate(model, PROMPTS, sampling, copies=3, seed=5)
    assert [len(group) for group in sampled] == [3, 3, 3]
    for answer in (answer for group in sampled for answer in group):
        ends = [token for token in answer.ids if 40 <= token < 80]
        assert answer.ended == bool(ends)
        assert ends in ([], [answer.ids[-1]])
    assert texts(model, sampling, 3, 5) == [[answer.ids.tolist() for answer in group] for group in sampled]
    assert len({tuple(answer.ids) for answer in sampled[0]}) > 1
    model.model.generation_config.eos_token_id = 1
    (same,) = generate(model, PROMPTS[:1], GREEDY, copies=2)
    assert (same[0].ids == same[1].ids).all()
    ((cut,),) = generate(model, PROMPTS[:1], Sampling(40, temperature=0.0), stop=lambda tokens: len(tokens) > 10)
    assert len(cut.ids) == 16


def test_a_run_starts_one_engine_and_leaves_the_random_numbers_alone(asked, tmp_path: Path, engine):
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    model = resident_of(asked)
    torch.set_rng_state(before[2])
    generate(model, PROMPTS, GREEDY)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])
    engine.clear()
    losses = []
    for name in ("a", "b"):
        run = weft.train(asked | {"output_dir": str(tmp_path / name)}, quiet=True)
        losses.append((run.path / "metrics.jsonl").read_text(encoding="utf-8"))
    assert losses[0] == losses[1]
    assert engine.count("start") == 2
    assert sum(line.startswith("load") for line in engine) == sum(line.startswith("generate") for line in engine) > 6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"runtime": "ray"}, "runtime ray"),
        ({"prompt_method": "soft", "use_peft": False, "peft_lora_dropout": None}, "prompt_method soft"),
        ({"objective": "sft"} | dict.fromkeys(GRPO_KEYS), "generation_engine has no effect"),
        ({"use_dora": True}, "DoRA"),
        ({"lora_aggregation": "fedsb"}, "more beside a layer than A and B"),
        ({"load_in_4bit": True}, "quantised by bitsandbytes"),
        ({"peft_lora_target_modules": ["embed_tokens", "lm_head"], "tied": True}, "shares its weight"),
        ({"vllm_memory": 0.95}, "vLLM cannot be started with"),
        ({"generation_engine": "torch", "vllm_memory": 0.5}, "vllm_memory has no effect"),
    ],
)
def test_what_vllm_cannot_be_given_is_refused(
    asked, change: dict[str, object], words: str, tiny_model: Path, tmp_path: Path
):
    keys = {name: value for name, value in (asked | change).items() if value is not None and name != "tied"}
    if "tied" in change:
        keys["model_name_or_path"] = str(model_in(tmp_path / "model", "tied", tiny_model))
    with pytest.raises(ConfigError, match=words):
        weft.train(keys | {"output_dir": str(tmp_path / "run")}, quiet=True)
    assert not (tmp_path / "run").exists()


def test_sites_are_refused_whose_answers_it_would_not_sample(asked):
    keys = {name: asked[name] for name in ("objective", "reward", "reward_length", "model_name_or_path")}
    settle(*gather(keys | {"runtime": "nvflare"}, {}))  # the control
    with pytest.raises(ConfigError, match=r"generation_engine .*of one process \(runtime nvflare"):
        settle(*gather(keys | {"runtime": "nvflare", "generation_engine": "vllm"}, {}))


def test_without_vllm_its_extra_is_named(asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtra, match=r"weft\[vllm\]"):
        weft.train(asked | {"output_dir": str(tmp_path / "run")}, quiet=True)
    assert not (tmp_path / "run").exists()


def test_names_that_its_files_do_not_have_are_refused(asked):
    model = resident_of(asked)
    model.base.model.register_parameter("fused", torch.nn.Parameter(torch.zeros(2), requires_grad=False))
    with pytest.raises(ConfigError, match=r"'model\.fused' .* has another name in its files"):
        generate(model, PROMPTS, GREEDY)


def test_the_command_line_takes_it(asked, tmp_path: Path, engine):
    assert main(["grpo", *flags(asked | {"output_dir": str(tmp_path / "run"), "num_rounds": 1}), "--quiet"]) == 0
    assert engine[0] == "start"
