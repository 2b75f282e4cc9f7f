"""One page about several runs: what stands in which column, what can be said of the differences, what each took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from weft.core.declarations import TRAIN_LOSS, Metric
from weft.pages.charts import Chart, Series
from weft.pages.comparison_tables import cells_of, keys_text, metric_tables, task_tables
from weft.pages.curves import points_of
from weft.pages.differences import CAUTION, Pair, data_digests, difference_cells, differences_of_seeds
from weft.pages.html import facts, folded, page, paragraph, quantity, section, table, text
from weft.pages.measured import Measured, difference_text, leading, measured, paired, shows
from weft.pages.record import RunRecord, folder_of_seeds, short_names
from weft.pages.training import LABELS, header
from weft.runs.comparison import COSTS, ComparisonRow, compared_metrics, spread
from weft.runs.text import human_bytes, human_duration, plural
from weft.tasks.paired import Evaluation
from weft.tasks.paired_seeds import SeedDifference, in_common, other_rows

MOST_CURVES = 12
"""Rows of runs that are drawn into one picture."""
MOST_RUNS = 200
"""Runs whose facts are listed at the end."""


@dataclass(frozen=True)
class Compared:
    """What a page compares."""

    rows_by_verb: Mapping[str, list[ComparisonRow]]
    records: Mapping[str, RunRecord]
    """By path."""
    evaluations: Mapping[str, Evaluation]
    pairs: Sequence[Pair]
    metric: str | None = None
    """What the page begins with; None: `weft.pages.measured.leading` chooses."""


def comparison(given: Compared) -> bytes:
    """Return the page.

    Raises:
        ConfigError: no run has the metric.
    """
    names = short_names([*given.records, *given.evaluations])
    rows = [row for some in given.rows_by_verb.values() for row in some]
    names |= short_names([folder for row in rows if (folder := folder_of_seeds(row.paths))])
    key = leading(list(given.records.values()), given.metric) if given.records else None
    body = [f"<h1>{text(_title(given, names))}</h1>"]
    for verb, rows in given.rows_by_verb.items():
        labels = [label_of(row, names) for row in rows]
        if len(given.rows_by_verb) > 1:
            body.append(f"<h2>{text(verb)}</h2>")
        body += _of_verb(given, rows, labels, key)
    body.append(section("Evaluation tasks", task_tables(given.evaluations, given.pairs, names)))
    body.append(section("The runs", *_runs(given, names)))
    body.append(paragraph("Written by `weft compare RUN... --html PAGE` from the files in the runs' directories."))
    return page(f"{_title(given, names)} - Weft comparison", body)


def label_of(row: ComparisonRow, names: Mapping[str, str]) -> str:
    """Return how a row of runs is called."""
    folder = folder_of_seeds(row.paths)
    more = "" if len(row.paths) == 1 else f" + {plural(len(row.paths) - 1, 'seed')}"
    name = f"{names[folder]}, {len(row.paths)} seeds" if folder else names[row.paths[0]] + more
    return f"{name} ({row.mark})" if row.mark else name


def _title(given: Compared, names: Mapping[str, str]) -> str:
    shown = [label_of(row, names) for rows in given.rows_by_verb.values() for row in rows] or list(names.values())
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")


def _of_verb(given: Compared, rows: list[ComparisonRow], labels: list[str], key: str | None) -> list[str]:
    """Return the parts of a page on the runs of one verb."""
    keys = [[label, keys_text(row)] for label, row in zip(labels, rows, strict=True)]
    seeds = [
        _seeds(label, labels[0], found, why)
        for (row, found, why), label in ((one, labels[rows.index(one[0])]) for one in differences_of_seeds(rows))
    ]
    costs = [name for name in COSTS if any(name in row.costs() for row in rows)]
    cost_rows = [[label, *(_cost(name, row) for name in costs)] for label, row in zip(labels, rows, strict=True)]
    plain = [label.removesuffix(f" ({row.mark})") for label, row in zip(labels, rows, strict=True)]
    pictures = "".join(chart.html() for chart in _charts(given, rows, plain, key))
    return [
        _result(given, rows, labels, key) if key else paragraph("Nothing was measured on held-out rows."),
        section("Quality against cost, and curves", f'<div class="charts">{pictures}</div>' if pictures else ""),
        section("Scores", metric_tables(rows, labels)),
        section("Differences over common seeds", *seeds),
        section("What it took", table(["run", *(LABELS.get(name, name) for name in costs)], cost_rows)),
        section("Keys that differ", table(["run", "keys"], keys, words=(0, 1))),
    ]


def _cost(name: str, row: ComparisonRow) -> str | None:
    return cells_of(row.costs().get(name), lambda value: str(quantity(name, value)))


def _result(given: Compared, rows: list[ComparisonRow], labels: list[str], key: str) -> str:
    """Return the table of the leading metric: each row, and its difference from the first one."""
    metrics = {
        path: found for row in rows for path in row.paths if (found := measured(given.records[path], key)) is not None
    }
    if not metrics:
        return paragraph(f"None of these runs has {key}.")
    digests = data_digests([path for row in rows for path in row.paths])
    by_seed = {id(row): found for row, found, _ in differences_of_seeds(rows)}
    cells, notes = [], []
    for label, row in zip(labels, rows, strict=True):
        own = [metrics[path] for path in row.paths if path in metrics]
        if not own:
            notes.append(f"{label} has no {key}.")
            continue
        value = spread([one.value for one in own])
        line: list[object] = [label, cells_of(value, lambda number: str(quantity(key, number)))]
        difference: list[object] = [None, None, None]
        begun, other = in_common(rows[0], row)
        first = metrics.get(begun.path)
        if row is not rows[0] and first is not None and other.path in metrics:
            why = other_rows(begun, other, digests)
            if why:
                notes.append(f"{label} and {labels[0]} were not measured on the same rows ({why}): not compared.")
            else:
                alone = len(row.paths) == 1
                difference = _difference(first, metrics[other.path], by_seed.get(id(row), []), alone=alone)
        cells.append([*line, *difference, own[0].of])
    name = next(iter(metrics.values()))
    direction = f" ({name.better} is better)" if name.better else ""
    heads = ["run", name.label, f"difference from {labels[0]}", "95 % interval over", "shows", "measured on"]
    words = "a ± b is the mean and the standard deviation (n - 1) over seeds. Differences are paired."
    return (
        f'<p class="result"><small>{text(name.label)}{direction}</small></p>'
        + table(heads, cells, words=(0, 5))
        + "".join(map(paragraph, [words, *notes]))
    )


def _difference(first: Measured, second: Measured, seeds: Sequence[SeedDifference], *, alone: bool) -> list[object]:
    """Return the cells of a difference: over common seeds where there are two, else over the clients of two runs."""
    scale = second.key if second.share else ""
    for one in seeds:
        if one.metric == second.key and one.kind == second.of:
            number, _, _ = difference_cells(scale, one.difference, one.verdict)
            return [number, f"{len(one.seeds)} seeds", one.verdict]
    found = paired(first, second) if alone else None
    if found is None:
        return [None, None, None]
    return [difference_text(second, found), f"{found.count} clients", shows(found, second.better)]


def _charts(given: Compared, rows: list[ComparisonRow], labels: list[str], key: str | None) -> list[Chart]:
    """Return pictures of the leading metric against bytes and seconds, and of the curves of all runs."""
    drawn = list(zip(rows, labels, strict=True))[:MOST_CURVES]
    left_out = f"{MOST_CURVES} of {len(rows)} rows are drawn." if len(rows) > MOST_CURVES else ""
    charts = []
    if key is not None:
        found = [(row, label, one) for row, label in drawn if (one := measured(given.records[row.paths[0]], key))]
        for x_label, write, cost in (("bytes sent", human_bytes, _bytes), ("time", human_duration, _seconds)):
            series = [
                Series(label, [(cost(row), spread([_value(given, path, key) for path in row.paths]).mean)])
                for row, label, _ in found
                if all(measured(given.records[path], key) for path in row.paths)
            ]
            if series:
                share = all(one.share for _, _, one in found)
                title = f"{found[0][2].label} against {x_label}"
                charts.append(Chart(title, series, x_label, share, note=left_out, x_text=write))
    panels: list[tuple[Metric, str]] = [(TRAIN_LOSS, "round")]
    panels += [(metric, "eval") for metric in compared_metrics() if metric.look.panel]
    for metric, event in panels:
        series = [_curve(given, row, label, metric.name, event) for row, label in drawn]
        if any(len(one.points) > 1 for one in series):
            name = metric.label if event == "round" else f"evaluation {metric.label}"
            charts.append(Chart(name, series, share=metric.share, note=left_out))
    return charts


def _curve(given: Compared, row: ComparisonRow, label: str, name: str, event: str) -> Series:
    """Return the mean curve of a row of runs, with the range of its seeds."""
    values: dict[float, list[float]] = {}
    for path in row.paths:
        for round, value in points_of(given.records[path].events(event), name):
            values.setdefault(round, []).append(value)
    points = [(round, spread(some).mean) for round, some in sorted(values.items())]
    band = [(round, min(some), max(some)) for round, some in sorted(values.items()) if len(some) > 1]
    return Series(label, points, band, "seeds")


def _value(given: Compared, path: str, key: str) -> float:
    found = measured(given.records[path], key)
    return found.value if found else float("nan")


def _bytes(row: ComparisonRow) -> float:
    costs = row.costs()
    return sum(costs[name].mean for name in ("bytes_up", "bytes_down") if name in costs)


def _seconds(row: ComparisonRow) -> float:
    costs = row.costs()
    return costs["seconds"].mean if "seconds" in costs else 0.0


def _seeds(label: str, first: str, found: Sequence[SeedDifference], why: str) -> str:
    """Return how a row of runs differs from the first one over the seeds that both have."""
    title = f"<h3>{text(label)} less {text(first)}</h3>"
    if why:
        return title + paragraph(f"No difference, because they were not measured on the same rows ({why}).")
    cells = [
        [one.kind, one.metric, len(one.seeds), *difference_cells("", one.difference, one.verdict)] for one in found
    ]
    heads = ["measured", "metric", "seeds", "difference (95 % interval)", "shows", "smallest visible"]
    return title + table(heads, cells, words=(0, 1)) + paragraph(CAUTION)


def _runs(given: Compared, names: Mapping[str, str]) -> list[str]:
    shown = [_run(record, names[path]) for path, record in list(given.records.items())[:MOST_RUNS]]
    more = len(given.records) - len(shown)
    return [*shown, *([paragraph(f"and {more} more")] if more else [])]


def _run(record: RunRecord, name: str) -> str:
    return folded(name, header(record) + facts({"directory": str(record.run.path)}))
