"""Audits of finished runs: what a model that learnt its canaries by heart says, and what one that did not says."""

from __future__ import annotations

import json
import math
import random

import pytest
import safetensors.torch

import weft
from support.coins import same_coins
from support.rows import write_rows
from weft.audits.scene import Scene
from weft.audits.settings import Settings
from weft.audits.taught import taught_by
from weft.cli import main
from weft.launch.run import Run
from weft.runs import metrics

pytestmark = pytest.mark.xdist_group("audits")  # what all of it needs is made once

MEMORY = {"canaries": 20, "canary_repetitions": [1, 8], "use_peft": False, "num_clients": 1, "sample_clients": 1}
MEMORY |= {"num_rounds": 1, "max_steps": 260, "batch_size": 16, "learning_rate": 1e-2, "eval_every": 0}
MEMORY |= {"lr_scheduler_type": "constant", "dtype": "float32", "threads": 1, "eval_fraction": 0.5}


def code_rows(count: int, seed: int = 0, thing: str = "box") -> list[dict[str, str]]:
    """Rows whose answers follow from nothing, so that they can only be learnt by heart."""
    rng = random.Random(seed)
    return [
        {"instruction": f"What is the code of {thing} {number:03}?", "output": f"{rng.randrange(10**5):05}"}
        for number in rng.sample(range(1000), count)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", code_rows(100))


@pytest.fixture(scope="module")
def learnt(tiny_model, data, tmp_path_factory):
    """A run whose model knows its repeated canaries by heart."""
    own = {"model_name_or_path": str(tiny_model), "dataset_name": str(data), "template": "vicuna", "seq_length": 128}
    with same_coins():
        return weft.train(own | MEMORY | {"output_dir": str(tmp_path_factory.mktemp("learnt") / "run")})


def audit(run, *tests: str) -> dict:
    assert main(["audit", str(run.path), "--quiet", "--shadows", "2", "--tests", *tests]) == 0
    return json.loads((run.path / "audit.json").read_text())


@pytest.mark.slow
def test_what_stands_often_in_the_rows_is_exposed_and_what_does_not_is_not(learnt):
    numbers = audit(learnt, "exposure", "extraction", "epsilon")["audits"]
    exposure = numbers["exposure"]["numbers"]["by_copies"]
    assert exposure["8"]["value"] > 5
    assert exposure["0"]["value"] < 4
    assert exposure["8"]["before"] < exposure["8"]["value"]
    extraction = numbers["extraction"]["numbers"]["by_copies"]
    assert extraction["8"]["value"] > 0.5
    assert extraction["0"]["value"] == 0
    assert numbers["epsilon"]["numbers"]["bound"] > 0.2
    assert numbers["epsilon"]["numbers"]["claimed"] is None
    page = (learnt.path / "report.html").read_text()
    assert "Exposure of canaries" in page
    assert "kept out (control)" in page


@pytest.mark.slow
def test_rows_that_were_learnt_by_heart_are_recognised(learnt):
    found = audit(learnt, "membership")["audits"]["membership"]["numbers"]
    scores = found["scores"]
    assert found["rows"] == 50
    for name in ("loss", "zlib", "Min-K%++", "reference", "LiRA, 2 shadows"):
        assert scores[name]["auc"]["value"] > 0.55, name
    assert scores["loss"]["auc"]["value"] > 0.75
    assert scores["coin (control)"]["auc"]["low"] < 0.5 < scores["coin (control)"]["auc"]["high"]
    assert scores["loss"]["tpr_at_0.01"] is None  # 50 rows cannot say


def test_prompts_and_first_halves_get_out_what_was_learnt_and_nothing_else(learnt):
    found = audit(learnt, "prompts", "verbatim", "refusals")["audits"]
    kinds = found["prompts"]["numbers"]["by_kind"]
    assert set(kinds) == {
        "direct question", "jailbreak", "moral pressure", "prefix completion", "repeated word"
    }  # fmt: skip
    assert all(rates["0"]["value"] == 0 for rates in kinds.values())
    copies = found["verbatim"]["numbers"]["by_copies"]
    assert copies["5 to 16 times"]["near"]["value"] > 0.3
    assert copies["not at all: held out (control)"]["near"]["value"] < 0.2
    assert found["refusals"]["numbers"]["harmful"]["value"] == 0  # a model of colours and codes refuses nothing


def test_a_model_that_learnt_nothing_recognises_nobody(learnt, tmp_path):
    keys = learnt.config.model_dump() | {"max_steps": 1, "learning_rate": 1e-9, "canaries": 0}
    run = weft.train(keys | {"output_dir": str(tmp_path / "run")})
    found = audit(run, "membership")["audits"]["membership"]
    scores = found["numbers"]["scores"]
    assert {"loss", "zlib", "reference"} <= scores.keys()
    for name, score in scores.items():
        assert 0.3 < score["auc"]["value"] < 0.7, name
    assert found["numbers"]["passes"] == pytest.approx(16 / 50)  # one step of 16 rows
    assert any("32% of its training rows" in note for note in found["notes"])
    assert any(note.startswith("Not above chance: ") for note in found["notes"])


def test_no_number_is_printed_where_words_alone_tell_the_rows_apart(learnt, tmp_path, capsys):
    other = write_rows(tmp_path / "other.jsonl", code_rows(60, 1, "crate"))
    keys = learnt.config.model_dump() | {"max_steps": 1, "canaries": 0, "eval_dataset_name": str(other)}
    run = weft.train(keys | {"output_dir": str(tmp_path / "run")})
    assert main(["audit", str(run.path), "--tests", "membership"]) == 2
    assert "never asks the model" in capsys.readouterr().err
    assert not (run.path / "audit.json").exists()


def test_a_run_without_canaries_says_what_can_be_asked(learnt, tmp_path, capsys):
    keys = learnt.config.model_dump() | {"max_steps": 1, "canaries": 0, "output_dir": str(tmp_path / "run")}
    run = weft.train(keys)
    assert main(["audit", str(run.path), "--tests", "exposure"]) == 2
    error = capsys.readouterr().err
    assert "--canaries 32" in error
    assert "--tests membership" in error


def test_a_run_whose_rows_are_gone_says_what_can_still_be_asked(tiny_model, tmp_path, capsys):
    data = write_rows(tmp_path / "rows.jsonl", code_rows(40))
    own = {"model_name_or_path": str(tiny_model), "dataset_name": str(data), "template": "vicuna", "seq_length": 128}
    small = {"canary_repetitions": [1], "max_steps": 1, "batch_size": 2}
    run = weft.train(own | MEMORY | small | {"output_dir": str(tmp_path / "run")})
    data.unlink()
    assert main(["audit", str(run.path), "--tests", "membership"]) == 2
    assert "exposure, epsilon, extraction" in capsys.readouterr().err
    found = audit(run, "exposure")
    assert found["audits"]["exposure"]["numbers"]["by_copies"]["0"]["value"] < 6
    write_rows(data, code_rows(39))
    (run.path / "audit.json").unlink()
    assert main(["audit", str(run.path), "--quiet", "--all", "--limit", "2"]) == 0
    told = json.loads((run.path / "audit.json").read_text())
    assert "refusals" in told["audits"]
    assert "--accept_changed" in told["left_out"]["membership"]


def test_canaries_whose_secrets_are_gone_are_not_drawn_anew_by_audits_of_rows(keys, capsys):
    run = weft.train(keys | {"canaries": 8, "num_rounds": 1, "max_steps": 1, "eval_every": 0})
    for file in run.path.glob("clients/*/secret.key"):
        file.unlink()
    for name in ("soft_prompt", "exposure"):
        assert main(["audit", str(run.path), "--tests", name]) == 2
        assert "copy them back" in capsys.readouterr().err
    assert main(["verify", str(run.path), "--replay", "1"]) == 2
    assert "copy them back" in capsys.readouterr().err
    assert not [*run.path.glob("clients/*/secret.key")]


def test_what_was_found_is_kept_when_a_later_audit_is_refused(keys, capsys):
    run = weft.train(keys | {"num_rounds": 1, "max_steps": 1, "eval_every": 0, "eval_fraction": 0.0})
    file = run.path / "audit.json"
    assert main(["audit", str(run.path), "--quiet", "--tests", "refusals", "membership"]) == 2
    assert set(json.loads(file.read_text())["audits"]) == {"refusals"}
    # A number of before does not outlive the control.
    found = json.loads(file.read_text())
    file.write_text(json.dumps(found | {"audits": {"refusals": {}, "membership": {}}}))
    assert main(["audit", str(run.path), "--quiet", "--tests", "membership"]) == 2
    assert set(json.loads(file.read_text())["audits"]) == {"refusals"}
    for damage in ("", "7", json.dumps(found | {"audits": 3})):
        file.write_text(damage)
        capsys.readouterr()
        assert main(["audit", str(run.path), "--quiet", "--tests", "refusals"]) == 2
        assert "delete it, and audit again" in capsys.readouterr().err
    file.unlink()
    assert main(["audit", str(run.path), "--tests", "exposure", "--candidates", "1000000"]) == 2
    assert "write 100000 or fewer" in capsys.readouterr().err


def test_a_model_of_numbers_that_are_not_finite_is_no_model_of_chance(keys, capsys):
    run = weft.train(keys | {"num_rounds": 1, "max_steps": 1, "eval_every": 0})
    file = run.path / "adapter" / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    safetensors.torch.save_file({name: value * math.nan for name, value in tensors.items()}, file)
    assert main(["audit", str(run.path), "--tests", "refusals"]) == 2
    assert "not finite" in capsys.readouterr().err


def test_rows_of_clients_that_took_no_part_are_not_counted_as_learnt(keys):
    """They, and their canaries, would pull every number towards chance."""
    run = weft.train(keys | {"num_rounds": 1, "max_steps": 1, "eval_every": 0, "leave_out": ["client_1"]})
    taught = taught_by(run, None)
    assert [taught(f"client_{number}") for number in range(3)] == [True, False, True]
    central = weft.train(keys | {"num_rounds": 1, "max_steps": 1, "fed_alg": "central"}, overwrite=True)
    assert taught_by(central, None)("client_1")


def test_clients_of_later_rounds_are_not_in_the_model_of_an_earlier_one(keys):
    own = {"num_rounds": 2, "max_steps": 1, "eval_every": 0, "sample_clients": 1, "save_model_freq": 1}
    run = weft.train(keys | own | {"num_clients": 8})
    asked = [set(line["clients"]) for line in metrics.read(run.directory.metrics_file) if line["event"] == "round"]
    assert asked[0] != asked[1]
    for number in (1, 2):
        taught = taught_by(Run(run.path, round=number), None)
        assert {name for name in run.client_names if taught(name)} == set().union(*asked[:number])


def test_a_budget_that_hides_who_took_part_leaves_canaries_to_ask_for(keys):
    own = {"privacy_unit": "client", "noise_multiplier": 1.0, "clip_norm": 0.1, "canaries": 20, "eval_every": 0}
    run = weft.train(keys | own | {"num_rounds": 1, "max_steps": 1, "leave_out": ["client_1"]})
    found = audit(run, "exposure")["audits"]["exposure"]["numbers"]["by_copies"]
    assert 0 < sum(group["canaries"] for group in found.values()) < 20  # those of client_1 are not in the model


def test_contents_that_stand_in_both_are_neither_members_nor_others(keys, tmp_path):
    rows = [row for row in code_rows(12) for _ in range(4)] + code_rows(30, 2, "crate")
    own = {"dataset_name": str(write_rows(tmp_path / "rows.jsonl", rows)), "eval_fraction": 0.4}
    run = weft.train(keys | own | {"num_rounds": 1, "max_steps": 1, "sample_clients": 3, "eval_every": 0})
    scene = Scene(run, Settings())
    people = scene.population
    trained, held = (
        {view[place][0].tobytes() for view in views for place in range(len(view))}
        for views in ([one.train for one in people.trained], [one.held_out for one in people.evaluated])
    )
    assert trained & held
    members, others = ({row[0].tobytes() for row in scene.rows(members=kind)} for kind in (True, False))
    assert members == trained - held
    assert others == held - trained


def test_a_client_that_is_not_there_is_told_from_one_without_a_model_of_its_own(learnt, capsys):
    names = learnt.client_names
    for name, words in (
        (f"{names[0]}x", f"Did you mean '{names[0]}'? Known: {', '.join(names)}."),
        (names[0], ": leave out --client."),
    ):
        assert main(["audit", str(learnt.path), "--tests", "refusals", "--client", name]) == 2
        assert words in capsys.readouterr().err
