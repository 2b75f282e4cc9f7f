"""Runs that protect rows, or all rows of one person: what they spend, and what they are without noise."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from test_resume import Process, begun, start

import weft
from support.fork_server import ForkServer
from support.results import events, same_values, weights
from support.rows import colour_rows, write_rows
from weft.errors import ConfigError
from weft.privacy.accounting import Sampling, epsilon
from weft.privacy.ledger import Ledger
from weft.runs import checkpoint
from weft.runs.layout import RunDir
from weft.runs.start import LEDGER

pytest.importorskip("dp_accounting")


@pytest.fixture
def private(keys, tmp_path: Path) -> dict[str, object]:
    """The keys of a run of seconds on 90 rows of 30 patients, at three hospitals."""
    rows = [row | {"patient": f"p{number // 3}"} for number, row in enumerate(colour_rows(90))]
    data = write_rows(tmp_path / "patients.jsonl", rows)
    own = {"privacy_unit": "row", "noise_multiplier": 1.0, "sample_clients": 3, "num_rounds": 2, "eval_every": 0}
    return keys | own | {"dataset_name": str(data)}


def distance(one, two) -> float:
    left, right = weights(one), weights(two)
    return max(float((left[name] - right[name]).abs().max()) for name in left)


@pytest.mark.parametrize("unit", ["row", "patient"])
def test_noise_hides_and_its_absence_is_seen(private, tmp_path: Path, unit: str):
    runs = [weft.train(private | {"privacy_unit": unit, "output_dir": str(tmp_path / name)}) for name in ("a", "b")]
    assert distance(*runs) > 1e-6  # other secrets
    said = runs[0].summary["privacy"]
    assert said["unit"] == unit
    assert "everybody outside the client" in said["protects_against"]
    assert said["epsilon"] == events(runs[0])[-1]["epsilon"]
    # Names of clients are no secret here; numbers of their rows are.
    assert all(len(line["clients"]) == 3 and line["train_loss"] is None for line in events(runs[0]))
    assert not events(runs[0], "eval")


def test_the_client_with_the_fewest_units_decides(private):
    """30 rows each, of which 3 are held out, and two steps of 4 a round."""
    run = weft.train(private | {"target_delta": 1e-4})
    spent = [epsilon(Sampling.poisson(4 / 27), 1.0, 2 * rounds, 1e-4) for rounds in (1, 2)]
    assert [line["epsilon"] for line in events(run)] == pytest.approx(spent)


def test_the_target_sets_the_noise_of_each_client(private):
    one = {key: value for key, value in private.items() if key != "noise_multiplier"}
    run = weft.train(one | {"target_epsilon": 3, "split_strategy": "quantity"})
    assert 2.9 < events(run)[-1]["epsilon"] <= 3


def test_a_resumed_run_ends_bit_identical(private, tmp_path: Path):
    run = weft.train(private | {"privacy_unit": "patient", "save_model_freq": 1})
    copy = tmp_path / "again"
    shutil.copytree(run.path, copy)
    shutil.rmtree(copy / "checkpoints" / "round_000002")
    again = weft.train(
        private | {"privacy_unit": "patient", "save_model_freq": 1, "output_dir": str(copy)}, resume=True
    )
    assert same_values(weights(again), weights(run))
    assert (copy / LEDGER).read_bytes() == (run.path / LEDGER).read_bytes()


@pytest.mark.parametrize("unit", ["row", "patient"])
def test_a_run_that_is_killed_again_and_again_ends_bit_identical(private, tmp_path: Path, forks: ForkServer, unit: str):
    """By SIGKILL, with the secrets of all clients; the ledger has every round, once."""
    Process.forks = forks
    given = private | {"privacy_unit": unit, "num_rounds": 12, "checkpoint_seconds": 0, "clip_norm": 0.3}
    file, broken, whole = tmp_path / "run.yaml", tmp_path / "broken", tmp_path / "whole"
    file.write_text(yaml.safe_dump(given))
    kills, process = 0, start(file, "--output_dir", str(broken))
    for _ in range(3):
        begun(broken, process, 2)
        if not process.running():
            break
        process.stop(signal.SIGKILL)
        kills += 1
        assert len(Ledger(broken / LEDGER).entries) >= len(events(weft.open_run(broken)))
        process = start(file, "--output_dir", str(broken), "--resume")
    assert process.wait() == 0, process.said()
    assert kills > 0
    shutil.copytree(broken, whole)
    shutil.rmtree(whole / "checkpoints")
    undisturbed = weft.train(given | {"output_dir": str(whole)}, resume=True)
    assert same_values(weights(undisturbed), weights(weft.open_run(broken)))
    assert (whole / LEDGER).read_bytes() == (broken / LEDGER).read_bytes()
    assert len(Ledger(broken / LEDGER).entries) == 12


def test_the_saved_adapter_is_the_one_in_memory(private):
    run = weft.train(private | {"save_model_freq": 1})
    state, _ = checkpoint.latest(RunDir(run.path), print)
    saved = weights(run)
    assert len(saved) == len(state.params)
    assert all(torch.equal(value, saved[name.replace(".default", "")]) for name, value in state.params.items())


def test_units_with_too_many_rows_are_cut_and_counted(private, capsys):
    run = weft.train(
        private
        | {
            "privacy_unit": "patient",
            "max_rows_per_unit": 1,
            "split_strategy": "by",
            "split_column": "patient",
            "num_clients": 2,
        },
        quiet=False,
    )
    told = "".join(capsys.readouterr())
    assert "rows are left out, because a unit (patient) has at most 1 rows" in told
    assert run.summary["rounds"] == 2


def test_rows_that_are_nobodys_are_left_out_and_counted(private, tmp_path: Path, capsys):
    """As one unit they would be several persons, whose change is no change of one unit."""
    rows = [{"patient": f"p{number}"} | row for number, row in enumerate(colour_rows(60))]
    for row in rows[::5]:
        row["patient"] = "" if row["patient"].endswith("0") else None
    data = write_rows(tmp_path / "some.jsonl", rows)
    run = weft.train(private | {"privacy_unit": "patient", "dataset_name": str(data), "num_rounds": 1}, quiet=False)
    found = re.search(r"(\d+) rows are left out, because they have no patient", "".join(capsys.readouterr()))
    assert found
    assert 6 <= int(found[1]) <= 12  # those that would be trained on
    clients = json.loads((run.path / "split.json").read_text())["clients"]
    assert sum(one["rows"] for one in clients.values()) == 60 - int(found[1])


@pytest.mark.parametrize(
    "changes",
    [
        {"fed_alg": "scaffold"},
        {"fed_alg": "fedadam"},
        {"fed_alg": "ditto"},
        {"fed_alg": "fedbuff"},
        {"fed_alg": "fednova"},
        {"fed_alg": "central"},
        {"fed_alg": "fedsgd", "max_steps": 1},
        {"codec": "int4"},
        {"lora_aggregation": "ffa"},
        {"lora_aggregation": "svd"},
        {"use_peft": False},
        {"use_peft": False, "prompt_method": "soft", "template": "alpaca"},
        {"max_steps": -1},
        {"personal_steps": 1},
    ],
    ids=str,
)
def test_all_that_learns_by_gradients_works(private, changes):
    run = weft.train(private | changes)
    assert run.summary["rounds"] == 2
    assert run.summary["privacy"]["epsilon"] > 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"privacy_unit": "pateint"}, "patient"),
        ({"target_epsilon": 0.1}, "One round with a noise_multiplier of 1 spends an epsilon of"),
        ({"few_shot": 1}, "leave out --few_shot"),
        ({"best_metric": "loss"}, "which clients do not report under a budget of privacy"),
        ({"dtype": "float16"}, "write --dtype bfloat16"),
        ({"gradient_checkpointing": True}, "leave out --gradient_checkpointing"),
        ({"clip_norm": "adaptive"}, "write a number, such as --clip_norm 1."),
        ({"noise_at": "client"}, "privacy_unit is row"),
        ({"max_rows_per_unit": 2}, "write --privacy_unit COLUMN"),
        ({"fed_alg": "fedkseed"}, "learns without gradients"),
        ({"cluster": 2}, "leave out --cluster"),
        ({"client_weight": "gain"}, "write --client_weight size"),
        ({"objective": "grpo", "reward": ["length"], "max_new_tokens": 4}, "no loss of single rows"),
    ],
)
def test_what_cannot_be_is_refused(private, given, words):
    with pytest.raises(ConfigError) as caught:
        weft.train(private | given)
    assert words in str(caught.value)
    assert not Path(private["output_dir"]).exists()
