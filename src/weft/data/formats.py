"""Recognising what rows are: instructions, prompts, questions, conversations or plain text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from weft.data import known
from weft.errors import DataError
from weft.registry import nearest

ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
QUESTIONS = ("instruction", "prompt", "question")
ANSWERS = ("output", "response", "completion", "answer")
DIALOGUES = ("messages", "conversations")
TEXTS = ("text", "content")


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says; `role` is system, user or assistant."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation. Plain text is a single turn of the assistant."""

    turns: tuple[Turn, ...]

    @property
    def answer(self) -> str:
        """The last turn of the assistant."""
        return next(turn.text for turn in reversed(self.turns) if turn.role == "assistant")


class Examples(NamedTuple):
    """The usable rows, and how many were left out for which reason."""

    examples: list[Example]
    dropped: dict[str, int]
    rows: list[int]
    """The number of the row that each example was made of."""


class _Unusable(Exception):
    """A row is left out; the text is the reason."""


Maker = Callable[[dict[str, Any]], tuple[Turn, ...]]


def to_examples(
    rows: Sequence[dict[str, Any]],
    *,
    source: str,
    instruction_column: str | None = None,
    response_column: str | None = None,
) -> Examples:
    """Turn rows into examples.

    Args:
        rows: all with the columns of the first.
        source: their name, by which some columns are known, and which errors mention.
        instruction_column: the column of the question, if it is not to be recognised.
        response_column: the column of the answer, likewise.

    Raises:
        DataError: no rows, or columns that are not recognised or not there.
    """
    if not rows:
        raise DataError(f"'{source}' is empty: give a file with at least one row.")
    for column in (instruction_column, response_column):
        if column is not None and column not in rows[0]:
            raise no_column(source, column, rows[0])
    first = rows[0]
    make = _maker(first, source, instruction_column, response_column)
    columns = known.find(source)
    distinct = columns.instruction if columns and columns.distinct else None
    seen: set[str] = set()
    examples: list[Example] = []
    kept: list[int] = []
    dropped: Counter[str] = Counter()
    for number, row in enumerate(rows):
        try:
            if distinct is not None:
                if row.get(distinct) in seen:
                    raise _Unusable("repeated instruction")
                seen.add(str(row.get(distinct)))
            examples.append(Example(make(row)))
            kept.append(number)
        except _Unusable as reason:
            dropped[str(reason)] += 1
    return Examples(examples, dict(dropped), kept)


def _maker(row: dict[str, Any], source: str, instruction: str | None, response: str | None) -> Maker:
    """Return what makes turns of rows that have the columns of `row`."""
    columns = known.find(source)
    extra = None
    if instruction is None and response is None:
        if columns is not None and columns.instruction in row and columns.response in row:
            if columns.response in DIALOGUES:
                return lambda row: _dialogue(row.get(columns.response))
            return lambda row: _pair(row, columns.instruction, columns.input, columns.response)
        for column in DIALOGUES:
            if column in row:
                return lambda row, column=column: _dialogue(row.get(column))  # type: ignore[misc]
    if instruction is None:
        instruction = next((column for column in QUESTIONS if column in row), None)
        extra = "input" if instruction == "instruction" and "input" in row else None
    if response is None:
        response = next((column for column in ANSWERS if column in row and column != instruction), None)
    if instruction is None or response is None:
        missing = "questions" if instruction is None else "answers"
        flag = "--instruction_column" if instruction is None else "--response_column"
        raise DataError(
            f"'{source}' has {columns_of(row)}, none of which is known to hold {missing}: write {flag} NAME."
        )
    return lambda row: _pair(row, instruction, extra, response)


def _pair(row: dict[str, Any], instruction: str, extra: str | None, response: str) -> tuple[Turn, ...]:
    question, answer = row.get(instruction), row.get(response)
    if isinstance(question, list):  # a conversation, and how it goes on
        return _dialogue(
            [*question, *(answer if isinstance(answer, list) else [{"role": "assistant", "content": answer}])]
        )
    text = _said(question, "empty question")
    more = row.get(extra) if extra else None
    if isinstance(more, str) and more.strip():
        text = f"{text} {more}"
    return Turn("user", text), Turn("assistant", _said(answer, "empty answer"))


def _dialogue(messages: Any) -> tuple[Turn, ...]:
    if not isinstance(messages, (list, tuple)) or not messages:
        raise _Unusable("no messages")
    turns = []
    for message in messages:
        if not isinstance(message, dict):
            raise _Unusable("malformed message")
        role = ROLES.get(str(message.get("role", message.get("from"))))
        if role is None:
            raise _Unusable("unknown role in a conversation")
        turns.append(Turn(role, _said(message.get("content", message.get("value")), f"empty turn of the {role}")))
    while turns and turns[-1].role != "assistant":
        turns.pop()
    spoken = [turn.role for turn in turns if turn.role != "system"]
    if not spoken:
        raise _Unusable("conversation without an answer")
    if spoken[0] == "assistant":
        raise _Unusable("conversation that begins with an answer")
    return tuple(turns)


def _said(value: Any, reason: str) -> str:
    if value is None or isinstance(value, (list, dict)) or not str(value).strip():
        raise _Unusable(reason)
    return str(value)


def no_column(source: str, column: str, known: Iterable[str], purpose: str = "") -> DataError:
    """Return what is said of a column that is not there, with the nearest that is."""
    names = list(known)
    guess = nearest(column, names)
    meant = f" Did you mean '{guess}'?" if guess else ""
    return DataError(f"'{source}' has no column '{column}'{purpose}, but {columns_of(names)}.{meant}")


def columns_of(row: Iterable[str]) -> str:
    """Name the columns of a row, for a message."""
    return "the columns " + ", ".join(f"'{name}'" for name in row)
