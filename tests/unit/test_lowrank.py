"""Matrices in factors: the factored SVD is the dense one, and norms are norms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.core import lowrank
from weft.core.lowrank import Product, kind_of, modules


def made(d: int, k: int, rank: int, seed: int = 0) -> Product:
    random = torch.Generator().manual_seed(seed)
    return Product(torch.randn(d, rank, generator=random), torch.randn(rank, k, generator=random))


sizes = st.tuples(st.integers(1, 24), st.integers(1, 24), st.integers(1, 40), st.integers(0, 3))


@settings(deadline=None, max_examples=60)
@given(sizes, st.integers(1, 30))
def test_the_factored_svd_is_the_dense_one(shape: tuple[int, int, int, int], rank: int):
    product = made(*shape)
    dense = (product.b.double() @ product.a.double()).float()
    u, s, vt = torch.linalg.svd(dense, full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ vt[:rank]
    found = lowrank.truncate(product, rank)
    assert found.b.shape == (shape[0], rank)
    assert found.a.shape == (rank, shape[1])
    # Where two singular values are the same, the best matrix is not unique, but its distance is.
    torch.testing.assert_close(
        torch.linalg.norm(found.b @ found.a - dense),
        torch.linalg.norm(best - dense),
        rtol=1e-3,
        atol=1e-4 * float(s[0]),
    )
    # Balanced: both factors have the square roots of the singular values as norms.
    kept = min(rank, len(s))
    torch.testing.assert_close(found.a.norm(dim=1)[:kept], s[:kept].sqrt(), rtol=1e-3, atol=2e-3 * float(s[0].sqrt()))


def test_leading_values_are_those_of_a_whole_svd_down_to_what_float32_tells():
    """Values from 1 down to 1e-12: those above 1e-7 agree, the others leave no more than rounding, and none is nan."""
    random = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(60, 40, generator=random, dtype=torch.float64))[0] for _ in "lr")
    values = torch.logspace(0, -12, 40, dtype=torch.float64)
    matrix = (left * values) @ right.T
    for one in (matrix[:, :50], matrix[:50]):  # taller than wide, and wider than tall
        u, s, vt = lowrank._leading(one, 30)
        whole = torch.linalg.svdvals(one)[:30]
        sure = whole > 1e-7
        torch.testing.assert_close(s[sure], whole[sure], rtol=0, atol=1e-9)
        assert sure.sum() > 20
        assert s[~sure].max() < 2e-7
        assert u.isfinite().all()
        assert torch.linalg.norm((u * s) @ vt - one) < 2e-7


@settings(deadline=None, max_examples=40)
@given(sizes)
def test_without_a_rank_nothing_is_lost(shape: tuple[int, int, int, int]):
    product = made(*shape)
    found = lowrank.truncate(product)
    assert found.a.shape[0] <= min(shape[:3])
    error = torch.linalg.norm(found.b @ found.a - product.b @ product.a) / torch.linalg.norm(product.b @ product.a)
    assert error < 1e-6
    assert lowrank.norm(product) == pytest.approx(float(torch.linalg.norm(product.b @ product.a)), rel=1e-4)


def test_a_sum_of_products_is_one_product():
    one, two = made(5, 7, 2, 1), made(5, 7, 3, 2)
    both = lowrank.total([one, two], [0.25, 0.75])
    torch.testing.assert_close(both.b @ both.a, 0.25 * one.b @ one.a + 0.75 * two.b @ two.a)
    assert lowrank.norm(lowrank.total([one, one], [1.0, -1.0])) < 1e-5


def test_a_product_of_zeros_has_norm_zero_and_truncates_to_zeros():
    nothing = Product(torch.zeros(4, 3), torch.zeros(3, 6))
    assert lowrank.norm(nothing) == 0
    assert lowrank.truncate(nothing).a.shape == (0, 6)
    assert not lowrank.truncate(nothing, 2).b.any()


def test_factors_are_told_by_their_names():
    q, v = "base_model.model.layers.0.q_proj", "base_model.model.layers.0.v_proj"
    names = [f"{m}.lora_{k}.default.weight" for m in (q, v) for k in "AB"]
    assert [kind_of(name) for name in names] == ["A", "B", "A", "B"]
    assert kind_of(f"{q}.lora_R.default.weight") == "R"
    assert kind_of(f"{q}.base_layer.weight") == kind_of(f"{q}.lora_magnitude_vector.default.weight") == ""
    found = modules([*names, f"{q}.lora_A.personal.weight"])
    assert found == {m: {k: f"{m}.lora_{k}.default.weight" for k in "AB"} for m in (q, v)}
    assert set(modules([f"{q}.lora_A.personal.weight"], "personal")) == {q}
