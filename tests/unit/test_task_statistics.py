"""Standard errors of means over items, clustered and paired."""

from __future__ import annotations

import math

import numpy as np
import pytest

from weft.tasks.choice import Choice
from weft.tasks.requests import Record
from weft.tasks.results import shown
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


@pytest.mark.parametrize(("right", "count"), [(0, 20), (20, 20), (1, 7), (13, 40), (499, 500), (1, 1000)])
def test_intervals_of_shares_are_wilsons(right: int, count: int):
    stats = pytest.importorskip("scipy.stats")
    measure = mean([1.0] * right + [0.0] * (count - right), bounds=(0.0, 1.0))
    theirs = stats.binomtest(right, count).proportion_ci(method="wilson")
    assert measure.interval == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_intervals_stay_within_their_bounds():
    low, high = mean([10.0, 10.0, 9.0, 10.0], bounds=(1.0, 10.0)).interval or (0, 0)
    assert 1 <= low < 9.75 < high <= 10
    low, high = mean([1.0] * 40, [str(number // 10) for number in range(40)], bounds=(0.0, 1.0)).interval or (0, 0)
    assert (low, high) == pytest.approx(mean([1.0] * 4, bounds=(0.0, 1.0)).interval or (0, 0))
    assert high == 1 > low
    # A measure without bounds has the normal interval.
    assert (mean([10.0, 10.0, 9.0, 10.0]).interval or (0, 0))[1] > 10


def test_scores_of_tasks_have_such_intervals():
    scorer = Choice(choices=["red", "green"], answer="0")
    scores = {"accuracy": 1.0, "accuracy_norm": 0.0, "right": 0.0, "given": 0.0}
    records = [Record(number, "", "", scores, {}) for number in range(20)]
    measures = scorer.measures(records)
    assert shown("accuracy", measures["accuracy"]) == "100.0 % (83.9 to 100.0)"
    assert shown("accuracy_norm", measures["accuracy_norm"]) == "0.0 % (0.0 to 16.1)"


def test_clustered_shares_near_their_end_are_covered_as_often_as_said():
    rng = np.random.default_rng(3)
    covered, plain = 0, 0
    for _ in range(400):
        levels = rng.beta(4.85, 0.15, 30)  # mean 0.97: items of a cluster have much in common
        values = [float(hit) for level in levels for hit in rng.random(5) < level]
        clusters = [str(number // 5) for number in range(150)]
        low, high = mean(values, clusters, (0.0, 1.0)).interval or (0, 0)
        covered += low <= 0.97 <= high
        low, high = mean(values, clusters).interval or (0, 0)
        plain += low <= 0.97 <= high
    assert covered / 400 > 0.90
    assert plain < covered


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
