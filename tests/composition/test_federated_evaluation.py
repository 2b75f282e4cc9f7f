"""Federated evaluation as a run of its own: clients score a model on rows of theirs, and nothing is trained."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import weft
from support.fake_sites import NAMES, FakeSites, train_here
from support.results import weights
from support.rows import colour_rows, write_rows
from weft.cli import main
from weft.config import build
from weft.core.types import Probe, ProtectionRequest, Task, Undo
from weft.errors import ConfigError, RunError
from weft.launch import compose
from weft.sites.agreement import refusal
from weft.sites.bounds import Bounds
from weft.sites.requests import Refused
from weft.sites.run_state import former_run
from weft.sites.server import serve


def records(run: weft.Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def test_a_run_of_no_rounds_evaluates_the_model_that_it_would_begin_from(keys, tmp_path: Path):
    keys |= {"choices": ["red", "green", "blue"], "eval_fraction": 0.3}
    run = weft.train(keys | {"num_rounds": 0})
    (record,) = records(run)
    assert (record["event"], record["round"]) == ("eval", 0)
    assert set(record["groups"]["loss"]) == {"mean", "worst", "worst_client", "spread", "jain"}
    assert run.summary["rounds"] == 0
    assert run.summary["eval"]["loss"] == record["loss"]
    # A step of length 0 leaves the model as it is, so that the evaluation after it is the same.
    still = weft.train(keys | {"num_rounds": 1, "learning_rate": 0.0, "output_dir": str(tmp_path / "still")})
    after = records(still)[-1]
    assert record == after | {"round": 0}
    trained = weft.train(keys | {"num_rounds": 1, "output_dir": str(tmp_path / "trained")})
    assert records(trained)[-1]["loss"] != record["loss"]


def test_a_run_of_no_rounds_goes_on_as_if_it_had_begun_with_rounds(keys, tmp_path: Path):
    weft.train(keys | {"num_rounds": 0})
    one = weft.train(keys | {"num_rounds": 2}, resume=True)
    other = weft.train(keys | {"num_rounds": 2, "output_dir": str(tmp_path / "other")})
    assert [line for line in records(one) if line["round"]] == records(other)
    assert all(value.equal(weights(other)[name]) for name, value in weights(one).items())


WITHOUT_ROUNDS: list[tuple[dict[str, Any], str]] = [
    ({"personal_steps": 2}, "num_rounds is 0"),
    ({"best_metric": "loss"}, "num_rounds is 0"),
    ({"eval_fraction": 0.0}, "no client has held-out rows"),
    ({"num_rounds": 2, "evaluated_run": "first"}, "add --num_rounds 0"),
]


@pytest.mark.parametrize(("changes", "words"), WITHOUT_ROUNDS, ids=["steps", "best", "rows", "run"])
def test_what_needs_rounds_or_rows_is_refused_and_leaves_nothing(keys, changes: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        weft.train(keys | {"num_rounds": 0} | changes)
    assert not Path(keys["output_dir"]).exists()


def test_sites_evaluate_as_one_process_does_and_train_nothing(run, sites: FakeSites, tmp_path: Path):
    given = run | {"num_rounds": 0}
    there = serve(given, sites, list(NAMES), "1")
    here = train_here(given, sites, tmp_path)
    assert (there.path / "metrics.jsonl").read_bytes() == (here.path / "metrics.jsonl").read_bytes()
    (record,) = records(there)
    assert set(record["clients"]) == set(NAMES)
    from weft.core.wire import unpack

    sent = [unpack(raw, run="run", max_tensors=1 << 20) for _, raw in sites.asked if raw and raw[:1] != b"{"]
    assert {type(message) for message in sent} == {Probe}
    assert not any(message.export for message in sent)  # a model that was not trained is delivered to nobody
    assert not list((tmp_path / "work").rglob("*model.safetensors"))


def test_sites_evaluate_the_model_of_an_earlier_run(run, sites: FakeSites, tmp_path: Path):
    first = serve(run | {"num_rounds": 2, "output_dir": str(tmp_path / "runs" / "first")}, sites, list(NAMES), "1")
    given = run | {"num_rounds": 0, "output_dir": str(tmp_path / "runs" / "second")}
    again = serve(given | {"evaluated_run": "first"}, sites, list(NAMES), "1")
    assert records(again)[-1] == records(first)[-1] | {"round": 0}
    begin = serve(given | {"output_dir": str(tmp_path / "runs" / "third")}, sites, list(NAMES), "1")
    assert records(begin)[-1]["loss"] != records(again)[-1]["loss"]  # the control: without it, the starting model
    for changes, words in (
        ({"evaluated_run": "none"}, "no run 'none'"),
        ({"evaluated_run": "../first"}, "no name of a run"),
        ({"evaluated_run": "first", "peft_lora_r": 4}, "another shape"),
    ):
        with pytest.raises(ConfigError, match=words):
            serve(given | changes | {"output_dir": str(tmp_path / "runs" / "fourth")}, sites, list(NAMES), "1")
        assert not (tmp_path / "runs" / "fourth").exists()


def test_a_site_may_refuse_evaluations_alone(run, sites: FakeSites):
    policy = sites.policies[NAMES[0]]
    strict = policy.model_copy(update={"accept": policy.accept.model_copy(update={"evaluations": False})})
    why = refusal(strict, build(run | {"num_rounds": 0}), 3)
    assert "trains nothing" in str(why)
    assert refusal(strict, build(run), 3) is None
    assert refusal(policy, build(run | {"num_rounds": 0}), 3) is None
    sites.policies[NAMES[0]] = strict
    sites.begin(NAMES[0])
    done = serve(run | {"num_rounds": 0}, sites, list(NAMES), "1")
    assert set(records(done)[0]["clients"]) == set(NAMES[1:])


def test_a_site_that_agreed_to_an_evaluation_answers_nothing_else(run, tmp_path: Path):
    bounds = Bounds(tmp_path / "work.json", build(run | {"num_rounds": 0}))
    probe = Probe("a", 0, {})
    assert bounds.refusal(probe) is None
    for message in (Task("a", 0, 0, {}), Undo("a", 0), ProtectionRequest("a", 0, "keys"), Probe("a", 1, {})):
        assert "agreed to 0 rounds" in str(bounds.refusal(message))
    assert "no result" in str(bounds.refusal(replace(probe, export=True)))
    for _ in range(40):
        assert bounds.refusal(probe) is None
        with bounds.work(probe):
            pass
    assert "40 times, which is all" in str(bounds.refusal(probe))
    assert Bounds(tmp_path / "other.json", build(run)).refusal(Task("a", 0, 0, {})) is None


def test_where_no_site_can_be_evaluated_the_run_fails(run, sites: FakeSites, monkeypatch: pytest.MonkeyPatch):
    def nobody(*_: object, **__: object) -> str:
        return "is busy"

    monkeypatch.setattr(Bounds, "refusal", nobody)
    with pytest.raises(RunError, match=r"No client could be evaluated .*is busy"):
        serve(run | {"num_rounds": 0}, sites, list(NAMES), "1")


def evaluated(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """What `weft evaluate --federated --json` prints."""
    capsys.readouterr()
    assert main(["evaluate", *map(str, words), "--federated", "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize("changes", [{"personal_steps": 2}, {"fed_alg": "ditto"}, {"fed_alg": "central"}])
def test_a_run_is_evaluated_again_as_at_its_end(people, changes, capsys, monkeypatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    run = weft.train(people | changes)
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file() and "jsonl" in file.name}
    found = evaluated(capsys, run.path)
    if "fed_alg" not in changes or changes["fed_alg"] == "central":  # of ditto, the rounds score personal models
        assert found["shared"] == records(run)[-1]
    if models := run.summary["models"]:
        assert {name: one["loss"] for name, one in found["own"]["clients"].items()} == {
            name: one["own"]["loss"] for name, one in models["clients"].items()
        }
        assert found["own"]["groups"]["loss"] == models["groups"]["own"]["loss"]
        assert found["shared"]["loss"] == models["shared"]["loss"]
    else:
        assert list(found) == ["shared"]
    assert {file: file.read_bytes() for file in before} == before
    kept = json.loads((run.path / "evaluation" / "federated" / "end.json").read_text())
    assert kept["shared"] == found["shared"]


def test_a_round_of_a_run_and_other_rows(people, capsys, monkeypatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    run = weft.train(people | {"save_model_freq": 1, "eval_every": 1})
    second = next(line for line in records(run) if line["event"] == "eval" and line["round"] == 2)
    assert evaluated(capsys, run.path, "--round", 2)["shared"] == second
    assert evaluated(capsys, run.path)["shared"] == records(run)[-1]
    new = write_rows(tmp_path / "new.jsonl", colour_rows(12, 7))
    words = (run.path, "--clients", f"ward_d={new}", "--eval_fraction", "0.5")
    assert main(["evaluate", *map(str, words), "--federated"]) == 2  # the file holds the scores of other rows
    assert "--overwrite" in capsys.readouterr().err
    other = evaluated(capsys, *words, "--output_dir", tmp_path / "elsewhere")["shared"]
    assert list(other["clients"]) == ["ward_d"]
    assert other["rows"] == 6
    assert "groups" not in other  # of one client nothing is unequal
    # The rows of a client that was there have changed since.
    write_rows(Path(people["clients"][0]["data"]), colour_rows(30, 11))
    assert main(["evaluate", str(run.path), "--federated"]) == 2
    assert "changed since" in capsys.readouterr().err
    assert evaluated(capsys, run.path, "--accept_changed")["shared"]["loss"] != records(run)[-1]["loss"]


def test_a_model_and_an_adapter_are_evaluated_at_clients(people, capsys, monkeypatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    run = weft.train(people | {"personal_steps": 2})
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(people | {"personal_steps": 2, "prompt_length": 100, "output_dir": "not_here"}))
    adapter = evaluated(capsys, run.path / "adapter", "--config", file)["shared"]
    assert adapter == records(run)[-1] | {"round": 0}
    base = evaluated(capsys, people["model_name_or_path"], "--config", file, "--output_dir", "base")["shared"]
    assert base["loss"] != adapter["loss"]
    start = weft.train(people | {"num_rounds": 0, "output_dir": "start"})
    assert base == records(start)[0]
    assert not Path("not_here").exists()
    assert main(["evaluate", str(people["model_name_or_path"]), "--federated", "--config", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "The shared model, at its clients: 36 rows of 3 clients" in shown
    assert "Jain's index" in shown
    assert main(["compare", "base", "start"]) == 0
    assert main(["evaluate", str(people["model_name_or_path"]), "--federated", "--config", str(file)]) == 2
    assert "replace them by --overwrite" in capsys.readouterr().err


WRONG = [
    (["MODEL"], "No data is named"),
    (["MODEL", "--config", "none.yaml"], "none.yaml"),
    (["MODEL", "--learning_rate", "1"], "no effect on the evaluation of a model"),
    (["MODEL", "--round", "1"], "no run's directory"),
    (["MODEL", "--tasks", "tfns"], "There is no flag or argument '--tasks'"),
    (["MODEL", "--clients", "a=none.jsonl", "--seq_length", "128"], "none.jsonl"),
    ([], "No model or run is named"),
    (["RUN", "--seq_length", "5"], "no effect on the evaluation of a run"),
    (["RUN", "--config", "RUN/config.yaml"], "leave --config out"),
    (["RUN", "--round", "7"], "no checkpoint of round 7"),
    (["RUN", "--eval_fraction", "0"], "nothing to evaluate on"),
]


def test_what_cannot_be_evaluated_is_refused_in_a_sentence(people, capsys, monkeypatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    run = weft.train(people | {"num_rounds": 1})
    names = {"MODEL": str(people["model_name_or_path"]), "RUN": str(run.path)}
    for words, reason in WRONG:
        given = [names.get(word, word.replace("RUN/", f"{run.path}/")) for word in words]
        capsys.readouterr()
        assert main(["evaluate", *given, "--federated"]) == 2, words
        assert reason in capsys.readouterr().err, words
        assert not Path("evaluations").exists(), words
        assert not (run.path / "evaluation").exists(), words


def test_a_run_of_sites_is_evaluated_where_its_rows_are(run, sites: FakeSites, capsys, tmp_path: Path):
    done = serve(run | {"num_rounds": 1}, sites, list(NAMES), "1")
    assert main(["evaluate", str(done.path), "--federated"]) == 2
    assert "weft submit RUN.yaml --num_rounds 0 --evaluated_run NAME" in capsys.readouterr().err
    rows = sites.policies[NAMES[0]].data.path
    found = evaluated(capsys, done.path, "--clients", f"{NAMES[0]}={rows}")
    assert found["shared"]["clients"][NAMES[0]] == records(done)[-1]["clients"][NAMES[0]]


@pytest.mark.parametrize("own", [{"fed_alg": "ditto"}, {"share": ["lora_A"]}], ids=["ditto", "share"])
def test_sites_score_the_own_models_that_they_keep_of_an_earlier_run(
    run, sites: FakeSites, tmp_path: Path, own, capsys
):
    first = serve(run | own | {"output_dir": str(tmp_path / "runs" / "first")}, sites, list(NAMES), "1")
    given = run | {"num_rounds": 0, "evaluated_run": "first"}
    again = serve(given | own | {"output_dir": str(tmp_path / "runs" / "own")}, sites, list(NAMES), "1")
    assert records(again)[-1] == records(first)[-1] | {"round": 0}
    (sites.folder / NAMES[0] / "first").rename(tmp_path / "lost")
    part = serve(given | own | {"output_dir": str(tmp_path / "runs" / "part")}, sites, list(NAMES), "1")
    assert records(part)[-1]["clients"] == {
        name: scores for name, scores in records(first)[-1]["clients"].items() if name != NAMES[0]
    }
    noted = said(capsys)
    assert f"the client '{NAMES[0]}' was not evaluated: " in noted
    assert "has no model of its own of the run 'first'" in noted
    if "share" in own:
        return
    shared = serve(given | {"output_dir": str(tmp_path / "runs" / "shared")}, sites, list(NAMES), "1")
    assert records(shared)[-1]["loss"] != records(again)[-1]["loss"]  # the control
    assert "of the run 'first' the shared model is scored, and not the clients' own" in said(capsys)


def test_own_models_of_a_run_that_has_none_are_not_asked_for(run, sites: FakeSites, tmp_path: Path):
    serve(run | {"num_rounds": 1, "output_dir": str(tmp_path / "runs" / "first")}, sites, list(NAMES), "1")
    given = run | {"num_rounds": 0, "evaluated_run": "first", "fed_alg": "ditto"}
    with pytest.raises(
        ConfigError, match=r"left its clients no models of their own to score: leave out --fed_alg ditto"
    ):
        serve(given | {"output_dir": str(tmp_path / "runs" / "no")}, sites, list(NAMES), "1")
    assert not (tmp_path / "runs" / "no").exists()


def said(capsys: pytest.CaptureFixture[str]) -> str:
    shown = capsys.readouterr()
    return shown.out + shown.err


def test_own_models_are_scored_of_the_very_run_and_not_of_another_of_its_name(
    run, sites: FakeSites, tmp_path: Path, capsys
):
    """A run that was begun anew has the same name: its shared model with own models of the old one is nobody's."""
    ditto = run | {"fed_alg": "ditto", "num_rounds": 1, "output_dir": str(tmp_path / "runs" / "first")}
    serve(ditto, sites, list(NAMES), "1")
    kept = sites.folder / NAMES[0] / "first"
    shutil.copytree(kept, tmp_path / "old")
    shutil.rmtree(tmp_path / "runs" / "first")
    serve(ditto | {"seed": 5}, sites, list(NAMES), "1")
    shutil.rmtree(kept)
    shutil.move(tmp_path / "old", kept)  # a site that was away when it was begun anew
    given = run | {"num_rounds": 0, "evaluated_run": "first", "fed_alg": "ditto"}
    done = serve(given | {"output_dir": str(tmp_path / "runs" / "own")}, sites, list(NAMES), "1")
    assert set(records(done)[-1]["clients"]) == set(NAMES[1:])
    assert "what it has kept under the name 'first' is of another run than the server's" in said(capsys)
    # Nor does a resumed evaluation go on with another run of the name.
    shutil.rmtree(tmp_path / "runs" / "first")
    serve(ditto | {"seed": 6}, sites, list(NAMES), "1")
    with pytest.raises(ConfigError, match=r"the run 'first' changed since"):
        serve(given | {"output_dir": str(tmp_path / "runs" / "own")}, sites, list(NAMES), "1", resume=True)


@pytest.mark.parametrize("told", [None, 7, {}, {"birth": 3, "rounds": 1}, {"birth": "x", "rounds": "1"}])
def test_a_handshake_that_does_not_say_which_run_is_evaluated_is_refused(run, tmp_path: Path, told: object):
    config = build(run | {"num_rounds": 0, "evaluated_run": "first", "fed_alg": "ditto"})
    with pytest.raises(Refused, match="does not say which run of the name 'first'"):
        former_run(tmp_path, config, compose.plan(config), told)
