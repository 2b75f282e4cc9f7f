"""Recognising preferences: a prompt with a better and a worse answer, or with one answer that was judged.

Read are prompt/chosen/rejected (texts, or lists of messages as UltraFeedback has them), HH-RLHF's dialogues (what both
have in common is the prompt), and prompt/completion/label. Each row is recognised by its own columns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from weft.data.columns import Cells, columns_of, no_column, normal
from weft.data.rows import NO_SIGN, Account, Omissions, Row, as_rows
from weft.data.turns import (
    SPEAKER_MARKS,
    Turn,
    Unusable,
    is_missing,
    messages_in,
    parse_literal,
    strip_separator,
    transcript,
    turn_of,
)
from weft.errors import DataError

WORSE = re.compile(r"reject(ed)?|worse|worst|loser?|losing|dispref\w*|negative|bad")
"""Words in names of columns that hold the answer which was not preferred."""
PAIRS = (("chosen", "rejected"), ("chosen_response", "rejected_response"), ("preferred", "dispreferred"))
YES = frozenset(("true", "1", "1.0", "yes"))
NO = frozenset(("false", "0", "0.0", "no"))
DIFFER = "dialogues that differ before the last answer"


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A dialogue up to the question, and two answers; where it is judged, one answer and whether it is good."""

    turns: tuple[Turn, ...]
    answer: str
    other: str = ""
    good: bool = True


class Preferences(NamedTuple):
    """The usable rows, and what was left out."""

    examples: list[PreferencePair]
    omissions: Omissions
    rows: list[int]
    """The number of the row that each was made of."""

    @property
    def omission_counts(self) -> dict[str, int]:
        """How many rows were left out for which reason."""
        return self.omissions.counts


def to_preferences(
    rows: Sequence[Row],
    *,
    source: str,
    unpaired: bool,
    chosen_column: str | None = None,
    rejected_column: str | None = None,
    instruction_column: str | None = None,
    prefix: str | None = None,
    account: Account | None = None,
) -> Preferences:
    """Turn rows into preferences.

    Args:
        rows: of one source.
        source: their name, which errors mention.
        unpaired: answers are judged one by one (KTO); a pair becomes a good answer and a bad one.
        chosen_column: the column of the preferred answer, where it is not `chosen`.
        rejected_column: the column of the other, where it is not `rejected`.
        instruction_column: the columns of the prompt, commas between, if they are not to be recognised.
        prefix: a text that stands before every prompt, with a blank line behind it.
        account: receives which columns were read and which were not.

    Raises:
        DataError: no rows, columns that are not there, or two that are swapped by all that is known of them.
    """
    if not rows:
        raise DataError(f"'{source}' is empty: give a file with at least one row.")
    placed = as_rows(rows, source)
    cells = Cells(placed, source)
    for flag, column in (("--chosen_column", chosen_column), ("--rejected_column", rejected_column)):
        if column is not None and column not in cells.names:
            raise no_column(source, column, cells.names, f" ({flag})")
    reader = _Reader(cells, unpaired, chosen_column, rejected_column, cells.columns_of_key(instruction_column), prefix)
    pairs = dict.fromkeys(pair for kind in {tuple(row): row for row in placed}.values() if (pair := reader.pair(kind)))
    if not pairs and not (unpaired and any(reader.judgement(row) for row in placed)):
        expected = ("completion", "label") if unpaired else (chosen_column or "chosen", rejected_column or "rejected")
        hint = "; labels go with --loss kto" if not unpaired and "label" in cells.names else ""
        remedy = "rename the columns" if unpaired else "write --chosen_column NAME --rejected_column NAME"
        raise DataError(
            f"'{source}' has {columns_of(cells.names)}, but preferences are read from '{expected[0]}' and "
            f"'{expected[1]}'{hint}: {remedy}."
        )
    for better, worse in pairs:
        _check_order(placed, source, better, worse)
    examples: list[PreferencePair] = []
    numbers: list[int] = []
    omissions = Omissions()
    for number, row in enumerate(placed):
        try:
            examples.append(reader.read(row))
            numbers.append(number)
        except Unusable as reason:
            omissions.add(str(reason), placed.place(number))
    if account is not None:
        reader.report_to(account)
    return Preferences(examples, omissions, numbers)


def _check_order(rows: Sequence[Row], source: str, chosen: str, rejected: str) -> None:
    """Refuse columns that are swapped: by their names, or by scores that stand beside them."""
    if _says_worse(chosen) and not _says_worse(rejected):
        raise DataError(
            f"chosen_column is '{chosen}' and rejected_column is '{rejected}', which look swapped: write "
            f"--chosen_column {rejected} --rejected_column {chosen}, or rename the columns of '{source}' if their "
            "names do not say what they hold."
        )
    scores = [
        (row[better], row[worse])
        for row in rows
        for better, worse in (
            (f"score_{chosen}", f"score_{rejected}"),
            (f"{chosen}_score", f"{rejected}_score"),
            (f"{chosen}-rating", f"{rejected}-rating"),
            (f"{chosen}_rating", f"{rejected}_rating"),
        )
        if isinstance(row.get(better), (int, float)) and isinstance(row.get(worse), (int, float))
    ]
    # Single rows may be scored against their order; swapped columns show in most rows.
    against = sum(better < worse for better, worse in scores)
    if against > sum(better > worse for better, worse in scores):
        raise DataError(
            f"In {against} of {len(scores)} scored rows of '{source}' the answer in '{rejected}' has the higher score, "
            f"so '{chosen}' and '{rejected}' look swapped: write --chosen_column {rejected} --rejected_column {chosen}."
        )


def _says_worse(name: str) -> bool:
    """Say whether a whole word of a column's name says that it is the worse answer: `lose` does, `closest` does not."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return any(WORSE.fullmatch(word.lower()) for word in re.split(r"[^A-Za-z]+", words))


class _Reader:
    """Reads preferences, row by row."""

    def __init__(
        self,
        cells: Cells,
        unpaired: bool,
        chosen: str | None,
        rejected: str | None,
        question: tuple[str, ...] | None,
        prefix: str | None,
    ) -> None:
        self.cells, self.unpaired, self.question, self.prefix = cells, unpaired, question, prefix
        self.column_keys = (chosen, rejected)
        self.num_split_pairs = 0

    def pair(self, row: Row) -> tuple[str, str] | None:
        """Return the columns of the better and the worse answer, if the row has both."""
        # Reversed, so that of two columns that differ in case only, the first counts.
        by_normal_name = {normal(name): name for name in reversed(list(row))}
        first_choice = (self.column_keys[0] or "chosen", self.column_keys[1] or "rejected")
        for better, worse in (first_choice, *(PAIRS if self.column_keys == (None, None) else ())):
            better_column = better if better in row else by_normal_name.get(better)
            worse_column = worse if worse in row else by_normal_name.get(worse)
            if better_column is not None and worse_column is not None:
                return better_column, worse_column
        return None

    def judgement(self, row: Row) -> tuple[str, str] | None:
        """Return the columns of the answer and its label, if the row has both."""
        label = next((name for name in row if normal(name) == "label"), None)
        names = self.cells.shape(row).answer
        answer = next((name for name in names if normal(name) == "completion"), next(iter(names), None))
        return (answer, label) if answer is not None and label is not None else None

    def read(self, row: Row) -> PreferencePair:
        """Return the preference of a row; Unusable with the reason where there is none."""
        pair, judgement = self.pair(row), self.judgement(row) if self.unpaired else None
        if judgement is not None and (pair is None or any(is_missing(row[column]) for column in pair)):
            return self._rating(row, *judgement)
        if pair is None:
            raise Unusable(
                "no columns of a better and a worse answer" if not self.unpaired else "no answer with a label"
            )
        preference = self._pair(row, *pair)
        self.num_split_pairs += self.unpaired
        return preference

    def _rating(self, row: Row, answer: str, label: str) -> PreferencePair:
        self.cells.note("answers", answer)
        self.cells.note("labels", label)
        turns, completion = self._split_answer(row, answer, "completion")
        value = str(row[label]).strip().lower()
        if value not in YES | NO:
            raise Unusable("label that is neither true nor false")
        return PreferencePair(turns, completion, good=value in YES)

    def _pair(self, row: Row, chosen: str, rejected: str) -> PreferencePair:
        self.cells.note("better answers", chosen)
        self.cells.note("worse answers", rejected)
        turns, better = self._split_answer(row, chosen, "chosen answer")
        others, worse = self._split_answer(row, rejected, "rejected answer")
        if turns != others:
            raise Unusable(DIFFER)
        if better.strip() == worse.strip():
            raise Unusable("equal answers")
        return PreferencePair(turns, better, worse)

    def _prompt(self, row: Row) -> object:
        shape = self.cells.shape(row)
        if self.question is not None and len(self.question) > 1:
            return self.cells.join_text(row, self.question, "prompts", "prompt")
        prompt = self.cells.first(row, self.question or shape.question, "prompts")
        if self.question is None and isinstance(prompt, str):
            for column in shape.context:
                value = self.cells.cell(row, column)
                if column not in shape.question and isinstance(value, str) and value.strip():
                    self.cells.note("contexts", column)
                    prompt += (" " if normal(column) == "input" else "\n\n") + value
        return prompt

    def _split_answer(self, row: Row, column: str, name: str) -> tuple[tuple[Turn, ...], str]:
        """Return the turns up to the question, and the answer to it."""
        prompt, answer = self._prompt(row), row.get(column)
        before = self._turns(prompt, "user") if prompt is not None else []
        turns = [] if is_missing(answer) else self._turns(answer, "assistant")
        if not turns or turns[-1].role != "assistant" or not turns[-1].text.strip():
            raise Unusable(f"empty {name}")
        if len(turns) > 1:  # the whole dialogue, which may repeat the prompt
            inside = [turn.text.strip() for turn in turns[: len(before)]] == [turn.text.strip() for turn in before]
            before = turns[:-1] if inside or turns[0].role != "assistant" else [*before, *turns[:-1]]
        if not before or not any(turn.role == "user" and turn.text.strip() for turn in before):
            raise Unusable("no prompt")
        if before[-1].role == "assistant":
            raise Unusable("prompt that ends with an answer")
        if all(turn.role != "system" for turn in before):
            before = [*self.cells.system(row, self.cells.shape(row)), *before]
        return tuple(self._with_prefix(before)), strip_separator(turns[-1].text)

    def _with_prefix(self, turns: list[Turn]) -> list[Turn]:
        if self.prefix is None:
            return turns
        at = next(at for at, turn in enumerate(turns) if turn.role == "user")
        return [*turns[:at], Turn("user", f"{self.prefix}\n\n{turns[at].text}"), *turns[at + 1 :]]

    def _turns(self, value: object, role: str) -> list[Turn]:
        """Return what a column says: messages, a dialogue with speakers, or a text of one role."""
        messages = messages_in(value)
        if messages is None and isinstance(value, dict):  # a single message
            messages = [parse_literal(value)]
        if messages is not None:
            return [turn for message in messages if (turn := turn_of(message, self.cells.unread_keys)) is not None]
        if not isinstance(value, str):
            raise Unusable("answer or prompt that is no text")
        if NO_SIGN.search(value):
            raise Unusable("half a character, such as of an emoji that was cut")
        turns = transcript(value, SPEAKER_MARKS[:1])
        if turns is None:
            return [Turn(role, value)] if value.strip() else []
        # A prompt of HH-RLHF ends with an empty `Assistant:` turn, which marks where the answer goes.
        return turns[:-1] if role == "user" and turns[-1].role == "assistant" and not turns[-1].text.strip() else turns

    def report_to(self, account: Account) -> None:
        """Add what was read, and what was not, to an account."""
        self.cells.report_to(account)
        if self.num_split_pairs:
            account.note(f"{self.num_split_pairs} pairs become a good and a bad answer each, as kto needs them.")
