"""`weft compare RUN...`: the scores of runs side by side, each kind in a table of its own, and the keys that differ."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from weft.arguments import Parser
from weft.commands import compare_differences as differences
from weft.commands.tables import print_table
from weft.config import VOLATILE
from weft.core.declarations import Metric
from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.launch.run import Run
from weft.runs.comparison import (
    COSTS,
    KINDS,
    ComparisonRow,
    Outcome,
    SeedSpread,
    compared_metrics,
    scores_of,
    tables,
    verb_of,
)
from weft.runs.text import human_bytes, human_duration, human_number

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
    """Print the tables."""
    parser = Parser(
        prog="weft compare",
        description="Print runs and evaluations side by side. Runs that differ in their seed alone are one line: mean "
        "and standard deviation. Differences from the first are paired, by seed or by item, with 95 % intervals.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or folders of `weft evaluate`")
    parser.add_argument("--json", action="store_true", help="print JSON: every run by itself, then the differences")
    parser.add_argument("--csv", action="store_true", help="print CSV: a line for every kind of score of runs")
    arguments = parser.parse(argv)
    runs, folders = _opened(arguments.runs)
    if arguments.csv and not runs:
        raise ConfigError("--csv lists the scores of runs, and only evaluations are named: write --json.")
    outcomes = [_outcome(run) for run in runs]
    rows_by_verb = tables(outcomes, VOLATILE)
    if arguments.csv:
        _write_csv(rows_by_verb)
        return 0
    evaluations = differences.evaluations_of([run.path for run in runs], folders)
    pairs = differences.pairs_of(evaluations, [row for rows in rows_by_verb.values() for row in rows])
    if arguments.json:
        data: JsonObject = {outcome.path: _json_entry(outcome) for outcome in outcomes}
        of_seeds = (
            differences.json_of_seeds(rows[0], differences.differences_of_seeds(rows)) for rows in rows_by_verb.values()
        )
        found = differences.json_of_pairs(pairs) + [one for some in of_seeds for one in some]
        print(json.dumps(data | ({"differences": found} if found else {}), indent=1))
        return 0
    for verb, lines in rows_by_verb.items():
        _print(verb, lines)
    if evaluations:
        differences.print_tasks(evaluations, pairs)
    if folders and len(evaluations) > 1 and not any(found for _, _, found, _ in pairs):
        raise ConfigError("No task of these evaluations can be compared, as said above: name evaluations of one task.")
    return 0


def _opened(names: Sequence[str]) -> tuple[list[Run], list[str]]:
    """Return the runs and the folders of evaluations that are named, each once."""
    from weft.tasks.paired import is_evaluation

    by_path = {Path(name).resolve(): name for name in reversed(names)}
    ordered = [(path, by_path[path]) for path in dict.fromkeys(Path(name).resolve() for name in names)]
    folders = [name for path, name in ordered if is_evaluation(path)]
    return [Run(name) for path, name in ordered if not is_evaluation(path)], folders


def _outcome(run: Run) -> Outcome:
    """Return what is compared of a run: its configuration and summary, and whether its models are personal."""
    config, summary = run.config, run.summary
    personal = False
    # Personal models stay at their sites, so that the server's summary does not list them.
    if config.runtime == "nvflare" and not summary.get("models"):
        from weft.launch.compose import plan

        personal = plan(config).personal
    return Outcome(str(run.path), config.model_dump(mode="json"), summary, personal)


def _json_entry(outcome: Outcome) -> JsonObject:
    costs = {name: outcome.summary.get(name) for name in COSTS}
    rows = ComparisonRow((outcome,), {}).rows()
    return {"verb": verb_of(outcome.config), "rows": rows, "scores": scores_of(outcome), **costs}


def _write_csv(rows_by_verb: dict[str, list[ComparisonRow]]) -> None:
    """Write one CSV line for each row of a table and each kind of its scores."""
    keys = list(dict.fromkeys(key for lines in rows_by_verb.values() for line in lines for key in line.keys))
    heads = ["verb", "runs", "seeds", *keys, "note", "measured", "n"]
    numbers = (*(metric.name for metric in compared_metrics()), *COSTS)
    heads += [word for name in numbers for word in (name, f"{name}_deviation")]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(heads)
    for verb, lines in rows_by_verb.items():
        for line in lines:
            differing = [_text(line.keys.get(key)) for key in keys]
            for kind in KINDS:
                if scores := line.scores(kind):
                    values = scores | line.costs()
                    cells = [cell for name in numbers for cell in values.get(name, ("", ""))]
                    seeds = " ".join(map(str, line.seeds))
                    writer.writerow(
                        [verb, ";".join(line.paths), seeds, *differing, line.mark, kind, line.rows(), *cells]
                    )


def _print(verb: str, lines: list[ComparisonRow]) -> None:
    named_rows = [(_run_label(line), line) for line in lines]
    several = any(len(line.paths) > 1 for line in lines)
    note = "a ± b is the mean and the standard deviation (n - 1) over seeds." if several else ""
    print_table(
        f"{verb}: runs",
        ["run", "keys that differ"],
        [[name, _keys(line)] for name, line in named_rows],
        note,
        left=(0, 1),
    )
    for kind in KINDS:
        _print_scores(verb, kind, named_rows)
    for line, found, why in differences.differences_of_seeds(lines):
        differences.print_seeds(verb, _run_label(line), _run_label(lines[0]), found, why)
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
    """Return the names of the runs of a row: on a terminal the first, elsewhere all."""
    more = len(line.paths) - 1
    name = ", ".join(line.paths)
    if sys.stdout.isatty() and more:
        name = f"{line.paths[0]} + {more} seed{'s' * (more > 1)}"
    return f"{name} ({line.mark})" if line.mark else name


def _keys(line: ComparisonRow) -> str:
    words = [f"{key}={_text(value)}" for key, value in line.keys.items()]
    if len(line.seeds) > 1:
        same = line.outcomes[0].config.get("split_seed") is not None
        words.append(
            f"seeds {', '.join(map(str, line.seeds))}{' on one split' if same else ', each with its own split'}"
        )
    return "  ".join(words) or "-"


def _text(value: object) -> str:
    return "" if value is None else json.dumps(value) if isinstance(value, list | dict) else str(value)


def _best(metric: Metric, column: Sequence[SeedSpread | None]) -> list[int]:
    """Return the row numbers of the best means of a column; none if all are equal or no direction is better."""
    means = [value.mean for value in column if value is not None]
    if metric.better is None or len(set(means)) < 2:
        return []
    best = min(means) if metric.better == "lower" else max(means)
    return [place for place, value in enumerate(column) if value is not None and value.mean == best]


def _cell(show: Callable[[float], str], value: SeedSpread | None) -> str:
    if value is None:
        return "-"
    return show(value.mean) if value.deviation is None else f"{show(value.mean)} ± {show(value.deviation)}"


def _mean(name: str, value: SeedSpread | None) -> str:
    return _cell(COST_FORMATS.get(name, "{:.4f}".format), None if value is None else SeedSpread(value.mean))
