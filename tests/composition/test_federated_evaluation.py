"""Federated evaluation as a run of its own: clients score a model on rows of theirs, and nothing is trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import weft
from support.fake_sites import NAMES, FakeSites, train_here
from support.results import weights
from weft.config import build
from weft.core.types import Probe, ProtectionRequest, Task, Undo
from weft.errors import ConfigError, RunError
from weft.sites.agreement import refusal
from weft.sites.bounds import Bounds
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
