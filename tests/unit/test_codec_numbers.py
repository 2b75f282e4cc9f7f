"""Codecs of updates: what they send and keep, against formulas written out here; bytes that no codec wrote."""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard

from weft import registry
from weft.compression.blocks import BF16, Int4, Int8, Sign, rounded_up
from weft.compression.coded import Coded
from weft.compression.low_rank import LowRank
from weft.compression.sparse import SparseLoCo, TopK
from weft.core import tensors
from weft.core.packing import Indices, Reader, pack_bits, pack_nibbles, squeeze, unpack_bits, unpack_nibbles, unsqueeze
from weft.core.party import Coding, Party
from weft.core.types import Streams, Tensors, Update
from weft.errors import BadUpdate, ConfigError

LOSSY = [name for name in registry.CODECS if name != "none"]
SHAPES = {"b.weight": (40, 30), "a.weight": (16, 100), "norm": (37,), "scalar": ()}


def codec_of(name: str, **args: Any) -> Coded:
    codec: Coded = registry.load(registry.CODECS, name, "codec")(**args)
    return codec


PACKINGS = [(name, zstd) for name in LOSSY for zstd in (False, True) if not (zstd and codec_of(name).addable)]
"""Every codec, with and without zstd; numbers that are added up are never packed."""


def drawn(seed: int, shapes: dict[str, tuple[int, ...]] = SHAPES) -> Tensors:
    chance = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=chance) for name, shape in shapes.items()}


def coding(like: Tensors, seed: int = 0) -> Coding:
    return Coding("client", 0, 0, seed, {"delta": like}, seed + 1)


def sent_and_kept(codec: Coded, deltas: list[Tensors]) -> tuple[list[Tensors], Streams]:
    """Encode deltas one after the other; return what the server decodes of each, and the memory at the end."""
    memory: Streams = {}
    sent = []
    for number, delta in enumerate(deltas):
        update = Update("client", number, number, {"delta": delta}, 1.0)
        encoded, memory = codec.encode(update, coding(delta, number), Party("client", number, memory=memory))
        sent.append(codec.decode(encoded, coding(delta, number), Party("", number)).streams["delta"])
    return sent, memory


@pytest.mark.parametrize(("name", "zstd"), PACKINGS)
def test_an_update_arrives_in_its_shapes_and_in_no_more_bytes_than_were_said(name: str, zstd: bool):
    codec, delta = codec_of(name, zstd=zstd), drawn(0)
    streams = {"delta": delta, "scalars": {"steps": torch.tensor(3.0)}}
    update = Update("client", 0, 0, streams, 1.0)
    encoded, _ = codec.encode(update, coding(delta), Party("client", 0))
    size = tensors.num_bytes(encoded.streams)
    most = codec.largest(streams)
    assert size <= most[0]
    assert zstd or size == most[0]
    assert most[1] == 1 + (len(delta) if codec.addable else 1)
    assert size < 0.6 * tensors.num_bytes(streams)
    assert encoded.streams["scalars"] is streams["scalars"]
    decoded = codec.decode(encoded, coding(delta), Party("", 0)).streams["delta"]
    assert list(decoded) == list(delta)
    assert all(decoded[n].shape == delta[n].shape and decoded[n].dtype == delta[n].dtype for n in delta)
    error = math.sqrt(tensors.squared_norm(tensors.subtract(delta, decoded)) / tensors.squared_norm(delta))
    assert error < {"bf16": 0.003, "int8": 0.02, "int4": 0.3}.get(name, 0.999)
    # The order of names at the other end does not matter.
    turned = dict(reversed(delta.items()))
    other = codec.decode(encoded, coding(turned), Party("", 0)).streams["delta"]
    assert all(torch.equal(other[n], decoded[n]) for n in delta)


@pytest.mark.parametrize("name", LOSSY)
def test_what_was_sent_and_what_is_kept_add_up_to_all_deltas(name: str):
    codec = codec_of(name, **({"momentum": 1.0} if name == "sparse_loco" else {}))
    deltas = [drawn(seed) for seed in range(50)]
    sent, memory = sent_and_kept(codec, deltas)
    for n in SHAPES:
        total = torch.stack([delta[n].double() for delta in deltas]).sum(0)
        found = torch.stack([one[n].double() for one in sent]).sum(0) + memory["error"][n]
        size = sum(float(delta[n].norm()) for delta in deltas)
        assert float((found - total).norm()) < 1e-6 * size


def test_without_error_feedback_a_codec_remembers_nothing_and_the_sums_differ():
    deltas = [drawn(seed) for seed in range(50)]
    sent, memory = sent_and_kept(Int4(error_feedback=False), deltas)
    assert memory == {}
    total = torch.stack([delta["norm"].double() for delta in deltas]).sum(0)
    found = torch.stack([one["norm"].double() for one in sent]).sum(0)
    assert float((found - total).norm() / total.norm()) > 1e-3
    for codec in (TopK, SparseLoCo, Sign):
        with pytest.raises(ConfigError, match=r"^The codec sends .*leave out error_feedback\.$"):
            codec(error_feedback=False)


@pytest.mark.parametrize(
    ("keep", "chunk", "words"),
    [
        (5000, 4096, r"keep is 5000, and a chunk has 4096 numbers: write such as keep=64\."),
        (0, 4096, r"keep is 0, and 1 or more of a chunk are sent: write such as keep=64\."),
        (9, 8, r"keep is 9, and a chunk has 8 numbers: write such as keep=1\."),
        (64, 1 << 21, r"chunk is 2097152, and a chunk has 1 to 1048576 numbers: write chunk=4096\."),
        (1, 0, r"chunk is 0, and a chunk has 1 to"),
    ],
)
def test_a_wrong_number_of_a_sparse_codec_is_named_alone(keep: int, chunk: int, words: str):
    with pytest.raises(ConfigError, match=words):
        TopK(keep=keep, chunk=chunk)


def test_parameters_that_are_not_sent_in_a_round_keep_what_was_not_sent_of_them():
    """Fragments, and factors that are trained in turn."""
    first, second = drawn(0, {"a": (50,)}), drawn(1, {"b": (60,)})
    sent, memory = sent_and_kept(TopK(keep=4, chunk=64), [first, second, first])
    assert memory["error"].keys() == {"a", "b"}
    torch.testing.assert_close(sent[0]["a"] + sent[2]["a"] + memory["error"]["a"], 2 * first["a"])


DRAWS = 100_000
TRIED = {"w": (23,)}


def mean_and_error(codec: Coded, draws: int) -> torch.Tensor:
    """Return by how many standard errors the mean of decoded draws differs from each value."""
    values = drawn(5, TRIED)
    # Many draws at once: each repeats the same blocks.
    batch, width = 1000, 64
    line = torch.zeros(batch, width)
    line[:, :23] = values["w"]
    total, squares = torch.zeros(23, dtype=torch.float64), torch.zeros(23, dtype=torch.float64)
    for number in range(draws // batch):
        _, sent = codec.shrink({"w": line}, coding(values, 1000 + number))
        found = sent["w"][:, :23].double()
        total += found.sum(0)
        squares += found.pow(2).sum(0)
    mean = total / draws
    spread = (squares / draws - mean.pow(2)).clamp(min=0).sqrt() / math.sqrt(draws)
    return (mean - values["w"]).abs() / spread.clamp(min=1e-9)


@pytest.mark.parametrize("codec", [Int8(block=64), Int4(block=64)], ids=["int8", "int4"])
def test_whole_numbers_are_unbiased(codec: Coded):
    assert (mean_and_error(codec, DRAWS) < 5).all()


def test_the_largest_numbers_are_not_unbiased():
    """The control: the test above can fail."""
    assert (mean_and_error(TopK(keep=8, chunk=64), 2000) > 5).sum() >= 10


def test_draws_differ_and_follow_from_the_seed():
    values = drawn(0)
    one, two, three = (Int4().shrink(values, coding(values, seed))[0] for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_scales_are_never_below_what_they_scale():
    values = torch.rand(10_000) * 10.0 ** torch.randint(-30, 9, (10_000,))
    up = rounded_up(values).float()
    assert (up >= values).all()
    assert (up <= values * 1.01).all()
    assert rounded_up(torch.zeros(1)).float() == 0


def dense_sparse_loco(deltas: list[Tensors], keep: int, chunk: int, beta: float) -> list[np.ndarray]:
    """SparseLoCo at one worker, on dense vectors, number by number (arXiv 2508.15706, algorithm 1):

    e <- beta e + D;  q = Q(top-k of every chunk of e);  e <- e - q.
    """
    error = np.zeros(sum(delta.numel() for delta in deltas[0].values()))
    result = []
    for delta in deltas:
        error = beta * error + np.concatenate([delta[name].numpy().reshape(-1) for name in sorted(delta)])
        sent = np.zeros_like(error)
        for begin in range(0, len(error), chunk):
            part = error[begin : begin + chunk]
            chosen = sorted(range(len(part)), key=lambda place: -abs(part[place]))[:keep]
            middle = np.mean([abs(part[place]) for place in chosen])
            for group in (
                [place for place in chosen if abs(part[place]) > middle],
                [place for place in chosen if abs(part[place]) <= middle],
            ):
                if group:
                    size = float(torch.tensor(np.mean([abs(part[place]) for place in group])).bfloat16())
                    for place in group:
                        sent[begin + place] = size * np.sign(part[place])
        error = error - sent
        result.append(sent)
    return result


def test_sparse_loco_is_the_dense_algorithm_of_its_paper():
    shapes = {"w": (64, 64), "v": (40, 100), "b": (17,)}
    deltas = [drawn(seed, shapes) for seed in range(12)]
    sent, _ = sent_and_kept(SparseLoCo(keep=24, chunk=512, momentum=0.9), deltas)
    expected = dense_sparse_loco(deltas, 24, 512, 0.9)
    for found, dense in zip(sent, expected, strict=True):
        line = torch.cat([found[name].reshape(-1) for name in sorted(found)])
        assert int((line != 0).sum()) == 24 * math.ceil(len(dense) / 512)
        torch.testing.assert_close(line.double(), torch.from_numpy(dense), rtol=1e-5, atol=1e-6)
    faded = dense_sparse_loco(deltas, 24, 512, 1.0)
    assert not np.allclose(faded[-1], expected[-1])  # the momentum does something


def test_low_rank_finds_a_low_rank_and_sends_vectors_whole():
    left, right = torch.randn(60, 3), torch.randn(3, 80)
    delta = {"w": left @ right, "norm": torch.randn(60)}
    codec = LowRank(rank=4)
    packed, sent = codec.shrink(delta, coding(delta))
    assert float((sent["w"] - delta["w"]).norm() / delta["w"].norm()) < 0.01
    assert torch.equal(sent["norm"], delta["norm"].bfloat16().float())
    assert packed.numel() == 2 * (4 * (60 + 80) + 60)
    assert codec.raw_size({"w": torch.zeros(4, 4)}) == 2 * 16  # two factors would be larger


@pytest.mark.parametrize(("keep", "length"), [(1, 1), (3, 3), (5, 8), (64, 4096), (7, 1000), (1, 4096), (128, 130)])
def test_indices_come_back_and_need_little_more_than_their_information(keep: int, length: int):
    chance = np.random.default_rng(0)
    rows = np.sort(np.stack([chance.choice(length, keep, replace=False) for _ in range(9)]), axis=1)
    indices = Indices(keep, length)
    raw = torch.cat(indices.pack(rows))
    assert raw.numel() == indices.size(9)
    assert np.array_equal(indices.unpack(Reader(raw, raw.numel()), 9), rows)
    assert 8 * raw.numel() <= 9 * keep * (math.log2(length / keep) + 2.6) + 16


PEAK = """
import sys, torch
from weft.compression.sparse import SparseLoCo, TopK
from weft.core.packing import Reader

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

codec = {"topk": TopK, "sparse_loco": SparseLoCo}[sys.argv[1]](keep=int(sys.argv[2]))
raw = torch.load(sys.argv[3])
few = torch.cat(codec.pack(torch.randn(8192), None))
codec.unpack(Reader(few, few.numel()), 8192)
open("/proc/self/clear_refs", "w").write("5")
before = peak()
line = codec.unpack(Reader(raw, raw.numel()), 1 << 22)
print((peak() - before) / (4 << 22))
torch.save(line, sys.argv[3])
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read from Linux")
@pytest.mark.parametrize(("name", "keep"), [("topk", 4096), ("topk", 2048), ("sparse_loco", 4096)])
def test_decoding_takes_little_more_memory_than_the_update(name: str, keep: int, tmp_path: Path):
    """A whole chunk that is sent took ten times the update's, and a server decodes what sites have sent."""
    codec = {"topk": TopK, "sparse_loco": SparseLoCo}[name](keep=keep)
    values = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0))
    torch.save(torch.cat(codec.pack(values, coding({}))), tmp_path / "raw.pt")
    command = [sys.executable, "-c", PEAK, name, str(keep), str(tmp_path / "raw.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0.9 < float(done.stdout) < 1.5
    line = torch.load(tmp_path / "raw.pt")
    assert int(line.count_nonzero()) == keep * 1024
    if name == "topk":
        assert torch.equal(line[line != 0], values.bfloat16().float()[line != 0])


def test_indices_that_no_codec_writes_are_refused():
    indices = Indices(2, 4)  # one low bit, four high bits a row
    for rows in ([[1, 1]], [[3, 2]]):
        raw = torch.cat(indices.pack(np.array(rows)))
        with pytest.raises(BadUpdate, match=r"increase|another length"):
            indices.unpack(Reader(raw, raw.numel()), 1)
    for low, high in itertools.product(range(256), range(256)):
        try:
            found = indices.unpack(Reader(torch.tensor([low, high], dtype=torch.uint8), 2), 1)
        except BadUpdate:
            continue
        assert 0 <= found[0, 0] < found[0, 1] < 4
        assert torch.cat(indices.pack(found)).tolist() == [low, high]  # one way of writing for each row


def test_bits_and_nibbles_come_back():
    chance = np.random.default_rng(1)
    for width, count in itertools.product(range(13), (0, 1, 7, 100)):
        values = chance.integers(0, 1 << width, count)
        assert np.array_equal(unpack_bits(pack_bits(values, width), count, width), values)
    for count in (0, 1, 2, 101):
        codes = torch.randint(0, 16, (count,), dtype=torch.uint8)
        packed = pack_nibbles(codes)
        assert packed.numel() == (count + 1) // 2
        assert torch.equal(unpack_nibbles(packed, count), codes)


def test_a_bomb_is_refused_before_it_is_unpacked():
    """Ten gigabytes of zeros in some hundred kilobytes, and frames that lie about what they hold."""
    size = 10_000
    honest = squeeze(torch.zeros(size, dtype=torch.uint8))
    assert honest.numel() < 100
    assert torch.equal(unsqueeze(honest, size), torch.zeros(size, dtype=torch.uint8))
    stream = zstandard.ZstdCompressor().compressobj(size=10 << 30)
    zeros = bytes(1 << 20)
    bomb = b"".join(stream.compress(zeros) for _ in range(64))  # the header alone claims the rest
    unknown = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(size))
    two = bytes(honest[1:].tolist()) * 2
    for data in (bomb[:5000], unknown, two, b"", b"\x28\xb5\x2f\xfd", bytes(honest[1:-1].tolist())):
        with pytest.raises(BadUpdate):
            unsqueeze(torch.frombuffer(bytearray(b"\x01" + data), dtype=torch.uint8), size)
    with pytest.raises(BadUpdate):
        unsqueeze(torch.zeros(size + 2, dtype=torch.uint8), size)
    with pytest.raises(BadUpdate):
        unsqueeze(torch.zeros(5), 5)


@pytest.mark.parametrize(("name", "zstd"), PACKINGS)
def test_bytes_that_were_damaged_are_refused_or_stand_for_finite_or_refusable_numbers(name: str, zstd: bool):
    """Nothing but BadUpdate is raised, and shapes never differ; what is not finite is refused after decoding."""
    codec, like, chance = codec_of(name, zstd=zstd), drawn(3), random.Random(name)
    packed, _ = codec.shrink(like, coding(like))
    refused = 0
    for _ in range(300):
        raw = bytearray(packed.numpy().tobytes())
        for _ in range(chance.choice((1, 1, 20))):
            raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        if chance.random() < 0.3:
            raw = raw[: chance.randrange(1, len(raw))]
        try:
            found = codec.grow(torch.frombuffer(raw, dtype=torch.uint8), like)
        except BadUpdate:
            refused += 1
            continue
        assert all(found[n].shape == like[n].shape for n in like)
    assert refused > 60


def test_values_that_no_codec_takes_are_refused_in_words():
    wrong = (lambda: Int8(block=1), lambda: TopK(keep=0), lambda: TopK(keep=9, chunk=8), lambda: LowRank(rank=0))
    for make in (*wrong, lambda: SparseLoCo(momentum=0.0), lambda: SparseLoCo(momentum=1.1)):
        with pytest.raises(ConfigError, match="write such as"):
            make()


@pytest.mark.parametrize("name", LOSSY)
def test_tensors_without_numbers_are_encoded_too(name: str):
    for like in ({"empty": torch.zeros(0, 4)}, {"empty": torch.zeros(0), "one": torch.ones(1)}):
        sent, _ = sent_and_kept(codec_of(name), [like])
        assert {n: value.shape for n, value in sent[0].items()} == {n: value.shape for n, value in like.items()}


def test_bf16_is_bfloat16_and_keeps_the_rounding():
    delta = drawn(2)
    sent, memory = sent_and_kept(BF16(), [delta])
    assert all(torch.equal(sent[0][n], delta[n].bfloat16().float()) for n in delta)
    assert all(torch.equal(memory["error"][n], delta[n] - delta[n].bfloat16().float()) for n in delta)
    assert replace(BF16(), zstd=True).size(delta) == BF16().size(delta) + 1
