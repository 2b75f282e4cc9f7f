"""`weft compare RUN...`: the scores of runs side by side, each kind in a table of its own, and the keys that differ."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from weft.arguments import Parser
from weft.commands.compare_differences import print_seeds, print_tasks
from weft.commands.tables import print_table
from weft.core.declarations import Metric
from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.launch import compared
from weft.launch.compared import Opened
from weft.launch.damage import as_written
from weft.pages import differences
from weft.pages.comparison_tables import cells_of, keys_text, value_text
from weft.pages.record import folder_of_seeds
from weft.runs.comparison import (
    COSTS,
    KINDS,
    ComparisonRow,
    Outcome,
    SeedSpread,
    compared_metrics,
    scores_of,
    verb_of,
)
from weft.runs.text import human_bytes, human_duration, human_number, plural, spreadsheet_text

COST_FORMATS: dict[str, Callable[[float], str]] = {
    "rounds": human_number,
    "tokens": human_number,
    "bytes_up": human_bytes,
    "bytes_down": human_bytes,
    "seconds": human_duration,
    "peak_memory_bytes": human_bytes,
    "product_error": lambda value: f"{value:.2g}",
}
HEADS = {"bytes_up": "up", "bytes_down": "down", "seconds": "time", "peak_memory_bytes": "memory"}


def run(argv: list[str]) -> int:
    """Print the tables, or write the page."""
    parser = Parser(
        prog="weft compare",
        description="Print runs and evaluations side by side. Runs that differ in their seed alone are one line: mean "
        "and standard deviation. Differences from the first are paired, by seed or by item, with 95 % intervals.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="directories of runs or studies, or folders of `weft evaluate`"
    )
    parser.add_argument(
        "--html", metavar="PAGE", help="write all of it as one HTML file, with curves, and print its path"
    )
    parser.add_argument("--metric", metavar="NAME", help="with --html: what the page begins with")
    parser.add_argument("--json", action="store_true", help="print JSON: every run by itself, then the differences")
    parser.add_argument("--csv", action="store_true", help="print CSV: a line for every kind of score of runs")
    arguments = parser.parse(argv)
    if arguments.metric is not None and arguments.html is None:
        raise ConfigError("--metric says what a page begins with: add --html PAGE, or leave --metric out.")
    with as_written(arguments.runs):
        return _shown(arguments)


def _shown(arguments: argparse.Namespace) -> int:
    opened = Opened.of(arguments.runs)
    if arguments.csv and not opened.runs:
        raise ConfigError("--csv lists the scores of runs, and only evaluations are named: write --json.")
    if arguments.html is not None:
        opened.write_page(Path(arguments.html), arguments.metric)
        print(arguments.html)
        return 0
    rows_by_verb = opened.rows()
    if arguments.csv:
        _write_csv(rows_by_verb)
        return 0
    evaluations = differences.evaluations_of([run.path for run in opened.runs], opened.folders)
    pairs = differences.pairs_of(evaluations, [row for rows in rows_by_verb.values() for row in rows])
    if arguments.json:
        data: JsonObject = {outcome.path: _json_entry(outcome) for outcome in opened.outcomes}
        of_seeds = (
            differences.json_of_seeds(rows[0], differences.differences_of_seeds(rows)) for rows in rows_by_verb.values()
        )
        found = differences.json_of_pairs(pairs) + [one for some in of_seeds for one in some]
        print(json.dumps(data | ({"differences": found} if found else {}), indent=1))
        return 0
    for verb, lines in rows_by_verb.items():
        _print(verb, lines)
    if evaluations:
        print_tasks(evaluations, pairs)
    if opened.folders and len(evaluations) > 1 and not any(found for _, _, found, _ in pairs):
        raise ConfigError("No task of these evaluations can be compared, as said above: name evaluations of one task.")
    return 0


def _json_entry(outcome: Outcome) -> JsonObject:
    costs = {name: outcome.summary.get(name) for name in COSTS}
    rows = ComparisonRow((outcome,), {}).rows()
    return {"verb": verb_of(outcome.config), "rows": rows, "scores": scores_of(outcome), **costs}


def _write_csv(rows_by_verb: dict[str, list[ComparisonRow]]) -> None:
    """Write one CSV line for each row of a table and each kind of its scores."""
    found = compared.lines(rows_by_verb)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(found[0] if found else [])
    for line in found:
        texts = line | {"runs": ";".join(line["runs"]), "seeds": " ".join(map(str, line["seeds"]))}
        writer.writerow([value_text(spreadsheet_text(value)) for value in texts.values()])


def _print(verb: str, lines: list[ComparisonRow]) -> None:
    named_rows = [(_run_label(line), line) for line in lines]
    several = any(len(line.paths) > 1 for line in lines)
    note = "a ± b is the mean and the standard deviation (n - 1) over seeds." if several else ""
    print_table(
        f"{verb}: runs",
        ["run", "keys that differ"],
        [[name, keys_text(line)] for name, line in named_rows],
        note,
        left=(0, 1),
    )
    for kind in KINDS:
        _print_scores(verb, kind, named_rows)
    for line, found, why in differences.differences_of_seeds(lines):
        print_seeds(verb, _run_label(line), _run_label(lines[0]), found, why)
    heads = [name for name in COSTS if any(name in line.costs() for line in lines)]
    costs = [[name, *(_mean(head, line.costs().get(head)) for head in heads)] for name, line in named_rows]
    print_table(f"{verb}: what it took", ["run", *(HEADS.get(head, head) for head in heads)], costs)


def _print_scores(verb: str, kind: str, named_rows: list[tuple[str, ComparisonRow]]) -> None:
    """Print the table of a kind of scores, if any run has it."""
    scores = [(name, line.rows(), values) for name, line in named_rows if (values := line.scores(kind))]
    heads = [metric for metric in compared_metrics() if any(metric.name in values for *_, values in scores)]
    if not heads:
        return
    apart = len({rows for _, rows, _ in scores}) > 1
    note = "n differs: the runs were not measured on the same rows." if apart else ""
    cells = [
        [name, rows, *(_cell(metric.in_comparison, values.get(metric.name)) for metric in heads)]
        for name, rows, values in scores
    ]
    best = {
        (row, column)
        for column, metric in enumerate(heads, start=2)
        for row in ([] if apart else _best(metric, [values.get(metric.name) for *_, values in scores]))
    }
    print_table(f"{verb}: {kind}", ["run", "n", *(metric.name for metric in heads)], cells, note, best)


def _run_label(line: ComparisonRow) -> str:
    """Return the names of the runs of a row: the folder of their seeds; else on a terminal the first, elsewhere all."""
    name = ", ".join(line.paths)
    if folder := folder_of_seeds(line.paths):
        name = f"{folder}, {len(line.paths)} seeds"
    elif sys.stdout.isatty() and len(line.paths) > 1:
        name = f"{line.paths[0]} + {plural(len(line.paths) - 1, 'seed')}"
    return f"{name} ({line.mark})" if line.mark else name


def _best(metric: Metric, column: Sequence[SeedSpread | None]) -> list[int]:
    """Return the row numbers of the best means of a column; none if all are equal or no direction is better."""
    means = [value.mean for value in column if value is not None]
    if metric.better is None or len(set(means)) < 2:
        return []
    best = min(means) if metric.better == "lower" else max(means)
    return [place for place, value in enumerate(column) if value is not None and value.mean == best]


def _cell(show: Callable[[float], str], value: SeedSpread | None) -> str:
    return cells_of(value, show) or "-"


def _mean(name: str, value: SeedSpread | None) -> str:
    return _cell(COST_FORMATS.get(name, "{:.4f}".format), None if value is None else SeedSpread(value.mean))
