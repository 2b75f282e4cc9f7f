"""What claims to remove the drift of clients finds the optimum of quadratics; FedAvg, the control, does not."""

from __future__ import annotations

from functools import cache

import pytest

from support.quadratics import Federation
from weft.algorithms.fedavg import FedAvg
from weft.algorithms.feddyn import FedDyn
from weft.algorithms.fednova import FedNova
from weft.algorithms.scaffold import Scaffold
from weft.core.parts import Algorithm
from weft.core.types import ServerState, Total
from weft.weighting.size import Size
from weft.weighting.uniform import Uniform

LR, STEPS, ROUNDS = 0.2, 3, 40
IN_GRADIENTS: dict[str, Algorithm] = {"scaffold": Scaffold(), "feddyn, gradient": FedDyn(alpha=1.0, form="gradient")}
EXACT: dict[str, Algorithm] = IN_GRADIENTS | {
    "scaffold, update": Scaffold(space="update"),
    "feddyn": FedDyn(alpha=1.0, learning_rate=LR, steps=STEPS),
}
WEIGHTS = {"size": Size(), "uniform": Uniform()}
DROPS_OUT = Federation(failure_rate=0.2)
"""Five of ten clients are asked in a round, of 1 to 89 rows, and a fifth of them drops out."""


@cache
def clipped_or_normalised_steps_are_off_by(optimizer: str) -> float:
    return DROPS_OUT.distance(run(DROPS_OUT, Scaffold(space="update"), **OTHER_STEPS[optimizer]))


def run(federation: Federation, algorithm: Algorithm, **changes: object) -> ServerState:
    return federation.run(algorithm, **({"rounds": ROUNDS, "steps": STEPS, "lr": LR} | changes))


@cache
def fedavg_is_off_by(condition: str) -> float:
    federation, changes = CONDITIONS[condition]
    return federation.distance(run(federation, FedAvg(), **changes))


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("name", EXACT)
def test_the_optimum_is_found_under_sampling_unequal_rows_and_drop_outs(name: str, weight: str):
    """By size it is the optimum of all rows together, uniform that of equal clients, and not the other one."""
    state = run(DROPS_OUT, EXACT[name], weighting=WEIGHTS[weight])
    assert DROPS_OUT.distance(state, by_rows=weight == "size") < 0.02
    assert DROPS_OUT.distance(state, by_rows=weight != "size") > 0.4


@pytest.mark.parametrize("weight", WEIGHTS)
def test_fedavg_does_not_find_the_optimum(weight: str):
    """The control: what the test above finds is not found without a correction."""
    state = run(DROPS_OUT, FedAvg(), weighting=WEIGHTS[weight])
    assert DROPS_OUT.distance(state, by_rows=weight == "size") > 0.4
    everybody = Federation(cohort=10)
    assert everybody.distance(run(everybody, FedAvg())) > 0.1


@pytest.mark.parametrize("name", EXACT)
def test_the_mean_of_a_cohort_is_not_that_of_all_clients(name: str, monkeypatch: pytest.MonkeyPatch):
    """The control of the divisor: with |S| / N times the cohort's weighted mean nothing adds up."""
    monkeypatch.setattr(Total, "weight_fraction", property(lambda total: len(total.clients) / 10))
    assert DROPS_OUT.distance(run(DROPS_OUT, EXACT[name])) > 0.05


CONDITIONS = {
    "passes over the rows, so that steps differ": (DROPS_OUT, {"steps": 0, "batch_size": 32}),
    "slow clients": (Federation(speeds=(1, 0.7, 0.4)), {}),
    "spare clients, which forget": (Federation(over=0.4), {}),
    "a falling learning rate": (DROPS_OUT, {"kind": "cosine", "rounds": 60}),
}
OTHER_STEPS: dict[str, dict[str, object]] = {
    "clipped": {"max_grad_norm": 0.5, "rounds": 60},
    "adamw": {"optimizer": "adamw", "kind": "cosine", "rounds": 60},
}


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("name", EXACT)
def test_the_optimum_is_found_whatever_the_steps_are(name: str, condition: str):
    federation, changes = CONDITIONS[condition]
    algorithm = EXACT[name]
    if name == "feddyn" and changes.get("steps") == 0:
        algorithm = FedDyn(alpha=1.0, learning_rate=LR, steps=-1)
    assert federation.distance(run(federation, algorithm, **changes)) < 0.05
    assert fedavg_is_off_by(condition) > 0.25


@pytest.mark.parametrize("name", IN_GRADIENTS)
@pytest.mark.parametrize("optimizer", OTHER_STEPS)
def test_corrections_of_gradients_stand_clipping_and_adamw(name: str, optimizer: str):
    """Corrections of steps do not: there the mean of clipped or normalised steps is zero, which is another point."""
    assert DROPS_OUT.distance(run(DROPS_OUT, IN_GRADIENTS[name], **OTHER_STEPS[optimizer])) < 0.05
    assert clipped_or_normalised_steps_are_off_by(optimizer) > 0.5


@pytest.mark.slow
def test_fednova_takes_out_what_unequal_steps_put_in():
    """It does not claim the rest of the drift, which is small where the learning rate is."""
    everybody = Federation(cohort=10)
    how = {"steps": 0, "lr": 0.03, "batch_size": 16, "rounds": 60}
    assert everybody.distance(run(everybody, FedNova(steps=-1), **how)) < 0.1
    assert everybody.distance(run(everybody, FedAvg(), **how)) > 0.3


def test_feddyn_measures_the_steps_of_passes_in_the_first_round():
    algorithm = FedDyn(alpha=0.6, learning_rate=LR, steps=-1)
    state = run(Federation(cohort=10), algorithm, rounds=2, weighting=Uniform(), steps=0, batch_size=16)
    # Of 1, 11, 21, ..., 79, 89 rows by 16, rounded up.
    steps = [1, 1, 2, 2, 3, 4, 4, 4, 5, 6]
    assert float(state.memory["steps"]["steps"]) == pytest.approx(sum(steps) / len(steps), abs=0.11)
    assert algorithm.strength(state.memory) == pytest.approx(0.6 / (LR * float(state.memory["steps"]["steps"])))
    fixed = FedDyn(alpha=0.6, learning_rate=LR, steps=4)
    assert fixed.strength({}) == pytest.approx(0.6 / (LR * 4))
    assert fixed.scalars == ()


def test_the_share_of_a_cohort_is_its_part_of_all_rows():
    assert Total({}, ("a",), 3.0, 12.0).weight_fraction == 0.25
    assert Total({}, ("a",), 3.0).weight_fraction == 1.0
