"""Every attack with every other kind of part: it goes with it, or is refused in words before a model is loaded.

What is refused is written down here by names, apart from the traits by which the plan decides; test_product.py runs
every attack with every algorithm and every rule.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from weft import config as configuration
from weft import registry
from weft.cli import main
from weft.errors import ConfigError
from weft.launch import compose

ATTACKS = [name for name in registry.ATTACKS if name != "none"]
DIRECTED = {"sign_flip", "inner_product", "alie", "min_max", "min_sum"}
"""Attacks that can search their strength."""
ON_UPDATES = DIRECTED | {"scaling", "gaussian", "mimic", "free_rider", "replacement"}
ON_TALKS = {"label_flip", "back_door", "replacement", "spread_poison", "unsafe"}
SERVER = {"server_back_door"}
ARGS = {"server_back_door": {"rows": "any", "target": "red"}, "unsafe": {"rows": "any"}}
WAYS: dict[str, tuple[dict[str, object], set[str]]] = {
    "a codec": ({"codec": "int8"}, ON_UPDATES | SERVER),
    "a codec of tasks": ({"codec_down": "int8"}, SERVER),
    "masks": ({"protection": "masks"}, ON_UPDATES | SERVER),
    "masks of groups": ({"protection": "masks", "group_size": 3}, ON_UPDATES | SERVER),
    "ranks": ({"use_peft": True, "client_ranks": [2, 4]}, ON_UPDATES | SERVER),
    "products": ({"use_peft": True, "lora_aggregation": "svd"}, SERVER),
    "stacks": ({"use_peft": True, "lora_aggregation": "stack"}, SERVER),
    "factors of one kind": ({"use_peft": True, "lora_aggregation": "ffa"}, set()),
    "all parameters": ({"use_peft": False}, set()),
    "text": ({"objective": "causal_lm", "template": None}, ON_TALKS | {"preference_swap"}),
    "pairs": ({"objective": "preference"}, ON_TALKS),
    "rewards": ({"objective": "grpo", "reward": "length"}, ON_TALKS | {"preference_swap"}),
    "a rule that asks for the loss": ({"aggregator": "loss_gate", "public_data": "any"}, set()),
    "a rule with rows": ({"aggregator": "fltrust", "public_data": "any"}, set()),
    "a robust rule": ({"aggregator": "multi_krum"}, set()),
    "sites": ({"runtime": "nvflare", "dataset_name": None, "num_clients": None}, set(ATTACKS)),
}
"""What each goes with, and the attacks that it refuses."""


def plan(attack: str, keys: dict[str, object]) -> None:
    own = {"attack": attack, "attack_args": ARGS.get(attack, {}), "dataset_name": "any", "num_clients": 12}
    own |= {"objective": "preference"} if attack == "preference_swap" else {}
    given = {"model_name_or_path": "there/is/none", "sample_clients": 12} | own | keys
    compose.plan(configuration.build({key: value for key, value in given.items() if value is not None}))


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("way", WAYS)
def test_an_attack_goes_with_a_part_or_is_refused_in_words(attack: str, way: str):
    keys, refused = WAYS[way]
    if attack not in refused:
        plan(attack, keys)
        return
    with pytest.raises(ConfigError) as caught:
        plan(attack, keys)
    sentence = str(caught.value)
    assert any(word in sentence for word in ("write --attack none", "leave out --attack")), sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("attack", sorted(DIRECTED))
def test_a_search_does_not_ask_for_the_loss_at_every_trial(attack: str):
    """The control is the same attack without the search, above."""
    own = {"aggregator": "loss_gate", "public_data": "any", "attack_args": {"search": True}}
    with pytest.raises(ConfigError, match=r"asks for the loss at every trial: leave out search in --attack_args"):
        plan(attack, own)


def test_every_attack_is_of_a_kind_that_is_named_here():
    assert ON_UPDATES | ON_TALKS | SERVER | {"preference_swap"} == set(ATTACKS)


WRONG = {
    "attackers": (["sft", "--aggregator", "median", "--aggregator_args", "attackers=3"], "needs 7 updates in a round"),
    "no root": (["sft", "--aggregator", "fltrust"], "and there are none: add --public_data FILE"),
    "an empty root": (["sft", "--aggregator", "fltrust", "--public_data", "{empty}"], "is empty: give a file with"),
    "a root that is not there": (["sft", "--aggregator", "loss_gate", "--public_data", "{tmp}/none.jsonl"], "no file"),
    "nobody honest": (["sft", "--attack", "alie", "--num_malicious", "3"], "nobody honest"),
    "an attack at sites": (["submit", "--attack", "alie"], "sites are never asked to lie"),
    "an attack at sites of one machine": (["up", "--attack", "alie"], "sites are never asked to lie"),
    "no row left": (["sft", "--clean", "length", "--clean_args", "length.least=9999"], "leaves no row to the client"),
    "a file with an error": (["sft", "--aggregator", "{broken}:Mine"], "is not valid Python (line 1"),
}


@pytest.mark.parametrize(("words", "sentence"), WRONG.values(), ids=WRONG.keys())
def test_the_command_line_refuses_in_one_sentence_and_leaves_nothing(
    keys, words: list[str], sentence: str, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)  # where `weft up` has its folder
    empty, broken, out = tmp_path / "empty.jsonl", tmp_path / "mine.py", tmp_path / "out"
    empty.write_text("")
    broken.write_text("class Mine(:\n")
    command, *more = [word.format(empty=empty, broken=broken, tmp=tmp_path) for word in words]
    given = ["--model_name_or_path", str(keys["model_name_or_path"]), "--output_dir", str(out), "--seq_length", "128"]
    if command != "submit":  # where sites have the rows
        given += ["--dataset_name", str(keys["dataset_name"]), "--num_clients", "3", "--template", "alpaca"]
    before = sorted(tmp_path.iterdir())
    assert main([command, *given, *more]) == 2
    said = capsys.readouterr()
    assert sentence in " ".join(said.err.split())
    assert "Traceback" not in said.err
    assert sorted(tmp_path.iterdir()) == before
