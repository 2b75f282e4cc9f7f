"""The differences of `weft compare`: of evaluations on the same items, and of runs over paired seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from weft.commands.tables import print_table
from weft.json_types import JsonObject
from weft.runs.layout import RunDir

if TYPE_CHECKING:
    from weft.runs.comparison import ComparisonRow
    from weft.tasks.paired import Evaluation, TaskDifference
    from weft.tasks.paired_seeds import SeedDifference
    from weft.tasks.statistics import Difference

    Pair = tuple[Evaluation, Evaluation, list[TaskDifference], list[str]]

CAUTION = "Of 20 intervals of equal models, one leaves out 0 by chance."
HEADS = ["difference (95 % interval)", "shows", "smallest visible"]


def evaluations_of(runs: Sequence[Path], folders: Sequence[str]) -> dict[str, Evaluation]:
    """Return the evaluations of runs that have one of their end, and those in folders that were named, by name."""
    from weft.tasks.paired import is_evaluation, is_of_harness, read_evaluation
    from weft.tasks.results import FILE
    from weft.tasks.store import END, FOLDER

    found = {folder: read_evaluation(Path(folder), folder) for folder in folders}
    for run in runs:
        folder = run / FOLDER / END
        if is_evaluation(folder) and (folder / FILE).is_file() and not is_of_harness(folder):
            found[str(run)] = read_evaluation(folder, str(run))
    return found


def pairs_of(evaluations: dict[str, Evaluation], rows: Sequence[ComparisonRow]) -> list[Pair]:
    """Return the differences of every evaluation from the first one, or from the first row's run of the same seed."""
    from weft.tasks.paired import compare

    if not evaluations:
        return []
    first = next(iter(evaluations))
    leading = next((row for row in rows if first in row.paths), None)
    by_seed = dict(zip(leading.seeds, leading.paths, strict=True)) if leading else {}
    seeds = {path: seed for row in rows if row is not leading for path, seed in zip(row.paths, row.seeds, strict=True)}
    pairs: list[Pair] = []
    for name, evaluation in evaluations.items():
        other = by_seed.get(seeds.get(name, -1), first)
        other = other if other in evaluations else first
        if other != name:
            pairs.append((evaluations[other], evaluation, *compare(evaluations[other], evaluation)))
    return pairs


def print_tasks(evaluations: dict[str, Evaluation], pairs: Sequence[Pair]) -> None:
    """Print the scores of evaluations, then the differences."""
    from weft.tasks.results import shown

    rows = []
    tasks = dict.fromkeys(task for evaluation in evaluations.values() for task in evaluation.tasks)
    for task in tasks:
        for evaluation in evaluations.values():
            if task in evaluation.tasks:
                answered = evaluation.tasks[task]
                metric, measures = answered.scorer.main_metric, answered.measures
                cell = shown(metric, measures[metric]) if metric in measures else "-"
                rows.append([task, metric, evaluation.name, cell, str(len(answered.records))])
    heads = ["task", "metric", "evaluation", "score (95 % interval)", "n"]
    print_table("tasks: scores", heads, rows, left=(0, 1, 2))
    for first, second, differences, notes in pairs:
        cells = [
            [one.task, one.metric, _count(one), *_cells(one.metric, one.difference, one.verdict)]
            for one in differences
            if one.main or one.metric == "macro_f1"
        ]
        title = f"tasks: {second.name} less {first.name}, on the same items"
        if cells:
            print_table(title, ["task", "metric", "n", *HEADS], cells, CAUTION, left=(0, 1))
        else:
            print(f"{title}: nothing can be compared.\n")
        for note in notes:
            print(f"  {note}")
        if notes:
            print()


def differences_of_seeds(rows: Sequence[ComparisonRow]) -> list[tuple[ComparisonRow, list[SeedDifference], str]]:
    """Return how every row of runs differs from the first one over common seeds, or why it cannot be said."""
    from weft.runs.fingerprints import read_fingerprints
    from weft.tasks.paired_seeds import seed_differences

    digests = {path: read_fingerprints(RunDir(path)) for row in rows for path in row.paths}
    data = {
        path: {name: digest for name, digest in known.items() if "data" in name or "rows" in name}
        for path, known in digests.items()
    }
    found = [(row, *seed_differences(rows[0], row, data)) for row in rows[1:]]
    return [(row, differences, why) for row, differences, why in found if differences or why]


def print_seeds(verb: str, label: str, name: str, differences: Sequence[SeedDifference], why: str) -> None:
    """Print how a row of runs differs from the first one.

    Args:
        verb: of the runs.
        label: of the row.
        name: of the first row.
        differences: on each kind of score and metric.
        why: they cannot be compared; "": they can.
    """
    title = f"{verb}: {label} less {name}, over their common seeds"
    if why:
        print(f"{title}: no difference, because they were not measured on the same rows ({why}).\n")
        return
    cells = [
        [one.kind, one.metric, str(len(one.seeds)), *_cells("", one.difference, one.verdict)] for one in differences
    ]
    print_table(title, ["measured", "metric", "seeds", *HEADS], cells, CAUTION, left=(0, 1))


def json_of_pairs(pairs: Sequence[Pair]) -> list[JsonObject]:
    """Return the differences between evaluations as plain data."""
    return [
        {"of": second.name, "from": first.name, "notes": notes}
        | {
            "tasks": [
                {"task": one.task, "metric": one.metric, "items": list(one.items)} | _plain(one.difference, one.verdict)
                for one in differences
            ]
        }
        for first, second, differences, notes in pairs
    ]


def json_of_seeds(
    first: ComparisonRow, found: Sequence[tuple[ComparisonRow, list[SeedDifference], str]]
) -> list[JsonObject]:
    """Return the differences between runs as plain data."""
    return [
        {"of": row.paths, "from": first.paths, "notes": [why] if why else []}
        | {
            "scores": [
                {"measured": one.kind, "metric": one.metric, "seeds": list(one.seeds)}
                | _plain(one.difference, one.verdict)
                for one in differences
            ]
        }
        for row, differences, why in found
    ]


def _plain(found: Difference, verdict: str) -> JsonObject:
    names = ("value", "error", "interval", "count", "clusters", "smallest_visible")
    return {name: getattr(found, name) for name in names} | {"shows": verdict}


def _count(one: TaskDifference) -> str:
    """Return how many items a difference is over, and of how many where that is fewer than either was asked."""
    count, most = one.difference.count, max(one.items)
    return str(count) if count == most else f"{count} of {most}"


def _cells(metric: str, found: Difference, verdict: str) -> list[str]:
    """Return the cells of a difference; those of shares are in points of a hundred."""
    from weft.tasks.scorer import is_share

    scale, places = (100.0, 1) if metric and is_share(metric) else (1.0, 4)
    text = f"{found.value * scale:+.{places}f}"
    if found.interval is not None:
        text += f" ({found.interval[0] * scale:+.{places}f} to {found.interval[1] * scale:+.{places}f})"
    least = "-" if found.smallest_visible is None else f"{found.smallest_visible * scale:.{places}f}"
    unit = " points" if scale != 1 else ""
    return [text + unit, verdict, least]
