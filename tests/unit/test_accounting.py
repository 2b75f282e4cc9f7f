"""The budget that noise spends, compared with the accountants of dp-accounting and Opacus."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from weft.config import build
from weft.launch.budgets import deciding_units, sampling_of
from weft.privacy import accounting
from weft.privacy.accounting import Sampling, Steps, composed, epsilon, epsilon_rdp, solve_noise

SOURCE = Path(__file__).parents[2] / "src"
TABLE = [
    (0.01, 1.0, 1000, 1e-5, 1.828, 2.101),
    (0.1, 1.0, 100, 1e-5, 7.047, 7.904),
    (1.0, 5.0, 50, 1e-5, 6.573, 7.077),
    (0.2, 0.8, 50, 1e-3, 10.73, 12.55),
]
"""Rate, noise multiplier, steps, delta; epsilon by PLD, and by RDP."""


@pytest.mark.filterwarnings("ignore:divide by zero")  # Opacus's, at a rate of 1
@pytest.mark.parametrize(("rate", "noise", "steps", "delta", "pld", "rdp"), TABLE)
def test_epsilon_is_that_of_dp_accounting_and_near_that_of_opacus(rate, noise, steps, delta, pld, rdp):
    prv = pytest.importorskip("opacus.accountants").PRVAccountant()
    sampling = Sampling.poisson(rate)
    spent = epsilon(sampling, noise, steps, delta)
    assert spent == pytest.approx(pld, rel=0.005)
    assert epsilon_rdp(sampling, noise, steps, delta) == pytest.approx(rdp, rel=0.005)
    assert spent <= epsilon_rdp(sampling, noise, steps, delta) + 1e-3
    prv.history = [(noise, rate, steps)]
    assert spent == pytest.approx(prv.get_epsilon(delta), rel=0.01)


@pytest.mark.parametrize("sampling", [Sampling("full"), Sampling.poisson(0.1), Sampling.fixed(10, 100)])
@pytest.mark.parametrize("target", [0.5, 3.0, 8.0])
def test_the_solved_noise_spends_the_target_and_no_more(sampling: Sampling, target: float):
    noise = solve_noise(target, 1e-5, sampling, 40)
    spent = epsilon(sampling, noise, 40, 1e-5)
    assert target * 0.999 <= spent <= target
    assert epsilon(sampling, noise * 0.99, 40, 1e-5) > target


def test_a_solution_is_kept_on_disk_and_a_damaged_file_is_solved_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "noise" / "solved.json"
    first = solve_noise(2.0, 1e-5, Sampling("full"), 5, file)
    monkeypatch.setattr(accounting, "_search", lambda *_: pytest.fail("solved again"))
    assert solve_noise(2.0, 1e-5, Sampling("full"), 5, file) == first
    monkeypatch.undo()
    file.write_text("{ not json", encoding="utf-8")
    assert solve_noise(2.0, 1e-5, Sampling("full"), 5, file) == first


def test_a_sample_of_fixed_size_is_never_accounted_as_a_poisson_sample():
    """Neighbours differ in one unit's content, so that the noise counts half: epsilon is more than twice as large."""
    fixed, poisson = Sampling.fixed(10, 100), Sampling.poisson(0.1)
    assert epsilon(fixed, 2.0, 100, 1e-5) > 2 * epsilon(poisson, 2.0, 100, 1e-5)
    assert "replace" in fixed.relation
    # The bound of Wang et al. 2019 is no larger than that of no sampling at all.
    assert epsilon(fixed, 2.0, 100, 1e-5) < epsilon(Sampling("full"), 1.0, 100, 1e-5)
    # Of a large share of the units it would be: then what holds without a choice is taken.
    assert epsilon(Sampling.fixed(9, 10), 4.0, 5, 1e-5) == pytest.approx(epsilon(Sampling("full"), 2.0, 5, 1e-5))


def test_samples_of_all_units_are_no_choice():
    assert Sampling.fixed(3, 3) == Sampling.poisson(1.0) == Sampling("full")


def test_releases_of_several_kinds_add_up():
    full, poisson = Steps(Sampling("full"), 5.0, 10), Steps(Sampling.poisson(0.1), 1.0, 50)
    both = composed([full, poisson], 1e-5)
    alone = [[composed([steps], delta) for steps in (full, poisson)] for delta in (1e-5, 5e-6)]
    assert max(alone[0]) < both < sum(alone[1])
    assert composed([Steps(Sampling("full"), 5.0, 4), Steps(Sampling("full"), 5.0, 6)], 1e-5) == epsilon(
        Sampling("full"), 5.0, 10, 1e-5
    )
    fixed = Steps(Sampling.fixed(10, 100), 2.0, 10)
    mixed = composed([full, fixed], 1e-5)
    assert mixed == pytest.approx(composed([full], 5e-6) + composed([fixed], 5e-6))


def test_without_noise_there_is_no_epsilon_and_without_steps_nothing_is_spent():
    assert epsilon(Sampling("full"), 0.0, 1, 1e-5) == math.inf
    assert epsilon(Sampling("full"), 0.0, 0, 1e-5) == 0.0
    assert composed([], 1e-5) == 0.0


def test_the_classic_formula_is_nowhere():
    """sqrt(2 ln(1.25 / delta)) / epsilon holds below an epsilon of 1 only, and composes badly."""
    assert (SOURCE / "weft" / "privacy").is_dir()
    for file in SOURCE.rglob("*.py"):
        assert not re.search(r"1\.25\s*/", file.read_text(encoding="utf-8")), file


@pytest.mark.parametrize("sampling", [Sampling("full"), Sampling.poisson(0.1)])
def test_tiny_and_huge_targets_have_noise_too(sampling: Sampling):
    """Where delta alone covers what is spent, epsilon is 0; a search must not divide by it."""
    noises = {target: solve_noise(target, 1e-5, sampling, 4) for target in (1e-7, 1e-3, 1e3)}
    assert list(noises.values()) == sorted(noises.values(), reverse=True)
    assert all(epsilon(sampling, noise, 4, 1e-5) <= target for target, noise in noises.items())
    assert epsilon(sampling, 1e6, 4, 1e-5) < 1e-5
    assert math.isfinite(epsilon(sampling, 1e-3, 4, 1e-5))


def test_the_client_that_spends_most_decides_also_where_epochs_make_its_steps():
    """Of few units each is in every step, and more units make more steps; above a batch the smallest spends most."""
    config = build(
        {
            "objective": "sft",
            "dataset_name": "rows",
            "model_name_or_path": "model",
            "privacy_unit": "row",
            "noise_multiplier": 1.0,
            "clip_norm": 1.0,
            "batch_size": 16,
        }
        | {"gradient_accumulation_steps": 1, "num_train_epochs": 3, "max_steps": -1, "num_rounds": 20}
    )

    class Counts(NamedTuple):
        num_units: list[int]

    for counts, worst in (([5, 16, 17, 400], 17), ([5, 16, 400], 16), ([5, 7], 7), ([100, 400], 100)):
        assert deciding_units(config, Counts(counts)) == worst
    fixed = config.model_copy(update={"max_steps": 4})
    assert deciding_units(fixed, Counts([5, 16, 17])) == 5


def test_who_draws_the_cohort_is_not_kept_from_knowing_it():
    """Against the server no chance protects; and a fixed sample of fewer clients is a likelier one."""
    keys = {"objective": "sft", "dataset_name": "rows", "model_name_or_path": "model", "privacy_unit": "client"}
    keys |= {"noise_multiplier": 1.0, "num_clients": 100}
    keys |= {"sample_clients": 10, "client_sampling": "poisson"}
    assert sampling_of(build(keys)).kind == "poisson"
    assert sampling_of(build(keys | {"noise_at": "client", "min_clients": 10})).kind == "full"
    absent = {"client_sampling": "uniform", "leave_out": ["client_1", "client_2"]}
    assert sampling_of(build(keys | absent)).population == 98
    assert sampling_of(build(keys | {"client_sampling": "uniform", "availability": "who.csv"})).kind == "full"
