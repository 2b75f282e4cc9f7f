"""Runs and evaluations side by side, opened from their folders: for tables, a page, and a data frame."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from weft.config import VOLATILE
from weft.core.files import write_atomic
from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.launch.run import Run
from weft.runs.comparison import COSTS, KINDS, ComparisonRow, Outcome, compared_metrics, tables
from weft.runs.layout import RunDir
from weft.runs.start import CONFIG, STUDY, STUDY_RUNS
from weft.runs.task_scores import SETTINGS

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Opened:
    """What is compared."""

    runs: list[Run]
    folders: list[str]
    """Of evaluations."""
    outcomes: list[Outcome]

    @classmethod
    def of(cls, names: Sequence[str]) -> Opened:
        """Open runs and folders of evaluations, each once; a folder of runs, such as a study's, stands for these.

        Raises:
            ConfigError: one is neither, or a run is not finished.
        """
        from weft.tasks.paired import is_evaluation

        names = [one for name in names for one in _runs_in(name)]
        by_path = {Path(name).resolve(): name for name in reversed(names)}
        ordered = [(path, by_path[path]) for path in dict.fromkeys(Path(name).resolve() for name in names)]
        folders = [name for path, name in ordered if is_evaluation(path)]
        runs = [Run(name) for path, name in ordered if not is_evaluation(path)]
        return cls(runs, folders, [_outcome(run) for run in runs])

    def rows(self) -> dict[str, list[ComparisonRow]]:
        """Return the lines of each verb's table."""
        return tables(self.outcomes, VOLATILE)

    def write_page(self, path: Path, metric: str | None) -> None:
        """Write the page about all of them.

        Raises:
            ConfigError: no run has the metric, or the file cannot be written.
        """
        from weft.pages.comparison import Compared, comparison
        from weft.pages.differences import evaluations_of, pairs_of
        from weft.pages.record import RunRecord

        rows = self.rows()
        records = {str(run.path): RunRecord.read(run.path) for run in self.runs}
        evaluations = evaluations_of([run.path for run in self.runs], self.folders)
        pairs = pairs_of(evaluations, [row for some in rows.values() for row in some])
        made = comparison(Compared(rows, records, evaluations, pairs, metric))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, made)
        except OSError as error:
            raise ConfigError(
                f"The page '{path}' cannot be written ({error.strerror}): give another --html."
            ) from error

    def check_metric(self, metric: str | None) -> None:
        """Refuse a metric that no run has; ConfigError."""
        from weft.pages.measured import leading
        from weft.pages.record import RunRecord

        leading([RunRecord.read(run.path) for run in self.runs], metric)


def lines(rows_by_verb: dict[str, list[ComparisonRow]]) -> list[JsonObject]:
    """Return a line for each row of runs and each kind of its scores; deviations over seeds beside the means."""
    keys = list(dict.fromkeys(key for rows in rows_by_verb.values() for row in rows for key in row.keys))
    numbers = (*(metric.name for metric in compared_metrics()), *COSTS)
    found = []
    for verb, rows in rows_by_verb.items():
        for row in rows:
            for kind in KINDS:
                if scores := row.scores(kind):
                    values = scores | row.costs()
                    line: JsonObject = {"verb": verb, "runs": row.paths, "seeds": row.seeds}
                    line |= {key: row.keys.get(key) for key in keys}
                    line |= {"note": row.mark, "measured": kind, "n": row.rows()}
                    for name in numbers:
                        one = values.get(name)
                        line[name], line[f"{name}_deviation"] = (None, None) if one is None else tuple(one)
                    found.append(line)
    return found


def to_frame(rows_by_verb: dict[str, list[ComparisonRow]]) -> pandas.DataFrame:
    """Return the lines as a data frame, without the columns that no run has a value of."""
    import pandas

    frame = pandas.DataFrame(lines(rows_by_verb))
    return frame.dropna(axis="columns", how="all")


def _runs_in(name: str) -> list[str]:
    """Return the finished runs of a study, or in a folder and in its folders; the name itself where there are none.

    The runs by which a study chose its settings are not among them.
    """
    folder = Path(name)
    if (folder / CONFIG).exists() or (folder / SETTINGS).exists():
        return [name]
    if (folder / STUDY).exists():
        files = _in_order(folder)
    else:
        files = sorted([*folder.glob(f"*/{CONFIG}"), *folder.glob(f"*/*/{CONFIG}")])
    found = [RunDir(file.parent) for file in files]
    runs = [run for run in found if run.holds_run]
    for run in runs:
        if not run.summary_file.exists():
            print(f"weft: the run in '{run.path}' is not finished; it is left out.", file=sys.stderr)
    return [str(run.path) for run in runs if run.summary_file.exists()] or [name]


def _in_order(study: Path) -> list[Path]:
    """Return the configurations of a study's runs as the study has them, so that its first arm is the first line."""
    try:
        planned = [Path(keys["output_dir"]).parts for keys in json.loads((study / STUDY).read_text("utf-8")).values()]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ConfigError(f"'{study / STUDY}' is damaged: bring it back, or name runs of the study.") from None

    def place(file: Path) -> tuple[int, Path]:
        own = file.parent.relative_to(study).parts  # the study may have been moved since
        return next((at for at, parts in enumerate(planned) if parts[-len(own) :] == own), len(planned)), file

    return sorted((study / STUDY_RUNS).rglob(CONFIG), key=place)


def _outcome(run: Run) -> Outcome:
    """Return what is compared of a run: its configuration and summary, and whether its models are personal."""
    config, summary = run.config, run.summary
    personal = False
    # Personal models stay at their sites, so that the server's summary does not list them.
    if config.runtime == "nvflare" and not summary.get("models"):
        from weft.launch.compose import plan

        personal = plan(config).personal
    return Outcome(str(run.path), config.model_dump(mode="json"), summary, personal)
