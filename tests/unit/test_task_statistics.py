"""Standard errors of means over items, clustered and paired."""

from __future__ import annotations

import math

import numpy as np
import pytest

from weft.tasks.statistics import difference, mean


def test_independent_items():
    values = [1.0, 0.0, 1.0, 1.0]
    measure = mean(values)
    assert measure.value == 0.75
    assert measure.error == pytest.approx(np.std(values, ddof=1) / 2)


def test_copies_of_an_item_add_no_certainty():
    rng = np.random.default_rng(0)
    values = (rng.random(400) < 0.4).astype(float).tolist()
    copies = [value for value in values for _ in range(5)]
    clusters = [str(number) for number in range(400) for _ in range(5)]
    alone, clustered = mean(values).error, mean(copies, clusters).error
    assert clustered == pytest.approx(alone, rel=0.01)
    assert mean(copies).error == pytest.approx(alone / math.sqrt(5), rel=0.01)  # the control


def test_clusters_cover_as_often_as_they_say():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        levels = rng.normal(0, 1, 40)
        values = [level + noise for level in levels for noise in rng.normal(0, 0.3, 6)]
        low, high = mean(values, [str(number // 6) for number in range(240)]).interval or (0, 0)
        covered += low <= 0 <= high
    assert 0.90 < covered / 400 < 0.98


def test_pairs_see_what_two_means_do_not():
    rng = np.random.default_rng(2)
    hard = rng.normal(0, 1, 300)
    first = dict(enumerate(hard))
    second = {
        number: value + 0.05 + 0.1 * float(noise)
        for (number, value), noise in zip(first.items(), rng.normal(0, 1, 300), strict=True)
    }
    pair = difference(first, second)
    assert pair.shown
    assert pair.smallest_visible is not None
    assert pair.smallest_visible < 0.05
    assert not difference(first, {number: value + 0.001 * float(rng.normal()) for number, value in first.items()}).shown
