"""Audits of updates: what the server reads in them, by what is trained and by what protects them."""

from __future__ import annotations

import json
import random

import pytest

import weft
from weft.cli import main
from weft.errors import WeftError

WORDS = [first + second + third for first in "bdgklmprst" for second in "aeiou" for third in "nrst"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A file of texts whose windows of 12 tokens have few words in common."""
    rng = random.Random(0)
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rows = [{"text": " ".join(rng.choices(WORDS, k=7))} for _ in range(60)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def given(tiny_model, texts, tmp_path):
    """The keys of a run of three clients on these texts."""
    return {
        "model_name_or_path": str(tiny_model), "dataset_name": str(texts), "objective": "causal_lm", "num_clients": 3,
        "sample_clients": 3, "num_rounds": 1, "max_steps": 1, "batch_size": 2, "seq_length": 12, "optimizer": "sgd",
        "learning_rate": 1.0, "dtype": "float32", "use_peft": False, "eval_fraction": 0.1, "eval_every": 0,
        "output_dir": str(tmp_path / "run"), "threads": 1,
    }  # fmt: skip


def audit(keys: dict, *tests: str, status: int = 0) -> dict:
    run = weft.train(keys)
    assert main(["audit", str(run.path), "--tests", *tests]) == status
    return json.loads((run.path / "audit.json").read_text())["audits"] if not status else {}


def test_full_training_gives_every_word_of_a_row_away(given):
    found = audit(given, "span")["span"]["numbers"]
    assert found["blind_from"] == 32
    assert found["one_step"]["value"] > 0.9
    assert found["control"]["high"] < 0.2
    assert found["mean"]["value"] > 0.9  # the union leaks, whoever sees no single update
    assert found["attribution"]["updates"]["low"] > 0.5
    assert found["attribution"]["mean"]["low"] < 0.5 < found["attribution"]["mean"]["high"]


@pytest.mark.slow
def test_the_rows_of_the_embedding_and_a_probe_tell_more(given):
    found = audit(given | {"eval_fraction": 0.5, "seq_length": 16}, "embedding", "properties", "inversion")
    assert found["embedding"]["numbers"]["one_step"]["value"] > 0.8
    assert found["embedding"]["numbers"]["control"]["high"] < 0.25
    assert found["properties"]["numbers"]["auc"]["value"] > 0.6
    assert found["properties"]["numbers"]["control"]["low"] < 0.6
    assert found["inversion"]["numbers"]["one_step"]["value"] > found["inversion"]["numbers"]["control"]["high"] / 2
    assert found["inversion"]["numbers"]["one_step"]["value"] > 2 * found["inversion"]["numbers"]["control"]["value"]


def test_verbatim_needs_rows_that_show_what_is_guessed(given, capsys):
    audit(given | {"eval_fraction": 0}, "verbatim", status=2)
    assert "nothing shows what is guessed" in capsys.readouterr().err


def test_an_adapter_has_no_rows_of_the_embedding(given, capsys):
    audit(given | {"use_peft": True}, "embedding", status=2)
    assert "nothing to audit" in capsys.readouterr().err


@pytest.mark.parametrize(("rank", "leaks"), [(16, True), (4, False)])
def test_a_lora_does_as_long_as_its_rank_is_above_the_words(given, rank, leaks):
    lora = {"use_peft": True, "peft_lora_r": rank, "peft_lora_target_modules": ["q_proj", "v_proj"], "seq_length": 9}
    found = audit(given | lora, "span")["span"]["numbers"]
    assert found["blind_from"] == rank
    assert (found["one_step"]["value"] > 0.8) == leaks


def test_differential_privacy_leaves_no_more_than_twice_chance(given):
    own = {"privacy_unit": "row", "noise_multiplier": 4.0, "clip_norm": 1.0}
    found = audit(given | own, "span")["span"]["numbers"]
    assert found["one_step"]["low"] <= 2 * found["control"]["value"] + 0.05
    assert found["one_step"]["value"] < 0.3


def test_a_run_that_sends_no_change_of_parameters_is_refused(given, capsys):
    audit(given | {"fed_alg": "central"}, "span", status=2)
    assert "fedavg" in capsys.readouterr().err


def test_every_row_is_asked_once_and_one_row_alone_has_no_control(given, tmp_path, capsys):
    """A row that was counted several times made intervals too narrow, and a control that was the row's own update."""
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps({"text": " ".join(WORDS[7 * n : 7 * n + 3])}) + "\n" for n in range(3)))
    alone = given | {"dataset_name": str(few), "eval_fraction": 0}
    assert len(audit(alone, "span")["span"]["numbers"]["tokens"]) == 3
    one = tmp_path / "one.jsonl"
    one.write_text(few.read_text().split("\n")[0] + "\n")
    audit(alone | {"dataset_name": str(one), "num_clients": 1, "sample_clients": 1, "output_dir": f"{few}-run"},
          "span", status=2)  # fmt: skip
    assert "fewer than two training rows" in capsys.readouterr().err


@pytest.mark.parametrize("own", [{"client_ranks": [8, 2, 4]}, {"client_layers": [2, 1, 1]}])
def test_clients_of_a_smaller_rank_or_of_fewer_layers_are_audited_too(given, own):
    found = audit(given | {"use_peft": True} | own, "span", "prefixes", "participant")
    assert found["span"]["numbers"]["control"]["high"] < 0.5
    assert "mean" in found["span"]["numbers"]
    assert found["prefixes"]["numbers"]["rows"] == 4
    assert found["participant"]["numbers"]["rows"] > 1


def test_rows_without_a_word_of_their_own_give_no_number(given, tmp_path, capsys):
    """Twice the same row was its own control, and a recall of no words was 0, as if nothing had been read."""
    same = tmp_path / "same.jsonl"
    first, second = (json.dumps({"text": " ".join(WORDS[at : at + 7])}) + "\n" for at in (0, 7))
    same.write_text(first * 12)
    alone = given | {"dataset_name": str(same), "eval_fraction": 0, "seq_length": 64}
    run = weft.train(alone)
    for test in ("span", "embedding"):
        assert main(["audit", str(run.path), "--tests", test]) == 2
        assert "fewer than two training rows that differ" in capsys.readouterr().err
    same.write_text(first * 12 + second * 12)
    found = audit(alone | {"output_dir": str(tmp_path / "two")}, "span")["span"]["numbers"]
    assert len(found["tokens"]) == 2


def test_an_audit_that_fails_takes_nothing_from_the_others_that_were_named(given, tmp_path, capsys):
    """The first failure ended the command, and the audits named after it never began."""
    twice = tmp_path / "twice.jsonl"
    twice.write_text("".join(json.dumps({"text": " ".join(WORDS[at : at + 7])}) + "\n" for at in (0, 7)) * 12)
    run = weft.train(given | {"dataset_name": str(twice), "eval_fraction": 0.5, "seq_length": 64})
    assert main(["audit", str(run.path), "--tests", "membership", "span", "--small"]) == 2
    said = capsys.readouterr()
    assert "membership was left out. 0 rows of the run were held out" in said.out
    assert "one row, one step" in said.out
    assert "No number is there for membership: left_out in '" in said.err


def test_a_run_without_a_round_remembers_no_row_and_says_so(given, capsys):
    """It was said that too few rows were held out, and other audits spoke of the base as if it were the run's model."""
    broken = given | {"learning_rate": 1e30, "max_steps": 3, "max_attempts": 1}
    with pytest.raises(WeftError):
        weft.train(broken)
    assert main(["audit", broken["output_dir"], "--tests", "membership"]) == 2
    words = capsys.readouterr().err
    assert "this is the model after round 0 of 1" in words
    assert "No client's update is in the model" in words
