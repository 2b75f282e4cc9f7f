"""Shadow models: what a model says of a row when it was, and when it was not, trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from weft.audits.scene import Scene
from weft.audits.tokens import scored
from weft.core.local_rule import LocalRule
from weft.errors import ClientFailed
from weft.models.layout import Row
from weft.training.job import Job
from weft.training.loop import GradientSteps

MOST_STEPS = 150
"""Optimizer steps of a shadow: an audit takes minutes, not hours."""
MOST_OTHERS = 1000
"""Training rows beside those that are compared, on which every shadow is trained."""


def shadow_losses(scene: Scene, rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray] | None:
    """Train shadow models from the run's start, each on a random half of these rows, and on others.

    Returns:
        (shadows, rows): minus the mean loss (nats) of each row, and whether the shadow was trained on it. None: none
        is asked for, or the run does not learn by gradients.
    """
    if not scene.settings.shadows or scene.config.finds_words or scene.config.prompt_method == "black_box":
        return None
    host, _, start = scene.begun
    plan = host.plan
    if plan.local.kind != "gradients":
        return None
    steps = GradientSteps(**{field.name: getattr(plan.local, field.name) for field in fields(GradientSteps)})
    others = scene.rest(rows, MOST_OTHERS)
    count = passes(scene) * (len(others) + len(rows) / 2) / (steps.batch_size * steps.accumulation)
    local: Any = GradientSteps(**vars(steps) | {"steps": min(MOST_STEPS, max(1, round(count)))})
    values, inside = [], []
    for shadow in range(scene.settings.shadows):
        half = np.isin(np.arange(len(rows)), scene.chance("shadow", shadow // 2).permutation(len(rows))[::2])
        chosen = half if shadow % 2 == 0 else ~half
        table = [*others, *(rows[int(number)] for number in np.flatnonzero(chosen))]
        try:
            local.work(host.model, plan.objective, table, LocalRule(), Job({}, start, client=shadow))
        except ClientFailed:
            return None
        found = scored(host.model, rows, scene.settings.batch_size)
        if not all(np.isfinite(one.logps).all() for one in found):  # it diverged: what it says would look like chance
            return None
        values.append([one.logps.mean() for one in found])
        inside.append(chosen)
    return np.array(values), np.array(inside)


def passes(scene: Scene) -> float:
    """Return how often the model that is audited has gone over a training row, on average."""
    config, people = scene.config, scene.population.trained
    count = config.num_rounds if scene.run.round is None else scene.run.round
    rows: float = sum(people.sizes()) / max(1, len(people.names))
    asked: float = min(config.sample_clients, len(people.names)) / max(1, len(people.names))
    if config.max_steps <= 0:
        return float(count * asked * config.num_train_epochs)
    steps = count * config.max_steps * config.gradient_accumulation_steps
    return float(asked * steps * config.batch_size / max(1.0, rows))
