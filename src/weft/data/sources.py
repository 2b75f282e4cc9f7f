"""Reading sources: selecting files, parts and samples, and recording where every example is from."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from weft.config import RunConfig
from weft.data.cleaning.cleaner import Sample
from weft.data.documents import Documents
from weft.data.encode import NO_ANSWER, ConversationTable
from weft.data.formats import no_column
from weft.data.load import data_files, read_rows, resolve_source
from weft.data.pairs import PairTable
from weft.data.partition import sample_rows
from weft.data.parts import DEFAULT_SELECTION, Selection
from weft.data.prompts import PromptTable
from weft.data.rows import NO_SIGN, Account, File, Omissions, PlacedRows
from weft.data.sets import saved_set
from weft.data.templates import EMPTY_THOUGHT, ChatTemplate, Template
from weft.errors import DataError
from weft.keys.privacy import unit_kind

BEYOND_SAMPLE = "beyond dataset_sample"


@dataclass
class Sources:
    """Examples of several sources; `Conversations`, `Judgements` and `Texts` define their kind."""

    config: RunConfig
    origins: list[str] = field(default_factory=list)
    """Of every example, the name of its file without suffixes."""
    values: list[str] = field(default_factory=list)
    """Of every example, the value of split_column, where one is named."""
    unit_values: list[str | None] = field(default_factory=list)
    """Of every example, its value of the column that privacy_unit names, or ""; None: its source has no such column."""
    unit_fault: DataError | None = None
    """Which source has no such column, and what columns it has."""
    account: Account = field(default_factory=Account)
    """Counts of the rows that were read and left out, and sentences on files, parts and columns."""
    files: list[File] = field(default_factory=list)
    file_index: array[int] = field(default_factory=lambda: array("i"))
    numbers: array[int] = field(default_factory=lambda: array("q"))
    """Of every example the line or row in its file."""

    def place(self, example: int) -> str:
        """Return the file and line of an example for a message; "" if it is not recorded, as of plain text."""
        return (
            self.files[self.file_index[example]].place(self.numbers[example]) if example < len(self.file_index) else ""
        )

    def add(
        self,
        name: str,
        *,
        sample: int | None = None,
        files: bool = False,
        public: bool = False,
        held_out: bool = False,
    ) -> np.ndarray:
        """Read a source; return the numbers of its examples.

        Args:
            name: of a file, a folder or a hub data set.
            sample: the most rows to use; with `files`, divided among the files.
            files: read the files of a folder separately: their columns may differ, and each is an origin.
            public: the rows are not split, and need not have the column of the split.
            held_out: the rows are evaluated on, and not trained on.

        Raises:
            DataError: it cannot be read, has no such part, or no row of it can be used.
        """
        source = resolve_source(name, self.config.local_data_dir)
        path = Path(source).expanduser()
        selection = replace(selection_of(self.config, held_out=held_out, public=public), log=self.log)
        if not (files and path.is_dir() and not saved_set(path)):
            return self._add(source, selection, sample, public)
        if selection.request.piece is not None:
            raise DataError(
                f"The slice '{selection.split}' of a folder whose files are clients could leave some without rows: "
                "name the part alone, and write --dataset_sample N."
            )
        data_paths = data_files(path, selection)
        sample_each = None if sample is None else -(-sample // len(data_paths))
        numbers = []
        for file, origin in zip(data_paths, _origins(data_paths, path), strict=True):
            numbers.append(self._add(str(file), DEFAULT_SELECTION, sample_each, public))
            self.origins[-len(numbers[-1]) :] = [origin] * len(numbers[-1])
        return np.concatenate(numbers)

    def log(self, text: str) -> None:
        """Add a sentence for the user to the account."""
        self.account.note(text)

    def _add(self, source: str, selection: Selection, sample: int | None, public: bool) -> np.ndarray:
        raise TypeError(f"{type(self).__name__} must define _add")

    def like(self, numbers: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Return the examples that may equal one of the others: a cheap filter before `marks` are compared."""
        return numbers

    def marks(self, numbers: np.ndarray) -> list[bytes]:
        """Return a digest of each example's content; equal examples have equal digests."""
        raise TypeError(f"{type(self).__name__} must define marks")

    def texts(self, numbers: np.ndarray) -> list[str]:
        """Return the text of these examples."""
        raise TypeError(f"{type(self).__name__} must define texts")

    def samples(self, numbers: np.ndarray) -> list[Sample]:
        """Return these examples as cleaners see them."""
        raise TypeError(f"{type(self).__name__} must define samples")

    def rewrite(self, changes: Mapping[int, Sample]) -> dict[int, int]:
        """Put other texts into examples; return the new number of each that gets one."""
        raise TypeError(f"{type(self).__name__} must define rewrite")

    def answers(self, numbers: np.ndarray) -> list[str] | None:
        """Return the answers of these examples if they form a closed set, else None."""
        return None

    def labels(self, numbers: np.ndarray) -> list[str] | None:
        """Return a label of each example: its value of split_column, else its answer if answers are few; else None."""
        return [self.values[number] for number in numbers] if self.values else self.answers(numbers)

    def _read(self, source: str, selection: Selection, sample: int | None) -> PlacedRows:
        """Return the rows of a source, or `sample` of them."""
        rows, account = read_rows(source, selection, token=self.config.token or None), self.account
        account.row_counts[source] = account.row_counts.get(source, 0) + rows.num_read()
        account.omissions.merge(rows.omissions)
        account.notes.update(dict.fromkeys(rows.notes))
        if sample is not None and len(rows) > sample:
            account.omissions.add(BEYOND_SAMPLE, count=len(rows) - sample)
            rows = rows.pick(int(row) for row in sample_rows(len(rows), sample, seed=split_seed(self.config)))
        return rows

    def _remember_rows(
        self, source: str, rows: PlacedRows, numbers: Sequence[int], omissions: Omissions, public: bool
    ) -> None:
        """Record file, place and value of split_column of the usable rows; DataError if there are none."""
        if not numbers:
            raise DataError(
                f"'{source}' has no row that can be used ({omissions.reasons()}): mend the rows, or name other columns."
            )
        self.account.omissions.merge(omissions)
        self.origins += [origin_of(source)] * len(numbers)
        self.file_index.extend(array("i", (len(self.files) + rows.file_index[row] for row in numbers)))
        self.numbers.extend(array("q", (rows.numbers[row] for row in numbers)))
        self.files += rows.files
        if self._has_split_column:
            column = self.config.split_column or ""
            self.values += [""] * len(numbers) if public else _column(rows, numbers, column, source)
            self.account.unread_columns.pop(column, None)
        if unit_kind(self.config.privacy_unit) == "column":
            self._remember_units(rows, numbers, self.config.privacy_unit, source)

    def _remember_units(self, rows: PlacedRows, numbers: Sequence[int], column: str, source: str) -> None:
        """Record the value of the unit's column; rows that nobody trains on need not have it."""
        try:
            self.unit_values += _column(rows, numbers, column, source, f" for privacy_unit '{column}'", "")
        except DataError as fault:
            self.unit_fault = self.unit_fault or fault
            self.unit_values += [None] * len(numbers)
        self.account.unread_columns.pop(column, None)

    @property
    def _has_split_column(self) -> bool:
        return self.config.split_column is not None and not self.config.clients

    def drop(self, reason: str, count: int) -> None:
        """Count rows that are left out."""
        self.account.omissions.add(reason, count=count)


def complete(
    sources: Sources, table: ConversationTable | Documents | PairTable | PromptTable, template: Template | None
) -> None:
    """Add the rows that tokenizing left out to the account; DataError if the table has no rows."""
    account, omissions = sources.account, {} if isinstance(table, Documents) else table.omissions
    for reason, (count, first) in omissions.items():
        account.omissions.add(reason, sources.place(first), count)
    for note in template.notes if isinstance(template, ChatTemplate) else ():
        # Prompts end before the answer, so that an empty thought before it is never learnt.
        if note != EMPTY_THOUGHT or not isinstance(table, PromptTable):
            account.note(note)
    account.num_examples = len(sources.origins) - sum(count for count, _ in omissions.values())
    # A sample of documents is drawn after all of them have an origin; of other rows, before.
    if isinstance(table, Documents):
        account.num_examples -= account.omissions.get(BEYOND_SAMPLE, (0, ""))[0]
    if len(table):
        return
    if set(omissions) <= {NO_ANSWER}:
        length = sources.config.seq_length
        raise DataError(f"No row has a token of its answer within seq_length ({length}): write a larger --seq_length.")
    raise DataError(
        f"No row can be used ({account.omissions.reasons()}): write --template alpaca or vicuna, or a template of your "
        "own after --prompt_template."
    )


def selection_of(config: RunConfig, *, held_out: bool = False, public: bool = False) -> Selection:
    """Return the selection of rows that a run trains or evaluates on; public rows have no requested part."""
    split = config.eval_dataset_split if held_out else config.dataset_split
    return Selection(None if public else split, held_out, preferences=config.objective == "preference")


def split_seed(config: RunConfig) -> int:
    """Return the seed for sampling, splitting and holding out rows."""
    return config.seed if config.split_seed is None else config.split_seed


def digest(content: bytes) -> bytes:
    """Return a digest of 16 bytes."""
    return hashlib.blake2b(content, digest_size=16).digest()


def _origins(files: Sequence[Path], folder: Path) -> list[str]:
    """Return a client's name for each file: the file's, with its folders if names alone are not unique."""
    names = [origin_of(str(file)) for file in files]
    if len(set(names)) == len(names):
        return names
    return [file.relative_to(folder).as_posix().partition(".")[0] for file in files]


def origin_of(source: str) -> str:
    """Return the name for a client of this source: the file's name without suffixes."""
    return Path(source).name.partition(".")[0]


def _column(
    rows: PlacedRows,
    numbers: Sequence[int],
    column: str,
    source: str,
    purpose: str = " to split by",
    missing: str = "(none)",
) -> list[str]:
    """Return the values of a column in these rows, or `missing`; DataError if no row has the column."""
    columns = list(dict.fromkeys(key for row in rows[:100] for key in row))
    if column not in columns:
        raise no_column(source, column, columns, purpose)
    values = (rows[row].get(column) for row in numbers)
    return [missing if value is None or value == "" else NO_SIGN.sub("\ufffd", str(value)) for value in values]
