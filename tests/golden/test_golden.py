"""Losses of a fixed run, written down: a change of numerics must be meant."""

from __future__ import annotations

import pytest

import weft

LOSSES = [6.147190809249878, 6.022732257843018, 5.952535629272461, 5.938620090484619]
EVAL = 5.933628877003987


def test_losses_of_a_fixed_run(keys):
    run = weft.train(keys | {"dtype": "float32", "num_rounds": 4, "learning_rate": 1e-2}, quiet=True)
    assert list(run.metrics["train_loss"]) == pytest.approx(LOSSES, rel=1e-4)
    assert run.summary["eval"]["loss"] == pytest.approx(EVAL, rel=1e-4)
