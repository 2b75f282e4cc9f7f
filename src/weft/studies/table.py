"""The table of a study: means and standard deviations over seeds, and paired differences from the baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from weft.json_types import JsonObject
from weft.runs.comparison import Outcome, SeedSpread, spread
from weft.runs.fingerprints import read_fingerprints
from weft.runs.layout import RunDir
from weft.studies.cells import Cell
from weft.studies.choice import Chosen, Place
from weft.studies.measures import Measure, value_of
from weft.studies.study import Study
from weft.tasks.paired import verdict
from weft.tasks.paired_seeds import other_rows
from weft.tasks.statistics import Difference, difference

COSTS = ("bytes", "seconds", "tokens", "peak_memory_bytes")


@dataclass(frozen=True)
class Row:
    """An arm at a point of the grid."""

    arm: str
    point: tuple[str, ...]
    setting: str
    """What was chosen for it; "": there was nothing to choose."""
    values: Mapping[str, Mapping[int, float]]
    """By metric and seed: of each seed whose runs all have the metric."""
    costs: Mapping[str, Mapping[int, float]]
    """What a seed's run took, or all of its runs together."""
    differences: Mapping[str, Difference] = field(default_factory=dict)
    """From the baseline at the same point, by metric."""
    whys: Mapping[str, str] = field(default_factory=dict)
    """Why there is no difference, by metric."""
    failed: tuple[str, ...] = ()
    """Names of its runs that failed."""
    ranks: Mapping[str, float] = field(default_factory=dict)
    """Its place among the arms at its point by metric, from 1 for the best; equal ones share a mean place."""

    @property
    def label(self) -> str:
        """How it is called beside others."""
        return ", ".join((self.arm, *self.point))

    def spread(self, metric: str) -> SeedSpread | None:
        """Return the mean of a metric and its standard deviation over seeds; None: there is no value."""
        values = list(self.values.get(metric, {}).values())
        return spread(values) if values else None

    def cost(self, name: str) -> float | None:
        """Return the mean of a cost over seeds."""
        values = list(self.costs.get(name, {}).values())
        return math.fsum(values) / len(values) if values else None

    @property
    def mean_rank(self) -> float | None:
        """The mean of its places over the metrics."""
        return math.fsum(self.ranks.values()) / len(self.ranks) if self.ranks else None


def rows_of(
    study: Study,
    cells: Sequence[Cell],
    outcomes: Mapping[str, Outcome],
    measures: Sequence[Measure],
    chosen: Mapping[Place, Chosen],
    failures: Mapping[str, str],
) -> list[Row]:
    """Return the rows of the table, point by point, in the order of the arms.

    Args:
        study: the study.
        cells: its runs, those for the choice left out.
        outcomes: of the runs that are done, by name.
        measures: its metrics.
        chosen: what was chosen.
        failures: why runs failed, by name.
    """
    groups: dict[Place, list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.arm, cell.point), []).append(cell)
    bases = {place[1]: group for place, group in groups.items() if place[0] == study.baseline}
    rows = []
    for place in sorted(groups, key=lambda place: list(dict.fromkeys(cell.point for cell in cells)).index(place[1])):
        group = groups[place]
        values = {one.name: _values(group, outcomes, one) for one in measures}
        differences, whys = {}, {}
        base = bases.get(place[1], [])
        for one in measures if base and place[0] != study.baseline else ():
            own, others = values[one.name], _values(base, outcomes, one)
            if why := _why_apart(base, group, outcomes, one, own.keys() & others.keys()):
                whys[one.name] = why
            elif own.keys() & others.keys():
                differences[one.name] = difference(others, own)
        label = chosen[place].label if place in chosen else ""
        failed = tuple(cell.name for cell in group if cell.name in failures)
        costs = {name: _costs(group, outcomes, name) for name in COSTS}
        rows.append(Row(*place, label, values, costs, differences, whys, failed))
    return [replace(row, ranks=_ranks(row, rows, measures)) for row in rows]


def _ranks(row: Row, rows: Sequence[Row], measures: Sequence[Measure]) -> dict[str, float]:
    """Return the place of a row by each metric of which some values are better than others.

    Seeds differ, so places are those over the seeds that all arms with values have; without one there are none.
    """
    ranks = {}
    for one in measures:
        values = {
            other.arm: some for other in rows if other.point == row.point and (some := other.values.get(one.name))
        }
        if row.arm not in values or one.lower is None:
            continue
        seeds = sorted(set.intersection(*(set(some) for some in values.values())))
        means = {arm: math.fsum(some[seed] for seed in seeds) for arm, some in values.items()}
        if seeds:
            own = means[row.arm]
            better = sum(mean < own if one.lower else mean > own for mean in means.values())
            ranks[one.name] = better + (sum(mean == own for mean in means.values()) + 1) / 2
    return ranks


def _by_seed(group: Sequence[Cell], outcomes: Mapping[str, Outcome]) -> dict[int, list[Outcome]]:
    """Return the outcomes of each seed whose runs are all done."""
    seeds: dict[int, list[Outcome | None]] = {}
    for cell in group:
        seeds.setdefault(cell.seed, []).append(outcomes.get(cell.name))
    return {seed: [one for one in some if one is not None] for seed, some in seeds.items() if None not in some}


def _values(group: Sequence[Cell], outcomes: Mapping[str, Outcome], measure: Measure) -> dict[int, float]:
    found = {}
    for seed, some in _by_seed(group, outcomes).items():
        values = [value_of(one, measure) for one in some]
        known = [value for value in values if value is not None]
        if len(known) == len(values):
            found[seed] = math.fsum(known) / len(known)
    return found


def _costs(group: Sequence[Cell], outcomes: Mapping[str, Outcome], name: str) -> dict[int, float]:
    """Return what the runs of each seed took in all; of memory the most that one of them took."""
    found = {}
    for seed, some in _by_seed(group, outcomes).items():
        if name == "bytes":
            values = [float(one.summary["bytes_up"]) + float(one.summary["bytes_down"]) for one in some]
        else:
            values = [float(one.summary.get(name) or 0) for one in some]
        found[seed] = max(values) if name == "peak_memory_bytes" else math.fsum(values)
    return found


def _why_apart(
    base: Sequence[Cell],
    group: Sequence[Cell],
    outcomes: Mapping[str, Outcome],
    measure: Measure,
    seeds: Sequence[int] | frozenset[int] | set[int],
) -> str:
    """Return why the runs of an arm were not measured on the rows of the baseline's; "": nothing says so."""
    first, second = _by_seed(base, outcomes), _by_seed(group, outcomes)
    for seed in sorted(seeds):
        for one in second[seed]:
            digests = {run.path: _digests(run, measure) for run in (first[seed][0], one)}
            if not measure.of_task:
                why = other_rows(first[seed][0], one, digests)
            else:
                same = len({str(sorted(some.items())) for some in digests.values()}) == 1
                why = "" if same else f"the items of {' or '.join(measure.tasks)} differ"
            if why:
                return why
    return ""


def _digests(run: Outcome, measure: Measure) -> dict[str, str]:
    known = read_fingerprints(RunDir(run.path))
    if measure.of_task:
        names = {f"the evaluation task '{task}'" for task in measure.tasks}
        return {name: digest for name, digest in known.items() if name in names}
    return {name: digest for name, digest in known.items() if "data" in name or "rows" in name}


def shows(row: Row, measure: Measure) -> str:
    """Return what the difference of a row shows in words."""
    found = row.differences.get(measure.name)
    if found is None:
        return ""
    return "one seed: no interval" if found.interval is None else verdict(found, measure.lower)


def records_of(rows: Sequence[Row], measures: Sequence[Measure], axes: Sequence[str]) -> list[JsonObject]:
    """Return the table as plain data, a record for each row and metric, as a data frame or a CSV file takes it."""
    records = []
    for row in rows:
        for measure in measures:
            found, mean = row.differences.get(measure.name), row.spread(measure.name)
            interval = (found.interval if found is not None else None) or (None, None)
            record: JsonObject = {"arm": row.arm, **dict(zip(axes, row.point, strict=True)), "setting": row.setting}
            record |= {
                "metric": measure.name,
                "seeds": " ".join(map(str, sorted(row.values.get(measure.name, {})))),
                "mean": None if mean is None else mean.mean,
                "deviation": None if mean is None else mean.deviation,
                "difference": None if found is None else found.value,
                "low": interval[0],
                "high": interval[1],
                "shows": shows(row, measure) or row.whys.get(measure.name, ""),
                "rank": row.ranks.get(measure.name),
                "failed": len(row.failed),
            }
            records.append(record | {name: row.cost(name) for name in COSTS})
    return records
