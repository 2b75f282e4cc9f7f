"""The local loop beside plain PyTorch, learning rates, and which rows come when."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from support.tolerances import after_plain_steps
from weft.core.objective import Loss
from weft.core.parts import LocalRule
from weft.errors import ClientFailed
from weft.federation.sampling import sample_clients
from weft.models.layout import lay_out
from weft.models.resident import Resident
from weft.objectives.causal_lm import CausalLM, next_token_loss
from weft.training.job import Job
from weft.training.loop import GradientSteps
from weft.training.optimizers import Optimizer
from weft.training.order import rows_of_round
from weft.training.schedules import Schedule

ROWS = [
    (np.random.default_rng(i).integers(3, 250, 8 + i % 9).astype(np.int32), np.ones(8 + i % 9, dtype=bool))
    for i in range(30)
]
STEPS = GradientSteps(Schedule("constant", 1e-2, 0.0, 4), seed=1, steps=3, batch_size=4)


@pytest.fixture
def resident(tiny_model) -> Resident:
    return Resident(
        AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), None, torch.device("cpu"), torch.float32
    )


def trained(resident: Resident, steps: GradientSteps, start) -> dict[str, torch.Tensor]:
    return steps.work(resident, CausalLM(), ROWS, LocalRule(), Job({}, start)).finished.streams["delta"]


def test_a_round_is_a_plain_loop_to_the_last_bit(resident: Resident):
    start = resident.values()
    delta = trained(resident, STEPS, start)
    resident.load(start)
    parameters = list(resident.masters.values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0, fused=True)
    order = rows_of_round(len(ROWS), 12, seed=1, client=0, round=0).reshape(3, 4)
    for chosen in order:
        loss = next_token_loss(resident, lay_out([ROWS[i] for i in chosen], pack=True))
        (loss.total / loss.targets).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    for name, value in resident.values().items():
        assert torch.equal(value - start[name], delta[name]), name


def test_accumulated_micro_batches_are_one_batch(resident: Resident):
    """By SGD, whose steps are the clipped gradients: AdamW makes steps of their rounding."""
    start, lr = resident.values(), 0.1
    plain = replace(STEPS, optimizer=Optimizer("sgd"), schedule=Schedule("constant", lr, 0.0, 4))
    whole = trained(resident, replace(plain, batch_size=8), start)
    parts = trained(resident, replace(plain, batch_size=4, accumulation=2), start)
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], **after_plain_steps(plain.steps, lr))
    # The tolerance sees a fault: the second half of every batch left out.
    halves = trained(resident, replace(plain, batch_size=4), start)
    apart = max(float((whole[name] - halves[name]).abs().max()) for name in whole)
    assert apart > 100 * after_plain_steps(plain.steps, lr)["atol"]


def test_a_loss_that_is_no_number_fails_the_client(resident: Resident):
    class Broken(CausalLM):
        def loss(self, model, batch):
            good = super().loss(model, batch)
            return Loss(good.total * float("nan"), good.targets)

    with pytest.raises(ClientFailed, match="not a finite number"):
        STEPS.work(resident, Broken(), ROWS, LocalRule(), Job({}, resident.values()))


def test_the_reason_of_a_failure_holds_no_loss(resident: Resident):
    """A client sends the reason, and a finite loss of its rows may stand beside parameters that are not finite."""

    class Diverges(LocalRule):
        def adjust_grads(self, params):
            for value in params.values():
                value.grad.fill_(float("nan"))

    work = replace(STEPS, max_grad_norm=0.0, steps=1)
    with pytest.raises(ClientFailed) as failed:
        work.work(resident, CausalLM(), ROWS, Diverges(), Job({}, resident.values()))
    assert str(failed.value).startswith("the training loss is not a finite number after 1 steps")


def test_a_client_that_diverges_is_dropped_from_a_real_run(keys, tmp_path, monkeypatch: pytest.MonkeyPatch):
    """One client's loss becomes NaN; the others are averaged, and the run says so."""
    import weft

    class PoisonedFirstClient(LocalRule):
        def adjust_grads(self, params):
            next(iter(params.values())).grad.fill_(float("nan"))

    from weft.algorithms.fedavg import FedAvg

    class Poisoned(FedAvg):
        def rule(self, task, memory):
            return PoisonedFirstClient() if task.client == "client_0" else LocalRule()

    import sys
    import types

    from weft import registry

    module = types.ModuleType("poisoned")
    module.Poisoned = Poisoned
    monkeypatch.setitem(sys.modules, "poisoned", module)
    monkeypatch.setitem(registry.ALGORITHMS, "poisoned", "poisoned:Poisoned")
    run = weft.train(keys | {"fed_alg": "poisoned", "sample_clients": 3}, quiet=True)
    assert run.summary["failures"] == {"client_0": 3}
    assert math.isfinite(run.summary["train_loss"])
    assert math.isfinite(run.summary["eval"]["loss"])
    assert [len(clients) for clients in run.metrics["clients"]] == [2, 2, 2]


def test_every_schedule_gives_the_learning_rates_worked_by_hand():
    by_round = Schedule("cosine_by_round", 1e-3, 1e-6, 10)
    # OpenFedLLM: min + (lr - min) (1 + cos(pi round / rounds)) / 2, the same for every step of a round.
    assert by_round.at(0, 3, 5) == 1e-3
    assert by_round.at(5, 0, 5) == by_round.at(5, 4, 5) == pytest.approx((1e-3 + 1e-6) / 2)
    assert Schedule("constant", 1e-3, 0, 10).at(9, 4, 5) == 1e-3
    linear = Schedule("linear", 1.0, 0.0, 2, warmup_steps=2)
    assert [linear.at(0, step, 5) for step in range(4)] == [0.5, 1.0, 1.0, 0.875]
    assert linear.at(1, 4, 5) == pytest.approx(0.125)
    cosine = Schedule("cosine", 1.0, 0.2, 1, warmup_ratio=0.2)
    assert cosine.at(0, 0, 10) == 0.5
    assert cosine.at(0, 6, 10) == pytest.approx(0.6)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 3))
def test_every_row_comes_once_a_pass(rows: int, count: int, client: int):
    rounds = 2 * rows
    seen = np.concatenate([rows_of_round(rows, count, seed=0, client=client, round=r) for r in range(rounds)])
    passes = seen[: len(seen) // rows * rows].reshape(-1, rows)
    assert (np.sort(passes, axis=1) == np.arange(rows)).all()


def test_cohorts_repeat_by_seed_reach_everybody_and_follow_weights():
    assert sample_clients(3, 5, seed=0, round=0) == [0, 1, 2]
    drawn = [sample_clients(100, 5, seed=0, round=r) for r in range(200)]
    assert drawn[7] == sample_clients(100, 5, seed=0, round=7)
    assert all(len(set(cohort)) == 5 and cohort == sorted(cohort) for cohort in drawn)
    counts = np.bincount(np.concatenate(drawn), minlength=100)
    assert counts.min() > 0
    weights = np.array([1.0, 1.0, 98.0])
    often = [sample_clients(3, 1, seed=0, round=r, weights=weights)[0] for r in range(300)]
    assert often.count(2) > 270
