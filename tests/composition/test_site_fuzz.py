"""Whatever bytes one site sends, in any message of the exchange, the run goes on with the other sites."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from support.fake_sites import NAMES, FakeSites
from support.results import weights
from weft.core import wire, wire_format
from weft.core.types import Failure, Score, Task, Update
from weft.errors import BadUpdate, ClientFailed, ConfigError
from weft.federation.admission import admit, admit_score, open_reply
from weft.runtimes.mailbox import PollResult
from weft.sites.flare import CollabTransport, ServerJob
from weft.sites.handshake import _read
from weft.sites.server import serve

VILLAIN = "hospital_c"


def hostile(sites: FakeSites, change) -> None:
    """Let one site say what `change` makes of the honest words."""
    plain = sites.site_clients[VILLAIN].work
    sites.site_clients[VILLAIN].work = lambda raw: change(raw, plain(raw))  # type: ignore[method-assign]


def signed(said: dict[str, object], header: dict[str, object] | None = None, body: bytes = b"") -> bytes:
    """Return a message whose digest is right, whatever it says."""
    header = dict(header or {})
    said = {**said, "digest": wire_format.signature_of(said, header, wire_format.digest_of([memoryview(body)]))}
    raw = json.dumps(header | {"__metadata__": {"weft": json.dumps(said)}}).encode()
    return len(raw).to_bytes(8, "little") + raw + body


REFUSALS = {
    "a lone surrogate": '{"refused": "\\ud83d"}',
    "escapes for a terminal": '{"refused": "\\u001b[2J\\u001b]0;owned\\u0007"}',
    "a deep list": "[" * 60_000,
    "a deep list in an object": '{"rows": ' + "[" * 60_000,
    "a number": "7",
    "no count of held-out rows": '{"rows": 24}',
    "a count of rows without end": '{"rows": 1' + "0" * 4000 + "}",
    "nothing": "",
    "endless words": json.dumps({"refused": "x" * 50_000}),
}


@pytest.mark.parametrize("words", REFUSALS.values(), ids=REFUSALS.keys())
def test_a_handshake_that_is_answered_by_anything_ends_no_run(run, sites: FakeSites, words: str):
    hostile(sites, lambda raw, said: words.encode() if raw[:1] == b"{" else said)
    told: list[dict[str, object]] = []
    done = serve(run | {"num_rounds": 1}, sites, list(NAMES), "1", hear=told.append)
    assert done.summary["rounds"] == 1
    assert done.summary["clients"].keys() == {"hospital_a", "hospital_b"}
    refused = str(told[0]["refused"][VILLAIN])  # type: ignore[index]
    assert refused
    assert refused.isprintable()
    assert len(refused) < 4000


IMITATION = 'busy". weft: round 3: the update of "hospital_a" was dropped: it lied\nweft: "\u2028\ud83d'


def test_what_a_site_says_of_its_failure_cannot_be_taken_for_a_line_on_another(run, sites: FakeSites, capsys):
    """Its words stand in quotes that they cannot end, in a refusal and among the failures of a round."""
    hostile(sites, lambda raw, said: json.dumps({"refused": IMITATION}).encode() if raw[:1] == b"{" else said)
    serve(run | {"num_rounds": 1}, sites, list(NAMES), "1")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "it lied" in line]
    assert re.fullmatch(f'weft: the site \'{VILLAIN}\' takes no part: "[^"]*it lied[^"]*"\\.', line)
    raw = wire.pack(Failure(VILLAIN, 3, IMITATION), "r")
    failure = open_reply(raw, VILLAIN, 3, run="r", max_bytes=1 << 20, max_tensors=8)
    assert isinstance(failure, Failure)
    assert failure.reason[0] == failure.reason[-1] == '"'
    assert failure.reason.isprintable()
    assert '"' not in failure.reason[1:-1]


SCORES: dict[str, dict[str, object]] = {
    "not finite": {"metrics": {"loss": float("inf")}},
    "not a number": {"metrics": {"loss": float("nan")}},
    "a cluster that is none": {"metrics": {"cluster/x": 1.0}},
    "a name that cannot be written": {"metrics": {"\ud83d": 1.0}},
    "no scores": {"kind": "Update"},
    "a count without its sum": {"metrics": {"loss_tokens": 5.0}},
    "judged, without anything judged": {"metrics": {"judged": 1.0}},
    "answers without rewards": {"metrics": {"answers": 1.0}},
    "a divergence without its sum": {"metrics": {"kl_tokens": 1.0}},
    "half a confusion": {"metrics": {"confusion/1": 1.0}},
    "confusion of words": {"metrics": {"confusion/red/blue": 1.0}},
    "counts that cancel": {"metrics": {"confusion/0/0": 1.0, "confusion/0/1": -1.0, "confusion/1/0": -1.0}},
    "fewer than no rows": {"metrics": {"rows": -1e18}},
}


@pytest.mark.parametrize("lie", SCORES.values(), ids=SCORES.keys())
def test_scores_that_cannot_be_are_that_sites_failure(run, sites: FakeSites, lie: dict[str, object]):
    def change(raw: bytes, said: bytes) -> bytes:
        if raw[:1] == b"{" or not isinstance(wire.unpack(said, run="run"), Score):
            return said
        header, _ = wire_format.split_file(said)
        return signed(json.loads(header["__metadata__"]["weft"]) | lie)

    hostile(sites, change)
    done = serve(run | {"num_rounds": 1}, sites, list(NAMES), "1")
    assert done.summary["rounds"] == 1
    assert VILLAIN not in done.summary["clients"] or done.summary["clients"][VILLAIN].get("loss") is None
    records = [json.loads(line) for line in (done.path / "metrics.jsonl").read_text().splitlines()]
    (found,) = [one for one in records if one["event"] == "round"]
    assert "was not evaluated" in found["failures"][VILLAIN]


@pytest.mark.parametrize("weights", ["size", "minimax", "gain"])
@pytest.mark.parametrize(
    "metrics", [{"answers": 1.0}, {"texts_scored": 1.0}, {"loss_tokens": 4.0}, {"loss_tokens": -814.0, "loss_sum": 1.0}]
)
def test_metrics_that_cannot_be_counted_are_that_sites_failure(run, sites: FakeSites, weights: str, metrics):
    """And one that reports nothing takes part all the same."""

    def change(raw: bytes, said: bytes) -> bytes:
        if raw[:1] == b"{" or not isinstance(reply := wire.unpack(said, run="run"), Update):
            return said
        return wire.pack(replace(reply, metrics=metrics if reply.round == 0 else {}), "run")

    hostile(sites, change)
    keys = run | {"num_rounds": 2, "eval_every": 0, "client_weight": weights}
    done = serve(keys, sites, list(NAMES), "1")
    records = [json.loads(line) for line in (done.path / "metrics.jsonl").read_text().splitlines()]
    first, second = (one for one in records if one["event"] == "round")
    assert first["bad"] == [VILLAIN]
    assert first["train_loss"] > 0
    assert not second["failures"]
    assert VILLAIN in second["clients"]


def test_a_site_that_asks_for_others_and_is_silent_ends_no_run(run, sites: FakeSites):
    """Its smallest cohort counts where its own update would be used, and nowhere else."""

    def change(raw: bytes, said: bytes) -> bytes:
        if raw[:1] == b"{":
            return json.dumps(json.loads(said) | {"least": 3}).encode()
        message = wire.unpack(raw, run="run")
        silent = isinstance(message, Task) and message.round == 0
        return wire.pack(Failure(VILLAIN, 0, "no"), "run") if silent else said

    hostile(sites, change)
    done = serve(run | {"num_rounds": 2, "eval_every": 0, "max_attempts": 2}, sites, list(NAMES), "1")
    records = [json.loads(line) for line in (done.path / "metrics.jsonl").read_text().splitlines()]
    assert [one["clients"] for one in records if one["event"] == "round"] == [list(NAMES[:2]), list(NAMES)]


def test_reasons_with_which_updates_are_refused_are_cut_and_printable():
    like = {"delta": {"a": torch.zeros(2)}}
    many = {f"stream \u202e {number}" * 9: {"a": torch.zeros(2)} for number in range(3000)}
    with pytest.raises(BadUpdate, match="instead of delta") as refused:
        admit(Update("c", 0, 0, many, 1.0, {}), {"c": Task("c", 0, 0, {})}, {"c"}, like)
    assert len(str(refused.value)) < 1000
    assert str(refused.value).isprintable()


def test_a_weight_of_nothing_is_refused():
    like = {"delta": {"a": torch.zeros(2)}}
    with pytest.raises(BadUpdate, match="weight 5e-324"):
        admit(Update("c", 0, 0, like, 5e-324, {}), {"c": Task("c", 0, 0, {})}, {"c"}, like)


@pytest.mark.parametrize("taken", [np.array([1, 2]), {}, "no", 0])
def test_any_value_of_taken_in_a_sites_reply_is_read_as_true_or_false(taken: object):
    """FLARE reads arrays and other objects, of which not all are true or false."""
    said = {"progress": 1, "answer": b"x", "taken": taken, "unknown": np.array([1, 2])}
    proxy = SimpleNamespace(ask=lambda *_: said)
    assert CollabTransport({"c": lambda **_: proxy}).ask("c", "t", b"", 0.1) == PollResult(1, b"x", True)
    said["taken"] = False
    assert not CollabTransport({"c": lambda **_: proxy}).ask("c", "t", b"", 0.1).accepted


@pytest.mark.parametrize("name", ["../../x", ".hidden", "a/b", "", "A B"])
def test_a_job_whose_name_is_a_path_is_refused(name: str):
    """A job need not come from `weft submit`."""
    with pytest.raises(ConfigError, match="cannot be called"):
        ServerJob({}, name).main()


def test_shapes_whose_product_overflows_are_a_failure():
    shapes = ([2**52, 2**52, 0], [0, 2**40, 2**40], [2**31] * 7 + [0])
    for shape in shapes:
        tensor = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
        said = {"kind": "Update", "run": "r", "client": "c", "round": 0, "base_version": 0, "attempt": 0, "weight": 1.0}
        said |= {"parts": ["delta"], "names": [["delta", "a"]], "metrics": {}}
        reply = open_reply(signed(said, {"0": tensor}), "c", 0, run="r", max_bytes=1 << 20, max_tensors=8)
        assert isinstance(reply, Failure), shape
        assert reply.bad


def test_ten_thousand_broken_answers_of_every_kind_raise_nothing():
    """Handshakes, refusals, scores and failures, each broken at random; updates have a test of their own."""
    chance = random.Random(17)
    score = wire.pack(Score("c", 3, {"loss": 1.0, "rows": 4.0, "confusion/red/blue": 2.0}), "r")
    failure = wire.pack(Failure("c", 3, "the site failed"), "r")
    handshake = json.dumps({"rows": 22, "held": 2, "agreed": "0" * 64, "least": 2}).encode()
    refusal = json.dumps({"refused": "the model is not among what this site accepts"}).encode()
    read = 0
    for _ in range(10_000):
        whole = chance.choice((score, failure, handshake, refusal))
        raw = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(raw) or 1)
            kind = chance.randrange(4)
            if kind == 0 and raw:
                raw[place] = chance.randrange(256)
            elif kind == 1:
                del raw[place : place + chance.randint(1, 9)]
            elif kind == 2:
                raw[place:place] = chance.choice((b"[" * 3000, b"\\ud800", b"9" * 400, b"null", b"\x00\xff", b"1e999"))
            elif len(whole) > 8 and whole in (score, failure):
                header, body = wire_format.split_file(whole)
                said = json.loads(header["__metadata__"]["weft"])
                said[chance.choice(list(said))] = chance.choice((None, -1, 2**70, "\ud800", [[]], {}, 1e308, True))
                said.pop("digest", None)
                raw = bytearray(signed(said, body=bytes(body)))
        if whole in (handshake, refusal):
            said = _read(bytes(raw))
            assert "refused" in said or 0 < int(said["rows"]) < 1 << 31
            continue
        reply = open_reply(bytes(raw), "c", 3, run="r", max_bytes=1 << 20, max_tensors=8)
        try:
            admit_score(reply)
            read += 1
        except ClientFailed as error:
            str(error).encode()
    assert 0 < read < 2_000


@pytest.mark.parametrize("limit", [None, 0.0])
def test_a_site_whose_updates_are_huge_moves_no_model(run, sites: FakeSites, limit: float | None):
    """By default; the control without the limit is a model that is ruined, and a run that ends "normally"."""

    def change(raw: bytes, said: bytes) -> bytes:
        if raw[:1] == b"{" or not isinstance(reply := wire.unpack(said, run="run"), Update):
            return said
        streams = {name: {key: value * 1e6 for key, value in one.items()} for name, one in reply.streams.items()}
        return wire.pack(replace(reply, streams=streams), "run")

    hostile(sites, change)
    keys = run | {"num_rounds": 2, "eval_every": 0} | ({} if limit is None else {"max_update_norm": limit})
    done = serve(keys, sites, list(NAMES), "1")
    records = [json.loads(line) for line in (done.path / "metrics.jsonl").read_text().splitlines()]
    rounds = [one for one in records if one["event"] == "round"]
    largest = max(float(value.abs().max()) for value in weights(done).values())
    if limit is None:
        assert [one["clients"] for one in rounds] == [list(NAMES[:2])] * 2
        assert all("above 100 times the round's median" in one["failures"][VILLAIN] for one in rounds)
        assert largest < 10
    else:
        assert [one["clients"] for one in rounds] == [list(NAMES)] * 2
        assert largest > 100
