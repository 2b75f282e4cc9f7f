"""Thousands of broken messages in every step of the exchange: each is its site's failure, and nobody else's."""

from __future__ import annotations

import json
import random
import resource
import threading
import tracemalloc
from dataclasses import replace

import pytest
import torch

from support.mutants import ESCAPES, apart, damaged, deep, false_words, lying, miscoded, signed
from support.updates import PLAN, STATE, Posted, update
from weft import registry
from weft.compression.coded import Coded
from weft.core import wire
from weft.core.exchange import Protection
from weft.core.party import Party
from weft.core.types import (
    Failure,
    Probe,
    ProtectionReply,
    ProtectionRequest,
    Reply,
    Score,
    Task,
    Undo,
)
from weft.errors import BadUpdate
from weft.evaluation.heldout import HeldOut
from weft.federation.coding import coding_of
from weft.federation.round import run_round
from weft.federation.scores import evaluate
from weft.federation.state import Participant
from weft.launch.records import evaluation_record
from weft.runtimes.mailbox import PollResult
from weft.runtimes.remote import RemoteSites
from weft.sites.agreement import agreement
from weft.sites.handshake import MOST_ROWS, Handshake, Terms, shake_hands

GOOD = ("good_0", "good_1", "good_2")
TERMS = Terms({"num_rounds": 9}, "base", "birth", "1", 1000, 1)
AGREED = agreement(TERMS.run, TERMS.base, TERMS.version)


class Keys(Protection):
    """A protection with a phase of its own before the updates."""

    def collect(self, exchange, tasks, like, party):
        answered = set()
        for reply in exchange([ProtectionRequest(task.client, task.round, "keys") for task in tasks]):
            if isinstance(reply, ProtectionReply) and (reply.round, reply.phase) == (party.round, "keys"):
                answered.add(reply.client)
            elif isinstance(reply, Failure):
                yield reply
            else:
                yield Failure(reply.client, party.round, "sent no keys", bad=True)
        yield from exchange([task for task in tasks if task.client in answered])


class Line:
    """Sites that answer at once: three honest ones, and others that damage one step of the exchange, or lie in it."""

    def __init__(self, seed: int, step: str) -> None:
        self.seed, self.step, self.sent = seed, step, 0
        self._lock = threading.Lock()

    def ask(self, client: str, ticket: str, raw: bytes | None, wait: float) -> PollResult:
        assert raw is not None
        step, honest = self._honest(client, raw)
        if client in GOOD or step != self.step:
            return PollResult(1, honest)
        with self._lock:
            self.sent += 1
        # By name, since the threads of an exchange come in any order.
        chance = random.Random(f"{self.seed} {client} {ticket.split('/')[1]}")
        how = damaged if chance.random() < 0.5 else (false_words if raw[:1] == b"{" else lying)
        return PollResult(1, how(honest, chance))

    def _honest(self, client: str, raw: bytes) -> tuple[str, bytes]:
        if raw[:1] == b"{":
            said = {"rows": 10, "held": 2, "agreed": AGREED, "least": 2}
            return "cohort" if "cohort" in json.loads(raw) else "handshake", json.dumps(said).encode()
        message = wire.unpack(raw, run="r")
        answers: dict[type, Reply] = {
            Task: update(client, seed=int(client[-1])),
            Probe: Score(client, 4, {"loss_sum": 3.0, "loss_tokens": 2.0, "rows": 2.0, "confusion/0/1": 2.0}),
            Undo: Score(client, 4, {}),
            ProtectionRequest: ProtectionReply(client, 4, "keys", {"keys": {"public": torch.ones(4)}}),
        }
        return type(message).__name__, wire.pack(answers[type(message)], "r")


def sites(line: Line) -> RemoteSites:
    return RemoteSites(line, "r", 5.0, lambda: (20_000, 8), note=lambda _: None)


def harmless(words: str) -> bool:
    """Say whether a text can be shown."""
    return bool(words) and words.isprintable() and len(words) < 4000


def shaken(line: Line, names: list[str]) -> Handshake:
    notes: list[str] = []
    result = shake_hands(sites(line), TERMS, names, names, notes.append)
    assert all(map(harmless, notes))
    assert all(harmless(why) for why in result.refused.values())
    assert all(0 <= rows < MOST_ROWS for rows in (*result.rows, *result.held_out))
    assert not set(GOOD) & result.refused.keys()
    assert len(result.population().trained) == len(names)
    return result


ALONE, _ = run_round(PLAN, STATE, [Participant(name, 4, rows=10.0) for name in GOOD], sites(Line(0, "none")))


def one_round(line: Line, names: list[str]) -> None:
    """Run a round in which every villain's message of the line's step is broken.

    What a lie in the protection's own phase leaves as it was counts; no broken update does.
    """
    plan = replace(PLAN, protection=Keys(), max_update_norm=100.0)
    cohort = [Participant(name, 4, rows=10.0) for name in names]
    state, record = run_round(plan, STATE, cohort, sites(line))
    if line.step == "Task":
        assert record.clients == GOOD
        assert all(torch.equal(state.params[name], value) for name, value in ALONE.params.items())
    assert record.clients[: len(GOOD)] == GOOD
    assert {*record.clients, *record.failures} == set(names)
    assert len(record.failures) > (len(names) - len(GOOD)) / 2
    assert all(map(harmless, record.failures.values()))


def one_evaluation(line: Line, names: list[str]) -> None:
    """Evaluate; villains whose scores can be counted are in the record, as far as a record can hold them."""
    failures: dict[str, str] = {}
    scores = evaluate(PLAN, STATE, sites(line), names, failures=failures)
    assert set(GOOD) <= scores.clients.keys() <= set(names)
    assert scores.clients.keys() | failures.keys() == set(names)
    assert all(map(harmless, failures.values()))
    line_of_log = json.dumps(evaluation_record(4, scores, HeldOut.metrics), allow_nan=True)
    assert line_of_log.isprintable()
    assert len(failures) > (len(names) - len(GOOD)) / 2


def batch(seed: int, villains: int) -> int:
    """Break every step of an exchange once for so many villains; return how many messages were broken."""
    # After the honest ones, whose order is that of the sum.
    names = [*GOOD, *(f"bad_{number}" for number in range(villains))]
    lines = {step: Line(seed, step) for step in ("handshake", "cohort", "ProtectionRequest", "Task", "Probe", "Undo")}
    shaken(lines["handshake"], names)
    shaken(lines["cohort"], names)
    one_round(lines["ProtectionRequest"], names)
    one_round(lines["Task"], names)
    one_evaluation(lines["Probe"], names)
    replies = list(sites(lines["Undo"]).exchange([Undo(name, 4) for name in names]))
    assert [reply.client for reply in replies] == names
    return sum(line.sent for line in lines.values())


@pytest.mark.parametrize("least", [2_000, pytest.param(6 * 10_000, marks=pytest.mark.slow)])
def test_broken_messages_of_all_steps_end_nothing(least: int):
    """A third of a thousand of every step, or ten thousand."""
    before, sent, seed = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0, 0
    while sent < least:
        sent, seed = sent + batch(seed, 120), seed + 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
    assert threading.active_count() < 50


ADDED = ("random_k", "shared_low_rank")
"""Codecs of numbers that are added up, and so never packed."""
CODECS = [(name, zstd) for name in registry.CODECS if name != "none" for zstd in (False, name not in ADDED)]


def encoded_round(codec: Coded, seed: int, villains: int) -> int:
    """Run a round in which updates travel encoded, and every villain's is broken; return how many were."""
    plan, names = replace(PLAN, codec=codec), [*GOOD, *(f"bad_{number}" for number in range(villains))]

    def sent(client: str, number: int) -> bytes:
        given = update(client, seed=number)
        coding = coding_of(plan, client, 4, 4, given.streams)
        raw = bytes(wire.pack(codec.encode(given, coding, Party(client, 4))[0], "r"))
        chance = random.Random(f"{seed} {client}")
        return raw if client in GOOD else chance.choice((damaged, miscoded))(raw, chance)

    posted = [(name, sent(name, number)) for number, name in enumerate(names)]
    _, record = run_round(plan, STATE, [Participant(name, 4, rows=10.0) for name in names], Posted(posted))
    assert record.clients == GOOD
    assert record.failures.keys() == set(names) - set(GOOD)
    assert all(map(harmless, record.failures.values()))
    return villains


@pytest.mark.parametrize("least", [1, pytest.param(10_000, marks=pytest.mark.slow)])
def test_broken_updates_that_are_encoded_end_nothing(least: int):
    """A hundred of every codec at least."""
    before, sent, seed = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0, 0
    while sent < least:
        for name, zstd in CODECS:
            codec = registry.load(registry.CODECS, name, "codec")(zstd=zstd)
            sent, seed = sent + encoded_round(codec, seed, 100), seed + 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_the_same_updates_count_where_nothing_is_broken():
    """The control: an update is not refused for being encoded."""
    for name, zstd in CODECS:
        assert encoded_round(registry.load(registry.CODECS, name, "codec")(zstd=zstd), 0, 0) == 0


def test_broken_messages_allocate_nothing_beyond_their_own_size():
    """One claim of 2^39 rows or values would be terabytes."""
    tracemalloc.start()
    sent = batch(99, 60)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sent > 300
    assert most < 60 << 20  # 60 messages of 60 KB at a time, parsed


@pytest.mark.parametrize("words", ESCAPES)
def test_words_of_a_site_are_escaped_before_they_are_shown(words: str):
    """In refusals, failures, names of metrics, of streams and of parameters, and phases."""
    fields, header, body = apart(wire.pack(update("bad"), "r"))
    lies = [
        fields | {"metrics": {words: 1.0}},
        fields | {"kind": words},
        fields | {"parts": [f"stream.{words}"], "names": [[f"stream.{words}", name] for _, name in fields["names"]]},  # type: ignore[attr-defined]
        fields | {"names": [["stream.delta", words + str(number)] for number in range(3)]},
        {**apart(wire.pack(Failure("bad", 4, "x"), "r"))[0], "reason": words},
    ]

    class Says(Line):
        def ask(self, client: str, ticket: str, raw: bytes | None, wait: float) -> PollResult:
            if client in GOOD:
                return super().ask(client, ticket, raw, wait)
            said = lies[int(client[-1])]
            with_tensors = said["kind"] != "Failure"
            said = said | {"client": client}
            return PollResult(1, signed(said, header if with_tensors else {}, body if with_tensors else b""))

    names = [*GOOD, *(f"bad_{number}" for number in range(len(lies)))]
    _, record = run_round(PLAN, STATE, [Participant(name, 4, rows=10.0) for name in names], sites(Says(0, "")))
    assert record.failures.keys() == set(names) - set(GOOD)
    assert all(map(harmless, record.failures.values()))


def test_deep_fields_are_no_error_of_a_site_either():
    """A server may lie too: what reads a message at a site knows of one kind of error."""
    fields, header, body = apart(wire.pack(update("bad"), "r"))
    raw = signed(fields | {"weight": deep(900)}, header, body)
    with pytest.raises(BadUpdate):
        wire.unpack(raw, run="r")
    for depth in (990, 5_000, 30_000):
        text = json.dumps({"__metadata__": {"weft": '{"weight": ' + "[" * depth + "]" * depth + "}"}}).encode()
        with pytest.raises(BadUpdate):
            wire.unpack(len(text).to_bytes(8, "little") + text, run="r")
