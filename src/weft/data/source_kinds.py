"""The sources of a run: conversations in one list, or text that is tokenized to disk.

Examples are numbered across all sources. The table of a kind of source has rows to train on for some of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from weft.config import RunConfig
from weft.core.files import cache_folder
from weft.core.libraries import Tokenizer
from weft.data.cleaning.cleaner import Sample
from weft.data.documents import Documents
from weft.data.encode import ConversationTable, closed_set, encode
from weft.data.formats import Example, Examples, to_examples
from weft.data.pairs import PairTable, encode_preferences
from weft.data.partition import sample_rows
from weft.data.parts import Selection, span
from weft.data.preferences import PreferencePair, to_preferences
from weft.data.prompts import PromptTable, encode_prompts
from weft.data.remembered import remembered
from weft.data.rows import PlacedRows
from weft.data.sources import BEYOND_SAMPLE, Sources, digest, origin_of, split_seed
from weft.data.store import Report, Store, open_store, store_in_memory
from weft.data.templates import Template
from weft.data.texts import TextSource, text_sources
from weft.data.tokens import TextTokenizer
from weft.data.turns import Turn
from weft.data.words import lead_of
from weft.errors import DataError
from weft.keys.pretraining import FIM_TOKENS
from weft.registry import REWARDS_WITH_ANSWER


@dataclass
class Conversations(Sources):
    """Questions and answers, in memory."""

    examples: list[Example] = field(default_factory=list)

    def _add(self, source: str, selection: Selection, sample: int | None, public: bool) -> np.ndarray:
        first = len(self.examples)
        rows = self._read(source, selection, sample)
        examples = self._examples_of(rows, source)
        self._remember_rows(source, rows, examples.rows, examples.omissions, public)
        self.examples += examples.examples
        return np.arange(first, len(self.examples))

    def _examples_of(self, rows: PlacedRows, source: str, answer_optional: bool = False) -> Examples:
        config = self.config
        return to_examples(
            rows,
            source=source,
            instruction_column=config.instruction_column,
            response_column=config.response_column,
            prefix=config.instruction_prefix,
            answer_optional=answer_optional,
            account=self.account,
        )

    def table(self, tokenizer: Tokenizer, template: Template) -> ConversationTable:
        """Return the rows of all examples."""
        config = self.config
        length, side, lead = config.seq_length, config.truncation_side, lead_of(config)
        return remembered(
            lambda: encode(self.examples, tokenizer, template, seq_length=length, truncation_side=side, lead=lead),
            *(tokenizer, template, self.examples, length, side, lead.tolist()),
        )

    def samples(self, numbers: np.ndarray) -> list[Sample]:
        """Return questions, and the turns of the assistant as answers."""
        return [sample_of(self.examples[number].turns) for number in numbers]

    def rewrite(self, changes: Mapping[int, Sample]) -> dict[int, int]:
        """Put other texts into the turns."""
        for number, sample in changes.items():
            self.examples[number] = Example(with_texts(self.examples[number].turns, sample))
        return {}

    def marks(self, numbers: np.ndarray) -> list[bytes]:
        """Return digests of the conversations."""
        return [digest(repr(self.examples[number]).encode()) for number in numbers]

    def texts(self, numbers: np.ndarray) -> list[str]:
        """Return the text of all turns of these examples."""
        return [" ".join(turn.text for turn in self.examples[number].turns) for number in numbers]

    def answers(self, numbers: np.ndarray) -> list[str] | None:
        """Return the answers if they form a closed set, else None."""
        answers = [self.examples[number].answer.strip() for number in numbers]
        return answers if closed_set(answers) else None


@dataclass
class Prompts(Conversations):
    """Questions that the model answers by generation, in memory."""

    needs_answer: bool = field(kw_only=True)
    """Whether a reward compares with the answer of the row."""

    def _examples_of(self, rows: PlacedRows, source: str, answer_optional: bool = False) -> Examples:
        try:
            return super()._examples_of(rows, source, answer_optional=not self.needs_answer)
        except DataError as error:
            if rows and self.needs_answer and "--response_column" in str(error):
                raise DataError(f"{error} The reward compares with a row's own answer.") from None
            raise

    def table(self, tokenizer: Tokenizer, template: Template) -> PromptTable:  # type: ignore[override]
        """Return the rows of all examples."""
        most = self.config.seq_length - self.config.max_new_tokens
        return encode_prompts(self.examples, tokenizer, template, most=most, lead=lead_of(self.config))


@dataclass
class Judgements(Sources):
    """Preferences, in memory."""

    unpaired: bool = field(kw_only=True)
    """Rows have one answer and whether it is good, instead of two answers."""
    examples: list[PreferencePair] = field(default_factory=list)

    def _add(self, source: str, selection: Selection, sample: int | None, public: bool) -> np.ndarray:
        config, first = self.config, len(self.examples)
        rows = self._read(source, selection, sample)
        preferences = to_preferences(
            rows,
            source=source,
            unpaired=self.unpaired,
            chosen_column=config.chosen_column,
            rejected_column=config.rejected_column,
            instruction_column=config.instruction_column,
            prefix=config.instruction_prefix,
            account=self.account,
        )
        self._remember_rows(source, rows, preferences.rows, preferences.omissions, public)
        self.examples += preferences.examples
        return np.arange(first, len(self.examples))

    def samples(self, numbers: np.ndarray) -> list[Sample]:
        """Return prompts, and both answers, or the one that was judged."""
        return [preference_sample(self.examples[number]) for number in numbers]

    def rewrite(self, changes: Mapping[int, Sample]) -> dict[int, int]:
        """Put other texts into the turns and the answers."""
        for number, sample in changes.items():
            turns = self.examples[number].turns
            new = [replace(turn, text=text) for turn, text in zip(turns, sample.prompts, strict=True)]
            answer, other = (*sample.answers, "")[:2]
            self.examples[number] = replace(self.examples[number], turns=tuple(new), answer=answer, other=other)
        return {}

    def marks(self, numbers: np.ndarray) -> list[bytes]:
        """Return digests of the prompts and answers."""
        return [digest(repr(self.examples[number]).encode()) for number in numbers]

    def table(self, tokenizer: Tokenizer, template: Template) -> PairTable:
        """Return the rows of all examples."""
        length, unpaired, lead = self.config.seq_length, self.unpaired, lead_of(self.config)
        table = remembered(
            lambda: encode_preferences(
                self.examples, tokenizer, template, seq_length=length, unpaired=unpaired, lead=lead
            ),
            *(tokenizer, template, self.examples, length, unpaired, lead.tolist()),
        )
        # A run writes references and partners into its table, and those of the next run may differ.
        return replace(table, partner=table.partner.copy(), reference=table.reference.copy())

    def texts(self, numbers: np.ndarray) -> list[str]:
        """Return the prompts of these examples."""
        return [" ".join(turn.text for turn in self.examples[number].turns) for number in numbers]


@dataclass
class Texts(Sources):
    """Plain text: documents that are tokenized to disk when they are added."""

    tokenizer: TextTokenizer = field(kw_only=True)
    report: Report = field(default=lambda *_: None)
    stores: list[Store] = field(default_factory=list)
    column_values: list[str] = field(default_factory=list)
    """Of every document, the value of the column that is stored with it."""
    replaced: list[int] = field(default_factory=list)
    """Documents in whose place others stand, with repaired or masked text."""

    def _add(self, source: str, selection: Selection, sample: int | None, public: bool) -> np.ndarray:
        config = self.config
        column = (config.split_column if self._has_split_column else config.mixture_column) if not public else None
        purpose = " to split by" if self._has_split_column else " for mixture_column"
        sources = text_sources(source, selection, token=config.token or None, column=column, purpose=purpose)
        numbers = np.concatenate([self._open(text) for text in sources])
        # A slice of a hub data set is taken when it is loaded; one of a file counts documents, known only now.
        if (piece := selection.request.piece) is not None and sources[0].path.is_file():
            numbers = numbers[list(span(len(numbers), piece, source))]
        if sample is not None and len(numbers) > sample:
            self.account.omissions.add(BEYOND_SAMPLE, count=len(numbers) - sample)
            numbers = numbers[sample_rows(len(numbers), sample, seed=split_seed(config))]
        return numbers

    def _open(self, text: TextSource) -> np.ndarray:
        first = len(self.origins)
        store = open_store(text, self.tokenizer, token_cache(self.config), self.report)
        count = len(store.documents)
        store.report_to(text, self.account)
        self.stores.append(store)
        self.origins += [origin_of(text.name)] * count
        if self._has_split_column or self.config.mixture_column is not None:
            found = [store.values[code] for code in store.documents[:, 2]] if text.column else [""] * count
            self.column_values += found
            self.values += found if self._has_split_column else []
        return np.arange(first, first + count)

    def domains_of(self, numbers: np.ndarray) -> list[str]:
        """Return the domain of each document for a mixture: its value of mixture_column, else the name of its file."""
        names = self.origins if self.config.mixture_column is None else self.column_values
        return [names[number] if number < len(names) else "" for number in numbers.tolist()]

    def like(self, numbers: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Return the documents that are as long as one of the others; only these need to be read and compared."""
        lengths = self.table().lengths
        return numbers[np.isin(lengths[numbers], np.unique(lengths[others]))]

    def marks(self, numbers: np.ndarray) -> list[bytes]:
        """Return digests of the documents' tokens."""
        table = self.table()
        return [digest(table.document(int(number)).tobytes()) for number in numbers]

    def samples(self, numbers: np.ndarray) -> list[Sample]:
        """Return the documents, from their tokens."""
        return [Sample((), (text,)) for text in self.texts(numbers)]

    def rewrite(self, changes: Mapping[int, Sample]) -> dict[int, int]:
        """Add the new texts as documents, whose tokens are in memory, in the place of the former ones."""
        if not changes:
            return {}
        texts = [sample.answers[0] for sample in changes.values()]
        store = store_in_memory(texts, self.tokenizer)
        first = len(self.origins)
        self.stores.append(store)
        self.replaced += changes
        self.origins += [self.origins[number] for number in changes]
        for values in (self.values, self.column_values):
            values += [values[number] for number in changes] if values else []
        return {number: first + place for place, number in enumerate(changes)}

    def table(self) -> Documents:
        """Return the rows of all documents."""
        length = self.config.seq_length - (FIM_TOKENS if self.config.fills_middle else 0)
        table = Documents(self.stores, length, len(self.tokenizer.begin))
        table.counts["rows"] -= len(self.replaced)
        table.counts["tokens"] -= int(table.lengths[self.replaced].sum())
        return table

    def texts(self, numbers: np.ndarray) -> list[str]:
        """Return the documents, from their tokens."""
        table, decode = self.table(), self.tokenizer.tokenizer.decode
        return [decode(table.document(int(number)), skip_special_tokens=True) for number in numbers]


def sample_of(turns: Sequence[Turn]) -> Sample:
    """Return a conversation as cleaners see it."""
    prompts = tuple(turn.text for turn in turns if turn.role != "assistant")
    return Sample(prompts, tuple(turn.text for turn in turns if turn.role == "assistant"))


def with_texts(turns: Sequence[Turn], sample: Sample) -> tuple[Turn, ...]:
    """Return the turns of a conversation with the texts of a sample."""
    prompts, answers = iter(sample.prompts), iter(sample.answers)
    return tuple(replace(turn, text=next(answers if turn.role == "assistant" else prompts)) for turn in turns)


def preference_sample(pair: PreferencePair) -> Sample:
    """Return a preference as cleaners see it."""
    answers = (pair.answer, pair.other) if pair.other else (pair.answer,)
    return Sample(tuple(turn.text for turn in pair.turns), answers)


def needs_answer(config: RunConfig) -> bool:
    """Return whether one of the rewards compares with the answer of a row."""
    return any(name in REWARDS_WITH_ANSWER for name in config.reward)


def token_cache(config: RunConfig) -> Path:
    """Return the folder that caches tokenized text."""
    return Path(config.token_cache).expanduser() if config.token_cache else cache_folder("tokens")
