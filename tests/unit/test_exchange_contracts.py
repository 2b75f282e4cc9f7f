"""What codecs, privacy and protections are promised: memory, secrets, both directions, phases of their own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from support.quadratics import Federation
from weft.algorithms.fedavg import FedAvg
from weft.core.exchange import Codec, Privacy, Protection
from weft.core.secret import Secret
from weft.core.types import ProtectionReply, ProtectionRequest, Streams, Update
from weft.core.wire import pack, unpack
from weft.federation.clients import InMemory

SECRET = Secret(bytes(32))


@dataclass(frozen=True)
class Halves(Codec):
    """Sends float16 both ways; what rounding took from an update is added to the client's next one."""

    addable: ClassVar[bool] = False
    lossy: ClassVar[bool] = True
    remembers: ClassVar[bool] = True

    def encode(self, update, coding, party):
        streams: Streams = {}
        kept: Streams = {}
        for stream, values in update.streams.items():
            missing = party.memory.get(stream, {})
            whole = {name: value + missing.get(name, 0.0) for name, value in values.items()}
            streams[stream] = {name: value.half() for name, value in whole.items()}
            kept[stream] = {name: whole[name] - value.float() for name, value in streams[stream].items()}
        return replace(update, streams=streams), kept

    def decode(self, update, coding, party):
        assert update.streams.keys() == coding.like.keys()
        return replace(update, streams={s: {n: v.float() for n, v in x.items()} for s, x in update.streams.items()})

    def encode_task(self, task, coding, party):
        count = party.memory.get("sent", {}).get("count", torch.zeros(()))
        assert coding.like["params"].keys() == task.params.keys()
        params = {name: value.half() for name, value in task.params.items()}
        return replace(task, params=params), {"sent": {"count": count + 1}}

    def decode_task(self, task, coding, party):
        return replace(task, params={name: value.float() for name, value in task.params.items()}), party.memory


def test_a_codec_works_both_ways_and_remembers_at_both_ends():
    federation, plain, coded, memory = Federation(), [], [], InMemory()
    alone = federation.run(FedAvg(), 20, records=plain)
    state = federation.run(FedAvg(), 20, codec=Halves(), codec_down=Halves(), memory=memory, records=coded)
    assert [one.bytes_up * 2 for one in coded] == [one.bytes_up for one in plain]
    assert [one.bytes_down * 2 for one in coded] == [one.bytes_down for one in plain]
    assert state.memory["codec_down.sent"]["count"] == 20 * federation.cohort
    assert all("codec.delta" in memory.load(client, 20) for client in coded[-1].clients)
    assert not torch.equal(state.params["w"], alone.params["w"])
    torch.testing.assert_close(state.params["w"], alone.params["w"], rtol=0, atol=5e-3)


def test_an_update_that_cannot_be_decoded_is_that_clients_failure():
    class Hostile(Halves):
        def decode(self, update, coding, party):
            if update.client == "client_3":
                raise KeyError("scale")
            return super().decode(update, coding, party)

    records: list = []
    Federation(cohort=10).run(FedAvg(), 1, codec=Hostile(), records=records)
    assert records[0].failures == {"client_3": "sent an update that cannot be decoded (KeyError)"}
    assert records[0].bad == ["client_3"]
    assert len(records[0].clients) == 9


@dataclass(frozen=True)
class Noisy(Privacy):
    """Clips, adds noise at the client and at the server, and counts at both."""

    bounded: ClassVar[bool] = True
    draws_secrets: ClassVar[bool] = True

    def on_client(self, update, party):
        assert (update.weight, update.metrics) == (1.0, {})
        noise = party.secret.normal((3,), "noise", party.round, party.attempt)
        delta = {"w": update.streams["delta"]["w"].clamp(-1, 1) + 1e-3 * noise.float()}
        return replace(update, streams={"delta": delta}), self._count(party)

    def on_server(self, total, party):
        noise = party.secret.normal((3,), "noise", party.round, party.attempt)
        delta = {"w": total.streams["delta"]["w"] + 1e-2 * noise.float()}
        return replace(total, streams={"delta": delta}), self._count(party)

    def _count(self, party):
        return {"count": {"n": party.memory.get("count", {}).get("n", torch.zeros(())) + 1}}


def test_privacy_has_memory_and_secrets_and_a_resumed_run_draws_the_same():
    federation, whole, parts = Federation(), InMemory(), InMemory()
    run = {"privacy": Noisy(), "secret": SECRET}
    for memory in (whole, parts):
        memory.secrets |= {f"client_{n}": Secret(bytes([n]) * 32) for n in range(10)}
    state = federation.run(FedAvg(), 6, memory=whole, **run)
    half = federation.run(FedAvg(), 3, memory=parts, **run)
    again = federation.run(FedAvg(), 6, memory=parts, start=half, **run)
    assert torch.equal(state.params["w"], again.params["w"])
    assert state.memory["privacy.count"]["n"] == 6
    other = federation.run(FedAvg(), 6, memory=whole, privacy=Noisy())
    assert not torch.equal(state.params["w"], other.params["w"])  # the same seed, another secret


def test_under_a_bound_clients_weigh_alike_and_report_nothing():
    federation, records = Federation(cohort=10), []
    federation.run(FedAvg(), 1, privacy=Noisy(), records=records)
    assert records[0].sums == {}
    assert records[0].product_error is None
    plain: list = []
    federation.run(FedAvg(), 1, records=plain)
    assert plain[0].sums["rows"] > 0


PRIME = 2**31 - 1


@dataclass(frozen=True)
class Masks(Protection):
    """A toy of secure aggregation: masks that cancel in pairs (Bonawitz et al. 2017), without dropouts."""

    sum_only: ClassVar[bool] = True
    draws_secrets: ClassVar[bool] = True

    def _key(self, party) -> int:
        return int.from_bytes(party.secret.bytes(3, "key", party.round, party.attempt), "little") + 2

    def answer(self, request: ProtectionRequest, party):
        assert request.phase == "keys"
        public = torch.tensor(pow(7, self._key(party), PRIME))
        return ProtectionReply(request.client, request.round, "keys", {"keys": {"public": public}})

    def seal(self, update: Update, task, party):
        streams = {}
        for stream, values in update.streams.items():
            streams[stream] = {n: (v.double() * update.weight * 2**20).round().long() for n, v in values.items()}
            for peer, public in task.extra["masks"].items():
                if peer == update.client:
                    continue
                shared = pow(int(public), self._key(party), PRIME)
                for name, value in streams[stream].items():
                    seed = hashlib.sha256(f"{shared} {stream} {name}".encode()).digest()
                    mask = torch.frombuffer(bytearray(Secret(seed).bytes(8 * value.numel())), dtype=torch.int64)
                    streams[stream][name] = value + (mask if update.client < peer else -mask).reshape(value.shape)
        return replace(update, streams=streams)

    def collect(self, exchange, tasks, like, party):
        asked = [ProtectionRequest(task.client, task.round, "keys", {}, task.attempt) for task in tasks]
        keys = {reply.client: reply.streams["keys"]["public"] for reply in exchange(asked)}
        sealed = list(exchange([replace(task, extra=task.extra | {"masks": keys}) for task in tasks]))
        weight = sum(update.weight for update in sealed)
        mean = {
            stream: {name: sum(u.streams[stream][name] for u in sealed).double() / 2**20 / weight for name in values}
            for stream, values in like.items()
        }
        streams = {s: {n: v.to(like[s][n].dtype) for n, v in values.items()} for s, values in mean.items()}
        first, names = sealed[0], tuple(update.client for update in sealed)
        yield Update("", first.round, first.base_version, streams, weight, {}, first.attempt, names)


def test_a_protection_has_phases_of_its_own_and_the_server_sees_sums_only():
    federation, plain, masked = Federation(), [], []
    alone = federation.run(FedAvg(), 5, records=plain)
    seen: list[Update] = []

    class Watched(Masks):
        def seal(self, update, task, party):
            seen.append(sealed := super().seal(update, task, party))
            return sealed

    state = federation.run(FedAvg(), 5, protection=Watched(), records=masked)
    torch.testing.assert_close(state.params["w"], alone.params["w"], rtol=0, atol=1e-4)
    assert [one.clients for one in masked] == [one.clients for one in plain]
    sizes = torch.stack([update.streams["delta"]["w"].double().abs() for update in seen]) / 2**20
    assert sizes.median() > 1e9  # of updates that are smaller than 10


@pytest.mark.parametrize(
    "message",
    [
        ProtectionRequest("a", 3, "keys", {"keys": {"b": torch.tensor(5)}}, 2),
        ProtectionReply("a", 3, "unmask", {"shares": {"b": torch.arange(4)}}),
    ],
)
def test_messages_of_a_protection_cross_the_wire(message):
    found = unpack(pack(message, "run"), run="run")
    assert type(found) is type(message)
    assert (found.client, found.round, found.phase) == (message.client, message.round, message.phase)
    assert vars(found).get("attempt") == vars(message).get("attempt")
    for stream, values in message.streams.items():
        assert all(torch.equal(found.streams[stream][name], value) for name, value in values.items())
