"""A study from its checks to its page: settings are chosen, runs are made, and what they came to is written."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from weft.core.files import caused_by_full_disk, full_disk, write_atomic
from weft.errors import ConfigError, RunError
from weft.json_types import JsonObject
from weft.runs.text import spreadsheet_text
from weft.studies.cells import Cell, cells_of, cells_to_choose, check_effects, check_words, first_settings
from weft.studies.choice import Chosen, Place, as_json, choice_measure, choose, settings_of
from weft.studies.ledger import StudyDir
from weft.studies.measures import Measure, asked_measures, measures_of
from weft.studies.outcomes import outcomes_of
from weft.studies.page import as_written, page_of
from weft.studies.picture import draw
from weft.studies.runner import Note, make_runs
from weft.studies.study import Study
from weft.studies.table import Row, records_of, rows_of

TABLE, PICTURE, PAGE, CHOICE = "table.csv", "picture.svg", "study.html", "choice.json"
MOST_NAMED = 3
"""Runs that a message names."""


@dataclass(frozen=True)
class Checked:
    """A study of which nothing is refused any more, as far as can be said before its first run."""

    study: Study
    measures: Sequence[Measure]
    to_choose: Sequence[Cell]
    choice: Measure | None


@dataclass(frozen=True)
class Found:
    """What a study came to."""

    rows: Sequence[Row]
    measures: Sequence[Measure]
    failures: Mapping[str, str]
    unmeasured: Sequence[str]
    """Metrics that no run has a value of."""
    records: Sequence[JsonObject]
    choice: Sequence[JsonObject]
    page: Path


def check(study: Study) -> Checked:
    """Check the configurations of all runs and the metrics, without rows and weights.

    Raises:
        ConfigError: a run that cannot be, a key of the grid without effect, or a metric that no run has.
    """
    check_words(study)
    to_choose, cells = cells_to_choose(study), cells_of(study, first_settings(study))
    check_effects(study, study.arms)
    known: dict[str, Measure] = {}
    for cell in cells:
        if cell.seed == study.seeds[0]:
            try:
                known |= measures_of(cell.config)
            except ConfigError as error:
                raise ConfigError(f"The arm '{cell.arm}' cannot be run. {error}") from None
    measures = asked_measures(study.metrics, known)
    return Checked(study, measures, to_choose, choice_measure(study, to_choose) if to_choose else None)


def planned_cells(checked: Checked) -> list[Cell]:
    """Return all runs of a study; before settings are chosen, the first stands for each of them."""
    return [*checked.to_choose, *cells_of(checked.study, first_settings(checked.study))]


def sweep(
    checked: Checked, *, processes: int = 1, retry: bool = False, note: Note = lambda _: None, command: str = ""
) -> Found:
    """Make what is left of a study, and write its table, picture and page.

    Args:
        checked: the study.
        processes: how many runs are made at a time.
        retry: try runs again that failed.
        note: receives a sentence for each run that ends.
        command: the words that go on with the study.

    Raises:
        ConfigError: the study was begun with other keys, or another process works on it.
        RunError: the disk is full; what is done is kept.
    """
    study = checked.study
    with StudyDir(study.output_dir) as folder:

        def make(cells: Sequence[Cell]) -> dict[str, str]:
            return make_runs(cells, folder, processes=processes, retry=retry, note=note, command=command)

        try:
            folder.record([*checked.to_choose, *([] if checked.to_choose else cells_of(study, {}))])
            failures, chosen = _choose(checked, make, note)
            cells = cells_of(study, settings_of(study, chosen))
            unknown = folder.record([*checked.to_choose, *cells])
            if others := [name for name in unknown if not name.startswith(tuple(f"{arm}, " for arm in study.others))]:
                more = f" and {len(others) - MOST_NAMED} more" if len(others) > MOST_NAMED else ""
                named = "; ".join(others[:MOST_NAMED]) + more
                note(
                    f"of the directory's runs {len(others)} are left out, as the study does not have them now: {named}."
                )
            failures |= make(cells)
            found = _write(checked, cells, chosen, failures, command)
            for name in found.unmeasured:
                note(f"no run has a value of {name}: is there a client of that name?")
            return found
        except OSError as error:
            if not caused_by_full_disk(error):
                raise
            raise RunError(
                f"{full_disk([study.output_dir])}: make room there, then go on by `{command}`; what is done is kept."
            ) from error


def _choose(
    checked: Checked, make: Callable[[Sequence[Cell]], dict[str, str]], note: Note
) -> tuple[dict[str, str], dict[Place, Chosen]]:
    """Make the runs for the choice; return which failed and why, and what was chosen."""
    if checked.choice is None:
        return {}, {}
    note(f"settings are chosen by {checked.choice.name} on held-out rows of the tuning seed.")
    failures = make(checked.to_choose)
    chosen = choose(checked.study, checked.to_choose, checked.choice, failures)
    for (arm, point), one in chosen.items():
        note(f"{', '.join((arm, *point))}: chosen is {one.label} of {len(one.values)} settings.")
    lost = sorted({cell.arm for cell in checked.to_choose if (cell.arm, cell.point) not in chosen})
    if lost:
        note(f"{', '.join(lost)}: no setting was measured, so there is none to go on with.")
    return failures, chosen


def _write(
    checked: Checked, cells: Sequence[Cell], chosen: Mapping[Place, Chosen], failures: dict[str, str], command: str
) -> Found:
    """Write the table, the picture of the first metric, and the page."""
    study, measures = checked.study, checked.measures
    outcomes = outcomes_of(cells)
    rows = rows_of(study, cells, outcomes, measures, chosen, failures)
    records, choice = records_of(rows, measures, list(study.axes)), as_json(chosen)
    pictures = {measures[0].name: draw(rows, measures[0])}
    page = page_of(study.output_dir.name, rows, measures, pictures, failures, choice, as_written(study), command)
    content = {TABLE: _csv(records), PICTURE: pictures[measures[0].name], PAGE: page}
    if choice:
        content[CHOICE] = json.dumps(choice, indent=1) + "\n"
    for name, text in content.items():
        write_atomic(study.output_dir / name, text.encode())
    unmeasured = [one.name for one in measures if any(row.costs for row in rows)]
    unmeasured = [name for name in unmeasured if not any(row.values.get(name) for row in rows)]
    return Found(rows, measures, failures, unmeasured, records, choice, study.output_dir / PAGE)


def _csv(records: Sequence[JsonObject]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]) if records else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: spreadsheet_text(value) for name, value in record.items()} for record in records)
    return text.getvalue()
