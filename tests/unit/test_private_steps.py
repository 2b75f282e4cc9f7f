"""DP-SGD in the local loop: beside the plain loop, beside its own definition, and repeated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from support.tiny_models import causal_model, pairs_of, rows_of
from weft.core.parts import LocalRule
from weft.core.secret import Secret
from weft.core.tensors import digest
from weft.core.types import DELTA
from weft.models.resident import Resident
from weft.objectives.preference import Preference
from weft.objectives.sft import SFT
from weft.training.hiding import units_of
from weft.training.job import Job
from weft.training.loop import GradientSteps
from weft.training.optimizers import Optimizer
from weft.training.private import PrivateSteps
from weft.training.schedules import Schedule

SECRET = Secret(bytes(range(32)))
SCHEDULE = Schedule("constant", 1e-2, 0.0, 4)
INFINITE = float("inf")
STEPS = PrivateSteps(SCHEDULE, seed=1, steps=3, batch_size=4, max_grad_norm=0.0, optimizer=Optimizer("sgd"))


def resident(trained: str = "lora", dtype: torch.dtype = torch.float32) -> Resident:
    from peft import LoraConfig, get_peft_model

    model = causal_model("llama")
    if trained == "lora":
        config = LoraConfig(r=4, lora_dropout=0.0, init_lora_weights=False, target_modules=["q_proj", "v_proj"])
        model = get_peft_model(model, config)
    return Resident(model, None, torch.device("cpu"), dtype)


def deltas(steps, model: Resident, objective, rows, *, secret: Secret = SECRET, rule=None, **job):
    start = {name: value.clone() for name, value in model.values().items()}
    result = steps.work(model, objective, rows, rule or LocalRule(), Job({}, start, secret=lambda: secret, **job))
    model.load(start)
    return result


@pytest.mark.parametrize("objective", ["sft", "dpo"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_without_noise_and_bound_a_run_is_the_plain_one(objective: str, optimizer: str):
    """All rows take part in every step, and rows have equal numbers of targets: then both take the same means."""
    rows = rows_of([12] * 6) if objective == "sft" else pairs_of([(5, 4, 9), (9, 2, 3), (3, 7, 1), (6, 6, 6)])
    loss = SFT() if objective == "sft" else Preference()
    shape = {"steps": 5, "batch_size": len(rows), "optimizer": Optimizer(optimizer), "max_grad_norm": 0.0}
    plain = GradientSteps(SCHEDULE, seed=1, **shape)
    private = PrivateSteps(SCHEDULE, seed=1, bound=INFINITE, **shape)
    model = resident()
    expected = deltas(plain, model, loss, rows).finished.streams[DELTA]
    found = deltas(private, model, loss, rows).finished.streams[DELTA]
    assert max(float(value.abs().max()) for value in expected.values()) > 1e-3
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6)
    # A control: with a bound it is another run.
    clipped = deltas(replace(private, bound=1e-3), model, loss, rows).finished.streams[DELTA]
    assert max(float((clipped[name] - value).abs().max()) for name, value in expected.items()) > 1e-4


def test_a_step_is_its_definition():
    """One step of SGD: the clipped gradients of the units that the coins chose, and the secret's noise."""
    rows = rows_of([9, 14, 5, 14, 7, 11, 6, 12])
    owner = np.array([0, 1, 1, 2, 3, 3, 3, 4])
    model = resident()
    steps = replace(STEPS, steps=1, batch_size=2, bound=0.3, noise_of=lambda units: 0.7)
    found = deltas(steps, model, SFT(), rows, units=owner, round=1).finished.streams[DELTA]

    words = ("train", 1, 0, 0, digest({"": model.trainable()}))
    chosen = np.flatnonzero(SECRET.uniform(5, *words, "sample") < 2 / 5)
    assert 0 < len(chosen) < 5
    sums = {name: torch.zeros_like(value) for name, value in model.params.items()}
    for unit in chosen:
        model.model.zero_grad()
        own = [row for row, number in zip(rows, owner, strict=True) if number == unit]
        SFT().row_losses(model, SFT().separate(own, 1)).mean().backward()
        norm = torch.stack([value.grad.square().sum() for value in model.params.values()]).sum().sqrt()
        for name, value in model.params.items():
            sums[name] += value.grad * min(1.0, 0.3 / float(norm))
    without = deltas(replace(steps, noise_of=lambda units: 0.0), model, SFT(), rows, units=owner, round=1)
    for name, value in without.finished.streams[DELTA].items():
        torch.testing.assert_close(value, -1e-2 * sums[name] / 2, rtol=1e-4, atol=1e-7)
    noise = {name: found[name] / (-1e-2 / 2) - sums[name] for name in found}
    flat = torch.cat([value.reshape(-1) for value in noise.values()])
    assert float(flat.std()) == pytest.approx(0.7 * 0.3, rel=0.1)


def test_answers_with_noise_of_two_scales_tell_no_more_than_each():
    """Were the noise the same but for its scale, two answers would be two equations for what it hides."""
    rows, model = rows_of([9, 14, 5, 14, 7, 11, 6, 12]), resident()
    streams = [
        deltas(replace(STEPS, steps=1, batch_size=8, bound=0.3, noise_of=lambda units, z=z: z), model, SFT(), rows)
        for z in (0.0, 1.0, 2.0, 1.0)
    ]
    none, once, twice, again = (
        torch.cat([value.reshape(-1) for value in one.finished.streams[DELTA].values()]) for one in streams
    )
    assert torch.equal(once, again)  # the same question has the same answer
    noises = torch.stack([once - none, twice - none])
    assert abs(float(torch.corrcoef(noises)[0, 1])) < 0.1


def test_an_empty_batch_makes_a_step_of_noise():
    """Otherwise a step that is missing would say that nobody took part."""
    model = resident()
    private = replace(STEPS, batch_size=1, noise_of=lambda units: 1.0, steps=2)
    rows = rows_of([6] * 400)
    seen = []

    class Watch(LocalRule):
        def adjust_grads(self, params):
            seen.append({name: value.grad.clone() for name, value in params.items()})

    # With one unit of 400 expected in a step, some of these steps are of nobody.
    for round in range(6):
        deltas(private, model, SFT(), rows, round=round, rule=Watch())

    words = ("train", 0, 0, 0, digest({"": model.trainable()}))
    assert len(seen) == 12
    assert all(float(value.abs().max()) > 0.5 for step in seen for value in step.values())
    empty = [
        round for round in range(6) if not (SECRET.uniform(400, "train", round, *words[2:], "sample") < 1 / 400).any()
    ]
    assert empty
    for name, value in seen[2 * empty[0]].items():
        nothing = ("1.0", digest({"": {}}))
        alone = SECRET.normal(tuple(value.shape), "train", empty[0], *words[2:], *nothing, "noise", name).float()
        torch.testing.assert_close(value, alone)


def test_noise_has_its_deviation():
    """10^6 numbers, within 1 %: the deviation of a gradient without a signal is z C / (expected units)."""
    model = resident("full")
    seen = []

    class Watch(LocalRule):
        def adjust_grads(self, params):
            seen.extend(value.grad.flatten().clone() for value in params.values())

    private = replace(STEPS, steps=42, batch_size=8, bound=2.0, noise_of=lambda units: 1.5)
    silent = [(ids, np.zeros(len(ids), dtype=bool)) for ids, _ in rows_of([6] * 20)]
    deltas(private, model, SFT(), silent, rule=Watch())
    values = torch.cat(seen).double()
    assert len(values) > 1_000_000
    assert float(values.std()) == pytest.approx(1.5 * 2.0 / 8, rel=0.01)
    assert abs(float(values.mean())) < 4 * 1.5 * 2.0 / 8 / len(values) ** 0.5


def flat(result) -> torch.Tensor:
    return torch.cat([value.flatten() for value in result.finished.streams[DELTA].values()])


def test_random_numbers_are_the_secrets_and_of_one_use():
    rows, model = rows_of([8] * 20), resident()
    private = replace(STEPS, noise_of=lambda units: 1.0)

    def run(steps=private, **changes):
        return flat(deltas(steps, model, SFT(), rows, **changes))

    first = run()
    assert torch.equal(first, run())
    # The seed of the run, which everybody knows, changes nothing.
    assert torch.equal(first, run(replace(private, seed=7)))
    for changes in ({"secret": Secret(bytes(32))}, {"round": 1}, {"attempt": 1}, {"purpose": "personal"}):
        assert not torch.isclose(first, run(**changes)).all(), changes


def test_the_same_round_from_other_parameters_has_other_noise():
    """Else a server that asks twice, from parameters of its own, would take the noise off by a difference."""
    model = resident()
    silent = [(ids, np.zeros(len(ids), dtype=bool)) for ids, _ in rows_of([6] * 20)]
    private = replace(STEPS, steps=1, noise_of=lambda units: 1.0)
    first = deltas(private, model, SFT(), silent).finished.streams[DELTA]
    name = next(iter(model.masters))
    with torch.no_grad():
        model.masters[name].flatten()[0] += 1e-3
    second = deltas(private, model, SFT(), silent).finished.streams[DELTA]
    apart = torch.cat([(first[key] - second[key]).flatten() for key in first])
    scale = torch.cat([value.flatten() for value in first.values()]).std()
    assert float(apart.std()) == pytest.approx(2**0.5 * float(scale), rel=0.2)


def test_nothing_of_the_rows_is_reported():
    found = deltas(replace(STEPS, noise_of=lambda units: 1.0), resident(), SFT(), rows_of([8] * 20))
    assert set(found.metrics) == {"steps", "learning_rate"}


def test_half_precision_has_float32_gradients():
    half = resident("lora", torch.bfloat16)
    found = deltas(replace(STEPS, bound=INFINITE), half, SFT(), rows_of([8] * 20))
    exact = flat(deltas(replace(STEPS, bound=INFINITE), resident(), SFT(), rows_of([8] * 20)))
    assert flat(found).dtype == torch.float32
    # The coins differ (they follow from the parameters, which are rounded): only the size can be compared.
    assert 0.2 < float(flat(found).norm() / exact.norm()) < 5


def test_units_keep_their_rows_in_order():
    found = units_of(np.array([5, 2, 5, 9, 2]), 5)
    assert [list(unit) for unit in found] == [[1, 4], [0, 2], [3]]
    assert [list(unit) for unit in units_of(None, 3)] == [[0], [1], [2]]
