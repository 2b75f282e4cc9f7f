"""The tables of differences that `weft compare` prints: of evaluations on the same items, and of runs over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from weft.commands.tables import print_table

if TYPE_CHECKING:
    from weft.pages.differences import Pair
    from weft.tasks.paired import Evaluation
    from weft.tasks.paired_seeds import SeedDifference

HEADS = ["difference (95 % interval)", "shows", "smallest visible"]


def print_tasks(evaluations: dict[str, Evaluation], pairs: Sequence[Pair]) -> None:
    """Print the scores of evaluations, then the differences."""
    from weft.pages.differences import CAUTION, count_text, difference_cells
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
            [one.task, one.metric, count_text(one), *difference_cells(one.metric, one.difference, one.verdict)]
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


def print_seeds(verb: str, label: str, name: str, differences: Sequence[SeedDifference], why: str) -> None:
    """Print how a row of runs differs from the first one.

    Args:
        verb: of the runs.
        label: of the row.
        name: of the first row.
        differences: on each kind of score and metric.
        why: they cannot be compared; "": they can.
    """
    from weft.pages.differences import CAUTION, difference_cells

    title = f"{verb}: {label} less {name}, over their common seeds"
    if why:
        print(f"{title}: no difference, because they were not measured on the same rows ({why}).\n")
        return
    cells = [
        [one.kind, one.metric, str(len(one.seeds)), *difference_cells("", one.difference, one.verdict)]
        for one in differences
    ]
    print_table(title, ["measured", "metric", "seeds", *HEADS], cells, CAUTION, left=(0, 1))
