"""What travels: patterns, kinds of factors, ranks."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.core.types import Update
from weft.federation.sharing import Sharing, crop_like, crop_rank, pad, pad_update
from weft.lora.dual import Dual
from weft.lora.fedsa import FedSA
from weft.lora.rolora import RoLoRA

A, B, R = (f"base.q.lora_{kind}.default.weight" for kind in "ABR")
OWN, GATE, OTHER = "base.q.lora_A.personal.weight", "base.q.lora_gate.personal", "base.norm.weight"


def factors(rank: int) -> dict[str, torch.Tensor]:
    return {A: torch.randn(rank, 5), B: torch.randn(3, rank), R: torch.randn(rank, rank), OTHER: torch.randn(4)}


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(6, 9))
def test_factors_that_were_cut_and_padded_are_their_leading_part(rank: int, full: int):
    whole = factors(full)
    small = crop_rank(whole, rank)
    assert [tuple(small[name].shape) for name in (A, B, R, OTHER)] == [(rank, 5), (3, rank), (rank, rank), (4,)]
    back = pad(small, whole)
    part = back[B][:, :rank] @ back[R][:rank, :rank] @ back[A][:rank]
    torch.testing.assert_close(back[B] @ back[R] @ back[A], part)
    assert all(torch.equal(value, small[name]) for name, value in crop_like(back, small).items())
    assert not back[A][rank:].any()
    assert crop_rank(whole, None) is whole


def test_numbers_that_belong_to_factors_are_not_cut():
    means = {A: torch.tensor(2.0)}
    assert crop_rank(means, 1) == means
    assert pad(means, factors(4))[A].shape == ()
    update = pad_update(Update("a", 0, 0, {"delta": crop_rank(factors(4), 2), "means": means}, 1.0), factors(4))
    assert update.streams["delta"][R].shape == (4, 4)
    assert update.streams["means"][A] == 2.0


def test_only_shared_parameters_travel():
    names = [A, B, OWN, GATE, OTHER]
    assert [name for name in names if Sharing(FedSA()).travels(name)] == [A, OTHER]
    assert [name for name in names if Sharing(Dual()).travels(name)] == [A, B, OTHER]
    assert [name for name in names if Sharing(patterns=("lora_A.default", "base.n*")).travels(name)] == [A, OTHER]
    assert Sharing(RoLoRA()).trained_names([A, B, OTHER], 0) == [B, OTHER]
    assert Sharing(RoLoRA()).trained_names([A, B, OTHER], 1) == [A, OTHER]
    assert not Sharing().keeps
    assert all(sharing.keeps for sharing in (Sharing(FedSA()), Sharing(Dual()), Sharing(patterns=("x",))))
    assert [Sharing(ranks=(2, 4)).rank_of(client) for client in range(3)] == [2, 4, 2]
