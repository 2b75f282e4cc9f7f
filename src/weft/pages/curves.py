"""The curves of a run over its rounds: which picture a metric is drawn in, it declares itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from weft.core.declarations import TRAIN_LOSS, scores, training
from weft.json_types import JsonObject
from weft.pages.charts import Chart, Point, Range, Series, finite
from weft.pages.record import RunRecord


def curves_of(record: RunRecord) -> list[Chart]:
    """Return the pictures of a run, those of training before those of evaluation, without empty ones."""
    charts = [*_panels(record.rounds, record.evaluations), tasks_chart(record.tasks), *_costs(record)]
    return [chart for chart in charts if any(one.points for one in chart.series)]


def _panels(rounds: list[JsonObject], evaluations: list[JsonObject]) -> list[Chart]:
    labels = dict.fromkeys(metric.look.panel for metric in (TRAIN_LOSS, *scores(), *training()) if metric.look.panel)
    charts = []
    for label in labels:
        sources = [(rounds, metric) for metric in training() if metric.look.panel == label]
        sources += [(evaluations, metric) for metric in scores() if metric.look.panel == label]
        series = [
            Series(metric.look.curve or metric.label, points_of(records, metric.name), spread_of(records, metric.name))
            for records, metric in sources
        ]
        # One spread is read, several on top of each other are not.
        banded = next((place for place, one in enumerate(series) if one.band), None)
        series = [one if place == banded else one._replace(band=()) for place, one in enumerate(series)]
        charts.append(Chart(label, series, share=all(metric.share for _, metric in sources)))
    return charts


def points_of(records: Sequence[JsonObject], key: str) -> list[Point]:
    """Return the values of a key by round."""
    return [(record["round"], record[key]) for record in records if finite(record.get(key))]


def spread_of(records: Sequence[JsonObject], key: str) -> list[Range]:
    """Return the range of a key over clients by round, of rounds in which two clients or more have it."""
    found = []
    for record in records:
        values = (
            [one[key] for one in (record.get("clients") or {}).values() if finite(one.get(key))] if _by(record) else []
        )
        if len(values) > 1:
            found.append((record["round"], min(values), max(values)))
    return found


def _by(record: JsonObject) -> bool:
    """Say whether a line has values by client, as those of evaluations have."""
    return isinstance(record.get("clients"), Mapping)


def main_scores(record: JsonObject) -> dict[str, str]:
    """Return by evaluation task the key of its main score, which stands first among its keys."""
    keys: dict[str, str] = {}
    for key in record:
        task, slash, _ = key.partition("/")
        if slash:
            keys.setdefault(task, key)
    return keys


def tasks_chart(tasks: list[JsonObject]) -> Chart:
    """Return the picture of the main scores of evaluation tasks."""
    keys = main_scores(tasks[0]) if tasks else {}
    series = [Series(task, points_of(tasks, key)) for task, key in keys.items()]
    values = [value for one in series for _, value in one.points]
    return Chart("evaluation tasks", series, share=all(0 <= value <= 1 for value in values))


def _costs(record: RunRecord) -> list[Chart]:
    """Return the pictures of the product error, the budget of privacy and the throughput."""
    # An exact average has an error of 0, for which a logarithmic axis has no place.
    errors = [(place, max(error, 1e-9)) for place, error in points_of(record.rounds, "product_error")]
    spent = points_of(record.rounds, "epsilon")
    speed = [
        (line["round"], line["tokens_per_second"]) for line in record.timing if finite(line.get("tokens_per_second"))
    ]
    return [
        Chart("product error", [Series("product error", errors)], logarithmic=True),
        Chart("epsilon spent", [Series("epsilon", spent)]),
        Chart("tokens/s", [Series("tokens/s", speed)]),
    ]
