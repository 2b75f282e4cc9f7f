"""Runs of `weft sft` are audited: what they claim stands, and an audit sees when the noise is less than claimed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from support.coins import same_coins
from support.paths import ROOT

pytest.importorskip("dp_accounting")

REFUTED = 0.05


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The benchmark that makes the canaries and the runs."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import audit

    yield audit
    for name in ("audit", "common"):
        sys.modules.pop(name, None)


@pytest.fixture(autouse=True)
def coins() -> Iterator[None]:
    """The same noise each time: of coins, one run in some twenty leaves half of the noise unseen by chance alone."""
    with same_coins():
        yield


def results(study: ModuleType, unit: str, how: str, seeds: range) -> list[dict[str, float]]:
    return [study.measure(unit, how, seed) for seed in seeds]


@pytest.mark.parametrize("unit", ["row", "user"])
def test_the_claim_stands_and_less_noise_is_seen(study: ModuleType, unit: str):
    """With 1,000 canaries; more seeds in the slow test."""
    whole, half, off = (study.measure(unit, how, 0) for how in study.SHARES)
    assert whole["claimed"] == half["claimed"] == off["claimed"] == pytest.approx(4.38, abs=0.01)
    assert whole["bound"] < whole["claimed"]
    assert whole["p_value"] > REFUTED
    assert half["p_value"] <= REFUTED
    assert off["bound"] > off["claimed"] > 3
    # A control of the score: with the noise as claimed more is guessed than by chance.
    assert whole["right"] > 0.7 * whole["made"]


def test_the_claim_of_steps_by_coins_stands_and_both_halves_of_it_are_seen(study: ModuleType):
    """Half of the noise is seen, and so are coins that let everybody take part."""
    whole, half, off = (study.measure("coins", how, 0) for how in study.SHARES)
    always = study.measure("coins", study.ALWAYS, 0)
    for found in (whole, half, off, always):
        assert found["claimed"] == pytest.approx(4.38, abs=0.03)
    assert whole["bound"] < whole["claimed"]
    assert whole["p_value"] > REFUTED >= max(half["p_value"], always["p_value"])
    assert off["bound"] > off["claimed"] > 3
    assert whole["right"] > 0.7 * whole["made"]


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["row", "user", "coins"])
def test_of_twenty_seeds_the_audit_errs_with_none_and_sees_eighteen(study: ModuleType, unit: str):
    whole = results(study, unit, "as claimed", range(20))
    assert all(found["bound"] < found["claimed"] and found["p_value"] > REFUTED for found in whole)
    assert all(found["bound"] > 3 for found in results(study, unit, "off", range(3)))
    assert sum(found["p_value"] <= REFUTED for found in results(study, unit, "halved", range(20))) >= 18


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["client", "shares"])
def test_clients_are_audited(study: ModuleType, unit: str):
    whole, half, off = (study.measure(unit, how, 0) for how in study.SHARES)
    assert whole["bound"] < whole["claimed"]
    assert whole["p_value"] > REFUTED >= half["p_value"]
    assert off["bound"] > off["claimed"]
