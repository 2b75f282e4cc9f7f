"""The rule of choice: of each arm's settings the one that is best on the held-out rows of the tuning seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.studies.cells import Cell
from weft.studies.measures import Measure, asked_measures, measures_of, value_of
from weft.studies.outcomes import outcomes_of
from weft.studies.study import Study

Place = tuple[str, tuple[str, ...]]
"""An arm at a point of the grid."""


class Chosen(NamedTuple):
    """What was chosen for an arm at a point, and what its settings came to."""

    number: int
    label: str
    values: Mapping[str, float]
    """By the label of each setting that was measured."""


def choice_measure(study: Study, cells: Sequence[Cell]) -> Measure:
    """Return the metric by which settings are chosen.

    Raises:
        ConfigError: no run has it, no value of it is better than another, or it is a task's, which is a test.
    """
    assert study.choice is not None
    name = study.choice.metric
    if "/" in name:
        raise ConfigError(
            f"Settings are chosen by '{name}', a test that the study reports: write a metric of held-out rows, such as "
            "loss, as the metric of choice."
        )
    unmeasured = [cell for cell in cells if not cell.config.eval_fraction and not cell.config.clients]
    if unmeasured:
        raise ConfigError(
            "Settings are chosen on held-out rows, and eval_fraction is 0: write such as `keys: {eval_fraction: 0.1}` "
            "under choice."
        )
    (measure,) = asked_measures([name], measures_of(cells[0].config))
    if measure.better is None:
        raise ConfigError(f"Settings are chosen by '{name}', of which no value is better than another: write loss.")
    return measure


def choose(study: Study, cells: Sequence[Cell], measure: Measure, failures: Mapping[str, str]) -> dict[Place, Chosen]:
    """Return what was chosen, by arm and point; an arm of which every setting failed has nothing.

    Where settings are equal, the one that the study names first is taken.
    """
    values: dict[Place, dict[int, list[float | None]]] = {}
    labels: dict[tuple[Place, int], str] = {}
    found = outcomes_of([cell for cell in cells if cell.name not in failures])
    for cell in cells:
        place = (cell.arm, cell.point)
        outcome = found.get(cell.name)
        value = None if outcome is None else value_of(outcome, measure)
        values.setdefault(place, {}).setdefault(cell.number, []).append(value)
        labels[place, cell.number] = cell.setting or ""
    chosen = {}
    for place, settings in values.items():
        means = {
            number: math.fsum(known) / len(known)
            for number, some in settings.items()
            if len(known := [value for value in some if value is not None]) == len(some)
        }
        if means:
            best = min(means, key=lambda number: (means[number] if measure.lower else -means[number], number))
            by_label = {labels[place, number]: value for number, value in means.items()}
            chosen[place] = Chosen(best, labels[place, best], by_label)
    return chosen


def settings_of(study: Study, chosen: Mapping[Place, Chosen]) -> dict[Place, JsonObject]:
    """Return the keys of what was chosen, by arm and point."""
    arms = {arm.name: arm for arm in study.arms}
    return {place: arms[place[0]].settings[one.number] for place, one in chosen.items()}


def as_json(chosen: Mapping[Place, Chosen]) -> list[JsonObject]:
    """Return what was chosen as plain data."""
    return [
        {"arm": arm, "point": list(point), "chosen": one.label, "values": dict(one.values)}
        for (arm, point), one in chosen.items()
    ]
