"""The search without gradients, on functions whose minimum is known and against a plain form of its update."""

from __future__ import annotations

import numpy as np
import pytest

from weft.core.evolution import Search


def sphere(x: np.ndarray) -> np.ndarray:
    return (x**2).sum(axis=1)


def ellipsoid(x: np.ndarray) -> np.ndarray:
    return (x**2 * 10.0 ** (4 * np.arange(x.shape[1]) / (x.shape[1] - 1))).sum(axis=1)


@pytest.mark.parametrize(("function", "generations"), [(sphere, 250), (ellipsoid, 700)])
def test_the_search_finds_the_minimum(function, generations: int):
    search, chance = Search.at(np.full(10, 3.0), 1.0), np.random.default_rng(0)
    for _ in range(generations):
        tried = search.ask(12, chance)
        search = search.tell(tried, function(tried))
    assert function(search.mean[None])[0] < 1e-8


def test_the_search_learns_the_scale_of_every_coordinate():
    search, chance = Search.at(np.full(6, 1.0), 1.0), np.random.default_rng(1)
    for _ in range(300):
        tried = search.ask(10, chance)
        search = search.tell(tried, ellipsoid(tried))
    assert search.variance[0] > 100 * search.variance[-1]


def test_a_generation_equals_the_one_worked_by_hand():
    """Four candidates in the plane; the better two pull the mean with weights log(2.5) - log(i)."""
    search = Search.at(np.zeros(2), 1.0)
    tried = np.array([[1.0, 0.0], [0.0, 2.0], [5.0, 5.0], [-3.0, 1.0]])
    after = search.tell(tried, np.array([1.0, 2.0, 3.0, 4.0]))
    raw = np.log(2.5) - np.log([1.0, 2.0])
    weights = raw / raw.sum()
    assert after.mean == pytest.approx(weights @ tried[:2])
    effective = 1 / (weights**2).sum()
    c_1 = 2 / ((2 + 1.3) ** 2 + effective) * 4 / 3
    c_mu = 2 * (effective - 2 + 1 / effective) / (4**2 + effective) * 4 / 3
    c_path = (4 + effective / 2) / (6 + effective)
    path = np.sqrt(c_path * (2 - c_path) * effective) * (weights @ tried[:2])
    assert after.path == pytest.approx(path)
    assert after.variance == pytest.approx((1 - c_1 - c_mu) + c_1 * path**2 + c_mu * (weights @ tried[:2] ** 2))
    assert after.count == 1


def test_candidates_without_a_value_are_the_worst():
    search = Search.at(np.zeros(2), 1.0)
    tried = np.array([[1.0, 0.0], [0.0, 2.0], [5.0, 5.0], [-3.0, 1.0]])
    assert np.isfinite(search.tell(tried, np.array([np.inf, 2.0, 3.0, np.inf])).mean).all()
