"""Clients that differ: the worst one, the spread and Jain's index; and clients that took no part in the training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import weft
from support.rows import colour_rows, write_rows
from weft.core.fairness import fairness, jain, over_clients
from weft.errors import ConfigError
from weft.evaluation.heldout import ACCURACY, LOSS, PERPLEXITY
from weft.federation.sampling import Selection, arrivals
from weft.pages.report import write_report


def test_numbers_that_were_worked_out_by_hand():
    # Accuracies 1, 1/2 and 0: mean 1/2, deviations 1/2, 0, -1/2: variance 1/6. Jain: (3/2)^2 / (3 * 5/4) = 3/5.
    found = over_clients(ACCURACY, {"a": 1.0, "b": 0.5, "c": 0.0})
    assert found == {
        "mean": pytest.approx(0.5),
        "worst": 0.0,
        "worst_client": "c",
        "spread": pytest.approx((1 / 6) ** 0.5),
        "jain": pytest.approx(0.6),
    }
    # Of a loss the largest is the worst: 1, 2, 3: mean 2, variance 2/3, Jain 36 / (3 * 14).
    found = over_clients(LOSS, {"a": 1.0, "b": 2.0, "c": 3.0})
    assert (found["worst"], found["worst_client"]) == (3.0, "c")
    assert found["spread"] == pytest.approx((2 / 3) ** 0.5)
    assert found["jain"] == pytest.approx(6 / 7)
    # By its definition it is mean^2 / (mean^2 + spread^2).
    assert found["jain"] == pytest.approx(found["mean"] ** 2 / (found["mean"] ** 2 + found["spread"] ** 2))


@pytest.mark.parametrize(
    ("values", "index"),
    [([2.0, 2.0], 1.0), ([1.0, 0.0, 0.0, 0.0], 0.25), ([0.0, 0.0], 1.0), ([1.0, -1.0], None)],
)
def test_jains_index(values: list[float], index: float | None):
    assert jain(values) == index


def test_what_is_not_compared_has_no_numbers():
    clients: dict[str, Any] = {
        "a": {"loss": 1.0, "perplexity": 2.7, "accuracy": None},
        "b": {"loss": 2.0, "perplexity": 7.4, "accuracy": 0.5},
    }
    assert list(fairness([LOSS, PERPLEXITY, ACCURACY], clients)) == ["loss"]
    assert fairness([LOSS], {"a": clients["a"]}) == {}


def evaluations(run: weft.Run) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["event"] == "eval"]


def test_every_mean_over_clients_has_its_worst_client_beside_it(people):
    run = weft.train(people | {"personal_steps": 2})
    last = evaluations(run)[-1]
    losses = {name: one["loss"] for name, one in last["clients"].items()}
    assert last["groups"]["loss"] == over_clients(LOSS, losses)
    assert run.summary["groups"] == last["groups"]
    models = run.summary["models"]
    for kind in ("shared", "own", "own_on_everybody"):
        each = {name: one[kind]["loss"] for name, one in models["clients"].items()}
        assert models["groups"][kind]["loss"] == over_clients(LOSS, each)
    assert run.metrics["eval_loss_jain"].iloc[-1] == last["groups"]["loss"]["jain"]
    page = write_report(run.path).read_text()
    assert "Differences between clients" in page
    assert "own on everybody: loss" in page


@pytest.mark.parametrize("fed_alg", ["fedavg", "fedbuff", "central", "ditto", "local0"])
def test_a_client_that_is_left_out_has_no_influence_and_its_score_stands_apart(people, fed_alg: str, tmp_path: Path):
    keys = people | {"leave_out": ["ward_c"], "fed_alg": fed_alg, "sample_clients": 2, "eval_every": 1}
    keys |= {"report_to": ["tensorboard"]}
    run = weft.train(keys)
    records = evaluations(run)
    assert all(set(record["clients"]) == {"ward_a", "ward_b"} for record in records)
    assert all(list(record["left_out"]["clients"]) == ["ward_c"] for record in records)
    assert records[-1]["rows"] == records[-1]["left_out"]["rows"] * 2
    assert run.summary["left_out"] == records[-1]["left_out"]
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert not any("ward_c" in line["clients"] for line in lines if line["event"] == "round")
    assert run.metrics["eval_left_out_loss"].iloc[-1] == records[-1]["left_out"]["loss"]
    assert not (run.path / "clients" / "ward_c" / "adapter").exists()
    assert "Clients that took no part" in write_report(run.path).read_text()
    # Other training rows of that client change nothing, and with it in the training they do: a control.
    other = write_rows(tmp_path / "other.jsonl", colour_rows(30, 9)[:20])
    unseen = [{"instruction": f"Which colour has thing {n}?", "output": ["red", "blue"][n % 2]} for n in range(8)]
    held = write_rows(tmp_path / "held.jsonl", unseen)

    def scores(leave_out: list[str], data: Path) -> list[dict[str, Any]]:
        ward = {"name": "ward_c", "data": str(data), "eval": str(held)}
        changed = {"clients": [*people["clients"][:2], ward], "leave_out": leave_out}
        name = f"{data.stem}{len(leave_out)}"
        return evaluations(weft.train(keys | changed | {"output_dir": str(tmp_path / name), "report_to": ["none"]}))

    theirs = Path(people["clients"][2]["data"])
    assert scores(["ward_c"], other) == scores(["ward_c"], theirs)
    if fed_alg != "local0":
        assert scores([], other) != scores([], theirs)


def test_a_left_out_client_is_asked_for_the_shared_model(people):
    shared = weft.train(people | {"fed_alg": "ditto", "leave_out": ["ward_c"]})
    assert set(shared.summary["models"]["clients"]) == {"ward_a", "ward_b"}
    assert set(shared.summary["models"]["groups"]["own"]) >= {"loss"}


def test_an_asynchronous_server_never_asks_those_who_take_no_part():
    from weft.federation.conditions import Conditions

    buffers = arrivals(Selection(0, 2, absent=(1,)), Conditions(), ["a", "b", "c"], 2)
    assert not any(client == 1 for _ in range(20) for client, _ in next(buffers)[0])


def test_a_name_that_is_given_twice_is_stored_once(people):
    run = weft.train(people | {"leave_out": ["ward_c", "ward_c"], "num_rounds": 1})
    assert list(run.config.leave_out) == ["ward_c"]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"leave_out": ["ward_d"]}, r"there is none of that name\. Did you mean 'ward_"),
    ({"leave_out": ["ward_a", "ward_b", "ward_c"]}, "leaves 0 of 3 clients to train, and a round needs 1"),
    ({"leave_out": ["ward_a"], "min_clients": 3, "sample_clients": 3}, "a round needs 3: name fewer"),
    ({"leave_out": ["ward_a"], "fed_alg": "fedbuff", "sample_clients": 3}, "a round needs 3: name fewer"),
    ({"leave_out": ["ward_a"], "eval_fraction": 0.0}, "no held-out rows to evaluate"),
    ({"leave_out": ["ward_a"], "fed_alg": "local"}, "leave out --fed_alg local and --cluster"),
    ({"leave_out": ["ward_a"], "cluster": 2}, "leave out --fed_alg local and --cluster"),
    ({"leave_out": ["ward_a"], "share": ["lora_A"]}, "a part of the model stays with each client"),
    ({"leave_out": ["ward_a"], "fed_alg": "local0"}, "trains 'ward_a' alone"),
]


@pytest.mark.parametrize(("changes", "words"), WRONG, ids=[str(number) for number in range(len(WRONG))])
def test_what_cannot_be_is_refused_and_leaves_nothing(people, changes: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        weft.train(people | changes)
    assert not Path(people["output_dir"]).exists()


def test_a_site_that_is_left_out_is_evaluated_alone(run, sites):
    from support.fake_sites import NAMES
    from weft.sites.server import serve

    done = serve(run | {"leave_out": [NAMES[1]], "num_rounds": 2, "sample_clients": 2}, sites, list(NAMES), "1")
    (first, last) = evaluations(done)
    assert set(last["clients"]) == {NAMES[0], NAMES[2]}
    assert set(first["left_out"]["clients"]) == {NAMES[1]}
    assert first["left_out"]["loss"] != last["left_out"]["loss"]
    lines = [json.loads(line) for line in (done.path / "metrics.jsonl").read_text().splitlines()]
    assert all(line["clients"] == [NAMES[0], NAMES[2]] for line in lines if line["event"] == "round")
