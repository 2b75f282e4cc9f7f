"""The tables of a page about several runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from weft.pages.differences import CAUTION, Pair, count_text, difference_cells
from weft.pages.html import paragraph, table, text
from weft.runs.comparison import KINDS, ComparisonRow, SeedSpread, compared_metrics
from weft.tasks.paired import Evaluation
from weft.tasks.results import shown


def keys_text(row: ComparisonRow) -> str:
    """Return the keys of a row of runs that other rows have another value of."""
    words = [f"{key}={value_text(value)}" for key, value in row.keys.items()]
    if len(row.seeds) > 1:
        same = row.outcomes[0].config.get("split_seed") is not None
        seeds = ", ".join(map(str, row.seeds))
        words.append(f"seeds {seeds}{' on one split' if same else ', each with its own split'}")
    return "  ".join(words) or "-"


def value_text(value: object) -> str:
    """Return the value of a key."""
    return "" if value is None else json.dumps(value) if isinstance(value, list | dict) else str(value)


def cells_of(value: SeedSpread | None, show: Callable[[float], str]) -> str | None:
    """Return a number with its standard deviation over seeds, where it has one."""
    if value is None:
        return None
    return show(value.mean) if value.deviation is None else f"{show(value.mean)} ± {show(value.deviation)}"


def metric_tables(rows: Sequence[ComparisonRow], labels: Sequence[str]) -> str:
    """Return a table for each kind of score that any of the runs has."""
    parts = []
    for kind in KINDS:
        scored = [
            (label, row.rows(), values) for label, row in zip(labels, rows, strict=True) if (values := row.scores(kind))
        ]
        heads = [metric for metric in compared_metrics() if any(metric.name in values for *_, values in scored)]
        if not heads:
            continue
        cells = [
            [label, count, *(cells_of(values.get(metric.name), metric.in_comparison) for metric in heads)]
            for label, count, values in scored
        ]
        apart = len({count for _, count, _ in scored}) > 1
        note = paragraph("n differs: the runs were not measured on the same rows.") if apart else ""
        parts.append(f"<h3>{text(kind)}</h3>" + table(["run", "n", *(metric.label for metric in heads)], cells) + note)
    return "".join(parts)


def task_tables(evaluations: Mapping[str, Evaluation], pairs: Sequence[Pair], names: Mapping[str, str]) -> str:
    """Return the scores of evaluation tasks with their intervals, and the paired differences."""
    rows = []
    for task in dict.fromkeys(task for evaluation in evaluations.values() for task in evaluation.tasks):
        for path, evaluation in evaluations.items():
            if task in evaluation.tasks:
                answered = evaluation.tasks[task]
                metric, measures = answered.scorer.main_metric, answered.measures
                cell = shown(metric, measures[metric]) if metric in measures else None
                rows.append([task, metric, names[path], cell, len(answered.records)])
    if not rows:
        return ""
    parts = [table(["task", "metric", "evaluation", "score (95 % interval)", "n"], rows, words=(0, 1, 2))]
    heads = ["task", "metric", "n", "difference (95 % interval)", "shows", "smallest visible"]
    for first, second, differences, notes in pairs:
        cells = [
            [one.task, one.metric, count_text(one), *difference_cells(one.metric, one.difference, one.verdict)]
            for one in differences
            if one.main or one.metric == "macro_f1"
        ]
        parts.append(f"<h3>{text(names[second.name])} less {text(names[first.name])}, on the same items</h3>")
        parts.append(table(heads, cells, words=(0, 1)) if cells else paragraph("Nothing can be compared."))
        parts += map(paragraph, [*([CAUTION] if cells else []), *notes])
    return "".join(parts)
