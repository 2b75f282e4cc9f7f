"""Differences between runs and evaluations: on the same items, over paired seeds, and over the clients of both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from weft.json_types import JsonObject
from weft.runs.comparison import ComparisonRow
from weft.runs.fingerprints import read_fingerprints
from weft.runs.layout import RunDir
from weft.tasks.paired import Evaluation, TaskDifference, compare, is_evaluation, is_of_harness, read_evaluation
from weft.tasks.paired_seeds import SeedDifference, seed_differences
from weft.tasks.results import FILE
from weft.tasks.scorer import is_share
from weft.tasks.statistics import Difference
from weft.tasks.store import END, FOLDER

Pair = tuple[Evaluation, Evaluation, list[TaskDifference], list[str]]
SeedPair = tuple[ComparisonRow, list[SeedDifference], str]

CAUTION = "Of 20 intervals of equal models, one leaves out 0 by chance."


def evaluations_of(runs: Sequence[Path], folders: Sequence[str]) -> dict[str, Evaluation]:
    """Return the evaluations of runs that have one of their end, and those in folders that were named, by name."""
    found = {folder: read_evaluation(Path(folder), folder) for folder in folders}
    for run in runs:
        folder = run / FOLDER / END
        if is_evaluation(folder) and (folder / FILE).is_file() and not is_of_harness(folder):
            found[str(run)] = read_evaluation(folder, str(run))
    return found


def pairs_of(evaluations: dict[str, Evaluation], rows: Sequence[ComparisonRow]) -> list[Pair]:
    """Return the differences of every evaluation from the first one, or from the first row's run of the same seed."""
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


def data_digests(paths: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the digests of the data of runs, by the run's path and the data's name."""
    digests = {path: read_fingerprints(RunDir(path)) for path in paths}
    return {
        path: {name: digest for name, digest in known.items() if "data" in name or "rows" in name}
        for path, known in digests.items()
    }


def differences_of_seeds(rows: Sequence[ComparisonRow]) -> list[SeedPair]:
    """Return how every row of runs differs from the first one over common seeds, or why it cannot be said."""
    data = data_digests([path for row in rows for path in row.paths])
    found = [(row, *seed_differences(rows[0], row, data)) for row in rows[1:]]
    return [(row, differences, why) for row, differences, why in found if differences or why]


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


def json_of_seeds(first: ComparisonRow, found: Sequence[SeedPair]) -> list[JsonObject]:
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


def count_text(one: TaskDifference) -> str:
    """Return how many items a difference is over, and of how many where that is fewer than either was asked."""
    count, most = one.difference.count, max(one.items)
    return str(count) if count == most else f"{count} of {most}"


def difference_cells(metric: str, found: Difference, verdict: str) -> list[str]:
    """Return the cells of a difference; those of shares are in points of a hundred."""
    scale, places = (100.0, 1) if metric and is_share(metric) else (1.0, 4)
    text = f"{found.value * scale:+.{places}f}"
    if found.interval is not None:
        text += f" ({found.interval[0] * scale:+.{places}f} to {found.interval[1] * scale:+.{places}f})"
    least = "-" if found.smallest_visible is None else f"{found.smallest_visible * scale:.{places}f}"
    unit = " points" if scale != 1 else ""
    return [text + unit, verdict, least]
