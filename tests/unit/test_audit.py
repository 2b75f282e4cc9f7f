"""The arithmetic of audits: beside published numbers, binomials by hand, and mechanisms whose privacy is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from weft.privacy.accounting import Sampling, Steps, deltas, epsilon
from weft.privacy.audit import Curve, Guesses, epsilon_bound, guess, noise_bound, p_value, p_value_of_curve

stats = pytest.importorskip("scipy.stats")


def of_gaussian(mu: float) -> Curve:
    """The claim of one release whose neighbours are mu deviations apart (Balle and Wang 2018, theorem 5)."""
    epsilons = np.linspace(0, 6 * mu + mu * mu, 300)
    normal = stats.norm.cdf
    exact = normal(mu / 2 - epsilons / mu) - np.exp(epsilons) * normal(-mu / 2 - epsilons / mu)
    return Curve(epsilons, np.maximum(exact, 0.0))


@pytest.mark.parametrize(
    ("canaries", "made", "right", "bound"),
    [
        (100, 100, 100, 3.49),
        (500, 500, 500, 5.10),
        (1000, 1000, 1000, 5.78),
        (1000, 1000, 900, 2.02),
        (1000, 1000, 600, 0.30),
        (1000, 200, 200, 4.17),
    ],
)
def test_the_bounds_are_those_that_are_published(canaries: int, made: int, right: int, bound: float):
    assert epsilon_bound(Guesses(canaries, made, right), 1e-5) == pytest.approx(bound, abs=0.006)


def test_all_right_is_a_power_by_hand():
    """P[all of 100 right] = q^100, so 5 % is reached at q = 0.05^(1/100)."""
    chance = 0.05**0.01
    assert epsilon_bound(Guesses(100, 100, 100), 0.0) == pytest.approx(math.log(chance / (1 - chance)), abs=1e-7)
    assert p_value(Guesses(3, 3, 2), math.log(3), 0.0) == pytest.approx(3 * 0.75**2 * 0.25 + 0.75**3)
    # 2 m delta max_i P[v - i <= B < v] / i: of P[B = 1] = 9/64 and (P[B = 1] + P[B = 0]) / 2 = 10/128 the first.
    assert p_value(Guesses(3, 3, 2), math.log(3), 0.01) == pytest.approx(54 / 64 + 2 * 3 * 0.01 * 9 / 64)


def test_guesses_of_chance_refute_nothing():
    assert epsilon_bound(Guesses(1000, 1000, 510), 1e-5) == 0
    assert epsilon_bound(Guesses(1000, 1000, 0), 1e-5) == 0
    assert p_value_of_curve(Guesses(1000, 400, 205), of_gaussian(0.1)) > 0.9


@pytest.mark.parametrize("mu", [0.5, 1.0, 2.0])
def test_one_canary_is_the_best_test_of_both_worlds(mu: float):
    """Of one canary nobody guesses right more often than Phi(mu / 2)."""
    assert p_value_of_curve(Guesses(1, 1, 1), of_gaussian(mu)) == pytest.approx(stats.norm.cdf(mu / 2), abs=1e-4)


@pytest.mark.parametrize("right", [740, 760, 780])
def test_a_curve_is_a_bound_for_the_mechanism_that_reaches_it(right: int):
    """Randomised response with epsilon 1: the number of right guesses is binomial, and no bound may be below that."""
    chance = 1 / (1 + math.exp(-1))
    exact = float(stats.binom.sf(right - 1, 1000, chance))
    bound = p_value_of_curve(Guesses(1000, 1000, right), Curve([0.0, 1.0], [2 * chance - 1, 0.0]))
    assert exact <= bound <= 1.6 * exact


def test_a_curve_refutes_half_of_the_noise_and_never_all_of_it():
    """1,000 canaries, each seen in noise of one deviation, or of half a one; 400 guesses."""
    rng = np.random.default_rng(0)
    caught, bounds = {1.0: 0, 2.0: 0}, {1.0: 0.0, 2.0: 0.0}
    for _ in range(20):
        included, noise = rng.random(1000) < 0.5, rng.normal(size=1000)
        for size in caught:
            found = guess(included * size + noise, included, 400)
            caught[size] += p_value_of_curve(found, of_gaussian(1.0)) <= 0.05
            bounds[size] = max(bounds[size], epsilon_bound(found, 1e-5))
    assert caught[1.0] == 0
    assert caught[2.0] >= 18
    # One epsilon is too coarse for that: the claim, 4.38 at a delta of 1e-5, is above every bound.
    assert bounds[1.0] < bounds[2.0] < epsilon(Sampling("full"), 1.0, 1, 1e-5)


def test_the_noise_that_is_left_possible_is_near_the_true_one():
    rng = np.random.default_rng(1)
    included = rng.random(1000) < 0.5
    found = guess(included + 0.5 * rng.normal(size=1000), included, 400)
    assert 0.5 < noise_bound(found, lambda noise: of_gaussian(1 / noise)) < 1.0


def test_the_claim_of_the_accountant_is_that_of_the_closed_form():
    closed = of_gaussian(1.0)
    exact = deltas([Steps(Sampling("full"), 2.0, 4)], closed.epsilons)
    # Rounded up, and by little.
    assert all(value <= one <= value + 3e-4 for value, one in zip(closed.deltas, exact, strict=True))
    assert deltas([Steps(Sampling("full"), 0.0, 1)], [1.0, 2.0]) == [1.0, 1.0]
    with pytest.raises(ValueError, match="fixed size"):
        deltas([Steps(Sampling.fixed(3, 9), 1.0, 1)], [1.0])


@pytest.mark.parametrize("numbers", [(10, 11, 5), (10, 5, 6), (10, 0, 0), (10, 5, -1)])
def test_impossible_outcomes_are_refused(numbers: tuple[int, int, int]):
    with pytest.raises(ValueError, match="cannot be"):
        Guesses(*numbers)


def test_guesses_are_of_the_ends():
    included = np.array([True, True, False, False, True, False])
    assert guess(np.array([6.0, 5.0, 1.0, 2.0, 3.0, 4.0]), included, 4) == Guesses(6, 4, 4)
    assert guess(-np.array([6.0, 5.0, 1.0, 2.0, 3.0, 4.0]), included, 4) == Guesses(6, 4, 0)
    with pytest.raises(ValueError, match="even"):
        guess(np.zeros(6), included, 3)
