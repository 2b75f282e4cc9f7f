"""Server rules against Flower's strategies, macro-F1 against scikit-learn's, as tests/oracles/*.py recorded them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weft.aggregation.mean import Mean
from weft.algorithms.fedavg import FedAvg
from weft.algorithms.fedavgm import FedAvgM
from weft.algorithms.fedopt import FedAdagrad, FedAdam, FedYogi
from weft.algorithms.fedprox import FedProx
from weft.core.parts import Algorithm
from weft.core.types import DELTA, Tensors, Update
from weft.evaluation.heldout import macro_f1

ORACLES = Path(__file__).parent.parent / "oracles"
FLOWER = json.loads((ORACLES / "flower.json").read_text(encoding="utf-8"))
F1 = json.loads((ORACLES / "f1.json").read_text(encoding="utf-8"))

ADAPTIVE = {"eta": 0.05, "tau": 0.01}
MOMENTA = ADAPTIVE | {"beta1": 0.8, "beta2": 0.95}
OURS: dict[str, Algorithm] = {
    "fedavg": FedAvg(),
    "fedprox": FedProx(mu=0.1),
    "fedavgm": FedAvgM(0.8, form="classic", server_lr=0.7),
    "fedadagrad": FedAdagrad(**ADAPTIVE, form="flower"),
    "fedyogi": FedYogi(**MOMENTA, form="flower"),
    "fedadam": FedAdam(**MOMENTA, form="flower"),
}


def tensors(values: dict[str, list]) -> Tensors:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def rounds(algorithm: Algorithm) -> list[Tensors]:
    """Return the parameters after each of the recorded rounds."""
    state, seen = algorithm.init(tensors(FLOWER["start"])), []
    for number, changes in enumerate(FLOWER["deltas"]):
        updates = [
            Update(str(client), number, number, {DELTA: tensors(change)}, float(rows))
            for client, (change, rows) in enumerate(zip(changes, FLOWER["rows"], strict=True))
        ]
        state = algorithm.step(state, algorithm.combine(updates, Mean()))
        seen.append(state.params)
    return seen


def apart(found: list[Tensors], other: list[Tensors]) -> float:
    return max(
        float((one[name] - two[name]).abs().max()) for one, two in zip(found, other, strict=True) for name in one
    )


@pytest.mark.parametrize("name", OURS)
def test_five_rounds_equal_those_of_flowers_strategies(name: str):
    assert set(OURS) == set(FLOWER["strategies"])
    expected = [tensors(values) for values in FLOWER["strategies"][name]["after"]]
    found = rounds(OURS[name])
    assert len(found) == 5
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


def test_the_forms_of_adaptive_servers_differ_where_they_say():
    """The control of the test above, and what the form changes: not FedAdagrad between openfedllm and paper."""
    for made, differs in ((FedAdagrad, False), (FedYogi, True), (FedAdam, True)):
        how = MOMENTA if differs else ADAPTIVE
        by_form = {form: rounds(made(**how, form=form)) for form in ("openfedllm", "paper", "flower")}
        assert (apart(by_form["openfedllm"], by_form["paper"]) > 1e-4) == differs
        assert apart(by_form["paper"], by_form["flower"]) > 1e-4


def algorithm_2(name: str) -> list[Tensors]:
    """Algorithm 2 of Reddi et al. written out: m_-1 = 0, v_-1 = tau^2."""
    eta, tau, beta1, beta2 = 0.05, 0.01, 0.8, 0.95
    if name == "fedadagrad":
        beta1 = 0.0
    shares = np.array(FLOWER["rows"]) / sum(FLOWER["rows"])
    seen: list[Tensors] = [{} for _ in FLOWER["deltas"]]
    for key, value in FLOWER["start"].items():
        x = np.array(value)
        m, v = np.zeros_like(x), np.full_like(x, tau**2)
        for number, changes in enumerate(FLOWER["deltas"]):
            d = sum(share * np.array(change[key]) for share, change in zip(shares, changes, strict=True))
            m = beta1 * m + (1 - beta1) * d
            if name == "fedadagrad":
                v = v + d**2
            elif name == "fedyogi":
                v = v - (1 - beta2) * d**2 * np.sign(v - d**2)
            else:
                v = beta2 * v + (1 - beta2) * d**2
            x = x + eta * m / (np.sqrt(v) + tau)
            seen[number][key] = torch.from_numpy(x)
    return seen


@pytest.mark.parametrize("name", ["fedadagrad", "fedyogi", "fedadam"])
def test_the_papers_form_equals_the_papers_algorithm(name: str):
    how = ADAPTIVE if name == "fedadagrad" else MOMENTA
    made = {"fedadagrad": FedAdagrad, "fedyogi": FedYogi, "fedadam": FedAdam}[name]
    assert apart(rounds(made(**how, form="paper")), algorithm_2(name)) < 1e-12


def counts(right: list[int], guessed: list[int]) -> dict[tuple[str, str], float]:
    pairs: dict[tuple[str, str], float] = {}
    for r, g in zip(right, guessed, strict=True):
        pairs[str(r), str(g)] = pairs.get((str(r), str(g)), 0.0) + 1.0
    return pairs


def test_macro_f1_equals_that_of_scikit_learn():
    only_given = 0
    for case in F1["cases"]:
        only_given += bool(set(case["given"]) - set(case["right"]))
        found = macro_f1(counts(case["right"], case["given"]))
        assert found == pytest.approx(case["macro_f1"], abs=1e-12), case
    assert only_given > 10


ANSWERS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40)


@given(ANSWERS)
def test_macro_f1_is_the_mean_over_every_class_that_occurs(answers: list[tuple[int, int]]):
    right, guessed = (np.array(part) for part in zip(*answers, strict=True))
    scores = []
    for one in np.union1d(right, guessed):
        hit = float(((right == one) & (guessed == one)).sum())
        precision = hit / max(1, (guessed == one).sum())
        recall = hit / max(1, (right == one).sum())
        scores.append(2 * precision * recall / (precision + recall) if hit else 0.0)
    assert macro_f1(counts(right.tolist(), guessed.tolist())) == pytest.approx(float(np.mean(scores)))
