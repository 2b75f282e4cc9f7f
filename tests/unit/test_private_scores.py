"""Noisy scores of candidates and texts: the bound, the noise, and what is left without both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.algorithms.fedbpt import FedBPT
from weft.algorithms.fedtext import FedText
from weft.core.evolution import standardised
from weft.core.secret import Secret
from weft.core.texts import to_bytes, to_texts
from weft.core.types import SEARCH, Total
from weft.models.instruction import NAME
from weft.training.job import Job
from weft.training.private_scores import _Scores, clipped
from weft.training.schedules import Schedule

SECRET = Secret(bytes(range(32)))
SCHEDULE = Schedule("constant", 1e-2, 0.0, 1, 0, 0.0, 0.0)
SCORES = _Scores(SCHEDULE, seed=1, steps=1, batch_size=4)
ROWS = list(range(12))
JOB = Job({}, {}, secret=lambda: SECRET)


def loss_of(number: int, some) -> np.ndarray:
    return np.array([np.sin(3.0 * number + row) + 0.1 * row for row in some])


def scored(steps: _Scores, rows=ROWS, units=None, words=("train", 0, 0, 0)) -> np.ndarray:
    return steps.scores(loss_of, 5, rows, JOB._replace(units=units), words)


@settings(deadline=None)
@given(
    losses=st.lists(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=4, max_size=4), min_size=1),
    extra=st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=4, max_size=4),
    bound=st.sampled_from([1e-3, 1.0, 50.0]),
)
def test_a_unit_adds_at_most_the_bound_whatever_its_losses_are(losses, extra, bound):
    one = clipped(np.array(losses), [1] * len(losses), bound)
    more = clipped(np.array([*losses, extra]), [1] * (len(losses) + 1), bound)
    assert np.isfinite(more).all()
    assert np.linalg.norm(more - one) <= bound + 1e-6


def test_rows_of_a_unit_count_as_their_mean():
    each = np.array([[1.0, 2.0], [3.0, 0.0], [0.5, 0.9]])
    np.testing.assert_allclose(clipped(each, [2, 1], 1e9), [0.5 - 0.2, -0.5 + 0.2])
    np.testing.assert_allclose(clipped(each, [2, 1], 1e-3), [0.0, 0.0], atol=1e-12)


def test_without_noise_and_bound_scores_are_mean_losses_without_their_level():
    """All units take part where as many are expected as there are."""
    free = replace(SCORES, batch_size=12, bound=float("inf"))
    expected = np.array([loss_of(number, ROWS).mean() for number in range(5)])
    np.testing.assert_allclose(scored(free), expected - expected.mean(), atol=1e-12)


def test_the_noise_has_the_deviation_that_is_accounted_for():
    noisy = replace(SCORES, bound=0.5, noise_of=lambda units: 2.0)
    flat = np.zeros(20000)
    for turn in range(50):
        values = noisy.scores(lambda n, some: np.zeros(len(some)), 20000, ROWS, JOB, ("train", turn, 0, 0))
        flat = np.concatenate([flat, values]) if turn else values
    assert len(flat) == 10**6
    assert flat.std() == pytest.approx(2.0 * 0.5 / 4, rel=0.01)  # z C / (expected units)


def test_a_score_is_drawn_once_for_a_place_and_its_candidates():
    noisy = replace(SCORES, noise_of=lambda units: 1.0)
    np.testing.assert_array_equal(scored(noisy), scored(noisy))
    assert not np.array_equal(scored(noisy), scored(noisy, words=("train", 0, 1, 0)))
    other = JOB._replace(secret=lambda: Secret(bytes(32)))
    assert not np.array_equal(scored(noisy), noisy.scores(loss_of, 5, ROWS, other, ("train", 0, 0, 0)))


def test_patients_take_part_together():
    units = np.repeat(np.arange(3), 4)
    found = scored(replace(SCORES, batch_size=3, bound=float("inf")), units=units)
    each = np.stack([loss_of(number, ROWS) for number in range(5)], 1).reshape(3, 4, 5).mean(1)
    each -= each.mean(1, keepdims=True)
    np.testing.assert_allclose(found, each.mean(0), atol=1e-12)


def test_standardised_losses_have_one_norm_and_no_outlier():
    values = standardised(torch.tensor([1.0, 2.0, 3.0, 1e30]))
    assert float(values.mean()) == pytest.approx(0.0, abs=1e-12)
    assert float(values.square().mean()) == pytest.approx(1.0)
    assert float(values[2] - values[0]) > 1.0
    assert not standardised(torch.tensor([2.0, 2.0])).any()
    assert not standardised(torch.tensor([1e30, 1e30])).any()


def test_common_candidates_are_made_anew_at_the_server():
    """The sum of losses is all that it needs: a search of a sphere gets nearer to its centre."""
    algorithm = FedBPT(population=8, sigma=0.5, seed=3, common=True)
    assert algorithm.sums_updates
    assert not FedBPT().sums_updates
    state = algorithm.init({"prompt": torch.full((6,), 2.0)})
    from weft.core.evolution import Search, common_chance

    for round in range(40):
        task = algorithm.task(state, "a", 0)
        told = task.extra[SEARCH]
        search = Search.at(task.params["prompt"].double().numpy(), float(told["sigma"]), told["variance"].numpy())
        losses = torch.from_numpy((search.ask(8, common_chance(3, round)) ** 2).sum(1))
        total = Total({SEARCH: {"fitness": standardised(losses).float()}}, ("a",), 1.0)
        state = algorithm.step(state, total)
    assert float(state.params["prompt"].norm()) < 0.5


def test_a_common_pool_is_filled_by_the_server():
    texts = ["one", "two", "three", "four"]
    algorithm = FedText(pool=4, proposals=2, length=16, candidates=texts, common=True)
    state = algorithm.init({NAME: to_bytes(["start"], 1, 16)[0].float()})
    assert to_texts(state.memory[SEARCH]["pool"]) == ["", "start", "one", "two"]
    scores = torch.tensor([1.0, -1.0, 0.5, -0.5])
    state = algorithm.step(state, Total({SEARCH: {"scores": scores}}, ("a",), 1.0))
    assert to_texts(state.memory[SEARCH]["pool"]) == ["start", "two", "three", "four"]
    assert set(algorithm.like({})[SEARCH]) == {"scores"}
