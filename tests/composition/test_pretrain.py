"""Pre-training: from nothing and from a model, by files as clients."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import weft
from support.flags import flags
from support.rows import THINGS, write_rows
from weft.cli import main
from weft.commands.pretrain import defaults
from weft.config import build, settle
from weft.launch import compose
from weft.models.scratch import SHAPES
from weft.training.schedules import Schedule


@pytest.fixture
def domains(tmp_path: Path) -> Path:
    """A folder of three files of text, each with words of its own."""
    folder = tmp_path / "domains"
    folder.mkdir()
    rng = random.Random(0)
    for number, name in enumerate(("fruit", "plants", "sky")):
        texts = [" ".join(rng.choices(THINGS[number * 4 : number * 4 + 4], k=rng.randint(5, 40))) for _ in range(40)]
        write_rows(folder / f"{name}.jsonl", [{"text": text} for text in texts])
    return folder


@pytest.fixture
def scratch(domains: Path, tmp_path: Path) -> dict[str, object]:
    """The keys of a run from nothing, of seconds."""
    return {
        "dataset_name": str(domains),
        "split_strategy": "domain",
        "sample_clients": 3,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "tokenizer_text": str(domains),
        "vocab_size": 300,
        "num_rounds": 4,
        "max_steps": 5,
        "batch_size": 8,
        "seq_length": 32,
        "learning_rate": 1e-2,
        "eval_every": 2,
        "output_dir": str(tmp_path / "run"),
    }


def test_a_model_from_nothing_learns_and_is_an_ordinary_model(scratch, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert main(["pretrain", *flags(scratch), "--quiet"]) == 0
    run = weft.open_run(str(scratch["output_dir"]))
    evaluations = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    bits = [line["bits_per_byte"] for line in evaluations if line["event"] == "eval"]
    assert bits[-1] < 0.9 * bits[0]
    assert set(run.summary["clients"]) == {"fruit", "plants", "sky"}
    assert run.summary["eval"]["bits_per_byte"] == bits[-1]
    assert compose.algorithm(run.config).rates == (1.0, 0.0)
    size = sum(value.nbytes for value in load_file(run.path / "model" / "model.safetensors").values())
    # 3 clients, 4 rounds: 12 times up; data parallelism moves both ways in each of 5 steps.
    assert run.summary["bytes_up"] == 12 * size
    assert run.summary["data_parallel_bytes"] == 12 * 5 * 2 * size
    assert 0 < run.summary["flop_utilisation"] < 1
    model = AutoModelForCausalLM.from_pretrained(run.path / "model")
    tokenizer = AutoTokenizer.from_pretrained(run.path / "model")
    assert len(tokenizer) == model.config.vocab_size <= 300
    assert model.config.hidden_size == 32
    # A text begins with <s>, so that the model has seen what comes first.
    assert tokenizer("leaf")["input_ids"][0] == tokenizer.bos_token_id


def test_fine_tuning_goes_on_from_the_run(scratch, tiny_data: Path, tmp_path: Path):
    base = weft.train(scratch | defaults(scratch) | {"num_rounds": 1})
    keys = {"model_name_or_path": str(base.path), "dataset_name": str(tiny_data), "template": "vicuna", "num_rounds": 1}
    keys |= {"max_steps": 1, "batch_size": 2, "seq_length": 512, "output_dir": str(tmp_path / "tuned"), "eval_every": 0}
    assert main(["sft", *flags(keys), "--quiet"]) == 0
    tuned = load_file(tmp_path / "tuned" / "model" / "model.safetensors")
    begun = load_file(base.path / "model" / "model.safetensors")
    assert tuned.keys() == begun.keys()
    assert not torch.equal(tuned["model.norm.weight"], begun["model.norm.weight"])


@pytest.mark.slow
def test_the_start_follows_from_the_seed_and_a_resumed_run_is_the_same(scratch, tmp_path: Path):
    import shutil

    given = scratch | defaults(scratch) | {"save_model_freq": 1, "checkpoint_seconds": 0}
    one = weft.train(given)
    broken = tmp_path / "broken"
    shutil.copytree(one.path, broken)
    for path in (*broken.glob("checkpoints/round_00000[34]"), broken / "model"):
        shutil.rmtree(path)
    (broken / "summary.json").unlink()
    again = weft.train(given | {"output_dir": str(broken)}, resume=True)
    other = weft.train(given | {"output_dir": str(tmp_path / "other")})
    files = [load_file(run.path / "model" / "model.safetensors") for run in (one, again, other)]
    assert all(torch.equal(files[0][name], more[name]) for more in files[1:] for name in files[0])
    differing = weft.train(given | {"seed": 1, "num_rounds": 1, "output_dir": str(tmp_path / "seed")})
    assert not torch.equal(
        load_file(differing.path / "model" / "model.safetensors")["model.norm.weight"], files[0]["model.norm.weight"]
    )


def test_pre_training_goes_on_from_a_model(scratch, tiny_model: Path):
    shape = ("hidden_size", "num_layers", "num_heads", "tokenizer_text", "vocab_size")
    keys = {k: v for k, v in scratch.items() if k not in shape}
    keys |= {"model_name_or_path": str(tiny_model), "num_rounds": 1}
    assert main(["pretrain", *flags(keys), "--quiet"]) == 0
    assert weft.open_run(str(keys["output_dir"])).summary["eval"]["bits_per_byte"] > 0


def test_sizes_have_as_many_parameters_as_their_names_say():
    from transformers import LlamaForCausalLM

    from weft.models.scratch import llama_config

    for size in SHAPES:
        config = build({"dataset_name": "x", "size": size, "tokenizer": "y"})
        with torch.device("meta"):
            model = LlamaForCausalLM(llama_config(config, 8192, {}))
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(int(size[:-1]) * 1e6, rel=0.05)


def test_the_wsd_schedule_warms_up_stays_and_falls():
    schedule = Schedule("wsd", 1.0, 0.0, rounds=10, warmup_steps=2, decay_ratio=0.2)
    rates = [schedule.at(round, step, 5) for round in range(10) for step in range(5)]
    assert rates[:2] == [0.5, 1.0]
    assert rates[2:40] == [1.0] * 38
    assert rates[40:] == pytest.approx([1.0 - n / 10 for n in range(10)])


def test_norms_do_not_decay_where_matrices_alone_do(scratch):
    """Without gradients (a learning rate that moves nothing) only the decay would move weights."""
    steps = compose.local_steps(build(scratch | {"weight_decay": 0.5, "decay_matrices_only": True}))
    params = dict(torch.nn.Linear(3, 3).named_parameters())
    optimizer = steps.optimizer.make(params, {}, torch.device("cpu"))
    found = {group["weight_decay"]: [tuple(p.shape) for p in group["params"]] for group in optimizer.param_groups}
    assert found == {0.5: [(3, 3)], 0.0: [(3,)]}


def test_the_recipe_is_the_plain_mean_and_what_is_given_stays(scratch):
    def rates(**changes: object) -> tuple[float, float]:
        given = {key: value for key, value in (scratch | changes).items() if value is not None}
        return compose.algorithm(settle(given, (), defaults)[0]).rates

    split = {"split_strategy": "iid"}
    assert [rates(num_clients=count, sample_clients=8, **split) for count in (1, 2, 8)] == [(1.0, 0.0)] * 3
    assert rates(num_clients=4, fed_args=["fragments=2"], **split) == (1.0, 0.0)
    assert rates(num_clients=4, fed_args="fragments=2", recipe="photon", **split) == (0.7, 0.7)
    assert rates(num_clients=4, fed_args={"outer_lr": 0.3}, **split) == (0.3, 0.0)
    # With momentum the rate follows the number of clients.
    found = [rates(num_clients=n, sample_clients=8, fed_args={"momentum": 0.9}, **split) for n in (1, 2, 4, 5, 8)]
    assert found == [(0.4, 0.9), (0.6, 0.9), (0.6, 0.9), (0.8, 0.9), (0.8, 0.9)]


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({"batch_size": 4, "seq_length": 64}, 256),
        ({"batch_size": "4", "seq_length": 64, "gradient_accumulation_steps": 2}, 512),
        ({"seq_length": 32, "recipe": "photon"}, 256),  # 8 rows
    ],
)
def test_moments_of_small_batches_last_for_as_many_tokens(changes: dict[str, object], tokens: int):
    found = defaults(changes | {"optimizer": "muon"})
    for key in ("adam_beta2", "muon_momentum"):
        assert math.log(0.5) / math.log(found[key]) * tokens == pytest.approx(12_500)
    assert "muon_momentum" not in defaults(changes)


@pytest.mark.parametrize(
    "changes", [{}, {"batch_size": 16, "seq_length": 64}, {"batch_size": "four"}, {"batch_size": 10**400}]
)
def test_moments_of_usual_batches_are_those_of_the_recipe(changes: dict[str, object]):
    assert defaults(changes)["adam_beta2"] == 0.95


def test_the_recipe_photon_keeps_nothing_at_clients(scratch):
    photon = defaults({"recipe": "photon"})
    assert photon["fed_args"] == {"outer_lr": 0.7, "momentum": 0.7, "inner_state": "reset"}
    assert photon["learning_rate"] > defaults({})["learning_rate"]
    run = weft.train(photon | scratch | {"num_rounds": 1})
    assert not list((run.path / "clients").glob("*"))


BAD = {
    "no tokenizer": ({"tokenizer_text": None}, "write either --tokenizer NAME_OR_PATH"),
    "two tokenizers": ({"tokenizer": "x"}, "write either --tokenizer NAME_OR_PATH"),
    "half a shape": ({"num_layers": None}, "add --num_layers, or write --size"),
    "odd heads": ({"hidden_size": 36}, "a head must have an even number of places"),
    "an adapter on nothing": ({"use_peft": True}, "trains all its parameters"),
    "no such text": ({"tokenizer_text": "there/is/none.jsonl"}, "no file or folder 'there/is/none.jsonl'"),
    "an unknown size": ({"size": "5b"}, "'5m', '15m', '60m' or '150m'"),
}


@pytest.mark.parametrize(("changes", "said"), BAD.values(), ids=BAD.keys())
def test_mistaken_keys_of_pre_training_are_refused_in_a_sentence(scratch, changes: dict[str, object], said: str):
    given = {k: v for k, v in (scratch | changes).items() if v is not None}
    with pytest.raises(weft.errors.ConfigError, match=said):
        weft.train(given)
