"""Encrypted sums: exactly the integers' sum, opened once and for enough clients, and no key where the server is."""

from __future__ import annotations

import copy
import random
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch

from support.mutants import damaged, lying, miscoded
from support.quadratics import Federation
from support.sealed_cohort import ROUND, Cohort
from weft.algorithms.fedavg import FedAvg
from weft.core.party import Party
from weft.core.secret import Common, Secret
from weft.core.types import Failure, Message, ProtectionReply, ProtectionRequest, Reply, Streams, Task, Update
from weft.core.wire import pack
from weft.errors import ClientFailed, ConfigError
from weft.federation.admission import open_reply
from weft.federation.clients import InMemory
from weft.protection import ciphertexts
from weft.protection.ciphertexts import SCALE, SLOTS, Cipher, add, empty, fits
from weft.protection.ckks_client import TOKEN_BYTES, TRIES
from weft.protection.ckks_server import CkksOpening
from weft.protection.members import names_tensor
from weft.protection.sums import CUT
from weft.protection.tags import COUNT, TAG_PRIME, tags_of

pytest.importorskip("tenseal", reason="the extra he is not installed")
from weft.protection.ckks import Ckks

KEY = ciphertexts.new_key()


def cohort_of(count: int, **parameters: object) -> Cohort:
    return Cohort(count, Ckks(**parameters))


def assert_mean(cohort: Cohort, found: Update | None, names: list[str], tolerance: float = 1e-6) -> None:
    assert found is not None
    assert found.members == tuple(names)
    assert found.weight == sum(cohort.weights[name] for name in names)
    assert (found.streams["delta"]["w"].double() - cohort.mean(names)).abs().max() < tolerance
    assert float(found.streams["scalars"]["tau"]) == pytest.approx(3.0, abs=1e-6)
    assert found.metrics["rows"] == pytest.approx(sum(cohort.weights[name] for name in names))
    assert found.metrics["loss"] == pytest.approx(0.5 * len(names), abs=1e-6)


def test_the_parameters_are_those_of_the_library():
    from tenseal import sealapi

    primes = sealapi.CoeffModulus.Create(ciphertexts.N, list(ciphertexts.PRIMES))
    assert primes[0].value() == ciphertexts.PRIME
    assert sum(ciphertexts.PRIMES) <= 218  # of 128 bits of security at this degree
    assert ciphertexts.LARGEST * SCALE <= ciphertexts.PRIME / 2


def test_sums_of_ciphertexts_are_exact_and_their_noise_leaves_room():
    cipher, rng = Cipher(KEY), np.random.default_rng(0)
    total, wanted = empty(2), np.zeros(2 * SLOTS, dtype=np.int64)
    for _ in range(64):
        numbers = rng.integers(-(2**31), 2**31, 2 * SLOTS)
        wanted += numbers
        add(total, cipher.encrypt(numbers))
    assert (cipher.open(total) == wanted).all()
    import tenseal

    vector = tenseal.ckks_vector_from(cipher._context, ciphertexts._to_vector(total[0].numpy().tobytes()))
    noise = np.abs(np.array(vector.decrypt()) - wanted[:SLOTS]).max()
    assert noise * (ciphertexts.CLIENTS / 64) ** 0.5 < ciphertexts.NEAR / 4  # of the most clients of a sum


def test_the_largest_sums_do_not_wrap():
    cipher = Cipher(KEY)
    numbers = np.array([2**38, -(2**38), 2**38 - 1, 0] * 1024)
    assert (cipher.open(cipher.encrypt(numbers)) == numbers).all()


@pytest.mark.parametrize("raw", [b"", b"\0" * 100, KEY[:1000], KEY[:-3], b"x" * (1 << 19)])
def test_what_is_no_key_is_refused(raw: bytes):
    with pytest.raises(ConfigError, match="make another"):
        Cipher(raw)


def test_a_key_of_other_parameters_is_refused():
    import tenseal

    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS,
        4096,
        coeff_mod_bit_sizes=[36, 36],
        encryption_type=tenseal.ENCRYPTION_TYPE.SYMMETRIC,
    )
    context.global_scale = SCALE
    raw = context.serialize(save_secret_key=True, save_public_key=False, save_galois_keys=False, save_relin_keys=False)
    with pytest.raises(ConfigError, match="another kind"):
        Cipher(raw)


@pytest.mark.parametrize("count", [3, 10])
def test_the_sum_is_the_weighted_mean_and_no_update_is_seen(count: int):
    cohort = cohort_of(count)
    found, failures = cohort.collect()
    assert not failures
    assert_mean(cohort, found, cohort.names)
    updates = [one for one in cohort.seen if isinstance(one, Update)]
    assert all((one.weight, one.metrics) == (1.0, {}) and set(one.streams) == {"encrypted"} for one in updates)
    values = torch.cat([one.streams["encrypted"]["values"].reshape(-1) for one in updates]).numpy()
    counts = np.bincount(values >> 52, minlength=256)
    chi_square = ((counts - len(values) / 256) ** 2 / (len(values) / 256)).sum()
    assert len(counts) == 256
    assert chi_square < 340  # 255 degrees of freedom: p > 0.0003


def test_the_same_update_is_encrypted_differently_each_time_and_the_sum_is_the_same():
    cohort = cohort_of(3)
    first, _ = cohort.collect()
    before = [one for one in cohort.seen if isinstance(one, Update)]
    cohort.promises, cohort.seen = {name: type(p)() for name, p in cohort.promises.items()}, []
    second, _ = cohort.collect()
    after = [one for one in cohort.seen if isinstance(one, Update)]
    for one, other in zip(before, after, strict=True):
        same = one.streams["encrypted"]["values"] == other.streams["encrypted"]["values"]
        assert same.float().mean() < 1e-3
    assert first is not None
    assert second is not None
    assert torch.equal(first.streams["delta"]["w"], second.streams["delta"]["w"])
    assert first.metrics == second.metrics


@pytest.mark.parametrize(("phase", "gone"), [("task", 2), ("agree", 2), ("open", 8)])
def test_clients_that_drop_out_in_any_phase_leave_the_sum_of_the_others(phase: str, gone: int):
    """Of nine, seven have to take part and to agree; one is enough to open the sum."""
    cohort = cohort_of(9)
    lost = cohort.names[:gone]
    cohort.lost = dict.fromkeys(lost, phase)
    found, failures = cohort.collect()
    there = [name for name in cohort.names if name not in lost] if phase == "task" else cohort.names
    assert_mean(cohort, found, there)
    # Who drops out later is in the sum, and no failure.
    assert set(failures) == (set(lost) if phase == "task" else set())


def test_with_too_few_clients_no_sum_is_opened():
    for phase in ("task", "agree"):
        cohort = cohort_of(10)
        cohort.lost = dict.fromkeys(cohort.names[:4], phase)  # 7 of 10 are needed
        found, failures = cohort.collect()
        assert found is None
        assert sum("stays closed" in reason for reason in failures.values()) >= 6
        assert not any(isinstance(one, ProtectionReply) and one.phase == "open" for one in cohort.seen)
    cohort = cohort_of(4)
    cohort.lost = {cohort.names[0]: "task"}
    assert cohort.collect(quorum=4)[0] is None
    assert cohort_of(2).collect()[0] is None


def test_a_sum_that_was_opened_is_not_opened_again_over_others():
    cohort = cohort_of(4)
    cohort.collect()
    found, failures = cohort.collect(attempt=1)
    assert found is None
    assert sum("has opened a sum of this round" in reason for reason in failures.values()) == 4


def test_groups_are_sums_of_their_own():
    cohort = cohort_of(7, group_size=3)
    tasks = [Task(name, ROUND, ROUND, {}) for name in cohort.names]
    like: Streams = {"delta": {"w": torch.zeros(50)}, "scalars": {"tau": torch.zeros(())}}
    server = Party("", ROUND, heaviest=max(cohort.weights.values()))
    sums = list(cohort.protection.collect(cohort.exchange, tasks, like, server))
    assert sorted(len(one.members) for one in sums) == [3, 4]
    for one in sums:
        off = one.streams["delta"]["w"].double() - cohort.mean(one.members)
        assert off.abs().max() < 1e-6


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_stay_out_of_the_sum(bad: float):
    cohort = cohort_of(5)
    cohort.deltas[cohort.names[2]][7] = bad
    found, failures = cohort.collect()
    assert_mean(cohort, found, [name for name in cohort.names if name != cohort.names[2]])
    assert "not finite" in failures[cohort.names[2]]


def test_values_beyond_the_bound_are_cut_and_counted():
    cohort = cohort_of(4, bound=1.0)
    found, _ = cohort.collect()
    heaviest = max(cohort.weights.values())
    cut = sum(int((d.abs() * cohort.weights[n] / heaviest > 1.0).sum()) for n, d in cohort.deltas.items())
    assert found is not None
    assert found.metrics[CUT] == cut > 0


# Who holds the key


def secrets_of(key: bytes) -> dict[str, bytes]:
    """Return pieces of a key in every form in which a process could hold it."""
    from zstandard import ZstdDecompressor

    cipher = Cipher(key)
    begin = key.index(b"\x28\xb5\x2f\xfd", 100)  # a frame of zstd, as SEAL's objects are
    raw = ZstdDecompressor().decompressobj().decompress(key[begin:])
    polynomial = raw[-2 * 8 * ciphertexts.N :]
    assert len(np.unique(np.frombuffer(polynomial, "<u8"))) > ciphertexts.N  # in the form of its transform
    return {
        "file": key[1000:1064],
        "polynomial": polynomial[:64],
        "other prime": polynomial[-64:],
        "tags": cipher.secret._key,
    }


def held_by(thing: object, seen: set[int] | None = None) -> bytes:
    """Return all bytes that an object holds, however deep."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return b""
    seen.add(id(thing))
    if isinstance(thing, bytes):
        return thing
    if isinstance(thing, torch.Tensor):
        return thing.contiguous().numpy().tobytes()
    if isinstance(thing, np.ndarray):
        return thing.tobytes()
    if isinstance(thing, str):
        return thing.encode()
    if isinstance(thing, dict):
        return b"|".join(held_by(one, seen) for pair in thing.items() for one in pair)
    if isinstance(thing, list | tuple | set | frozenset):
        return b"|".join(held_by(one, seen) for one in thing)
    return b"|".join(held_by(one, seen) for one in vars(thing).values()) if hasattr(thing, "__dict__") else b""


def watch(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Run a round, and return all that crossed to the server and back, and all that the server's objects hold."""
    openings: list[CkksOpening] = []
    crossed: list[bytes] = []
    begin = CkksOpening.__post_init__

    def keep(opening: CkksOpening) -> None:
        begin(opening)
        openings.append(opening)

    monkeypatch.setattr(CkksOpening, "__post_init__", keep)

    def look(message: Message) -> Message:
        crossed.append(bytes(pack(message)))
        return message

    cohort.change = look
    found, _ = cohort.collect()
    assert_mean(cohort, found, cohort.names)
    assert len(openings) == 1
    assert openings[0].found is not None
    return b"|".join([*crossed, *(bytes(pack(reply)) for reply in cohort.seen), held_by(openings), held_by(found)])


def test_neither_the_server_nor_its_wire_ever_has_the_key(monkeypatch: pytest.MonkeyPatch):
    cohort = cohort_of(3)
    assert cohort.common is not None
    everything = watch(cohort, monkeypatch)
    assert len(everything) > 3 * ciphertexts.BYTES_EACH
    for form, secret in secrets_of(cohort.common.key).items():
        assert secret not in everything, form


@pytest.mark.parametrize("place", ["wire", "state"])
def test_the_search_finds_a_key_that_is_there(place: str, monkeypatch: pytest.MonkeyPatch):
    cohort = cohort_of(3)
    assert cohort.common is not None
    key = cohort.common.key
    if place == "state":
        begin = CkksOpening.__post_init__

        def keep(opening: CkksOpening) -> None:
            begin(opening)
            opening.key = key  # type: ignore[attr-defined]

        monkeypatch.setattr(CkksOpening, "__post_init__", keep)
    else:
        answer = cohort.answer

        def tell(message: Task | ProtectionRequest) -> Reply:
            reply = answer(message)
            if isinstance(reply, ProtectionReply) and reply.phase == "agree":
                raw = torch.frombuffer(bytearray(key), dtype=torch.uint8)
                streams = {"agree": reply.streams["agree"] | {"key": raw}}
                return replace(reply, streams=streams)
            return reply

        cohort.answer = tell  # type: ignore[method-assign]
    everything = watch(cohort, monkeypatch)
    assert secrets_of(key)["file"] in everything


def test_a_server_that_adds_needs_no_library(monkeypatch: pytest.MonkeyPatch):
    """Its arithmetic is that of integers, so it has no context that could hold a key."""
    sealed = Cipher(KEY).encrypt(np.arange(SLOTS))
    import sys

    monkeypatch.setitem(sys.modules, "tenseal", None)
    total = empty(1)
    add(total, sealed)
    assert fits(total, 1)


# What a dishonest server meets


def told(cohort: Cohort) -> dict[str, torch.Tensor]:
    """Return what an honest server says of a sum."""
    heaviest = torch.tensor(max(cohort.weights.values()), dtype=torch.float64)
    return {"members": names_tensor(cohort.names), "heaviest": heaviest}


def lie(cohort: Cohort, phase: str, **values: torch.Tensor) -> list[str]:
    """Change what the requests of a phase say, and return why clients refuse."""

    def change(message: Message) -> Message:
        if not isinstance(message, ProtectionRequest) or message.phase != phase:
            return message
        return replace(message, streams={phase: message.streams[phase] | values})

    cohort.change = change
    found, _ = cohort.collect()
    assert found is None
    return [one.reason for one in cohort.seen if isinstance(one, Failure)]


def test_a_single_update_is_not_opened():
    cohort = cohort_of(4)
    single = cohort.answer(Task(cohort.names[0], ROUND, ROUND, {}, {"ckks": told(cohort)}))
    assert isinstance(single, Update)
    said = lie(cohort, "open", sum=single.streams["encrypted"]["values"])
    assert all("no sum of the updates of the clients that it names" in reason for reason in said)
    assert len(said) == 4


def test_another_update_for_the_same_attempt_is_not_encrypted():
    """The difference of two ciphertexts under one pad passes in any sum, and two opened sums would show the update."""
    cohort = cohort_of(4)
    victim = cohort.names[0]
    task = Task(victim, ROUND, ROUND, {}, {"ckks": told(cohort)})
    first = cohort.deltas[victim].clone()
    assert isinstance(cohort.answer(task), Update)
    assert isinstance(cohort.answer(task), Update)  # the same again, for a server that lost it
    cohort.deltas[victim] = torch.zeros_like(first)  # as for a model whose gradient is 0
    reply = cohort.answer(task)
    assert isinstance(reply, Failure)
    assert "asked twice for one attempt of a round, with other encrypted numbers" in reply.reason
    cohort.deltas[victim], cohort.protection = first, Ckks(encrypt=["v"])
    assert isinstance(cohort.answer(task), Failure)  # nor another choice of what is encrypted
    cohort.protection = Ckks()
    assert isinstance(cohort.answer(replace(task, attempt=1)), Update)  # which has a pad of its own


@pytest.mark.parametrize("kind", ["zeros", "twice", "ones", "noise", "the key's own"])
def test_crafted_ciphertexts_are_not_opened(kind: str):
    """With c0 = 0 and c1 = 1, what is opened would be the key itself."""
    cohort = cohort_of(4)
    one = Cipher(cohort.common.key).encrypt(np.arange(SLOTS))  # type: ignore[union-attr]
    made = {
        "zeros": torch.zeros_like(one),
        "twice": (one + one) % ciphertexts.PRIME,
        "ones": torch.stack([torch.zeros_like(one[0, 0]), torch.ones_like(one[0, 0])])[None],
        "noise": torch.randint(0, ciphertexts.PRIME, one.shape),
        "the key's own": torch.stack([one[0, 1], one[0, 0]])[None],
    }
    said = lie(cohort, "open", sum=made[kind])
    assert len(said) == 4
    words = ("no sum of the updates", "another key", "hold no whole numbers", "cannot be opened")
    assert all(any(word in reason for word in words) for reason in said), said


def test_a_client_tries_few_ciphertexts_in_an_attempt():
    """Each answer tells something, and enough of them the key; the sum itself is opened again for who lost it."""
    cohort = cohort_of(4)
    asked: list[Message] = []
    cohort.change = lambda message: asked.append(message) or message  # type: ignore[func-returns-value]
    cohort.collect()
    (request,) = [one for one in asked if isinstance(one, ProtectionRequest) and one.phase == "open"]
    good = request.streams["open"]
    assert isinstance(cohort.answer(request), ProtectionReply)
    for number in range(TRIES + 3):
        wrong = (good["sum"] + (number + 1 << 45)) % ciphertexts.PRIME
        reply = cohort.answer(replace(request, streams={"open": good | {"sum": wrong}}))
        assert isinstance(reply, Failure)
        assert ("other ciphertexts in one attempt" in reply.reason) == (number >= TRIES - 1)
    assert isinstance(cohort.answer(request), ProtectionReply)


def test_other_survivors_are_agreed_to_by_nobody():
    cohort = cohort_of(5)
    cohort.collect()
    said = set()
    for name in cohort.names:
        fewer = names_tensor([one for one in cohort.names if one != cohort.names[-1] or one == name])
        values = told(cohort) | {"survivors": fewer}
        reply = cohort.answer(ProtectionRequest(name, ROUND, "agree", {"agree": values}))
        said.add(type(reply).__name__ if name != cohort.names[-1] else "")
    assert said == {"Failure", ""}


def test_without_agreements_nothing_is_opened():
    cohort = cohort_of(4)
    said = lie(cohort, "open", tokens=torch.zeros(4, TOKEN_BYTES, dtype=torch.uint8))
    assert said == ["was asked to open a sum to which 0 of 4 clients have agreed, and it takes 3"] * 4


def test_agreements_of_another_run_do_not_count():
    cohort, other = cohort_of(4), cohort_of(4)
    assert cohort.common is not None
    other.common = Common(cohort.common.key, "another run")
    other.collect()
    tokens = [one.streams["agree"]["token"] for one in other.seen if getattr(one, "phase", "") == "agree"]
    assert lie(cohort, "open", tokens=torch.stack(tokens))[0].endswith("0 of 4 clients have agreed, and it takes 3")


@pytest.mark.parametrize("names", [["site_00"], ["site_00", "site_01"], ["site_01", "site_02", "site_03"]])
def test_sums_of_few_and_lists_without_the_client_are_refused(names: list[str]):
    cohort = cohort_of(4)

    def change(message: Message) -> Message:
        if not isinstance(message, Task):
            return message
        return replace(message, extra={"ckks": message.extra["ckks"] | {"members": names_tensor(names)}})

    cohort.change = change
    found, failures = cohort.collect()
    assert found is None
    words = "are the fewest" if len(names) < 3 else "without itself"
    assert words in failures["site_00"]


def test_a_server_that_tells_clients_different_weights_opens_nothing():
    """One that makes the others' updates zero would see the update of one."""
    cohort = cohort_of(4)

    def change(message: Message) -> Message:
        if isinstance(message, Task) and message.client != cohort.names[0]:
            values = message.extra["ckks"] | {"heaviest": torch.tensor(1e12, dtype=torch.float64)}
            return replace(message, extra={"ckks": values})
        return message

    cohort.change = change
    found, _ = cohort.collect()
    assert found is None
    said = [one.reason for one in cohort.seen if isinstance(one, Failure)]
    assert all("no sum of the updates of the clients that it names" in reason for reason in said)


def test_a_client_with_another_key_spoils_the_round_and_nothing_is_opened():
    cohort = cohort_of(4)
    party, other = cohort.party, Common(ciphertexts.new_key())
    cohort.party = lambda name: (  # type: ignore[method-assign]
        replace(party(name), common=lambda make: other) if name == cohort.names[3] else party(name)
    )
    found, _ = cohort.collect()
    assert found is None


# Damaged ciphertexts


def spoilt(values: dict[str, torch.Tensor], how: int) -> dict[str, torch.Tensor]:
    sealed = values["values"].clone()
    flat = sealed.view(-1)
    if how == 0:
        flat[17] = ciphertexts.PRIME
    elif how == 1:
        flat[17] = -1
    elif how == 2:
        flat[5] = 2**63 - 1
    elif how == 3:
        sealed = sealed[:, :1].contiguous()
    elif how == 4:
        sealed = torch.cat([sealed, sealed])
    elif how == 5:
        sealed = sealed.double()
    elif how == 6:
        sealed = torch.zeros(0, 2, ciphertexts.N, dtype=torch.int64)
    elif how == 7:
        return {name: value for name, value in values.items() if name != "values"}
    elif how == 8:
        return {name: value for name, value in values.items() if name != "open"}
    elif how == 9:
        return values | {"open": torch.zeros(40, dtype=torch.uint8)}
    elif how == 10:
        return values | {"metrics": torch.zeros(1 << 17, dtype=torch.uint8)}
    elif how == 11:
        return values | {"metrics": torch.tensor([255, 255], dtype=torch.uint8)}
    return values | {"values": sealed}


@pytest.mark.parametrize("how", range(12))
def test_damaged_ciphertexts_are_refused_before_they_are_added(how: int):
    cohort = cohort_of(4)
    answer = cohort.answer

    def damage(message: Task | ProtectionRequest) -> Reply:
        reply = answer(message)
        if isinstance(reply, Update) and reply.client == cohort.names[1]:
            return replace(reply, streams={"encrypted": spoilt(reply.streams["encrypted"], how)})
        return reply

    cohort.answer = damage  # type: ignore[method-assign]
    found, failures = cohort.collect()
    assert failures[cohort.names[1]] == "sent an update that is not encrypted as the run says"
    assert_mean(cohort, found, [name for name in cohort.names if name != cohort.names[1]])


def test_random_bytes_in_the_place_of_ciphertexts_never_end_the_opening_client():
    """What goes to the library has a header that is written here; of the body every number is checked."""
    cipher, rng = Cipher(KEY), np.random.default_rng(1)
    good = cipher.encrypt(np.arange(SLOTS))
    for _ in range(60):
        bad = copy.deepcopy(good)
        view = bad.view(-1).numpy()
        places = rng.integers(0, view.size, int(rng.integers(1, 200)))
        view[places] = rng.integers(0, 2**63 - 1, len(places), dtype=np.int64)
        with pytest.raises(ClientFailed):
            cipher.open(bad)


def test_a_changed_number_of_a_ciphertext_opens_nothing():
    """Homomorphic: a server can add to a sum what it likes, but the tags do not follow."""
    cohort = cohort_of(4)
    shift = Cipher(cohort.common.key).encrypt(np.eye(1, SLOTS, COUNT + 3, dtype=np.int64)[0])  # type: ignore[union-attr]

    def change(message: Message) -> Message:
        if isinstance(message, ProtectionRequest) and message.phase == "open":
            total = message.streams["open"]["sum"].clone()
            add(total, shift)
            return replace(message, streams={"open": message.streams["open"] | {"sum": total}})
        return message

    cohort.change = change
    assert cohort.collect()[0] is None


def test_tags_add_up_and_follow_whose_numbers_they_are():
    secret, rng = Secret(bytes(32)), np.random.default_rng(0)
    numbers = {name: rng.integers(-(2**38), 2**38, 600_000) for name in ("a", "b")}
    about = ("4", "0")
    both = sum(tags_of(one, secret, [name], about) for name, one in numbers.items())
    total = numbers["a"] + numbers["b"]
    assert (both % TAG_PRIME == tags_of(total, secret, ["a", "b"], about)).all()
    padded = np.concatenate([total, np.zeros(99, dtype=np.int64)])
    assert (tags_of(padded, secret, ["a", "b"], about) == both % TAG_PRIME).all()
    for other in (["a"], ["a", "b", "b"], ["a", "c"]):
        assert (tags_of(total, secret, other, about) != both % TAG_PRIME).any()
    assert (tags_of(total, secret, ["a", "b"], ("4", "1")) != both % TAG_PRIME).any()
    total[-1] += 1
    assert (tags_of(total, secret, ["a", "b"], about) != both % TAG_PRIME).any()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"group_size": 2}, "write --group_size 3 or more"),
        ({"bound": 0.0}, "bound of the ciphertexts"),
        ({"min_contributors": 1}, "sum of one"),
        ({"cohort": 5000}, "at most 4096 ciphertexts"),
        ({"cohort": 5000, "group_size": 3000}, "at most 4096 ciphertexts"),
    ],
)
def test_wrong_parameters_are_refused(values: dict[str, float], words: str):
    with pytest.raises(ConfigError, match=words):
        Ckks(**values)
    Ckks(cohort=5000, group_size=2000)


def test_broken_encrypted_updates_end_nothing_and_are_not_added():
    """As they would arrive: damaged bytes, and lies whose checksum is right.

    What has the form of ciphertexts is added: the tags then show at the clients that the sum is not theirs.
    """
    cohort, chance = cohort_of(4), random.Random(0)
    sealed = cohort.answer(
        Task(cohort.names[0], ROUND, ROUND, {}, {"ckks": told(cohort)}),
    )
    assert isinstance(sealed, Update)
    raw = bytes(pack(sealed, "r"))
    tasks = {name: Task(name, ROUND, ROUND, {}) for name in cohort.names}
    like: Streams = {"delta": {"w": torch.zeros(50)}, "scalars": {"tau": torch.zeros(())}}
    opening = Ckks().opening(tasks, like, Party("", ROUND, heaviest=90.0))
    next(opening.run())
    taken = 0
    for number in range(600):
        broken = chance.choice((damaged, lying, miscoded))(raw, chance)
        reply = open_reply(broken, cohort.names[0], ROUND, run="r", max_bytes=1 << 20, max_tensors=64)
        if isinstance(reply, Update) and reply.streams.keys() == {"encrypted"}:
            values = reply.streams["encrypted"]
            if not values.keys() <= {"values", "open", "metrics"} or torch.equal(
                values.get("values", torch.zeros(0)), sealed.streams["encrypted"]["values"]
            ):
                continue  # what is broken are its other fields
        failure = opening._add(reply, tasks[cohort.names[0]])
        taken += failure is None
        formed = isinstance(reply, Update) and fits(reply.streams.get("encrypted", {}).get("values"), opening.count)
        assert isinstance(failure, Failure) or formed, number
    assert taken < 60
    assert fits(opening.total, opening.count)


# A chosen subset


def test_of_a_subset_the_rest_is_plain_and_the_sum_is_the_same():
    cohort = Cohort(4, Ckks(encrypt=["v*"]), width=50)
    update = cohort.update

    def two(name: str) -> Update:
        one = update(name)
        delta = {"w": one.streams["delta"]["w"], "v1": one.streams["delta"]["w"] * 2}
        return replace(one, streams=one.streams | {"delta": delta})

    cohort.update = two  # type: ignore[method-assign]
    tasks = [Task(name, ROUND, ROUND, {}) for name in cohort.names]
    like: Streams = {"delta": {"w": torch.zeros(50), "v1": torch.zeros(50)}, "scalars": {"tau": torch.zeros(())}}
    server = Party("", ROUND, heaviest=max(cohort.weights.values()))
    (found,) = cohort.protection.collect(cohort.exchange, tasks, like, server)
    assert isinstance(found, Update)
    mean = cohort.mean(cohort.names)
    assert (found.streams["delta"]["w"].double() - mean).abs().max() < 1e-6
    assert (found.streams["delta"]["v1"].double() - 2 * mean).abs().max() < 2e-6
    (one,) = [r for r in cohort.seen if isinstance(r, Update) and r.client == cohort.names[0]]
    plain = one.streams["encrypted"]["open"].numpy().reshape(-1, 5)
    low = np.pad(plain, ((0, 0), (0, 3))).copy().view("<i8")[:, 0]
    signed = np.where(low >= 2**39, low - 2**40, low)
    share = cohort.weights[cohort.names[0]] / max(cohort.weights.values())
    scale = 2**38 / 4 / 16.0
    assert np.abs(signed / scale - cohort.deltas[cohort.names[0]].numpy() * share).max() < 1e-6
    assert "the server sees all others" in cohort.protection.remark
    assert "the server sees all others" not in Ckks().remark


def test_a_federation_learns_under_encryption_as_without():
    federation, plain, sealed = Federation(), [], []
    alone = federation.run(FedAvg(), 3, records=plain)
    state = federation.run(FedAvg(), 3, protection=Ckks(), records=sealed, memory=InMemory())
    torch.testing.assert_close(state.params["w"], alone.params["w"], rtol=0, atol=1e-6)
    assert [one.clients for one in sealed] == [one.clients for one in plain]


def test_vectors_are_read_as_the_library_writes_them():
    assert ciphertexts._varint(131_201) == bytes.fromhex("818108")
    assert struct.unpack("<d", ciphertexts._HEADER[57:65])[0] == SCALE
