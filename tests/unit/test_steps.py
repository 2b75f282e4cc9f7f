"""What a rule bends of a local step, and what it does not: weight decay, overflow, what is frozen, shares of steps."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from support.quadratics import Ownership, Point, Quadratics
from weft.algorithms.fedadamw import FedAdamW
from weft.algorithms.fedcm import FedCM
from weft.algorithms.fedsgd import FedSGD
from weft.algorithms.scaffold import Scaffold
from weft.core.objective import Loss
from weft.core.parts import Algorithm, LocalRule
from weft.core.shares import at_least, at_most
from weft.core.types import DELTA, SCALARS, LocalWork, ServerState, Task, Tensors, Total
from weft.errors import ClientFailed
from weft.federation.sampling import Selection
from weft.models.resident import Resident
from weft.objectives.causal_lm import CausalLM
from weft.training.job import Job
from weft.training.loop import GradientSteps
from weft.training.optimizers import Optimizer
from weft.training.schedules import Schedule

CPU = torch.device("cpu")
TABLE = Ownership(torch.zeros(8, dtype=torch.int64).numpy())
FLAT = Quadratics(torch.zeros(1, 3), torch.zeros(1, 3, 3))
"""Nothing to learn: only weight decay moves anything."""
STEPS = GradientSteps(Schedule("constant", 0.1, 0.0, 9), seed=0, steps=4, batch_size=2, max_grad_norm=0.0)
START = {"w": torch.tensor([1.0, -2.0, 0.5])}


def task(algorithm: Algorithm, memory: dict[str, Tensors]) -> Task:
    state = algorithm.init(START)
    return algorithm.task(replace(state, memory=state.memory | memory, round=1), "a", 1)


CONTINUED = {"second_moments": {"w": torch.tensor(1.0)}, "steps": {"w": torch.tensor(9.0)}}
FOLLOWING = {"direction": {"w": torch.full((3,), 1e-30)}}


@pytest.mark.parametrize(
    ("algorithm", "memory", "optimizer"),
    [
        (FedAdamW(alpha=0.0), CONTINUED, "adamw"),
        (FedCM(alpha=0.1), FOLLOWING, "adamw"),
        (FedCM(alpha=0.1), FOLLOWING, "sgd"),
    ],
    ids=["fedadamw", "fedcm", "fedcm and sgd"],
)
def test_weight_decay_is_not_multiplied(algorithm: Algorithm, memory: dict[str, Tensors], optimizer: str):
    """FedAdamW's correction of m made it 2.5 to 3.3 times as large, FedCM's alpha a tenth."""
    rule = algorithm.rule(task(algorithm, memory), {})
    steps = replace(STEPS, optimizer=Optimizer(optimizer, weight_decay=0.2))
    done = steps.work(Resident(Point(), None, CPU, torch.float32), FLAT, TABLE, rule, Job({}, START))
    assert rule.lr_factor(0) != 1.0
    end = START["w"] + done.finished.streams[DELTA]["w"]
    torch.testing.assert_close(end, START["w"] * (1 - 0.1 * 0.2) ** 4)


def test_fedcm_steps_whole_where_there_is_nothing_to_follow():
    rule = FedCM(alpha=0.1).rule(task(FedCM(), {}), {})
    rule.prepare(START)
    assert rule.lr_factor(0) == 1.0


@dataclass(frozen=True)
class Slope(Quadratics):
    """A plane, so steep that its gradient times the scale of the loss is beyond float16."""

    steep: float = 100.0

    def loss(self, model, batch) -> Loss:
        return Loss(model.model.w.sum() * self.steep * batch.rows, batch.rows)


def slope(steep: float) -> Slope:
    return Slope(FLAT.centres, FLAT.curvatures, steep)


@pytest.mark.parametrize("space", ["gradient", "update"])
def test_a_step_that_overflows_is_skipped_and_the_rule_does_not_see_it(space: str):
    # 100 x 1024 is beyond 65504, 100 x 512 is not.
    algorithm = Scaffold(space=space)
    model = Resident(Point(), None, CPU, torch.float16)
    steps = replace(STEPS, optimizer=Optimizer("sgd"), schedule=Schedule("constant", 0.25, 0.0, 9))
    done = steps.work(model, slope(100.0), TABLE, algorithm.rule(task(algorithm, {}), {}), Job({}, START))
    assert done.metrics["steps"] == 3.0
    assert done.metrics["learning_rate"] == 0.25
    assert done.finished.memory["control"]["w"].tolist() == pytest.approx([100.0] * 3)
    assert done.finished.streams[DELTA]["w"].tolist() == pytest.approx([-0.25 * 3 * 100] * 3)


def test_a_client_whose_every_step_overflows_says_so():
    model = Resident(Point(), None, CPU, torch.float16)
    with pytest.raises(ClientFailed, match=r"each of 4 steps overflowed in float16: write --dtype bfloat16 or float32"):
        STEPS.work(model, slope(6e4), TABLE, LocalRule(), Job({}, START))


def test_what_is_not_finite_is_the_clients_failure_not_a_bad_update():
    class Wild(LocalRule):
        def finish(self, work: LocalWork):
            done = super().finish(work)
            return replace(done, streams=done.streams | {"control": {"w": torch.full((3,), float("nan"))}})

    model = Resident(Point(), None, CPU, torch.float32)
    with pytest.raises(ClientFailed, match="not finite") as failure:
        STEPS.work(model, FLAT, TABLE, Wild(), Job({}, START))
    assert type(failure.value) is ClientFailed


def test_a_rule_sees_what_is_trained_only(tiny_model):
    """In bfloat16 frozen factors have masters of their own, which a rule moved."""

    class Pushes(LocalRule):
        def after_step(self, params: Tensors, lr: float) -> None:
            for value in params.values():
                value.add_(1.0)

    model = Resident(AutoModelForCausalLM.from_pretrained(tiny_model), None, CPU, torch.bfloat16)
    start = model.values()
    (one, *others) = start
    rows = [(torch.arange(3, 9).int().numpy(), torch.ones(6).bool().numpy())] * 4
    done = STEPS.work(model, CausalLM(), rows, Pushes(), Job({}, start, {one}))
    delta = done.finished.streams[DELTA]
    assert bool(delta[one].any())
    assert not any(bool(delta[name].any()) for name in others)


def test_fedsgd_counts_the_steps_of_each_parameter():
    """As AdamW does, where another factor is trained in every round (RoLoRA)."""
    algorithm = FedSGD()
    state = ServerState({"a": torch.ones(2)}, {"step": {"b": torch.tensor(5.0)}}, 5)
    rate = {SCALARS: {"learning_rate": torch.tensor(0.1, dtype=torch.float64)}}
    after = algorithm.step(state, Total({DELTA: {"a": torch.tensor([-0.5, 0.2])}} | rate, ("x",), 1.0))
    assert float(after.memory["step"]["a"]) == 1.0
    assert after.params["a"].tolist() == pytest.approx([0.9, 1.1], rel=1e-5)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_a_share_that_is_a_whole_number_is_that_number(pair: tuple[int, int]):
    count, part = pair
    assert at_most(count, part / count) == part
    assert at_least(count, part / count) == part


def test_shares_are_counted_as_the_decimals_that_were_written():
    assert int(100 * 0.29) == 28
    assert at_most(100, 0.29) == 29
    assert at_most(4, 0.3) == 1
    assert at_most(3, 0.333) == 0
    assert at_least(10, 1.1) == 11
    assert at_least(10, 1.01) == 11
    asked = Selection(seed=0, count=10, over_selection=0.1).cohort([str(i) for i in range(50)], 0, 0, 0)
    assert len(asked) == 11


def test_a_slow_client_makes_the_steps_of_its_share():
    model = Resident(Point(), None, CPU, torch.float32)
    steps = replace(STEPS, steps=100)
    done = steps.work(model, FLAT, TABLE, LocalRule(), Job({}, START, step_fraction=0.29))
    assert done.metrics["steps"] == 29.0
