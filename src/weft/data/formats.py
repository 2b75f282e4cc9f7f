"""Recognising what rows are: instructions, prompts, questions, conversations or plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from weft.data import hub_columns
from weft.data.columns import ANSWERS, DIALOGUES, TEXTS, Cells, Shape, columns_of, no_column, normal
from weft.data.rows import Account, Omissions, Row, as_rows
from weft.data.turns import (
    Turn,
    Unusable,
    cell_text,
    conversation,
    dialogue,
    is_missing,
    messages_in,
    strip_separator,
    transcript,
)
from weft.errors import DataError

__all__ = ["ANSWERS", "DIALOGUES", "TEXTS", "Example", "Examples", "Turn", "columns_of", "no_column", "to_examples"]


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation. Plain text is a single turn of the assistant."""

    turns: tuple[Turn, ...]

    @property
    def answer(self) -> str:
        """The last turn of the assistant."""
        return next(turn.text for turn in reversed(self.turns) if turn.role == "assistant")


class Examples(NamedTuple):
    """The usable rows, and what was left out."""

    examples: list[Example]
    omissions: Omissions
    rows: list[int]
    """The number of the row that each example was made of."""

    @property
    def omission_counts(self) -> dict[str, int]:
        """How many rows were left out for which reason."""
        return self.omissions.counts


class Unknown(Unusable):
    """A row whose columns are not recognised; `missing` is the role that no column fits."""

    def __init__(self, is_missing: str) -> None:
        super().__init__(f"no column that is known to hold {is_missing}")
        self.missing = is_missing


def to_examples(
    rows: Sequence[Row],
    *,
    source: str,
    instruction_column: str | None = None,
    response_column: str | None = None,
    prefix: str | None = None,
    answer_optional: bool = False,
    account: Account | None = None,
) -> Examples:
    """Turn rows into examples; each row is recognised by its own columns.

    Args:
        rows: of one source.
        source: their name, by which some columns are known, and which errors mention.
        instruction_column: the columns of the question, commas between, if they are not to be recognised.
        response_column: the columns of the answer, likewise.
        prefix: a text that stands before every question, with a blank line behind it.
        answer_optional: a row without an answer is used too; it ends with an empty turn of the assistant.
        account: receives which columns were read and which were not.

    Raises:
        DataError: no rows, or columns that are not recognised or not there.
    """
    if not rows:
        raise DataError(f"'{source}' is empty: give a file with at least one row.")
    placed = as_rows(rows, source)
    maker = _Maker(Cells(placed, source), source, instruction_column, response_column, prefix, answer_optional)
    examples: list[Example] = []
    numbers: list[int] = []
    omissions = Omissions()
    unrecognised = ""
    for number, row in enumerate(placed):
        try:
            examples.append(Example(maker.turns(row)))
            numbers.append(number)
        except Unusable as reason:
            omissions.add(str(reason), placed.place(number))
            if isinstance(reason, Unknown):
                unrecognised = unrecognised or reason.missing
    if not examples and unrecognised and len(omissions) == 1:
        raise _unknown(source, placed[0], unrecognised)
    if account is not None:
        maker.report_to(account)
    return Examples(examples, omissions, numbers)


def _unknown(source: str, row: Row, role: str) -> DataError:
    flag = "--instruction_column" if role == "questions" else "--response_column"
    hint = ""
    if "chosen" in row and "rejected" in row:
        hint = ", or learn from pairs with `weft dpo`"
    elif any(normal(name) in TEXTS for name in row):
        hint = ", or learn from plain text with `weft pretrain`"
    return DataError(
        f"'{source}' has {columns_of(row)}, none of which is known to hold {role}: write {flag} NAME{hint}."
    )


def _holds_turns(column: str, value: object) -> bool:
    """Say whether a column of a conversation's name holds one; `data` may be anything."""
    return not is_missing(value) and (normal(column) != "data" or isinstance(value, (list, tuple)))


class _Maker:
    """Makes turns of rows."""

    def __init__(
        self,
        cells: Cells,
        source: str,
        instruction: str | None,
        response: str | None,
        prefix: str | None,
        answer_optional: bool,
    ) -> None:
        self.cells, self.prefix, self.answer_optional = cells, prefix, answer_optional
        self.instruction = cells.columns_of_key(instruction)
        self.response = cells.columns_of_key(response)
        self.columns = hub_columns.find(source) if instruction is None and response is None else None
        self.instructions: set[str] = set()
        self.num_open_ends = 0

    def turns(self, row: Row) -> tuple[Turn, ...]:
        """Return the turns of a row; Unusable with the reason where there are none."""
        shape, columns = self.cells.shape(row), self.columns
        if columns is not None and columns.distinct:
            if row.get(columns.instruction) in self.instructions:
                raise Unusable("repeated instruction")
            self.instructions.add(str(row.get(columns.instruction)))
        if columns is not None and columns.instruction in row and columns.response in row:
            if columns.response in DIALOGUES:
                return self._talk(row, Shape(dialogue=(columns.response,)))
            inputs = (columns.input,) if columns.input else ()
            return self._pair(row, Shape((columns.instruction,), (columns.response,), inputs))
        if self.instruction is None and self.response is None:
            talks = tuple(name for name in shape.dialogue if _holds_turns(name, row[name]))
            if talks or (shape.dialogue and not shape.question):
                return self._talk(row, replace(shape, dialogue=talks or shape.dialogue))
        return self._pair(row, shape)

    def _talk(self, row: Row, shape: Shape) -> tuple[Turn, ...]:
        value = self.cells.first(row, shape.dialogue, "conversations")
        return self._complete_turns(self._with_system(row, shape, dialogue(value, self.cells.unread_keys)))

    def _with_system(self, row: Row, shape: Shape, turns: list[Turn]) -> list[Turn]:
        """Put the row's own system prompt before turns that have none."""
        if any(turn.role == "system" for turn in turns):
            return turns
        return [*self.cells.system(row, shape), *turns]

    def _complete_turns(self, turns: list[Turn]) -> tuple[Turn, ...]:
        if self.prefix is not None:
            at = next((at for at, turn in enumerate(turns) if turn.role == "user"), None)
            if at is not None:
                turns = [*turns[:at], Turn("user", self._with_prefix(turns[at].text)), *turns[at + 1 :]]
        if self.answer_optional and turns and turns[-1].role == "user":
            return (*conversation([*turns, Turn("assistant", "-")])[0][:-1], Turn("assistant", ""))
        closed_turns, open_end = conversation(turns)
        self.num_open_ends += open_end
        return closed_turns

    def _pair(self, row: Row, shape: Shape) -> tuple[Turn, ...]:
        cells = self.cells
        questions = self.instruction or shape.question
        answers = self.response or tuple(column for column in shape.answer if column not in questions[:1])
        if not questions:
            return self._text(row, shape)
        if not answers and not self.answer_optional:
            raise Unknown("answers")
        question = self._cell_of(row, questions, self.instruction, "question")
        answer = self._cell_of(row, answers, self.response, "answer")
        messages = messages_in(question)
        if messages is not None:  # a conversation, and how it goes on
            more = messages_in(answer)
            turns = dialogue(messages, cells.unread_keys)
            turns += dialogue(more, cells.unread_keys) if more else self._answer(answer)
            return self._complete_turns(self._with_system(row, shape, turns))
        text = self._about(row, shape, cell_text(question, "question"), answers)
        return (
            *cells.system(row, shape),
            *self._history(row, shape),
            Turn("user", self._with_prefix(text)),
            *(self._answer(answer) or [Turn("assistant", "")]),
        )

    def _cell_of(self, row: Row, columns: Sequence[str], columns_by_key: Sequence[str] | None, role: str) -> object:
        """Return what the columns of a question or answer hold; of several that the user named all."""
        if columns_by_key is not None and not any(column in row for column in columns):
            raise Unusable(f"no column {' or '.join(repr(column) for column in columns)}")
        if columns_by_key is not None and len(columns) > 1:
            return self.cells.join_text(row, columns, f"{role}s", role)
        return self.cells.first(row, columns, f"{role}s")

    def _with_prefix(self, text: str) -> str:
        return text if self.prefix is None else f"{self.prefix}\n\n{text}"

    def _about(self, row: Row, shape: Shape, text: str, answers: Sequence[str]) -> str:
        """Return a question with what it is about: `input` behind a space, as OpenFedLLM writes it, others apart."""
        if self.instruction is not None:
            return text
        for column in shape.context:
            value = self.cells.cell(row, column)
            if column in answers or column not in row:
                continue
            self.cells.note("contexts", column)
            if value is not None and value != [] and str(value).strip():
                gap = " " if column.strip().lower() == "input" else "\n\n"
                text += gap + cell_text(value, "text that the question is about")
        return text

    def _answer(self, value: object) -> list[Turn]:
        """Return the turn of an answer; none where there is none and none is needed."""
        if self.answer_optional and (is_missing(value) or not str(value).strip()):
            return []
        return [Turn("assistant", strip_separator(cell_text(value, "answer")))]

    def _history(self, row: Row, shape: Shape) -> list[Turn]:
        """Return the turns before the question: pairs of what was asked and answered."""
        pairs = self.cells.first(row, shape.history, "earlier turns")
        if pairs is None or not pairs:
            return []
        if not isinstance(pairs, (list, tuple)) or not all(
            isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs
        ):
            raise Unusable("history that is no list of pairs")
        return [
            turn
            for question, answer in pairs
            for turn in (
                Turn("user", cell_text(question, "history")),
                Turn("assistant", strip_separator(cell_text(answer, "history"))),
            )
        ]

    def _text(self, row: Row, shape: Shape) -> tuple[Turn, ...]:
        """Return the turns of a text with speakers' marks."""
        for column in shape.text:
            value = row.get(column)
            turns = transcript(value) if isinstance(value, str) else None
            if turns is not None:
                self.cells.note("conversations", column)
                return self._complete_turns([Turn(turn.role, turn.text.strip()) for turn in turns])
        raise Unknown("questions")

    def report_to(self, account: Account) -> None:
        """Add what was read, and what was not, to an account."""
        self.cells.report_to(account)
        if self.num_open_ends:
            account.note(f"turns after the last answer are left out, in {self.num_open_ends} of the conversations.")
