"""`weft compare RUN...`: the scores of runs side by side, each kind in a table of its own, and the keys that differ."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import Any

from weft.arguments import Parser
from weft.config import VOLATILE
from weft.core.declarations import Metric
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

SHOWN: dict[str, Callable[[float], str]] = {
    "rounds": human_number,
    "tokens": human_number,
    "bytes_up": human_bytes,
    "bytes_down": human_bytes,
    "seconds": human_duration,
    "peak_memory_bytes": human_bytes,
    "product_error": lambda value: f"{value:.2g}",
}
HEADS = {"bytes_up": "up", "bytes_down": "down", "seconds": "time", "peak_memory_bytes": "memory"}
Cells = list[list[str]]
Places = Set[tuple[int, int]]


def run(argv: list[str]) -> int:
    """Print the tables."""
    parser = Parser(
        prog="weft compare",
        description="Print runs side by side. Runs that differ in their seed alone are one line: mean and standard "
        "deviation.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories")
    parser.add_argument("--json", action="store_true", help="print JSON: every run by itself")
    parser.add_argument("--csv", action="store_true", help="print CSV: a line for every kind of score")
    arguments = parser.parse(argv)
    opened: dict[Path, Run] = {}
    for path in arguments.runs:
        opened.setdefault(Path(path).resolve(), Run(path))
    outcomes = [_outcome(each) for each in opened.values()]
    if arguments.json:
        print(json.dumps({one.path: _plain(one) for one in outcomes}, indent=1))
        return 0
    found = tables(outcomes, VOLATILE)
    if arguments.csv:
        _write_csv(found)
        return 0
    for verb, lines in found.items():
        _print(verb, lines)
    return 0


def _outcome(opened: Run) -> Outcome:
    config, summary = opened.config, opened.summary
    personal = False
    if config.runtime == "nvflare" and not summary.get("models"):  # own models stay with their sites
        from weft.launch.compose import plan

        personal = plan(config).personal
    return Outcome(str(opened.path), config.model_dump(mode="json"), summary, personal)


def _plain(one: Outcome) -> dict[str, Any]:
    costs = {name: one.summary.get(name) for name in COSTS}
    return {"verb": verb_of(one.config), "rows": ComparisonRow((one,), {}).rows(), "scores": scores_of(one), **costs}


def _write_csv(found: dict[str, list[ComparisonRow]]) -> None:
    keys = list(dict.fromkeys(key for lines in found.values() for line in lines for key in line.keys))
    heads = ["verb", "runs", "seeds", *keys, "note", "measured", "n"]
    numbered = (*(metric.name for metric in compared_metrics()), *COSTS)
    heads += [word for name in numbered for word in (name, f"{name}_deviation")]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(heads)
    for verb, lines in found.items():
        for line in lines:
            known = [_word(line.keys.get(key)) for key in keys]
            for kind in KINDS:
                if scores := line.scores(kind):
                    numbers = scores | line.costs()
                    cells = [cell for name in numbered for cell in numbers.get(name, ("", ""))]
                    seeds = " ".join(map(str, line.seeds))
                    writer.writerow([verb, ";".join(line.paths), seeds, *known, line.mark, kind, line.rows(), *cells])


def _print(verb: str, lines: list[ComparisonRow]) -> None:
    known = [(_named(line), line) for line in lines]
    several = any(len(line.paths) > 1 for line in lines)
    note = "a ± b is the mean and the standard deviation (n - 1) over seeds." if several else ""
    _table(f"{verb}: runs", ["run", "keys that differ"], [[name, _keys(line)] for name, line in known], note)
    for kind in KINDS:
        _print_scores(verb, kind, known)
    heads = [name for name in COSTS if any(name in line.costs() for line in lines)]
    took = [[name, *(_mean(head, line.costs().get(head)) for head in heads)] for name, line in known]
    _table(f"{verb}: what it took", ["run", *(HEADS.get(head, head) for head in heads)], took)


def _print_scores(verb: str, kind: str, known: list[tuple[str, ComparisonRow]]) -> None:
    """Print the table of a kind of scores, if any run has it."""
    scores = [(name, line.rows(), own) for name, line in known if (own := line.scores(kind))]
    heads = [metric for metric in compared_metrics() if any(metric.name in own for *_, own in scores)]
    if not heads:
        return
    apart = len({rows for _, rows, _ in scores}) > 1
    note = "n differs: these were not measured on the same rows." if apart else ""
    cells = [
        [name, rows, *(_shown(metric.in_comparison, own.get(metric.name)) for metric in heads)]
        for name, rows, own in scores
    ]
    best = {
        (row, column)
        for column, metric in enumerate(heads, start=2)
        for row in ([] if apart else _best(metric, [own.get(metric.name) for *_, own in scores]))
    }
    _table(f"{verb}: {kind}", ["run", "n", *(metric.name for metric in heads)], cells, note, best)


def _named(line: ComparisonRow) -> str:
    """Name the runs of a line: on a terminal the first, elsewhere all."""
    more = len(line.paths) - 1
    name = ", ".join(line.paths)
    if sys.stdout.isatty() and more:
        name = f"{line.paths[0]} + {more} seed{'s' * (more > 1)}"
    return f"{name} ({line.mark})" if line.mark else name


def _keys(line: ComparisonRow) -> str:
    words = [f"{key}={_word(value)}" for key, value in line.keys.items()]
    if len(line.seeds) > 1:
        same = line.outcomes[0].config.get("split_seed") is not None
        words.append(
            f"seeds {', '.join(map(str, line.seeds))}{' on one split' if same else ', each with its own split'}"
        )
    return "  ".join(words) or "-"


def _word(value: Any) -> str:
    return "" if value is None else json.dumps(value) if isinstance(value, list | dict) else str(value)


def _best(metric: Metric, column: Sequence[SeedSpread | None]) -> list[int]:
    """Return the places of the best means of a column, none where no two differ or neither direction is better."""
    means = [value.mean for value in column if value is not None]
    if metric.better is None or len(set(means)) < 2:
        return []
    best = min(means) if metric.better == "lower" else max(means)
    return [place for place, value in enumerate(column) if value is not None and value.mean == best]


def _shown(show: Callable[[float], str], value: SeedSpread | None) -> str:
    if value is None:
        return "-"
    return show(value.mean) if value.deviation is None else f"{show(value.mean)} ± {show(value.deviation)}"


def _mean(name: str, value: SeedSpread | None) -> str:
    return _shown(SHOWN.get(name, "{:.4f}".format), None if value is None else SeedSpread(value.mean))


def _table(title: str, heads: list[str], rows: Cells, note: str = "", best: Places = frozenset()) -> None:
    """Print a table: on a terminal as wide as that is, elsewhere with every name in full.

    Args:
        title: above it.
        heads: of its columns.
        rows: its cells.
        note: below it.
        best: the places (row, column) that a terminal shows in bold.
    """
    left = {0} | ({1} if "keys" in heads[1] else set())
    if not (sys.stdout.isatty() and _draw(title, heads, rows, left, best)):
        print(title)
        for cells in _columns([heads, *rows], left):
            print(f"  {cells}")
    if note:
        print(f"  {note}")
    print()


def _draw(title: str, heads: list[str], rows: Cells, left: set[int], best: Places) -> bool:
    """Draw a table, unless its numbers have no room."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    if sum(min(width, 20) if n in left else width for n, width in enumerate(widths)) + 3 * len(heads) > console.width:
        return False
    table = Table(title=title, title_justify="left")
    for number, head in enumerate(heads):
        if number in left:
            table.add_column(head, overflow="fold")
        else:
            table.add_column(head, justify="right", no_wrap=True)
    for number, row in enumerate(rows):
        styles = ["bold" if (number, place) in best else "" for place in range(len(row))]
        table.add_row(*(Text(cell, style) for cell, style in zip(row, styles, strict=True)))
    console.print(table)
    return True


def _columns(rows: Sequence[Sequence[str]], left: set[int]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
