"""The product error against dense matrices, and the memory that it takes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from weft.algorithms.fedavg import FedAvg
from weft.core import lowrank
from weft.core.exchange import Runtime
from weft.core.types import DELTA, ServerState, Task, Total, Update
from weft.federation import products as module
from weft.federation.cohort_watch import CohortWatch
from weft.federation.products import Products

A, B = "q.lora_A.default.weight", "q.lora_B.default.weight"
SCALE = 2.0


def cohort(clients: int, rank: int = 3, seed: int = 0) -> tuple[dict[str, torch.Tensor], list[Update]]:
    random = torch.Generator().manual_seed(seed)
    base = {A: torch.randn(rank, 12, generator=random), B: torch.randn(9, rank, generator=random)}
    updates = [
        Update(str(n), 0, 0, {DELTA: {k: torch.randn(v.shape, generator=random) for k, v in base.items()}}, n + 1.0)
        for n in range(clients)
    ]
    return base, updates


def dense(base: dict[str, torch.Tensor], updates: list[Update]) -> tuple[torch.Tensor, float]:
    """Return the mean product, and how far the product of the mean factors is from it."""
    weight = sum(update.weight for update in updates)
    ended = [{k: base[k] + u.streams[DELTA][k] for k in base} for u in updates]
    mean = sum(u.weight / weight * SCALE * e[B] @ e[A] for u, e in zip(updates, ended, strict=True))
    factors = {k: sum(u.weight / weight * e[k] for u, e in zip(updates, ended, strict=True)) for k in base}
    apart = mean - SCALE * factors[B] @ factors[A]
    return mean, float(apart.norm() / mean.norm())


def averaged(base: dict[str, torch.Tensor], updates: list[Update]) -> dict[str, torch.Tensor]:
    weight = sum(update.weight for update in updates)
    return {k: base[k] + sum(u.weight / weight * u.streams[DELTA][k] for u in updates) for k in base}


def watched(base, updates, *, exact: bool) -> Products:
    found = Products(SCALE, {}, exact=exact)
    assert list(found.watch(updates, {update.client: base for update in updates})) == updates
    return found


@pytest.mark.parametrize("clients", [1, 2, 7])
def test_the_error_is_that_of_dense_matrices(clients: int):
    base, updates = cohort(clients)
    mean, expected = dense(base, updates)
    found = watched(base, updates, exact=True)
    torch.testing.assert_close(found.mean()["q"].b @ found.mean()["q"].a, mean, rtol=1e-4, atol=1e-5)
    assert found.error(averaged(base, updates), {}, {}) == pytest.approx(expected, abs=1e-6)


def test_the_side_adapter_counts_in_the_error_of_products(monkeypatch: pytest.MonkeyPatch):
    base, updates = cohort(4)
    found = watched(base, updates, exact=True)
    factors = averaged(base, updates)
    rest = lowrank.total([found.mean()["q"], lowrank.product_of(factors, {"A": A, "B": B}, -SCALE)])
    assert found.error(factors, {}, {"adapter.side": lowrank.side_tensors({"q": rest})}) < 1e-6


def test_the_memory_of_products_does_not_grow_with_the_clients(monkeypatch: pytest.MonkeyPatch):
    """Summed up in the best factors of as many columns as the matrix has, nothing is lost however many clients come."""
    monkeypatch.setattr(module, "LIMIT", 12)
    base, updates = cohort(60)
    found = watched(base, updates, exact=False)
    assert found.mean()["q"].a.shape[0] <= 2 * 12
    assert found.error(averaged(base, updates), {}, {}) == pytest.approx(dense(base, updates)[1], rel=1e-4)


@pytest.mark.parametrize("exact", [True, False])
def test_the_error_is_computed_on_a_gpu_and_the_factors_wait_on_the_cpu(monkeypatch: pytest.MonkeyPatch, exact: bool):
    """The GPU is a fake whose tensors are this machine's: what is computed on it is noted."""
    base, updates = cohort(60 if not exact else 4)
    monkeypatch.setattr(module, "LIMIT", 12)
    moved: list[str] = []
    plain = module._on

    def on(product: lowrank.Product, device: torch.device) -> lowrank.Product:
        moved.append(device.type)
        return plain(product, torch.device("cpu"))

    monkeypatch.setattr(module, "_on", on)
    found = Products(SCALE, {}, exact=exact, device=torch.device("cuda"))
    assert list(found.watch(updates, {update.client: base for update in updates})) == updates
    # Truncated sums go to the device and come back, whole ones are not touched.
    assert set(moved) == (set() if exact else {"cuda", "cpu"})
    moved.clear()
    assert found.error(averaged(base, updates), {}, {}) == pytest.approx(dense(base, updates)[1], rel=1e-4)
    assert moved == ["cuda", "cuda"]


def test_an_accelerator_without_float64_computes_no_error():
    assert Products(SCALE, {}, exact=True, device=torch.device("mps")).device.type == "cpu"


def test_factors_that_the_server_does_not_know_have_no_error():
    base, updates = cohort(2)
    only = [Update(u.client, 0, 0, {DELTA: {A: u.streams[DELTA][A]}}, u.weight) for u in updates]
    found = watched({A: base[A]}, only, exact=True)
    assert found.error({A: base[A]}, {}, {}) is None


@pytest.mark.parametrize("sum_only", [True, False])
def test_an_aggregation_without_products_combines_where_the_server_sees_sums_only(sum_only: bool):
    """Such as `merge`, which would otherwise never merge under secure aggregation."""
    base, updates = cohort(2)
    combined: list[object] = []
    lora = SimpleNamespace(
        single_updates=False, combine=lambda total, state, products: combined.append(products) or total
    )
    plan = SimpleNamespace(
        algorithm=FedAvg(),
        sharing=SimpleNamespace(layers=None, scale=SCALE, lora=lora),
        protection=SimpleNamespace(sum_only=sum_only),
        privacy=SimpleNamespace(bounded=False),
        aggregator=SimpleNamespace(additive=True),
        error_device=torch.device("cpu"),
    )
    tasks = {update.client: Task(update.client, 0, 0, base) for update in updates}
    watch = CohortWatch(plan, ServerState(base), tasks, len(tasks), Runtime())
    assert list(watch.watch(updates)) == updates
    delta = {name: value - base[name] for name, value in averaged(base, updates).items()}
    _, error = watch.combine(Total({DELTA: delta}, ("0", "1"), 3.0))
    assert combined == [{}]
    assert (error is None) == sum_only
