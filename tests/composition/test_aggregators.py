"""Robust aggregation in whole runs: what it is refused with, that it trains, that a short round is repeated."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import weft
from support.results import events, same_values, weights
from support.rows import colour_rows, write_rows
from support.updates import PLAN, STATE, update
from weft import config as configuration
from weft import registry
from weft.aggregation.coordinates import Median, TrimmedMean
from weft.aggregation.foolsgold import FoolsGold
from weft.aggregation.krum import MultiKrum
from weft.core.exchange import Runtime
from weft.core.types import DELTA, Failure, Probe, Task, Update
from weft.errors import ConfigError, DataError, RunError
from weft.federation.loop import RoundDone, Rounds, run_rounds
from weft.federation.round import run_round
from weft.federation.sampling import Selection
from weft.federation.state import Participant
from weft.launch import compose, trainer
from weft.launch.round_notes import notes

ROOTED = [name for name in registry.AGGREGATORS if registry.load(registry.AGGREGATORS, name, "part").wants_root]
RULES = [name for name in registry.AGGREGATORS if name != "mean" and name not in ROOTED]


def plan_of(**keys: object):
    return compose.plan(configuration.build({"dataset_name": "any", "num_clients": 20, "sample_clients": 12} | keys))


NO_MEAN = {
    "sums over rounds": ({"fed_alg": "scaffold"}, "adds up over rounds"),
    "sums over rounds too": ({"fed_alg": "feddyn"}, "adds up over rounds"),
    "a buffer": ({"fed_alg": "fedbuff"}, "several versions"),
    "clusters": ({"cluster": 2}, "majority"),
    "products": ({"use_peft": True, "lora_aggregation": "svd"}, "past"),
    "a residual": ({"use_peft": True, "lora_aggregation": "residual"}, "past"),
    "ranks": ({"use_peft": True, "client_ranks": [2, 4]}, "votes"),
    "weights": ({"client_weight": "minimax"}, "counts every client once"),
    "a share": ({"max_client_share": 0.5}, "limits nothing"),
    "layers": ({"client_layers": [1], "from_scratch": True, "tokenizer": "any", "size": "tiny"}, "client_layers"),
}


@pytest.mark.parametrize("name", [*RULES, *ROOTED])
@pytest.mark.parametrize("changes", NO_MEAN, ids=NO_MEAN.keys())
def test_what_needs_a_mean_is_refused_with_a_remedy(name: str, changes: str):
    keys, word = NO_MEAN[changes]
    own = {"public_data": "any"} if name in ROOTED else {}
    if changes == "layers":
        plan = plan_of(aggregator=name, **own)
        plan = replace(plan, sharing=replace(plan.sharing, layers=((0,), (1,))))
        from weft.federation.compatibility import check

        with pytest.raises(ConfigError, match="leave out --client_layers"):
            check(plan)
        return
    with pytest.raises(ConfigError, match=word) as caught:
        plan_of(aggregator=name, **own, **keys)
    assert any(remedy in str(caught.value) for remedy in ("write", "leave out", "choose"))


@pytest.mark.parametrize(
    ("name", "parameter"), [("norm_clipping", "radius"), ("centered_clipping", "radius"), ("flame", "noise")]
)
def test_a_length_of_updates_is_refused_where_several_streams_are_scaled(name: str, parameter: str):
    """A radius of 1 once cut what was scaled to a spread of 1, whatever the norm of the updates was."""
    given = {"aggregator": name, "aggregator_args": {parameter: 1.0}}
    for several in ({"fed_alg": "fednova"}, {"fed_alg": "diloco", "fed_args": {"inner_state": "average"}}):
        with pytest.raises(ConfigError, match=rf"sends several streams.*write {parameter}=0 in --aggregator_args"):
            plan_of(**given, **several)
        plan_of(aggregator=name, **several)
    assert getattr(plan_of(**given).aggregator, parameter) == 1.0


@pytest.mark.parametrize("name", [*RULES, *ROOTED])
def test_a_protection_that_shows_sums_alone_refuses_it(name: str):
    from weft.core.exchange import Protection
    from weft.federation.compatibility import check

    class Sums(Protection):
        sum_only = True

    own = {"public_data": "any"} if name in ROOTED else {}
    with pytest.raises(ConfigError, match=r"compares single updates, but Sums .*write --aggregator mean"):
        check(replace(plan_of(aggregator=name, **own), protection=Sums()))


@pytest.mark.parametrize(
    ("name", "attackers", "least"),
    [("median", 3, 7), ("trimmed_mean", 3, 7), ("krum", 3, 9), ("multi_krum", 3, 9), ("bulyan", 3, 15)],
)
def test_a_cohort_below_the_breakdown_point_is_refused(name: str, attackers: int, least: int):
    keys = {"aggregator": name, "aggregator_args": {"attackers": attackers}}
    plan_of(sample_clients=least, **keys)
    with pytest.raises(ConfigError, match=f"needs {least} updates .*write --sample_clients {least}"):
        plan_of(sample_clients=least - 1, **keys)


def test_the_rules_that_are_named_instead_stand_as_many_attackers():
    """Names of rules that need as many clients were once among them, and so was a --sample_clients that was given."""
    keys = {"aggregator": "krum", "sample_clients": 7, "aggregator_args": {"attackers": 3}}
    with pytest.raises(ConfigError, match="write --sample_clients 9, of --num_clients 9 or more") as caught:
        plan_of(num_clients=7, **keys | {"sample_clients": 9})
    named = str(caught.value).split("--aggregator ")[-1].rstrip(".").replace(" or ", ", ").split(", ")
    assert {"mean", "median", "trimmed_mean"} <= set(named)
    assert not {"multi_krum", "bulyan"} & set(named)
    for name in named:
        own = {} if name in ("mean", "foolsgold") else {"aggregator_args": {"attackers": 3}}
        plan_of(num_clients=7, sample_clients=7, aggregator=name, **own)


@pytest.mark.parametrize(
    ("more", "most"), [({}, 10), ({"attackers": 0}, 12), ({"before": "bucketing", "attackers": 1}, 5)], ids=str
)
def test_more_updates_than_those_without_the_attackers_are_not_kept(more: dict[str, object], most: int):
    """n - f of twelve; of the means of six buckets of two, n - f of six."""
    args = {"attackers": 2} | more
    plan_of(aggregator="multi_krum", aggregator_args=args | {"keep": most})
    with pytest.raises(ConfigError, match=f"is to keep {most + 1} updates.*write keep={most}, or leave keep out"):
        plan_of(aggregator="multi_krum", aggregator_args=args | {"keep": most + 1})


def test_a_population_that_is_too_small_is_refused_before_the_first_round(keys):
    """By the column's values there are three clients, which no key says."""
    changes = {"split_strategy": "by", "split_column": "output", "num_clients": 0, "sample_clients": 5}
    with pytest.raises(ConfigError, match="needs 5 updates in a round"):
        weft.train(keys | changes | {"aggregator": "median", "aggregator_args": {"attackers": 2}})


SEVEN = {"num_clients": 7, "sample_clients": 7, "num_rounds": 2, "max_steps": 1, "eval_every": 0}
SEVEN |= {"aggregator_args": {"attackers": 1}, "lr_scheduler_type": "constant"}


@pytest.mark.parametrize("name", RULES)
def test_every_rule_trains(keys, name: str):
    own = {"aggregator_args": {}} if name == "foolsgold" else {}
    run = weft.train(keys | SEVEN | own | {"aggregator": name})
    assert math.isfinite(run.summary["eval"]["loss"])
    assert run.summary["failures"] == {}
    assert run.summary["product_error"] is None
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert all(set(line.get("flagged", [])) <= set(line["clients"]) for line in lines if line["event"] == "round")


@pytest.mark.parametrize("name", sorted(ROOTED))
def test_every_rule_with_rows_of_the_servers_own_trains(keys, name: str, tmp_path):
    root = write_rows(tmp_path / "root.jsonl", colour_rows(30, seed=5))
    own = {key: value for key, value in SEVEN.items() if key != "aggregator_args"}
    run = weft.train(keys | own | {"aggregator": name, "public_data": str(root), "learning_rate": 1e-2})
    assert run.summary["failures"] == {}
    rounds = events(run)
    assert all("public" in line["clients"] and "public" not in line.get("flagged", []) for line in rounds)
    assert run.summary["eval"]["loss"] < 6.17  # of the model as it was loaded


@pytest.mark.parametrize("name", sorted(ROOTED))
def test_rows_of_the_servers_own_that_are_missing_or_empty_are_refused(keys, name: str, tmp_path):
    with pytest.raises(ConfigError, match="rows of the server's own, and there are none: add --public_data FILE"):
        weft.train(keys | {"aggregator": name})
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError):
        weft.train(keys | {"aggregator": name, "public_data": str(tmp_path / "empty.jsonl")})
    long = write_rows(tmp_path / "long.jsonl", [{"instruction": "word " * 400, "output": "red"}] * 3)
    with pytest.raises(DataError, match=r"public_data '.*long.jsonl' has no row that can be used"):
        weft.train(keys | {"aggregator": name, "public_data": str(long)})
    assert not Path(str(keys["output_dir"])).exists()
    good = write_rows(tmp_path / "good.jsonl", colour_rows(9))
    with pytest.raises(ConfigError, match="may come too late"):
        weft.train(keys | {"aggregator": name, "public_data": str(good), "over_selection": 0.5})


@pytest.mark.parametrize("name", sorted(ROOTED))
def test_the_servers_own_rows_do_not_drop_out(keys, name: str, tmp_path):
    good = write_rows(tmp_path / "good.jsonl", colour_rows(9))
    own = {"aggregator": name, "public_data": str(good), "client_failure_rate": 0.5, "sample_clients": 3}
    run = weft.train(keys | own | {"num_rounds": 4, "eval_every": 0})
    assert run.summary["failures"]  # clients do
    assert "public" not in run.summary["failures"]


class Faulty(Runtime):
    """Loses what the server's own rows make: the update, or the score."""

    def __init__(self, inner: Runtime, lost: type) -> None:
        self.inner, self.lost = inner, lost

    def exchange(self, messages):
        for message, reply in zip(messages, self.inner.exchange(messages), strict=True):
            gone = message.client == "public" and isinstance(message, self.lost)
            yield Failure(message.client, message.round, "ran out of memory") if gone else reply

    def pause(self, attempts: int) -> None:
        pass


@pytest.mark.parametrize(
    ("name", "lost", "why"),
    [
        ("fltrust", Task, "was not used: the update of the server's own rows, which counts, is missing"),
        ("loss_gate", Probe, "was not used: the loss on the server's own rows, which decides, cannot be computed"),
    ],
)
def test_a_fault_of_the_servers_own_rows_is_said_plainly(keys, name, lost, why: str, tmp_path, monkeypatch):
    """Not that the clients sent no reply."""
    good = write_rows(tmp_path / "good.jsonl", colour_rows(9))
    monkeypatch.setattr(trainer, "attacked", lambda plan, runtime, *_: Faulty(runtime, lost))
    own = {"aggregator": name, "public_data": str(good), "max_attempts": 2, "eval_every": 0}
    with pytest.raises(RunError, match=why):
        weft.train(keys | own)


@pytest.mark.parametrize("fed_alg", ["fedsgd", "fedkseed"])
def test_what_is_not_added_to_parameters_cannot_be_tried(fed_alg: str):
    own = {"aggregator": "loss_gate", "public_data": "any", "fed_alg": fed_alg, "max_steps": 1}
    with pytest.raises(ConfigError, match="to try them"):
        plan_of(**own | {"use_peft": False})


def test_what_a_rule_remembers_is_in_the_checkpoint(keys, tmp_path):
    clipping = keys | SEVEN | {"aggregator": "centered_clipping"}
    whole = weft.train(clipping)
    half = clipping | {"output_dir": str(tmp_path / "half")}
    weft.train(half | {"num_rounds": 1})
    resumed = weft.train(half, resume=True)
    assert same_values(weights(whole), weights(resumed))


class Sends(Runtime):
    """Hands over updates of clients, of which some are missing."""

    def __init__(self, updates: dict[str, Update]) -> None:
        self.updates = updates

    def exchange(self, messages):
        for message in messages:
            yield self.updates.get(message.client) or Failure(message.client, message.round, "dropped out")


def test_a_round_that_drop_outs_make_too_small_is_repeated_and_moves_nothing():
    plan = replace(PLAN, aggregator=TrimmedMean(attackers=2))
    names = [f"c{i}" for i in range(6)]
    cohort = [Participant(name, 4, rows=10.0) for name in names]
    some = {name: update(name, seed=i) for i, name in enumerate(names[:4])}
    state, record = run_round(plan, STATE, cohort, Sends(some))
    assert (record.repeated, record.quorum, state.attempts) == (True, 5, 1)
    assert all(torch.equal(state.params[name], value) for name, value in STATE.params.items())
    every = {name: update(name, seed=i) for i, name in enumerate(names)}
    state, record = run_round(plan, STATE, cohort, Sends(every))
    assert (record.repeated, state.round) == (False, 5)


def test_a_run_of_rounds_that_are_always_too_small_ends_in_words():
    plan = replace(PLAN, aggregator=Median(attackers=2))
    rounds = Rounds(5, Selection(0, 4), 0, max_attempts=2)
    names = [f"c{i}" for i in range(4)]
    some = {name: update(name, seed=i) for i, name in enumerate(names)}
    with pytest.raises(RunError, match="fewer than 5 clients answered"):
        list(run_rounds(plan, STATE, Sends(some), rounds, clients=names, eval_clients=[]))


def test_one_client_owns_the_mean_and_not_a_robust_rule():
    names = [f"c{i}" for i in range(7)]
    cohort = [Participant(name, 4, rows=10.0) for name in names]
    sent = {name: update(name, seed=i) for i, name in enumerate(names)}
    delta = {name: value + 1e8 for name, value in sent["c3"].streams[DELTA].items()}
    sent["c3"] = replace(sent["c3"], streams={DELTA: delta})
    sizes = {}
    for rule in (PLAN.aggregator, MultiKrum(attackers=1)):
        state, record = run_round(replace(PLAN, aggregator=rule), STATE, cohort, Sends(sent))
        sizes[type(rule).__name__] = max(float(value.abs().max()) for value in state.params.values())
    assert record.flagged == ("c3",)
    assert sizes["Mean"] > 1e6
    assert sizes["MultiKrum"] < 5


def test_a_rule_that_flags_every_client_says_that_no_update_counts():
    """Clients with like rows are all sybils to FoolsGold: the model once stood still in silence."""
    names = [f"c{i}" for i in range(4)]
    cohort = [Participant(name, 4, rows=10.0) for name in names]
    plan = replace(PLAN, aggregator=FoolsGold())
    for seeds, stands in (([0, 0, 0, 0], True), ([0, 0, 1, 2], False)):
        sent = {name: update(name, seed=seed) for name, seed in zip(names, seeds, strict=True)}
        state, record = run_round(plan, STATE, cohort, Sends(sent))
        assert all(torch.equal(state.params[name], value) for name, value in STATE.params.items()) is stands
        line = {"round": 5, "clients": names, "failures": {}}
        said = list(notes(RoundDone(state, record, 1.0, None), line, 0, 3, hides=False))
        assert ["the aggregator flags every client, so that no update counts" in one for one in said] == [True] * stands


@pytest.mark.parametrize("name", ["foolsgold", *ROOTED])
def test_rules_that_know_clients_are_refused_with_sums_of_groups(name: str):
    """Groups are dealt anew in every round: a group would get the history, or the trust, of whoever comes first."""
    own = {"public_data": "any"} if name in ROOTED else {}
    with pytest.raises(ConfigError, match=r"whose update is whose.*write --aggregator mean"):
        plan_of(aggregator=name, protection="masks", group_size=3, **own)
    plan_of(aggregator="median", protection="masks", group_size=3)


@pytest.mark.parametrize("name", RULES)
def test_with_masks_sums_of_groups_are_the_remedy(name: str):
    more = "" if name == "foolsgold" else ".*or add --group_size, with which sums of groups are compared"
    with pytest.raises(ConfigError, match=f"Masks shows the server sums only: write --aggregator mean{more}"):
        plan_of(aggregator=name, protection="masks")
