"""Masked sums: equal to the plain mean, opened once and by enough clients, and refused by clients who are lied to."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.quadratics import Federation
from support.sealed_cohort import ROUND, Cohort, assert_mean
from weft.aggregation.mean import Mean
from weft.algorithms.fedavg import FedAvg
from weft.algorithms.fednova import FedNova
from weft.core.party import Party
from weft.core.promises import Promises
from weft.core.secret import Secret
from weft.core.types import DELTA, SCALARS, Failure, ProtectionReply, ProtectionRequest, Streams, Task, Update
from weft.errors import ClientFailed, ConfigError
from weft.federation.clients import InMemory
from weft.federation.outliers import limited
from weft.federation.record import RoundRecord
from weft.federation.weigher import Weigher
from weft.protection import fixed_point, masking, shamir
from weft.protection.fixed_point import Range
from weft.protection.groups import deal
from weft.protection.mask_client import Client
from weft.protection.masks import Masks
from weft.protection.members import Keys, Members, names_tensor, to_bytes, to_tensor
from weft.protection.sums import CUT, Grid, Masked, to_integers, to_update
from weft.weighting.size import Size


@pytest.mark.parametrize("count", [3, 4, 10, 23])
def test_the_sum_is_the_weighted_mean_and_no_update_is_seen(count: int):
    cohort = Cohort(count)
    found, failures = cohort.collect()
    assert not failures
    assert_mean(cohort, found, cohort.names)
    masked = torch.stack([one.streams["masked"]["numbers"] for one in cohort.seen if isinstance(one, Update)])
    assert all((one.weight, one.metrics) == (1.0, {}) for one in cohort.seen if isinstance(one, Update))
    words = masked.contiguous().numpy().view(np.uint64)
    assert 2**62 < np.median(words) < 3 * 2**62  # uniform over 64 bits, whatever is inside


@pytest.mark.parametrize("phase", ["keys", "shares", "task", "unmask"])
@pytest.mark.parametrize("neighbours", [0, 6])
def test_clients_that_drop_out_in_any_phase_leave_the_sum_of_the_others(phase: str, neighbours: int):
    for seed in range(6):
        cohort = Cohort(20, Masks(neighbours=neighbours))
        gone = random.Random(seed).sample(cohort.names, 3 if neighbours else 6)
        cohort.lost = dict.fromkeys(gone, phase)
        found, failures = cohort.collect()
        if found is None:
            assert neighbours  # too many of one client's few peers are gone, which is said
            assert any("stays closed" in reason or "peers left" in reason for reason in failures.values())
            continue
        # Whoever is gone when the sum is opened is in it: its shares are with the others.
        there = cohort.names if phase == "unmask" else [name for name in found.members if name not in gone]
        assert_mean(cohort, found, sorted(there))
        assert neighbours or set(failures) == (set() if phase == "unmask" else set(gone))


def test_with_too_few_clients_no_sum_is_opened():
    for phase in ("keys", "shares", "task", "unmask"):
        cohort = Cohort(10)
        cohort.lost = dict.fromkeys(cohort.names[:4], phase)  # 7 of 10 are needed
        found, failures = cohort.collect()
        assert found is None
        assert sum("stays closed" in reason for reason in failures.values()) >= 6
    cohort = Cohort(10)
    cohort.lost = {cohort.names[0]: "task"}
    assert cohort.collect(quorum=10)[0] is None
    assert not any(isinstance(one, ProtectionReply) and one.phase == "unmask" for one in cohort.seen)
    assert Cohort(2).collect()[0] is None


def test_a_sum_that_cannot_be_opened_any_more_is_given_up_for_good():
    cohort = Cohort(6)
    cohort.collect()
    server = Party("", ROUND, 1, heaviest=90.0)
    tasks = [Task(name, ROUND, ROUND, {}, {}, 1) for name in cohort.names]
    like: Streams = {"delta": {"w": torch.zeros(50)}, "scalars": {"tau": torch.zeros(())}}
    replies = list(cohort.protection.collect(cohort.exchange, tasks, like, server))
    assert all(isinstance(reply, Failure) for reply in replies)
    assert sum(reply.final for reply in replies) == 5  # of six, five have to be left


def test_groups_are_sums_of_their_own_side_by_side():
    cohort = Cohort(11, Masks(group_size=3))
    tasks = [Task(name, ROUND, ROUND, {}) for name in cohort.names]
    like: Streams = {"delta": {"w": torch.zeros(50)}, "scalars": {"tau": torch.zeros(())}}
    exchanges = []

    def exchange(messages):
        exchanges.append(len(messages))
        return cohort.exchange(messages)

    server = Party("", ROUND, 0, quorum=11, heaviest=max(cohort.weights.values()))
    sums = list(cohort.protection.collect(exchange, tasks, like, server))
    assert exchanges == [11] * 4
    assert sorted(len(one.members) for one in sums) == [3, 4, 4]
    assert sorted(name for one in sums for name in one.members) == cohort.names
    for one in sums:
        torch.testing.assert_close(one.streams["delta"]["w"].double(), cohort.mean(one.members), rtol=0, atol=1e-6)
    assert (
        {one.members for one in sums}
        == {tuple(group) for group in deal(cohort.names, 3, ROUND)}
        != {tuple(group) for group in deal(cohort.names, 3, ROUND + 1)}
    )


@pytest.mark.parametrize("group_size", [0, 3])
def test_one_bad_client_costs_a_group_and_not_the_round(group_size: int):
    """Cut to the bound, it still owns a sum of all; of groups, the limit of norms refuses its own."""
    cohort = Cohort(12, Masks(group_size=group_size))
    cohort.weights = dict.fromkeys(cohort.names, 7.0)
    cohort.deltas = {name: value * 1e-3 for name, value in cohort.deltas.items()}
    honest = cohort.mean(cohort.names)
    bad = cohort.names[5]
    cohort.deltas[bad] = torch.full((50,), 1e6)
    tasks = [Task(name, ROUND, ROUND, {}) for name in cohort.names]
    like: Streams = {"delta": {"w": torch.zeros(50)}, "scalars": {"tau": torch.zeros(())}}
    sums = cohort.protection.collect(cohort.exchange, tasks, like, Party("", ROUND, heaviest=7.0))
    record, plan = RoundRecord(ROUND), SimpleNamespace(max_update_norm=10.0, max_client_share=1.0)
    used = list(limited(plan, (one for one in sums if isinstance(one, Update)), Weigher(Size(), {}), 0, record))
    total = Mean().combine(used)
    off = float((total.streams["delta"]["w"].double() - honest).abs().max())
    if not group_size:
        assert off > 1  # a control: the run is lost
        return
    (lost,) = [group for group in deal(cohort.names, 3, ROUND) if bad in group]
    assert off < 2e-3
    assert set(total.clients) == set(cohort.names) - set(lost)
    assert set(record.failures) == set(lost)


def test_groups_that_are_short_of_the_quorum_together_open_nothing():
    cohort = Cohort(9, Masks(group_size=3))
    cohort.lost = {cohort.names[0]: "task"}
    tasks = [Task(name, ROUND, ROUND, {}) for name in cohort.names]
    like: Streams = {"delta": {"w": torch.zeros(50)}, "scalars": {"tau": torch.zeros(())}}
    replies = list(cohort.protection.collect(cohort.exchange, tasks, like, Party("", ROUND, quorum=9, heaviest=90.0)))
    assert {reply.client for reply in replies if isinstance(reply, Failure)} == set(cohort.names)
    assert not any(isinstance(one, ProtectionReply) and one.phase == "unmask" for one in cohort.seen)


def test_a_sum_of_weights_that_no_clients_have_is_refused():
    cohort = Cohort(4)
    answer = cohort.answer

    def lie(message):
        reply = answer(message)
        if isinstance(reply, Update) and reply.client == cohort.names[0]:
            reply.streams["masked"]["counts"][0] += 2**50
        return reply

    cohort.answer = lie
    found, failures = cohort.collect()
    assert found is None
    assert all("no clients have" in reason for reason in failures.values())


@pytest.mark.parametrize(("clients", "most"), [(10, 13), (100, 16)])
def test_few_bits_take_no_wider_modulus_than_the_sum_needs(clients: int, most: int):
    """Two bytes a parameter at 100 clients, and an error of a step over the square root of the clients."""
    cohort = Cohort(clients, Masks(bits=9), width=1000)
    cohort.deltas = {name: value * 1e-3 for name, value in cohort.deltas.items()}
    cohort.weights = dict.fromkeys(cohort.names, 7.0)
    largest = max(float(delta.abs().max()) for delta in cohort.deltas.values())
    wide = torch.tensor(1.4 * largest * clients**0.5, dtype=torch.float64)
    found, _ = cohort.collect(memory={"near": {"delta/w": wide}})
    off = found.streams["delta"]["w"].double() - cohort.mean(cohort.names)
    step = float(wide) / 255
    assert off.abs().max() < 5 * step / clients**0.5
    assert abs(off.mean()) < 5 * step / (clients * len(off)) ** 0.5  # unbiased
    sent = {one.streams["masked"]["numbers"].numel() for one in cohort.seen if isinstance(one, Update)}
    assert sent == {-(-1000 * most // 8)}
    assert "cut_values" not in found.metrics
    assert largest <= float(cohort.kept["near"]["delta/w"]) < 1.5 * largest * clients**0.125


def test_the_first_sums_tell_the_bounds_of_numbers_of_few_bits():
    cohort = Cohort(6, Masks(bits=9))
    cohort.weights = dict.fromkeys(cohort.names, 7.0)
    cohort.deltas = {name: value * 1e-3 for name, value in cohort.deltas.items()}
    largest = max(float(delta.abs().max()) for delta in cohort.deltas.values())
    memory: Streams = {}
    for error, size, room in ((1e-9, 400, None), (largest / 2**15, 200, 1.5 * 6**0.5), (1.5 * largest / 64, 75, 2)):
        cohort.promises, cohort.seen = {name: Promises() for name in cohort.names}, []
        found, _ = cohort.collect(memory=memory)
        memory = cohort.kept
        assert float((found.streams["delta"]["w"] - cohort.mean(cohort.names)).abs().max()) < error + 1e-9
        sent = {one.streams["masked"]["numbers"].numel() for one in cohort.seen if isinstance(one, Update)}
        assert sent == {size}
        assert ("near" in memory) == (room is not None)
        if room is not None:
            assert largest <= float(memory["near"]["delta/w"]) < room * largest
        assert 1000 * largest < float(memory["bounds"]["delta/w"]) < 1024 * 7 * largest


@pytest.mark.parametrize("width", [5, 13, 16, 17, 30, 32, 64])
def test_packed_numbers_are_the_numbers(width: int):
    count = 40_007
    kind = fixed_point.kind_of(width)
    numbers = np.random.default_rng(width).integers(0, 2**width, count, dtype=np.uint64).astype(kind)
    raw = fixed_point.pack(numbers, width)
    assert raw.numel() == -(-count * width // 8)
    assert (fixed_point.unpack(raw, count, width) == numbers).all()
    assert fixed_point.unpack(raw[:-1], count, width) is None
    assert fixed_point.unpack(raw.to(torch.int32), count, width) is None


def test_a_server_that_makes_the_others_weigh_nothing_sees_nobody():
    """Told of a huge largest weight, the others' updates would round to zero, and the sum would be that of one."""
    cohort = Cohort(5)
    victim = cohort.names[0]

    def change(message):
        if isinstance(message, Task) and message.client != victim:
            values = message.extra["masks"] | {"heaviest": torch.tensor(1e30, dtype=torch.float64)}
            return replace(message, extra={"masks": values})
        return message

    cohort.change = change
    found, failures = cohort.collect()
    assert found is None or (found.streams["delta"]["w"] - cohort.deltas[victim]).abs().median() > 0.1
    assert found is not None or failures


@pytest.mark.parametrize("alike", [True, False])
def test_a_server_that_sends_one_client_another_model_opens_nothing(alike: bool):
    """Masks follow from the model; without that (a control) the sum is opened."""
    cohort = Cohort(5)
    cohort.alike = alike

    def change(message):
        if isinstance(message, Task) and message.client == cohort.names[0]:
            return replace(message, params={"w": torch.ones(3)})
        return message

    cohort.change = change
    found, failures = cohort.collect()
    if not alike:
        assert_mean(cohort, found, cohort.names)
        return
    assert found is None
    assert set(failures) == set(cohort.names)


def forged(message, change: Callable[[dict[str, Keys]], None]):
    """Return a message whose list of members was changed."""
    values = message.extra.get("masks") if isinstance(message, Task) else message.streams.get(message.phase)
    if not values or "members" not in values:
        return message
    members = Members.read(to_bytes(values["members"]))
    keys = dict(members.keys)
    change(keys)
    values = values | {"members": to_tensor(Members(keys, members.graph).raw)}
    if isinstance(message, Task):
        return replace(message, extra={"masks": values})
    return replace(message, streams={message.phase: values})


def test_a_server_that_replaces_a_clients_own_key_is_refused():
    cohort, other = Cohort(5), masking.public_key(bytes(range(32)))

    def change(message):
        def swap(keys):
            keys[message.client] = keys[message.client]._replace(mask=other)

        return forged(message, swap)

    cohort.change = change
    found, failures = cohort.collect()
    assert found is None
    assert all("its own public key was replaced" in reason for reason in failures.values())


def test_a_server_that_shows_clients_different_lists_opens_nothing():
    cohort = Cohort(5)

    def change(message):
        # Two of the clients are told in the task that a third is no member.
        half = isinstance(message, Task) and message.client in cohort.names[:2]
        return forged(message, lambda keys: keys.pop(cohort.names[4])) if half else message

    cohort.change = change
    found, failures = cohort.collect()
    assert found is None
    assert any("asked twice for one attempt of a round, with other members" in reason for reason in failures.values())


def unmask_request(cohort: Cohort, name: str, survivors: list[str]) -> ProtectionRequest:
    """Return the request that opens a sum over some survivors, made from what a server has seen."""
    keys, shares = {}, {}
    for reply in cohort.seen:
        if isinstance(reply, ProtectionReply) and reply.phase == "keys":
            keys[reply.client] = Keys(*(to_bytes(reply.streams["keys"][field]) for field in Keys._fields))
        if isinstance(reply, ProtectionReply) and reply.phase == "shares":
            shares[reply.client] = reply.streams["shares"]["shares"]
    members = Members(keys)
    rows = [shares[peer][members.peers[peer].index(name)] for peer in members.peers[name]]
    values = {
        "members": to_tensor(members.raw),
        "cohort": names_tensor(cohort.names),
        "survivors": names_tensor(survivors),
        "shares": torch.stack(rows),
    }
    return ProtectionRequest(name, ROUND, "unmask", {"unmask": values}, 0)


def test_a_client_reveals_one_secret_of_a_peer_and_opens_one_sum_of_a_round():
    cohort = Cohort(5)
    found, _ = cohort.collect()
    assert found is not None
    name, peer = cohort.names[0], cohort.names[1]
    again = unmask_request(cohort, name, cohort.names)
    assert isinstance(cohort.answer(again), ProtectionReply)  # the same question again
    other = cohort.answer(unmask_request(cohort, name, [one for one in cohort.names if one != peer]))
    assert isinstance(other, Failure)
    assert "with other survivors" in other.reason
    few = cohort.answer(unmask_request(cohort, name, cohort.names[:2]))
    assert isinstance(few, Failure)
    assert "3 are the fewest" in few.reason
    # A second attempt for the same version over one client less would show that client.
    second, failures = cohort.collect(attempt=1)
    assert second is None
    assert sum("has opened a sum of this round" in reason for reason in failures.values()) == 5


def test_a_restarted_client_keeps_its_promises(tmp_path):
    file = tmp_path / "promises.json"
    assert Promises(file).keep(3, "survivors", "a")
    assert Promises(file).keep(3, "survivors", "a")
    assert not Promises(file).keep(3, "survivors", "b")
    assert Promises(file).keep(7, "survivors", "c")
    assert not Promises(file).keep(3, "survivors", "a")  # too long ago
    assert Promises(file).kept(7, "survivors") == "c"
    file.write_text('{"oldest": 1', encoding="utf-8")
    with pytest.raises(ConfigError, match="restore the file, or begin a new run"):
        Promises(file)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_stay_out_of_the_sum(bad: float):
    cohort = Cohort(6)
    cohort.deltas[cohort.names[2]][7] = bad
    found, failures = cohort.collect()
    assert_mean(cohort, found, [name for name in cohort.names if name != cohort.names[2]])
    assert "not finite" in failures[cohort.names[2]]


def test_values_beyond_the_bound_are_cut_and_counted():
    cohort = Cohort(4, Masks(bound=1.0))
    found, _ = cohort.collect()
    heaviest = max(cohort.weights.values())
    cut = sum(int((d.abs() * cohort.weights[n] / heaviest > 1.0).sum()) for n, d in cohort.deltas.items())
    assert found.metrics[CUT] == cut > 0


def test_small_metrics_are_not_taken_for_nothing():
    """A sum of learning rates is far from every count."""
    cohort = Cohort(4)
    update = cohort.update

    def with_rate(name: str) -> Update:
        one = update(name)
        return replace(one, metrics=one.metrics | {"rate": 2e-5, "none": 0.0})

    cohort.update = with_rate  # type: ignore[method-assign]
    found, _ = cohort.collect()
    assert found is not None
    assert found.metrics["rate"] == pytest.approx(8e-5, abs=2e-7)
    assert found.metrics["none"] == 0.0


def test_learning_rates_arrive_as_they_are():
    """As a metric and as the number by which an algorithm divides; counts beside them stay exact."""
    rates = {"c0": 3e-5, "c1": 1.23456789e-4, "c2": 0.99995}
    none = torch.zeros(())
    like: Streams = {DELTA: {"w": torch.zeros(1)}, SCALARS: {"learning_rates": none, "steps": none.clone()}}
    grid, parts = Grid(16.0, 3, 1.0), []
    for name, rate in rates.items():
        scalars = {"learning_rates": torch.tensor(rate, dtype=torch.float64), "steps": torch.tensor(7.0)}
        streams: Streams = {DELTA: {"w": torch.tensor([0.5])}, SCALARS: scalars}
        parts.append(to_integers(Update(name, 0, 0, streams, 1.0, {"learning_rate": rate, "rows": 3.0}), grid, None)[0])
    total = Masked(*(np.sum([part[place] for part in parts], axis=0, dtype=parts[0][place].dtype) for place in (0, 1)))
    found = to_update(total, like, {"learning_rate", "rows"}, grid)
    assert found is not None
    assert found.metrics["learning_rate"] == pytest.approx(sum(rates.values()), rel=0, abs=1e-13)
    assert found.metrics["rows"] == 9
    assert float(found.streams[SCALARS]["learning_rates"]) == pytest.approx(sum(rates.values()) / 3, rel=1e-7)
    assert float(found.streams[SCALARS]["steps"]) == 7.0
    # Not how large: a server hears it, and may send a model for which every loss is.
    with pytest.raises(ClientFailed, match=r"has a metric that is too large for a masked sum$"):
        to_integers(Update("c0", 0, 0, {DELTA: {"w": torch.zeros(1)}}, 1.0, {"learning_rate": 5e3}), grid, None)


@given(st.integers(2, 12), st.data())
@settings(max_examples=60, deadline=None)
def test_any_threshold_of_shares_gives_the_secret(count: int, data):
    threshold = data.draw(st.integers(1, count))
    secret = data.draw(st.binary(min_size=32, max_size=32))
    source = Secret.random()
    shares = shamir.split(secret, range(1, count + 1), threshold, lambda n: source.bytes(n, "shares"))
    chosen = data.draw(st.permutations(sorted(shares)))[:threshold]
    assert shamir.join({place: shares[place] for place in chosen}, threshold, lambda one: True) == secret
    assert shamir.join({place: shares[place] for place in chosen[1:]}, threshold, lambda one: True) is None


def test_fewer_shares_fit_any_secret_and_wrong_ones_are_passed_over():
    source = Secret.random()
    shares = shamir.split(bytes(32), range(1, 6), 3, lambda n: source.bytes(n, "x"))
    for secret in (5, 2**200):  # two shares and any secret lie on some parabola
        points = {0: secret} | {place: int.from_bytes(shares[place], "big") for place in (1, 2)}
        assert len(points) == 3
    shares[2] = bytes(33)
    assert shamir.join(shares, 3, lambda one: one == bytes(32)) == bytes(32)
    assert shamir.join(shares, 3, lambda one: False) is None


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=9), st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_a_sum_of_integers_does_not_wrap_and_rounds_by_half_a_step_each(values: list[float], terms: int):
    within = Range(50.0, terms)
    numbers, cut = fixed_point.encode(np.array(values, dtype=np.float32), within)
    total = np.zeros_like(numbers)
    for _ in range(terms):
        np.add(total, numbers, out=total)
    assert cut == 0
    off = np.abs(fixed_point.decode(total, within) - terms * np.array(values))
    assert off.max() <= terms / (2 * within.scale) * (1 + 1e-9)


def test_masks_are_uniform_and_another_key_gives_another_mask():
    mask = np.zeros(1 << 18, dtype=np.uint32)
    masking.add_mask(mask, bytes(32), 1)
    counts = np.bincount(mask >> 24, minlength=256)
    chi_square = ((counts - len(mask) / 256) ** 2 / (len(mask) / 256)).sum()
    assert 150 < chi_square < 380  # 255 degrees of freedom: p > 0.001 on both sides
    other = np.zeros_like(mask)
    masking.add_mask(other, bytes(31) + b"\1", 1)
    flipped = np.unpackbits((mask ^ other).view(np.uint8)).mean()
    assert 0.495 < flipped < 0.505
    masking.add_mask(mask, bytes(32), -1)
    assert not mask.any()


def test_the_graph_is_even_and_nobody_chooses_it():
    names = [f"c{number}" for number in range(101)]
    graph = masking.neighbours(names, 20, b"keys")
    assert all(len(peers) == 20 and name not in peers for name, peers in graph.items())
    assert all(name in graph[peer] for name, peers in graph.items() for peer in peers)
    assert graph != masking.neighbours(names, 20, b"other keys")
    assert all(len(peers) == 4 for peers in masking.neighbours(names[:5], 20, b"keys").values())


@pytest.mark.parametrize("algorithm", [FedAvg(), FedNova()])
def test_a_federation_learns_under_masks_as_without(algorithm):
    federation, plain, masked = Federation(), [], []
    alone = federation.run(algorithm, 6, records=plain)
    state = federation.run(algorithm, 6, protection=Masks(), records=masked, memory=InMemory())
    torch.testing.assert_close(state.params["w"], alone.params["w"], rtol=0, atol=1e-5)
    assert [one.clients for one in masked] == [one.clients for one in plain]
    for one, other in zip(masked, plain, strict=True):
        assert one.sums == pytest.approx(other.sums, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"group_size": 2}, "write --group_size 3 or more"),
        ({"bound": 0.0}, "bound"),
        ({"min_contributors": 1}, "sum of one"),
        ({"neighbours": 3}, "even number"),
    ],
)
def test_wrong_parameters_are_refused(values: dict[str, float], words: str):
    with pytest.raises(ConfigError, match=words):
        Masks(**values)


def test_no_key_follows_from_the_seed_and_every_attempt_has_its_own():
    keys = set()
    for secret, attempt in itertools.product((Secret(bytes(32)), Secret(bytes([1]) * 32)), (0, 1)):
        party = Party("a", ROUND, attempt, {}, lambda secret=secret: secret)
        keys.add(Client(party, attempt, 3, (0,)).keys())
    assert len(keys) == 4


def test_a_tensor_that_stood_still_says_nothing_of_its_size():
    """A bound of nothing would cut the first change: LoRA's A does not move in the first step, where B is 0."""
    grid = Grid(16.0, 10, 1.0, fixed_point.WIDE)
    assert grid.still(np.array([0.0, 1e-4])).tolist() == [True, False]
    assert 1e-3 < grid.next_bounds(np.array([1e-4]), few=False)[0] < 16.0
