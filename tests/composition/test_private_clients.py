"""Runs that protect clients: what they spend, when they end, and what they are without noise."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import weft
from support.flags import flags
from support.kills import in_a_child
from support.results import events, same_values, weights
from weft.cli import main
from weft.core.secret import FILE, Secret
from weft.errors import ConfigError
from weft.federation.sampling import Selection
from weft.pages.report import write_report
from weft.privacy.accounting import Sampling, epsilon
from weft.privacy.ledger import Ledger
from weft.runs import checkpoint
from weft.runs.layout import RunDir
from weft.runs.start import LEDGER

pytest.importorskip("dp_accounting")


@pytest.fixture
def private(keys) -> dict[str, object]:
    """The keys of a run of seconds that protects its clients."""
    own = {"privacy_unit": "client", "noise_multiplier": 1.0, "num_clients": 6, "sample_clients": 3, "num_rounds": 3}
    return keys | own | {"max_steps": 1, "eval_every": 0}


def distance(one, two) -> float:
    left, right = weights(one), weights(two)
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def test_without_noise_and_with_an_infinite_bound_the_run_is_the_plain_one(private, tmp_path: Path):
    plain = {key: value for key, value in private.items() if key not in ("privacy_unit", "noise_multiplier")}
    everybody = {"sample_clients": 6, "client_weight": "uniform"}
    one = weft.train(plain | everybody | {"output_dir": str(tmp_path / "plain")})
    off = {"noise_multiplier": 0, "clip_norm": float("inf"), "output_dir": str(tmp_path / "off")}
    two = weft.train(private | everybody | off)
    assert distance(one, two) < 1e-6
    # The control: a small bound makes another model.
    bound = weft.train(private | everybody | off | {"clip_norm": 1e-4, "output_dir": str(tmp_path / "bound")})
    assert distance(one, bound) > 1e-4


def test_every_round_tells_what_is_spent_and_the_summary_the_whole_guarantee(private):
    run = weft.train(private | {"clip_norm": 0.1, "client_sampling": "poisson", "target_delta": 1e-3})
    lines = events(run)
    spent = [epsilon(Sampling.poisson(0.5), 1.0, rounds, 1e-3) for rounds in (1, 2, 3)]
    assert [line["epsilon"] for line in lines] == pytest.approx(spent)
    # Who was chosen by the secret is nowhere, and neither are statistics of the clients' rows.
    assert all(line["clients"] == [] and line["train_loss"] is None and line["tokens"] == 0 for line in lines)
    assert not events(run, "eval")
    said = run.summary["privacy"]
    assert said["epsilon"] == lines[-1]["epsilon"]
    assert (said["unit"], said["delta"], said["releases"]) == ("client", 1e-3, 3)
    assert "coin" in said["sampling"]
    assert "trusted" in said["protects_against"]
    assert len(said["not_covered"]) >= 3


def test_the_run_ends_before_it_exceeds_the_target_and_keeps_its_results(private, capsys):
    everybody = private | {"sample_clients": 6, "num_rounds": 50}
    target = (epsilon(Sampling("full"), 1.0, 2, 1e-5) + epsilon(Sampling("full"), 1.0, 3, 1e-5)) / 2
    assert main(["sft", *flags(everybody | {"target_epsilon": target})]) == 0
    said = capsys.readouterr()
    assert "The budget is spent: after 2 rounds epsilon is" in said.out + said.err
    run = weft.open_run(everybody["output_dir"])
    assert len(events(run)) == 2
    assert run.summary["privacy"]["epsilon"] <= target
    assert weights(run)


def test_the_target_alone_sets_the_noise_for_all_rounds(private):
    run = weft.train(private | {"noise_multiplier": None, "target_epsilon": 8, "clip_norm": 0.5})
    assert 7.9 < events(run)[-1]["epsilon"] <= 8
    assert run.summary["privacy"]["target_epsilon"] == 8


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"clip_norm": 0.1, "fed_alg": "scaffold"},
        {"client_sampling": "poisson", "fed_alg": "fedadam"},
        {"noise_at": "client", "min_clients": 3},
    ],
    ids=str,
)
def test_a_resumed_run_ends_bit_identical_and_its_rounds_are_paid_for_once(private, tmp_path: Path, how):
    run = weft.train(private | how | {"save_model_freq": 1})
    ledger = (run.path / LEDGER).read_bytes()
    assert ledger.count(b"\n") == 3
    assert (run.path / FILE).stat().st_mode & 0o777 == 0o600
    copy = tmp_path / "again"
    shutil.copytree(run.path, copy)
    for round in ("round_000002", "round_000003"):
        shutil.rmtree(copy / "checkpoints" / round)
    again = weft.train(private | how | {"save_model_freq": 1, "output_dir": str(copy)}, resume=True)
    assert same_values(weights(again), weights(run))
    assert (copy / "metrics.jsonl").read_bytes() == (run.path / "metrics.jsonl").read_bytes()
    assert (copy / LEDGER).read_bytes() == ledger


def test_a_round_that_is_run_again_with_other_updates_is_paid_for_again_and_has_other_noise(private, tmp_path: Path):
    """As at sites, where who answers after a crash is chance: the difference of both sums tells nothing."""
    everybody = private | {"sample_clients": 6, "clip_norm": 0.1, "num_rounds": 1, "save_model_freq": 1}
    run = weft.train(everybody)
    copy = tmp_path / "again"
    shutil.copytree(run.path, copy)
    shutil.rmtree(copy / "checkpoints")
    other = {"output_dir": str(copy), "learning_rate": 1.1e-3}
    (copy / "config.yaml").write_text(
        (copy / "config.yaml").read_text().replace("\nlearning_rate: 0.001\n", "\nlearning_rate: 0.0011\n")
    )
    again = weft.train(everybody | other, resume=True)
    entries = [json.loads(line) for line in (copy / LEDGER).read_text().splitlines()]
    assert [entry["round"] for entry in entries] == [1, 1]
    assert entries[0]["release"] != entries[1]["release"]
    assert again.summary["privacy"]["epsilon"] == pytest.approx(epsilon(Sampling("full"), 1.0, 2, 1e-5))
    # With the same noise both models would be near each other: updates have a norm of 0.1, and 6 are averaged.
    assert distance(run, again) > 0.02


def test_a_ledger_that_was_changed_by_hand_is_refused(private):
    run = weft.train(private | {"save_model_freq": 1})
    file = run.path / LEDGER
    whole = file.read_bytes()
    for changed in (
        whole.replace(b'"round": 1', b'"round": 9'),
        b"".join(whole.splitlines(keepends=True)[:1]),
        b"".join(reversed(whole.splitlines(keepends=True))),
        b"",
    ):
        file.write_bytes(changed)
        with pytest.raises(ConfigError, match=r"The ledger .* was changed by hand"):
            weft.train(private | {"save_model_freq": 1, "num_rounds": 5}, resume=True)
    file.write_bytes(whole)
    assert weft.train(private | {"save_model_freq": 1, "num_rounds": 4}, resume=True).summary["rounds"] == 4


@pytest.mark.parametrize("unit", ["client", "row"])
def test_a_ledger_that_is_gone_or_was_put_back_from_an_earlier_round_is_refused(private, capsys, unit: str):
    """With its head: the chain fits, but the run has released more than it says."""
    one = private | {"privacy_unit": unit, "save_model_freq": 1, "clip_norm": 0.1}
    run = weft.train(one)
    ledger = Ledger(run.path / LEDGER)
    whole, head = ledger.file.read_bytes(), ledger.head.read_bytes()
    first = whole.splitlines(keepends=True)[0]
    for content, lacks in ((None, 1), (first, 2)):
        ledger.file.unlink(missing_ok=True)
        ledger.head.unlink(missing_ok=True)
        if content is not None:
            ledger.file.write_bytes(content)
            ledger.head.write_text(json.loads(content)["chain"] + "\n")
        with pytest.raises(
            ConfigError, match=rf"has released 3 rounds, and its ledger .* lacks round {lacks}, so nobody"
        ):
            weft.train(one | {"num_rounds": 5}, resume=True)
        capsys.readouterr()
        assert main(["privacy", str(run.path)]) == 2
        assert f"lacks round {lacks}" in capsys.readouterr().err
    ledger.file.write_bytes(whole)
    ledger.head.write_bytes(head)
    assert weft.train(one | {"num_rounds": 4}, resume=True).summary["privacy"]["releases"] % 4 == 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"privacy_args": {"initial": 0}}, "initial in privacy_args is 0, and the bound follows"),
        ({"privacy_args": {"quantile": 2}}, "write quantile=0.5."),
        ({"privacy_args": {"rate": -1}}, "write rate=0.2."),
        ({"privacy_args": {"rate": 1e9}}, "write rate=0.2."),
        ({"noise_multiplier": None}, "write --target_epsilon 8, or --noise_multiplier 1."),
        ({"target_epsilon": 0}, "target_epsilon"),
        ({"target_delta": 1}, "target_delta"),
        ({"noise_multiplier": 0, "target_epsilon": 1}, "a run without noise has no epsilon"),
        ({"noise_multiplier": 0.5, "target_epsilon": 1}, "One round with a noise_multiplier of 0.5 spends"),
        ({"clip_norm": 0}, "so that nothing is learnt"),
        ({"noise_multiplier": float("inf")}, "write a number from 0.001 to 1e+06, such as 1"),
        ({"noise_multiplier": 1e-300}, "write a number from 0.001 to 1e+06, such as 1"),
        ({"clip_norm": float("inf")}, "the noise, which is a multiple of it, is too"),
        ({"privacy": "gaussian", "privacy_unit": "none", "noise_multiplier": None}, "leave out --privacy, and write"),
        ({"noise_at": "client"}, "add --min_clients N, or write --noise_at server."),
        ({"client_sampling": "poisson", "over_selection": 0.5}, "a cohort has the size that chance gives it"),
        ({"fed_alg": "fedbuff"}, "FedBuff mixes updates of several rounds"),
        ({"fed_alg": "fednova"}, "which the noise of Gaussian would drown"),
        ({"cluster": 2}, "leave out --cluster"),
        ({"lora_aggregation": "svd"}, "averages products"),
        ({"client_weight": "minimax"}, "keeps from the server"),
        ({"codec": "int8"}, "bounds the norm of every update"),
        ({"max_update_norm": 3}, "leave out --max_update_norm"),
        ({"over_selection": 0.5}, "leave out --over_selection"),
        ({"fed_alg": "local"}, "sends no updates"),
        ({"fed_alg": "central"}, "leave out"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(private, tmp_path: Path, given, words):
    with pytest.raises(ConfigError) as caught:
        weft.train(private | given)
    assert words in str(caught.value)
    assert not Path(private["output_dir"]).exists()


def test_the_whole_guarantee_is_printed_of_a_run_and_stands_in_its_report_and_card(private, capsys):
    run = weft.train(private | {"clip_norm": 0.1, "client_sampling": "poisson"})
    assert main(["privacy", str(run.path)]) == 0
    said = capsys.readouterr().out
    for words in ("protected unit", "client", "neighbouring data", "is trusted", "a coin of its own", "not covered"):
        assert words in said
    assert main(["privacy", str(run.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == run.summary["privacy"]
    assert main(["privacy", str(run.path), "--json", "--delta", "1e-3"]) == 0
    assert json.loads(capsys.readouterr().out)["epsilon"] < run.summary["privacy"]["epsilon"]
    assert "<h2>Privacy</h2>" in write_report(run.path).read_text(encoding="utf-8")
    card = next(run.path.glob("*/README.md")).read_text(encoding="utf-8")
    assert "at delta 1e-05 for a client" in card


def test_a_run_without_a_budget_has_no_guarantee_to_print(keys, capsys):
    run = weft.train(keys | {"num_rounds": 1, "max_steps": 1})
    assert main(["privacy", str(run.path)]) == 2
    assert "a run has one with --privacy_unit" in capsys.readouterr().err


def test_the_plan_says_what_signal_is_left_and_what_would_help(private, capsys):
    """Three hospitals at client level are hopeless, and it is said before anybody trains."""
    hospitals = private | {"num_clients": 3, "sample_clients": 3, "target_epsilon": 1}
    del hospitals["noise_multiplier"]
    assert main(["sft", *flags(hospitals), "--dry_run"]) == 0
    said = capsys.readouterr()
    line = next(line for line in said.out.splitlines() if line.startswith("privacy"))
    trained = int(next(line for line in said.out.splitlines() if line.startswith("trained")).split()[1])
    noise = float(line.split("noise_multiplier ")[1].split(";")[0])
    ratio = float(line.split("the noise has ")[1].split()[0])
    assert ratio == pytest.approx(noise * trained**0.5 / 3, rel=0.01)
    assert ratio > 10
    told = said.out + said.err
    assert "so nothing will be learnt" in told
    assert "--lora_aggregation ffa" in told
    assert "more clients in a round" in told
    assert "next to nothing" not in told
    weft.train(hospitals | {"num_rounds": 1}, quiet=False)
    told = capsys.readouterr()
    assert "so nothing will be learnt" in told.out + told.err


def test_a_delta_above_one_in_the_units_is_warned_of(private, capsys):
    weft.train(private | {"target_delta": 0.5, "lora_aggregation": "ffa", "noise_multiplier": 0.01}, quiet=False)
    told = "".join(capsys.readouterr())
    assert "more than 1 / 6 units" in told
    assert "write --target_delta 0.1 or less" in told
    assert "promises next to nothing: the odds of a guess about one client may change by a factor of e^" in told
    assert "nothing will be learnt" not in told
    assert "which freezes A" not in told


@pytest.mark.parametrize(
    "changes",
    [
        {"fed_alg": "fedavgm"},
        {"fed_alg": "fedprox"},
        {"fed_alg": "fedyogi"},
        {"fed_alg": "feddyn"},
        {"fed_alg": "diloco"},
        {"fed_alg": "ditto"},
        {"fed_alg": "fedsgd", "batch_size": 2},
        {"fed_alg": "fedkseed", "use_peft": False, "fed_args": {"seeds": 64}},
        {"lora_aggregation": "ffa"},
        {"lora_aggregation": "fedsa"},
        {"lora_aggregation": "rolora"},
        {"lora_aggregation": "fedsb"},
        {"lora_aggregation": "merge", "lora_merge_every": 2},
        {"use_peft": False},
        {"use_peft": False, "prompt_method": "soft", "template": "alpaca"},
        {"codec_down": "bf16"},
        {"client_speed": [1, 0.5], "max_steps": 2},
        {"client_failure_rate": 0.4, "client_sampling": "poisson"},
        {"personal_steps": 1},
    ],
    ids=str,
)
def test_all_that_steps_from_the_sum_works_and_every_change_comes_from_noise(private, tmp_path: Path, changes):
    """Another secret gives another model; the same run without noise is the control."""
    loud = {"noise_multiplier": 3.0, "clip_norm": 0.5, "num_rounds": 2}
    runs = [weft.train(private | changes | loud | {"output_dir": str(tmp_path / name)}) for name in ("a", "b")]
    assert distance(*runs) > 1e-3
    assert all(line["epsilon"] > 0 for line in events(runs[0]))
    # No score of anybody's rows, of personal models either.
    assert not any(value for value in runs[0].summary["eval"].values())
    assert not runs[0].summary["models"]
    assert not runs[0].summary["clients"]
    quiet = loud | {"noise_multiplier": 0, "sample_clients": 6, "client_sampling": "uniform"}
    runs = [weft.train(private | changes | quiet | {"output_dir": str(tmp_path / name)}) for name in ("c", "d")]
    assert distance(*runs) == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_a_run_that_is_killed_at_any_point_never_counts_too_little(private, tmp_path: Path, monkeypatch):
    """The server dies before and after flushes and renames; then the run goes on, and ends with the same bits."""
    monkeypatch.setattr(os, "urandom", lambda count: bytes(range(count)))
    one = private | {"clip_norm": 0.1, "save_model_freq": 1, "checkpoint_seconds": 0}
    whole = weft.train(one | {"output_dir": str(tmp_path / "whole")})
    spent = [line["epsilon"] for line in events(whole)]
    killed = 0
    for kill_at in range(3, 400, 31):
        folder = tmp_path / f"killed{kill_at}"
        mine = one | {"output_dir": str(folder)}
        if in_a_child(lambda mine=mine: weft.train(mine), kill_at=kill_at) == 0:
            break
        killed += 1
        committed = len(events(weft.open_run(folder))) if (folder / "metrics.jsonl").exists() else 0
        assert len(Ledger(folder / LEDGER).entries) >= committed
        again = weft.train(mine, resume=(folder / "config.yaml").exists())
        assert [line["epsilon"] for line in events(again)] == spent
        assert same_values(weights(again), weights(whole))
        assert len(Ledger(folder / LEDGER).entries) == 3
    assert killed >= 4


def test_noise_and_cohorts_follow_from_the_servers_secret_and_from_nothing_else(private, tmp_path: Path, monkeypatch):
    """Whoever has the configuration, the data and the state of all clients gets others, without the 32 bytes."""
    cohorts: list[list[int]] = []
    choose = Selection.cohort

    def spy(self, *words, **names):
        cohorts.append(choose(self, *words, **names))
        return cohorts[-1]

    monkeypatch.setattr(Selection, "cohort", spy)
    many = {"num_clients": 40, "sample_clients": 20, "client_sampling": "poisson", "clip_norm": 0.1}
    one = private | many | {"num_rounds": 2, "save_model_freq": 1}
    run = weft.train(one)
    seen = cohorts.copy()
    outcomes = {}
    for name in ("all but the secret", "all"):
        copy = tmp_path / name
        shutil.copytree(run.path, copy)
        shutil.rmtree(copy / "checkpoints")
        if name == "all but the secret":
            (copy / FILE).unlink()
        cohorts.clear()
        again = weft.train(one | {"output_dir": str(copy)}, resume=True)
        outcomes[name] = (cohorts == seen, distance(run, again))
    assert outcomes["all"] == (True, 0.0)
    same_cohorts, change = outcomes["all but the secret"]
    assert not same_cohorts
    assert change > 1e-3
    # A cohort of the seed would be this one: it is not.
    by_seed = Selection(int(run.config.seed), 20, poisson=True)
    assert choose(by_seed, [str(n) for n in range(40)], 0, 0, 0) != seen[0]
    # Nothing that is written down names them.
    names = {f"client_{n}" for n in range(40)}
    for file in ("metrics.jsonl", "timing.jsonl", LEDGER):
        assert not any(f'"{name}"' in (run.path / file).read_text() for name in names)
    assert run.summary["failures"] == {}


def test_poisson_cohorts_have_the_size_that_chance_gives_them_and_may_be_empty():
    secret = Secret(bytes(32))
    names = [str(number) for number in range(50)]
    for source in (None, lambda: secret):
        chosen = [Selection(7, 5, poisson=True, secret=source).cohort(names, round, 0, round) for round in range(400)]
        sizes = [len(cohort) for cohort in chosen]
        assert sum(sizes) / 400 == pytest.approx(5, rel=0.1)
        assert min(sizes) < 2
        assert max(sizes) > 9
        counts = [sum(client in cohort for cohort in chosen) for client in range(50)]
        assert min(counts) > 15
        assert max(counts) < 70
    fixed = Selection(7, 5, secret=lambda: secret)
    assert {len(fixed.cohort(names, round, 0, round)) for round in range(50)} == {5}
    assert fixed.cohort(names, 3, 0, 3) != fixed.cohort(names, 3, 1, 4)


def test_a_round_without_anybody_has_noise_and_is_paid_for(private, monkeypatch):
    monkeypatch.setattr(Selection, "cohort", lambda self, *words, **names: [])
    run = weft.train(private | {"clip_norm": 0.1, "client_sampling": "poisson", "num_rounds": 2, "save_model_freq": 1})
    assert run.summary["privacy"]["releases"] == 2
    state = checkpoint.latest(RunDir(run.path), print)[0]
    start = checkpoint.at(RunDir(run.path), 1)
    moved = [float((state.params[name] - start.params[name]).std()) for name in state.params]
    # z C over the expected cohort of 3.
    assert sum(moved) / len(moved) == pytest.approx(0.1 / 3, rel=0.05)


@pytest.mark.slow
def test_the_rounds_that_the_noise_was_solved_for_cannot_be_changed(private):
    """Else the same sum would get the same numbers in another size: from two such releases follows the sum."""
    one = {key: value for key, value in private.items() if key != "noise_multiplier"} | {"target_epsilon": 8}
    weft.train(one | {"save_model_freq": 1})
    with pytest.raises(ConfigError, match="num_rounds was 3 and is now 5"):
        weft.train(one | {"save_model_freq": 1, "num_rounds": 5}, resume=True)
    # With a noise that is given, more rounds go on until the target is reached.
    both = private | {"target_epsilon": 100, "save_model_freq": 1, "output_dir": f"{private['output_dir']}-2"}
    weft.train(both)
    assert weft.train(both | {"num_rounds": 5}, resume=True).summary["rounds"] == 5
