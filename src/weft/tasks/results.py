"""The results of an evaluation: a file in the shape of lm-eval's, and a table for people."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from weft.core.files import json_line, write_atomic
from weft.json_types import JsonObject
from weft.runs.text import columns
from weft.tasks.declaration import as_json
from weft.tasks.runner import Result
from weft.tasks.scorer import Measures, is_share
from weft.tasks.statistics import Measure

FILE = "results.json"
NAMES = {"accuracy": "acc", "accuracy_norm": "acc_norm"}
"""lm-eval's names of metrics, where they differ."""
BY_TASK = ("results", "group_subtasks", "configs", "n-shot", "higher_is_better", "n-samples", "main_scores")
"""Parts of the file that are by task."""


def results_json(
    results: Sequence[Result], model: str, settings: JsonObject, version: str, dates: Mapping[str, str] | None = None
) -> JsonObject:
    """Return results in the shape of lm-eval's results.json; parts of a task are listed as tasks of their own.

    Args:
        results: of tasks.
        model: for people.
        settings: what the results depend on.
        version: of Weft.
        dates: by task, the day on which its last item was scored (ISO 8601).
    """
    dates = dates or {}
    scores: JsonObject = {}
    groups: dict[str, list[str]] = {}
    for result in results:
        scores[result.task.name] = {"alias": result.task.name} | _flat(result.measures)
        for name, measures in result.groups.items():
            part = f"{result.task.name}/{name}"
            scores[part] = {"alias": f" - {name}"} | _flat(measures)
            groups.setdefault(result.task.name, []).append(part)
    return {
        "results": scores,
        "group_subtasks": groups,
        "configs": {result.task.name: as_json(result.task) for result in results},
        "n-shot": {result.task.name: result.shots for result in results},
        "higher_is_better": {
            result.task.name: {
                NAMES.get(name, name): better == "higher"
                for name in result.measures
                if (better := result.task.scorer.better(name)) is not None
            }
            for result in results
        },
        "n-samples": {
            result.task.name: {"original": result.rows, "effective": len(result.records)} for result in results
        },
        "main_scores": {result.task.name: _main(result, dates.get(result.task.name)) for result in results},
        "config": {"model": "weft", "model_args": model} | settings,
        "weft_version": version,
    }


def _main(result: Result, date: str | None) -> JsonObject:
    """Return a task's own metric, as a model card takes it."""
    measure = result.main
    return {
        "metric": result.task.metric,
        "value": measure.value if math.isfinite(measure.value) else None,
        "interval": measure.interval,
        "share": is_share(result.task.metric),
        "count": len(result.records),
        "dataset": result.task.data.hub.partition(" ")[0],
        "date": date,
    }


def _flat(measures: Measures) -> JsonObject:
    """Return measures as lm-eval writes them: "acc,none" and "acc_stderr,none"."""
    flat: JsonObject = {}
    for name, measure in measures.items():
        name = NAMES.get(name, name)
        flat[f"{name},none"] = measure.value if math.isfinite(measure.value) else None
        flat[f"{name}_stderr,none"] = "N/A" if measure.error is None else measure.error
    return flat


def write_results(folder: Path, results: JsonObject) -> Path:
    """Write the results of an evaluation, and return the file; those of tasks that were put earlier stay."""
    try:
        former = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        former = {}
    # A file that somebody broke is written anew from the records.
    former = former if isinstance(former, dict) else {}
    earlier = {key: part for key in BY_TASK if isinstance(part := former.get(key), dict)}
    results = results | {key: earlier.get(key, {}) | results.get(key, {}) for key in BY_TASK}
    write_atomic(folder / FILE, (json_line(results, indent=2) + "\n").encode())
    return folder / FILE


def shown(name: str, measure: Measure) -> str:
    """Return a measure for people, with its 95 % interval."""
    scale, unit, places = (100.0, " %", 1) if is_share(name) else (1.0, "", 3)
    text = f"{measure.value * scale:.{places}f}{unit}"
    interval = measure.interval
    if interval is None:
        return text
    return f"{text} ({interval[0] * scale:.{places}f} to {interval[1] * scale:.{places}f})"


def table(results: Sequence[Result]) -> list[str]:
    """Return lines for people: each task's own metric with its interval, then its other ones."""
    rows = [["task", "metric", "score (95 % interval)", "n", "other"]]
    for result in results:
        task, measures = result.task, result.measures
        others = [f"{name} {shown(name, Measure(m.value))}" for name, m in measures.items() if name != task.metric]
        count = f"{len(result.records)}" + (f" of {result.rows}" if len(result.records) < result.rows else "")
        rows.append([task.name, task.metric, shown(task.metric, result.main), count, ", ".join(others)])
    return columns(rows, range(len(rows[0])))
