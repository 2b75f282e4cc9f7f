"""The sources of a run: conversations read into one list, or text tokenized to disk; both with what a split looks at.

Examples are numbered through all sources. A table has for some of them rows to train on.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from weft.config import RunConfig
from weft.data.documents import Documents
from weft.data.encode import Encoded, closed_set, encode
from weft.data.formats import Example, Examples, no_column, to_examples
from weft.data.load import data_files, read_rows, resolve_source
from weft.data.pairs import PairTable, encode_preferences
from weft.data.partition import sample_rows
from weft.data.preferences import Preference, to_preferences
from weft.data.prompts import PromptTable, encode_prompts
from weft.data.rows import NO_SIGN, Account, File, Left, Rows
from weft.data.store import Report, Store, open_store
from weft.data.texts import TextSource, text_sources
from weft.data.tokens import TextTokenizer
from weft.errors import DataError
from weft.models.prompts import lead_of
from weft.rewards.builtin import NEEDS_ANSWER

BEYOND = "beyond dataset_sample"


@dataclass
class Sources:
    """Examples of several sources; `Conversations`, `Judgements` and `Texts` say what they are."""

    config: RunConfig
    origins: list[str] = field(default_factory=list)
    """Of every example, the name of its file without endings."""
    values: list[str] = field(default_factory=list)
    """Of every example, the value of split_column, where one is named."""
    account: Account = field(default_factory=Account)
    """What was read, left out and not used."""
    files: list[File] = field(default_factory=list)
    which: array[int] = field(default_factory=lambda: array("i"))
    numbers: array[int] = field(default_factory=lambda: array("q"))
    """Of every example its file, and its place in it."""

    def place(self, example: int) -> str:
        """Return where the row of an example stands, in words; "" where that is not kept."""
        return self.files[self.which[example]].place(self.numbers[example]) if example < len(self.which) else ""

    def add(self, name: str, *, sample: int | None = None, files: bool = False, public: bool = False) -> np.ndarray:
        """Read a source; return the numbers of its examples.

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
        if not (files and path.is_dir()):
            return self._add(source, sample, public)
        found = data_files(path)
        each = None if sample is None else -(-sample // len(found))
        return np.concatenate([self._add(str(file), each, public) for file in found])

    def _add(self, source: str, sample: int | None, public: bool) -> np.ndarray:
        raise TypeError(f"{type(self).__name__} must define _add")

    def texts(self, numbers: np.ndarray) -> list[str]:
        """Return the words of these examples."""
        raise TypeError(f"{type(self).__name__} must define texts")

    def answers(self, numbers: np.ndarray) -> list[str] | None:
        """Return the answers of these examples where they are few, else None."""
        return None

    def labels(self, numbers: np.ndarray) -> list[str] | None:
        """Return the label of each: of the column that is named, else its answer where these are few."""
        return [self.values[number] for number in numbers] if self.values else self.answers(numbers)

    def _read(self, source: str, split: str | None, sample: int | None) -> Rows:
        """Return the rows of a source, or `sample` of them."""
        rows, account = read_rows(source, split=split, token=self.config.token or None), self.account
        account.read[source] = account.read.get(source, 0) + rows.read()
        account.left.take(rows.left)
        account.notes.update(dict.fromkeys(rows.notes))
        if sample is not None and len(rows) > sample:
            account.left.add(BEYOND, count=len(rows) - sample)
            rows = rows.pick(int(row) for row in sample_rows(len(rows), sample, seed=self.config.seed))
        return rows

    def _know(self, source: str, rows: Rows, kept: Sequence[int], left: Left, public: bool) -> None:
        """Remember of the rows that were kept where they are from, and their value of the column of the split."""
        if not kept:
            raise DataError(
                f"'{source}' has no row that can be used ({left.reasons()}): mend the rows, or name other columns."
            )
        self.account.left.take(left)
        self.origins += [origin_of(source)] * len(kept)
        self.which.extend(array("i", (len(self.files) + rows.which[row] for row in kept)))
        self.numbers.extend(array("q", (rows.numbers[row] for row in kept)))
        self.files += rows.files
        if self._labelled:
            column = self.config.split_column or ""
            self.values += [""] * len(kept) if public else _column(rows, kept, column, source)
            self.account.unused.pop(column, None)

    @property
    def _labelled(self) -> bool:
        return self.config.split_column is not None and not self.config.clients


@dataclass
class Conversations(Sources):
    """Questions and answers, in memory."""

    examples: list[Example] = field(default_factory=list)

    def _add(self, source: str, sample: int | None, public: bool) -> np.ndarray:
        config, first = self.config, len(self.examples)
        rows = self._read(source, config.dataset_split, sample)
        made = self._made(rows, source)
        self._know(source, rows, made.rows, made.left, public)
        self.examples += made.examples
        return np.arange(first, len(self.examples))

    def _made(self, rows: Rows, source: str, asked: bool = False) -> Examples:
        config = self.config
        return to_examples(
            rows,
            source=source,
            instruction_column=config.instruction_column,
            response_column=config.response_column,
            prefix=config.instruction_prefix,
            asked=asked,
            account=self.account,
        )

    def table(self, tokenizer: Any, template: Any) -> Encoded:
        """Return the rows of all examples."""
        config = self.config
        return encode(
            self.examples,
            tokenizer,
            template,
            seq_length=config.seq_length,
            truncation_side=config.truncation_side,
            lead=lead_of(config),
        )

    def texts(self, numbers: np.ndarray) -> list[str]:
        """Return all that is said in these examples."""
        return [" ".join(turn.text for turn in self.examples[number].turns) for number in numbers]

    def answers(self, numbers: np.ndarray) -> list[str] | None:
        """Return the answers where they are few."""
        answers = [self.examples[number].answer.strip() for number in numbers]
        return answers if closed_set(answers) else None


@dataclass
class Prompts(Conversations):
    """Questions that the model answers itself, in memory."""

    needs_answer: bool = field(kw_only=True)
    """A reward compares with the row's own answer."""

    def _made(self, rows: Rows, source: str, asked: bool = False) -> Examples:
        try:
            return super()._made(rows, source, asked=not self.needs_answer)
        except DataError as error:
            if rows and self.needs_answer and "--response_column" in str(error):
                raise DataError(f"{error} The reward compares with a row's own answer.") from None
            raise

    def table(self, tokenizer: Any, template: Any) -> PromptTable:  # type: ignore[override]
        """Return the rows of all examples."""
        most = self.config.seq_length - self.config.max_new_tokens
        return encode_prompts(self.examples, tokenizer, template, most=most, lead=lead_of(self.config))


@dataclass
class Judgements(Sources):
    """Preferences, in memory."""

    judged: bool = field(kw_only=True)
    """One answer and whether it is good, not two."""
    examples: list[Preference] = field(default_factory=list)

    def _add(self, source: str, sample: int | None, public: bool) -> np.ndarray:
        config, first = self.config, len(self.examples)
        split = config.dataset_split or ("train_prefs" if source.endswith("ultrafeedback_binarized") else None)
        rows = self._read(source, split, sample)
        made = to_preferences(
            rows,
            source=source,
            judged=self.judged,
            chosen_column=config.chosen_column,
            rejected_column=config.rejected_column,
            instruction_column=config.instruction_column,
            prefix=config.instruction_prefix,
            account=self.account,
        )
        self._know(source, rows, made.rows, made.left, public)
        self.examples += made.examples
        return np.arange(first, len(self.examples))

    def table(self, tokenizer: Any, template: Any) -> PairTable:
        """Return the rows of all examples."""
        length, lead = self.config.seq_length, lead_of(self.config)
        return encode_preferences(self.examples, tokenizer, template, seq_length=length, judged=self.judged, lead=lead)

    def texts(self, numbers: np.ndarray) -> list[str]:
        """Return what is asked in these examples."""
        return [" ".join(turn.text for turn in self.examples[number].turns) for number in numbers]


@dataclass
class Texts(Sources):
    """Plain text: documents that are tokenized to disk when they are added."""

    tokenizer: TextTokenizer = field(kw_only=True)
    report: Report = field(default=lambda *_: None)
    stores: list[Store] = field(default_factory=list)

    def _add(self, source: str, sample: int | None, public: bool) -> np.ndarray:
        config = self.config
        column = config.split_column if self._labelled and not public else None
        found = text_sources(source, split=config.dataset_split, token=config.token or None, column=column)
        numbers = np.concatenate([self._open(text) for text in found])
        if sample is not None and len(numbers) > sample:
            self.account.left.add(BEYOND, count=len(numbers) - sample)
            numbers = numbers[sample_rows(len(numbers), sample, seed=config.seed)]
        return numbers

    def _open(self, text: TextSource) -> np.ndarray:
        first = len(self.origins)
        store = open_store(text, self.tokenizer, token_cache(self.config), self.report)
        count = len(store.documents)
        store.tell(text, self.account)
        self.stores.append(store)
        self.origins += [origin_of(text.name)] * count
        if self._labelled:
            self.values += [store.values[code] for code in store.documents[:, 2]] if text.column else [""] * count
        return np.arange(first, first + count)

    def table(self) -> Documents:
        """Return the rows of all documents."""
        return Documents(self.stores, self.config.seq_length, len(self.tokenizer.begin))

    def texts(self, numbers: np.ndarray) -> list[str]:
        """Return the documents, from their tokens."""
        table, decode = self.table(), self.tokenizer.tokenizer.decode
        return [decode(table.document(int(number)), skip_special_tokens=True) for number in numbers]


def needs_answer(config: RunConfig) -> bool:
    """Say whether one of the rewards compares with a row's own answer."""
    return any(name in NEEDS_ANSWER for name in config.reward)


def origin_of(source: str) -> str:
    """Return what a client of this source is called: the file's name without endings."""
    return Path(source).name.partition(".")[0]


def token_cache(config: RunConfig) -> Path:
    """Return the folder in which tokenized text is kept."""
    chosen = config.token_cache or os.path.join(os.environ.get("WEFT_CACHE", "~/.cache/weft"), "tokens")
    return Path(chosen).expanduser()


def _column(rows: Rows, kept: Sequence[int], column: str, source: str) -> list[str]:
    """Return a column's value of every kept row; DataError if no row has the column."""
    known = list(dict.fromkeys(key for row in rows[:100] for key in row))
    if column not in known:
        raise no_column(source, column, known, " to split by")
    values = (rows[row].get(column) for row in kept)
    return ["(none)" if value is None or value == "" else NO_SIGN.sub("\ufffd", str(value)) for value in values]
