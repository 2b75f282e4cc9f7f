"""Recognising preferences: a prompt with a better and a worse answer, or with one answer that was judged.

Read are prompt/chosen/rejected (texts, or lists of messages as UltraFeedback has them), HH-RLHF's dialogues (what both
have in common is the prompt), and prompt/completion/label.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from weft.data.formats import QUESTIONS, ROLES, Turn, columns_of, no_column
from weft.errors import DataError

WORSE = re.compile(r"reject|worse|worst|los(er|e|ing)|dispref|negative|bad", re.IGNORECASE)
"""Names of columns that hold the answer which was not preferred."""
SPEAKERS = re.compile(r"\n\n(Human|Assistant): ?")


@dataclass(frozen=True, slots=True)
class Preference:
    """A dialogue up to the question, and two answers; where it is judged, one answer and whether it is good."""

    turns: tuple[Turn, ...]
    answer: str
    other: str = ""
    good: bool = True


class Preferences(NamedTuple):
    """The usable rows, and how many were left out for which reason."""

    examples: list[Preference]
    dropped: dict[str, int]
    rows: list[int]
    """The number of the row that each was made of."""


class _Unusable(Exception):
    """A row is left out; the text is the reason."""


def to_preferences(
    rows: Sequence[dict[str, Any]],
    *,
    source: str,
    judged: bool,
    chosen_column: str | None = None,
    rejected_column: str | None = None,
) -> Preferences:
    """Turn rows into preferences.

    Args:
        rows: all with the columns of the first.
        source: their name, which errors mention.
        judged: rows have one answer and a label (KTO), not two answers.
        chosen_column: the column of the preferred answer, where it is not `chosen`.
        rejected_column: the column of the other, where it is not `rejected`.

    Raises:
        DataError: no rows, columns that are not there, or two that are swapped by all that is known of them.
    """
    if not rows:
        raise DataError(f"'{source}' is empty: give a file with at least one row.")
    wanted = ("completion", "label") if judged else (chosen_column or "chosen", rejected_column or "rejected")
    for named, column in (("--chosen_column", chosen_column), ("--rejected_column", rejected_column)):
        if column is not None and not judged and column not in rows[0]:
            raise no_column(source, column, rows[0], f" ({named})")
    if not all(column in rows[0] for column in wanted):
        hint = ""
        if judged and "chosen" in rows[0]:
            hint = "; pairs go with --loss dpo, ipo, simpo or orpo"
        if not judged and "label" in rows[0]:
            hint = "; labels go with --loss kto"
        raise DataError(
            f"'{source}' has {columns_of(rows[0])}, but preferences are read from '{wanted[0]}' and "
            f"'{wanted[1]}'{hint}: rename the columns."
        )
    if not judged:
        _check_order(rows, source, *wanted)
    examples: list[Preference] = []
    kept: list[int] = []
    dropped: Counter[str] = Counter()
    for number, row in enumerate(rows):
        try:
            examples.append(_judged(row) if judged else _pair(row, *wanted))
            kept.append(number)
        except _Unusable as reason:
            dropped[str(reason)] += 1
    return Preferences(examples, dict(dropped), kept)


def _judged(row: dict[str, Any]) -> Preference:
    turns, answer = _apart(_prompt(row), row.get("completion"), "completion")
    label = row.get("label")
    if label in (True, False, 1, 0, "true", "false", "True", "False", "1", "0"):
        return Preference(turns, answer, good=str(label).lower() in ("true", "1"))
    raise _Unusable("label that is neither true nor false")


def _check_order(rows: Sequence[dict[str, Any]], source: str, chosen: str, rejected: str) -> None:
    """Refuse columns that are swapped: by their names, or by scores that stand beside them."""
    if WORSE.search(chosen) and not WORSE.search(rejected):
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
    against = sum(better < worse for better, worse in scores)
    if against > sum(better > worse for better, worse in scores):
        raise DataError(
            f"In {against} of {len(scores)} scored rows of '{source}' the answer in '{rejected}' has the higher score, "
            f"so '{chosen}' and '{rejected}' look swapped: write --chosen_column {rejected} --rejected_column {chosen}."
        )


def _pair(row: dict[str, Any], chosen: str, rejected: str) -> Preference:
    turns, better = _apart(_prompt(row), row.get(chosen), "chosen answer")
    others, worse = _apart(_prompt(row), row.get(rejected), "rejected answer")
    if turns != others:
        raise _Unusable("dialogues that differ before the last answer")
    if better.strip() == worse.strip():
        raise _Unusable("equal answers")
    return Preference(turns, better, worse)


def _prompt(row: dict[str, Any]) -> Any:
    return next((row[column] for column in QUESTIONS if row.get(column) is not None), None)


def _apart(prompt: Any, answer: Any, name: str) -> tuple[tuple[Turn, ...], str]:
    """Return the turns up to the question, and the answer to it."""
    before = _turns(prompt, "user") if prompt is not None else []
    said = _turns(answer, "assistant")
    if not said or said[-1].role != "assistant" or not said[-1].text.strip():
        raise _Unusable(f"empty {name}")
    if len(said) > 1:  # the whole dialogue, with the prompt in it or behind it
        inside = [turn.text.strip() for turn in said[: len(before)]] == [turn.text.strip() for turn in before]
        before = said[:-1] if inside or said[0].role != "assistant" else [*before, *said[:-1]]
    if not before or not any(turn.role == "user" and turn.text.strip() for turn in before):
        raise _Unusable("no prompt")
    if before[-1].role == "assistant":
        raise _Unusable("prompt that ends with an answer")
    return tuple(before), said[-1].text


def _turns(value: Any, role: str) -> list[Turn]:
    """Return what a column says: messages, a dialogue with speakers, or a text of one role."""
    if isinstance(value, list):
        return [_message(one) for one in value]
    if not isinstance(value, str):
        raise _Unusable("answer or prompt that is no text")
    parts = SPEAKERS.split(value)
    if len(parts) < 3:
        return [Turn(role, value)] if value.strip() else []
    turns = [
        Turn("user" if speaker == "Human" else "assistant", text)
        for speaker, text in zip(parts[1::2], parts[2::2], strict=True)
    ]
    # A prompt ends with the mark of the answer that is to come.
    return turns[:-1] if role == "user" and turns[-1].role == "assistant" and not turns[-1].text.strip() else turns


def _message(value: Any) -> Turn:
    if not isinstance(value, dict):
        raise _Unusable("malformed message")
    role = ROLES.get(str(value.get("role", value.get("from"))))
    said = value.get("content", value.get("value"))
    if role is None or not isinstance(said, str):
        raise _Unusable("malformed message")
    return Turn(role, said)
