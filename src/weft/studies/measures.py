"""The metrics of a study: how their names are read, and what a finished run has of each.

loss            a metric of held-out rows: of the shared model on everybody's rows, or the mean of the clients' own
loss@home       the mean over clients, each on its own rows by the model that it uses
loss@worst      the worst client's, likewise
loss@NAME       one client's, likewise
loss@everybody  the mean over the clients' own models, each on everybody's rows
tfns/accuracy   an evaluation task's; */accuracy is that of every task
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from weft import registry
from weft.config import RunConfig
from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.launch import compose
from weft.launch.best import read_tasks
from weft.launch.scoring import evaluator_class
from weft.runs.comparison import ABROAD, CLUSTERS, SHARED, Outcome, scores_of

HOME, WORST, EVERYBODY, MEAN = "home", "worst", "everybody", "mean:"


class Measure(NamedTuple):
    """A metric of a study."""

    name: str
    """As the study writes it, without globs."""
    better: str | None
    """"lower" or "higher"; None: no value is better than another."""
    parts: tuple[Measure, ...] = ()
    """What it is the mean of."""

    @property
    def of_task(self) -> bool:
        """Whether an evaluation task measures it."""
        return "/" in self.name

    @property
    def tasks(self) -> list[str]:
        """The evaluation tasks that measure it."""
        return [task for one in self.parts for task in one.tasks] or [self.name.partition("/")[0]]

    @property
    def lower(self) -> bool | None:
        """Whether a smaller value is better; None: neither is."""
        return None if self.better is None else self.better == "lower"


def measures_of(config: RunConfig) -> dict[str, Measure]:
    """Return all that a run measures, by name, without places.

    Raises:
        ConfigError: parts that cannot be combined, or a task that cannot be asked.
    """
    plan = compose.plan(config)
    evaluator = evaluator_class(plan)
    found = {one.name: Measure(one.name, one.better) for one in evaluator.metrics if one.shown != "report"}
    tasks = read_tasks(config, plan)
    for asked in tasks.asked:
        for name in tasks.metrics(asked.task.name):
            metric = name.partition("/")[2]
            found[name] = Measure(name, asked.task.scorer.better(metric))
    return found


def asked_measures(names: Sequence[str], known: dict[str, Measure]) -> list[Measure]:
    """Return the metrics of names, globs and places resolved.

    Args:
        names: as a study writes them.
        known: all that its runs measure.

    Raises:
        ConfigError: no run has one; the message names the nearest.
    """
    found: dict[str, Measure] = {}
    for name in names:
        if name.startswith(MEAN):
            parts = asked_measures([name.removeprefix(MEAN)], known)
            found[name] = Measure(name, parts[0].better, tuple(parts))
            continue
        metric, at, place = name.partition("@")
        fitting = [one for key, one in known.items() if fnmatchcase(key, metric)]
        if not fitting or (at and (not place or any(one.of_task for one in fitting))):
            guess = registry.nearest(metric, list(known))
            hint = f" Did you mean '{guess}'?" if guess and not fitting else ""
            reason = "a task is put to the server's model, at no client" if fitting else "no run of this study has it"
            raise ConfigError(
                f"The metric '{name}' cannot be: {reason}.{hint} Known: {', '.join(known)}, and of held-out rows also "
                f"METRIC@{HOME}, METRIC@{WORST}, METRIC@{EVERYBODY} and METRIC@CLIENT."
            )
        for one in fitting:
            full = one.name + at + place
            found[full] = one._replace(name=full)
    return list(found.values())


def value_of(outcome: Outcome, measure: Measure) -> float | None:
    """Return what a run has of a metric; None: it was not measured, or it is no number."""
    if measure.parts:
        values = [value_of(outcome, one) for one in measure.parts]
        known = [value for value in values if value is not None]
        value = math.fsum(known) / len(known) if len(known) == len(values) else None
    elif measure.of_task:
        value = ((outcome.summary.get("tasks") or {}).get("last") or {}).get(measure.name)
    else:
        metric, at, place = measure.name.partition("@")
        value = _at(outcome, metric, place, measure.lower) if at else _everywhere(outcome, metric)
    return None if value is None or not math.isfinite(value) else float(value)


def _everywhere(outcome: Outcome, metric: str) -> float | None:
    """Return the score on everybody's rows: of the shared model, else the mean of the clients' own."""
    scores = scores_of(outcome)
    values = (scores.get(kind, {}).get(metric) for kind in (SHARED, ABROAD, CLUSTERS))
    return next((value for value in values if value is not None), None)


def _at(outcome: Outcome, metric: str, place: str, lower: bool | None) -> float | None:
    """Return a client's score on its own rows by the model that it uses, the mean of all clients, or the worst.

    At everybody: the mean over the clients' own models, each on everybody's rows.
    """
    if place == EVERYBODY:
        abroad: float | None = scores_of(outcome).get(ABROAD, {}).get(metric)
        return abroad
    by_client = _of_clients(outcome.summary, metric)
    if place not in (HOME, WORST):
        return by_client.get(place)
    if not by_client:
        return None
    if place == WORST:
        return max(by_client.values()) if lower else min(by_client.values())
    return math.fsum(by_client.values()) / len(by_client)


def _of_clients(summary: JsonObject, metric: str) -> dict[str, float]:
    """Return the score of each client that has one: of its own model where it has one, else of the shared one."""
    own = (summary.get("models") or {}).get("clients") or {}
    found = {}
    for name, shared in (summary.get("clients") or {}).items():
        value = ((own.get(name) or {}).get("own") or shared).get(metric)
        if value is not None:
            found[name] = float(value)
    return found
