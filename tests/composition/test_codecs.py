"""Codecs in whole federations: nothing is lost on the way, whatever happens to a round, and who holds what is known."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
import torch

import weft
from support.fake_sites import NAMES, FakeSites
from support.quadratics import WIDTH, Federation
from support.results import metrics
from weft import registry
from weft.algorithms.diloco import DiLoCo
from weft.algorithms.fedavg import FedAvg
from weft.algorithms.fedbuff import FedBuff
from weft.compression import coded, held
from weft.compression.coded import Coded
from weft.compression.held import DIFFERENCES, HELD, VERSIONS
from weft.config import build
from weft.core import tensors, wire, wire_format
from weft.core.exchange import Codec
from weft.core.parts import Algorithm
from weft.core.types import Task, Tensors, Update
from weft.errors import ConfigError
from weft.federation.clients import InMemory
from weft.federation.record import RoundRecord
from weft.launch import compose
from weft.launch.dry_run import describe
from weft.sites.server import serve

LOSSY = [name for name in registry.CODECS if name != "none"]
SMALL: dict[str, dict[str, Any]] = {
    "int8": {"block": 2},
    "int4": {"block": 2},
    "sign": {"block": 2},
    "topk": {"keep": 1, "chunk": 3},
    "sparse_loco": {"keep": 1, "chunk": 3, "momentum": 1.0},
    "random_k": {"every": 2},
}
"""Parameters with which a codec loses much of a model of three numbers."""


ONE: dict[str, Any] = {"steps": 1, "lr": 0.4}
"""What codecs do has to do with no step but the last, and steps are what takes time."""


def codec_of(name: str, **args: Any) -> Coded:
    codec: Coded = registry.load(registry.CODECS, name, "codec")(**SMALL.get(name, {}) | args)
    return codec


@dataclass
class Watched(Codec):
    """A codec that notes the delta and the decoded delta of every client and round; later attempts replace earlier."""

    inner: Coded
    deltas: dict[tuple[str, int], Tensors] = field(default_factory=dict)
    decoded: dict[tuple[str, int], Tensors] = field(default_factory=dict)
    held: dict[tuple[str, int], Tensors] = field(default_factory=dict)
    whole: set[tuple[str, int]] = field(default_factory=set)

    lossy = True
    remembers = True
    addable = False

    def encode(self, update, coding, party):
        self.deltas[update.client, update.round] = update.streams["delta"]
        return self.inner.encode(update, coding, party)

    def decode(self, update, coding, party):
        found = self.inner.decode(update, coding, party)
        self.decoded[update.client, update.round] = found.streams["delta"]
        return found

    def encode_task(self, task, coding, party):
        return self.inner.encode_task(task, coding, party)

    def decode_task(self, task, coding, party):
        self.whole |= set() if DIFFERENCES in task.extra else {(task.client, task.round)}
        found = self.inner.decode_task(task, coding, party)
        self.held[task.client, task.round] = found[0].params
        return found

    def settle(self, memory, round, used, lost):
        return self.inner.settle(memory, round, used, lost)


def used(records: list[RoundRecord]) -> list[tuple[str, int]]:
    """Return the client and the round of every update that is in the model."""
    return [(client, record.round) for record in records if not record.repeated for client in record.clients]


EVENTS: dict[str, tuple[Algorithm, Federation, dict[str, Any]]] = {
    "drop-outs": (FedAvg(), Federation(failure_rate=0.3), {}),
    "repeated rounds": (FedAvg(), Federation(failure_rate=0.3), {"quorum": 4}),
    "over-selection": (FedAvg(), Federation(over=0.6), {}),
    "a buffer": (FedBuff(), Federation(speeds=(1.0, 0.3, 0.5)), {}),
    "outer momentum": (DiLoCo(), Federation(failure_rate=0.3), {}),
}


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("name", LOSSY)
def test_what_was_used_and_what_clients_keep_are_all_deltas(name: str, event: str):
    algorithm, federation, more = EVENTS[event]
    watch, memory, records = Watched(codec_of(name)), InMemory(), []
    federation.run(algorithm, 50, codec=watch, memory=memory, records=records, **ONE, **more)
    assert any(record.repeated for record in records) == (event == "repeated rounds")
    assert len(used(records)) > 150
    check_conserved(watch, memory, records, loses=name != "shared_low_rank")  # a vector is sent as it is


def check_conserved(watch: Watched, memory: InMemory, records: list[RoundRecord], loses: bool = True) -> None:
    whole = torch.zeros(WIDTH, dtype=torch.float64)
    for client in {client for client, _ in used(records)}:
        mine = [key for key in used(records) if key[0] == client]
        deltas = torch.stack([watch.deltas[key]["w"].double() for key in mine]).sum(0)
        sent = torch.stack([watch.decoded[key]["w"].double() for key in mine]).sum(0)
        size = sum(float(watch.deltas[key]["w"].norm()) for key in mine)
        kept = memory.load(client, 50)["codec.error"]["w"]
        assert float((sent + kept - deltas).norm()) < 1e-6 * size
        whole += kept.abs()
    assert (float(whole.norm()) > 0) == loses


def test_the_sums_differ_where_an_unused_update_is_not_undone(monkeypatch: pytest.MonkeyPatch):
    """The control: without the undo, what such an update held is missing."""
    monkeypatch.setattr(InMemory, "drop", lambda self, client, round: None)
    watch, memory, records = Watched(codec_of("topk")), InMemory(), []
    federation = Federation(failure_rate=0.3)
    federation.run(FedAvg(), 50, codec=watch, memory=memory, records=records, quorum=4, **ONE)
    with pytest.raises(AssertionError):
        check_conserved(watch, memory, records)


@pytest.mark.parametrize("name", LOSSY)
def test_a_run_that_was_killed_in_a_round_and_resumed_is_one_that_was_not(name: str):
    """The killed round's memory is there, and is not seen."""
    federation = Federation(failure_rate=0.2)
    codecs = ONE | {"codec": codec_of(name), "codec_down": codec_of(name)}
    whole, parts = InMemory(), InMemory()
    state = federation.run(FedAvg(), 40, memory=whole, **codecs)
    half = federation.run(FedAvg(), 20, memory=parts, **codecs)
    federation.run(FedAvg(), 21, memory=parts, start=half, **codecs)  # round 21 is computed and never committed
    again = federation.run(FedAvg(), 40, memory=parts, start=half, **codecs)
    assert torch.equal(state.params["w"], again.params["w"])
    assert state.memory.keys() == again.memory.keys()
    for client in (f"client_{number}" for number in range(10)):
        one, other = whole.load(client, 40), parts.load(client, 40)
        assert all(torch.equal(one[s][n], other[s][n]) for s in one for n in one[s])


@pytest.mark.parametrize("failures", [0.0, 0.3])
@pytest.mark.parametrize("name", LOSSY)
def test_clients_hold_what_the_server_thinks(name: str, failures: float):
    """Five of ten in a round, so that most have missed some; the codec of three numbers loses much of each."""
    federation = Federation(failure_rate=failures)
    down, memory, records = Watched(codec_of(name)), InMemory(), []
    state = federation.run(FedAvg(), 40, codec_down=down, memory=memory, records=records, quorum=3, **ONE)
    rounds = {record.round for record in records}
    taken = {key: down.held[key] for key in used(records)}  # another attempt draws other differences
    for round in rounds:
        (first, *others) = [params for (_, of), params in taken.items() if of == round]
        assert all(torch.equal(first["w"], other["w"]) for other in others)
    newest = max(taken, key=lambda key: key[1])
    (known,) = [values for stream, values in state.memory.items() if stream.endswith(f".{HELD}")]
    assert torch.equal(known["w"], down.held[newest]["w"])
    assert {int(version) for version in state.memory[f"codec_down.{VERSIONS}"].values()} <= rounds


@cache
def arrived(clients: int) -> torch.Tensor:
    return Federation(clients, cohort=clients).run(FedAvg(), 40, **ONE).params["w"]


@pytest.mark.parametrize("name", LOSSY)
def test_parameters_sent_as_differences_arrive_where_whole_ones_do(name: str):
    """One of three numbers a round is enough, since what was not sent is in the next difference."""
    biased = name in ("sign", "topk", "sparse_loco")  # what these lose of single clients is less in a mean of more
    clients = 6 if biased else 4
    federation, plain = Federation(clients, cohort=clients), arrived(clients)
    rounds = 100 if name == "random_k" else 40  # a number may wait for many rounds, however large it has become
    assert torch.dist(federation.run(FedAvg(), rounds, codec_down=codec_of(name), **ONE).params["w"], plain) < 1e-6
    both = federation.run(FedAvg(), rounds, codec=codec_of(name), codec_down=codec_of(name), **ONE).params["w"]
    assert torch.dist(both, plain) < (1.0 if biased else 0.03)


def test_a_client_that_lost_its_memory_is_sent_the_whole_and_goes_on():
    federation, memory, records = Federation(cohort=10), InMemory(), []
    down = Watched(codec_of("int8"))
    state = federation.run(FedAvg(), 10, codec_down=down, memory=memory, records=records)
    assert down.whole == set()
    memory.memories.pop("client_3")
    federation.run(FedAvg(), 13, codec_down=down, memory=memory, records=records, start=state)
    lost, after, last = records[10:]
    assert lost.failures == {"client_3": "does not hold the version of the parameters that the server counts from"}
    assert lost.bad == []
    assert after.failures == last.failures == {}
    assert down.whole == {("client_3", 11)}


@pytest.mark.parametrize("quorum", [0, 1])
def test_a_cohort_that_lost_all_memory_is_sent_the_whole_and_goes_on(quorum: int):
    federation, memory, records = Federation(cohort=10), InMemory(), []
    down = codec_of("int8")
    state = federation.run(FedAvg(), 5, codec_down=down, memory=memory, quorum=quorum)
    memory.memories.clear()
    federation.run(FedAvg(), 9, codec_down=down, memory=memory, records=records, start=state, quorum=quorum)
    assert [len(record.clients) for record in records] == [0] + [10] * (len(records) - 1)


def test_a_client_that_began_from_another_model_is_sent_the_whole(monkeypatch: pytest.MonkeyPatch):
    """Weights that are drawn on another kind of machine, say."""
    decode = held.decode_chain

    def other(grow, size, task, coding, party):
        like = coding.like["params"]
        turned = {name: value + 1 for name, value in like.items()} if task.client == "client_3" else like
        return decode(grow, size, task, coding._replace(like={"params": turned}), party)

    monkeypatch.setattr(coded, "decode_chain", other)
    records: list[RoundRecord] = []
    down = Watched(codec_of("int8"))
    Federation(cohort=10).run(FedAvg(), 4, codec_down=down, records=records)
    assert [list(record.failures) for record in records] == [["client_3"], [], [], []]
    assert down.whole == {("client_3", 1)}


def test_a_repeated_round_forgets_who_lost_its_memory_too():
    federation, memory, records = Federation(cohort=10), InMemory(), []
    down = codec_of("int8")
    state = federation.run(FedAvg(), 5, codec_down=down, memory=memory, quorum=10)
    memory.memories.pop("client_3")
    federation.run(FedAvg(), 6, codec_down=down, memory=memory, records=records, start=state, quorum=10)
    assert [record.repeated for record in records] == [True, False]


def test_differences_are_kept_no_longer_than_the_whole_is_smaller():
    """Of three numbers, a difference in bfloat16 is half the whole: a client that missed two rounds is sent that."""
    down = Watched(codec_of("bf16"))
    state = Federation(cohort=2).run(FedAvg(), 30, codec_down=down)
    (kept,) = [values for stream, values in state.memory.items() if stream.endswith(f".{DIFFERENCES}")]
    assert tensors.num_bytes(kept) < 4 * WIDTH
    assert 20 < len(down.whole) < 55


RANKS = {"client_ranks": [2, 4, 8], "num_clients": 3, "sample_clients": 3, "use_peft": True}


@pytest.mark.parametrize("name", LOSSY)
def test_runs_of_clients_of_different_ranks_send_few_bytes_both_ways(keys, name: str):
    more = {"num_rounds": 6, "eval_every": 0, "dtype": "float32"}
    run = weft.train(keys | RANKS | more | {"codec": name, "codec_down": name}, quiet=True)
    plain = weft.train(keys | RANKS | more | {"output_dir": f"{keys['output_dir']}-plain"}, quiet=True)
    lines, others = ([line for line in metrics(one) if line["event"] == "round"] for one in (run, plain))
    assert run.summary["failures"] == {}
    assert lines[0]["bytes_down"] == 3 * 32  # everybody holds the model that the run begins from: a digest
    least = 1.9 if name in ("bf16", "low_rank") else 3.9
    for line, other in zip(lines[1:], others[1:], strict=True):
        assert line["bytes_up"] * least < other["bytes_up"]
        assert line["bytes_down"] * least < other["bytes_down"]


def test_ranks_conserve_what_they_send(keys, monkeypatch: pytest.MonkeyPatch):
    """Clients of different ranks, each with a memory of its own shapes."""
    sums: dict[str, Tensors] = {}
    encode, decode = Coded.encode, Coded.decode

    def add(client: str, values: Tensors, sign: float) -> None:
        before = sums.get(client, tensors.zeros(values))
        sums[client] = {name: before[name].double() + sign * value.double() for name, value in values.items()}

    def encoded(self, update, coding, party):
        add(update.client, update.streams["delta"], 1.0)
        return encode(self, update, coding, party)

    def decoded(self, update, coding, party):
        found = decode(self, update, coding, party)
        add(update.client, found.streams["delta"], -1.0)
        return found

    monkeypatch.setattr(Coded, "encode", encoded)
    monkeypatch.setattr(Coded, "decode", decoded)
    run = weft.train(keys | RANKS | {"codec": "topk", "num_rounds": 8, "eval_every": 0, "dtype": "float32"}, quiet=True)
    from weft.launch.client_memory import DiskMemory

    assert sorted(sums) == sorted(run.summary["clients"])
    for client, rest in sums.items():
        kept = DiskMemory(run.directory).load(client, 8)["codec.error"]
        assert all(kept[name].shape == value.shape for name, value in rest.items())
        for name, value in rest.items():
            assert float((value - kept[name]).norm()) <= 1e-6 * max(1.0, float(value.norm()))


def body_size(raw: bytes) -> int:
    """Return the bytes of a message's tensors."""
    return len(wire_format.split_file(raw)[1])


def test_what_the_log_says_is_what_crosses_the_line_both_ways(run, sites: FakeSites):
    given = run | {"codec": "sparse_loco", "codec_down": "int4", "num_rounds": 4, "sample_clients": 2, "eval_every": 0}
    done = serve(given, sites, list(NAMES), "1")
    sent = {"up": 0, "down": 0, "whole": 0}
    for raw in {raw for _, raw in sites.asked if raw and raw[:1] != b"{"}:
        message = wire.unpack(raw, run="run")
        if isinstance(message, Task):
            sent["down"] += body_size(raw)
            sent["whole"] += bool(message.params)
    for raw in sites.answered:
        if raw[:1] != b"{" and isinstance(wire.unpack(raw, run="run"), Update):
            sent["up"] += body_size(raw)
    lines = [line for line in metrics(done) if line["event"] == "round"]
    assert sum(line["bytes_up"] for line in lines) == sent["up"] > 0
    assert sum(line["bytes_down"] for line in lines) == sent["down"] > 0
    assert sent["whole"] == 0  # every site holds the model that the run begins from


PREDICTED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "int4 and topk": {"codec": "int4", "codec_down": "topk"},
    "bf16 down, which is soon more than the whole": {"codec": "sparse_loco", "codec_down": "bf16"},
    "ranks": {"codec": "low_rank", "codec_down": "int8", "client_ranks": [2, 4, 8]},
    "all of them": {"codec": "int8", "codec_down": "int4", "sample_clients": 5},
    "all parameters": {"codec": "sparse_loco", "codec_down": "sparse_loco", "use_peft": False},
    "fragments": {"fed_alg": "diloco", "fed_args": {"fragments": 2}},  # who was not there before is sent all of them
    "a delay": {"fed_alg": "diloco", "fed_args": {"fragments": 2, "delay": 1}, "codec": "int4", "sample_clients": 5},
}


@pytest.mark.parametrize("changes", PREDICTED.values(), ids=PREDICTED.keys())
def test_the_bytes_of_a_run_are_known_before_it_runs(keys, changes: dict[str, Any], capsys):
    """To two per cent, and here to the byte but for what is rounded in words."""
    given = keys | {"num_clients": 5, "sample_clients": 2, "num_rounds": 7, "max_steps": 1, "eval_every": 0} | changes
    run = weft.train(given, quiet=True)
    capsys.readouterr()
    out = describe(build(given))
    (found,) = re.findall(r"^the run +([\d.]+) (\w+) up\+down", out, re.MULTILINE)
    unit = {"B": 1, "bytes": 1, "kB": 1e3, "MB": 1e6}[found[1]]
    sent = run.summary["bytes_up"] + run.summary["bytes_down"]
    assert float(found[0]) * unit == pytest.approx(sent, rel=0.02)


def test_packed_bytes_are_said_to_be_a_bound(keys):
    assert re.search(
        r"^the run +at most ", describe(build(keys | {"codec": "int4", "codec_args": {"zstd": True}})), re.M
    )


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "control variates": ({"fed_alg": "scaffold", "codec": "int4"}, "adds up over rounds .* --codec none"),
    "dynamic regularisers": ({"fed_alg": "feddyn", "codec": "bf16"}, "adds up over rounds"),
    "recipes": ({"fed_alg": "fedkseed", "codec": "int8"}, "numbers that have to arrive as they are"),
    "recipes down": ({"fed_alg": "fedkseed", "codec_down": "int8"}, "no parameters travel .* --codec_down none"),
    "nobody": ({"fed_alg": "local", "codec": "topk"}, "sends no updates"),
    "nobody down": ({"fed_alg": "central", "codec_down": "topk"}, "no parameters travel"),
    "a buffer down": ({"fed_alg": "fedbuff", "codec_down": "int4"}, "several versions"),
    "fragments down": ({"fed_alg": "diloco", "fed_args": {"fragments": 2}, "codec_down": "int4"}, "fragments"),
    "clusters": ({"cluster": 2, "codec": "int4"}, "clusters are several"),
    "clusters down": ({"cluster": 2, "codec_down": "int4"}, "leave out --cluster"),
    "another basis": ({"use_peft": True, "lora_aggregation": "stack", "codec": "int4"}, "changes the basis"),
    "another basis down": ({"use_peft": True, "lora_aggregation": "svd", "codec_down": "int4"}, "changes the basis"),
    "several processes": ({"use_peft": False, "parallel": "fsdp", "codec": "int4"}, "several processes"),
    "instructions": (
        {"use_peft": False, "prompt_method": "text", "prompt_candidates": ["x"], "fed_alg": "fedtext", "codec": "int8"},
        "have to arrive as they are",
    ),
    "a parameter": ({"codec": "topk", "codec_args": {"keep": 0}}, "write such as keep=64"),
    "a parameter down": ({"codec_down": "int4", "codec_down_args": {"rank": 1}}, "has no parameter 'rank'"),
}


ONE_STEP = {"max_steps": 1, "gradient_accumulation_steps": 1}
MODEL = {"model_name_or_path": "there/is/none"}


@pytest.mark.parametrize(("changes", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_a_codec_cannot_go_with_is_refused_before_a_model_is_loaded(keys, changes: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        weft.train({name: keys[name] for name in ("dataset_name", "output_dir")} | MODEL | changes)


def test_every_codec_goes_with_every_algorithm_that_is_not_refused(keys):
    """What goes together is written down here by names, apart from the traits."""
    neither = {"fedkseed", "local", "central", "fedbpt", "fedtext"}
    for name in LOSSY:
        for fed_alg in registry.ALGORITHMS:
            for key, without in (("codec", {"scaffold", "feddyn"}), ("codec_down", {"fedbuff"})):
                config = build(keys | ONE_STEP | {"fed_alg": fed_alg, key: name})
                if fed_alg in neither | without:
                    with pytest.raises(ConfigError):
                        compose.plan(config)
                else:
                    assert type(getattr(compose.plan(config), key)).__name__.lower() == name.replace("_", "")


def test_a_site_refuses_differences_that_its_server_cannot_have_sent(run, sites: FakeSites):
    """Damaged ones, ones that lead nowhere, and more of them than the parameters have bytes."""
    given = run | {"codec_down": "int4", "num_rounds": 3, "eval_every": 0}
    serve(given, sites, list(NAMES), "1")
    (task,) = (
        message
        for raw in {raw for name, raw in sites.asked if name == "hospital_a" and raw and raw[:1] != b"{"}
        if isinstance(message := wire.unpack(raw, run="run"), Task) and message.round == 2
    )
    (packed,) = task.extra[DIFFERENCES].values()
    wrong = {
        "no chain": ({}, "does not hold"),
        "another start": ({"start": torch.zeros(32, dtype=torch.uint8), "0.2": packed}, "does not hold"),
        "a start of no bytes": ({"start": torch.zeros(32), "0.2": packed}, "does not hold"),
        "another version": ({"0.2": packed}, "does not hold"),
        "too short": ({"1.2": packed[:-1]}, "cannot be decoded"),
        "no bytes": ({"1.2": packed.float()}, "cannot be decoded"),
        "a gap": ({"1.2": packed, "3.4": packed}, "one missing among them"),
        "no names": ({"x": packed}, "without versions"),
        "other spellings": ({"1.01": packed, "01.2": packed}, "without versions"),
        "a negative version": ({"-1.2": packed}, "without versions"),
        "backwards": ({"1.1": packed, "1.2": packed}, "one missing among them"),
        "a long way": ({f"{n}.{n + 1}": packed[:0] for n in range(1, 900)}, "more differences"),
        "another start and no version": (
            {"start": torch.zeros(32, dtype=torch.uint8), "-1.2": packed},
            "without versions",
        ),
        "another round": ({"1.7": packed}, "lead to no parameters of this round"),
        "a bomb": ({f"{n}.{n + 1}": packed for n in range(1, 60)}, "more differences"),
        "nothing finite": ({"1.2": torch.full_like(packed, 0xFF)}, "lead to no parameters"),
    }
    client = sites.site_clients["hospital_a"]
    for what, (chain, words) in wrong.items():
        raw = wire.pack(replace(task, extra={DIFFERENCES: dict(chain)}), "run")
        reply = wire.unpack(client.work(raw), run="run")
        assert words in getattr(reply, "reason", ""), what
    assert isinstance(wire.unpack(client.work(wire.pack(task, "run")), run="run"), Update)


def test_the_log_and_the_card_name_the_codecs(keys):
    run = weft.train(keys | {"codec": "int8", "codec_down": "bf16", "num_rounds": 1, "eval_every": 0}, quiet=True)
    card = next(run.path.glob("*/README.md")).read_text()
    assert "| codec | int8 |" in card
    assert "| codec_down | bf16 |" in card
    assert json.loads((run.path / "summary.json").read_text())["bytes_up"] < 40_000
    assert copy.copy(run.summary)["failures"] == {}
