"""Whatever one site says, in any message of the exchange, the others' run goes on."""

from __future__ import annotations

import json
import random

import pytest

from office import NAMES, Office
from weft.core import wire
from weft.core.types import Failure, Score
from weft.errors import ClientFailed
from weft.federation.admission import admit_score, opened
from weft.launch.served import _read, serve

VILLAIN = "hospital_c"


def hostile(sites: Office, change) -> None:
    """Let one site say what `change` makes of the honest words."""
    plain = sites.attendants[VILLAIN].work
    sites.attendants[VILLAIN].work = lambda raw: change(raw, plain(raw))  # type: ignore[method-assign]


def signed(said: dict[str, object], header: dict[str, object] | None = None, body: bytes = b"") -> bytes:
    """Return a message whose digest is right, whatever it says."""
    header = dict(header or {})
    said = {**said, "digest": wire._signature(said, header, wire._digest([memoryview(body)]))}
    raw = json.dumps(header | {"__metadata__": {"weft": json.dumps(said)}}).encode()
    return len(raw).to_bytes(8, "little") + raw + body


REFUSALS = {
    "a lone surrogate": '{"refused": "\\ud83d"}',
    "escapes for a terminal": '{"refused": "\\u001b[2J\\u001b]0;owned\\u0007"}',
    "a deep list": "[" * 60_000,
    "a deep list in an object": '{"rows": ' + "[" * 60_000,
    "a number": "7",
    "nothing": "",
    "endless words": json.dumps({"refused": "x" * 50_000}),
}


@pytest.mark.parametrize("words", REFUSALS.values(), ids=REFUSALS.keys())
def test_a_hello_that_is_answered_by_anything_ends_no_run(run, sites: Office, words: str):
    hostile(sites, lambda raw, said: words.encode() if raw[:1] == b"{" else said)
    told: list[dict[str, object]] = []
    done = serve(run | {"num_rounds": 1}, sites, list(NAMES), "1", hear=told.append)
    assert done.summary["rounds"] == 1
    assert done.summary["clients"].keys() == {"hospital_a", "hospital_b"}
    refused = str(told[0]["refused"][VILLAIN])  # type: ignore[index]
    assert refused
    assert refused.isprintable()
    assert len(refused) < 4000


SCORES: dict[str, dict[str, object]] = {
    "not finite": {"metrics": {"loss": float("inf")}},
    "not a number": {"metrics": {"loss": float("nan")}},
    "a cluster that is none": {"metrics": {"cluster/x": 1.0}},
    "a name that cannot be written": {"metrics": {"\ud83d": 1.0}},
    "no scores": {"kind": "Update"},
}


@pytest.mark.parametrize("lie", SCORES.values(), ids=SCORES.keys())
def test_scores_that_cannot_be_are_that_sites_failure(run, sites: Office, lie: dict[str, object]):
    def change(raw: bytes, said: bytes) -> bytes:
        if raw[:1] == b"{" or not isinstance(wire.unpack(said, run="run"), Score):
            return said
        header, _ = wire._split(said)
        return signed(json.loads(header["__metadata__"]["weft"]) | lie)

    hostile(sites, change)
    done = serve(run | {"num_rounds": 1}, sites, list(NAMES), "1")
    assert done.summary["rounds"] == 1
    assert VILLAIN not in done.summary["clients"] or done.summary["clients"][VILLAIN].get("loss") is None
    records = [json.loads(line) for line in (done.path / "metrics.jsonl").read_text().splitlines()]
    (found,) = [one for one in records if one["event"] == "round"]
    assert "was not evaluated" in found["failures"][VILLAIN]


def test_shapes_whose_product_overflows_are_a_failure():
    shapes = ([2**52, 2**52, 0], [0, 2**40, 2**40], [2**31] * 7 + [0])
    for shape in shapes:
        tensor = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
        said = {"kind": "Update", "run": "r", "client": "c", "round": 0, "base_version": 0, "attempt": 0, "weight": 1.0}
        said |= {"parts": ["delta"], "names": [["delta", "a"]], "metrics": {}}
        reply = opened(signed(said, {"0": tensor}), "c", 0, run="r", most=1 << 20, tensors=8)
        assert isinstance(reply, Failure), shape
        assert reply.bad


def test_ten_thousand_broken_answers_of_every_kind_raise_nothing():
    """Hellos, refusals, scores and failures, each broken at random; updates have a test of their own."""
    chance = random.Random(17)
    score = wire.pack(Score("c", 3, {"loss": 1.0, "rows": 4.0, "confusion/red/blue": 2.0}), "r")
    failure = wire.pack(Failure("c", 3, "the site failed"), "r")
    hello = json.dumps({"rows": 22, "held": 2, "agreed": "0" * 64, "least": 2}).encode()
    refusal = json.dumps({"refused": "the model is not among what this site accepts"}).encode()
    read = 0
    for _ in range(10_000):
        whole = chance.choice((score, failure, hello, refusal))
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
                header, body = wire._split(whole)
                said = json.loads(header["__metadata__"]["weft"])
                said[chance.choice(list(said))] = chance.choice((None, -1, 2**70, "\ud800", [[]], {}, 1e308, True))
                said.pop("digest", None)
                raw = bytearray(signed(said, body=bytes(body)))
        if whole in (hello, refusal):
            said = _read(bytes(raw))
            assert "refused" in said or 0 < int(said["rows"]) < 1 << 31
            continue
        reply = opened(bytes(raw), "c", 3, run="r", most=1 << 20, tensors=8)
        try:
            admit_score(reply)
            read += 1
        except ClientFailed as error:
            str(error).encode()
    assert read < 2_000
