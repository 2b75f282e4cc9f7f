"""The budget that Gaussian noise spends, by the accountants of dp-accounting; no formula of our own.

The noise multiplier z is the standard deviation of the noise over the bound C of what one unit adds to a sum. Three
samplings are told apart, and each is accounted as what it is:

- "poisson": every unit takes part by a coin of its own (probability q), and nobody knows the outcome. Two data sets are
  neighbours if one has a unit more; that changes a sum by C.
- "fixed": a number of units is chosen out of all without replacement. Neighbours differ in one unit's content, which
  changes a sum by 2 C, so the multiplier counts half. It is never accounted as "poisson".
- "full": every unit may take part in every step, or the sample is known. No amplification; neighbours as for "poisson".

Epsilon is computed with privacy loss distributions (PLD); Renyi differential privacy (RDP) is the cross-check, and the
only bound that there is for "fixed".
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from weft.core.files import write_atomic
from weft.errors import MissingExtra

Kind = Literal["poisson", "fixed", "full"]
RELATIONS = {
    "poisson": "add or remove one unit",
    "full": "add or remove one unit",
    "fixed": "replace one unit by another",
}
"""The neighbouring relation of each sampling."""
LARGEST_NOISE = 1e6
"""Above it there is no noise multiplier that anybody could train with."""
LARGEST_PLD = 60.0
"""Above this epsilon RDP alone is computed, a safe bound."""
SMALL = 0.5
"""Below this epsilon PLD needs the fine grid."""
TOLERANCE = 1e-4
"""Relative precision of a solved noise multiplier, always on the side of more noise."""


@dataclass(frozen=True)
class Sampling:
    """How the units of a step are chosen."""

    kind: Kind
    rate: float = 1.0
    """Expected share of the units in a step, above 0 and at most 1."""
    size: int = 0
    """Units in a step, of "fixed"."""
    population: int = 0
    """All units, of "fixed"."""

    @classmethod
    def poisson(cls, rate: float) -> Sampling:
        """Return Poisson sampling with a probability; without a choice where it is 1."""
        return cls("poisson", rate) if rate < 1 else cls("full")

    @classmethod
    def fixed(cls, size: int, population: int) -> Sampling:
        """Return samples of a fixed size; without a choice where all are in it."""
        return cls("fixed", size / population, size, population) if size < population else cls("full")

    @property
    def relation(self) -> str:
        """The neighbouring relation, in words."""
        return RELATIONS[self.kind]


@dataclass(frozen=True)
class Steps:
    """Releases of one kind."""

    sampling: Sampling
    noise: float
    """The noise multiplier; 0: none."""
    count: int


def epsilon(sampling: Sampling, noise: float, steps: int, delta: float) -> float:
    """Return the epsilon of a number of steps at a delta; infinity without noise.

    Raises:
        MissingExtra: dp-accounting is not installed.
    """
    return composed([Steps(sampling, noise, steps)], delta)


def epsilon_rdp(sampling: Sampling, noise: float, steps: int, delta: float) -> float:
    """Return the epsilon by RDP, which bounds that of PLD from above; raises as `epsilon` does."""
    return _of_group([Steps(sampling, noise, steps)], delta, rdp=True)


def composed(releases: Iterable[Steps], delta: float) -> float:
    """Return the epsilon of all releases together, of different kinds too; raises as `epsilon` does.

    Releases of "fixed" samples have another neighbouring relation: theirs and the others' budgets are added, each with
    half of the delta. What is added holds for adding or removing a unit, since a unit may be replaced by an empty one.
    """
    counts: dict[tuple[Sampling, float], int] = {}
    for release in releases:
        kind = release.sampling, release.noise
        counts[kind] = counts.get(kind, 0) + release.count
    steps = [Steps(*kind, count) for kind, count in counts.items() if count > 0]
    if any(step.noise <= 0 for step in steps):
        return math.inf
    groups = [
        group
        for fixed in (False, True)
        if (group := [step for step in steps if (step.sampling.kind == "fixed") == fixed])
    ]
    return sum(_of_group(group, delta / len(groups)) for group in groups)


def deltas(releases: Iterable[Steps], epsilons: Sequence[float]) -> list[float]:
    """Return, for each epsilon, the delta with which all releases together keep to it, by PLD.

    Raises:
        ValueError: a sample has a fixed size, for which there is no privacy loss distribution.
        MissingExtra: dp-accounting is not installed.
    """
    steps = [step for step in releases if step.count > 0]
    if any(step.sampling.kind == "fixed" for step in steps):
        raise ValueError("samples of a fixed size have no privacy loss distribution")
    if any(step.noise <= 0 for step in steps):
        return [1.0 for _ in epsilons]
    dp = _library()
    accountant = dp.pld.PLDAccountant(value_discretization_interval=1e-3)
    accountant.compose(dp.ComposedDpEvent([_event(dp, step, step.noise) for step in steps]))
    return [float(accountant.get_delta(epsilon)) for epsilon in epsilons]


def _of_group(group: Sequence[Steps], delta: float, *, rdp: bool = False) -> float:
    """Return the epsilon of releases that have one neighbouring relation."""
    if any(step.noise <= 0 for step in group):
        return math.inf
    if not any(step.count for step in group):
        return 0.0
    return _cached(tuple(group), delta, rdp)


@functools.lru_cache(maxsize=4096)
def _cached(group: tuple[Steps, ...], delta: float, rdp: bool) -> float:
    """Return the smallest of the bounds that are known, or that of RDP alone."""
    if group[0].sampling.kind == "fixed":
        sampled = _account("rdp", group, delta)
        # As if all took part in every step, which is tight: less where the sample is a large share of the units.
        everybody = tuple(Steps(Sampling("full"), step.noise / 2, step.count) for step in group)
        if rdp or _account("rdp", everybody, delta) > 2 * sampled:
            return sampled
        return min(sampled, _cached(everybody, delta, False))
    bound = _account("rdp", group, delta)
    # The time and memory of PLD grow with epsilon, and a budget so large means nothing anyway.
    return bound if rdp or bound > LARGEST_PLD else min(bound, _account("pld", group, delta))


def _account(way: Literal["rdp", "pld"], group: tuple[Steps, ...], delta: float) -> float:
    """Return the epsilon of releases with one neighbouring relation by one accountant."""
    dp = _library()
    if way == "rdp":
        orders = _renyi(group[0].sampling, group[0].noise)[0]
        spent = sum(step.count * _renyi(step.sampling, step.noise)[1] for step in group)
        return float(dp.rdp.compute_epsilon(orders, spent, delta)[0])
    # Rounded up, so always safe; the coarse grid is ten times as fast, and too coarse for small budgets only.
    grid = 1e-3 if _account("rdp", group, delta) > SMALL else 1e-4
    relation = dp.NeighboringRelation.ADD_OR_REMOVE_ONE
    accountant = dp.pld.PLDAccountant(neighboring_relation=relation, value_discretization_interval=grid)
    accountant.compose(dp.ComposedDpEvent([_event(dp, step, step.noise) for step in group]))
    return float(accountant.get_epsilon(delta))


@functools.lru_cache(maxsize=1024)
def _renyi(sampling: Sampling, noise: float) -> tuple[Any, Any]:
    """Return the orders of Renyi divergences and what one step spends in each, an array of shape (orders,).

    Steps add up (Mironov, 2017, proposition 1), so a run that accounts after every round computes this once: it takes
    some 0.1 s for "poisson".
    """
    dp = _library()
    fixed = sampling.kind == "fixed"
    relation = dp.NeighboringRelation.REPLACE_ONE if fixed else dp.NeighboringRelation.ADD_OR_REMOVE_ONE
    accountant = dp.rdp.RdpAccountant(neighboring_relation=relation)
    # With REPLACE_ONE this accountant's multiplier is the noise over the change of the sum, which is 2 C here.
    accountant.compose(_event(dp, Steps(sampling, noise, 1), noise / (2 if fixed else 1)))
    return accountant._orders, accountant._rdp


def _event(dp: Any, step: Steps, noise: float) -> Any:
    event, sampling = dp.GaussianDpEvent(noise), step.sampling
    if sampling.kind == "poisson":
        event = dp.PoissonSampledDpEvent(sampling.rate, event)
    elif sampling.kind == "fixed":
        event = dp.SampledWithoutReplacementDpEvent(sampling.population, sampling.size, event)
    return dp.SelfComposedDpEvent(event, step.count)


def solve_noise(
    target_epsilon: float, delta: float, sampling: Sampling, steps: int, cache: Path | None = None
) -> float:
    """Return the smallest noise multiplier with which a number of steps spends at most an epsilon.

    Args:
        target_epsilon: above 0.
        delta: above 0 and below 1.
        sampling: of every step.
        steps: of the whole run.
        cache: a JSON file of earlier solutions, which a new one is added to; None: it is solved anew.

    Raises:
        ValueError: no noise would do.
        MissingExtra: dp-accounting is not installed.
    """
    key = f"{_version()} {sampling} {steps} {target_epsilon!r} {delta!r}"
    known = _read(cache)
    if key not in known:
        known[key] = _search(target_epsilon, delta, sampling, steps)
        if cache is not None:
            # A cache that cannot be written costs seconds, not a run.
            with suppress(OSError):
                cache.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(cache, json.dumps(_read(cache) | known, indent=1).encode())
    return known[key]


def _search(target: float, delta: float, sampling: Sampling, steps: int) -> float:
    """Search between bounds that the fast RDP gives; epsilon is nearly a power of the noise, so few steps do."""
    high = 1.0
    while (above := epsilon_rdp(sampling, high, steps, delta)) > target:
        high *= 2
        if high > LARGEST_NOISE:
            raise ValueError(f"no noise gives an epsilon of {target:g} at a delta of {delta:g}")
    low = high / 2
    while (below := epsilon(sampling, low, steps, delta)) <= target:
        high, above, low = low, below, low / 2
    above = epsilon(sampling, high, steps, delta)
    for turn in range(100):
        if high <= low * (1 + TOLERANCE):
            return high
        # Above some noise nothing is spent at all, where delta alone covers it.
        known = turn < 10 and math.isfinite(below) and 0 < above < below
        share = math.log(below / target) / math.log(below / above) if known else 0.5
        # A little beside the guess, by turns: so both ends of the interval move.
        guess = low * (high / low) ** share * (1 + (0.4 if turn % 2 == 0 else -0.4) * TOLERANCE)
        guess = min(max(guess, low * (1 + 0.2 * TOLERANCE)), high / (1 + 0.2 * TOLERANCE))
        spent = epsilon(sampling, guess, steps, delta)
        low, below, high, above = (low, below, guess, spent) if spent <= target else (guess, spent, high, above)
    return high


def _read(cache: Path | None) -> dict[str, float]:
    """Return the earlier solutions; a damaged file has none."""
    if cache is None:
        return {}
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    entries = known.items() if isinstance(known, dict) else ()
    return {key: float(value) for key, value in entries if isinstance(value, (int, float)) and value > 0}


@functools.cache
def _version() -> str:
    from importlib.metadata import version

    return version("dp-accounting") if _library() else ""


@functools.cache
def _library() -> Any:
    try:
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.rdp
    except ImportError:
        raise MissingExtra("dp-accounting", "dp", "A budget of differential privacy") from None
    from absl import logging

    # It warns of every order of RDP that it leaves out, which is safe: the minimum over fewer orders is larger.
    logging.set_verbosity(logging.ERROR)
    return dp_accounting
