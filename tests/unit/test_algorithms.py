"""Update rules against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from weft.aggregation.mean import Mean
from weft.algorithms.diloco import DiLoCo
from weft.algorithms.fedavgm import FedAvgM
from weft.algorithms.fedbuff import FedBuff
from weft.algorithms.fedcm import FedCM
from weft.algorithms.feddyn import FedDyn
from weft.algorithms.fedexp import FedExP
from weft.algorithms.fednova import FedNova
from weft.algorithms.fedopt import FedAdagrad, FedAdam, FedYogi
from weft.algorithms.outer import OuterSchedule
from weft.algorithms.scaffold import Scaffold
from weft.core.parts import Algorithm
from weft.core.types import DELTA, SCALARS, LocalWork, ServerState, Streams, Task, Total, Update

START = {"w": torch.tensor([1.0, 2.0])}


def total(*values: float, population: int = 2, clients: int = 2, **streams: object) -> Total:
    delta: Streams = {DELTA: {"w": torch.tensor(list(values))}}
    return Total(delta | streams, tuple("ab"[:clients]), 2.0, population)


def after(algorithm: Algorithm, *deltas: tuple[float, float]) -> list[list[float]]:
    """Return the parameters after each of some steps."""
    state, seen = algorithm.init(START), []
    for delta in deltas:
        state = algorithm.step(state, total(*delta))
        seen.append(state.params["w"].tolist())
    assert state.round == len(deltas)
    return seen


def assert_steps(found: list[list[float]], expected: list[list[float]]) -> None:
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-6, atol=1e-7)


TWO = ((0.1, -0.2), (0.3, 0.2))


def test_fedavgm_makes_the_steps_worked_by_hand():
    # m1 = D1; m2 = 0.9 m1 + 0.1 D2 = (0.12, -0.16)
    assert_steps(after(FedAvgM(0.9), *TWO), [[1.1, 1.8], [1.22, 1.64]])
    # classic: m2 = 0.9 m1 + D2 = (0.39, 0.02)
    assert_steps(after(FedAvgM(0.9, form="classic"), *TWO), [[1.1, 1.8], [1.49, 1.82]])


def test_fedadagrad_makes_the_steps_worked_by_hand():
    # v1 = 0.01 + 0.01 = 0.02; v2 = 0.02 + 0.09 = 0.11 (first coordinate, tau 0.1, eta 0.5)
    first = 1 + 0.5 * 0.1 / (math.sqrt(0.02) + 0.1)
    second = first + 0.5 * 0.3 / (math.sqrt(0.11) + 0.1)
    found = after(FedAdagrad(tau=0.1, eta=0.5), *TWO)
    assert [found[0][0], found[1][0]] == pytest.approx([first, second], rel=1e-6)


def test_fedadam_makes_the_steps_worked_by_hand():
    # m1 = 0.1, v1 = 0.99 * 0.01 + 0.01 * 0.01 = 0.01; m2 = 0.12, v2 = 0.99 * 0.01 + 0.01 * 0.0144
    first = 1 + 0.5 * 0.1 / (math.sqrt(0.01) + 0.1)
    second = first + 0.5 * 0.12 / (math.sqrt(0.0099 + 0.000144) + 0.1)
    found = after(FedAdam(tau=0.1, eta=0.5), *TWO)
    assert [found[0][0], found[1][0]] == pytest.approx([first, second], rel=1e-6)


def test_fedyogi_makes_the_steps_worked_by_hand():
    # second coordinate: m1 = -0.2, m1^2 = 0.04 > v0 = 0.01, so v1 = 0.01 + 0.01 * 0.04 = 0.0104
    # m2 = 0.9 * -0.2 + 0.1 * 0.2 = -0.16, m2^2 = 0.0256 > v1, so v2 = 0.0104 + 0.01 * 0.0256 = 0.010656
    first = 2 - 0.5 * 0.2 / (math.sqrt(0.0104) + 0.1)
    second = first - 0.5 * 0.16 / (math.sqrt(0.010656) + 0.1)
    found = after(FedYogi(tau=0.1, eta=0.5), *TWO)
    assert [found[0][1], found[1][1]] == pytest.approx([first, second], rel=1e-6)


def test_automatic_tau_is_the_median_change_and_the_first_step_does_not_depend_on_its_size():
    found = after(FedAdagrad(tau="auto"), (0.1, -0.2))
    # torch's median of two is the smaller: tau 0.1, eta 0.2, v1 = (0.02, 0.05)
    assert_steps(found, [[1 + 0.02 / (math.sqrt(0.02) + 0.1), 2 - 0.04 / (math.sqrt(0.05) + 0.1)]])
    small = after(FedAdagrad(tau="auto"), (0.1e-4, -0.2e-4))
    assert (small[0][0] - 1) * 1e4 == pytest.approx(found[0][0] - 1, rel=2e-2)


def test_diloco_is_torchs_sgd_with_nesterov():
    weight = START["w"].clone().requires_grad_()
    outer = torch.optim.SGD([weight], lr=0.7, momentum=0.9, nesterov=True)
    expected = []
    for delta in TWO:
        weight.grad = -torch.tensor(delta)
        outer.step()
        expected.append(weight.tolist())
    assert_steps(after(DiLoCo(0.7, 0.9), *TWO), expected)


def test_a_corrected_outer_momentum_has_its_full_weight_from_the_first_round():
    # momentum 0.5: m1 = D1, of weight 1, is doubled; w += 0.5 (D1 + 0.5 * 2 D1) = D1
    # m2 = 0.5 D1 + D2, of weight 1.5, times 2 / 1.5; w += 0.5 (D2 + 0.5 * 4/3 (0.5 D1 + D2))
    first = [1 + TWO[0][0], 2 + TWO[0][1]]
    second = [
        at + 0.5 * (later + 0.5 * 4 / 3 * (0.5 * early + later)) for at, early, later in zip(first, *TWO, strict=True)
    ]
    assert_steps(after(DiLoCo(0.5, 0.5, bias_correction=True), *TWO), [first, second])


def test_the_outer_step_falls_to_the_plain_mean_in_the_last_round():
    """Four rounds: learning rate and momentum rise in the first, fall over the last two; a longer run stays there."""
    schedule = OuterSchedule(4, warmup=0.25, decay=0.5)
    assert [tuple(schedule.at(round, 3.0, 0.8)) for round in range(6)] == [
        (3.0, 0.8), (3.0, 0.8), (2.0, 0.4), (1.0, 0.0), (1.0, 0.0), (1.0, 0.0)]  # fmt: skip
    assert [schedule.at(round, 3.0, 0.8).lr for round in range(2)] == [3.0, 3.0]
    assert [OuterSchedule(8, warmup=0.5).at(round, 2.0, 0.9).lr for round in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    algorithm = DiLoCo(0.5, 0.5, outer_decay=1.0, rounds=2)
    # of 2 rounds both fall: the first has half of the way, lr 0.75 and momentum 0.25: w += 0.75 * 1.25 D1
    first = [1 + 0.75 * 1.25 * TWO[0][0], 2 + 0.75 * 1.25 * TWO[0][1]]
    assert_steps(after(algorithm, *TWO), [first, [first[0] + TWO[1][0], first[1] + TWO[1][1]]])


def test_one_client_without_momentum_is_lookahead():
    """Zhang et al. 2019, algorithm 1: slow weights go a share of the way to where the fast ones came."""
    slow, expected = torch.tensor([1.0, 2.0]), []
    for delta in TWO:
        fast = slow + torch.tensor(delta)
        slow = slow + 0.5 * (fast - slow)
        expected.append(slow.tolist())
    assert_steps(after(DiLoCo(0.5, 0.0, clients=1), *TWO), expected)
    identity = after(DiLoCo(clients=1), *TWO)
    assert_steps(identity, [[1 + TWO[0][0], 2 + TWO[0][1]], [1 + TWO[0][0] + TWO[1][0], 2 + TWO[0][1] + TWO[1][1]]])


def work(end: tuple[float, float], steps: int, lr: float = 1.0) -> LocalWork:
    return LocalWork(START, {"w": torch.tensor(end)}, steps, lr)


def task(algorithm: Algorithm, round: int = 0) -> Task:
    state = algorithm.init(START)
    return algorithm.task(ServerState(state.params, state.memory, round), "a", round)


def test_fednova_goes_the_mean_number_of_steps_along_the_mean_step():
    algorithm = FedNova(steps=10)
    rule = algorithm.rule(task(algorithm), {})
    done = [rule.finish(work((1.4, 2.0), 4)), rule.finish(work((1.0, 3.0), 20))]
    weights = (1.0, 3.0)
    updates = [Update(n, 0, 0, d.streams, w) for n, d, w in zip("ab", done, weights, strict=True)]
    state = algorithm.step(algorithm.init(START), algorithm.combine(updates, Mean()))
    # steps: 0.25 * 4 + 0.75 * 20 = 16; step: 0.25 * (0.1, 0) + 0.75 * (0, 0.05)
    torch.testing.assert_close(state.params["w"], torch.tensor([1 + 16 * 0.025, 2 + 16 * 0.0375]))


def test_fedexp_extrapolates_where_clients_disagree():
    algorithm = FedExP()
    rule = algorithm.rule(task(algorithm), {})
    updates = [Update("a", 0, 0, rule.finish(work((4.0, 2.0), 1)).streams, 1.0),
               Update("b", 0, 0, rule.finish(work((1.0, 6.0), 1)).streams, 1.0)]  # fmt: skip
    state = algorithm.step(algorithm.init(START), algorithm.combine(updates, Mean()))
    # mean of ||D_i||^2 = (9 + 16) / 2 = 12.5; D = (1.5, 2), ||D||^2 = 6.25: eta = 12.5 / 12.5 = 1
    assert state.params["w"].tolist() == [2.5, 4.0]
    far = [updates[0], Update("b", 0, 0, rule.finish(work((-1.5, 2.0), 1)).streams, 1.0)]
    state = algorithm.step(algorithm.init(START), algorithm.combine(far, Mean()))
    # D_1 = (3, 0), D_2 = (-2.5, 0): mean square 7.625, D = 0.25, eta = 7.625 / 0.125 = 61
    assert state.params["w"].tolist() == pytest.approx([1 + 61 * 0.25, 2.0])


def test_feddyn_makes_the_steps_worked_by_hand():
    algorithm = FedDyn(alpha=0.5, form="gradient")
    # h1 = -0.5 * 1/2 * ... with 2 of 4 clients: h = -0.5 * 0.5 * D = -0.25 D; w = w + D + 0.5 D
    state = algorithm.step(algorithm.init(START), total(0.1, -0.2, population=4))
    torch.testing.assert_close(state.params["w"], torch.tensor([1.15, 1.7]))
    state = algorithm.step(state, total(0.3, 0.2, population=4))
    # h = -0.25 (D1 + D2) = (-0.1, 0); w = w + D2 - h / 0.5 = w + D2 + (0.2, 0)
    torch.testing.assert_close(state.params["w"], torch.tensor([1.65, 1.9]))
    rule = algorithm.rule(task(algorithm), {"dual": {"w": torch.tensor([1.0, 1.0])}})
    assert rule.finish(work((1.2, 2.0), 1)).memory["dual"]["w"].tolist() == pytest.approx([0.9, 1.0])


def test_scaffold_updates_c_by_the_cohorts_share():
    algorithm = Scaffold(space="update")
    given = task(algorithm)
    rule = algorithm.rule(given, {})
    done = rule.finish(work((0.8, 2.0), 4, lr=0.4))
    # c_i = (x - y) / sum of lr = (0.5, 0)
    assert done.memory["control"]["w"].tolist() == pytest.approx([0.5, 0.0])
    state = algorithm.step(algorithm.init(START), total(0, 0, population=8, control=done.streams["control"]))
    assert state.memory["control"]["w"].tolist() == pytest.approx([0.5 * 2 / 8, 0.0])


def test_scaffold_steps_along_c_minus_c_i():
    algorithm = Scaffold(space="gradient")
    given = Task("a", 0, 0, START, {"control": {"w": torch.tensor([0.5, 0.0])}})
    rule = algorithm.rule(given, {"control": {"w": torch.tensor([0.1, 0.2])}})
    params = {"w": torch.nn.Parameter(START["w"].clone())}
    rule.prepare(params)
    for grad in ([1.0, 1.0], [3.0, 0.0]):
        params["w"].grad = torch.tensor(grad)
        rule.adjust_grads(params)
        assert params["w"].grad.tolist() == pytest.approx([grad[0] + 0.4, grad[1] - 0.2])
    done = rule.finish(work((1.0, 2.0), 2))
    assert done.memory["control"]["w"].tolist() == [2.0, 0.5]
    assert done.streams["control"]["w"].tolist() == pytest.approx([1.9, 0.3])


def test_fedcm_remembers_the_mean_step():
    algorithm = FedCM(alpha=0.25)
    streams = {SCALARS: {"learning_rates": torch.tensor(0.5)}}
    state = algorithm.step(algorithm.init(START), total(0.1, -0.2, **streams))
    assert state.memory["direction"]["w"].tolist() == pytest.approx([-0.2, 0.4])
    rule = algorithm.rule(algorithm.task(state, "a", 1), {})
    params = {"w": torch.nn.Parameter(START["w"].clone())}
    rule.prepare(params)
    assert rule.lr_factor(0) == 0.25
    with torch.no_grad():
        rule.after_step(params, 0.1)
    assert params["w"].tolist() == pytest.approx([1 + 0.1 * 0.75 * 0.2, 2 - 0.1 * 0.75 * 0.4])


def test_fedbuff_fades_what_is_late():
    algorithm = FedBuff(staleness_power=0.5)
    delta = {DELTA: {"w": torch.tensor([1.0, 0.0])}}
    state = ServerState(START, round=3)
    combined = algorithm.combine([Update("a", 3, 3, delta, 1.0), Update("b", 3, 0, delta, 1.0)], Mean())
    # (1 + 1/2) / 2
    assert algorithm.step(state, combined).params["w"].tolist() == pytest.approx([1.75, 2.0])


def test_fedbuff_keeps_the_versions_that_clients_began_from():
    algorithm = FedBuff(max_staleness=2)
    state = algorithm.init(START)
    for _ in range(5):
        state = algorithm.step(state, total(1.0, 0.0))
    assert algorithm.task(state, "a", 5).params["w"].tolist() == [6.0, 2.0]
    assert algorithm.task(state, "a", 3).params["w"].tolist() == [4.0, 2.0]
    late = algorithm.task(state, "a", 1)
    assert (late.base_version, late.params["w"].tolist()) == (3, [4.0, 2.0])
    assert set(state.memory) == {"version.3", "version.4"}
