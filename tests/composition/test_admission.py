"""Updates that are damaged, hostile or too large: refused before they are averaged, and never fatal."""

from __future__ import annotations

import json
import pickle
import random
import resource
import struct
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from support.updates import PLAN, STATE, Posted, cohort, honest, update
from weft.core import wire, wire_format
from weft.core.types import Failure, ServerState, Task, Update
from weft.errors import BadUpdate
from weft.federation.admission import open_reply
from weft.federation.round import run_round


def mutants(raw: bytes, rng: random.Random) -> bytes:
    """Return other bytes: these, damaged in one of six ways."""
    way, size = rng.randrange(6), len(raw)
    made = bytearray(raw)
    if way == 0:
        for _ in range(rng.choice([1, 1, 8])):
            made[rng.randrange(size)] ^= 1 << rng.randrange(8)
    elif way == 1:
        made = made[: rng.randrange(size)]
    elif way == 2:
        at = rng.randrange(size)
        made[at:at] = rng.randbytes(rng.randrange(1, 64))
    elif way == 3:
        at, to, count = rng.randrange(size), rng.randrange(size), rng.randrange(1, 64)
        piece = bytes(made[at : at + count])
        made[to : to + len(piece)] = piece if piece != bytes(made[to : to + len(piece)]) else b"\x00" * len(piece)
    elif way == 4:
        at = rng.randrange(size)
        made[at : at + 8] = struct.pack("<Q", rng.choice([0, 1, 2**31, 2**63, 2**64 - 1, size]))
    else:
        digits = [at for at in range(8, size) if raw[at] in b"0123456789"][: 8 * 40]
        made[rng.choice(digits)] = ord(rng.choice('0123456789-.eE"[{}'))
    return bytes(made) if made != raw else mutants(raw, rng)


HOSTILE = {
    "another round": lambda u, rng: replace(u, round=rng.choice([5, 6, 1 << 40])),
    "an old round": lambda u, rng: replace(u, round=rng.randrange(4)),
    "another version": lambda u, rng: replace(u, base_version=rng.choice([3, 5, 99])),
    "another attempt": lambda u, rng: replace(u, attempt=rng.randrange(1, 9)),
    "a heavy weight": lambda u, rng: replace(u, weight=rng.choice([10.001, 11.0, 1e12, 1e308])),
    "no weight": lambda u, rng: replace(u, weight=rng.choice([0.0, -0.0, -1.0, -1e12])),
    "a weight that is no number": lambda u, rng: replace(u, weight=rng.choice([float("nan"), float("inf")])),
    "metrics": lambda u, rng: replace(u, metrics={"loss_sum": rng.choice([float("nan"), -float("inf"), 1e300])}),
    "no stream": lambda u, rng: replace(u, streams={}),
    "another stream": lambda u, rng: replace(u, streams=u.streams | {"control": u.streams["delta"]}),
    "a tensor too few": lambda u, rng: bend(u, lambda d: d.pop(rng.choice(list(d)))),
    "a tensor too many": lambda u, rng: bend(u, lambda d: d.update({"../../x": torch.ones(1)})),
    "another shape": lambda u, rng: bend(u, lambda d: d.update(norm=torch.ones(rng.choice([(1,), (7,), (8, 1), ()])))),
    "another format": lambda u, rng: bend(u, lambda d: d.update(norm=d["norm"].to(rng.choice(FORMATS)))),
    "not finite": lambda u, rng: bend(u, lambda d: spoil(d, rng)),
    "a name of another": lambda u, rng: replace(u, client="good_0"),
}
FORMATS = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32)


def bend(given: Update, how) -> Update:
    delta = {name: value.clone() for name, value in given.streams["delta"].items()}
    how(delta)
    return replace(given, streams={"delta": delta})


def spoil(delta: dict[str, torch.Tensor], rng: random.Random) -> None:
    value = delta[rng.choice(list(delta))].view(-1)
    value[rng.randrange(len(value))] = rng.choice([float("nan"), float("inf"), -float("inf")])


def rounds_against(bad: list[bytes], each: int = 100) -> Iterator[tuple[ServerState, object]]:
    """Run rounds of three honest clients among many others that send these."""
    for at in range(0, len(bad), each):
        some = {f"bad_{i}": raw for i, raw in enumerate(bad[at : at + each])}
        sent = list(some.items())
        rng = random.Random(at)
        for place, one in enumerate(honest()):  # in their order, among the others
            sent.insert(rng.randrange(place * 30, place * 30 + 30), one)
        yield run_round(PLAN, STATE, cohort(*some), Posted(sent))


def test_ten_thousand_damaged_updates_and_two_thousand_hostile_ones_change_nothing():
    alone, _ = run_round(PLAN, STATE, cohort(), Posted(honest()))
    rng, good = random.Random(0), wire.pack(update("bad", seed=9), "r")
    damaged = [mutants(good, rng) for _ in range(10_000)]
    assert good not in damaged
    hostile = []
    for number in range(2_000):
        how = list(HOSTILE.values())[number % len(HOSTILE)]
        hostile.append((f"bad_{number % 100}", how(update(f"bad_{number % 100}", seed=number), rng)))
    packed = [wire.pack(one, "r") for _, one in hostile]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for state, record in rounds_against(damaged):
        assert record.clients == ("good_0", "good_1", "good_2")
        assert all(torch.equal(state.params[name], value) for name, value in alone.params.items())
        refused += len(record.failures)
    for state, record in rounds_against(packed):
        assert record.clients == ("good_0", "good_1", "good_2")
        assert all(torch.equal(state.params[name], value) for name, value in alone.params.items())
        assert len(record.bad) + record.late == 100
    assert refused == 10_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def header(entries: dict[str, object], said: dict[str, object] | None = None, body: bytes = b"") -> bytes:
    """Return a file as an attacker may write it, its digest right."""
    known = {
        "v": wire.VERSION,
        "kind": "Update",
        "run": "r",
        "client": "bad",
        "round": 4,
        "base_version": 4,
        "attempt": 0,
    }
    known |= {"weight": 1.0, "metrics": {}, "parts": ["stream.delta"], "names": []} | (said or {})
    known["digest"] = wire_format.signature_of(known, entries, wire_format.digest_of([memoryview(body)]))
    text = json.dumps(entries | {"__metadata__": {"weft": json.dumps(known)}}).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


ONE = {"names": [["stream.delta", "norm"]]}
BOMBS = {
    "a shape of 10^12": header({"0": entry([10**12], 0, 4 * 10**12)}, ONE),
    "a shape that wraps around": header({"0": entry([2**32, 2**32], 0, 0)}, ONE),
    "offsets that lie": header({"0": entry([2], 0, 4)}, ONE, b"1234"),
    "overlapping tensors": header(
        {"0": entry([1], 0, 4), "1": entry([1], 0, 4)},
        {"names": [["stream.delta", "a"], ["stream.delta", "b"]]},
        b"1234",
    ),
    "10^5 tensors": header(
        {str(i): entry([0], 0, 0) for i in range(10**5)}, {"names": [["stream.delta", str(i)] for i in range(10**5)]}
    ),
    "bytes of nobody": header({}, None, b"12345678"),
    "a pickle": pickle.dumps(update("bad")),
    "a long header": (2**40).to_bytes(8, "little") + b"{" * 100,
    "a deep header": (10_000).to_bytes(8, "little") + b"[" * 10_000,
    "a number of endless digits": header({}, {"weight": 10**4000}),
    "a weight that is a word": header({}, {"weight": "1"}),
    "a round below zero": header({}, {"round": -1}),
    "no client": header({}, {"client": ""}),
    "another run": header({}, {"run": "x"}),
    "a task": wire.pack(Task("bad", 4, 4, {}), "r"),
    "a tensor named twice": header(
        {"0": entry([0], 0, 0), "1": entry([0], 0, 0)}, {"names": [["stream.delta", "a"], ["stream.delta", "a"]]}
    ),
    "a tensor of no part": header({"0": entry([0], 0, 0)}, {"names": [["elsewhere", "a"]]}),
    "a format that is code": header({"0": entry([1], 0, 4, "O")}, ONE, b"1234"),
    "too many metrics": header({}, {"metrics": {str(i): 0.0 for i in range(1000)}}),
    "nothing": b"",
}


@pytest.mark.parametrize("raw", BOMBS.values(), ids=BOMBS.keys())
def test_bombs_are_refused_before_anything_is_allocated(raw: bytes):
    began = time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reply = open_reply(raw, "bad", 4, run="r", max_bytes=1 << 26, max_tensors=8)
    assert isinstance(reply, Failure)
    assert reply.bad
    assert reply.client == "bad"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64_000
    assert time.process_time() - began < 1.0


def test_what_is_too_large_is_not_even_read():
    raw = wire.pack(update("bad"), "r")
    reply = open_reply(raw, "bad", 4, run="r", max_bytes=len(raw) - 1, max_tensors=8)
    assert "more than the limit" in reply.reason
    with pytest.raises(BadUpdate, match="exceeds the message"):
        wire.unpack((1 << 30).to_bytes(8, "little") + b"{}" * 10)
