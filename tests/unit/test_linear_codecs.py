"""Codecs whose numbers can be added up: linear, alike for all clients of a round, unbiased without error feedback."""

from __future__ import annotations

import pytest
import torch

from weft.compression.linear import Linear, RandomK, SharedLowRank
from weft.core.party import Coding, Party
from weft.core.types import Tensors, Update
from weft.errors import BadUpdate, ConfigError

SHAPES = {"a": (7, 12), "b": (30, 4), "c": (5,), "d": (2, 3, 4), "e": ()}
CODECS = [RandomK(every=5), RandomK(every=5, error_feedback=False), SharedLowRank(rank=2), SharedLowRank(rank=50)]


def deltas(seed: int) -> Tensors:
    chance = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=chance) for name, shape in SHAPES.items()}


def coding(client: str, round_seed: int = 3) -> Coding:
    return Coding(client, 1, 1, hash(client) % 1000, {"delta": deltas(0)}, round_seed)


def encoded(codec: Linear, values: Tensors, client: str) -> Update:
    return codec.encode(Update(client, 1, 1, {"delta": values}, 1.0), coding(client), Party(client, 1))[0]


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_the_mean_of_what_clients_send_is_the_mean_of_their_deltas_sent_once(codec: Linear):
    sent = [encoded(codec, deltas(seed), f"c{seed}") for seed in range(4)]
    weights = (0.1, 0.2, 0.3, 0.4)

    def mean(many: list[Tensors]) -> Tensors:
        return {name: sum(w * one[name] for w, one in zip(weights, many, strict=True)) for name in many[0]}

    added = Update("", 1, 1, {"delta": mean([one.streams["delta"] for one in sent])}, 1.0)
    once = encoded(codec, mean([deltas(seed) for seed in range(4)]), "sum")
    server = Party("", 1)
    found = codec.decode(added, coding(""), server).streams["delta"]
    wanted = codec.decode(once, coding(""), server).streams["delta"]
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], rtol=0, atol=1e-5)
    # The control: with another client's places or basis there is nothing to add.
    other = codec.decode(added, coding("", round_seed=4), server).streams["delta"]
    assert max(float((other[name] - wanted[name]).abs().max()) for name in wanted) > 0.1 or codec == CODECS[3]


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_sketches_have_the_shapes_and_bytes_that_are_foretold(codec: Linear):
    like = {"delta": deltas(0), "extra": {"x": torch.zeros(3)}}
    streams = encoded(codec, deltas(1), "c").streams["delta"]
    foretold = codec.encoded(like)
    assert foretold["extra"] is like["extra"]
    assert {name: value.shape for name, value in streams.items()} == {
        name: value.shape for name, value in foretold["delta"].items()
    }
    size, count = codec.largest({"delta": like["delta"]})
    assert (size, count) == (sum(4 * value.numel() for value in streams.values()), len(SHAPES))


def test_random_places_are_unbiased_without_error_feedback_and_not_with_it():
    """10^5 draws at once: a line of so many stretches of the same five numbers."""
    numbers = torch.tensor([3.0, -1.0, 0.5, 0.0, 10.0])
    like = torch.zeros(5 * 10**5)
    for feedback in (False, True):
        codec = RandomK(every=5, error_feedback=feedback)
        found = codec.lift(codec.project(numbers.repeat(10**5), 8), like, 8).view(-1, 5).double()
        errors = (found.mean(0) - numbers).abs() / (found.std(0) / 10**2.5 + 1e-12)
        assert (float(errors.max()) < 5) == (not feedback)


def test_shared_bases_are_unbiased_without_error_feedback_and_not_with_it():
    value = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    for feedback in (False, True):
        codec = SharedLowRank(rank=2, error_feedback=feedback)
        found = torch.stack([codec.lift(codec.project(value, seed), value, seed) for seed in range(5000)]).double()
        errors = (found.mean(0) - value).abs() / (found.std(0) / 5000**0.5)
        assert (float(errors.max()) < 5) == (not feedback)


def test_a_matrix_of_low_rank_in_the_shared_basis_comes_back_whole():
    codec = SharedLowRank(rank=2)
    basis = codec._basis(9, 5)
    matrix = torch.randn(4, 2) @ basis.T
    torch.testing.assert_close(codec.lift(codec.project(matrix, 5), matrix, 5), matrix)
    torch.testing.assert_close(codec.lift(codec.project(matrix.T, 5), matrix.T, 5), matrix.T)


@pytest.mark.parametrize("codec", CODECS[:3], ids=str)
def test_what_is_no_sketch_is_refused(codec: Linear):
    good = encoded(codec, deltas(1), "c").streams["delta"]
    for bad in (
        {},
        {name: value for name, value in good.items() if name != "a"},
        good | {"a": good["a"].double()},
        good | {"a": good["a"][:-1]},
        good | {"a": good["a"].view(1, -1)},
    ):
        with pytest.raises(BadUpdate, match="sent"):
            codec.decode(Update("c", 1, 1, {"delta": bad}, 1.0), coding("c"), Party("", 1))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: RandomK(every=0), "every=16"),
        (lambda: RandomK(every=1 << 21), "every=16"),
        (lambda: SharedLowRank(rank=0), "rank=4"),
        (lambda: RandomK(zstd=True), "leave out zstd"),
    ],
)
def test_parameters_that_cannot_be_are_refused_in_words(build, words: str):
    with pytest.raises(ConfigError, match=words):
        build()
