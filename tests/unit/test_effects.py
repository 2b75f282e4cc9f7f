"""A key that was given and has no effect is refused, with a remedy that works; every key is classified."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from weft import registry
from weft.cli import main
from weft.config import RunConfig, build, gather, settle
from weft.errors import ConfigError
from weft.keys import EFFECTS, TABLES
from weft.keys.effects import OPENFEDLLM, VERBS, Condition

PLAIN = build({"dataset_name": "d"})
NEEDS = sorted(
    {(need.remedy, need) for effect in EFFECTS.values() for need in effect if need.remedy}, key=lambda pair: pair[0]
)
FAILING: dict[str, dict[str, Any]] = {
    "leave out --endpoint": {"endpoint": "http://h/v1", "prompt_method": "text"},
    "leave out --size, --hidden_size, --num_layers and --num_heads": {"size": "5m"},
    "leave out --eval_dataset_name, or the eval of clients": {"eval_dataset_name": "e"},
    "leave out --warmup_steps": {"warmup_steps": 3},
    "name one source by --dataset_name instead of clients": {"clients": [{"name": "a", "data": "b"}]},
    "choose a federated --fed_alg": {"fed_alg": "central"},
    "choose another --fed_alg": {"fed_alg": "fedbpt"},
    "choose another --prompt_method": {"prompt_method": "text"},
    "leave out --share, --private_tokens and --lora_aggregation": {"share": ["lora_A"]},
    "leave out --fed_alg local and --cluster": {"fed_alg": "local"},
    "leave out --federated_tokenizer": {"federated_tokenizer": True},
    "leave out --parallel": {"parallel": "fsdp"},
    "choose another --attack": {"attack": "spread_poison"},
    "choose another --prompt_method or --fed_alg": {"fed_alg": "fedkseed"},
    "leave out --parallel and --lora_aggregation": {"lora_aggregation": "svd"},
}
"""Remedies that take something away: what there is before. Without it, as in PLAIN, the condition must hold."""

IDLE: list[dict[str, Any]] = [
    {"save_model_freq": 0},
    {"lr_scheduler_type": "constant"},
    {"optimizer": "sgd"},
    {"split_strategy": "shards"},
    {"objective": "causal_lm"},
]
"""What else makes a key idle, beside the defaults."""


def refused(given: dict[str, Any], **how: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        settle(*gather(given, {}), **how)
    return str(caught.value)


def test_every_key_says_when_it_has_an_effect():
    missing, gone = RunConfig.model_fields.keys() - EFFECTS.keys(), EFFECTS.keys() - RunConfig.model_fields.keys()
    assert not missing, (
        f"add a line to WORKS, below the keys in src/weft/keys/: {sorted(missing)}: ALWAYS, or only(...)"
    )
    assert not gone, f"WORKS names keys that are none: {sorted(gone)}"
    assert sum(map(len, TABLES.values())) == len(EFFECTS), "a key stands in two tables"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"split_alpha": 0.5}, "--split_strategy dirichlet"),
        ({"prox_mu": 0.01}, "--fed_alg fedprox"),
        ({"dpo_beta": 0.1}, "use `weft dpo`"),
        ({"peft_lora_r": 8}, "add --use_peft"),
        ({"num_train_epochs": 2}, "--max_steps -1"),
        ({"num_train_epochs": 3, "max_steps": 10}, "--max_steps -1"),
        ({"fed_alg": "local0", "fed_args": {"x": 1}}, "local0 has no parameters"),
        ({"lora_merge_every": 3, "use_peft": True}, "--lora_aggregation merge"),
        ({"reward_length": 30, "objective": "grpo"}, "the reward 'length' is not among"),
        ({"warmup_ratio": 0.1, "warmup_steps": 3}, "warmup_steps is 3"),
        ({"adam_beta1": 0.8, "optimizer": "sgd"}, "--optimizer adamw"),
        ({"fedopt_beta2": 0.9, "fed_alg": "fedadagrad"}, "fedadam or fedyogi"),
        ({"endpoint_timeout": 3.0}, "add --endpoint URL"),
        ({"prompt_pool": 3}, "--prompt_method text"),
        ({"template": "alpaca", "objective": "causal_lm"}, "use `weft sft`"),
        ({"eval_fraction": 0.1, "eval_dataset_name": "e"}, "leave out --eval_dataset_name"),
        ({"vocab_size": 300}, "--federated_tokenizer"),
    ],
)
def test_keys_without_effect_are_refused(given: dict[str, Any], words: str):
    """Equal to the default or not."""
    said = refused({"dataset_name": "d"} | given)
    assert words in said
    assert "no effect in this run, because" in said
    assert said.count(". ") == 0


def test_keys_of_one_data_set_are_refused_beside_clients_of_their_own():
    said = refused({"clients": {"a": "a.jsonl"}, "dataset_sample": 5, "num_clients": 3, "split_strategy": "by"})
    assert said.startswith("dataset_sample, num_clients and split_strategy have no effect")
    assert "--dataset_name" in said


def test_keys_of_data_are_refused_for_sites():
    said = refused({"runtime": "nvflare", "num_clients": 3, "response_column": "a"})
    assert said.endswith("every site has its own data and its own site.yaml: leave them out.")


def test_several_keys_without_effect_are_named_at_once():
    said = refused({"dataset_name": "d", "prox_mu": 1, "peft_lora_r": 3, "peft_lora_alpha": 4})
    assert "prox_mu has no effect" in said
    assert said.endswith("(peft_lora_r and peft_lora_alpha have none either).")


@pytest.mark.parametrize("need", [need for _, need in NEEDS], ids=[write for write, _ in NEEDS])
def test_every_remedy_in_a_refusal_makes_the_condition_hold(need: Condition):
    """What the sentence says to write is written, and the condition holds."""
    flag = re.fullmatch(r"(?:write|add)(?: such as)? --(\w+) ?(\S*)(?: or --.*)?", need.remedy.strip())
    verb = re.fullmatch(r"use `weft (\w+)`", need.remedy)
    reward = re.fullmatch(r"add it: --reward (\w+)", need.remedy)
    if flag:
        key, value = flag[1], flag[2]
        kind = RunConfig.model_fields[key].annotation
        typed = TypeAdapter(kind).validate_python([value] if kind == list[str] else value or True)
        before = [PLAIN, *(PLAIN.model_copy(update=update) for update in IDLE)]
        assert not all(need.holds(config) for config in before)
        assert need.holds(PLAIN.model_copy(update={key: typed}))
    elif verb:
        assert not all(need.holds(PLAIN.model_copy(update={"objective": other})) for other in VERBS)
        (objective,) = [name for name, of in VERBS.items() if of == verb[1]]
        assert need.holds(PLAIN.model_copy(update={"objective": objective}))
    elif reward:
        assert need.holds(PLAIN.model_copy(update={"reward": [reward[1]]}))
    else:
        before = PLAIN.model_copy(update=FAILING[need.remedy] | {"clients": None})
        if "clients" in FAILING[need.remedy]:
            before = build(FAILING[need.remedy])
        if need.reason != "{c.fed_alg} has no parameters of its own":
            assert not need.holds(before)
        assert need.holds(PLAIN)


@pytest.mark.parametrize("table", [registry.ALGORITHMS, registry.LORA_AGGREGATIONS])
def test_the_tables_of_effects_agree_with_the_fields_of_the_parts(table: dict[str, str]):
    """Which key works with which part stands in two places: in WORKS, and in the part's own fields."""
    takes: dict[str, set[str]] = {}
    for name in table:
        made = registry.load(table, name, "part")
        for field in fields(made):
            takes.setdefault(field.metadata.get("key", ""), set()).add(name)
    kind = "fed_alg" if table is registry.ALGORITHMS else "lora_aggregation"
    unused = {("fedopt_beta1", "fedadagrad"), ("fedopt_beta2", "fedadagrad")}
    checked = 0
    for key, effect in EFFECTS.items():
        for need in effect:
            if f"works with {kind} " in need.reason:
                names = {name for name in table if need.holds(PLAIN.model_copy(update={kind: name}))}
                if key != "prompt_pool":
                    assert names == {name for name in takes[key] if (key, name) not in unused}, key
                checked += 1
    assert checked >= 2


def test_null_takes_a_key_back():
    config, said = settle(*gather({"dataset_name": "d", "prox_mu": 0.3, "use_dora": False}, {"prox_mu": None}))
    assert (config.prox_mu, said) == (0.01, None)
    assert settle(*gather({"dataset_name": "d", "dataset_sample": None}, {}))[0].dataset_sample is None


def test_what_a_verb_or_a_run_fills_in_is_not_given(tmp_path: Path):
    settle({"dataset_name": "d"}, ["dataset_name"], lambda given: {"peft_lora_dropout": 0.0, "prox_mu": 1.0})
    every = build({"dataset_name": "d"}).model_dump()
    assert settle(*gather(every, {"num_rounds": 3}))[0].num_rounds == 3
    with pytest.raises(ConfigError, match="prox_mu"):
        settle(*gather(every, {"prox_mu": 3}))


def test_openfedllms_commands_run_and_say_it_in_one_sentence():
    flags = {"dataset_name": "d", "prox_mu": "0.01", "dpo_beta": "0.1", "num_train_epochs": "3", "logging_steps": "9"}
    config, said = settle(*gather({}, flags), command=True)
    assert config.prox_mu == 0.01
    assert said is not None
    assert said.startswith("without effect in this run: prox_mu (")
    assert all(key in said for key in ("dpo_beta", "num_train_epochs", "logging_steps"))
    assert said.count(". ") == 0
    assert flags.keys() <= OPENFEDLLM
    # With a flag that OpenFedLLM does not have it is no command of OpenFedLLM; nor is a run file.
    assert "prox_mu" in refused(flags | {"eval_every": "3"}, command=True)
    assert "prox_mu" in refused(flags)


def test_a_baseline_runs_by_the_file_of_the_federation():
    keys = {"dataset_name": "d", "sample_clients": 2, "client_sampling": "size", "fed_alg": "central"}
    _, said = settle(*gather(keys, {}))
    assert said is not None
    assert "sample_clients and client_sampling" in said


def test_a_note_on_keys_without_effect_is_shown_once(keys, capsys):
    from support.flags import flags

    central = keys | {"fed_alg": "central", "num_rounds": 1, "max_steps": 1}
    assert main(["sft", *flags(central), "--dry_run"]) == 0
    assert capsys.readouterr().err.count("without effect in this run: sample_clients (") == 1
    assert main(["sft", *flags(central), "--quiet"]) == 0
    assert capsys.readouterr().err.count("without effect in this run: sample_clients (") == 1
    assert main(["sft", *flags(central | {"personal_steps": 3, "output_dir": "other"}), "--quiet"]) == 2
    assert "without effect" not in capsys.readouterr().err


def test_the_command_refuses_before_anything_is_there(keys, tmp_path: Path, capsys):
    from support.flags import flags

    assert main(["sft", *flags(keys | {"prox_mu": 0.1})]) == 2
    assert "fed_alg fedprox" in capsys.readouterr().err
    assert not Path(keys["output_dir"]).exists()
    assert main(["sft", *flags(keys | {"prox_mu": 0.1, "fed_alg": "fedprox"}), "--dry_run"]) == 0
    # `weft split` judges what it does itself.
    assert main(["split", *flags(keys | {"prox_mu": 0.1}), "--dry_run"]) == 0
    assert main(["split", *flags(keys | {"split_alpha": 0.1}), "--dry_run"]) == 2


def test_a_shape_that_an_adapter_does_not_have_is_refused(keys, tmp_path: Path, capsys):
    import weft
    from support.flags import flags

    keys |= {"num_rounds": 1, "max_steps": 1, "eval_every": 0}
    first = weft.train(keys, peft_lora_r=4, quiet=True)
    then = keys | {"model_name_or_path": str(first.path), "output_dir": str(tmp_path / "then")}
    with pytest.raises(ConfigError, match="whose peft_lora_r is 4: leave --peft_lora_r out"):
        weft.train(then, peft_lora_r=8, quiet=True)
    assert main(["sft", *flags(then | {"peft_lora_alpha": 3}), "--dry_run"]) == 2
    assert "whose peft_lora_alpha is 16" in capsys.readouterr().err
    assert not (tmp_path / "then").exists()
    assert weft.train(then, peft_lora_r=4, quiet=True).config.peft_lora_r == 4
