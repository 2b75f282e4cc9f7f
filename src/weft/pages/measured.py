"""One metric of runs: its value, its interval over clients, and the paired difference between two runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from weft.core.declarations import scores
from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.pages.charts import finite
from weft.pages.curves import main_scores
from weft.pages.record import RunRecord
from weft.runs.comparison import SHARED, evaluation_kind
from weft.tasks.paired import verdict
from weft.tasks.scorer import is_share
from weft.tasks.statistics import QUANTILE, Difference, difference, mean

Direction = Literal["lower", "higher"] | None


class Measured(NamedTuple):
    """A metric of a run."""

    key: str
    label: str
    value: float
    of: str
    """Which model was measured on whose rows."""
    clients: dict[str, float]
    """The same by client; empty for an evaluation task, which is put to the server's model."""
    better: Direction
    error: float | None = None
    """Standard error over the items of an evaluation task."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval: of a task over its items, else of the mean over clients (Student's distribution)."""
        if self.error is not None:
            ends = self.value - QUANTILE * self.error, self.value + QUANTILE * self.error
        else:
            found = over_clients(list(self.clients.values())) if self.clients else None
            if found is None or not found.error or found.interval is None:
                return None  # clients that are all alike do not show how much others would differ
            ends = found.interval
        return (max(0.0, ends[0]), min(1.0, ends[1])) if self.share else ends

    @property
    def share(self) -> bool:
        """Whether it lies between 0 and 1."""
        declared = {metric.name: metric.share for metric in scores()}
        return declared.get(self.key, is_share(self.key.rpartition("/")[2]))

    @property
    def mean(self) -> float | None:
        """The mean over clients, each of which counts as one; None: there are none."""
        return over_clients(list(self.clients.values())).value if self.clients else None


def over_clients(values: Sequence[float]) -> Difference:
    """Return the mean over clients, with the interval that Student's distribution gives for another such client.

    Clients that are all alike say nothing of others, so there is no interval.
    """
    measure = mean(values)
    return Difference(measure.value, measure.error or None, measure.count, measure.clusters)


def metric_names(record: RunRecord) -> list[str]:
    """Return the metrics that a run has a value of: those on held-out rows, then those of its evaluation tasks."""
    names = [metric.name for metric in scores() if finite(record.scores.get(metric.name))]
    tasks = record.tasks[-1] if record.tasks else {}
    return names + [key for key in tasks if "/" in key and not key.endswith("_stderr") and finite(tasks[key])]


def leading(records: Sequence[RunRecord], wanted: str | None) -> str | None:
    """Return the metric that a page begins with; None: the runs have none.

    Without a wish it is the one that the first run looks for the best round by, else the first in which more is
    better, else the first in which one direction is.

    Raises:
        ConfigError: no run has the one that is wanted.
    """
    names = list(dict.fromkeys(name for record in records for name in metric_names(record)))
    short = {
        task: key for record in records for task, key in main_scores(record.tasks[-1] if record.tasks else {}).items()
    }
    if wanted is not None:
        if (name := short.get(wanted, wanted)) in names:
            return name
        have = ", ".join(names) if names else "no metric at all"
        raise ConfigError(f"No run here has the metric '{wanted}': write --metric and one of what they have ({have}).")
    best = str(records[0].config.get("best_metric") or "") if records else ""
    if (name := short.get(best, best)) in names:
        return name
    directions = {metric.name: metric.better for metric in scores()}
    common = [name for name in names if all(name in metric_names(record) for record in records)] or names
    for better in ("higher", "lower"):
        if found := next((name for name in common if directions.get(name) == better), None):
            return found
    return common[0] if common else None


def measured(record: RunRecord, key: str) -> Measured | None:
    """Return a metric of a run; None: the run does not have it."""
    declared = next((metric for metric in scores() if metric.name == key), None)
    if declared is None:
        tasks = record.tasks[-1] if record.tasks else {}
        if not finite(tasks.get(key)):
            return None
        better: Direction = "higher" if is_share(key.rpartition("/")[2]) else None
        error = tasks.get(f"{key}_stderr")
        return Measured(key, key.replace("/", ": "), tasks[key], "the server's model", {}, better, error)
    if not finite(record.scores.get(key)):
        return None
    by_client = {name: float(one[key]) for name, one in record.clients.items() if finite(one.get(key))}
    kind = evaluation_kind(record.outcome) or SHARED
    return Measured(key, declared.label, record.scores[key], kind, by_client, declared.better)


def abroad(record: RunRecord, key: str) -> dict[str, float]:
    """Return a metric of clients' own models on everybody's rows, by client; empty where there are no such models."""
    clients: dict[str, JsonObject] = (record.summary.get("models") or {}).get("clients") or {}
    found = {name: one.get("own_on_everybody") or {} for name, one in clients.items()}
    return {name: float(one[key]) for name, one in found.items() if finite(one.get(key))}


def paired(first: Measured, second: Measured) -> Difference | None:
    """Return the second run's metric less the first one's, paired by client; None: no two clients have both."""
    names = sorted(first.clients.keys() & second.clients.keys())
    if len(names) < 2:
        return None
    values = [{place: one.clients[name] for place, name in enumerate(names)} for one in (first, second)]
    return difference(values[0], values[1])


def shows(found: Difference, better: Direction) -> str:
    """Return what an interval says of the second one."""
    return verdict(found, None if better is None else better == "lower")


def difference_text(one: Measured, found: Difference) -> str:
    """Return a difference over clients with its interval, which for a share ends at 100 points."""
    scale, places, unit = (100.0, 1, " points") if one.share else (1.0, 4, "")
    shown = f"{found.value * scale:+.{places}f}"
    if found.interval is not None:
        low, high = (max(-1.0, min(1.0, end)) if one.share else end for end in found.interval)
        shown += f" ({low * scale:+.{places}f} to {high * scale:+.{places}f})"
    return shown + unit
