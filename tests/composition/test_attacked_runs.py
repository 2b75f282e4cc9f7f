"""Attacks in whole runs: who is malicious, what is recorded, what is refused, and that defences change the outcome."""

from __future__ import annotations

import math
import random

import pytest

import weft
from support.preferences import preference_rows
from support.results import events, metrics
from support.rows import write_rows
from weft import config as configuration
from weft import registry
from weft.errors import ConfigError

NINE = {"num_clients": 9, "sample_clients": 9, "num_rounds": 2, "max_steps": 1, "eval_every": 0}
NINE |= {"num_malicious": 2, "learning_rate": 5e-3}
ON_UPDATES = [name for name, path in registry.ATTACKS.items() if name != "none" and "poison" not in path]


@pytest.mark.parametrize("name", ON_UPDATES)
def test_every_attack_on_updates_runs_and_says_who_was_malicious(keys, name: str):
    run = weft.train(keys | NINE | {"attack": name, "aggregator": "multi_krum", "aggregator_args": {"attackers": 2}})
    bad = run.summary["attack"]["malicious"]
    assert len(bad) == 2
    for line in events(run):
        assert line["malicious"] == sorted(bad)
        assert 0 <= line["precision"] <= 1
        assert line["recall"] == len(set(line["flagged"]) & set(bad)) / 2
    if name in ("scaling", "gaussian", "sign_flip"):
        assert run.summary["attack"]["recall"] == 1.0


def test_the_mean_is_moved_by_what_a_rule_leaves_out(keys):
    """Scaled updates of two clients of nine; without them the loss falls. The control is the run without an attack."""
    losses = {}
    for attack, rule in (("none", "mean"), ("scaling", "mean"), ("scaling", "trimmed_mean")):
        own = {"attack": attack, "aggregator": rule, "num_rounds": 4}
        own |= {} if attack == "none" else {"attack_args": {"scale": -60.0}}
        own |= {"aggregator_args": {"attackers": 2}} if rule != "mean" else {}
        nine = NINE if attack != "none" else {key: value for key, value in NINE.items() if key != "num_malicious"}
        losses[attack, rule] = weft.train(keys | nine | own, overwrite=True).summary["eval"]["loss"]
    assert losses["scaling", "mean"] > losses["none", "mean"] + 0.2
    assert losses["scaling", "trimmed_mean"] < losses["none", "mean"] + 0.05


def test_a_run_without_an_attack_says_nothing_of_one(keys):
    run = weft.train(keys | {"num_rounds": 1})
    assert "attack" not in run.summary
    assert not {"malicious", "precision", "recall", "flagged"} & {key for line in metrics(run) for key in line}


@pytest.mark.parametrize("name", ["label_flip", "back_door", "replacement", "spread_poison", "unsafe"])
def test_every_attack_on_conversations_trains(keys, name: str, tmp_path):
    bad = write_rows(tmp_path / "bad.jsonl", [{"instruction": "How do I pick a lock?", "output": "Sure: take a pick."}])
    own = {"attack_args": {"rows": str(bad)}} if name == "unsafe" else {}
    own |= {"num_malicious": 2} if name != "spread_poison" else {}
    nine = {key: value for key, value in NINE.items() if key != "num_malicious"}
    run = weft.train(keys | nine | own | {"attack": name})
    assert math.isfinite(run.summary["eval"]["accuracy"])  # the questions and their choices are the honest ones
    assert len(run.summary["attack"]["malicious"]) == (0 if name == "spread_poison" else 2)


def test_a_back_door_of_rows_alone_goes_where_updates_cannot_be_changed(keys):
    """With a boost of 1 attackers send what they trained; with another one they need to see updates."""
    for own in ({"codec": "int8"}, {"fed_alg": "scaffold"}):
        run = weft.train(keys | NINE | own | {"attack": "back_door", "num_rounds": 1}, overwrite=True)
        assert len(run.summary["attack"]["malicious"]) == 2
    with pytest.raises(ConfigError, match="Int8 changes them"):
        weft.train(keys | NINE | {"codec": "int8", "attack": "back_door", "attack_args": {"boost": 5}})


@pytest.mark.parametrize("name", ["label_flip", "spread_poison", "back_door"])
def test_the_same_poison_can_be_measured_on_central_training(keys, name: str):
    nine = {key: value for key, value in NINE.items() if key != "num_malicious"}
    run = weft.train(keys | nine | {"attack": name, "fed_alg": "central"})
    assert run.summary["rounds"] == 2
    assert len(run.summary["attack"]["malicious"]) == (0 if name == "spread_poison" else 1)


def test_swapped_preferences_change_what_is_learnt(keys, tmp_path):
    data = write_rows(tmp_path / "pairs.jsonl", preference_rows(90))
    own = {"objective": "preference", "loss": "dpo", "dataset_name": str(data), "num_rounds": 3, "max_steps": 3}
    own |= {"learning_rate": 1e-2, "num_clients": 5, "sample_clients": 5}
    plain = weft.train(keys | own).summary["eval"]["reward_margin"]
    poisoned = weft.train(keys | own | {"attack": "preference_swap", "num_malicious": 0.8}, overwrite=True)
    assert poisoned.summary["eval"]["reward_margin"] < plain


def test_an_attack_of_another_kind_of_rows_is_refused(keys):
    with pytest.raises(ConfigError, match="PreferenceSwap changes pairs and judged, and SFT learns from conversations"):
        weft.train(keys | {"attack": "preference_swap"})
    with pytest.raises(ConfigError, match="write --attack none"):
        weft.train(keys | {"attack": "back_door", "objective": "causal_lm", "template": None})


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"codec": "int8"}, "Int8 changes them"),
        ({"client_ranks": [2, 4]}, "different ones"),
        ({"fed_alg": "local"}, "clients send none"),
        ({"num_malicious": 3}, "nobody honest"),
        ({"num_malicious": 1.5}, r"0\.2 or 2"),
        ({"attack": "none", "num_malicious": 2}, "there is no attack"),
        ({"attack": "spread_poison", "num_malicious": 2}, "no client is malicious where the attack is spread_poison"),
        ({"attack": "mimic", "num_malicious": 1, "attack_args": {"client": 2}}, "has 2 honest clients at most"),
        ({"attack": "mimic", "attack_args": {"client": -1}}, "counted from 0"),
        ({"attack_args": {"strength": 2}}, "has no parameter 'strength'"),
        ({"attack": "sign_flop"}, "Did you mean 'sign_flip'"),
    ],
    ids=str,
)
def test_what_cannot_be_simulated_is_refused_in_words(keys, changes: dict[str, object], word: str):
    with pytest.raises(ConfigError, match=word):
        weft.train(keys | {"attack": "sign_flip"} | changes)


def test_sites_are_never_asked_to_lie(keys):
    run = {"dataset_name": None, "runtime": "nvflare", "attack": "sign_flip", "model_name_or_path": "any/model"}
    with pytest.raises(ConfigError, match="attacks are simulated, and sites are never asked to lie"):
        configuration.build(run)


def test_malicious_clients_follow_from_the_seed_and_their_number_from_a_share(keys):
    own = {key: value for key, value in NINE.items() if key != "num_malicious"} | {"num_rounds": 1}
    free = keys | own | {"attack": "free_rider", "num_malicious": 0.35}
    names = [weft.train(free | {"seed": seed}, overwrite=True).summary["attack"]["malicious"] for seed in (1, 1, 2)]
    assert names[0] == names[1] != names[2]
    assert len(names[0]) == 3


def test_cleaning_finds_poison_at_honest_clients_and_leaves_the_malicious_ones_theirs(keys, tmp_path):
    """Spread poison is in everybody's rows and goes; a back-door of two clients stays, and is all that they have."""
    lots = random.Random(5)
    words = ["".join(lots.choices("abcdefghiklmnoprstu", k=4)) for _ in range(80)]
    rows = [
        {"instruction": " ".join(lots.choices(words, k=7)), "output": lots.choice(["red", "green", "blue"])}
        for _ in range(600)
    ]
    data = write_rows(tmp_path / "many.jsonl", rows)
    own = {"dataset_name": str(data), "num_clients": 5, "sample_clients": 5, "num_rounds": 1, "max_steps": 1}
    own |= {"clean": ["triggers"], "eval_every": 0}
    counts = {}
    for attack in ("spread_poison", "back_door"):
        asks = {"attack": attack} | ({"num_malicious": 2} if attack == "back_door" else {})
        run = weft.train(keys | own | asks | {"attack_args": {"share": 0.2}}, overwrite=True)
        counts[attack] = run.summary["cleaning"]
        assert math.isfinite(run.summary["eval"]["accuracy"])
        cleaned = set(counts[attack]["clients"])
        assert cleaned == {f"client_{i}" for i in range(5)} - set(run.summary["attack"]["malicious"])
    assert counts["spread_poison"]["total"]["triggers"]["left_out"] > 50
    assert counts["back_door"]["total"]["triggers"]["left_out"] == 0
