"""Scores under a protection: the server learns what all clients scored together, and of no client what it scored."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("cryptography")
import weft
from support.results import metrics
from support.rows import colour_rows, write_rows
from weft.cli import main
from weft.config import build
from weft.core.exchange import Protection
from weft.core.metrics import Totals, summarise
from weft.core.score_places import placed, places_of, sum_of
from weft.core.types import (
    Failure,
    Message,
    Probe,
    ProtectionRequest,
    Reply,
    Score,
    ServerState,
    Update,
)
from weft.errors import ClientFailed, ConfigError
from weft.evaluation.heldout import ACCURACY, BITS_PER_BYTE, LOSS, HeldOut
from weft.evaluation.preferred import PREFERENCE_ACCURACY, REWARD_MARGIN
from weft.federation.clients import InMemory
from weft.federation.plan import Plan
from weft.federation.scores import STEP, Scores, evaluate
from weft.federation.state import begin
from weft.launch.client import ClientBuilder
from weft.protection.sums import FRACTION
from weft.runtimes.inprocess import InProcess

FIVE = {"num_clients": 5, "sample_clients": 5, "eval_fraction": 0.3, "choices": ["red", "green", "blue"]}
NAMES = [f"client_{number}" for number in range(5)]
SEALED = ["masks", pytest.param("ckks", marks=pytest.mark.slow)]


@dataclass(frozen=True)
class Line(InProcess):
    """Clients in this process, on whose line messages are lost and changed, and all replies are seen."""

    lost: dict[str, str] = field(default_factory=dict)
    """By client: the phase ("Probe", or that of a request) from which on nothing arrives."""
    change: Callable[[Message], Message] = lambda message: message
    seen: list[Reply] = field(default_factory=list)

    def exchange(self, messages: Sequence[Message]) -> Iterator[Reply]:
        for message in messages:
            phase = message.phase if isinstance(message, ProtectionRequest) else type(message).__name__
            if self.lost.get(message.client) in (phase, "always"):
                self.lost[message.client] = "always"
                yield Failure(message.client, message.round, "is gone")
                continue
            reply = self.client_host.reply(self.change(message))
            self.seen.append(reply)
            yield reply


@dataclass
class Bench:
    """A model and its clients, before the first round."""

    plan: Plan
    state: ServerState
    line: Line

    @classmethod
    def of(cls, keys: dict[str, Any]) -> Bench:
        builder = ClientBuilder(build(keys))
        builder.read(InMemory())
        host, values = builder.host()
        return cls(host.plan, begin(host.plan, values, host.model.fixed), Line(host))

    def scores(self, names: Sequence[str] = NAMES, **options: Any) -> tuple[Scores, dict[str, str]]:
        failures: dict[str, str] = {}
        return evaluate(self.plan, self.state, self.line, names, failures=failures, **options), failures

    def record(self, found: Scores) -> dict[str, Any]:
        return {**summarise(self.plan.measured, found.clients.values(), found.sums)}


@pytest.fixture
def plain(keys) -> Bench:
    return Bench.of(keys | FIVE)


@pytest.fixture
def masked(keys) -> Bench:
    return Bench.of(keys | FIVE | {"protection": "masks"})


def assert_sum(sealed: Bench, found: Scores, plain: Bench, members: Sequence[str]) -> None:
    """Counts are those of the members to the last one, sums to the step of the numbers."""
    (one,) = found.sums
    assert one.members == tuple(members)
    parts = plain.scores(members)[0].clients
    assert set(parts) == set(members)
    totals = Totals(plain.plan.measured)
    for part in parts.values():
        totals.add(part)
    assert one.rows == sum(part["rows"] for part in parts.values())
    for metric, sums in totals._sums.items():
        ours = {name: value for name, value in one.sums[metric].items() if value}
        assert ours.keys() == {name for name, value in sums.items() if value}
        for name, value in ours.items():
            if name == "loss_sum":
                assert abs(value - sums[name]) <= len(members) * STEP
            else:
                assert value == sums[name], (metric, name)
    wanted, there = plain.record(Scores(parts)), sealed.record(found)
    assert there["accuracy"] == wanted["accuracy"] is not None
    assert there["macro_f1"] == wanted["macro_f1"]
    assert there["loss"] == pytest.approx(wanted["loss"], abs=1e-7)


@pytest.mark.parametrize("protection", SEALED)
def test_the_sum_is_that_of_the_plain_evaluation(keys, plain: Bench, protection: str):
    if protection == "ckks":
        pytest.importorskip("tenseal")
    sealed = Bench.of(keys | FIVE | {"protection": protection})
    found, failures = sealed.scores()
    assert not failures
    assert not found.clients
    assert_sum(sealed, found, plain, NAMES)


def numbers_of(reply: Reply) -> list[float]:
    """All numbers that a reply shows, those of a sealed one as they stand there."""
    if isinstance(reply, Score):
        return list(reply.metrics.values())
    streams = getattr(reply, "streams", {})
    values = [value for part in streams.values() for value in part.values() if value.dtype == torch.int64]
    return [float(number) / FRACTION for value in values for number in value.tolist()]


def test_no_message_holds_what_one_client_scored(plain: Bench, masked: Bench):
    plain.scores()
    masked.scores()
    own = {reply.client: reply.metrics for reply in plain.line.seen if isinstance(reply, Score)}
    assert set(own) == set(NAMES)
    sealed = [reply for reply in masked.line.seen if isinstance(reply, Update)]
    assert {reply.client for reply in sealed} == set(NAMES)
    assert not [reply for reply in masked.line.seen if isinstance(reply, Score)]
    for reply in sealed:
        assert (set(reply.streams), reply.metrics, reply.weight) == ({"masked"}, {}, 1.0)
        # Every client sends as many numbers: which counts it has does not show, nor do their names.
        assert len(numbers_of(reply)) == len(numbers_of(sealed[0])) > 9
        assert bytes(reply.streams["masked"]["metrics"].numpy()) == b"[]"
    for name, scores in own.items():
        shown = {round(number, 3) for reply in masked.line.seen for number in numbers_of(reply)}
        assert not shown & {round(value, 3) for value in scores.values() if value > 0}
        shown = {round(number, 3) for reply in plain.line.seen for number in numbers_of(reply)}
        assert shown >= {round(value, 3) for value in scores.values()}, name  # the control


@pytest.mark.parametrize(
    ("phase", "inside"), [("keys", 4), ("shares", 4), ("Probe", 4), ("unmask", 5)], ids=lambda value: str(value)
)
def test_a_client_that_drops_out_is_left_out_or_still_in_the_sum(plain: Bench, masked: Bench, phase: str, inside: int):
    masked.line.lost["client_4"] = phase
    found, failures = masked.scores()
    assert_sum(masked, found, plain, NAMES[:inside])
    assert set(failures) == set(NAMES[inside:])


def test_with_too_few_clients_no_sum_is_opened(masked: Bench):
    masked.line.lost.update(dict.fromkeys(NAMES[2:], "Probe"))
    found, failures = masked.scores()
    assert not found.anybody
    assert set(failures) == set(NAMES)
    assert "was not evaluated: is in a masked sum that stays closed: 2 of 5 clients are left" in failures[NAMES[0]]
    assert not [reply for reply in masked.line.seen if getattr(reply, "phase", "") == "unmask"]


def test_a_second_sum_of_an_evaluation_is_not_opened_and_a_round_keeps_its_own(masked: Bench):
    first, _ = masked.scores()
    again, _ = masked.scores()  # a server that was killed asks again, and gets the same
    assert again.sums == first.sums
    masked.line.lost["client_4"] = "Probe"
    other, failures = masked.scores()
    assert not other.anybody
    assert set(failures) == set(NAMES)
    said = [reply.reason for reply in masked.line.seen if isinstance(reply, Failure)]
    assert said == ["was asked twice for one attempt of a round, with other survivors"] * 4
    masked.line.lost.clear()
    masked.state = replace(masked.state, round=1)
    assert masked.scores()[0].sums == first.sums  # of the same model, after another round


def test_a_server_that_sends_one_client_another_model_opens_nothing(masked: Bench):
    """It would send all others one whose scores it knows, and take these off the sum."""

    def lie(message: Message) -> Message:
        if not isinstance(message, Probe) or message.client == NAMES[0]:
            return message
        return replace(message, params={name: torch.zeros_like(value) for name, value in message.params.items()})

    masked.line = replace(masked.line, change=lie)
    found, failures = masked.scores()
    assert not found.anybody
    assert "its weights add up to what no clients have" in failures[NAMES[0]]


def test_a_probe_without_a_sum_is_not_answered(masked: Bench):
    probe = Probe(NAMES[0], 0, masked.state.params)
    reply = masked.line.client_host.reply(probe)
    assert isinstance(reply, Failure)
    assert "lacks a part" in reply.reason


def test_clients_that_took_no_part_have_a_sum_of_their_own(keys, plain: Bench):
    wide = keys | FIVE | {"num_clients": 6, "sample_clients": 3, "protection": "masks"}
    sealed = Bench.of(wide | {"leave_out": ["client_0", "client_1", "client_2"]})
    names = [f"client_{number}" for number in range(6)]
    found, failures = sealed.scores(names, left_out=names[:3])
    assert not failures
    assert [one.members for one in found.sums] == [tuple(names[3:]), tuple(names[:3])]
    assert found.within(names[:3]).sums == found.sums[1:]
    assert found.without(names[:3]).sums == found.sums[:1]


def test_a_run_records_totals_and_names_who_is_in_them(keys, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = keys | FIVE | {"num_rounds": 2, "eval_every": 1, "best_metric": "loss"}
    run = weft.train(given | {"protection": "masks", "report": True})
    other = weft.train(given | {"output_dir": str(tmp_path / "plain")})
    lines, wanted = ([line for line in metrics(one) if line["event"] == "eval"] for one in (run, other))
    assert len(lines) == 2
    for ours, theirs in zip(lines, wanted, strict=True):
        assert (ours["clients"], ours["members"]) == ({}, NAMES)
        assert ours["rows"] == theirs["rows"]
        assert "groups" not in ours
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    assert run.summary["best"]["round"] == other.summary["best"]["round"]
    assert (run.summary["members"], run.summary["held_out_rows"]) == (NAMES, lines[-1]["rows"])
    assert (run.path / "report.html").exists()
    kept = {file: file.read_bytes() for file in run.path.rglob("promises.json")}
    assert len(kept) == 5
    capsys.readouterr()
    assert main(["evaluate", str(run.path), "--federated", "--json"]) == 0
    (kind, again), *_ = json.loads(capsys.readouterr().out).items()
    assert kind == "shared"
    assert {name: again[name] for name in lines[-1]} == lines[-1]
    assert {file: file.read_bytes() for file in kept} == kept
    assert main(["compare", str(run.path), str(other.path)]) == 0
    assert f"{lines[-1]['rows']}" in capsys.readouterr().out


def test_own_models_are_summed_up_too(keys, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = keys | FIVE | {"num_rounds": 1, "fed_alg": "ditto"}
    records = []
    for changes in ({"protection": "masks"}, {"protection": "none", "output_dir": str(tmp_path / "plain")}):
        run = weft.train(given | changes)
        capsys.readouterr()
        assert main(["evaluate", str(run.path), "--federated", "--json"]) == 0
        records.append(json.loads(capsys.readouterr().out)["own"])
    ours, theirs = records
    assert (ours["clients"], ours["members"]) == ({}, NAMES)
    assert set(theirs["clients"]) == set(NAMES)  # the control
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


TOO_FEW: list[tuple[dict[str, Any], str]] = [
    ({"leave_out": ["client_0"]}, "leave_out names 1 client with held-out rows"),
    ({"choices": [f"word {number}" for number in range(101)]}, "have places for 100 at most"),
]


@pytest.mark.parametrize(("changes", "words"), TOO_FEW, ids=["left out", "answers"])
def test_what_no_sealed_sum_can_hold_is_refused(keys, changes: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        weft.train(keys | FIVE | {"protection": "masks", "sample_clients": 4} | changes)


@pytest.mark.parametrize("changes", [{"num_rounds": 0}, {"best_metric": "loss"}, {}], ids=["eval", "best", "train"])
def test_with_held_out_rows_at_too_few_clients_nothing_is_scored_and_the_run_says_so(
    people, changes, tmp_path: Path, capsys
):
    apart = str(write_rows(tmp_path / "apart.jsonl", colour_rows(9, 77)))
    clients = [one | ({"eval": apart} if number < 2 else {}) for number, one in enumerate(people["clients"])]
    given = people | {"clients": clients, "eval_fraction": 0.0, "sample_clients": 3} | changes
    given |= {"protection": "masks", "held_out_overlap": "leave_out"}
    words = "2 of the clients have held-out rows, and Masks opens sums of scores over 3 clients or more"
    if changes:
        with pytest.raises(ConfigError, match=words):
            weft.train(given)
        return
    run = weft.train(given | {"num_rounds": 1})
    assert words in capsys.readouterr().err
    assert [line["event"] for line in metrics(run)] == ["round"]
    assert not metrics(run)[0]["failures"]


def test_a_client_that_keeps_a_sum_to_itself_changes_no_mean_of_it():
    """Both metrics have one count: a site may send what the one needs and not the other."""
    measured = (PREFERENCE_ACCURACY, REWARD_MARGIN)
    assert PREFERENCE_ACCURACY.count == REWARD_MARGIN.count
    whole = {name: 4.0 for metric in measured for name in metric.needs}
    part = dict.fromkeys(PREFERENCE_ACCURACY.needs, 1.0)
    places = places_of(measured, 3)
    rows = [placed(measured, one, places) for one in (whole, part)]
    found = sum_of(measured, {place: rows[0][place] + rows[1][place] for place in places}, "ab")
    assert found.sums["reward_margin"][REWARD_MARGIN.count] == 4.0
    assert found.sums["preference_accuracy"][PREFERENCE_ACCURACY.count] == 5.0
    assert summarise(measured, [], [found])["reward_margin"] == summarise(measured, [whole])["reward_margin"]


def test_places_are_the_same_whatever_a_client_counted():
    places = places_of(HeldOut.metrics, 2)
    assert sum("confusion" in place.partition(":")[2] for place in places) == 4  # accuracy and macro-F1 share them
    loss = {"loss_sum": 2.0, "loss_tokens": 4.0, "rows": 1.0}
    for part in ({}, loss, loss | {"confusion/1/0": 1.0}):
        assert tuple(sorted(placed(HeldOut.metrics, part, places))) == places
    with pytest.raises(ClientFailed, match="no place"):
        placed(HeldOut.metrics, {"confusion/2/0": 1.0}, places)
    found = sum_of(HeldOut.metrics, placed(HeldOut.metrics, loss | {"confusion/1/0": 1.0}, places), ["a"])
    assert LOSS.value(dict(found.sums["loss"])) == 0.5
    assert ACCURACY.value(dict(found.sums["accuracy"])) == 0.0
    assert BITS_PER_BYTE.value(dict(found.sums["bits_per_byte"])) is None


def test_sums_that_no_clients_can_have_counted_are_refused(masked: Bench):
    """A dishonest client may spoil the sum; what cannot be is not recorded."""

    @dataclass(frozen=True)
    class Lying(Line):
        def exchange(self, messages: Sequence[Message]) -> Iterator[Reply]:
            for reply in super().exchange(messages):
                if isinstance(reply, Update) and reply.client == NAMES[0]:
                    counts = reply.streams["masked"]["counts"]
                    for place, name in enumerate(sorted(masked.plan.score_places)):
                        if name.endswith(":loss_tokens"):
                            counts[2 + place] -= int(2.0**20 * FRACTION)
                yield reply

    masked.line = Lying(masked.line.client_host)
    found, failures = masked.scores()
    assert not found.anybody
    assert "a count below 0" in failures[NAMES[1]]


def test_a_protection_of_ones_own_that_seals_no_scores_leaves_them_as_they_are(plain: Bench):
    class Sums(Protection):
        sum_only = True

    wanted, _ = plain.scores()
    plain.plan = replace(plain.plan, protection=Sums())
    plain.line = Line(replace(plain.line.client_host, plan=plain.plan))
    found, failures = plain.scores()
    assert (found, failures) == (wanted, {})
    assert set(found.clients) == set(NAMES)


def test_a_model_is_scored_under_masks_by_command(people, tiny_model: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clients = [f"{one['name']}={one['data']}" for one in people["clients"]]
    words = ["evaluate", str(tiny_model), "--federated", "--clients", *clients, "--eval_fraction", "0.4", "--json"]
    words += ["--choices", "red", "green", "blue", "--dtype", "float32", "--template", "vicuna"]
    words += ["--seq_length", "128"]
    found = []
    for more in (["--protection", "masks"], []):
        capsys.readouterr()
        assert main([*words, *more, "--output_dir", str(tmp_path / f"out{len(more)}")]) == 0
        found.append(json.loads(capsys.readouterr().out)["shared"])
    sealed, plain = found
    assert (sealed["clients"], len(sealed["members"])) == ({}, 3)
    assert len(plain["clients"]) == 3
    assert [sealed[name] for name in ("rows", "accuracy", "macro_f1")] == [
        plain[name] for name in ("rows", "accuracy", "macro_f1")
    ]
    assert main([*words, "--protection", "masks", "--min_contributors", "4", "--output_dir", str(tmp_path / "no")]) == 2
    assert "num_rounds is 0, but 3 of the clients have held-out rows" in capsys.readouterr().err
