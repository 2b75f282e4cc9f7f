"""Losses of a fixed run, written down: a change of numerics must be meant."""

from __future__ import annotations

import pytest

import weft

LOSSES = [6.147190809249878, 6.022732257843018, 5.952535629272461, 5.938620090484619]
EVAL = 5.933628877003987

BY_NAME = {
    ("fed_alg", "fedavg"): 5.951441,
    ("fed_alg", "fedprox"): 5.951447,
    ("fed_alg", "scaffold"): 5.957757,
    ("fed_alg", "fedavgm"): 5.958890,
    ("fed_alg", "fedadagrad"): 6.133669,
    ("fed_alg", "fedyogi"): 6.067779,
    ("fed_alg", "fedadam"): 6.067560,
    ("fed_alg", "fednova"): 5.951441,
    ("fed_alg", "feddyn"): 5.934086,
    ("fed_alg", "fedexp"): 5.951441,
    ("fed_alg", "fedcm"): 5.983258,
    ("fed_alg", "fedadamw"): 5.939915,
    ("fed_alg", "diloco"): 5.941811,
    ("fed_alg", "ditto"): 5.954142,
    ("fed_alg", "fedbuff"): 5.951441,
    ("fed_alg", "local"): 5.953577,
    ("fed_alg", "central"): 5.950258,
    ("lora_aggregation", "ffa"): 6.004861,
    ("lora_aggregation", "rolora"): 6.008487,
    ("lora_aggregation", "stack"): 5.990098,
    ("lora_aggregation", "svd"): 5.975058,
    ("lora_aggregation", "residual"): 5.951533,
    ("lora_aggregation", "fedsa"): 6.012922,
    ("lora_aggregation", "fedsb"): 6.123789,
    ("lora_aggregation", "dual"): 5.939750,
}


def test_losses_of_a_fixed_run_equal_the_recorded_ones(keys):
    run = weft.train(keys | {"dtype": "float32", "num_rounds": 4, "learning_rate": 1e-2}, quiet=True)
    assert list(run.metrics["train_loss"]) == pytest.approx(LOSSES, rel=1e-4)
    assert run.summary["eval"]["loss"] == pytest.approx(EVAL, rel=1e-4)


def test_the_outer_step_of_diloco_is_as_it_was_where_it_is_given(keys):
    """Recorded when 0.7 was the default for any number of clients."""
    changes = {"dtype": "float32", "num_rounds": 3, "learning_rate": 1e-2, "eval_every": 0, "fed_alg": "diloco"}
    given = {"fed_args": {"outer_lr": 0.7, "momentum": 0.9}}
    assert weft.train(keys | changes | given).summary["eval"]["loss"] == pytest.approx(5.939614, rel=1e-4)


@pytest.mark.parametrize(("key", "name"), BY_NAME)
def test_the_loss_after_three_rounds_equals_the_recorded_one_for_every_method(keys, key: str, name: str):
    changes = {"dtype": "float32", "num_rounds": 3, "learning_rate": 1e-2, "eval_every": 0, key: name}
    assert weft.train(keys | changes).summary["eval"]["loss"] == pytest.approx(BY_NAME[key, name], rel=1e-4)
