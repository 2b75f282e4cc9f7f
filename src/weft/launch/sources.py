"""The sources of a run, read into one list of examples, with what a split may want to know of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from weft.config import RunConfig
from weft.data.formats import Example, to_examples
from weft.data.load import Row, data_files, read_rows, resolve_source
from weft.data.partition import sample_rows
from weft.errors import DataError
from weft.registry import nearest


@dataclass
class Sources:
    """Examples of several sources in one list."""

    config: RunConfig
    text_only: bool
    """Rows are text to continue, not questions and answers."""
    examples: list[Example] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    """Of every example, the name of its file without endings."""
    values: list[str] = field(default_factory=list)
    """Of every example, the value of split_column, where one is named."""
    dropped: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, *, sample: int | None = None, files: bool = False, public: bool = False) -> range:
        """Read a source; return which examples are its own.

        Args:
            name: of a file, a folder or a hub data set.
            sample: rows used at most; of every file its share, where files are apart.
            files: the files of a folder may differ in their columns, and their names are kept.
            public: it is not split, and need not have the column of the split.

        Raises:
            DataError: it cannot be read, or no row of it can be used.
        """
        source = resolve_source(name, self.config.local_data_dir)
        path = Path(source).expanduser()
        first = len(self.examples)
        if files and path.is_dir():
            found = data_files(path)
            for file in found:
                self._add(str(file), None if sample is None else -(-sample // len(found)), public)
        else:
            self._add(source, sample, public)
        return range(first, len(self.examples))

    def _add(self, source: str, sample: int | None, public: bool) -> None:
        config = self.config
        rows = read_rows(source, split=config.dataset_split, token=config.token or None)
        if sample is not None and len(rows) > sample:
            self._drop("beyond dataset_sample", len(rows) - sample)
            rows = [rows[int(row)] for row in sample_rows(len(rows), sample, seed=config.seed)]
        made = to_examples(
            rows,
            source=source,
            instruction_column=config.instruction_column,
            response_column=config.response_column,
            text_only=self.text_only,
        )
        for reason, count in made.dropped.items():
            self._drop(reason, count)
        if not made.examples:
            raise DataError(
                f"'{source}' has no row that can be used: check its columns and that answers are not empty."
            )
        self.examples += made.examples
        self.origins += [Path(source).name.partition(".")[0]] * len(made.examples)
        if config.split_column is not None and not config.clients:
            self.values += [""] * len(made.rows) if public else _column(rows, made.rows, config.split_column, source)

    def _drop(self, reason: str, count: int) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + count


def _column(rows: Sequence[Row], kept: Sequence[int], column: str, source: str) -> list[str]:
    """Return a column's value of every kept row; DataError if no row has the column."""
    known = list(dict.fromkeys(key for row in rows[:100] for key in row))
    if column not in known:
        guess = nearest(column, known)
        meant = f" Did you mean '{guess}'?" if guess else ""
        names = ", ".join(f"'{name}'" for name in known)
        raise DataError(f"'{source}' has no column '{column}' to split by, but {names}.{meant}")
    values = (rows[row].get(column) for row in kept)
    return ["(none)" if value is None or value == "" else str(value) for value in values]
