"""Areas, true positive rates and intervals of audits, against scikit-learn and scipy, and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from weft.audits.statistics import auc, mean_of, share, tpr_at


@pytest.mark.parametrize("ties", [False, True])
def test_the_area_is_that_of_scikit_learn(ties):
    metrics = pytest.importorskip("sklearn.metrics", reason="the oracle of ROC curves")
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(0.4, 1, 70), rng.normal(0, 1, 90)
    if ties:
        positive, negative = positive.round(), negative.round()
    labels = np.r_[np.ones(70), np.zeros(90)]
    assert auc(positive, negative).value == pytest.approx(metrics.roc_auc_score(labels, np.r_[positive, negative]))


def test_the_interval_of_the_area_holds_it_as_often_as_it_says():
    rng = np.random.default_rng(1)
    held = [auc(rng.normal(0, 1, 60), rng.normal(0, 1, 60)).holds(0.5) for _ in range(400)]
    assert 0.92 <= np.mean(held) <= 0.98


def test_groups_that_are_told_apart_leave_no_doubt_at_chance():
    found = auc(np.arange(10, 20.0), np.arange(0, 10.0))
    assert found.value == 1.0
    assert not found.holds(0.5)


def test_the_interval_of_a_share_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats", reason="the oracle of Clopper and Pearson's interval")
    for hits, of in ((0, 7), (3, 20), (20, 20), (11, 500)):
        expected = stats.binomtest(hits, of).proportion_ci(method="exact")
        found = share(hits, of)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_a_rate_at_few_false_positives_by_hand():
    negative = np.arange(100.0)  # one of them, 99, may be above the threshold: that is 98
    assert tpr_at(np.array([97.0, 98.0, 98.5, 200.0]), negative, 0.01).value == 0.5
    assert tpr_at(np.array([200.0]), np.arange(99.0), 0.01) is None
    metrics = pytest.importorskip("sklearn.metrics", reason="the oracle of ROC curves")
    rng = np.random.default_rng(2)
    positive, negative = rng.normal(1, 1, 300), rng.normal(0, 1, 400)
    false, true, _ = metrics.roc_curve(np.r_[np.ones(300), np.zeros(400)], np.r_[positive, negative])
    assert tpr_at(positive, negative, 0.05).value == pytest.approx(true[false <= 0.05].max())


@pytest.mark.parametrize(("many", "few"), [(2, 6), (4, 4), (10, 10)])
def test_the_interval_of_the_area_of_a_handful_does_not_promise_too_much(many: int, few: int):
    """DeLong's alone misses 0.5 in up to 16 % of these cases, and one of 99.9 % in up to 8 %: controls would fail."""
    rng = np.random.default_rng(3)
    drawn = [(rng.normal(0, 1, many), rng.normal(0, 1, few)) for _ in range(300)]
    assert np.mean([auc(*pair).holds(0.5) for pair in drawn]) >= 0.92
    assert np.mean([auc(*pair, quantile=3.2905).holds(0.5) for pair in drawn]) >= 0.99


def test_the_interval_of_an_area_by_newcombe_solves_his_equation():
    found = auc(np.array([5.0, 6.0, 7.0, 8.0]), np.array([1.0, 2.0, 3.0, 4.0]))
    area = found.low
    variance = area * (1 - area) * (1 + 3 * ((1 - area) / (2 - area) + area / (1 + area))) / 16
    assert (1 - area) ** 2 == pytest.approx(1.959964**2 * variance)
    assert found.high == 1


def test_the_interval_of_a_mean_is_student_s_and_stays_on_the_scale():
    stats = pytest.importorskip("scipy.stats", reason="the oracle of Student's t")
    values = [0.2, 0.5, 0.4]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    found = mean_of(values, -9, 9)
    assert (found.low, found.high) == pytest.approx((low, high))
    cut = mean_of(values, 0, 0.6)
    assert (cut.low, cut.high) == (0, 0.6)


def test_one_value_and_equal_ones_leave_room_for_others():
    assert mean_of([0.3], 0, 1) == (0.3, 0.0, 1.0)
    assert mean_of([1.0] * 6, 0, 1) == (1.0, 0.5, 1.0)  # 3 of 6 may be others
    assert mean_of([0.0] * 30, -1, 1) == pytest.approx((0.0, -0.1, 0.1))
